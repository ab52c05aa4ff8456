"""Vectors, quaternions and small matrices put together from their components stay apart while only one value uses them.

A `concatenate` in the middle of a fused loop becomes a branch in its innermost loop, which keeps XLA:CPU from using
SIMD instructions for the whole kernel. As long as an array made by one has a single use, what follows is computed
component by component instead, so that the `concatenate` ends up as the last thing of its kernel, where every operand
has a loop of its own. An array that several equations use is joined: computing it again for each of them would cost
more. On ant this doubles the steps per second of a CPU.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from azjax.batching.interpreter import RULES, Batch, Rule, Value, component_rule, joined_later
from azjax.batching.jaxprs import Equation
from azjax.batching.rules import ELEMENTWISE

LONGEST = 4
"""Axes up to this length are kept apart: vectors and quaternions."""


@component_rule("concatenate")
def concatenate(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Where components come from."""
    axis, shape = eqn.params["dimension"], eqn.out_avals[0].shape
    if shape[axis] > LONGEST or 0 in shape:
        return None
    parts: list[Any] = []
    for value, aval in zip(inputs, eqn.in_avals, strict=True):
        whole = value if value.batched else Value(batch.full(value, aval.shape), True)
        parts += [_component(whole, axis, i).array for i in range(aval.shape[axis])]
    return [joined_later(parts, axis)]


