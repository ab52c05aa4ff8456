"""Starts a run of any kind in a new folder, and takes it to its end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from azjax.config import ConfigError
from azjax.runs import hosts, machine
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.conduct import compiled, conduct
from azjax.runs.console import RunConsole
from azjax.runs.folder import RunFolder, check_free, write_text
from azjax.runs.loop import Clock, Job, Position
from azjax.runs.programs import choose_devices
from azjax.runs.run_options import RunOptions, to_yaml
from azjax.runs.sinks import check_wandb


class Outcome(NamedTuple):
    """A run after its last update, before anything is made of it."""

    state: Any
    result: Any  # of the last evaluation
    position: Position
    folder: RunFolder
    warn: Callable[[str], None]


class Kind(NamedTuple):
    """What a kind of run has of its own.

    ``Plan`` below is what its ``prepare`` returns: a NamedTuple with ``options``, as they are used, and ``state``, the
    shapes of the train state.
    """

    options: type[RunOptions]
    resolve: Callable[[Any], Any]  # fills in options that depend on others
    prepare: Callable[[Any, int], Any]  # (options, devices) -> Plan: traces the programs; compiles and writes nothing
    describe: Callable[[Any], str]  # (Plan) -> one line on what is about to run
    build: Callable[[Any, RunFolder], tuple[Job, float]]  # (Plan, folder): compiles; tracing and compilation's seconds
    finish: Callable[[Any, Any, Outcome], dict[str, Any]]  # (Plan, Job, outcome): writes what is left; the summary
    table: Callable[[RunFolder, dict[str, Any]], tuple[str, list[tuple[str, str]]]]  # title and rows of the summary


class Done(NamedTuple):
    """A finished run of any kind."""

    plan: Any
    folder: Path
    summary: dict[str, Any]
    state: Any


def start(kind: Kind, options: RunOptions) -> Done:
    """Does a run in a new folder.

    Args:
      kind: of the run.
      options: of the kind.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
      RunInterrupted: if a signal stopped it; ``azjax resume`` goes on.
    """
    clock = Clock()
    options = kind.resolve(options)
    options.validate()
    start_machine(options, options.fits)
    path = options.run or default_folder(options.name)
    with hosts.folder_to_write(path) as place:
        if options.run is not None:
            check_free(place)
        plan = kind.prepare(options, choose_devices(options))
        check_space(place, plan.state, options.keep_checkpoints + 2)  # the best, and one being written
        folder = RunFolder.new(place, chosen=options.run is not None)
        plan = plan._replace(options=dataclasses.replace(plan.options, run=folder.path))
        try:
            write_text(folder.file("config.yaml"), to_yaml(plan.options))
        except OSError as error:
            raise ConfigError(f"run folder {folder.path} can't be written: {error.strerror}; choose another") from error
        with folder.claimed(), console_of(plan.options) as console:
            checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
            return carry_out(kind, plan, folder, None, Position(clock=clock), checkpoints, console)


def carry_out(
    kind: Kind,
    plan: Any,
    folder: RunFolder,
    found: Restored | None,
    position: Position,
    checkpoints: Checkpoints,
    console: RunConsole,
) -> Done:
    """Compiles, trains from a position, and finishes.

    Args:
      kind: of the run.
      plan: of the kind.
      folder: claimed.
      found: the checkpoint to go on from.
      position: where it stands.
      checkpoints: the run's; those that ``found`` is from, which makes the state at hand safe to save anew.
      console: shows progress.
    """
    options = plan.options
    console.say(kind.describe(plan))
    job, seconds = compiled(lambda: kind.build(plan, folder), folder.path, console)
    position.clock.compilation += seconds
    state, result = conduct(job, folder, found, position, checkpoints, console, options)
    job.keep(state, False)  # where the last evaluation could not
    summary = kind.finish(plan, job, Outcome(state, result, position, folder, console.warn))
    console.summary(*kind.table(folder, summary))
    return Done(plan, folder.path, summary, state)


def default_folder(name: str) -> Path:
    """What is run, and when, below ``runs`` in the current folder."""
    return Path("runs") / f"{name.replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"


def console_of(options: RunOptions) -> RunConsole:
    """What shows the run, if this process is the first."""
    return RunConsole(options.total_steps, quiet=options.quiet, silent=not hosts.is_first(), unit=options.unit)


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
