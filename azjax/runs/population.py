"""The programs of one part of a sweep, and its members as the loop sees them: one job that keeps many runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.algorithms import make_learner
from azjax.config import require
from azjax.counters import counter_to_int
from azjax.envs import Environment, make_env
from azjax.envs.lanes import choose_vectorize, reset_lanes
from azjax.evaluation import Episodes, make_evaluator
from azjax.population import (
    CompiledPopulation,
    PopulationMetrics,
    PopulationState,
    compile_population,
    compile_population_evaluator,
    divide_devices,
    make_population,
    make_population_mesh,
    member,
    stack_hyperparameters,
)
from azjax.runs import hosts, machine
from azjax.runs.arrays import state_bytes
from azjax.runs.checkpoints import Restored
from azjax.runs.folder import write_text
from azjax.runs.options import TrainOptions
from azjax.runs.policy import save_policy
from azjax.runs.programs import as_used, trainer_of
from azjax.runs.records import evaluation_record, first_episodes, training_record
from azjax.runs.train import EVALUATION_SEED, policy_settings
from azjax.types import Learner

# Of the memory that is free, so much may be planned for.
_SHARE_OF_MEMORY = 0.6
# Fitted to XLA's own account of its programs, which tests/test_population.py compares: a rollout is held about so
# often, as observations, rows of the batch and shuffled minibatches; of the state there are the old and the new; and of
# the hidden units of both networks on all rows the larger part is held at once. An evaluation holds the old, the new
# and the selected states of its episodes, and the hidden units of the policy, beside the state of training.
_ROLLOUT_COPIES = 4.0
_STATE_COPIES = 3.0
_HIDDEN_COPIES = 0.75


class PartPlan(NamedTuple):
    """The program of members that it trains together, before it is compiled."""

    options: tuple[TrainOptions, ...]  # of the members, as used
    env: Environment
    learner: Learner
    mesh: jax.sharding.Mesh
    compiled: CompiledPopulation
    seconds: float  # spent on tracing


class PartPrograms(NamedTuple):
    """What a part executes, compiled."""

    init: Callable[[Any, Any], PopulationState]  # of keys [P] and hyperparameters [P]
    step: Callable[[PopulationState], tuple[PopulationState, PopulationMetrics]]
    evaluate: Callable[[Any, Any], Episodes]  # of parameters [P] and keys [P]


def devices_of(options: TrainOptions, members: int, wanted: int | None) -> tuple[int, int]:
    """How devices divide members and lanes of a part: ``(population, lanes)``.

    Args:
      options: of one of the members.
      members: in the part.
      wanted: devices to use; ``None``: all that there are.

    Raises:
      ConfigError: if there are not so many, or one device can't have a member's lanes and minibatches.
    """
    available = jax.device_count()
    require(
        wanted is None or wanted <= available,
        f"{wanted} devices asked for, but JAX sees {available} ({jax.devices()[0].platform}); ask for no more than "
        "that, or leave it out",
    )
    options.check_devices(1)
    shape = divide_devices(members, wanted or available, options.fits)
    require(
        jax.process_count() == 1 or math.prod(shape) == available,
        f"{members} members can't be divided among the {available} devices of all processes, each of which must take "
        "part; choose a multiple of them, or lanes that can be divided",
    )
    return shape


def member_bytes(options: TrainOptions, env: Environment) -> int:
    """An estimate of the memory that a member takes: while it is trained or while it is evaluated, what is more."""
    observation = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(env.observation_spec))
    row = 2 * (observation + env.action_spec.size) + 5  # see programs.check_memory
    learner = make_learner(options.learner, axis_name=machine.AXIS)
    state = state_bytes(jax.eval_shape(trainer_of(options, env, learner).init, jax.random.key(0)))
    hidden = sum(options.learner.policy_hidden) + sum(options.learner.value_hidden)
    rows = options.lanes * options.rollout_length
    training = 4 * rows * (_ROLLOUT_COPIES * row + _HIDDEN_COPIES * hidden) + _STATE_COPIES * state
    episode = jax.eval_shape(
        lambda key: reset_lanes(env, choose_vectorize(options.vectorize), key[None]), jax.random.key(0)
    )
    acting = _STATE_COPIES * state_bytes(episode) + 4 * sum(options.learner.policy_hidden)
    return int(max(training, state + options.evaluation_episodes * acting))


def largest_chunk(bytes_each: int) -> int:
    """How many members fit into the memory that is free, in whichever process has the least."""
    free = machine.free_memory(jax.devices())
    own = 1 << 20 if free is None else min(1 << 20, max(1, int(_SHARE_OF_MEMORY * free / bytes_each)))
    return -hosts.first_to_know([-own])[0]


def plan_part(options: Sequence[TrainOptions], env: Environment, shape: tuple[int, int]) -> PartPlan:
    """Traces the program of some members, on so many devices along members and lanes; nothing is compiled."""
    start = time.monotonic()
    first, count = options[0], len(options)
    with machine.rare_collection():
        used = tuple(as_used(each, shape[1]) for each in options)
        learner = make_learner(first.learner, axis_name=machine.AXIS)
        trainer = trainer_of(used[0], env, learner)
        mesh = make_population_mesh(shape, machine.AXIS)
        compiled = compile_population(make_population(trainer), count, mesh, used[0].updates_per_call or 1)
    return PartPlan(used, env, learner, mesh, compiled, time.monotonic() - start)


def build_part(plan: PartPlan) -> PartPrograms:
    """Compiles the programs side by side; they serve every part of the group that has as many members."""
    first = plan.options[0]
    columns = plan.mesh.devices.shape[1]
    evaluate = make_evaluator(
        plan.env,
        plan.learner.act,
        lanes=-(-first.evaluation_episodes // columns),
        action_repeat=first.action_repeat,
        axis_name=machine.AXIS,
        vectorize=choose_vectorize(first.vectorize),
    )
    keys, values = starting_points(plan.options)
    with machine.compiling() as pool:
        step = pool.submit(plan.compiled.step.lower(plan.compiled.state).compile)
        init = pool.submit(plan.compiled.init.lower(keys, values).compile)
        params = plan.compiled.state.members.learner.params
        evaluation = compile_population_evaluator(evaluate, plan.mesh).lower(params, keys)
        init.result()
        return PartPrograms(init.result(), step.result(), pool.submit(evaluation.compile).result())


def starting_points(options: Sequence[TrainOptions]) -> tuple[Any, Any]:
    """What members start from: keys ``[P]`` and hyperparameters ``[P]``."""
    keys = jnp.stack([jax.random.key(each.seed) for each in options])
    return keys, stack_hyperparameters([each.learner for each in options])


class PopulationJob:
    """The members of a part, as the loop sees them.

    A line of the part's ``metrics.jsonl`` has the line of each member, or null for one that is not alive, in
    ``members``, their means beside, and in ``env_steps`` the sum over all that ever trained. The members' own files are
    made of these.

    Args:
      plan: of the part.
      programs: compiled.
      folders: of all members of the part.
      config: text of the sweep's configuration.
      records: lines of the part's metrics so far.
      members: numbers, within the part, of the members that the program trains.
      updates: up to which it trains them.
      found: what to go on from, if anything is: its ``env_steps`` are also those of members that have stopped.
    """

    def __init__(
        self,
        plan: PartPlan,
        programs: PartPrograms,
        folders: Sequence[Path],
        config: str,
        records: Sequence[dict[str, Any]],
        members: Sequence[int],
        updates: int,
        found: Restored | None = None,
    ) -> None:
        first = plan.options[0]
        self._members = tuple(members)
        self._plan, self._programs, self._folders = plan, programs, tuple(folders)
        self._options = plan.options
        self.updates, self.updates_per_call = updates, first.updates_per_call or 1
        self.evaluations = max(1, round(first.evaluations * updates / first.updates))  # as dense as in a whole run
        self.checkpoint_seconds, self.config = first.checkpoint_seconds, config
        self._keys = jnp.stack([jax.random.key(each.seed ^ EVALUATION_SEED) for each in self._options])
        self.best = [best_evaluation(member_records(records, i)) for i in range(len(folders))]
        self._better = [False] * len(folders)
        self._stopped_steps = 0 if found is None else found.record["env_steps"] - sum(self._env_steps(found.state))

    def _spread(self, records: Sequence[dict[str, Any]], alive: np.ndarray) -> list[dict[str, Any] | None]:
        """The records of the program's members at their places in the part; null for the others."""
        places: list[dict[str, Any] | None] = [None] * len(self._folders)
        for i, record, here in zip(self._members, records, alive, strict=True):
            places[i] = record if here else None
        return places

    def init(self) -> PopulationState:
        """The states of the members' seeds."""
        return self._programs.init(*starting_points(self._options))

    def step(self, state: PopulationState) -> tuple[PopulationState, PopulationMetrics]:
        """A call of the training program."""
        return self._programs.step(state)

    def evaluate(self, state: PopulationState, call: int) -> list[Episodes]:
        """Full episodes of each member's deterministic policy, those that it would play alone."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, call))(self._keys)
        episodes = hosts.whole(self._programs.evaluate(state.members.learner.params, keys))
        count = self._options[0].evaluation_episodes
        return [first_episodes(member(episodes, i), count) for i in range(len(self._options))]

    def env_steps(self, state: PopulationState) -> int:
        """Environment steps of all members, of those that have stopped, too."""
        return self._stopped_steps + sum(self._env_steps(state))

    def _env_steps(self, state: PopulationState) -> list[int]:
        counters = jax.device_get(hosts.whole(state.members.env_steps))
        return [counter_to_int(member(counters, i)) for i in range(len(self._options))]

    def training_record(self, metrics: PopulationMetrics, seconds: float) -> dict[str, Any]:
        """The line of a call."""
        alive = np.asarray(metrics.alive[-1])

        def of(index: int) -> dict[str, Any]:
            own = jax.tree.map(lambda x: x[:, index], metrics.members)
            return training_record(own, self._options[index], seconds)

        members = [of(i) for i in range(len(self._options))]
        env_steps = self._stopped_steps + sum(record["env_steps"] for record in members)
        return {
            "env_steps": env_steps,
            "time/seconds": round(seconds, 4),
            "time/env_steps_per_second": env_steps / max(seconds, 1e-9),
            **_means(members, alive, ("train/episode_return", "train/episode_length", "train/reward_mean")),
            "population/alive": int(alive.sum()),
            "members": self._spread(members, alive),
        }

    def evaluation_record(self, state: PopulationState, result: list[Episodes], seconds: float) -> dict[str, Any]:
        """The line of an evaluation."""
        alive = np.asarray(hosts.whole(state.alive))
        own = self._env_steps(state)
        members = [evaluation_record(steps, episodes, seconds) for steps, episodes in zip(own, result, strict=True)]
        for i, record, here in zip(self._members, members, alive, strict=True):
            value, before = record.get("eval/episode_return_mean"), self.best[i]
            self._better[i] = bool(here) and value is not None and (before is None or value > before[1])
            if self._better[i] and value is not None:
                self.best[i] = (record["env_steps"], value)
        return {
            "env_steps": self._stopped_steps + sum(own),
            "time/seconds": round(seconds, 4),
            **_means(members, alive, ("eval/episode_return_mean", "eval/episode_length_mean")),
            "population/alive": int(alive.sum()),
            "members": self._spread(members, alive),
        }

    def progress(self, record: dict[str, Any]) -> str | None:
        """The mean return of the members."""
        value = record.get("train/episode_return")
        return None if value is None else f"mean episode return {value:.1f}"

    def line(self, record: dict[str, Any]) -> str:
        """An evaluation in a line."""
        returns = sorted(
            own["eval/episode_return_mean"] for own in record["members"] if own and "eval/episode_return_mean" in own
        )
        if not returns:
            return "no member has finished an evaluation episode"
        lost = len(self._members) - record["population/alive"]
        frozen = f"; {lost} frozen after a NaN" * (lost > 0)
        return f"evaluation returns {returns[0]:.1f} to {returns[-1]:.1f}, median {np.median(returns):.1f}{frozen}"

    def score(self, record: dict[str, Any]) -> float | None:
        """The mean return over the members."""
        return record.get("eval/episode_return_mean")

    def keep(self, state: PopulationState, better: bool) -> None:
        """Writes each member's policy, and where it is its best, that one too."""
        params = jax.device_get(hosts.whole(state.members.learner.params))
        for row, i in enumerate(self._members):
            folder, options = self._folders[i], self._options[row]
            for place in [folder, folder / "best"] if self._better[i] else [folder]:
                place.mkdir(exist_ok=True)
                save_policy(
                    place,
                    member(params, row),
                    self._plan.env,
                    config=options.learner,
                    settings=policy_settings(options),
                )


def _means(members: Sequence[dict[str, Any]], alive: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Means over the members that are alive and have the number."""
    means = {}
    for name in names:
        values = [record[name] for record, here in zip(members, alive, strict=True) if here and name in record]
        if values:
            means[name] = float(np.mean(values))
    return means


def member_records(records: Sequence[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """The lines of one member."""
    return [record["members"][index] for record in records if record["members"][index] is not None]


def best_evaluation(records: Sequence[dict[str, Any]]) -> tuple[int, float] | None:
    """Environment steps and mean return of the best evaluation, the first of equal ones."""
    found = [(r["eval/episode_return_mean"], r["env_steps"]) for r in records if "eval/episode_return_mean" in r]
    if not found:
        return None
    value, steps = max(found, key=lambda pair: (pair[0], -pair[1]))
    return steps, value


def make_member_env(options: TrainOptions) -> Environment:
    """The environment of a group."""
    return make_env(options.env, options.backend, episode_length=options.episode_length, randomize=options.randomize)


def write_member_metrics(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes a member's ``metrics.jsonl``."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
