"""Ring buffers of triplets: eviction, duplicates, sampling."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.config import ConfigError
from azjax.reasoning import (
    Triplet,
    enumerate_programs,
    execute,
    init_buffer,
    probe,
    push,
    sample_newest,
    sample_recent,
    sample_uniform,
    zero_triplet,
)
from azjax.reasoning.text import stack_values

CAPACITY, BATCH = 8, 4
run = jax.jit(execute)


@functools.cache
def pool():
    """A triplet for each program of one line, with the meanings of the programs."""
    programs = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), enumerate_programs(1))
    inputs = jax.tree.map(lambda x: jnp.broadcast_to(x, (35, 1, *x.shape)), stack_values([[3, 1, 2], None]))
    outputs, _ = run(programs, jax.tree.map(lambda x: x[:, 0], inputs))
    triplets = Triplet(programs, inputs, jax.tree.map(lambda x: x[:, None], outputs))
    return jax.tree.map(np.asarray, (triplets, jax.jit(probe)(programs).hash))


def batch(indices):
    triplets, meaning = pool()
    index = np.array(indices)
    return jax.tree.map(lambda x: x[index], triplets), meaning[index]


empty = functools.cache(lambda: init_buffer(CAPACITY))
push_batch = jax.jit(push, static_argnames="per_class")


def add(buffer, indices, accepted=True, step=0, per_class=None):
    triplets, meaning = batch(indices)
    return push_batch(buffer, triplets, meaning, np.broadcast_to(np.array(accepted), len(indices)), step,
                      per_class=per_class)  # fmt: skip


def contents(buffer):
    """Which programs of the pool are held, oldest first; -1 for the zero program."""
    lines = np.asarray(pool()[0].program.lines)
    order = (int(buffer.next) - int(buffer.size) + np.arange(int(buffer.size))) % len(buffer.step)
    held = np.asarray(buffer.triplets.program.lines)[order]
    return [int(np.flatnonzero((lines == row).all((1, 2)))[0]) if row.any() else -1 for row in held]


def test_a_buffer_starts_with_the_zero_triplet():
    buffer = init_buffer(CAPACITY, 3)
    assert contents(buffer) == [-1]
    drawn = sample_uniform(jax.random.key(0), buffer, 5)
    assert drawn.program.lines.shape == (5, 4, 4)
    assert not drawn.program.lines.any()
    np.testing.assert_array_equal(drawn.inputs.items[:, :, 0], drawn.outputs.items)
    output, valid = run(jax.tree.map(lambda x: x[:, None], drawn.program), drawn.inputs)
    assert bool(valid.all())
    np.testing.assert_array_equal(output.items, drawn.outputs.items)
    assert len({tuple(x) for x in zero_triplet(48).inputs.items[:, 0].tolist()}) == 48


def test_the_oldest_makes_room_and_memory_does_not_grow():
    """The reference cuts off the newest, so that a full buffer stays as it is."""
    buffer = init_buffer(CAPACITY)
    for n in range(0, 16, BATCH):
        buffer, added = add(buffer, range(n, n + BATCH), step=n)
        assert bool(added.all())
    assert contents(buffer) == list(range(8, 16))
    assert int(buffer.size) == CAPACITY
    assert sorted(buffer.step.tolist()) == [8] * 4 + [12] * 4
    assert push_batch._cache_size() == 1
    assert all(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(buffer.triplets))


def test_what_is_not_accepted_is_left_out():
    buffer, added = add(init_buffer(CAPACITY), [0, 1, 2, 3], accepted=[True, False, False, True])
    assert added.tolist() == [True, False, False, True]
    assert contents(buffer) == [-1, 0, 3]
    again, added = add(buffer, [4, 5, 6, 7], accepted=False)
    assert not added.any()
    assert contents(again) == contents(buffer)


def test_duplicates_are_refused_within_a_batch_and_across_batches():
    buffer, added = add(init_buffer(CAPACITY), [0, 1, 0, 1])
    assert added.tolist() == [True, True, False, False]
    buffer, added = add(buffer, [2, 1, 2, 3])
    assert added.tolist() == [True, False, False, True]
    assert contents(buffer) == [-1, 0, 1, 2, 3]
    # One that is not accepted keeps no other out.
    _, added = add(init_buffer(CAPACITY), [0, 0, 0, 0], accepted=[False, True, True, False])
    assert added.tolist() == [False, True, False, False]


def test_the_same_program_with_another_input_is_another_triplet():
    triplets, meaning = batch([0, 0, 0, 0])
    items = triplets.inputs.items.copy()
    items[1, 0, 0, 1] = 9
    triplets = triplets._replace(inputs=triplets.inputs._replace(items=items))
    _, added = push_batch(init_buffer(CAPACITY), triplets, meaning, jnp.ones(4, bool), 0)
    assert added.tolist() == [True, True, False, False]


def test_what_was_evicted_may_come_again():
    buffer = init_buffer(4)
    for indices in ([0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]):
        buffer, added = add(buffer, indices)
        assert bool(added.all())
    assert contents(buffer) == [0, 1, 2, 3]


def test_at_most_so_many_of_a_semantic_class():
    _, meaning = pool()
    double = [n for n in range(35) if (np.asarray(meaning) == np.asarray(meaning)[n]).all(1).sum() > 1]
    first = double[0]
    second = next(n for n in double[1:] if (meaning[n] == meaning[first]).all())
    other = next(n for n in range(35) if n not in double)
    _, added = add(init_buffer(CAPACITY), [first, second, other, other], per_class=1)
    assert added.tolist() == [True, False, True, False]
    buffer, added = add(init_buffer(CAPACITY), [first, other, other, other], per_class=1)
    _, added = add(buffer, [second, other, second, first], per_class=1)
    assert added.tolist() == [False, False, False, False]
    _, added = add(buffer, [second, other, second, first], per_class=2)
    assert added.tolist() == [True, False, False, False]


def test_a_batch_that_is_larger_than_the_buffer_is_refused():
    with pytest.raises(ConfigError, match="4 triplets do not fit in a buffer of 3"):
        add(init_buffer(3), [0, 1, 2, 3])
    for capacity, examples in ((0, 1), (8, 0), (8, 49)):
        with pytest.raises(ConfigError):
            init_buffer(capacity, examples)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.lists(st.integers(0, 34), min_size=4, max_size=4), st.integers(0, 15)), max_size=8))
def test_property_a_buffer_is_a_bounded_queue_without_duplicates(pushes):
    buffer, model = empty(), [-1]
    for indices, mask in pushes:
        accepted = [bool(mask >> n & 1) for n in range(4)]
        buffer, added = add(buffer, indices, accepted)
        new = []
        for index, ok in zip(indices, accepted, strict=True):
            if ok and index not in model and index not in new:
                new.append(index)
        model = (model + new)[-CAPACITY:]
        assert int(added.sum()) == len(new)
        assert contents(buffer) == model


def filled():
    """A buffer of 8 whose ring starts in its middle, and the programs' first fields, oldest first."""
    buffer = init_buffer(CAPACITY)
    for n in range(0, 12, BATCH):
        buffer, _ = add(buffer, range(n, n + BATCH))
    return buffer, [tuple(pool()[0].program.lines[n, 0].tolist()) for n in contents(buffer)]


