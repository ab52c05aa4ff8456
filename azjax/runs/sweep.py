"""What a sweep consists of: axes of options, the members that they span, and the programs that members share."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from azjax.config import ConfigError, nearest, require, require_number, traced_names
from azjax.runs.options import TrainOptions, resolve
from azjax.runs.run_options import flat_options, with_changes

# Options of a run that belong to all members or to none.
_NOT_SWEPT = frozenset({
    "env", "algorithm", "seed", "run", "devices", "updates_per_call", "evaluations", "evaluation_episodes",
    "deterministic", "checkpoint_seconds", "keep_checkpoints", "tensorboard", "wandb", "cache", "quiet", "learner",
})  # fmt: skip
_MOST_MEMBERS = 4096

Value = float | int | str | bool | tuple[int, ...] | None
Member = dict[str, Value]
"""What a member changes: its seed among it."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """An option that takes each of some values."""

    values: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """An option that is drawn from a range, uniformly or uniformly in its logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, generator: np.random.Generator) -> float:
        """A value."""
        if self.log:
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)


Axes = Mapping[str, Choice | Range]


def sweepable(options: TrainOptions) -> list[str]:
    """The names of the options that an axis may have."""
    own = [field.name for field in dataclasses.fields(TrainOptions)]
    learner = [field.name for field in dataclasses.fields(options.learner)]
    return [name for name in own + learner if name not in _NOT_SWEPT]


def read_axis(options: TrainOptions, name: str, spec: Any) -> Choice | Range:
    """An axis from text (``0.97,0.99``, ``0.9..1``, ``log:1e-4..1e-2``) or from what a YAML file has for it.

    In a file an axis is a list of values, or ``{uniform: [low, high]}``, or ``{log: [low, high]}``.

    Raises:
      ConfigError: for a name that no axis can have, or values of another type.
    """
    known = sweepable(options)
    require(name in known, f"{name} can't be swept over{nearest(name, known)}; see azjax sweep --help")
    hint = _hint(options, name)
    if isinstance(spec, str):
        return _axis_from_text(name, spec, hint)
    if isinstance(spec, dict):
        kind, ends = next(iter(spec.items()), ("", None))
        require(
            len(spec) == 1 and kind in ("uniform", "log") and isinstance(ends, list) and len(ends) == 2,
            f"{name} is {spec!r}; a range is {{uniform: [low, high]}} or {{log: [low, high]}}",
        )
        low, high = (_number(name, str(end)) for end in ends or ())
        return _range(name, low, high, kind == "log", hint)
    require(isinstance(spec, list) and len(spec) > 0, f"{name} is {spec!r}; give a list of values, or a range")
    return _choice(name, [_typed(name, value, hint) for value in spec])


def _axis_from_text(name: str, text: str, hint: Any) -> Choice | Range:
    body = text.removeprefix("log:").removeprefix("uniform:")
    if ".." in body:
        low, _, high = body.partition("..")
        return _range(name, _number(name, low), _number(name, high), text.startswith("log:"), hint)
    require(body == text, f"{name} is {text!r}; a range is low..high or log:low..high")
    return _choice(name, [_typed(name, word, hint) for word in text.split(",")])


def _choice(name: str, values: list[Value]) -> Choice:
    require(len(set(values)) == len(values), f"{name} has a value twice: {', '.join(map(str, values))}; leave one out")
    return Choice(tuple(values))


def _range(name: str, low: float, high: float, log: bool, hint: Any) -> Range:
    require(hint is float, f"{name} has a range, but it takes no real numbers; list its values instead")
    require(low < high, f"{name} is drawn from {low} to {high}; the lower end comes first")
    require(not log or low > 0.0, f"{name} is drawn from {low} on by its logarithm; start above 0")
    return Range(low, high, log)


