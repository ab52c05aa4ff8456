"""One part of a sweep from its first update to the folders of its members: rungs of successive halving among it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from azjax.config import require
from azjax.envs import Environment
from azjax.population import PopulationState, member
from azjax.runs import hosts, machine
from azjax.runs.arrays import host_arrays, place_arrays
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.conduct import compiled, conduct
from azjax.runs.console import RunConsole
from azjax.runs.folder import RunFolder, write_json, write_text
from azjax.runs.loop import Position
from azjax.runs.options import TrainOptions
from azjax.runs.population import (
    PartPlan,
    PartPrograms,
    PopulationJob,
    devices_of,
    member_records,
    plan_part,
    write_member_metrics,
)
from azjax.runs.resume import read_position
from azjax.runs.run_options import to_yaml
from azjax.runs.summary import run_summary


class Part(NamedTuple):
    """What a part needs to know of its sweep."""

    options: tuple[TrainOptions, ...]  # of its members
    configurations: tuple[int, ...]  # of each member: those of one configuration differ in the seed alone
    env: Environment
    folders: tuple[Path, ...]  # of its members, to write into
    place: Path  # its own folder, to write into
    before: Path  # the same folder, to read from
    sweep: Path  # what azjax resume is given to go on
    text: str  # the sweep's configuration
    halvings: int
    devices: int | None


def rungs(updates: int, per_call: int, halvings: int) -> list[int]:
    """The updates after which the worse half stops, and the last one: each about twice the one before, whole calls.

    Examples:
      >>> rungs(100, 5, 2)
      [25, 50, 100]
      >>> rungs(8, 4, 3)
      [4, 8]
    """
    ends = [max(per_call, (updates >> n) // per_call * per_call) for n in range(halvings, 0, -1)]
    return [*dict.fromkeys(end for end in ends if end < updates), updates]


def survivors(members: Sequence[int], configurations: Sequence[int], returns: Mapping[int, float]) -> list[int]:
    """The members of the better half of the configurations, by the mean return of each one's members.

    Args:
      members: that trained up to the rung.
      configurations: of every member of the part.
      returns: of the members that have one.
    """
    groups: dict[int, list[float]] = {}
    for i in members:
        groups.setdefault(configurations[i], []).append(returns.get(i, -np.inf))
    ranked = sorted(groups, key=lambda c: -float(np.mean(groups[c])))
    kept = set(ranked[: -(-len(ranked) // 2)])
    return [i for i in members if configurations[i] in kept]


def train_part(
    part: Part, build: Callable[[PartPlan], PartPrograms], console: RunConsole, options: TrainOptions
) -> None:
    """Trains the members of a part, from its latest checkpoint if there is one.

    Args:
      part: what to train.
      build: compiles a program, or finds it compiled.
      console: shows progress.
      options: of the sweep as a whole.
    """
    part.place.mkdir(parents=True, exist_ok=True)
    own = RunFolder.existing(part.place)
    with own.claimed():
        first, members = part.options[0], list(range(len(part.options)))
        planned = _plan(part, members)
        for place, each in zip(part.folders, planned.options, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            if (place / "summary.json").exists():
                continue  # it has stopped, and may have gone on by itself
            write_text(place / "config.yaml", to_yaml(dataclasses.replace(each, run=place)))
        ends = rungs(first.updates, planned.options[0].updates_per_call or 1, part.halvings)
        saved = Checkpoints(part.before / "checkpoints", 1, console.warn).updates()[-1:]
        moved: Restored | None = None
        console.total_steps = len(members) * first.total_steps
        position = Position()
        for end in ends:
            following = saved != [] and saved[0] > end
            if not following:
                position, moved, kept = _train_rung(
                    part, members, planned, end, moved, position, build, own, console, options, found=saved != []
                )
                saved = []
            if end == ends[-1]:
                return
            if following:
                kept = _kept(part, members, _records(part.before), end)
            console.total_steps -= (len(members) - len(kept)) * (first.total_steps - end * first.env_steps_per_update)
            if not following:
                console.say(f"update {end}: {len(members) - len(kept)} of {len(members)} members stop")
            place_in = [members.index(i) for i in kept]
            members, planned = kept, _plan(part, kept)
            if moved is not None:
                arrays = {name: array[place_in] for name, array in host_arrays(moved.state).items()}
                moved = moved._replace(state=place_arrays(arrays, planned.compiled.state))


def _plan(part: Part, members: Sequence[int]) -> PartPlan:
    options = [part.options[i] for i in members]
    return plan_part(options, part.env, devices_of(options[0], len(members), part.devices))


def returns_at(records: Sequence[dict[str, Any]], update: int, options: TrainOptions) -> dict[int, float]:
    """The members' returns in the evaluation after an update."""
    found = {}
    for record in records:
        for i, own in enumerate(record["members"]):
            if own and own["env_steps"] == update * options.env_steps_per_update:
                value = own.get("eval/episode_return_mean")
                if value is not None:
                    found[i] = value
    return found


