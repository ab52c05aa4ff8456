"""A buffer of the best tasks so far, kept in the order of their scores, for proposers that replay."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Key

__all__ = ["EMPTY", "Buffer", "init_buffer", "keep_best", "mean_by_place", "replay_or_sample"]

EMPTY = -jnp.inf
"""The score of a place without a task, and of a task that shall not stay."""


@flax.struct.dataclass
class Buffer:
    """Tasks, the one with the highest score first."""

    tasks: Proposal  # [K]
    score: Array  # float32 [K]; EMPTY where there is no task
    attempted: Array  # int32 [K] the update in which it was last attempted

    @property
    def count(self) -> Array:
        """How many tasks there are, int32 []."""
        return jnp.sum(self.score > EMPTY, dtype=jnp.int32)


def init_buffer(family: TaskFamily, capacity: int) -> Buffer:
    """A buffer without tasks."""
    tasks = Proposal(jnp.zeros(capacity, jnp.int32), jnp.zeros((capacity, family.size)))
    return Buffer(tasks, jnp.full(capacity, EMPTY), jnp.zeros(capacity, jnp.int32))


def replay_or_sample(
    buffer: Buffer, family: TaskFamily, keys: Key, *, fresh: float, draw: Callable[[Key], Array]
) -> tuple[Proposal, Array]:
    """Tasks from the buffer, or uniform ones with a probability, and always from an empty buffer.

    Args:
      buffer: K tasks at most.
      family: whose tasks they are.
      keys: ``[N]``, consumed.
      fresh: the probability of a uniform task.
      draw: a place of the buffer, int32 [], from a key.

    Returns:
      Proposals ``[N]``, and their memo, int32 ``[N]``: the place, -1 for a uniform task.
    """

    def one(key: Key) -> tuple[Proposal, Array]:
        key_fresh, key_place, key_task = jax.random.split(key, 3)
        new = jax.random.bernoulli(key_fresh, fresh) | (buffer.count == 0)
        place = draw(key_place)
        proposal = jax.tree.map(lambda x, y: jnp.where(new, x, y[place]), family.sample(key_task), buffer.tasks)
        return proposal, jnp.where(new, -1, place)

    return jax.vmap(one)(keys)


def mean_by_place(place: Array, capacity: int, *values: Array) -> tuple[Array, ...]:
    """Which places were attempted, bool ``[K]``, and the mean there of each of ``values`` ``[N]``; place -1 is none."""
    place = jnp.where(place < 0, capacity, place)

    def total(x: Array) -> Array:
        return jnp.zeros(capacity).at[place].add(x, mode="drop")

    count = total(jnp.ones(place.shape))
    return count > 0, *(total(x) / jnp.maximum(count, 1.0) for x in values)


def keep_best(buffer: Buffer, arrived: Proposal, score: Array, update: Array) -> Buffer:
    """The best of the buffer and of tasks ``[N]`` that were attempted in this update; equals stay in their order."""
    attempted = jnp.full(score.shape, update, jnp.int32)
    pairs = ((buffer.tasks, arrived), (buffer.score, score), (buffer.attempted, attempted))
    tasks, scores, times = (jax.tree.map(lambda x, y: jnp.concatenate([x, y]), *pair) for pair in pairs)
    best, order = jax.lax.top_k(scores, buffer.score.shape[0])
    return Buffer(jax.tree.map(lambda x: x[order], tasks), best, times[order])
