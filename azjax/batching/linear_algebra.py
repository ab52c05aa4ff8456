"""Rules for factorisations of very small matrices, unrolled, one matrix per lane."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from azjax.batching.control_flow import with_original_derivative
from azjax.batching.interpreter import Batch, Value, batched, rule
from azjax.batching.jaxprs import Equation

LARGEST_MATRIX = 8
"""Larger matrices are left to `jax.vmap`, that is to LAPACK: long unrolled recurrences compile and run slowly."""


@rule("cholesky")
def cholesky(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Column by column; all NaN where a matrix is not positive definite, as in JAX."""
    aval = eqn.in_avals[0]
    if aval.shape[-1] > LARGEST_MATRIX or 0 in aval.shape or aval.dtype not in (np.float32, np.float64):
        return None
    return with_original_derivative(eqn, inputs, batch, lambda values: [_cholesky(values[0].array)])


def _cholesky(matrix: Any) -> Any:
    """Lower factor of `[..., n, n, B]`."""
    columns: list[Any] = []  # column k from row k on: [..., n - k, B]
    pivot = matrix[..., 0, :1, :]
    for j in range(matrix.shape[-2]):
        column = matrix[..., j:, j, :]
        for k, done in enumerate(columns):
            tail = done[..., j - k :, :]
            column = column - tail * tail[..., :1, :]
        pivot = column[..., :1, :]
        columns.append(column / jnp.sqrt(pivot))
    padding, zero = [(0, 0, 0)] * (matrix.ndim - 3), jnp.zeros((), matrix.dtype)
    full = [lax.pad(column, zero, [*padding, (k, 0, 0), (0, 0, 0)]) for k, column in enumerate(columns)]
    factor = jnp.stack(full, axis=-2)
    return jnp.where(pivot[..., None, :] > 0, factor, jnp.nan)  # a bad pivot anywhere spoils the last one


@rule("triangular_solve")
def triangular_solve(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Substitution, row by row."""
    params, aval = eqn.params, eqn.in_avals[0]
    left_side, lower, transposed = params["left_side"], params["lower"], params["transpose_a"]
    unit_diagonal, real = params["unit_diagonal"], aval.dtype in (np.float32, np.float64)
    if aval.shape[-1] > LARGEST_MATRIX or not real or any(0 in aval.shape for aval in eqn.in_avals):
        return None
    matrix, right = (batch.full(value, aval.shape) for value, aval in zip(inputs, eqn.in_avals, strict=True))
    if not left_side:  # X A = B is A^T X^T = B^T
        right, transposed = jnp.swapaxes(right, -3, -2), not transposed
    if transposed:
        matrix, lower = jnp.swapaxes(matrix, -3, -2), not lower
    size = matrix.shape[-2]
    rows: dict[int, Any] = {}
    for i in range(size) if lower else reversed(range(size)):
        row = right[..., i, :, :]
        for k, done in rows.items():
            row = row - matrix[..., i, k, None, :] * done
        rows[i] = row if unit_diagonal else row / matrix[..., i, i, None, :]
    solution = jnp.stack([rows[i] for i in range(size)], axis=-3)
    return batched(solution if left_side else jnp.swapaxes(solution, -3, -2))
