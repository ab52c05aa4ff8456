"""Means over the entries that count, on one device or over all of them, and the order in which rows are visited."""

from __future__ import annotations

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from azjax.types import Array, Key


def masked_mean(x: Array, mask: Array, axis_name: str | None = None) -> Array:
    """Mean of the entries where ``mask`` holds, over all devices of ``axis_name``; 0 if there are none."""
    total = jnp.where(mask, x, 0.0).sum()
    count = mask.sum(dtype=jnp.float32)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
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
