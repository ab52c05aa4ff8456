r"""Spaces of tasks: named, bounded, typed parameters, and the unit cube in which proposers think.

A :class:`TaskSpace` is one type of task, a :class:`TaskFamily` several that share a body. A proposer writes a
:class:`Proposal`, a type and a point of the unit cube; the family makes a :class:`Task` of it, which names physical
values and is an input of the compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import nearest, require, require_number

__all__ = ["Parameter", "ParameterKind", "Proposal", "Task", "TaskFamily", "TaskSpace"]

ParameterKind = Literal["linear", "log", "integer"]


class Task(NamedTuple):
    """A task in physical units, any leading axes."""

    type: chex.Array  # int32 [...] which space of the family
    values: dict[str, chex.Array]  # float32 [...] each; parameters that the type does not have are neutral
    run: chex.Array  # int32 [...] number of this run of the task; no environment may read it, and verification checks


class Proposal(NamedTuple):
    """A task as a proposer writes it, any leading axes."""

    type: chex.Array  # int32 [...] which space of the family
    cube: chex.Array  # float32 [..., D] a point of the unit cube; entries beyond the space's own size are not read


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One number of a task.

    Attributes:
      low: the least value.
      high: the largest value.
      neutral: the value in tasks of a type that does not have this parameter; may lie outside the bounds.
      kind: `linear`, `log` (uniform in the logarithm) or `integer` (both bounds included).
      unit: for people, e.g. `m/s`.
    """

    low: float
    high: float
    neutral: float
    kind: ParameterKind = "linear"
    unit: str = ""

    def validate(self, name: str) -> None:
        """Raises ``ConfigError`` for bounds that hold no interval of the kind, naming the parameter."""
        kinds = list(get_args(ParameterKind))
        require(
            self.kind in kinds,
            f"task parameter {name} has no kind {self.kind!r}{nearest(self.kind, kinds)} (there are: {kinds})",
        )
        for field, value in (("low", self.low), ("high", self.high), ("neutral", self.neutral)):
            require_number(f"{field} of task parameter {name}", value, -1e9, 1e9)
            whole = self.kind != "integer" or float(value).is_integer()
            require(whole, f"{field} of task parameter {name} is {value}; the kind integer needs a whole number")
        require(
            self.low < self.high,
            f"task parameter {name} goes from {self.low} to {self.high}; low must be less than high",
        )
        if self.kind == "log":
            require(
                self.low > 0, f"low of task parameter {name} is {self.low}; the kind log needs numbers greater than 0"
            )
        # In float32 integers are exact, and the cells of the unit interval distinct, up to here.
        if self.kind == "integer":
            require_number(f"high - low of task parameter {name}", self.high - self.low, 1, 2**20)
            require_number(f"low of task parameter {name}", self.low, -(2**20), 2**20)

    def decode(self, u: chex.Array) -> chex.Array:
        """The value at `u` `[...]` of the unit interval; outside of it, beyond the bounds."""
        if self.kind == "log":
            low, high = math.log(self.low), math.log(self.high)
            return jnp.exp(low + u * (high - low))
        if self.kind == "linear":
            return self.low + u * (self.high - self.low)
        cells = self.high - self.low + 1
        # Both ends of the unit interval are inside; NaN has no integer, and integrity refuses it by the cube.
        cell = jnp.where(u == 1.0, cells - 1, jnp.floor(jnp.nan_to_num(u) * cells))
        return jnp.asarray(self.low + jnp.clip(cell, -1, cells), jnp.int32)

    def encode(self, value: chex.Array) -> chex.Array:
        """Where in the unit interval a value `[...]` lies; an integer at the centre of its cell."""
        x = jnp.asarray(value, jnp.float32)
        if self.kind == "log":
            return jnp.log(x / self.low) / math.log(self.high / self.low)
        if self.kind == "linear":
            return (x - self.low) / (self.high - self.low)
        return (x - self.low + 0.5) / (self.high - self.low + 1)

    def contains(self, value: chex.Array) -> chex.Array:
        """Bool `[...]`: finite and within the bounds, up to float32's rounding of the encoding."""
        slack = 0.0 if self.kind == "integer" else 1e-5 * max(abs(self.low), abs(self.high))
        return (value >= self.low - slack) & (value <= self.high + slack)


@dataclasses.dataclass(frozen=True)
class TaskSpace:
    """One type of task: its parameters by name, in the order of the cube's axes.

    Raises:
      ConfigError: from :meth:`validate`, which :class:`TaskFamily` calls.

    Examples:
      >>> import jax.numpy as jnp
      >>> space = TaskSpace({"distance": Parameter(1.0, 5.0, 0.0, unit="m"), "gears": Parameter(1, 4, 1, "integer")})
      >>> values = space.decode(jnp.array([0.25, 0.5]))
      >>> float(values["distance"]), int(values["gears"])
      (2.0, 3)
      >>> space.encode(values).tolist()
      [0.25, 0.625]
    """

    parameters: Mapping[str, Parameter]

    @property
    def size(self) -> int:
        """The number of axes of the cube."""
        return len(self.parameters)

    def validate(self) -> None:
        """Raises ``ConfigError`` for a space without parameters, or with bounds that make no sense."""
        require(self.size > 0, "a task space has no parameters; give it at least one")
        for name, parameter in self.parameters.items():
            parameter.validate(name)

    def decode(self, cube: chex.Array) -> dict[str, chex.Array]:
        """The values `[...]` by name at points `[..., >= size]` of the unit cube."""
        return {name: p.decode(cube[..., axis]) for axis, (name, p) in enumerate(self.parameters.items())}

    def encode(self, values: Mapping[str, chex.Array]) -> chex.Array:
        """The points `[..., size]` of the cube at which values `[...]` by name lie; other names are not read."""
        return jnp.stack([p.encode(values[name]) for name, p in self.parameters.items()], axis=-1)

    def contains(self, values: Mapping[str, chex.Array]) -> chex.Array:
        """Bool `[...]`: all values are finite and within bounds."""
        return jnp.stack([p.contains(values[name]) for name, p in self.parameters.items()]).all(axis=0)

    def grid(self, cells: int) -> chex.Array:
        """The centres `[cells ** size, size]` of equal cells of the cube, the last axis fastest."""
        require_number("cells", cells, 1, 2**20)
        centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        return jnp.asarray(np.stack(np.meshgrid(*[centres] * self.size, indexing="ij"), -1).reshape(-1, self.size))


