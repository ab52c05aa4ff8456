"""Rules for factorisations, one matrix per lane: unrolled for very small ones, a loop over columns for larger ones.

Beside being slow for many small matrices, LAPACK can hang: JAX calls it for a batch from a thread of XLA's pool, waits
there for other threads of the same pool, and with a device for each core none is left (seen with jax 0.10.1, two
devices, the mass matrices of humanoid).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from azjax.batching.control_flow import with_original_derivative
from azjax.batching.interpreter import Batch, Value, batched, rule
from azjax.batching.jaxprs import Equation

LARGEST_UNROLLED = 16
"""Larger matrices take a loop: XLA:CPU computes parts of longer recurrences again and again."""
LARGEST_MATRIX = 64
"""Larger ones are left to `jax.vmap`, that is to LAPACK."""


@rule("cholesky")
def cholesky(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Column by column; all NaN where a matrix is not positive definite, as in JAX."""
    aval = eqn.in_avals[0]
    if aval.shape[-1] > LARGEST_MATRIX or 0 in aval.shape or aval.dtype not in (np.float32, np.float64):
        return None
    factorise = _cholesky if aval.shape[-1] <= LARGEST_UNROLLED else _cholesky_loop
    return with_original_derivative(eqn, inputs, batch, lambda values: [factorise(values[0].array)])


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


def _cholesky_loop(matrix: Any) -> Any:
    """The same for larger matrices: each column of the factor is taken off the rest of the matrix."""
    size = matrix.shape[-2]
    row = lax.broadcasted_iota(jnp.int32, (size, 1), 0)

    def take_off(j: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        rest, factor = carry
        column = lax.dynamic_index_in_dim(rest, j, rest.ndim - 2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(column, j, column.ndim - 2)
        column = jnp.where(row >= j, column / jnp.sqrt(pivot), 0)
        factor = lax.dynamic_update_index_in_dim(factor, column, j, factor.ndim - 2)
        return rest - column[..., :, None, :] * column[..., None, :, :], factor

    factor = lax.fori_loop(0, size, take_off, (matrix, jnp.zeros_like(matrix)))[1]
    return jnp.where(factor[..., -1:, -1:, :] > 0, factor, jnp.nan)  # a bad pivot anywhere spoils the last one


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
    solve = _substitute if matrix.shape[-2] <= LARGEST_UNROLLED else _substitute_loop
    solution = solve(matrix, right, lower, unit_diagonal)
    return batched(solution if left_side else jnp.swapaxes(solution, -3, -2))


def _substitute(matrix: Any, right: Any, lower: bool, unit_diagonal: bool) -> Any:
    """Solutions `[..., n, m, B]` for triangular `[..., n, n, B]`."""
    size = matrix.shape[-2]
    rows: dict[int, Any] = {}
    for i in range(size) if lower else reversed(range(size)):
        row = right[..., i, :, :]
        for k, done in rows.items():
            row = row - matrix[..., i, k, None, :] * done
        rows[i] = row if unit_diagonal else row / matrix[..., i, i, None, :]
    return jnp.stack([rows[i] for i in range(size)], axis=-3)


def _substitute_loop(matrix: Any, right: Any, lower: bool, unit_diagonal: bool) -> Any:
    """The same for larger matrices: each unknown is taken out of the equations that follow."""
    size = matrix.shape[-2]
    row = lax.broadcasted_iota(jnp.int32, (size, 1, 1), 0)

    def take_out(step: Any, right: Any) -> Any:
        i = step if lower else size - 1 - step
        column = lax.dynamic_index_in_dim(matrix, i, matrix.ndim - 2)  # [..., n, 1, B]
        known = lax.dynamic_index_in_dim(right, i, right.ndim - 3)  # [..., 1, m, B]
        if not unit_diagonal:
            known = known / lax.dynamic_index_in_dim(column, i, column.ndim - 3)
        # The other triangle may hold anything, NaN included, and has no part in the result or its derivative.
        column = jnp.where(row > i if lower else row < i, column, 0)
        return jnp.where(row == i, known, right - column * known)

    return lax.fori_loop(0, size, take_out, right)
