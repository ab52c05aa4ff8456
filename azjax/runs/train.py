"""A training run from options to files: what ``azjax train`` and ``azjax resume`` do, callable from Python."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from azjax.config import ConfigError, require
from azjax.envs import Environment
from azjax.runs import machine
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile, RunFolder, check_free, write_text
from azjax.runs.loop import Clock, Loop, Outputs, Position
from azjax.runs.options import TrainOptions, read_options, resolve, to_plain, to_yaml
from azjax.runs.plain import from_plain
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
    options = prepared.options
    path = options.run or default_folder(options)
    check_space(path, prepared.compiled.state, options.keep_checkpoints)
    folder = RunFolder.numbered(path) if options.run is None else RunFolder(path)
    prepared = prepared._replace(options=dataclasses.replace(options, run=folder.path))
    try:
        write_text(folder.file("config.yaml"), to_yaml(prepared.options))
    except OSError as error:
        raise ConfigError(f"run folder {folder.path} can't be written: {error.strerror}; choose another") from error
    with folder.claimed():
        return run(prepared, folder, None, Position(clock=clock))


def resume(path: Path, *, steps: int | None = None, devices: int | None = None, quiet: bool = False) -> RunResult:
    """Goes on with a run that was interrupted, from its latest checkpoint, or makes a finished one longer.

    On the same machine with as many devices and the same versions, the end is bit for bit that of a run that was never
    interrupted.

    Args:
      path: the run's folder.
      steps: environment steps of the whole run, if other than before; a schedule of the learning rate is stretched.
      devices: as for ``train``, if other than before; bits may then differ.
      quiet: print only the summary.

    Raises:
      ConfigError: if the folder holds no run, or one that this can't go on with.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    start = time.monotonic()
    folder = RunFolder.existing(path)
    before = read_options(folder.file("config.yaml"))
    options = dataclasses.replace(before, run=path, quiet=quiet, devices=devices or before.devices)
    if steps is not None:
        options = lengthened(options, steps)
    options.validate()
    with folder.claimed():
        console = RunConsole(options.steps, quiet=quiet)
        prepared = prepare(options)
        with Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn) as checkpoints:
            found = checkpoints.restore(prepared.compiled.state)
        position = Position() if found is None else read_position(found, folder)
        require(
            position.update <= options.updates,
            f"steps is {options.steps}, but run {path} has trained "
            f"{position.update * options.env_steps_per_update} already; ask for more, or start another run",
        )
        for line in what_differs(before, options, found):
            console.say(line)
        if options != before:
            write_text(folder.file("config.yaml"), to_yaml(options))
        position.clock.count_from(start)
        return run(prepared, folder, found, position)


def lengthened(options: TrainOptions, steps: int) -> TrainOptions:
    """The options with another number of environment steps, and what depends on it."""
    longer = dataclasses.replace(options, steps=steps)
    per_call = math.gcd(options.updates_per_call or 1, max(longer.updates, 1))
    ppo = options.ppo
    if ppo.schedule_updates == options.updates:
        ppo = dataclasses.replace(ppo, schedule_updates=max(longer.updates, 1))
    return dataclasses.replace(longer, updates_per_call=per_call, ppo=ppo)


def read_position(found: Restored, folder: RunFolder) -> Position:
    """Where a checkpoint says that the run stood."""
    try:
        return from_plain(Position, found.record["position"])
    except (ConfigError, KeyError) as error:
        raise ConfigError(f"checkpoints of {folder.path} don't describe a run: {error}; use another copy") from error


def what_differs(before: TrainOptions, options: TrainOptions, found: Restored | None) -> list[str]:
    """What the user should know of a resumed run, a line each."""
    if found is None:
        return [f"{options.run} has no checkpoint; training starts anew"]
    lines = [f"going on after {found.record['env_steps']:,} environment steps"]
    if options.devices != before.devices:
        lines.append(f"{options.devices} devices instead of {before.devices}: bits may differ from those of one run")
    if options.ppo.schedule_updates != before.ppo.schedule_updates:
        lines.append(f"the schedule of the learning rate is stretched to {options.updates} updates")
    now, then = machine.versions(), found.record.get("versions", {})
    changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        lines.append(f"bits may differ, since versions do: {', '.join(changed)}")
    return lines


def prepare(options: TrainOptions) -> Plan:
    """Settles what must be settled before JAX starts, and traces the programs of valid options."""
    if options.wandb is not None:
        check_wandb()
    if options.deterministic:
        machine.ask_for_determinism()
    machine.split_host(options.fits, options.devices)
    devices = choose_devices(options)
    if options.cache:
        machine.use_cache()
    else:
        machine.use_no_cache()
    return plan(options, devices)


def run(prepared: Plan, folder: RunFolder, found: Restored | None, position: Position) -> RunResult:
    """Compiles, trains from a position, and finishes."""
    options = prepared.options
    with RunConsole(options.updates * options.env_steps_per_update, quiet=options.quiet) as console:
        console.say(describe(options))
        with console.waiting("compiling"):
            programs = build(prepared)
        position.clock.compilation += programs.seconds
        env_steps = 0 if found is None else found.record["env_steps"]
        outputs = Outputs(
            metrics=MetricsFile(folder.file("metrics.jsonl"), position.records, console.warn),
            sinks=Sinks(
                sink_makers(
                    folder.path,
                    tensorboard=options.tensorboard,
                    wandb_project=options.wandb,
                    config=to_plain(options),
                    env_steps=env_steps,
                ),
                console.warn,
            ),
            checkpoints=Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn),
            console=console,
            save_policy=lambda params, best: save_policies(folder, prepared, params, best),
        )
        outputs.checkpoints.discard_after(position.update)
        with StopRequest(console.say) as stop:
            try:
                state, episodes = Loop(options, programs, position, outputs).run(
                    None if found is None else found.state, stop
                )
            finally:
                outputs.checkpoints.close()  # before the metrics, which it has written to the disk
                outputs.metrics.close()
                outputs.sinks.close()
        if episodes is None:
            saved = outputs.checkpoints.updates()[-1:]
            where = f"after update {saved[0]} of {options.updates}" if saved else "from the start"
            raise RunInterrupted(stop.signal or signal.SIGINT, f"go on {where} with: azjax resume {folder.path}")
        summary = finish(prepared, state, episodes, position, folder)
        console.summary(*summary_table(folder, summary))
    return RunResult(folder.path, summary, prepared.learner, state.learner.params, prepared.env)


def save_policies(folder: RunFolder, prepared: Plan, params: Any, best: bool) -> None:
    """Writes the policy into the run's folder, and into ``best`` below it if it is the best so far."""
    settings = {name: getattr(prepared.options, name) for name in ("episode_length", "action_repeat", "randomize")}
    for place in [folder.path, folder.file("best")] if best else [folder.path]:
        place.mkdir(exist_ok=True)
        save_policy(place, params, prepared.env, config=prepared.options.ppo, settings=settings)


def default_folder(options: TrainOptions) -> Path:
    """``runs/ENV-ALGORITHM-SEED-TIME`` below the current folder."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{options.env.replace(':', '-')}-{options.algorithm}-{options.seed}-{stamp}"
