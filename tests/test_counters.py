"""Exact counters: carries, wrap-around, and sums over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from azjax.counters import (
    Counter,
    counter_add,
    counter_from_int,
    counter_psum,
    counter_to_float,
    counter_to_int,
    counter_zero,
)

add = jax.jit(counter_add)
words = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**53 + 1, 2**64 - 1])
def test_a_python_integer_survives_the_round_trip(value):
    assert counter_to_int(counter_from_int(value)) == value


@settings(deadline=None, max_examples=50)
@given(words, words)
def test_addition_is_exact_modulo_2_to_the_64(a, b):
    assert counter_to_int(add(counter_from_int(a), counter_from_int(b))) == (a + b) % 2**64


def test_carries_exactly_past_2_to_the_31_and_32_inside_a_program():
    """brax counted environment steps in int32, which wrapped to negative numbers within a day of training."""

    @jax.jit
    def count(counter):
        return jax.lax.fori_loop(0, 1000, lambda _, counter: counter_add(counter, 7_654_321), counter)

    counter = count(counter_from_int(2**31 - 1))
    assert counter_to_int(counter) == 2**31 - 1 + 1000 * 7_654_321 > 2**32
    assert counter.high.dtype == counter.low.dtype == jnp.uint32


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32, jnp.uint8])
def test_adds_arrays_of_any_integer_type(dtype):
    largest = jnp.iinfo(dtype).max
    assert counter_to_int(add(counter_from_int(2**32 - 1), dtype(largest))) == 2**32 - 1 + largest


def test_adds_64_bit_arrays():
    with jax.enable_x64(True):
        assert counter_to_int(counter_add(counter_from_int(5), jnp.int64(3 * 2**40 + 1))) == 3 * 2**40 + 6


def test_a_batch_of_counters_under_vmap():
    amounts = jnp.array([1, 2, 3], jnp.uint32)
    counters = jax.vmap(counter_add, in_axes=(None, 0))(counter_from_int(2**32 - 2), amounts)
    assert [counter_to_int(jax.tree.map(lambda word, i=i: word[i], counters)) for i in range(3)] == [
        2**32 - 1,
        2**32,
        2**32 + 1,
    ]
    with pytest.raises(ValueError, match="one counter"):
        counter_to_int(counters)


@given(words)
@settings(deadline=None, max_examples=50)
def test_as_float_it_is_correct_to_rounding(value):
    converted = counter_to_float(counter_from_int(value))
    assert converted.dtype == jnp.float32
    assert abs(float(converted) - value) <= value * 2.0**-23


def test_psum_is_exact_where_a_32_bit_sum_overflows():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    amounts = jnp.array([2**32 - 1, 2**31 + 12345], jnp.uint32)
    total = jax.jit(
        jax.shard_map(
            lambda amount: counter_psum(amount[0], "devices"), mesh=mesh, in_specs=P("devices"), out_specs=P()
        )
    )(amounts)
    assert counter_to_int(total) == 2**32 - 1 + 2**31 + 12345


def test_errors_are_clear():
    with pytest.raises(ValueError, match="got -1"):
        counter_add(counter_zero(), -1)
    with pytest.raises(ValueError, match=r"2\*\*64"):
        counter_from_int(2**64)
    with pytest.raises(TypeError, match="float32"):
        counter_add(counter_zero(), jnp.float32(1))
    with pytest.raises(TypeError):
        counter_from_int(1.5)


def test_is_a_pytree_of_two_words():
    counter = counter_from_int(3 * 2**32 + 4)
    assert [int(leaf) for leaf in jax.tree.leaves(counter)] == [3, 4]
    assert isinstance(jax.tree.map(lambda leaf: leaf, counter), Counter)
