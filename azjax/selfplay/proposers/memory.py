"""What proposers remember of past tasks: a ring of the most recent ones."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from azjax.rings import write_ring
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Key

__all__ = ["Memory", "features", "init_memory", "recall", "remember"]


@flax.struct.dataclass
class Memory:
    """A ring of past tasks and how well they went."""

    tasks: Proposal  # [M]
    rate: Array  # float32 [M] share of the attempts that succeeded
    count: Array  # int32 [] entries that hold a task
    position: Array  # int32 [] where the next one goes


def init_memory(family: TaskFamily, capacity: int) -> Memory:
    """A memory without tasks."""
    tasks = Proposal(jnp.zeros(capacity, jnp.int32), jnp.zeros((capacity, family.size)))
    return Memory(tasks, jnp.zeros(capacity), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def remember(memory: Memory, proposal: Proposal, rate: Array, accepted: Array) -> Memory:
    """With the accepted ones among proposals ``[N]``, the last M of them, in the ring."""
    (tasks, rates), count, position = write_ring(
        (memory.tasks, memory.rate), (proposal, rate), accepted, size=memory.count, position=memory.position
    )
    return Memory(tasks, rates, count, position)


def recall(memory: Memory, key: Key, number: int) -> tuple[Proposal, Array, Array]:
    """Tasks, their rates and whether there are any, ``[number]`` each, drawn with replacement; ``key`` is consumed."""
    place = jax.random.randint(key, (number,), 0, jnp.maximum(memory.count, 1))
    tasks = jax.tree.map(lambda x: x[place], memory.tasks)
    return tasks, memory.rate[place], jnp.broadcast_to(memory.count > 0, (number,))


def features(family: TaskFamily, proposal: Proposal) -> Array:
    """What a network sees of proposals ``[...]``: type (one-hot) and cube, ``[..., types + D]``."""
    return jnp.concatenate([jax.nn.one_hot(proposal.type, len(family.types)), proposal.cube], axis=-1)