@component_rule("stack")
def stack(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Where components come from, too."""
    axis, shape = eqn.params["axis"], eqn.out_avals[0].shape
    if not 0 <= axis < len(shape) or shape[axis] > LONGEST or 0 in shape:
        return None
    arrays = [batch.full(value, aval.shape) for value, aval in zip(inputs, eqn.in_avals, strict=True)]
    return [joined_later([lax.expand_dims(array, (axis,)) for array in arrays], axis)]


@component_rule(*ELEMENTWISE, "select_n", "clamp")
def elementwise(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The ordinary rule, once for each component."""
    shape = eqn.out_avals[0].shape
    axes = {
        value.axis
        for value, aval in zip(inputs, eqn.in_avals, strict=True)
        if value.parts is not None and aval.shape == shape
    }
    if len(axes) != 1:
        return None
    (axis,) = axes
    one = dataclasses.replace(
        eqn,
        in_avals=tuple(_shortened(aval, axis, len(shape)) for aval in eqn.in_avals),
        out_avals=tuple(_shortened(aval, axis, len(shape)) for aval in eqn.out_avals),
    )
    rows = [
        [
            _component(value, axis, i) if len(aval.shape) == len(shape) and aval.shape[axis] > 1 else value
            for value, aval in zip(inputs, eqn.in_avals, strict=True)
        ]
        for i in range(shape[axis])
    ]
    return _for_each(one, rows, axis, batch)


def _for_each(eqn: Equation, rows: Sequence[Sequence[Value]], axis: int, batch: Batch) -> list[Value] | None:
    """The ordinary rule for the operands of each component; None if it doesn't apply, or if there is none."""
    parts: list[Any] = []
    for values in rows:
        results = RULES[eqn.name](eqn, values, batch)
        if results is None:
            return None
        parts.append(results[0].array)
    return [joined_later(parts, axis)] if parts else None


def _shortened(aval: Any, axis: int, rank: int) -> Any:
    shape = aval.shape
    return aval.update(shape=(*shape[:axis], 1, *shape[axis + 1 :])) if len(shape) == rank else aval


def _component(value: Value, axis: int, i: int) -> Value:
    """The slice `i` of extent 1 along an axis."""
    if value.parts is not None and value.axis == axis:
        return Value(value.parts[i], value.batched)
    if isinstance(value.array, np.ndarray):
        return Value(np.take(value.array, [i], axis), value.batched)
    return Value(lax.slice_in_dim(value.array, i, i + 1, axis=axis), value.batched)


def _moved(axis_of: Callable[[Equation, Value], int | None]) -> Rule:
    """A rule that applies the equation to every component; `axis_of` says where their axis goes (None: nowhere)."""

    def apply(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
        (value,) = inputs
        axis = None if value.parts is None else axis_of(eqn, value)
        if value.parts is None or axis is None:
            return None
        before, after = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        one = dataclasses.replace(
            eqn,
            params=type(eqn.params)({**eqn.params, **_RESIZED.get(eqn.name, lambda *_: {})(eqn, axis)}),
            in_avals=(_shortened(eqn.in_avals[0], value.axis, len(before)),),
            out_avals=(_shortened(eqn.out_avals[0], axis, len(after)),),
        )
        return _for_each(one, [[Value(part, True)] for part in value.parts], axis, batch)

    return apply


def _with_one(sizes: Sequence[Any], axis: int) -> tuple[int, ...]:
    return (*map(int, sizes[:axis]), 1, *map(int, sizes[axis + 1 :]))


_RESIZED: dict[str, Callable[[Equation, int], dict[str, Any]]] = {
    "broadcast_in_dim": lambda eqn, axis: {"shape": _with_one(eqn.params["shape"], axis)},
    "reshape": lambda eqn, axis: {"new_sizes": _with_one(eqn.params["new_sizes"], axis)},
}
"""Parameters that name the extent of the components' axis in the result."""


def _after_squeeze(eqn: Equation, value: Value) -> int | None:
    gone = [int(d) for d in eqn.params["dimensions"]]
    return value.axis - sum(d < value.axis for d in gone)


def _after_expand(eqn: Equation, value: Value) -> int | None:
    axis = value.axis
    for dimension in sorted(int(d) for d in eqn.params["dimensions"]):
        axis += dimension <= axis
    return axis


def _after_reshape(eqn: Equation, value: Value) -> int | None:
    """The axis of the same extent with as many elements before it."""
    old, new = eqn.in_avals[0].shape, eqn.params["new_sizes"]
    extent, before = old[value.axis], np.prod(old[: value.axis], dtype=np.int64)
    places = [axis for axis, size in enumerate(new) if size == extent and np.prod(new[:axis], dtype=np.int64) == before]
    return places[0] if places and eqn.params["dimensions"] is None else None


component_rule("squeeze")(_moved(_after_squeeze))
component_rule("expand_dims")(_moved(_after_expand))
component_rule("reshape")(_moved(_after_reshape))
component_rule("transpose")(_moved(lambda eqn, value: list(eqn.params["permutation"]).index(value.axis)))
component_rule("broadcast_in_dim")(_moved(lambda eqn, value: int(eqn.params["broadcast_dimensions"][value.axis])))


@component_rule("slice")
def slice_(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """A choice among the components, and the same slice of each."""
    value, params = inputs[0], eqn.params
    if value.parts is None:
        return None
    axis, strides = value.axis, params["strides"]
    bounds = (params["start_indices"][axis], params["limit_indices"][axis], None if strides is None else strides[axis])
    changed = {
        "start_indices": (*params["start_indices"][:axis], 0, *params["start_indices"][axis + 1 :]),
        "limit_indices": _with_one(params["limit_indices"], axis),
        "strides": None if strides is None else _with_one(strides, axis),
    }
    one = dataclasses.replace(eqn, params=type(params)({**params, **changed}))
    return _for_each(one, [[Value(part, True)] for part in value.parts[slice(*bounds)]], axis, batch)


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}
"""Not maximum and minimum: where components tie, their derivative would differ from JAX's."""


@component_rule(*_COMBINE)
def reduce(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Over the components' axis: each is reduced along the other axes, then they are combined."""
    value = inputs[0]
    if value.parts is None or value.axis not in eqn.params["axes"]:
        return None
    reduced = [eqn.bind(part)[0] for part in value.parts]
    return [Value(functools.reduce(_COMBINE[eqn.name], reduced), True)]
