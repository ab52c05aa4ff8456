"""Means over the entries that count, on one device or over all of them, and the order in which rows are visited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.flatten_util
import jax.numpy as jnp

from azjax.config import require
from azjax.types import Array, Info, Key

C = TypeVar("C")
T = TypeVar("T")


def sum_over_devices(tree: T, axis_name: str | None) -> T:
    """Sums over the devices of ``axis_name``; the tree itself if there is no such axis."""
    if axis_name is None:
        return tree
    return jax.lax.psum(tree, axis_name)  # type: ignore[no-any-return]


def row_weights(mask: Array, axis_name: str | None = None) -> Array:
    """Weights of the entries in a mean over those where ``mask`` holds: they add up to 1 over all devices."""
    count = sum_over_devices(mask.sum(dtype=float), axis_name)
    return mask / jnp.maximum(count, 1.0)


def masked_mean(x: Array, mask: Array, axis_name: str | None = None) -> Array:
    """Mean of the entries where ``mask`` holds, over all devices of ``axis_name``; 0 if there are none."""
    total, count = sum_over_devices((jnp.where(mask, x, 0.0).sum(), mask.sum(dtype=jnp.float32)), axis_name)
    return total / jnp.maximum(count, 1.0)


def normalize_advantages(advantages: Array, mask: Array, axis_name: str | None = None) -> Array:
    """Advantages with mean 0 and standard deviation 1 over the entries where ``mask`` holds, on all devices."""
    centred = advantages - masked_mean(advantages, mask, axis_name)
    return centred * jax.lax.rsqrt(masked_mean(jnp.square(centred), mask, axis_name) + 1e-8)


def mean_over_devices(means: Any, mask: Array, axis_name: str) -> Any:
    """Means over the unmasked entries of all devices from those of each device, which may mask differently many.

    Everything travels in one array, so that the devices meet once.
    """
    packed, unpack = jax.flatten_util.ravel_pytree(means)
    count = mask.sum(dtype=jnp.float32)
    total = jax.lax.psum(jnp.append(packed * count, count), axis_name)
    return unpack(total[:-1] / jnp.maximum(total[-1], 1.0))


def scan_minibatches(
    step: Callable[[C, Any], tuple[C, Info]],
    carry: C,
    rows: Any,
    key: Key,
    *,
    epochs: int,
    minibatches: int,
    axis_name: str | None = None,
) -> tuple[C, Info]:
    """Passes over all rows, each in an order of its own, cut into minibatches.

    Args:
      step: from what is carried and a minibatch to what is carried and diagnostics.
      carry: what the first step gets.
      rows: a pytree with a common leading axis; each device its own rows.
      key: for the orders, on each device of ``axis_name`` others; consumed.
      epochs: passes.
      minibatches: steps in a pass.
      axis_name: the device axis, if there is one.

    Returns:
      What the last step returned, and diagnostics ``[epochs, minibatches, ...]``.

    Raises:
      ConfigError: if the rows can't be divided.
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    require(size % minibatches == 0, f"{size} decisions per device can't be cut into {minibatches} equal minibatches")

    def epoch(carry: C, key: Key) -> tuple[C, Info]:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        order = shuffled(key, size).reshape(minibatches, -1)
        return jax.lax.scan(lambda c, chosen: step(c, jax.tree.map(lambda x: x[chosen], rows)), carry, order)

    return jax.lax.scan(epoch, carry, jax.random.split(key, epochs))


def shuffled(key: Key, size: int) -> Array:
    """The numbers below ``size`` in random order, int32 ``[size]``.

    A CPU sorts one array of numbers four times as fast as it sorts keys together with values; so small numbers are
    sorted with the random bits above them. One pair in 2^16, or fewer, ties and keeps its order.
    """
    words = jax.random.bits(key, (size,))
    digits = max(size - 1, 1).bit_length()
    if digits > 16:
        return jnp.argsort(words).astype(jnp.int32)
    numbered = (words << digits) | jnp.arange(size, dtype=jnp.uint32)
    return (jnp.sort(numbered) & jnp.uint32((1 << digits) - 1)).astype(jnp.int32)
