"""Rules for gather, scatter and dynamic slices: static slices where the indices are known while tracing."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from azjax.batching.folding import clamped_starts
from azjax.batching.interpreter import Batch, Value, batched, rule
from azjax.batching.jaxprs import Equation, gather_form, scatter_form
from azjax.batching.windows import Plan, plan, scatter_sizes, window_positions

MAX_SLICES = 64
"""A gather or scatter with known indices that needs more slices than this stays one."""

MAX_STARTS = 8
"""A dynamic slice whose start differs between lanes, by up to this much, is a choice among static slices."""


@rule("dynamic_slice")
def dynamic_slice(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """A static slice if the start is known, a dynamic one if the lanes share it, else a choice of few slices."""
    array, *starts = inputs
    sizes = eqn.params["slice_sizes"]
    if any(start.batched for start in starts):
        return _select_slice(eqn, array, starts, batch)
    if all(start.constant for start in starts):
        first = clamped_starts(eqn.in_avals[0].shape, sizes, [start.array for start in starts])
        last = [start + size for start, size in zip(first, sizes, strict=True)]
        return batched(lax.slice(array.array, (*first, 0), (*last, batch.size)))
    return batched(lax.dynamic_slice(array.array, _with_zero(starts), (*sizes, batch.size)))


def _select_slice(eqn: Equation, value: Value, starts: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Start indices that differ between lanes: a choice, one dimension at a time, among the few possible slices."""
    shape, sizes = eqn.in_avals[0].shape, eqn.params["slice_sizes"]
    room = [extent - size for extent, size in zip(shape, sizes, strict=True)]
    if max(room) > MAX_STARTS or 0 in sizes:
        return None
    array = batch.full(value, shape)
    for axis, (start, size, last) in enumerate(zip(starts, sizes, room, strict=True)):
        position = batch.full(start, ())
        chosen = lax.slice_in_dim(array, 0, size, axis=axis)
        for first in range(1, last + 1):
            lanes = lax.broadcast_in_dim(position >= first, chosen.shape, (chosen.ndim - 1,))
            chosen = lax.select(lanes, lax.slice_in_dim(array, first, first + size, axis=axis), chosen)
        array = chosen
    return batched(array)


@rule("dynamic_update_slice")
def dynamic_update_slice(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The start must be shared by all lanes."""
    array, update, *starts = inputs
    if any(start.batched for start in starts):
        return None
    shape, sizes = eqn.in_avals[0].shape, eqn.in_avals[1].shape
    target, source = batch.full(array, shape), batch.full(update, sizes)
    indices = _with_zero(starts)
    if all(start.constant for start in starts):
        indices = [*clamped_starts(shape, sizes, [start.array for start in starts]), 0]
    return batched(lax.dynamic_update_slice(target, source, indices))


def _with_zero(starts: Sequence[Value]) -> list[Any]:
    """Start indices for the batched array, all of one dtype."""
    return [*(start.array for start in starts), np.zeros((), starts[0].array.dtype)] if starts else [0]


@rule("gather")
def gather(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Slices if the indices are known, one gather of whole batches if the lanes share them."""
    operand, indices = inputs
    if indices.batched:
        return None
    form, shape, out_shape = gather_form(eqn.params), eqn.in_avals[0].shape, eqn.out_avals[0].shape
    if indices.constant and 0 not in (*shape, *out_shape):
        positions = window_positions(shape, indices.array, eqn.params["slice_sizes"], form)
        if (positions >= 0).all():
            moves = plan(shape, positions)
            if len(moves.runs) <= MAX_SLICES:
                return batched(lax.reshape(_take(operand.array, moves, batch), (*out_shape, batch.size)))
    numbers = eqn.params["dimension_numbers"]._replace(offset_dims=(*form.window_dims, len(out_shape)))
    sizes = (*eqn.params["slice_sizes"], batch.size)
    return batched(*eqn.bind(operand.array, indices.array, dimension_numbers=numbers, slice_sizes=sizes))


def _take(array: Any, moves: Plan, batch: Batch) -> Any:
    grid = lax.reshape(array, (moves.before, moves.extent, moves.after, batch.size))
    pieces = [_run(grid, *run) for run in moves.runs]
    return pieces[0] if len(pieces) == 1 else lax.concatenate(pieces, 1)


def _run(grid: Any, first: int, step: int, length: int) -> Any:
    """Rows `first, first + step, ...` of axis 1."""
    if step == 0:
        row = lax.slice_in_dim(grid, first, first + 1, axis=1)
        return lax.broadcast_in_dim(row, (grid.shape[0], length, *grid.shape[2:]), tuple(range(grid.ndim)))
    last = first + step * (length - 1)
    if step < 0:
        return lax.rev(lax.slice_in_dim(grid, last, first + 1, stride=-step, axis=1), (1,))
    return lax.slice_in_dim(grid, first, last + 1, stride=step, axis=1)


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "scatter": lambda old, new: new,
    "scatter_add": lax.add,
    "scatter_sub": lax.sub,
    "scatter_mul": lax.mul,
    "scatter_min": lax.min,
    "scatter_max": lax.max,
}