def _train_rung(
    part: Part,
    members: Sequence[int],
    planned: PartPlan,
    end: int,
    moved: Restored | None,
    position: Position,
    build: Callable[[PartPlan], PartPrograms],
    own: RunFolder,
    console: RunConsole,
    options: TrainOptions,
    *,
    found: bool,
) -> tuple[Position, Restored, list[int]]:
    """Trains some members up to an update; finishes those that won't go on, which at the last rung are all."""
    keep = options.keep_checkpoints
    check_space(part.place, planned.compiled.state, keep + 2)
    if found:
        moved = Checkpoints(part.before / "checkpoints", keep, console.warn).restore(planned.compiled.state)
    if found and moved is not None:
        position = read_position(moved, own)
        require(
            moved.record.get("config") == part.text,
            f"{part.sweep} was changed since the checkpoint; change its configuration back, or start another sweep",
        )
        console.say(f"going on after update {position.update} of {part.options[0].updates}")
    programs = compiled(lambda: build(planned), part.sweep, console)
    records = _records(part.before, position.records)
    job = PopulationJob(planned, programs, part.folders, part.text, records, members, end)
    checkpoints = Checkpoints(own.file("checkpoints"), keep, console.warn)
    state, episodes = conduct(job, own, moved, position, checkpoints, console, options, resumed=part.sweep)
    job.keep(state, False)
    lines = _records(own.path)
    kept = [] if end == part.options[0].updates else _kept(part, members, lines, end)
    _finish_members(part, members, kept, planned, state, episodes, job, position, lines, console)
    return position, Restored(state, {"env_steps": job.env_steps(state)}), kept


def _kept(part: Part, members: Sequence[int], records: Sequence[dict[str, Any]], end: int) -> list[int]:
    return survivors(members, part.configurations, returns_at(records, end, part.options[0]))


def _records(folder: Path, count: int | None = None) -> list[dict[str, Any]]:
    """The lines of a part's metrics, at most so many; a line that a kill cut short, and what follows, is left out."""
    path = folder / "metrics.jsonl"
    if count == 0 or not path.exists():
        return []
    records: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in itertools.islice(file, count):
            if not line.endswith(b"\n"):
                break
            records.append(json.loads(line))
    return records


def _finish_members(
    part: Part,
    members: Sequence[int],
    kept: Sequence[int],
    planned: PartPlan,
    state: PopulationState,
    episodes: Sequence[Any],
    job: PopulationJob,
    position: Position,
    records: Sequence[dict[str, Any]],
    console: RunConsole,
) -> None:
    """Makes the folder of each member that doesn't go on that of an ordinary run."""
    state = jax.device_get(hosts.whole(state))
    versions = machine.versions()
    for row, i in enumerate(members):
        if i in kept:
            continue
        place, options = part.folders[i], dataclasses.replace(planned.options[row], run=part.folders[i])
        lines = member_records(records, i)
        write_member_metrics(place, lines)
        own, alive = member(state.members, row), bool(state.alive[row])
        best = job.best[i] or (None, None)
        end = dataclasses.replace(
            position, records=len(lines), best_env_steps=best[0], best_return=best[1], clock=position.clock
        )
        summary = run_summary(options, planned.env, own, episodes[row], end)
        record = {
            "env_steps": summary["env_steps"],
            "evaluation_return": summary["evaluation"].get("return_mean"),
            "position": dataclasses.asdict(end),
            "config": to_yaml(options),
            "versions": versions,
        }
        if alive:
            with Checkpoints(place / "checkpoints", options.keep_checkpoints, console.warn) as checkpoints:
                checkpoints.save(position.update, own, record, lambda: None)
        stopped = bool(position.update < options.updates)
        write_json(place / "summary.json", summary | {"frozen": not alive, "stopped_early": stopped})
