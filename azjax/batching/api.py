"""The two public functions: `minor_vmap` and `list_fallbacks`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from azjax.batching import (  # noqa: F401  (they fill the tables of rules)
    components,
    control_flow,
    elementary,
    indexing,
    linear_algebra,
    rules,
)
from azjax.batching.interpreter import Batch, batched, call_traced

CPU_BLOCK = 256
"""Lanes that a CPU core does best at once: enough to fill SIMD units, few enough for its cache."""


def minor_vmap(
    function: Callable[..., Any], *, block: int | None = None, fallbacks: list[str] | None = None
) -> Callable[..., Any]:
    """Maps `function` over the last axis of all its arguments.

    The same meaning as `jax.vmap(function, in_axes=-1, out_axes=-1)`. `function` is traced once on unbatched shapes and
    re-emitted primitive by primitive with the batch on the last axis throughout. Primitives without a rule are left to
    `jax.vmap` one by one. Values that `function` closes over are shared by all lanes. Composes with `jit`, `vmap`,
    `grad`, `scan` and `shard_map`.

    Args:
      function: a function of positional pytrees of arrays.
      block: process the batch in equal blocks of at most this many lanes, one after the other, so that intermediate
        values stay in a CPU's cache; a batch without a divisor between half of it and itself stays whole.
        ``None``: all lanes at once, which is what an accelerator wants.
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
        size = _block_size(batch.size, block)
        if size < batch.size:
            whole = minor_vmap(function, fallbacks=fallbacks)
            return _join(jax.lax.map(lambda part: whole(*part), _split(arguments, size)))
        results, shapes = call_traced(lambda *flat: function(*jax.tree.unflatten(tree, flat)), batched(*leaves), batch)
        out_leaves, out_tree = jax.tree.flatten(shapes)
        arrays = [batch.full(result, leaf.shape) for result, leaf in zip(results, out_leaves, strict=True)]
        return jax.tree.unflatten(out_tree, arrays)

    return mapped


def _block_size(batch: int, block: int | None) -> int:
    """The largest divisor of the batch size that is at most ``block``, if it is worth a loop."""
    if block is None or batch <= block:
        return batch
    size = next(size for size in range(block, 0, -1) if batch % size == 0)
    return size if 2 * size >= block else batch


def _split(tree: Any, size: int) -> Any:
    """Leaves ``[..., B]`` as ``[B / size, ..., size]``."""
    leaves = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], x.shape[-1] // size, size), -2, 0), leaves)


def _join(tree: Any) -> Any:
    """Leaves ``[blocks, ..., size]`` as ``[..., B]``."""
    moved = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), tree)
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]), moved)


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
