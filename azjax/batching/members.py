"""Lanes of many members in one axis: what ``jax.vmap`` makes of a function of batch-last arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def fold_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an axis that ``jax.vmap`` maps part of the lanes.

    A population of P members with B lanes each, ``jax.vmap`` over its members, would put P in front and leave B, which
    is small if the members have few lanes, alone on the minor-most axis. Folded, the function sees P x B lanes, those
    of the first member first, and every condition inside it (``lax.cond``) stays a condition.

    Args:
      function: of positional pytrees whose leaves have a batch on their last axis, not necessarily the same size in
        each, to such a pytree. What it does with more lanes must be what it does with each part of them.

    Returns:
      A function of the same signature and, where nothing maps it, of the same values.
    """

    @jax.custom_batching.custom_vmap
    def folded(*arguments: Any) -> Any:
        return function(*arguments)

    @folded.def_vmap
    def rule(size: int, mapped: list[Any], *arguments: Any) -> Any:
        def join(leaf: Any, is_mapped: bool) -> Any:
            whole = leaf if is_mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))
            moved = jnp.moveaxis(whole, 0, -2)
            return moved.reshape(*moved.shape[:-2], size * moved.shape[-1])

        def part(leaf: Any) -> Any:
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], size, leaf.shape[-1] // size), -2, 0)

        result = jax.tree.map(part, folded(*jax.tree.map(join, arguments, tuple(mapped))))
        return result, jax.tree.map(lambda _: True, result)

    return folded  # type: ignore[no-any-return]
