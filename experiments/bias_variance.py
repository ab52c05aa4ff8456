"""Bias and variance of advantage estimates and policy gradients on cart-pole: docs/gae_study.md.

Command:   python experiments/bias_variance.py --out runs/bias_variance
Hardware:  2 CPU cores
Time:      3 minutes beside other work
Expected:  gamma 1: squared bias of advantages 1.3 at lambda 0, none at lambda 1; best batch gradient at lambda 0.9

A policy is half trained, and for each gamma a value function is half fitted to it. Then two things are measured, each
against a ground truth from many independent episodes: the undiscounted objective, the sum of rewards up to the end of
the episode, which the time limit ends like a fall.

- Advantages. At states the policy visits, with several actions each, every estimator is computed on many continuations
  that begin with the same state and action. Its mean over continuations against the truth is its bias, its spread is
  its variance.
- Policy gradients. ``sum_t A_t grad log pi(a_t | s_t)`` of whole trajectories: the angle between its mean and the
  truth, and its spread over batches.

Estimators: GAE for every gamma and lambda (lambda 0 is TD(0), lambda 1 Monte Carlo with a baseline), n-step advantages,
and Monte Carlo without a baseline. At the end there are ``table.md``, ``results.json`` and ``bias_variance.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bias_variance_report
import jax
import jax.numpy as jnp
import numpy as np
import paper_trpo
from bias_variance_report import Estimator
from jax.sharding import PartitionSpec

import azjax
from azjax.config import ConfigError, require, require_number
from azjax.envs.lanes import batch_first, choose_vectorize, reset_lanes, step_lanes
from azjax.normalization import normalize
from azjax.parameters import as_vector, separate
from azjax.runs import machine

LAMBDAS = (0.0, 0.2, 0.36, 0.5, 0.68, 0.8, 0.84, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)
GAMMAS = (0.9, 0.96, 0.99, 0.995, 1.0)
STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
GAMMA = 0.99  # of the training before
COMPARED = (GAMMA, 1.0)  # gammas of the n-step estimators
LANES = 512  # episodes side by side


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is measured."""

    horizon: int = 500  # steps of an episode at most
    trained_to: float = 0.3  # part of the largest return at which the policy's training stops
    value_iterations: int = 10  # steps of each value function from its random start
    states: int = 64
    actions: int = 8  # of each state
    continuations: int = 256  # of each state and action, for the estimators
    truth: int = 4096  # of each state and action, for the ground truth
    trajectories: int = 20_480  # for the gradients
    true_trajectories: int = 40_960  # for the true gradient
    seed: int = 0


