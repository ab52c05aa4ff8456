"""A training run from options to files: what ``azjax train`` does, callable from a notebook or a script."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from azjax.config import ConfigError
from azjax.counters import counter_to_int
from azjax.envs import Environment
from azjax.evaluation import Episodes
from azjax.runs import hosts, machine
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.conduct import compiled, conduct
from azjax.runs.console import RunConsole
from azjax.runs.folder import RunFolder, check_free, write_text
from azjax.runs.loop import Clock, Position
from azjax.runs.options import OptionsT, RunOptions, TrainOptions, resolve, to_yaml
from azjax.runs.policy import save_policy
from azjax.runs.programs import Plan, Programs, build, choose_devices, describe, plan
from azjax.runs.records import evaluation_line, evaluation_record, first_episodes, training_record
from azjax.runs.sinks import check_wandb
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
    clock = Clock()
    options = resolve(options)
    options.validate()
    result: RunResult = start(options, prepare, run, clock)
    return result


def start(options: OptionsT, prepare: Callable[[OptionsT], Any], run: Callable[..., Any], clock: Clock) -> Any:
    """Starts a run of any kind in a new folder.

    Args:
      options: resolved and valid.
      prepare: traces the programs; what it returns has ``options``, as they are used, and ``compiled``.
      run: takes it from there: prepared, folder, checkpoint, position, checkpoints, console.
      clock: that has been running since the start.
    """
    start_machine(options, options.fits)
    path = options.run or default_folder(options)
    with hosts.folder_to_write(path) as place:
        if options.run is not None:
            check_free(place)
        prepared = prepare(options)
        check_space(place, prepared.compiled.state, options.keep_checkpoints + 2)  # the best, and one being written
        folder = RunFolder.numbered(place) if options.run is None else RunFolder(place)
        prepared = prepared._replace(options=dataclasses.replace(prepared.options, run=folder.path))
        try:
            write_text(folder.file("config.yaml"), to_yaml(prepared.options))
        except OSError as error:
            raise ConfigError(f"run folder {folder.path} can't be written: {error.strerror}; choose another") from error
        with folder.claimed(), console_of(prepared.options) as console:
            checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
            return run(prepared, folder, None, Position(clock=clock), checkpoints, console)


def console_of(options: RunOptions) -> RunConsole:
    """What shows the run, if this process is the first."""
    return RunConsole(options.total_steps, quiet=options.quiet, silent=not hosts.is_first())


def prepare(options: TrainOptions, *, fewer: bool = False) -> Plan:
    """Chooses the devices and traces the programs of valid options.

    Args:
      options: resolved.
      fewer: take as many devices as there are if the options ask for more.
    """
    return plan(options, settle(options, fewer=fewer))


def settle(options: RunOptions, *, fewer: bool) -> int:
    """How many devices to use; arguments as of ``prepare``."""
    if fewer and options.devices is not None and options.devices > jax.device_count():
        options = dataclasses.replace(options, devices=None)
    return choose_devices(options)


def start_machine(options: RunOptions, fits: Callable[[int], bool]) -> None:
    """Settles what must be settled before JAX starts.

    Args:
      options: resolved.
      fits: whether so many devices can be used.

    Raises:
      ConfigError: if the run wants a package that isn't installed.
    """
    if options.wandb is not None:
        check_wandb()
    if options.deterministic:
        machine.ask_for_determinism()
    machine.split_host(fits, options.devices)
    if options.cache:
        machine.use_cache()
    else:
        machine.use_no_cache()


def run(
    prepared: Plan,
    folder: RunFolder,
    found: Restored | None,
    position: Position,
    checkpoints: Checkpoints,
    console: RunConsole,
) -> RunResult:
    """Compiles, trains from a position, and finishes."""
    options = prepared.options
    console.say(describe(options))
    programs = compiled(lambda: build(prepared), folder.path, console)
    position.clock.compilation += programs.seconds
    job = TrainingJob(options, programs, functools.partial(save_policies, folder, prepared))
    state, episodes = conduct(job, folder, found, position, checkpoints, console, options)
    job.keep(state, False)  # where the last evaluation could not
    summary = finish(prepared, state, episodes, position, folder, console.warn)
    console.summary(*summary_table(folder, summary))
    return RunResult(folder.path, summary, prepared.learner, state.learner.params, prepared.env)


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


def save_policies(folder: RunFolder, prepared: Plan, params: Any, best: bool) -> None:
    """Writes the policy into the run's folder, and into ``best`` below it if it is the best so far."""
    settings = policy_settings(prepared.options)
    for place in [folder.path, folder.file("best")] if best else [folder.path]:
        place.mkdir(exist_ok=True)
        save_policy(place, params, prepared.env, config=prepared.options.learner, settings=settings)


def policy_settings(options: TrainOptions) -> dict[str, Any]:
    """What a policy file keeps of a run's options."""
    return {name: getattr(options, name) for name in ("episode_length", "action_repeat", "randomize")}


def default_folder(options: RunOptions) -> Path:
    """``runs/ENV-ALGORITHM-SEED-TIME`` below the current folder."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{options.env.replace(':', '-')}-{options.algorithm}-{options.seed}-{stamp}"
