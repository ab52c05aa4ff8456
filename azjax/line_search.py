"""Backtracking along a step until it is as good as expected and stays inside a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from azjax.types import Array

__all__ = ["LineSearchInfo", "Measurement", "backtracking_line_search"]


class Measurement(NamedTuple):
    """What a candidate is worth."""

    improvement: Array  # [] of the objective over that at the start
    distance: Array  # [] what is bounded: a mean KL divergence, for example


class LineSearchInfo(NamedTuple):
    """How a search went; nothing of it is carried on."""

    accepted: Array  # bool []
    fraction: Array  # [] of the step that was taken, 0 if none was
    backtracks: Array  # int32 [] how often the step was shortened
    improvement: Array  # [] 0 if no step was taken
    distance: Array  # [] 0 if no step was taken


class _State(NamedTuple):
    fraction: Array  # the next to be tried
    tries: Array
    info: LineSearchInfo


def backtracking_line_search(
    measure: Callable[[Array], Measurement],
    start: Array,
    step: Array,
    *,
    expected: Array,
    bound: Array | float,
    accept_ratio: Array | float = 0.1,
    factor: Array | float = 0.8,
    max_backtracks: int = 10,
    usable: Array | bool = True,
) -> tuple[Array, LineSearchInfo]:
    r"""The longest of the steps :math:`\alpha^j s` that keeps what it promises.

    Tried are j = 0, 1, ... ``max_backtracks``; the first is taken whose improvement is positive and at least
    :math:`\rho \alpha^j` times the expected one (Armijo), and whose distance is at most the bound. Anything that is not
    finite fails the comparison. If none passes, the start comes back bit for bit. A `jax.lax.while_loop`: under `vmap`
    each member has a search of its own.

    Args:
      measure: from a candidate `[n]` to what it is worth; on several devices equal on all of them.
      start: `[n]`.
      step: `[n]`, the full step s.
      expected: [], first-order improvement of the full step, gradient . step.
      bound: largest distance.
      accept_ratio: rho; may be traced.
      factor: alpha in (0, 1); may be traced.
      max_backtracks: static.
      usable: False: try nothing, return the start.

    Returns:
      The new point `[n]` and how it was found.

    Examples:
      The step is four times too long: it is halved until it no longer overshoots.

      >>> import jax.numpy as jnp
      >>> measure = lambda x: Measurement(1.0 - jnp.sum((x - 1.0) ** 2), jnp.abs(x).max())
      >>> x, info = backtracking_line_search(
      ...     measure, jnp.zeros(1), jnp.full(1, 4.0), expected=jnp.float32(8.0), bound=9.0, factor=0.5)
      >>> x.tolist(), int(info.backtracks), float(info.improvement)
      ([1.0], 2, 1.0)

    References:
      Schulman, Levine, Moritz, Jordan, Abbeel, 2015, Trust Region Policy Optimization, arXiv 1502.05477, appendix C.
      Nocedal and Wright, 2006, Numerical Optimization, algorithm 3.1.
    """
    zero = jnp.zeros_like(expected)
    nothing = LineSearchInfo(jnp.zeros((), bool), zero, jnp.zeros((), jnp.int32), zero, zero)

    def unfinished(state: _State) -> Array:
        return ~state.info.accepted & (state.tries <= max_backtracks) & usable

    def attempt(state: _State) -> _State:
        improvement, distance = measure(start + state.fraction * step)
        enough = (improvement > 0) & (improvement >= accept_ratio * state.fraction * expected)
        found = LineSearchInfo(enough & (distance <= bound), state.fraction, state.tries, improvement, distance)
        missed = nothing._replace(backtracks=state.tries)
        info = jax.tree.map(lambda a, b: jnp.where(found.accepted, a, b), found, missed)
        return _State(state.fraction * factor, state.tries + 1, info)

    begin = _State(jnp.ones_like(expected), jnp.zeros((), jnp.int32), nothing)
    info = jax.lax.while_loop(unfinished, attempt, begin).info
    return jnp.where(info.accepted, start + info.fraction * step, start), info