def main() -> None:
    """Trains, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    for field in dataclasses.fields(Settings):
        kind = type(field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=str(field.default)
        )
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    try:
        measure(out, Settings(**arguments))
    except ConfigError as error:
        raise SystemExit(f"bias_variance: {error}") from None


def measure(out: Path, settings: Settings) -> None:
    check(settings)
    machine.split_host(lambda devices: settings.states % devices == 0)
    out.mkdir(parents=True, exist_ok=True)
    subject = prepare(settings)
    advantages = measure_advantages(subject, settings)
    gradients = measure_gradients(subject, settings.trajectories, settings.seed + 2)
    true_gradients = measure_gradients(subject, settings.true_trajectories, settings.seed + 3)
    bias_variance_report.write(
        out,
        settings=dataclasses.asdict(settings),
        subject=subject.facts,
        estimators=subject.estimators,
        advantages=advantages,
        gradients=gradients,
        true_gradients=true_gradients[-1],
    )


def check(settings: Settings) -> None:
    smallest = {"states": 2, "actions": 2, "continuations": 2, "truth": 2, "trajectories": 40, "true_trajectories": 40}
    for field in dataclasses.fields(settings):
        low = {"trained_to": 0.0, "seed": 0}.get(field.name, smallest.get(field.name, 1))
        require_number(f"--{field.name.replace('_', '-')}", getattr(settings, field.name), low, 10**7)
    require(settings.trained_to < 1, f"--trained-to is {settings.trained_to}; it is a part of the largest return")


# ---- a policy and its value functions


class Subject(NamedTuple):
    """What is measured."""

    env: Any
    act: Any
    params: Any  # the policy's, as the learner's act takes them
    network: azjax.ActorCritic
    value_networks: Any  # parameters, [gammas, ...]
    estimators: tuple[Estimator, ...]  # the last one is the truth's
    facts: dict[str, Any]


def prepare(settings: Settings) -> Subject:
    """A policy half as good as it may be, and for every gamma a value function that has not caught up with it."""
    task = dataclasses.replace(paper_trpo.default_task("cartpole"), rollout_length=settings.horizon)
    trainer = paper_trpo.make_iteration(task, with_value=True)
    step = jax.jit(trainer.step)
    state = paper_trpo.start(trainer, settings.seed, GAMMA, 0.96)
    goal, updates = 10.0 * settings.horizon * settings.trained_to, 0
    while True:
        after, metrics = step(state)
        info = metrics.learner
        if float(info["trajectory_return"]) >= goal:
            break
        state, updates = after, updates + 1
        require(updates < 500, f"the policy has not come to a return of {goal:.0f} in 500 updates; lower --trained-to")
    facts = {"updates": updates, "return": float(info["trajectory_return"]), "length": float(info["trajectory_length"])}
    print(f"policy: {updates} updates, return {facts['return']:.0f}, length {facts['length']:.0f}", flush=True)
    learner = paper_trpo.paper_learner(task, with_value=True)
    network = azjax.on_policy.default_network(task.config())
    values, errors = zip(*(half_fitted(step, trainer, state, gamma, settings) for gamma in GAMMAS), strict=True)
    facts["value_rmse_before_last_step"] = {f"{gamma:g}": round(x, 2) for gamma, x in zip(GAMMAS, errors, strict=True)}
    return Subject(
        env=task.make_env(),
        act=learner.act,
        params=state.learner.params,
        network=network,
        value_networks=jax.tree.map(lambda *leaves: jnp.stack(leaves), *values),
        estimators=bias_variance_report.estimators(GAMMAS, LAMBDAS, STEPS, COMPARED),
        facts=facts,
    )


def half_fitted(step: Any, trainer: azjax.Trainer, state: Any, gamma: float, settings: Settings) -> tuple[Any, float]:
    """A value function of the discounted returns, and its error: as in training, with the policy held where it is."""
    untrained = paper_trpo.start(trainer, settings.seed + 1, gamma, 1.0)
    network, spec = azjax.on_policy.default_network(state.learner.hyperparameters), untrained.lanes.env.observation
    parts = separate(network, state.learner.params.network, jax.ShapeDtypeStruct(spec.shape[::-1], spec.dtype))
    theta, _ = as_vector(state.learner.params.network, parts.policy)

    def with_policy(learner_state: Any) -> Any:
        _, rebuild = as_vector(learner_state.params.network, parts.policy)
        params = dataclasses.replace(state.learner.params, network=rebuild(theta))
        return dataclasses.replace(learner_state, params=params)

    current, loss = dataclasses.replace(untrained, learner=with_policy(untrained.learner)), 0.0
    for _ in range(settings.value_iterations):
        current, metrics = step(current)
        loss = float(metrics.learner["value_loss"])
        current = dataclasses.replace(current, learner=with_policy(current.learner))
    return current.learner.params.network, float(np.sqrt(2.0 * loss))


# ---- episodes


class Paths(NamedTuple):
    """Episodes of N lanes that begin together; steps after the end of one are not over again."""

    observation: Any  # [T + 1, N, 4]
    raw_action: Any  # [T, N, 1]
    reward: Any  # [T, N]
    terminated: Any  # bool [T, N]
    truncated: Any  # bool [T, N]


def play(subject: Subject, states: Any, elapsed: Any, key: Any, steps: int, first: Any = None) -> Paths:
    """The policy's episodes from batch-last states on, beginning with the raw actions ``first`` ``[N, 1]`` if given."""
    env, mapped = subject.env, choose_vectorize()

    def one(carry: Any, t: Any) -> Any:
        state, elapsed = carry
        observation = batch_first(state.observation)
        action, raw = choose(subject, observation, jax.random.fold_in(key, t), first, t)
        result = step_lanes(env, mapped, state, elapsed, action, limit=env.episode_length)
        path = (observation, raw, result.reward, result.terminated, result.truncated)
        return (result.state, result.elapsed), path

    (last, _), path = jax.lax.scan(one, (states, elapsed), jnp.arange(steps))
    observation = jnp.concatenate([path[0], batch_first(last.observation)[None]])
    return Paths(observation, *path[1:])


def choose(subject: Subject, observation: Any, key: Any, first: Any, t: Any) -> tuple[Any, Any]:
    action, _, info = subject.act(subject.params, observation, (), key)
    if first is None:
        return action, info.raw_action
    raw = jnp.where(t == 0, first, info.raw_action)
    return raw, raw  # a normal policy's action is its raw action


