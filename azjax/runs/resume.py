"""Going on with a run of any kind from its folder, and what must hold before that may be."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from azjax.config import ConfigError, require
from azjax.runs import hosts, machine
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.folder import RunFolder, write_text
from azjax.runs.loop import Position
from azjax.runs.plain import from_plain
from azjax.runs.programs import choose_devices, updates_per_look
from azjax.runs.reading import read_json, read_limited
from azjax.runs.results import clean
from azjax.runs.run_options import OptionsT, RunOptions, flat_options, parse_options, read_options, to_yaml
from azjax.runs.starting import Done, Kind, carry_out, console_of, start_machine

_LARGEST_SUMMARY = 1 << 26


def resume_as(kind: Kind, path: str | os.PathLike[str], *, steps: int | None, devices: int | None, quiet: bool) -> Done:
    """Goes on with a run that was interrupted, from its latest checkpoint, or makes a finished one longer.

    On the same machine with as many devices and the same versions, the end is bit for bit that of a run that was never
    interrupted.

    Args:
      kind: of the run.
      path: the run's folder.
      steps: length of the whole run in the kind's unit, if other than before; a schedule of the learning rate is
        stretched.
      devices: as for ``train``. Default: as many as before, or as there are if there are fewer; bits may then differ.
      quiet: print only the summary.

    Raises:
      ConfigError: if the folder holds no run, or one that this can't go on with.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    start = time.monotonic()
    folder = RunFolder.existing(Path(path))
    before = read_options(folder.file("config.yaml"), kind.options)
    check_not_frozen(folder)
    options = dataclasses.replace(before, run=folder.path, quiet=quiet)
    start_machine(options, options.fits)
    claim = folder.claimed() if hosts.is_first() else contextlib.nullcontext()
    with claim, console_of(options) as console, hosts.folder_to_write(folder.path) as place:
        checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
        saved = checkpoints.updates()
        require(
            steps is not None or saved[-1:] != [options.updates] or not folder.file("summary.json").exists(),
            f"run {folder.path} is finished ({options.total_steps:,} {options.unit}); --steps makes it longer",
        )
        if steps is not None:
            options = lengthened(options, steps, saved)
        if devices is not None:
            options = dataclasses.replace(options, devices=devices)
        options.validate()
        plan = kind.prepare(options, settle(options, fewer=devices is None))
        options = plan.options
        require(
            not options.keeps_devices or before.devices in (None, options.devices),
            f"run {folder.path} has a state of {before.devices} devices, and {options.devices} would go on with it; "
            f"use {before.devices}, or start another run",
        )
        found = checkpoints.restore(plan.state)
        position = Position() if found is None else read_position(found, folder)
        check_goes_on(folder, before, options, found, position)
        check_space(folder.path, plan.state, max(1, options.keep_checkpoints + 2 - len(saved)))
        for line in what_differs(before, options, found):
            console.say(line)
        if not hosts.is_first():
            folder = RunFolder(place)
            checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
        if options != before:
            write_text(folder.file("config.yaml"), to_yaml(options))
        position.clock.count_from(start)
        console.total_steps = options.total_steps
        return carry_out(kind, plan, folder, found, position, checkpoints, console)


def settle(options: RunOptions, *, fewer: bool) -> int:
    """How many devices to use.

    Args:
      options: resolved.
      fewer: take as many as there are if the options ask for more.
    """
    if fewer and options.devices is not None and options.devices > jax.device_count():
        options = dataclasses.replace(options, devices=None)
    return choose_devices(options)


def lengthened(options: OptionsT, steps: int, saved: Sequence[int]) -> OptionsT:
    """The options of a run of another length, and what depends on it.

    Calls must end where every checkpoint was made, since each of them may be the one to go on from.

    Args:
      options: of the run so far, as they were used.
      steps: length of the whole run, in its unit.
      saved: the updates of the checkpoints.
    """
    longer = options.with_steps(steps)
    common = math.gcd(longer.updates, *saved)
    most = max(options.updates_per_call or 1, updates_per_look(longer))
    per_call = max(n for n in range(1, most + 1) if common % n == 0)
    learner = options.learner.lengthened(longer.learner_calls, options.learner_calls)
    return dataclasses.replace(longer, updates_per_call=per_call, learner=learner)


