"""Ring buffers of verified triplets (program, input, output) on the device, one for each task type.

A buffer has a fixed number of places, so nothing is compiled anew as it fills. A new triplet takes the place of the
oldest: the reference code keeps the oldest instead, and stands still when it is full. A triplet that is there already
is refused, and so are more than `per_class` triplets with the same meaning.

Entries are int8 and carry `E` examples of one program: 1 for deduction and abduction, several for induction.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import require
from azjax.reasoning.hashing import hash_rows, new_rows, same_hash
from azjax.reasoning.language import MAX_INPUTS, Program, Value, as_int32, empty_values, zero_program
from azjax.reasoning.text import stack_values
from azjax.reasoning.verification import probe
from azjax.rings import write_ring
from azjax.types import Array, Key

__all__ = [
    "Triplet",
    "TripletBuffer",
    "init_buffer",
    "push",
    "sample_newest",
    "sample_recent",
    "sample_uniform",
    "zero_triplet",
]


class Triplet(NamedTuple):
    """A program with inputs and what it gives for them; any leading axes."""

    program: Program  # [...]
    inputs: Value  # [..., E, MAX_INPUTS]
    outputs: Value  # [..., E]


class TripletBuffer(NamedTuple):
    """The newest `C` triplets."""

    triplets: Triplet  # [C] int8
    key: Array  # uint32 [C, 2] hashes of programs and inputs: equal for equal triplets
    meaning: Array  # uint32 [C, 2] semantic hashes of the programs
    step: Array  # int32 [C] when each was added; only the caller gives it a meaning
    size: Array  # int32 [] entries that are filled: the first ones
    next: Array  # int32 [] where the next one goes; once full, the oldest
    newest: Array  # int32 [] how many the last push added


def zero_triplet(examples: int = 1) -> Triplet:
    """The reserved program of 0 lines with inputs `[1 2 3]`, `[1 2 4]`, ..., which are also its outputs.

    Args:
      examples: E, at most 48 (the last item stays within bounds).

    Returns:
      One triplet, without leading axes.
    """
    rows = [stack_values([[1, 2, 3 + n], None]) for n in range(examples)]
    inputs: Value = jax.tree.map(lambda *x: np.stack(x), *rows)
    outputs = jax.tree.map(lambda x: x[:, 0], inputs)
    return Triplet(zero_program(), *jax.tree.map(jnp.asarray, (inputs, outputs)))


def init_buffer(capacity: int, examples: int = 1) -> TripletBuffer:
    """A buffer that holds the zero triplet.

    Args:
      capacity: C, at least 1.
      examples: E, 1 to 48.

    Returns:
      The buffer.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> buffer = init_buffer(4)
      >>> int(buffer.size), buffer.triplets.program.lines.shape, buffer.triplets.inputs.items.shape
      (1, (4, 4, 4), (4, 1, 2, 5))
    """
    require(capacity >= 1, f"capacity is {capacity}; a buffer holds at least 1 triplet")
    require(1 <= examples <= 48, f"examples is {examples}; it must lie between 1 and 48")
    empty = Triplet(
        zero_program((capacity,)), empty_values((capacity, examples, MAX_INPUTS)), empty_values((capacity, examples))
    )
    zero = zero_triplet(examples)
    meaning = probe(zero.program).hash
    key = _keys(jax.tree.map(lambda x: x[None], zero))
    triplets = jax.tree.map(lambda rows, x: rows.at[0].set(x).astype(jnp.int8), empty, zero)
    number = jnp.zeros((), jnp.int32)
    return TripletBuffer(
        triplets,
        jnp.zeros((capacity, 2), jnp.uint32).at[:1].set(key),
        jnp.zeros((capacity, 2), jnp.uint32).at[0].set(meaning),
        jnp.zeros(capacity, jnp.int32),
        size=number + 1,
        next=number + (1 if capacity > 1 else 0),
        newest=number + 1,
    )


def push(
    buffer: TripletBuffer,
    triplets: Triplet,
    meaning: Array,
    accepted: Array,
    step: Array | int,
    *,
    per_class: int | None = None,
) -> tuple[TripletBuffer, Array]:
    """Adds the triplets that were accepted and are new, over the oldest ones.

    Args:
      buffer: `C` places, `E` examples.
      triplets: `[B]`, `E` examples each, B at most C. They must have been verified: nothing is executed here.
      meaning: uint32 `[B, 2]`, the programs' semantic hashes (`probe`).
      accepted: bool `[B]`; the others are left out.
      step: [], kept with each.
      per_class: how many triplets with the same meaning there may be, static; None: any number.

    Returns:
      The buffer, and which were added, bool `[B]`. Of equal triplets in a batch the first is.

    Raises:
      ConfigError: if the batch is larger than the buffer.
    """
    capacity, batch = buffer.step.shape[0], accepted.shape[0]
    require(batch <= capacity, f"{batch} triplets do not fit in a buffer of {capacity}; push fewer at a time")
    filled = jnp.arange(capacity) < buffer.size
    key = _keys(triplets)
    added = new_rows(key, buffer.key, buffer.size, accepted)
    if per_class is not None:
        earlier = jnp.arange(batch) < jnp.arange(batch)[:, None]
        # An earlier one of the batch that is refused here counts as well: its class is full then, for both.
        present = (same_hash(meaning, buffer.meaning) & filled).sum(1)
        present += (same_hash(meaning, meaning) & earlier & added).sum(1)
        added &= present < per_class
    rows = (triplets, key, meaning, jnp.broadcast_to(jnp.asarray(step, jnp.int32), (batch,)))
    ring = (buffer.triplets, buffer.key, buffer.meaning, buffer.step)
    written, size, position = write_ring(ring, rows, added, size=buffer.size, position=buffer.next)
    return TripletBuffer(*written, size=size, next=position, newest=added.sum(dtype=jnp.int32)), added


def sample_uniform(key: Key, buffer: TripletBuffer, number: int) -> Triplet:
    """So many triplets, each uniform over the buffer, with replacement.

    Args:
      key: consumed.
      buffer: never empty.
      number: static.

    Returns:
      Triplets `[number]`, int32.
    """
    return _take(buffer, jax.random.randint(key, (number,), 0, buffer.size))


def sample_recent(key: Key, buffer: TripletBuffer, number: int) -> Triplet:
    """So many triplets with replacement, with a weight that grows linearly from the oldest, 1, to the newest, `size`.

    Args:
      key: consumed.
      buffer: never empty.
      number: static.

    Returns:
      Triplets `[number]`, int32.
    """
    # The cumulative weight of the n oldest is n(n + 1)/2; its inverse turns uniform numbers into ranks.
    size = buffer.size.astype(jnp.float32)
    uniform = jax.random.uniform(key, (number,)) * size * (size + 1) / 2
    rank = jnp.floor((jnp.sqrt(8 * uniform + 1) - 1) / 2).astype(jnp.int32)
    return _take(buffer, _oldest(buffer) + jnp.minimum(rank, buffer.size - 1))


def sample_newest(key: Key, buffer: TripletBuffer, number: int) -> Triplet:
    """The triplets of the last push, topped up with uniform ones: what the solver learns from in the reference.

    Args:
      key: consumed.
      buffer: never empty.
      number: static. If the last push added more, its newest are returned.

    Returns:
      Triplets `[number]`, int32.
    """
    drawn = jax.random.randint(key, (number,), 0, buffer.size)
    back = jnp.arange(1, number + 1)
    return _take(buffer, jnp.where(back <= buffer.newest, buffer.next - back, drawn))


def _oldest(buffer: TripletBuffer) -> Array:
    return buffer.next - buffer.size


def _take(buffer: TripletBuffer, index: Array) -> Triplet:
    index = index % buffer.step.shape[0]
    return as_int32(jax.tree.map(lambda x: x[index], buffer.triplets))


def _keys(triplets: Triplet) -> Array:
    """Hashes of what makes triplets `[B]` the same: program and inputs. The outputs follow from them."""
    leaves = jax.tree.leaves((triplets.program, triplets.inputs))
    return hash_rows(jnp.concatenate([x.reshape(x.shape[0], -1).astype(jnp.int32) for x in leaves], axis=1))