def true_returns(subject: Subject, states: Any, elapsed: Any, key: Any, first: Any = None) -> Any:
    """Sums of rewards ``[N]`` up to the ends of the episodes, without keeping them."""
    env, mapped = subject.env, choose_vectorize()

    def one(carry: Any) -> Any:
        t, state, elapsed, over, total = carry
        action, _ = choose(subject, batch_first(state.observation), jax.random.fold_in(key, t), first, t)
        result = step_lanes(env, mapped, state, elapsed, action, limit=env.episode_length)
        total = total + jnp.where(over, 0.0, result.reward)
        return t + 1, result.state, result.elapsed, over | result.terminated | result.truncated, total

    lanes = elapsed.shape[0]
    start = (jnp.int32(0), states, elapsed, jnp.zeros(lanes, bool), jnp.zeros(lanes))
    return jax.lax.while_loop(lambda carry: ~carry[3].all(), one, start)[4]


def estimate(subject: Subject, paths: Paths) -> Any:
    """Every estimator's advantages, ``[E, T, N]``; the last one's are the truth's: unbiased for the gradient."""
    inputs = normalize(subject.params.statistics, paths.observation)
    values = jax.vmap(lambda params: subject.network.apply(params, inputs)[1])(subject.value_networks)
    of_gamma = dict(zip(GAMMAS, values, strict=True))
    ends = (paths.terminated, paths.truncated)

    def of_gae(gamma: float) -> Any:
        """All lambdas of a gamma by one loop."""
        of_lambda = jax.vmap(
            lambda lam: azjax.gae(paths.reward, here(gamma), there(gamma), *ends, gamma=gamma, lam=lam)[0]
        )
        return of_lambda(jnp.array(LAMBDAS))

    def here(gamma: float) -> Any:
        return of_gamma[gamma][:-1]

    def there(gamma: float) -> Any:
        return of_gamma[gamma][1:]

    def one(estimator: Estimator) -> Any:
        gamma = estimator.gamma
        if estimator.kind == "gae":
            return gae[gamma][LAMBDAS.index(estimator.lam)]
        if estimator.kind == "n-step":
            return azjax.n_step(paths.reward, here(gamma), there(gamma), *ends, gamma=gamma, n=estimator.n)[0]
        if estimator.kind == "monte-carlo":
            nothing = jnp.zeros_like(paths.reward)
            return azjax.gae(paths.reward, nothing, nothing, *ends, gamma=gamma, lam=1.0)[0]
        # The truth: the sum of rewards, which the time limit ends, over a baseline.
        over = ends[0] | ends[1]
        return azjax.gae(paths.reward, here(gamma), there(gamma), over, over, gamma=gamma, lam=1.0)[0]

    gae = {gamma: of_gae(gamma) for gamma in GAMMAS}
    return jnp.stack([one(estimator) for estimator in subject.estimators])


# ---- advantages