def _number(name: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    require(math.isfinite(value), f"{name} has {word!r} where a number should be; a range is low..high")
    return value


def _hint(options: TrainOptions, name: str) -> Any:
    """The type of an option; of several the one that is not None."""
    owner = TrainOptions if name in typing.get_type_hints(TrainOptions) else type(options.learner)
    hint = typing.get_type_hints(owner)[name]
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if kinds and type(None) in typing.get_args(hint) else hint


def _typed(name: str, value: Any, hint: Any) -> Value:
    """A value of the option's type, from text or from YAML."""
    words = {"true": True, "false": False, "none": None}
    if isinstance(value, str) and hint in (bool, float, int):
        text = value.strip()
        if hint is bool:
            value = words.get(text.lower(), value)
        else:
            try:
                value = hint(text)
            except ValueError as error:
                kind = "a whole number" if hint is int else "a number"
                raise ConfigError(f"{name} has the value {value!r}; it must be {kind}") from error
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        require(
            all(type(n) is int and n > 0 for n in value), f"{name} has the value {value!r}; it must be whole numbers"
        )
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    plain = {bool: bool, int: int, float: float}.get(hint, str)
    require(
        type(value) is plain and typing.get_origin(hint) is not tuple,
        f"{name} has the value {value!r}, which is not of its type; lists of layers go into a file (--axes)",
    )
    return value  # type: ignore[no-any-return]


def spread(options: TrainOptions, axes: Axes, *, samples: int = 1, seeds: int = 1) -> list[Member]:
    """What each member changes: every combination of the choices, drawn values of the ranges, and seeds.

    Args:
      options: of all members.
      axes: options that differ.
      samples: draws of the ranges for each combination of choices; the same for the same ``options.seed``.
      seeds: runs of each configuration, from ``options.seed`` on.

    Raises:
      ConfigError: if there are draws without a range, or too many members.
    """
    require_number("samples", samples, 1, _MOST_MEMBERS)
    require_number("seeds", seeds, 1, _MOST_MEMBERS)
    choices = {name: axis.values for name, axis in axes.items() if isinstance(axis, Choice)}
    ranges = {name: axis for name, axis in axes.items() if isinstance(axis, Range)}
    require(bool(ranges) or samples == 1, f"samples is {samples}, but no option has a range; give one, or leave it out")
    count = math.prod(map(len, choices.values())) * samples * seeds
    require(count <= _MOST_MEMBERS, f"{count} members are more than {_MOST_MEMBERS}; make several sweeps of it")
    generator = np.random.default_rng([options.seed, 0x5EE9])
    configurations: list[Member] = []
    for combination in itertools.product(*choices.values()):
        for _ in range(samples):
            drawn = {name: axis.draw(generator) for name, axis in ranges.items()}
            values = dict(zip(choices, combination, strict=True)) | drawn
            configurations.append({name: values[name] for name in axes})
    return [{**values, "seed": options.seed + n} for values in configurations for n in range(seeds)]


class Group(typing.NamedTuple):
    """Members that one program can train: they differ in seed and traced hyperparameters."""

    options: TrainOptions  # of the first
    members: tuple[int, ...]  # their numbers


def member_options(options: TrainOptions, changes: Mapping[str, Any]) -> TrainOptions:
    """The options of one member, checked.

    Raises:
      ConfigError: naming the member's own values, if they make no sense together.
    """
    try:
        changed = resolve(with_changes(options, changes))
        changed.validate()
    except ConfigError as error:
        own = ", ".join(f"{name} {value}" for name, value in changes.items())
        raise ConfigError(f"the member with {own}: {error}") from error
    return changed


def group_members(members: Sequence[TrainOptions]) -> list[Group]:
    """Members by what their program is specialised to, in the order of each group's first."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, options in enumerate(members):
        groups.setdefault(_static(options), []).append(number)
    return [Group(members[numbers[0]], tuple(numbers)) for numbers in groups.values()]


def _static(options: TrainOptions) -> tuple[Any, ...]:
    own = traced_names(options.learner)
    flat = flat_options(options)
    return tuple((name, _hashable(flat[name])) for name in sorted(flat) if name not in own and name != "seed")


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def parts_of(group: Group, chunk: int, together: int = 1) -> Iterator[tuple[int, ...]]:
    """The members of a group in parts of at most so many, as equal as can be with at most two sizes.

    Args:
      group: its members in order.
      chunk: most members of a part.
      together: so many consecutive members stay in one part, even if ``chunk`` is smaller.
    """
    units = -(-len(group.members) // together)
    count = -(-units // max(1, chunk // together))
    size = -(-units // count) * together
    for start in range(0, len(group.members), size):
        yield group.members[start : start + size]
