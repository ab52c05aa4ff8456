"""Many training runs from options to files: what ``azjax sweep`` and ``azjax train --seeds`` do.

A sweep's folder holds ``sweep.yaml`` (what there is to train), ``members/NNN`` (each an ordinary run folder, for
``azjax evaluate``, ``render``, ``resume``, ``compare`` and ``report``), ``parts/NN`` (metrics and checkpoints of
members that share a program), and at the end ``results.csv``, ``results.parquet``, ``marginals.png``, ``report.html``
and ``summary.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from azjax.config import ConfigError, require, require_number
from azjax.envs import Environment
from azjax.runs import hosts
from azjax.runs.console import RunConsole
from azjax.runs.folder import RunFolder, check_free, write_text
from azjax.runs.groups import shown
from azjax.runs.kinds import SWEEP
from azjax.runs.options import TrainOptions
from azjax.runs.parts import Part, rungs, train_part
from azjax.runs.population import (
    PartPlan,
    PartPrograms,
    build_part,
    devices_of,
    largest_chunk,
    make_member_env,
    member_bytes,
)
from azjax.runs.reading import parse_yaml, read_limited
from azjax.runs.run_options import SCHEMA, options_from_plain, to_plain
from azjax.runs.signals import Interrupts
from azjax.runs.starting import console_of, default_folder, start_machine
from azjax.runs.summary import duration
from azjax.runs.sweep import Group, Member, group_members, member_options, parts_of
from azjax.runs.sweep_results import write_results

_LARGEST_SWEEP = 1 << 22
_MEND = "use another copy of it, or the version that wrote it"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Members to train."""

    base: TrainOptions  # of all
    members: tuple[Member, ...]  # what each changes
    chunk: int | None = None  # most members of one program; None: as many as fit into memory
    chunks: tuple[int, ...] = ()  # what that was for each group of members that can share a program, once settled
    halvings: int = 0  # how often the worse half of the configurations of a program stops


class Share(NamedTuple):
    """Members that are trained together."""

    group: int
    members: tuple[int, ...]
    devices: tuple[int, int]  # along members and along lanes


class Layout(NamedTuple):
    """A sweep divided into programs."""

    options: tuple[TrainOptions, ...]  # of each member
    groups: list[Group]
    envs: list[Environment]  # of each group
    chunks: list[int]  # most members of a program, of each group
    bytes_each: list[int]  # memory of a member, of each group
    parts: list[Share]


class SweepResult(NamedTuple):
    """A finished sweep."""

    folder: Path
    summary: dict[str, Any]


def run_sweep(sweep: Sweep, folder: Path | None = None) -> SweepResult:
    """Trains all members and leaves a folder.

    Args:
      sweep: what to train.
      folder: new or empty; default ``runs/ENV-ALGORITHM-sweep-TIME``.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
      RunInterrupted: if a signal stopped it; ``azjax resume`` goes on.
    """
    start_machine(sweep.base, lambda count: True)
    with hosts.folder_to_write(folder or default_folder(f"{sweep.base.env}-{sweep.base.algorithm}-sweep")) as place:
        if folder is not None:
            check_free(place)
        layout = lay_out(sweep)
        content = dataclasses.replace(sweep, chunks=tuple(layout.chunks))
        made = RunFolder.new(place, chosen=folder is not None)
        with made.claimed(), console_of(sweep.base) as console, _interrupts(made.path):
            text = to_text(content)
            write_text(made.file(SWEEP), text)
            for line in describe(layout, sweep.halvings):
                console.say(line)
            return _run(made, made.path, layout, content, text, console)