def measure_advantages(subject: Subject, settings: Settings) -> dict[str, np.ndarray]:
    """Means and variances over continuations, state by state: the fields of ``bias_variance_report.write``."""
    places = visited(subject, settings)
    mesh = jax.make_mesh((len(jax.devices()),), ("states",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = PartitionSpec("states")

    def several(places: Any) -> Any:
        return jax.lax.map(lambda place: at_state(subject, settings, *place), places)

    program = jax.jit(jax.shard_map(several, mesh=mesh, in_specs=divided, out_specs=divided, check_vma=False))
    start, found = time.monotonic(), []
    for first in range(0, settings.states, mesh.size):
        piece = jax.tree.map(lambda x, n=first: x[n : n + mesh.size], places)
        found.append(jax.tree.map(np.asarray, program(piece)))
        if (first // mesh.size) % 8 == 7 or first + mesh.size >= settings.states:
            print(f"{first + mesh.size} of {settings.states} states, {time.monotonic() - start:.0f} s", flush=True)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def visited(subject: Subject, settings: Settings) -> tuple[Any, Any, Any]:
    """States ``[K, ...]`` drawn from the steps of the policy's episodes, their elapsed steps, and a key for each."""
    key_reset, key_play, key_choice, key_each = jax.random.split(jax.random.key(settings.seed + 1), 4)

    @jax.jit
    def episodes() -> Any:
        start = reset_lanes(subject.env, choose_vectorize(), jax.random.split(key_reset, LANES))
        paths = play(subject, start, jnp.zeros(LANES, jnp.int32), key_play, settings.horizon)
        alive = azjax.trajectories.first_episode(paths.terminated, paths.truncated)
        chosen = jax.random.choice(
            key_choice, alive.size, (settings.states,), replace=False, p=alive.reshape(-1) / alive.sum()
        )
        return paths.observation[:-1].reshape(-1, 4)[chosen], (chosen // LANES).astype(jnp.int32)

    observation, elapsed = episodes()
    # On cart-pole the observation is the state.
    fresh = subject.env.reset(key_reset, ())
    states = jax.vmap(lambda x: fresh.replace(inner=x, observation=x))(observation)
    return states, elapsed, jax.random.split(key_each, settings.states)


def at_state(subject: Subject, settings: Settings, state: Any, elapsed: Any, key: Any) -> dict[str, Any]:
    """All continuations of one state."""
    key_actions, key_paths, key_truth, key_value = jax.random.split(key, 4)
    count = settings.actions
    _, _, info = subject.act(
        subject.params, jnp.broadcast_to(state.observation, (count, *state.observation.shape)), (), key_actions
    )

    def lanes(tree: Any, number: int) -> Any:
        return jax.tree.map(lambda x: jnp.broadcast_to(x[..., None], (*x.shape, number)), tree)

    def estimates(first: Any, key: Any) -> Any:
        n = settings.continuations
        start, since = lanes((state, elapsed), n)
        paths = play(subject, start, since, key, settings.horizon, jnp.broadcast_to(first, (n, 1)))
        values = estimate(subject, paths)[:, 0]
        return values.mean(axis=1), values.var(axis=1, ddof=1)

    def truth(first: Any, key: Any) -> Any:
        start, since = lanes((state, elapsed), settings.truth)
        first = None if first is None else jnp.broadcast_to(first, (settings.truth, 1))
        returns = true_returns(subject, start, since, key, first)
        return returns.mean(), returns.var(ddof=1)

    each = jax.random.split(key_paths, count), jax.random.split(key_truth, count)
    mean, variance = jax.lax.map(lambda x: estimates(*x), (info.raw_action, each[0]))
    q, q_variance = jax.lax.map(lambda x: truth(*x), (info.raw_action, each[1]))
    v, v_variance = truth(None, key_value)
    return {
        "mean": mean,
        "variance": variance,
        "q": q,
        "q_variance": q_variance,
        "v": v,
        "v_variance": v_variance,
    }


# ---- policy gradients


def measure_gradients(subject: Subject, trajectories: int, seed: int) -> np.ndarray:
    """``sum_t A_t grad log pi`` of each trajectory and estimator, ``[E, trajectories, parameters]``."""
    program = jax.jit(gradient_program(subject))
    keys = jax.random.split(jax.random.key(seed), -(-trajectories // LANES))
    start, found = time.monotonic(), []
    for n, key in enumerate(keys, 1):
        found.append(np.asarray(program(key)))
        if n % 20 == 0 or n == len(keys):
            print(f"{n * LANES} trajectories for gradients, {time.monotonic() - start:.0f} s", flush=True)
    return np.concatenate(found, axis=1)[:, :trajectories]


def gradient_program(subject: Subject) -> Callable[[Any], Any]:
    network, params = subject.network, subject.params
    parts = separate(network, params.network, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    theta, rebuild = as_vector(params.network, parts.policy)

    def log_prob(theta: Any, observation: Any, raw_action: Any) -> Any:
        return network.apply(rebuild(theta), observation)[0].log_prob(raw_action)

    def gradients(key: Any) -> Any:
        key_reset, key_play = jax.random.split(key)
        start = reset_lanes(subject.env, choose_vectorize(), jax.random.split(key_reset, LANES))
        paths = play(subject, start, jnp.zeros(LANES, jnp.int32), key_play, subject.env.episode_length)
        inputs = normalize(params.statistics, paths.observation[:-1])
        scores = jax.vmap(jax.vmap(jax.grad(log_prob), (None, 0, 0)), (None, 0, 0))(theta, inputs, paths.raw_action)
        alive = azjax.trajectories.first_episode(paths.terminated, paths.truncated)
        advantages = jnp.where(alive, estimate(subject, paths), 0.0)
        return jnp.einsum("etn,tnp->enp", advantages, jnp.where(alive[..., None], scores, 0.0))

    return gradients


if __name__ == "__main__":
    main()
