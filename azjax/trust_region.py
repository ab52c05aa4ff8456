"""One step of a natural gradient to the edge of a trust region."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from azjax.conjugate_gradient import conjugate_gradient
from azjax.line_search import LineSearchInfo, Measurement, backtracking_line_search
from azjax.types import Array

__all__ = ["Search", "TrustRegionInfo", "trust_region_step"]


_INSIDE = 1.0 - 1e-4
"""Part of the bound at which the quadratic model is aimed: at its very edge rounding would decide on the full step."""


class Search(NamedTuple):
    """How directions and step lengths are searched; counts are static, the rest may be traced."""

    accept_ratio: Array | float = 0.1  # least part of the expected improvement: see ``backtracking_line_search``
    backtrack_factor: Array | float = 0.8
    max_backtracks: int = 10
    tolerance: Array | float = 1e-5  # of conjugate gradients, relative
    iterations: int = 10  # of conjugate gradients at most


class TrustRegionInfo(NamedTuple):
    """How a step was found; nothing of it is carried on."""

    residual: Array  # [] of the linear system, relative to the gradient
    iterations: Array  # int32 [] of conjugate gradients
    expected_improvement: Array  # [] of the full step, to first order; 0 if there is none
    line_search: LineSearchInfo


def trust_region_step(
    theta: Array,
    gradient: Array,
    product: Callable[[Array], Array],
    measure: Callable[[Array], Measurement],
    *,
    bound: Array | float,
    search: Search,
    longest: float = float("inf"),
) -> tuple[Array, TrustRegionInfo]:
    r"""Increases an objective while a distance, quadratic to leading order, stays within a bound.

    .. math::
        s = H^{-1} g, \qquad \beta = \sqrt{2 \delta / (s^T H s)}, \qquad
        \theta' = \theta + \alpha^j \beta s

    with s from conjugate gradients and j from a backtracking line search. The full step has
    :math:`\tfrac12 (\beta s)^T H (\beta s) = \delta` however H is scaled. (The published variants with
    :math:`g^T H g`, or with :math:`\delta` for :math:`2 \delta`, do not.)

    Args:
      theta: `[n]`, where to start.
      gradient: `[n]`, g of the objective.
      product: from v `[n]` to H v `[n]`, the Hessian of the distance with its damping.
      measure: improvement of the objective and distance from the start, of a candidate `[n]`.
      bound: delta.
      search: settings; its ``backtrack_factor`` is alpha.
      longest: largest beta: 1 where s itself is the best that there is, as for least squares.

    Returns:
      The new parameters `[n]` and how they were found. Without positive curvature, with anything that is not finite, or
      if no candidate passes, they are theta bit for bit.

    References:
      Schulman, Levine, Moritz, Jordan, Abbeel, 2015, Trust Region Policy Optimization, arXiv 1502.05477, appendix C.
    """
    direction, solved = conjugate_gradient(product, gradient, iterations=search.iterations, tolerance=search.tolerance)
    # In units of its largest entry, for the square of a small gradient's direction leaves the range of float32.
    size = jnp.max(jnp.abs(direction), initial=0.0)
    unit = direction / jnp.where(size > 0, size, 1.0)
    curvature = jnp.sum(unit * product(unit))
    beta = jnp.minimum(jnp.sqrt(2.0 * _INSIDE * bound / jnp.where(curvature > 0, curvature, 1.0)), longest * size)
    usable = ~solved.failed & (curvature > 0) & jnp.isfinite(curvature) & jnp.isfinite(beta)
    # Selections, not products: a gradient that is not finite stays out of what is reported, too.
    step = jnp.where(usable, beta * unit, 0.0)
    expected = jnp.where(usable, jnp.sum(gradient * step), 0.0)
    theta, found = backtracking_line_search(
        measure,
        theta,
        step,
        expected=expected,
        bound=bound,
        accept_ratio=search.accept_ratio,
        factor=search.backtrack_factor,
        max_backtracks=search.max_backtracks,
        usable=usable,
    )
    return theta, TrustRegionInfo(solved.residual, solved.iterations, expected, found)
