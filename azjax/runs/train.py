"""A training run from options to files: what ``azjax train`` does, callable from a notebook or a script."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from azjax.config import ConfigError
from azjax.envs import Environment
from azjax.runs import machine
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile, RunFolder, check_free, write_text
from azjax.runs.loop import Clock, Loop, Outputs, Position
from azjax.runs.options import TrainOptions, resolve, to_plain, to_yaml
from azjax.runs.policy import save_policy
from azjax.runs.programs import Plan, build, choose_devices, describe, plan
from azjax.runs.signals import RunInterrupted, StopRequest
from azjax.runs.sinks import Sinks, check_wandb, sink_makers
from azjax.runs.summary import finish, summary_table
from azjax.types import Learner


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
    if options.run is not None:
        check_free(options.run)
    prepared = prepare(options)
    path = options.run or default_folder(options)
    check_space(path, prepared.compiled.state, options.keep_checkpoints + 2)  # the best, and one being written
    folder = RunFolder.numbered(path) if options.run is None else RunFolder(path)
    prepared = prepared._replace(options=dataclasses.replace(prepared.options, run=folder.path))
    try:
        write_text(folder.file("config.yaml"), to_yaml(prepared.options))
    except OSError as error:
        raise ConfigError(f"run folder {folder.path} can't be written: {error.strerror}; choose another") from error
    with folder.claimed(), RunConsole(prepared.options.total_steps, quiet=options.quiet) as console:
        checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
        return run(prepared, folder, None, Position(clock=clock), checkpoints, console)


def prepare(options: TrainOptions, *, fewer: bool = False) -> Plan:
    """Settles what must be settled before JAX starts, and traces the programs of valid options.

    Args:
      options: resolved.
      fewer: take as many devices as there are if the options ask for more.
    """
    if options.wandb is not None:
        check_wandb()
    if options.deterministic:
        machine.ask_for_determinism()
    machine.split_host(options.fits, options.devices)
    if fewer and options.devices is not None and options.devices > jax.device_count():
        options = dataclasses.replace(options, devices=None)
    chosen = choose_devices(options)
    if options.cache:
        machine.use_cache()
    else:
        machine.use_no_cache()
    return plan(options, chosen)


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
    console.say(f"results in {folder.path}")
    try:
        with console.waiting("compiling"):
            programs = build(prepared)
    except KeyboardInterrupt as error:
        raise RunInterrupted(signal.SIGINT, f"nothing was trained yet; azjax resume {folder.path} does") from error
    position.clock.compilation += programs.seconds
    metrics = folder.file("metrics.jsonl")
    env_steps = 0 if found is None else found.record["env_steps"]
    makers = sink_makers(
        folder.path,
        tensorboard=options.tensorboard,
        wandb_project=options.wandb,
        config=to_plain(options),
        purge=env_steps + 1 if metrics.exists() else None,
    )
    if position.update < options.updates:
        retire_summary(folder, env_steps)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest(lambda text: console.say(text, always=True)))
        sinks = Sinks(makers, console.warn)
        stack.callback(sinks.close)
        metrics_file = MetricsFile(metrics, position.records, console.warn)
        stack.callback(metrics_file.close)
        stack.callback(checkpoints.close)  # first of all: it has the metrics written to the disk
        save = functools.partial(save_policies, folder, prepared)
        outputs = Outputs(metrics_file, sinks, checkpoints, console, save)
        state, episodes = Loop(options, programs, position, outputs).run(None if found is None else found.state, stop)
    if episodes is None:
        saved = checkpoints.updates()[-1:]
        where = f"after update {saved[0]} of {options.updates}" if saved else "from the start"
        raise RunInterrupted(stop.signal or signal.SIGINT, f"go on {where} with: azjax resume {folder.path}")
    save_policies(folder, prepared, state.learner.params, False)  # where the last evaluation could not
    summary = finish(prepared, state, episodes, position, folder, console.warn)
    console.summary(*summary_table(folder, summary))
    return RunResult(folder.path, summary, prepared.learner, state.learner.params, prepared.env)


def retire_summary(folder: RunFolder, env_steps: int) -> None:
    """Renames the summary of a finished run that is about to become longer, so that it is not taken for the whole."""
    summary = folder.file("summary.json")
    if summary.exists():
        summary.rename(folder.file(f"summary-{env_steps}.json"))


def save_policies(folder: RunFolder, prepared: Plan, params: Any, best: bool) -> None:
    """Writes the policy into the run's folder, and into ``best`` below it if it is the best so far."""
    settings = {name: getattr(prepared.options, name) for name in ("episode_length", "action_repeat", "randomize")}
    for place in [folder.path, folder.file("best")] if best else [folder.path]:
        place.mkdir(exist_ok=True)
        save_policy(place, params, prepared.env, config=prepared.options.learner, settings=settings)


def default_folder(options: TrainOptions) -> Path:
    """``runs/ENV-ALGORITHM-SEED-TIME`` below the current folder."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{options.env.replace(':', '-')}-{options.algorithm}-{options.seed}-{stamp}"
