"""Conjugate gradients for products with a matrix that is never formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from azjax.types import Array

__all__ = ["ConjugateGradientInfo", "conjugate_gradient"]

_SMALLEST_TOLERANCE = 1e-12  # below it the squares of a residual leave the range of float32


class ConjugateGradientInfo(NamedTuple):
    """How a solution was found."""

    residual: Array  # float [] |b - A x| / |b| as the recursion has it
    iterations: Array  # int32 [] products with A
    failed: Array  # bool [] A has a direction without positive curvature, or a number was not finite


class _State(NamedTuple):
    solution: Array
    residual: Array
    direction: Array
    alignment: Array  # [] residual . preconditioner(residual)
    past: Array  # [iterations, n] earlier residuals, each divided by the root of its alignment; zeros to come
    iterations: Array
    failed: Array


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Array,
    *,
    iterations: int = 10,
    tolerance: Array | float = 1e-5,
    preconditioner: Callable[[Array], Array] | None = None,
) -> tuple[Array, ConjugateGradientInfo]:
    r"""Solves :math:`A x = b` for a symmetric positive definite A, from x = 0.

    The right-hand side is scaled to length 1, so that neither its magnitude nor that of x matters to float32. Each new
    residual is made orthogonal to all before it. In exact arithmetic it is; float32 loses that within a dozen
    iterations, which costs more of them and lets the last digit of a product decide the third digit of x. It takes
    `iterations` vectors of memory. A `jax.lax.while_loop`: under `vmap` each member stops by itself, and its solution
    stays as it is while others go on.

    Args:
      product: from v `[n]` to A v `[n]`; on several devices equal on all of them.
      b: `[n]`.
      iterations: static, the largest number of products.
      tolerance: the residual relative to b at which to stop; may be traced.
      preconditioner: from r `[n]` to an approximation of A^-1 r, itself a symmetric positive definite matrix.

    Returns:
      The solution `[n]` and how it was found. If A turns out not to be positive definite, or a number not finite, the
      solution is that of the last good iteration and ``info.failed`` is True. For b = 0 it is 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> x, info = conjugate_gradient(lambda v: jnp.array([2., 4.]) * v, jnp.array([2., 2.]))
      >>> x.tolist(), int(info.iterations), bool(info.failed)
      ([1.0, 0.5], 2, False)

    References:
      Hestenes and Stiefel, 1952, Methods of Conjugate Gradients for Solving Linear Systems. Nocedal and Wright, 2006,
      Numerical Optimization, algorithm 5.3. Golub and Van Loan, 2013, Matrix Computations, section 10.3.4, on
      reorthogonalisation.
    """
    precondition = preconditioner or (lambda r: r)
    # In two steps, for a gradient of 1e-20 has a square of 0 in float32.
    largest = jnp.max(jnp.abs(b), initial=0.0)
    scaled = b / _or_one(largest)
    length = largest * jnp.sqrt(_dot(scaled, scaled))
    unit = b / _or_one(length)
    limit = jnp.square(jnp.maximum(tolerance, _SMALLEST_TOLERANCE))

    def unfinished(state: _State) -> Array:
        return (_dot(state.residual, state.residual) > limit) & (state.iterations < iterations) & ~state.failed

    def advance(state: _State) -> _State:
        image = product(state.direction)
        curvature = _dot(state.direction, image)
        size = state.alignment / curvature
        solution = state.solution + size * state.direction
        past = state.past.at[state.iterations].set(state.residual / jnp.sqrt(state.alignment))
        residual = _orthogonal(state.residual - size * image, past, precondition)
        preconditioned = precondition(residual)
        alignment = _dot(residual, preconditioned)
        # A NaN anywhere makes one of the two comparisons False; the residual of an exact solution is 0.
        good = (curvature > 0) & (alignment >= 0) & jnp.isfinite(alignment) & jnp.isfinite(_dot(solution, solution))
        direction = preconditioned + alignment / state.alignment * state.direction
        after = _State(solution, residual, direction, alignment, past, state.iterations, state.failed)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        return kept._replace(iterations=state.iterations + 1, failed=~good)

    first = precondition(unit)
    start = _State(
        solution=jnp.zeros_like(unit),
        residual=unit,
        direction=first,
        alignment=_dot(unit, first),
        past=jnp.zeros((iterations, *unit.shape), unit.dtype),
        iterations=jnp.zeros((), jnp.int32),
        failed=~jnp.isfinite(length),
    )
    end = jax.lax.while_loop(unfinished, advance, start)
    info = ConjugateGradientInfo(jnp.sqrt(_dot(end.residual, end.residual)), end.iterations, end.failed)
    return jnp.where(jnp.isfinite(length), length, 0.0) * end.solution, info


def _orthogonal(residual: Array, past: Array, precondition: Callable[[Array], Array]) -> Array:
    """The residual without its parts along earlier ones, in the inner product of the preconditioner."""
    parts = jnp.sum(past * precondition(residual), axis=1, keepdims=True)
    return residual - jnp.sum(parts * past, axis=0)


def _dot(a: Array, b: Array) -> Array:
    # Not a dot product of XLA's, which accelerators compute with fewer digits.
    return jnp.sum(a * b)


def _or_one(x: Array) -> Array:
    """A divisor: x, or 1 in place of 0."""
    return jnp.where(x > 0, x, 1.0)