@dataclasses.dataclass(frozen=True)
class TaskFamily:
    """The types of task of one body.

    Attributes:
      spaces: the space of each type by name; the order numbers the types.
      others: parameters of no type's, always at their neutral value, that the environment wants all the same.
    """

    spaces: Mapping[str, TaskSpace]
    others: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)

    def validate(self) -> None:
        """Raises ``ConfigError`` for a family without types, a space that makes no sense or two meanings of a name."""
        require(len(self.spaces) > 0, "a task family has no types of task; give it at least one")
        for space in self.spaces.values():
            space.validate()
            for name, parameter in space.parameters.items():
                require(
                    self.neutral[name] == parameter.neutral,
                    f"task parameter {name} is neutral at {self.neutral[name]} and at {parameter.neutral}; "
                    "one name needs one neutral value",
                )

    @property
    def types(self) -> tuple[str, ...]:
        """The names of the types, in the order of their numbers."""
        return tuple(self.spaces)

    @property
    def size(self) -> int:
        """The number of axes of a proposal's cube: that of the largest space."""
        return max(space.size for space in self.spaces.values())

    @functools.cached_property
    def neutral(self) -> dict[str, float]:
        """The neutral value of every parameter of every type."""
        every = [dict(self.others), *(dict(space.parameters) for space in self.spaces.values())]
        return {name: p.neutral for parameters in every for name, p in parameters.items()}

    def only(self, types: tuple[str, ...]) -> TaskFamily:
        """The family with these types alone; parameters of the rest stay, neutral.

        Raises:
          ConfigError: for a type that the family does not have, or that is asked for twice.
        """
        for name in types:
            require(
                name in self.spaces,
                f"unknown type of task {name!r}{nearest(name, list(self.spaces))} (there are: {', '.join(self.types)})",
            )
        require(len(set(types)) == len(types), f"types of task {', '.join(types)} repeat one; name each once")
        rest = {n: p for space in self.spaces.values() for n, p in space.parameters.items()}
        return TaskFamily({name: self.spaces[name] for name in types}, {**rest, **self.others})

    def decode(self, proposal: Proposal, run: chex.Numeric = 0) -> Task:
        """The tasks `[...]` of proposals `[...]`; a type that does not exist counts as the nearest that does."""
        type_ = jnp.clip(proposal.type, 0, len(self.spaces) - 1).astype(jnp.int32)
        values = {name: jnp.full(type_.shape, x, jnp.float32) for name, x in self.neutral.items()}
        for number, space in enumerate(self.spaces.values()):
            for name, own in space.decode(proposal.cube).items():
                values[name] = jnp.where(type_ == number, jnp.asarray(own, jnp.float32), values[name])
        return Task(type_, values, jnp.broadcast_to(jnp.asarray(run, jnp.int32), type_.shape))

    def encode(self, task: Task) -> Proposal:
        """The proposals `[...]` whose tasks these are; axes beyond a type's own are 0."""
        cube = jnp.zeros((*task.type.shape, self.size), jnp.float32)
        for number, space in enumerate(self.spaces.values()):
            own = jnp.zeros_like(cube).at[..., : space.size].set(space.encode(task.values))
            cube = jnp.where((task.type == number)[..., None], own, cube)
        return Proposal(task.type, cube)

    def canonical(self, proposal: Proposal) -> Proposal:
        """The same proposals `[...]` with 0 on the axes that their type does not have."""
        sizes = jnp.array([space.size for space in self.spaces.values()])
        own = jnp.arange(self.size) < sizes[proposal.type][..., None]
        return proposal._replace(cube=jnp.where(own, proposal.cube, 0.0))

    def contains(self, proposal: Proposal) -> chex.Array:
        """Bool `[...]`: the type exists, its part of the cube is finite and inside, and so are the decoded values."""
        inside = (proposal.cube >= 0.0) & (proposal.cube <= 1.0)
        result = jnp.zeros(proposal.type.shape, bool)
        for number, space in enumerate(self.spaces.values()):
            good = inside[..., : space.size].all(axis=-1) & space.contains(space.decode(proposal.cube))
            result |= (proposal.type == number) & good
        return result

    def sample(self, key: chex.PRNGKey, shape: tuple[int, ...] = ()) -> Proposal:
        """Proposals `shape` with uniform type and uniform point of the cube; ``key`` is consumed."""
        key_type, key_cube = jax.random.split(key)
        type_ = jax.random.randint(key_type, shape, 0, len(self.spaces))
        return self.canonical(Proposal(type_, jax.random.uniform(key_cube, (*shape, self.size))))
