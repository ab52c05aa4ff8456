"""azjax.trajectories against loops in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.trajectories import first_episode, time_dependent_baseline

SHAPE = (6, 2, 3)


def loop_first_episode(terminated: np.ndarray, truncated: np.ndarray) -> np.ndarray:
    mask = np.zeros(terminated.shape, bool)
    for lane in np.ndindex(terminated.shape[1:]):
        for t in range(terminated.shape[0]):
            mask[(t, *lane)] = True
            if terminated[(t, *lane)] or truncated[(t, *lane)]:
                break
    return mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_they_equal_loops(seed, end):
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, *SHAPE)) < 0.5 * end
    mask = first_episode(terminated, truncated)
    np.testing.assert_array_equal(mask, loop_first_episode(terminated, truncated))
    returns = rng.normal(size=SHAPE).astype(np.float32)
    spoilt = np.where(mask, returns, np.nan)
    baseline = np.asarray(time_dependent_baseline(spoilt, mask))
    for t in range(SHAPE[0]):
        inside = returns[t][np.asarray(mask)[t]]
        np.testing.assert_allclose(baseline[t], inside.mean() if inside.size else 0.0, rtol=1e-5, atol=1e-6)


def test_jit_vmap_and_flags_that_are_numbers():
    flags = np.random.default_rng(0).random((5, 4)) < 0.3
    never = np.zeros_like(flags)
    expected = first_episode(flags, never)
    np.testing.assert_array_equal(jax.jit(first_episode)(flags.astype(np.float32), never), expected)
    np.testing.assert_array_equal(jax.vmap(first_episode, 1, 1)(jnp.asarray(flags), jnp.asarray(never)), expected)
    alone = np.asarray(jax.vmap(time_dependent_baseline, 1, 1)(jnp.ones((5, 4)), jnp.asarray(expected)))
    np.testing.assert_array_equal(alone, np.asarray(expected, np.float32))  # of itself alone


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        first_episode(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(AssertionError):
        time_dependent_baseline(np.zeros((3, 2)), np.zeros(3))
