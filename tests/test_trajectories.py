"""azjax.trajectories against loops in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.trajectories import elapsed_steps, first_episode, time_dependent_baseline

SHAPE = (6, 2, 3)


def loop(terminated: np.ndarray, truncated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First episodes and elapsed steps, lane by lane."""
    first, elapsed = np.zeros(terminated.shape, bool), np.zeros(terminated.shape, np.int32)
    for lane in np.ndindex(terminated.shape[1:]):
        episode, step = 0, 0
        for t in range(terminated.shape[0]):
            first[(t, *lane)], elapsed[(t, *lane)] = episode == 0, step
            step += 1
            if terminated[(t, *lane)] or truncated[(t, *lane)]:
                episode, step = episode + 1, 0
    return first, elapsed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_they_equal_loops(seed, end):
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, *SHAPE)) < 0.5 * end
    first, elapsed = loop(terminated, truncated)
    np.testing.assert_array_equal(first_episode(terminated, truncated), first)
    np.testing.assert_array_equal(elapsed_steps(terminated, truncated), elapsed)
    returns, mask = rng.normal(size=SHAPE).astype(np.float32), rng.random(SHAPE) < 0.7
    spoilt = np.where(mask, returns, np.nan)
    baseline = np.asarray(time_dependent_baseline(spoilt, elapsed, mask))
    for step in np.unique(elapsed):
        inside = returns[mask & (elapsed == step)]
        expected = inside.mean() if inside.size else 0.0
        np.testing.assert_allclose(baseline[elapsed == step], expected, rtol=1e-5, atol=1e-6)


def test_jit_vmap_and_flags_that_are_numbers():
    flags = np.random.default_rng(0).random((5, 4)) < 0.3
    never = np.zeros_like(flags)
    first, elapsed = loop(flags, never)
    lanes = [jnp.asarray(flags), jnp.asarray(never)]
    for function, expected in ((first_episode, first), (elapsed_steps, elapsed)):
        np.testing.assert_array_equal(jax.jit(function)(flags.astype(np.float32), never), expected)
        np.testing.assert_array_equal(jax.vmap(function, 1, 1)(*lanes), expected)
    alone = jax.jit(jax.vmap(time_dependent_baseline, 1, 1))(jnp.ones((5, 4)), elapsed, first)
    np.testing.assert_array_equal(np.asarray(alone)[first], 1.0)


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        first_episode(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(AssertionError):
        elapsed_steps(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(AssertionError):
        time_dependent_baseline(np.zeros((3, 2)), np.zeros((3, 2), int), np.ones(3, bool))
