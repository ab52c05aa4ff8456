"""azjax.rings against a plain Python ring."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.rings import write_ring


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_batches_are_written_as_one_by_one(capacity: int, batches: list[list[bool]]) -> None:
    """Batches that are larger than the ring included."""
    expected, total, value = [0] * capacity, 0, 0
    ring = {"a": jnp.zeros(capacity, jnp.int8), "b": jnp.zeros((capacity, 2))}
    size = position = jnp.zeros((), jnp.int32)
    for added in batches:
        rows = np.arange(value + 1, value + 5)
        value += 4
        for row in rows[np.array(added)]:
            expected[total % capacity] = row
            total += 1
        batch = {"a": jnp.asarray(rows), "b": jnp.stack([jnp.asarray(rows, jnp.float32)] * 2, axis=1)}
        ring, size, position = jax.jit(write_ring)(ring, batch, jnp.array(added), size=size, position=position)
    assert ring["a"].tolist() == expected
    assert ring["a"].dtype == jnp.int8
    np.testing.assert_array_equal(ring["b"], np.stack([expected] * 2, axis=1))
    assert (int(size), int(position)) == (min(total, capacity), total % capacity)
