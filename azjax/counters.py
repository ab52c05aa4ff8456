"""Counts that stay exact past 2^31 without 64-bit integers.

JAX disables 64-bit types by default and accelerators are slow at them, while a 32-bit count of environment steps
overflows within a day of training. A :class:`Counter` is two unsigned 32-bit words: exact to 2^64 inside a program,
and a Python integer on the host.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable

import chex
import flax.struct
import jax
import jax.numpy as jnp

__all__ = [
    "Counter",
    "counter_add",
    "counter_from_int",
    "counter_psum",
    "counter_to_float",
    "counter_to_int",
    "counter_zero",
]

_WORD = 1 << 32


@flax.struct.dataclass
class Counter:
    """The count `high * 2**32 + low`.

    Attributes:
      high: `[...]` uint32.
      low: `[...]` uint32. The shape is `[]` for one counter, and gains leading axes under `vmap`.
    """

    high: chex.Array
    low: chex.Array


def counter_zero() -> Counter:
    """A scalar counter at 0.

    Examples:
      >>> counter_to_int(counter_zero())
      0
    """
    return counter_from_int(0)


def counter_from_int(value: int) -> Counter:
    """A scalar counter that starts at a Python integer.

    Args:
      value: in [0, 2^64).

    Returns:
      The counter.

    Raises:
      TypeError: if `value` is no integer.
      ValueError: if it is out of range.

    Examples:
      >>> counter_to_int(counter_from_int(5_000_000_000))
      5000000000
    """
    value = operator.index(value)
    if not 0 <= value < _WORD * _WORD:
        raise ValueError(f"a counter holds integers in [0, 2**64), got {value}.")
    return Counter(high=jnp.asarray(value // _WORD, jnp.uint32), low=jnp.asarray(value % _WORD, jnp.uint32))


def counter_add(counter: Counter, amount: int | chex.Array | Counter) -> Counter:
    """Adds, with carry; wraps at 2^64.

    Args:
      counter: `[...]`.
      amount: a Python integer in [0, 2^64), an integer array `[...]` whose values must not be negative, or another
        counter.

    Returns:
      The sum, a counter.

    Raises:
      TypeError: if `amount` is not of an integer type.
      ValueError: if a Python integer is out of range.

    Examples:
      >>> counter = counter_from_int(2**32 - 1)
      >>> counter_to_int(counter_add(counter, 1))
      4294967296
    """
    amount = _as_counter(amount)
    low = counter.low + amount.low
    carry = (low < counter.low).astype(jnp.uint32)
    return Counter(high=counter.high + amount.high + carry, low=low)


def counter_psum(amount: chex.Array, axis_name: Hashable) -> Counter:
    """The exact sum of one integer per device (or per element of a `vmap` axis), however large.

    Args:
      amount: `[...]` integer array below 2^32, not negative; each device's own.
      axis_name: the axis, or a tuple of axes, of at most 65,536 devices in all.

    Returns:
      The sum over the axis, equal on all its devices.

    Raises:
      TypeError: if `amount` is not of an integer type.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> amounts = jnp.array([2**32 - 1, 2**32 - 1, 7], jnp.uint32)
      >>> total = jax.vmap(lambda n: counter_psum(n, "devices"), axis_name="devices")(amounts)
      >>> counter_to_int(jax.tree.map(lambda word: word[0], total)) == 2 * (2**32 - 1) + 7
      True
    """
    amount = _as_counter(amount).low
    # Halves of 16 bits leave 16 bits of headroom, so the sums cannot overflow.
    low, high = jax.lax.psum((amount & 0xFFFF, amount >> 16), axis_name)
    return counter_add(Counter(high=high >> 16, low=high << 16), low)


def counter_to_int(counter: Counter) -> int:
    """The count as a Python integer; waits for the device, so not for use inside a program.

    Args:
      counter: `[]`; of a batched one, pick an element with `jax.tree.map` first.

    Returns:
      The exact count.

    Raises:
      ValueError: if the counter is not a scalar.

    Examples:
      >>> counter_to_int(counter_add(counter_zero(), 3))
      3
    """
    if jnp.ndim(counter.low) != 0:
        raise ValueError(f"expected one counter, got counters of shape {jnp.shape(counter.low)}: pick one first.")
    return int(counter.high) * _WORD + int(counter.low)


def counter_to_float(counter: Counter) -> chex.Array:
    """The count rounded to float32, inside or outside of a program.

    Args:
      counter: `[...]`.

    Returns:
      `[...]` float32, within a relative 2^-23 of the count.

    Examples:
      >>> float(counter_to_float(counter_from_int(3 * 2**32)))
      12884901888.0
    """
    return counter.high.astype(jnp.float32) * float(_WORD) + counter.low.astype(jnp.float32)


def _as_counter(amount: int | chex.Array | Counter) -> Counter:
    if isinstance(amount, Counter):
        return amount
    if isinstance(amount, int):
        return counter_from_int(amount)
    amount = jnp.asarray(amount)
    if not jnp.issubdtype(amount.dtype, jnp.integer):
        raise TypeError(f"a counter counts integers, got an array of type {amount.dtype}.")
    if amount.dtype.itemsize > 4:
        return Counter(high=(amount >> 32).astype(jnp.uint32), low=amount.astype(jnp.uint32))
    low = amount.astype(jnp.uint32)
    return Counter(high=jnp.zeros_like(low), low=low)
