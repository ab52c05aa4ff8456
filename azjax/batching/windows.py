"""Where the elements of a gather or a scatter with known indices lie, and how to move them with few slices."""

from collections.abc import Sequence

import numpy as np

from azjax.batching.jaxprs import WindowForm


def window_positions(shape: Sequence[int], indices: np.ndarray, sizes: Sequence[int], form: WindowForm) -> np.ndarray:
    """Flat operand positions read by a gather (written by a scatter), in the layout of its result (its updates).

    Args:
      shape: the operand's shape.
      indices: `[*batch, len(form.index_map)]` integers.
      sizes: window size per operand dimension.
      form: the dimension numbers.

    Returns:
      int64 positions; -1 marks elements of windows that are out of bounds and not clipped.
    """
    rank, batch_shape = len(shape), indices.shape[:-1]
    room = np.array(shape, np.int64) - np.array(sizes, np.int64)
    starts = np.zeros((*batch_shape, rank), np.int64)
    for component, dim in enumerate(form.index_map):
        starts[..., dim] = indices[..., component]
    for dim, batch_dim in zip(form.operand_batching, form.indices_batching, strict=True):
        iota = np.arange(batch_shape[batch_dim])
        starts[..., dim] = iota.reshape([-1 if i == batch_dim else 1 for i in range(len(batch_shape))])
    inside = ((starts >= 0) & (starts <= room)).all(-1)
    starts = np.clip(starts, 0, np.maximum(room, 0))

    strides = np.cumprod([1, *reversed(shape[1:])])[::-1] if rank else np.zeros(0, np.int64)
    positions = (starts * strides).sum(-1).reshape(batch_shape + (1,) * rank)
    for dim, size in enumerate(sizes):
        steps = np.arange(size) * strides[dim]
        positions = positions + steps.reshape([-1 if i == dim else 1 for i in range(rank)])
    if not form.clip:
        positions = np.where(inside.reshape(batch_shape + (1,) * rank), positions, -1)

    hidden = {*form.collapsed, *form.operand_batching}
    kept = [size for dim, size in enumerate(sizes) if dim not in hidden]
    positions = positions.reshape((*batch_shape, *kept))
    out_rank = len(batch_shape) + len(kept)
    batch_dims = [dim for dim in range(out_rank) if dim not in form.window_dims]
    return np.moveaxis(positions, range(out_rank), [*batch_dims, *form.window_dims])


def scatter_sizes(shape: Sequence[int], update_shape: Sequence[int], form: WindowForm) -> list[int]:
    """Window size per operand dimension of a scatter."""
    hidden = {*form.collapsed, *form.operand_batching}
    window = iter(form.window_dims)
    return [1 if dim in hidden else update_shape[next(window)] for dim in range(len(shape))]


class Plan:
    """A static move along one (possibly merged) axis.

    The operand is seen as `[before, extent, after]`, the moved elements as `[before, len(rows), after]`; element j of
    the middle axis is row `rows[j]` of the operand, or out of bounds if that is negative.
    """

    def __init__(self, before: int, extent: int, after: int, rows: np.ndarray):
        self.before, self.extent, self.after, self.rows = before, extent, after, rows
        self.runs = arithmetic_runs(rows)


def plan(shape: Sequence[int], positions: np.ndarray) -> Plan:
    """The way to see `positions` as rows along one merged axis that needs the fewest slices."""
    count = int(np.prod(shape, dtype=np.int64))
    candidates = []
    for first in range(len(shape) + 1):
        for last in range(first, len(shape) + 1):
            before, after = int(np.prod(shape[:first])), int(np.prod(shape[last:]))
            extent = count // (before * after)
            if positions.size % (before * after):
                continue
            grid = positions.reshape(before, -1, after)
            rows = grid[0, :, 0] // after
            inside = rows >= 0
            whole = np.arange(count).reshape(before, extent, after)
            matches = (
                (rows < extent).all()
                and np.array_equal(whole[:, rows[inside], :], grid[:, inside])
                and (grid[:, ~inside] < 0).all()
            )
            if matches:  # it does at the latest when all axes are merged into one
                candidates.append(Plan(before, extent, after, rows))
    return min(candidates, key=lambda candidate: len(candidate.runs))


def arithmetic_runs(rows: np.ndarray) -> list[tuple[int, int, int]]:
    """Splits rows into `(first, step, length)` runs of constant step, greedily."""
    runs, start, values = [], 0, [int(row) for row in rows]
    while start < len(values):
        step = values[start + 1] - values[start] if start + 1 < len(values) else 1
        end = start + 1
        while end < len(values) and values[end] - values[end - 1] == step:
            end += 1
        runs.append((values[start], step, end - start))
        start = end
    return runs
