"""Hashes of rows of integers, 64 bits in two words because JAX has no 64-bit integers by default."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from azjax.types import Array

__all__ = ["hash_rows", "new_rows", "same_hash"]


def hash_rows(rows: Array) -> Array:
    """A hash of each row, uint32 `[..., 2]`.

    Every word is mixed with a fixed random key of its place by the finaliser of MurmurHash3, and the results summed.

    Args:
      rows: integers `[..., n]`, taken modulo 2^32. Hashes of rows of different n have nothing to do with each other.

    Examples:
      >>> a, b = hash_rows(jnp.array([[1, 2], [2, 1]]))
      >>> bool((a == b).any())
      False
    """
    words = rows.astype(jnp.uint32)
    keys = np.random.default_rng(20250505).integers(0, 2**32, (2, words.shape[-1]), np.uint32)
    mixed = words[..., None, :] * np.uint32(0x9E3779B1) ^ keys
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(multiplier)
    return jnp.sum(mixed ^ (mixed >> 16), axis=-1, dtype=jnp.uint32)


def same_hash(a: Array, b: Array) -> Array:
    """Which of `[B, 2]` are equal to which of `[C, 2]`, bool `[B, C]`."""
    return (a[:, None, 0] == b[None, :, 0]) & (a[:, None, 1] == b[None, :, 1])


def new_rows(hashes: Array, known: Array, size: Array, accepted: Array) -> Array:
    """Which of a batch are accepted and neither known nor the same as an accepted one before, bool `[B]`.

    Args:
      hashes: uint32 `[B, 2]`.
      known: uint32 `[C, 2]`, of which the first `size` count.
      size: int32 [].
      accepted: bool `[B]`.
    """
    earlier = jnp.arange(len(hashes)) < jnp.arange(len(hashes))[:, None]
    new = accepted & ~(same_hash(hashes, known) & (jnp.arange(len(known)) < size)).any(1)
    return new & ~(same_hash(hashes, hashes) & earlier & new).any(1)