def counts(triplets, names):
    drawn = [tuple(x) for x in np.asarray(triplets.program.lines)[:, 0].tolist()]
    assert set(drawn) <= set(names)
    return np.array([drawn.count(name) for name in names])


def test_uniform_sampling_is_uniform():
    buffer, names = filled()
    found = counts(sample_uniform(jax.random.key(0), buffer, 8000), names)
    np.testing.assert_allclose(found / 8000, 1 / 8, atol=0.02)


def test_recent_sampling_weighs_linearly():
    buffer, names = filled()
    found = counts(sample_recent(jax.random.key(0), buffer, 36_000), names)
    np.testing.assert_allclose(found / 36_000, np.arange(1, 9) / 36, atol=0.01)


def test_sampling_a_buffer_that_is_not_full_draws_what_is_there():
    buffer, _ = add(init_buffer(CAPACITY), [0, 1, 2, 3])
    names = [(0, 0, 0, 0), *(tuple(pool()[0].program.lines[n, 0].tolist()) for n in range(4))]
    assert (counts(sample_uniform(jax.random.key(1), buffer, 500), names) > 50).all()
    found = counts(sample_recent(jax.random.key(1), buffer, 1500), names)
    np.testing.assert_allclose(found / 1500, np.arange(1, 6) / 15, atol=0.04)


def test_newest_first_then_uniform():
    buffer, names = filled()
    buffer, _ = add(buffer, [12, 13, 0, 1], accepted=[True, True, False, False])
    names = [tuple(pool()[0].program.lines[n, 0].tolist()) for n in contents(buffer)]
    drawn = sample_newest(jax.random.key(0), buffer, 1002)
    first = [tuple(x) for x in drawn.program.lines[:2, 0].tolist()]
    assert first == [names[-1], names[-2]]
    assert (counts(jax.tree.map(lambda x: x[2:], drawn), names) > 80).all()
    assert [tuple(x) for x in sample_newest(jax.random.key(0), buffer, 1).program.lines[:, 0].tolist()] == [names[-1]]
