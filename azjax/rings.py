"""Ring buffers of arrays on the device: rows of a batch over the oldest ones."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from azjax.types import Array

__all__ = ["write_ring"]

T = TypeVar("T")


def write_ring(ring: T, rows: T, added: Array, *, size: Array, position: Array) -> tuple[T, Array, Array]:
    """Writes some rows of a batch into a ring, in their order.

    Args:
      ring: leaves ``[C, ...]``; rows are converted to their types.
      rows: the same tree, leaves ``[B, ...]``. Of more than C that are to be added, the last C are.
      added: bool ``[B]``, the rows to add.
      size: int32 [], entries that the ring holds.
      position: int32 [], where the next one goes.

    Returns:
      The ring, its size and its position.

    Examples:
      >>> import jax.numpy as jnp
      >>> ring, yes = jnp.array([1, 2, 3]), jnp.array([True, False, True])
      >>> ring, size, position = write_ring(ring, jnp.array([7, 8, 9]), yes, size=3, position=2)
      >>> ring.tolist(), int(size), int(position)
      ([9, 2, 7], 3, 1)
    """
    capacity = jax.tree.leaves(ring)[0].shape[0]
    rank, number = jnp.cumsum(added) - 1, added.sum(dtype=jnp.int32)
    kept = added & (rank >= number - capacity)
    place = jnp.where(kept, (position + rank) % capacity, capacity)  # beyond the end: dropped

    def write(old: Array, new: Array) -> Array:
        return old.at[place].set(new.astype(old.dtype), mode="drop")

    return jax.tree.map(write, ring, rows), jnp.minimum(size + number, capacity), (position + number) % capacity
