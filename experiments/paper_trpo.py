"""What the studies of the GAE paper share: its algorithm on azjax's trainer, and many members in one program.

One iteration (arXiv 1506.02438, section 6.1): fresh trajectories, advantages with the value function of before, a TRPO
step, then a step of the value function inside its trust region. Not a script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import azjax
from azjax.population import make_population_mesh, with_hyperparameters
from azjax.trajectories import elapsed_steps, first_episode, time_dependent_baseline

AXIS = "lanes"


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment and how the paper learns it."""

    env: str
    lanes: int  # trajectories that begin together
    rollout_length: int  # steps of each
    whole: bool  # a batch is the first trajectory of each lane; else all steps, those of the next trajectories too
    policy_hidden: tuple[int, ...]
    value_hidden: tuple[int, ...]
    max_value_change: float = 0.01

    def make_env(self) -> Any:
        """The environment; a whole trajectory ends with the rollout."""
        return azjax.make_env(self.env, episode_length=self.rollout_length if self.whole else None)

    def config(self) -> azjax.TRPOConfig:
        """Hyperparameters; gamma and lam are those of each member."""
        return azjax.TRPOConfig(
            max_kl=0.01,
            value_update="trust-region",
            max_value_change=self.max_value_change,
            policy_hidden=self.policy_hidden,
            value_hidden=self.value_hidden,
            distribution="normal",
            init_std=1.0,
        )

    def hyperparameters(self) -> dict[str, Any]:
        """Those of every member."""
        config = dataclasses.asdict(self.config())
        return {name: value for name, value in config.items() if name not in ("gamma", "lam")}


def default_task(name: str) -> Task:
    """A task of the paper by its name there, or any environment with the networks of its 3D tasks."""
    if name in ("cartpole", "azjax:cartpole"):
        return Task("azjax:cartpole", 20, 1000, True, (), (20,))
    # The paper's batches on the biped are 50,000 steps; on the quadruped 200,000, which is four times too long here.
    # A rollout is as long as an episode can be, so that batches of fresh episodes have late steps, too.
    env = f"azjax:{name}" if name in ("biped", "quadruped") else name
    return Task(env, 25, 2000, False, (100, 50, 25), (100, 50, 25))


@dataclasses.dataclass(frozen=True)
class PolicyAlone:
    """A network without its value function."""

    network: azjax.ActorCritic

    def init(self, key: Any, observation_spec: Any, action_spec: Any) -> Any:
        """Parameters of both, of which those of the values do nothing."""
        return self.network.init(key, observation_spec, action_spec)

    def apply(self, params: Any, observation: Any) -> Any:
        """``(distribution, None)``."""
        return self.network.apply(params, observation)[0], None


def paper_learner(task: Task, *, with_value: bool, axis_name: str | None = None) -> azjax.Learner:
    """TRPO as the paper runs it; its diagnostics also have ``trajectory_return`` and ``trajectory_length``.

    - Values are fitted to discounted Monte Carlo returns, whatever lambda (section 6.1 and footnote 2).
    - Without a value function ("No VF") the advantage is that return minus its mean over the batch's trajectories at
      the same time step.
    - What is reported is the undiscounted return of the first trajectory of each lane.
    """
    config = task.config()
    network = azjax.on_policy.default_network(config)
    learner = azjax.trpo(config, network=network if with_value else PolicyAlone(network), axis_name=axis_name)

    def monte_carlo(state: Any) -> Any:
        values = state.hyperparameters
        return dataclasses.replace(state, hyperparameters=dataclasses.replace(values, lam=jnp.ones_like(values.lam)))

    def estimate(state: Any, rollout: azjax.Rollout) -> Any:
        ends = (rollout.terminated, rollout.truncated)
        first = first_episode(*ends)
        targets = learner.estimate(monte_carlo(state), rollout)
        batch = learner.estimate(state, rollout) if with_value else targets
        mask = batch.mask & first if task.whole else batch.mask
        advantages = batch.advantages
        if not with_value:
            advantages = advantages - time_dependent_baseline(advantages, elapsed_steps(*ends), mask)
        outcome = {
            "trajectory_return": jnp.where(first, rollout.reward, 0.0).sum(axis=0).mean(),
            "trajectory_length": first.sum(axis=0).mean(),
        }
        return batch._replace(advantages=advantages, returns=targets.returns, mask=mask), outcome

    def fit(state: Any, estimated: Any, key: Any) -> Any:
        batch, outcome = estimated
        state, info = learner.fit(state, batch, key)
        return state, info | outcome

    return learner._replace(estimate=estimate, fit=fit)  # type: ignore[arg-type]


def start(trainer: azjax.Trainer, seed: Any, gamma: Any, lam: Any) -> Any:
    """A member's first state."""
    state = trainer.init(jax.random.key(seed))
    values = dataclasses.replace(state.learner.hyperparameters, gamma=jnp.float32(gamma), lam=jnp.float32(lam))
    return with_hyperparameters(state, values)


class Members(NamedTuple):
    """Compiled programs of many members at once; every leaf has the member as its first axis."""

    init: Callable[..., Any]  # (seeds [P], gammas [P], lams [P]) -> states
    step: Callable[..., Any]  # states -> (states, diagnostics)


def make_iteration(task: Task, *, with_value: bool, axis_name: str | None = None) -> azjax.Trainer:
    """The training program of one member: an update from fresh episodes; ``axis_name`` as of the trainer."""
    learner = paper_learner(task, with_value=with_value, axis_name=axis_name)
    trainer = azjax.make_trainer(
        task.make_env(), learner, lanes=task.lanes, rollout_length=task.rollout_length, axis_name=axis_name
    )

    def step(state: Any) -> Any:
        # Every batch consists of new trajectories, as the paper's do: no episode goes on from the last batch.
        key, key_lanes = jax.random.split(state.key)
        return trainer.step(dataclasses.replace(state, key=key, lanes=trainer.init(key_lanes).lanes))

    return trainer._replace(step=step)


def compile_members(task: Task, members: int, *, with_value: bool) -> Members:
    """A population of so many members, divided among the devices; their number must be divisible by those."""
    population = azjax.make_population(make_iteration(task, with_value=with_value, axis_name=AXIS))
    mesh = make_population_mesh((len(jax.devices()), 1), AXIS)
    program = azjax.compile_population(population, members, mesh)

    def init(seeds: Any, gammas: Any, lams: Any) -> Any:
        config = task.config()
        configs = [dataclasses.replace(config, gamma=g, lam=lam) for g, lam in zip(gammas, lams, strict=True)]
        return program.init(jax.vmap(jax.random.key)(seeds), azjax.stack_hyperparameters(configs))

    def step(state: Any) -> Any:
        state, metrics = program.step(state)
        of_members = jax.tree.map(lambda x: x[0], metrics.members)  # of the call's only update
        return state, of_members.learner | {"nonfinite_lanes": of_members.nonfinite_lanes}

    return Members(init, step)
