"""A training run from options to files: what ``azjax train`` does, callable from a notebook or a script."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from azjax.counters import counter_to_int
from azjax.envs import Environment
from azjax.evaluation import Episodes
from azjax.on_policy import OnPolicyConfig
from azjax.runs.folder import RunFolder
from azjax.runs.options import TrainOptions, resolve
from azjax.runs.policy import save_policy
from azjax.runs.programs import Plan, Programs, build, describe, plan
from azjax.runs.records import evaluation_line, evaluation_record, first_episodes, training_record
from azjax.runs.resume import resume_as
from azjax.runs.run_options import to_yaml
from azjax.runs.starting import Done, Kind, start
from azjax.runs.summary import finish, summary_table
from azjax.training import Metrics, TrainState
from azjax.types import Learner

# The evaluation's seed is the run's with these bits flipped, so that it shares no key with training.
EVALUATION_SEED = 0x5EED_0000


class RunResult(NamedTuple):
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    learner: Learner
    params: Any
    env: Environment


def train(options: TrainOptions) -> RunResult:
    """Trains a policy and leaves a folder with everything about the run.

    The folder holds ``config.yaml``, ``metrics.jsonl``, ``policy.npz`` and ``policy.json``, the same two files of the
    best evaluation in ``best/``, ``checkpoints/``, ``tensorboard/``, ``curves.png``, ``replay.html`` and
    ``summary.json``.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    return result_of(start(KIND, options))


def resume(
    path: str | os.PathLike[str], *, steps: int | None = None, devices: int | None = None, quiet: bool = False
) -> RunResult:
    """Goes on with a training run: see ``azjax.runs.resume.resume_as``."""
    return result_of(resume_as(KIND, path, steps=steps, devices=devices, quiet=quiet))


def result_of(done: Done) -> RunResult:
    """What a run that trains a policy gives to its caller."""
    return RunResult(done.folder, done.summary, done.plan.learner, done.state.learner.params, done.plan.env)


def build_job(plan: Plan, folder: RunFolder) -> tuple[TrainingJob, float]:
    """Compiles the programs; how long that and tracing took."""
    programs = build(plan)

    def save(params: Any, better: bool) -> None:
        save_policies(folder, plan.env, params, plan.options.learner, policy_settings(plan.options), better)

    return TrainingJob(plan.options, programs, save), programs.seconds


class TrainingJob:
    """The training of one policy, as the loop sees it."""

    def __init__(self, options: TrainOptions, programs: Programs, save: Callable[[Any, bool], object]) -> None:
        self._options, self._programs, self._save = options, programs, save
        self.updates, self.updates_per_call = options.updates, programs.updates_per_call
        self.evaluations, self.checkpoint_seconds = options.evaluations, options.checkpoint_seconds
        self.config = to_yaml(options)

    def init(self) -> TrainState:
        """The state of the run's seed."""
        return self._programs.init(jax.random.key(self._options.seed))

    def step(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """A call of the training program."""
        return self._programs.step(state)

    def evaluate(self, state: TrainState, call: int) -> Episodes:
        """Full episodes of the deterministic policy."""
        key = jax.random.fold_in(jax.random.key(self._options.seed ^ EVALUATION_SEED), call)
        return first_episodes(self._programs.evaluate(state.learner.params, key), self._options.evaluation_episodes)

    def env_steps(self, state: TrainState) -> int:
        """Environment steps behind a state."""
        return counter_to_int(state.env_steps)

    def training_record(self, metrics: Metrics, seconds: float) -> dict[str, Any]:
        """The line of a call."""
        return training_record(metrics, self._options, seconds)

    def evaluation_record(self, state: TrainState, result: Episodes, seconds: float) -> dict[str, Any]:
        """The line of an evaluation."""
        return evaluation_record(self.env_steps(state), result, seconds)

    def progress(self, record: dict[str, Any]) -> str | None:
        """The return of the episodes that ended."""
        value = record.get("train/episode_return")
        return None if value is None else f"episode return {value:.1f}"

    def line(self, record: dict[str, Any]) -> str:
        """An evaluation in a line."""
        return evaluation_line(record)

    def score(self, record: dict[str, Any]) -> float | None:
        """The mean return, unless the physics broke in every episode."""
        return record.get("eval/episode_return_mean")

    def keep(self, state: TrainState, better: bool) -> None:
        """Saves the policy."""
        self._save(state.learner.params, better)


def save_policies(
    folder: RunFolder, env: Environment, params: Any, config: OnPolicyConfig, settings: dict[str, Any], best: bool
) -> None:
    """Writes the policy into the run's folder, and into ``best`` below it if it is the best so far."""
    for place in [folder.path, folder.file("best")] if best else [folder.path]:
        place.mkdir(exist_ok=True)
        save_policy(place, params, env, config=config, settings=settings)


def policy_settings(options: TrainOptions) -> dict[str, Any]:
    """What a policy file keeps of a run's options."""
    return {name: getattr(options, name) for name in ("episode_length", "action_repeat", "randomize")}


KIND = Kind(
    options=TrainOptions,
    resolve=resolve,
    prepare=plan,
    describe=describe,
    build=build_job,
    finish=finish,
    table=summary_table,
)
