"""Batches of whole trajectories: what a rollout that begins with fresh episodes says about the first one of each lane.

Everything here is time-major, `[T, ...]`, like `azjax.advantages`.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp

__all__ = ["first_episode", "time_dependent_baseline"]


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
    chex.assert_equal_shape([terminated, truncated])
    ends = jnp.asarray(terminated).astype(bool) | jnp.asarray(truncated).astype(bool)
    return jnp.cumsum(ends, axis=0) - ends == 0


def time_dependent_baseline(returns: chex.Array, mask: chex.Array) -> chex.Array:
    r"""The mean return at each time step over the trajectories that are still running: a baseline without any network.

    .. math:: b_t = \frac{\sum_i m_{t,i} R_{t,i}}{\sum_i m_{t,i}}

    with i over all trailing axes. All trajectories must begin at t = 0.

    Args:
      returns: `[T, ...]`, the return from each step on; those outside of the mask may be anything.
      mask: bool `[T, ...]`, the steps that count.

    Returns:
      `[T, ...]`, the same number for all trajectories at a step; 0 at steps that none reaches.

    Raises:
      AssertionError: if the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[True, True], [True, False]])
      >>> time_dependent_baseline(jnp.array([[1., 3.], [5., 9.]]), mask).tolist()
      [[2.0, 2.0], [5.0, 5.0]]

    References:
      Schulman, Moritz, Levine, Jordan, Abbeel, 2015, arXiv 1506.02438, section 6.3, "no value function".
    """
    chex.assert_equal_shape([returns, mask])
    axes = tuple(range(1, mask.ndim))
    total = jnp.sum(jnp.where(mask, returns, 0), axis=axes, keepdims=True)
    return jnp.broadcast_to(total / jnp.maximum(jnp.sum(mask, axis=axes, keepdims=True), 1), returns.shape)