def resume(path: Path, *, steps: int | None = None, devices: int | None = None, quiet: bool = False) -> SweepResult:
    """Goes on with a sweep that was interrupted; finished parts are left as they are.

    Raises:
      ConfigError: if the folder holds no sweep, a finished one, or one that this can't go on with.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    require(
        steps is None,
        f"{path} is a sweep, whose members have equally many steps; make one of them longer: azjax resume "
        f"{path / 'members' / 'NNN'} --steps N",
    )
    folder = RunFolder.existing(path, nested=True)
    text = read_limited(folder.file(SWEEP), _LARGEST_SWEEP).decode("utf-8", "replace")
    sweep = from_text(text, folder.file(SWEEP))
    base = dataclasses.replace(sweep.base, quiet=quiet, devices=devices or sweep.base.devices)
    sweep = dataclasses.replace(sweep, base=base)
    start_machine(base, lambda count: True)
    claim = folder.claimed() if hosts.is_first() else contextlib.nullcontext()
    with claim, console_of(base) as console, hosts.folder_to_write(path) as place, _interrupts(path):
        require(not folder.file("summary.json").exists(), f"sweep {path} is finished; its results are in {path}")
        return _run(folder if hosts.is_first() else RunFolder(place), path, lay_out(sweep), sweep, text, console)


def _interrupts(path: Path) -> Interrupts:
    """What a signal does while no part is being trained."""
    return Interrupts(f"go on from what was saved with: azjax resume {path}", later=jax.process_count() > 1)


def preview(sweep: Sweep) -> list[str]:
    """What a sweep would be, in lines; see ``run_sweep``."""
    start_machine(sweep.base, lambda count: True)
    return describe(lay_out(sweep), sweep.halvings)


def lay_out(sweep: Sweep) -> Layout:
    """Checks every member and divides the members into parts; nothing is compiled.

    Raises:
      ConfigError: naming the first member that makes no sense.
    """
    if sweep.chunk is not None:
        require_number("chunk", sweep.chunk, 1, 1 << 20)
    require_number("halvings", sweep.halvings, 0, 20)
    require(len(sweep.members) > 0, "the sweep has no members; give at least one seed")
    each = dataclasses.replace(sweep.base, devices=None)  # members may have devices of their own
    options = tuple(member_options(each, changes) for changes in sweep.members)
    groups = group_members(options)
    envs = [make_member_env(group.options) for group in groups]
    sizes = [member_bytes(group.options, env) for group, env in zip(groups, envs, strict=True)]
    require(
        sweep.halvings == 0 or jax.process_count() == 1,
        f"halvings is {sweep.halvings}, but a program that shrinks can't be divided among processes; leave it out",
    )
    require(
        len(sweep.chunks) in (0, len(groups)), f"chunks are not one for each of the {len(groups)} groups of members"
    )
    chunks = list(sweep.chunks) or [
        min(sweep.chunk or largest_chunk(size), len(group.members)) for group, size in zip(groups, sizes, strict=True)
    ]
    seeds = 1  # a configuration that may be stopped stays in one part
    if sweep.halvings:
        seeds = len(sweep.members) // len({configuration_of(own) for own in sweep.members})
    parts = [
        Share(number, members, devices_of(group.options, len(members), sweep.base.devices))
        for number, (group, chunk) in enumerate(zip(groups, chunks, strict=True))
        for members in parts_of(group, chunk, seeds)
    ]
    return Layout(options, groups, envs, chunks, sizes, parts)


def describe(layout: Layout, halvings: int = 0) -> list[str]:
    """What is about to run, in lines."""
    first = layout.options[0]
    platform = jax.devices()[0].platform
    lines = [
        f"{first.algorithm} on {first.env} ({first.backend}): {len(layout.options)} members in "
        + ("one program" if len(layout.parts) == 1 else f"{len(layout.parts)} parts, one after the other")
    ]
    for number, part in enumerate(layout.parts):
        own = layout.options[part.members[0]]
        rows, columns = part.devices
        memory = len(part.members) * layout.bytes_each[part.group] / 2**20
        lines.append(
            f"  part {number}: {len(part.members)} members x {own.lanes} lanes, {own.updates} updates of "
            f"{own.env_steps_per_update:,} environment steps each; {rows * columns} {platform} devices: {rows} along "
            f"members, {columns} along lanes; about {memory:,.0f} MiB"
        )
        if halvings:
            ends = rungs(own.updates, own.updates_per_call or 1, halvings)[:-1]
            lines.append(f"    the worse half stops after about {', '.join(map(str, ends))} updates")
    return lines


def _run(folder: RunFolder, source: Path, layout: Layout, sweep: Sweep, text: str, console: RunConsole) -> SweepResult:
    """Trains the parts that are not finished, then writes the results.

    Args:
      folder: to write into.
      source: the sweep's folder, to read from: the same for the first process.
      layout: of the sweep.
      sweep: as it was used.
      text: of its configuration.
      console: shows progress.
    """
    start = time.monotonic()
    programs: dict[tuple[int, int], PartPrograms] = {}
    for number, part in enumerate(layout.parts):
        if all((_member_folder(source, layout, i) / "summary.json").exists() for i in part.members):
            continue
        if len(layout.parts) > 1:
            console.say(f"part {number} of {len(layout.parts)}: members {part.members[0]} to {part.members[-1]}")

        def build(planned: PartPlan, group: int = part.group) -> PartPrograms:
            key = (group, len(planned.options))
            if key not in programs:
                programs[key] = build_part(planned)
            return programs[key]

        train_part(_part_of(folder, source, layout, sweep, text, number), build, console, sweep.base)
    if not hosts.is_first():
        return SweepResult(folder.path, {})
    folders = [_member_folder(folder.path, layout, i) for i in range(len(layout.options))]
    summary = write_results(folder, layout.options[0], sweep.members, folders, console.warn)
    console.summary(*_table(folder, summary, time.monotonic() - start))
    return SweepResult(folder.path, summary)


def configuration_of(member: Member) -> tuple[tuple[str, Any], ...]:
    """What a member changes but its seed."""
    return tuple((name, value) for name, value in member.items() if name != "seed")


def _part_of(folder: RunFolder, source: Path, layout: Layout, sweep: Sweep, text: str, number: int) -> Part:
    members, name = layout.parts[number].members, f"{number:02d}"
    changes = [configuration_of(sweep.members[i]) for i in members]
    order = {change: n for n, change in enumerate(dict.fromkeys(changes))}
    return Part(
        options=tuple(layout.options[i] for i in members),
        configurations=tuple(order[change] for change in changes),
        env=layout.envs[layout.parts[number].group],
        folders=tuple(_member_folder(folder.path, layout, i) for i in members),
        place=folder.path / "parts" / name,
        before=source / "parts" / name,
        sweep=source,
        text=text,
        halvings=sweep.halvings,
        devices=sweep.base.devices,
    )


def _member_folder(folder: Path, layout: Layout, index: int) -> Path:
    return folder / "members" / f"{index:0{max(3, len(str(len(layout.options) - 1)))}d}"


def _table(folder: RunFolder, summary: dict[str, Any], seconds: float) -> tuple[str, list[tuple[str, str]]]:
    title = f"{summary['algorithm']} on {summary['env']} ({summary['backend']}), {summary['members']} members"
    rows = []
    for place, entry in enumerate(summary["configurations"][:5]):
        values = ", ".join(f"{name} {shown(value)}" for name, value in entry["values"].items()) or "all members"
        several = (
            f"95 % interval {entry['return_iqm_low']:.1f} to {entry['return_iqm_high']:.1f}, {entry['seeds']} seeds"
        )
        stopped = ", stopped early" * entry["stopped_early"]
        text = f"IQM {entry['return_iqm']:.1f}, {several if entry['seeds'] > 1 else 'one seed'}{stopped}: {values}"
        rows.append(("configurations" * (place == 0), text))
    if summary["frozen"]:
        rows.append(("frozen", f"{summary['frozen']} members, whose parameters became NaN"))
    best = summary["best_member"]
    rows += [
        ("best member", f"{best['folder']}: {best['return_mean']:.1f}" if best else "none has a return"),
        ("time", duration(seconds)),
        *((name, str(folder.file(file))) for name, file in summary["files"].items()),
    ]
    return title, rows


def to_text(sweep: Sweep) -> str:
    """The text of ``sweep.yaml``."""
    members = [{k: list(v) if isinstance(v, tuple) else v for k, v in own.items()} for own in sweep.members]
    data = {
        "schema": SCHEMA,
        "chunks": list(sweep.chunks),
        "halvings": sweep.halvings,
        "base": to_plain(sweep.base),
        "members": members,
    }
    return yaml.safe_dump(data, sort_keys=False)


def from_text(text: str, path: Path) -> Sweep:
    """The sweep in the text of a ``sweep.yaml``; ``path`` is for the messages."""
    try:
        data = parse_yaml(text.encode())
        require(isinstance(data, dict), "it holds no mapping")
        schema, members, chunks = data.get("schema"), data.get("members"), data.get("chunks")
        require(schema == SCHEMA, f"it has schema {schema!r}, this azjax reads {SCHEMA}")
        require(isinstance(members, list) and all(isinstance(m, dict) for m in members), "members are no list")
        require(isinstance(chunks, list) and all(type(n) is int and n > 0 for n in chunks), "chunks are no numbers")
        halvings = data.get("halvings", 0)
        require(type(halvings) is int, f"halvings is {halvings!r}")
        base = options_from_plain(data.get("base"), TrainOptions)
    except ValueError as error:
        raise ConfigError(f"{path} describes no sweep: {error}; {_MEND}") from error
    plain = [{str(k): tuple(v) if isinstance(v, list) else v for k, v in own.items()} for own in members]
    return Sweep(base, tuple(plain), None, tuple(chunks), halvings)
