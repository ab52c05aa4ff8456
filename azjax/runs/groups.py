"""Runs grouped: by task (environment and physics), and within a task into the seeds of one configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from azjax.algorithms import ALGORITHMS
from azjax.on_policy import OnPolicyConfig
from azjax.runs.options import TrainOptions
from azjax.runs.results import Plain, Run
from azjax.runs.run_options import RunOptions, flat_options
from azjax.runs.selfplay_options import SelfPlayOptions

# What differs between seeds of one configuration: where and how a run is kept and shown, not what it computes.
NEUTRAL = frozenset({
    "schema", "kind", "seed", "run", "quiet", "cache", "updates_per_call", "checkpoint_seconds", "keep_checkpoints",
    "tensorboard", "wandb",
})  # fmt: skip
# What is filled in from other options where it is left to be chosen.
DERIVED = frozenset({"schedule_updates", "reset_pool"})
_MOST_NAMED = 3
_LONGEST_LABEL = 4


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one configuration on one task."""

    label: str  # what sets it apart from the other configurations
    options: Mapping[str, Plain]  # all but the task and what differs between seeds
    runs: tuple[Run, ...]  # by seed

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that statistics are made of: those with a final return; the finished ones if there are any."""
        usable = tuple(run for run in self.runs if run.final_return is not None)
        return tuple(run for run in usable if run.finished) or usable


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment with its physics: returns of other physics aren't comparable."""

    env: str
    backend: str
    groups: tuple[Group, ...]  # in the order of their first runs

    @property
    def name(self) -> str:
        """The environment, with its physics behind it."""
        return f"{self.env} ({self.backend})"


def group_runs(runs: Sequence[Run]) -> list[Task]:
    """Tasks and groups in the order of their first runs.

    Runs belong to one group if all options are equal but ``NEUTRAL`` ones; an option that one of them lacks, being of
    an older version, counts as its default. Labels are made of the options that differ within any task, so that the
    same change has the same label on all of them; what differs between algorithms only is told by their names.
    """
    tasks: dict[tuple[str, str], dict[tuple[tuple[str, Plain], ...], list[Run]]] = {}
    kinds = {False: TrainOptions(), True: SelfPlayOptions()}
    defaults = {
        (selfplay, name): _defaults(options, algorithm.config)
        for selfplay, options in kinds.items()
        for name, algorithm in ALGORITHMS.items()
    }
    order = {name: place for place, name in enumerate(dict.fromkeys(n for own in defaults.values() for n in own))}
    for run in runs:
        own = defaults.get((run.selfplay, str(run.options.get("algorithm"))), defaults[run.selfplay, "ppo"])
        options = {k: v for k, v in (own | dict(run.options)).items() if k not in NEUTRAL | {"env", "backend"}}
        key = tuple(sorted(options.items(), key=lambda item: _place(order, item[0])))
        tasks.setdefault((run.env, run.backend), {}).setdefault(key, []).append(run)
    names = {name for groups in tasks.values() for name in _telling([dict(key) for key in groups])}
    varying = sorted(names, key=lambda name: _place(order, name))
    return [Task(env, backend, tuple(_groups(groups, varying))) for (env, backend), groups in tasks.items()]


def _groups(groups: Mapping[tuple[tuple[str, Plain], ...], list[Run]], varying: Sequence[str]) -> Iterator[Group]:
    options = [dict(key) for key in groups]
    for label, own, runs in zip(_labels(options, varying), options, groups.values(), strict=True):
        yield Group(label, own, tuple(sorted(runs, key=lambda run: run.seed)))


def _place(order: Mapping[str, int], name: str) -> tuple[int, str]:
    """Options in the order in which azjax has them, unknown ones at the end."""
    return (order.get(name, len(order)), name)


def _telling(options: Sequence[Mapping[str, Plain]]) -> list[str]:
    """Names that tell configurations apart: the algorithm, and what differs between those of one algorithm."""
    algorithms: dict[Plain, list[Mapping[str, Plain]]] = {}
    for entry in options:
        algorithms.setdefault(entry.get("algorithm"), []).append(entry)
    several = ["algorithm"] if len(algorithms) > 1 else []
    return several + [name for own in algorithms.values() for name in differing(own)]


def differing(options: Sequence[Mapping[str, Plain]]) -> list[str]:
    """Names whose values are not the same in all of them; one that is missing differs from any value."""
    names = dict.fromkeys(name for entry in options for name in entry)
    return [name for name in names if len({(name in entry, _key(entry.get(name))) for entry in options}) > 1]


def shown(value: Plain) -> str:
    """An option's value for a reader."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else value


def _key(value: Plain) -> tuple[str, Plain]:
    """1, 1.0 and True are different options, though equal in Python; but 1 may stand for the float 1.0."""
    return ("number" if type(value) in (int, float) else type(value).__name__, value)


def _defaults(options: RunOptions, config: type[OnPolicyConfig]) -> dict[str, Plain]:
    options = dataclasses.replace(options, learner=config())
    return {k: tuple(v) if isinstance(v, list) else v for k, v in flat_options(options).items()}


def _labels(groups: Sequence[Mapping[str, Plain]], varying: Sequence[str]) -> list[str]:
    """One label a group, all different.

    A few varying options are all named. Of many, each group names those in which it departs from the most frequent
    value, and the one that never does is the base, which suits ablations of one option at a time.
    """
    plain = [name for name in varying if name not in DERIVED]
    names = plain if len({_values(group, plain) for group in groups}) == len(groups) else list(varying)
    chosen = [[name for name in names if name in group] for group in groups]
    if len(names) > _MOST_NAMED:
        usual = {name: _usual([group.get(name) for group in groups]) for name in names}
        chosen = [
            [name for name in own if name == "algorithm" or _key(group[name]) != _key(usual[name])]
            for group, own in zip(groups, chosen, strict=True)
        ]
    labels = [
        _label(group, own) if names else str(group.get("algorithm")) for group, own in zip(groups, chosen, strict=True)
    ]
    # Values may differ in a digit that isn't shown, or options in one that a long label leaves out.
    return [label if labels.count(label) == 1 else f"{label} ({n + 1})" for n, label in enumerate(labels)]


def _usual(values: Sequence[Plain]) -> Plain:
    """The most frequent value; of several the first."""
    return max(values, key=lambda value: [_key(other) for other in values].count(_key(value)))


def _values(options: Mapping[str, Plain], names: Sequence[str]) -> tuple[tuple[str, Plain], ...]:
    return tuple(_key(options.get(name)) for name in names)


def _label(options: Mapping[str, Plain], names: Sequence[str]) -> str:
    if not names:
        return "base"
    parts = [
        shown(options.get(name)) if name == "algorithm" else f"{name}={shown(options.get(name))}"
        for name in names[:_LONGEST_LABEL]
    ]
    more = len(names) - len(parts)
    return " · ".join([*parts, *([f"{more} more"] if more else [])])
