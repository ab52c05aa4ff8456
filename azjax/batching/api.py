"""The two public functions: `minor_vmap` and `list_fallbacks`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from azjax.batching import control_flow, indexing, linear_algebra, rules  # noqa: F401  (they fill the table of rules)
from azjax.batching.interpreter import Batch, batched, call_traced


def minor_vmap(function: Callable[..., Any], *, fallbacks: list[str] | None = None) -> Callable[..., Any]:
    """Maps `function` over the last axis of all its arguments.

    The same meaning as `jax.vmap(function, in_axes=-1, out_axes=-1)`. `function` is traced once on unbatched shapes and
    re-emitted primitive by primitive with the batch on the last axis throughout. Primitives without a rule are left to
    `jax.vmap` one by one. Values that `function` closes over are shared by all lanes. Composes with `jit`, `vmap`,
    `grad`, `scan` and `shard_map`.

    Args:
      function: a function of positional pytrees of arrays.
      fallbacks: if given, a list to which a line is appended for every primitive left to `jax.vmap`.

    Returns:
      A function of the same signature on arrays `[..., B]` and PRNG keys `[B]` (typed) or `[2, B]` (raw), returning
      arrays `[..., B]`.

    Raises:
      ValueError: when called without array arguments, with a leaf that has no batch axis, or with leaves whose last
        axes differ in size.

    Examples:
      >>> import jax.numpy as jnp
      >>> norm = minor_vmap(lambda x: jnp.sqrt((x * x).sum()))
      >>> norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])).tolist()
      [5.0, 2.0]
    """

    @functools.wraps(function)
    def mapped(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        leaves = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in leaves]
        batch = Batch(_batch_size(arguments), fallbacks)
        if batch.size == 0:
            return jax.vmap(function, in_axes=-1, out_axes=-1)(*arguments)
        results, shapes = call_traced(lambda *flat: function(*jax.tree.unflatten(tree, flat)), batched(*leaves), batch)
        out_leaves, out_tree = jax.tree.flatten(shapes)
        arrays = [batch.full(result, leaf.shape) for result, leaf in zip(results, out_leaves, strict=True)]
        return jax.tree.unflatten(out_tree, arrays)

    return mapped


def _batch_size(arguments: tuple[Any, ...]) -> int:
    """The common size of the last axes."""
    sizes: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        place = f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}"
        if not np.shape(leaf):
            raise ValueError(f"minor_vmap: {place} is a scalar, it has no batch axis")
        sizes.setdefault(np.shape(leaf)[-1], place)
    if not sizes:
        raise ValueError("minor_vmap: the function was called without array arguments, so the batch size is unknown")
    if len(sizes) > 1:
        listed = ", ".join(f"{size} ({place})" for size, place in sizes.items())
        raise ValueError(f"minor_vmap: the last axes differ in size: {listed}")
    return next(iter(sizes))


def list_fallbacks(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """What `minor_vmap(function)(*arguments)` leaves to `jax.vmap`: one line per primitive; nothing is executed."""
    fallbacks: list[str] = []
    jax.eval_shape(minor_vmap(function, fallbacks=fallbacks), *arguments)
    return fallbacks