@rule(*_COMBINE)
def scatter(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Slices if the indices are known, one scatter of whole batches if the lanes share them."""
    operand, indices, updates = inputs
    # `x.at[i].apply(f)` is a plain scatter with a program of its own, which takes the place of its updates.
    applies = eqn.name == "scatter" and eqn.params.get("update_jaxpr") is not None
    if indices.batched or applies:
        return None
    form, (shape, _, update_shape) = scatter_form(eqn.params), (aval.shape for aval in eqn.in_avals)
    target, source = batch.full(operand, shape), batch.full(updates, update_shape)
    if 0 in (*shape, *update_shape):
        return batched(target)
    if indices.constant:
        moves = plan(shape, window_positions(shape, indices.array, scatter_sizes(shape, update_shape, form), form))
        spans = _spans(moves)
        if len(spans) <= MAX_SLICES:
            zero = eqn.name == "scatter_add" and operand.constant and not operand.array.any()
            return batched(lax.reshape(_put(target, source, moves, spans, eqn.name, zero, batch), target.shape))
    numbers = eqn.params["dimension_numbers"]._replace(update_window_dims=(*form.window_dims, len(update_shape)))
    return batched(*eqn.bind(target, indices.array, source, dimension_numbers=numbers))


def _spans(moves: Plan) -> list[tuple[int, int, list[int]]]:
    """Target rows `start..end` alike: `start` takes the update rows `sources`, each next row those one further on."""
    sources: list[list[int]] = [[] for _ in range(moves.extent)]
    for update, row in enumerate(moves.rows):
        if row >= 0:
            sources[int(row)].append(update)
    spans, start = [], 0
    while start < moves.extent:
        end = start + 1
        while end < moves.extent and sources[end] == [source + end - start for source in sources[start]]:
            end += 1
        spans.append((start, end, sources[start]))
        start = end
    return spans


def _put(
    target: Any, source: Any, moves: Plan, spans: list[tuple[int, int, list[int]]], name: str, zero: bool, batch: Batch
) -> Any:
    """The scattered array `[before, extent, after, B]`; with `zero` the target is known to be 0."""
    combine = _COMBINE[name]
    old = lax.reshape(target, (moves.before, moves.extent, moves.after, batch.size))
    new = lax.reshape(source, (moves.before, len(moves.rows), moves.after, batch.size))
    pieces = []
    for start, end, sources in spans:
        parts = [lax.slice_in_dim(new, first, first + end - start, axis=1) for first in sources]
        if not (zero and sources):
            parts.insert(0, lax.slice_in_dim(old, start, end, axis=1))
        pieces.append(functools.reduce(combine, parts))
    return pieces[0] if len(pieces) == 1 else lax.concatenate(pieces, 1)