def read_position(found: Restored, folder: RunFolder) -> Position:
    """Where a checkpoint says that the run stood."""
    try:
        position = from_plain(Position, found.record.get("position"))
        position.validate()
        require(position.update == found.record["update"], "its position is another update's")
        require(type(found.record.get("env_steps")) is int, "env_steps is missing")
    except ConfigError as error:
        raise ConfigError(f"checkpoints of {folder.path} don't describe a run: {error}; use another copy") from error
    return position


def check_not_frozen(folder: RunFolder) -> None:
    """Raises ``ConfigError`` for the member of a population whose parameters became NaN: nothing can go on."""
    path = folder.file("summary.json")
    summary: dict[str, Any] = {}
    with contextlib.suppress(ConfigError):  # only its being there matters to any other run
        summary = read_json(path, _LARGEST_SUMMARY)
    env_steps = summary.get("env_steps")
    require(
        summary.get("frozen") is not True or type(env_steps) is not int,
        f"member {folder.path} froze after {env_steps} environment steps: the next update would have made its "
        "parameters NaN or infinite, and would again; train its configuration with another seed or a smaller step, "
        f"or use the policy from before: azjax evaluate {folder.path}",
    )


def check_goes_on(
    folder: RunFolder, before: RunOptions, options: RunOptions, found: Restored | None, position: Position
) -> None:
    """Raises ``ConfigError`` where going on would lose results, or would not be what the configuration says."""
    if found is None:
        metrics = folder.file("metrics.jsonl")
        # A kill between the first evaluation and its checkpoint loses nothing that training doesn't repeat.
        lines = read_limited(metrics, 1 << 28).splitlines() if metrics.exists() else []
        evaluations = sum(b'"eval/' in line for line in lines)
        require(
            evaluations < 2 and not any(folder.path.glob("summary*.json")),
            f"run {folder.path} has results, but no checkpoint to go on from; restore its checkpoints folder, or start "
            "another run",
        )
        return
    changed = differing_options(
        parse_options(str(found.record.get("config")).encode(), folder.path, type(before)), before
    )
    require(
        not changed,
        f"{folder.file('config.yaml')} was changed since the checkpoint: {', '.join(changed)}; change it back, or "
        "start another run",
    )
    require(
        position.update <= options.updates,
        f"the run would end after {options.total_steps:,} {options.unit}, but {folder.path} has trained "
        f"{options.steps_after(position.update):,} already; ask for more, or start another run",
    )
    per_call = options.updates_per_call or 1
    require(
        (options.updates - position.update) % per_call == 0,
        f"updates_per_call={per_call} does not divide the {options.updates - position.update} updates that are left; "
        f"change it in {folder.file('config.yaml')} to a divisor",
    )


# What may differ between two processes of one run, and what ``lengthened`` derives.
_MAY_CHANGE = frozenset({
    "run", "quiet", "cache", "devices", "steps", "updates", "schedule_updates", "updates_per_call", "evaluations",
    "tensorboard", "wandb", "checkpoint_seconds", "keep_checkpoints",
})  # fmt: skip


def differing_options(then: RunOptions, now: RunOptions) -> list[str]:
    """Options that must not change within a run and did, as ``name then -> now``."""
    before, after = flat_options(then), flat_options(now)
    names = [name for name in dict.fromkeys([*before, *after]) if name not in _MAY_CHANGE]
    changes = [(name, before.get(name), after.get(name)) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in changes if old != new]


def what_differs(before: RunOptions, options: RunOptions, found: Restored | None) -> list[str]:
    """What the user should know of a resumed run, a line each."""
    if found is None:
        return [f"{options.run} has no checkpoint; training starts anew"]
    lines = [f"going on after {found.record['env_steps']:,} {options.unit}"]
    if before.devices not in (None, options.devices):
        lines.append(f"on {options.devices} devices instead of {before.devices}: bits may differ from those of one run")
    if options.learner != before.learner:
        lines.append(f"the schedule of the learning rate is stretched to {options.updates} updates")
    then = found.record.get("versions")
    then = then if isinstance(then, dict) else {}
    now = machine.versions()
    changed = [f"{name} {clean(str(then.get(name)))} -> {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        lines.append(f"bits may differ, since versions do: {', '.join(changed)}")
    return lines
