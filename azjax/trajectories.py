"""Episodes inside a rollout that begins with fresh ones: where each step stands, and what that says about its return.

Everything here is time-major, `[T, ...]`, like `azjax.advantages`.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

__all__ = ["elapsed_steps", "first_episode", "time_dependent_baseline"]


def first_episode(terminated: chex.Array, truncated: chex.Array) -> chex.Array:
    """Which steps belong to the first episode of a rollout: all up to and with the first end of either kind.

    Args:
      terminated: `[T, ...]`, boolean.
      truncated: `[T, ...]`, boolean.

    Returns:
      bool `[T, ...]`.

    Raises:
      AssertionError: if the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> never = jnp.zeros(4, bool)
      >>> first_episode(jnp.array([False, True, False, True]), never).tolist()
      [True, True, False, False]
    """
    ends = _ends(terminated, truncated)
    return jnp.cumsum(ends, axis=0) - ends == 0


def elapsed_steps(terminated: chex.Array, truncated: chex.Array) -> chex.Array:
    """How many steps of its episode come before each step, in a rollout that begins with a fresh episode.

    Args:
      terminated: `[T, ...]`, boolean.
      truncated: `[T, ...]`, boolean.

    Returns:
      int32 `[T, ...]`, less than T.

    Raises:
      AssertionError: if the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> never = jnp.zeros(4, bool)
      >>> elapsed_steps(jnp.array([False, True, False, False]), never).tolist()
      [0, 1, 0, 1]
    """
    ends = _ends(terminated, truncated)
    time = jnp.arange(ends.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (ends.ndim - 1))
    start_of_next = jax.lax.cummax(jnp.where(ends, time + 1, 0), axis=0)
    return time - jnp.concatenate([jnp.zeros_like(start_of_next[:1]), start_of_next[:-1]])


def time_dependent_baseline(returns: chex.Array, elapsed: chex.Array, mask: chex.Array) -> chex.Array:
    r"""The mean return of all steps that stand equally far in their episodes: a baseline without any network.

    .. math:: b_t = \frac{\sum_i m_i [e_i = e_t] R_i}{\sum_i m_i [e_i = e_t]}

    with i over all steps of all lanes.

    Args:
      returns: `[T, ...]`, the return from each step on; those outside of the mask may be anything.
      elapsed: int `[T, ...]`, e in [0, T), as from :func:`elapsed_steps`.
      mask: bool `[T, ...]`, m, the steps that count.

    Returns:
      `[T, ...]`; 0 where no step that counts stands as far.

    Raises:
      AssertionError: if the shapes differ.

    Examples:
      Two lanes of two steps; the second lane's second step begins another episode.

      >>> import jax.numpy as jnp
      >>> returns, elapsed = jnp.array([[1., 3.], [7., 5.]]), jnp.array([[0, 0], [1, 0]])
      >>> time_dependent_baseline(returns, elapsed, jnp.ones((2, 2), bool)).tolist()
      [[3.0, 3.0], [7.0, 3.0]]

    References:
      Schulman, Moritz, Levine, Jordan, Abbeel, 2015, arXiv 1506.02438: "No VF" in its figures.
    """
    chex.assert_equal_shape([returns, elapsed, mask])
    steps = returns.shape[0]
    counted = jnp.stack([jnp.where(mask, returns, 0), mask.astype(returns.dtype)], axis=-1)
    totals = jax.ops.segment_sum(counted.reshape(-1, 2), elapsed.reshape(-1), num_segments=steps)
    return (totals[:, 0] / jnp.maximum(totals[:, 1], 1))[elapsed]


def _ends(terminated: chex.Array, truncated: chex.Array) -> chex.Array:
    chex.assert_equal_shape([terminated, truncated])
    return jnp.asarray(terminated).astype(bool) | jnp.asarray(truncated).astype(bool)
