"""Advantage and return estimators for rollouts that mix both kinds of episode end.

Every function takes time-major arrays `[T, ...]`; the trailing shape is free (`[T]` for one trajectory, `[T, B]` for B
lanes, anything else a caller vectorises over) and all array arguments share it. The conventions, common to all:

* `values[t]` is V(s_t) and `next_values[t]` is V of the **true** successor of step t, taken before any reset. Where an
  episode goes on, `next_values[t] == values[t + 1]`; where one ends, `values[t + 1]` belongs to the next episode and is
  never looked at.
* `terminated[t]`: the task ended the episode at step t, nothing follows, so the successor is worth 0.
* `truncated[t]`: a time limit ended it, the task would have gone on, so the successor is worth `next_values[t]`.
* Nothing after either kind of end enters the estimates before it. If both flags are set, `terminated` wins.
* The rollout's own end is no episode end, but nothing is known beyond it: the last step bootstraps from
  `next_values[T - 1]`.

Ends are applied by selection, never by multiplication. So a NaN or infinite `next_values` at a terminated step reaches
neither the estimates nor any gradient, and anything non-finite in the next episode reaches neither the estimates of
this one nor their gradients with respect to its rewards and values.

Results are float32, or float64 when an input is. Nothing here stops gradients: the caller decides what is constant.

References:
  Schulman, Moritz, Levine, Jordan, Abbeel, "High-Dimensional Continuous Control Using Generalized Advantage
  Estimation", 2015, https://arxiv.org/abs/1506.02438, section 3.
  Sutton and Barto, "Reinforcement Learning: An Introduction", 2nd edition, 2018, sections 7.1 and 12.1.
  Pardo, Tavakoli, Levdik, Kormushev, "Time Limits in Reinforcement Learning", 2018, https://arxiv.org/abs/1712.00378.
"""

from __future__ import annotations

import operator

import chex
import jax
import jax.numpy as jnp

__all__ = ["gae", "gae_associative", "lambda_returns", "n_step", "td_residuals"]


def td_residuals(
    rewards: chex.Array,
    values: chex.Array,
    next_values: chex.Array,
    terminated: chex.Array,
    *,
    gamma: chex.Numeric,
) -> chex.Array:
    r"""One-step temporal-difference residuals.

    .. math:: \delta_t = r_t + \gamma (1 - \mathrm{terminated}_t) V(s_{t+1}) - V(s_t)

    There is no `truncated` argument because a truncation changes nothing here: its residual is as valid as any other.

    Args:
      rewards: `[T, ...]`, r_t.
      values: `[T, ...]`, V(s_t).
      next_values: `[T, ...]`, V of the true successor of step t.
      terminated: `[T, ...]`, boolean (any other type is read as "not zero").
      gamma: scalar discount in [0, 1]; may be traced.

    Returns:
      `[T, ...]` residuals.

    Raises:
      AssertionError: if the shapes differ, or `gamma` is no scalar.
      ValueError: if there is no time step, or a concrete `gamma` is outside [0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> td_residuals(jnp.array([1., 1.]), jnp.array([2., 3.]), jnp.array([3., 9.]),
      ...              jnp.array([False, True]), gamma=0.5).tolist()
      [0.5, -2.0]

    References:
      arXiv 1506.02438, section 3, above equation 11.
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated])
    _require_steps(rewards)
    dtype = _float_dtype(rewards, values, next_values)
    gamma = _unit_interval("gamma", gamma, dtype)
    return jnp.asarray(rewards, dtype) + gamma * _bootstrap(next_values, terminated, dtype) - jnp.asarray(values, dtype)


def n_step(
    rewards: chex.Array,
    values: chex.Array,
    next_values: chex.Array,
    terminated: chex.Array,
    truncated: chex.Array,
    *,
    gamma: chex.Numeric,
    n: int,
) -> tuple[chex.Array, chex.Array]:
    r"""n-step returns, and the advantages over `values` that they imply.

    Let h be the number of steps, at most n, that can be taken from t before something stops them: the first step at or
    after t that terminated, truncated, or is the last of the rollout, is the last one counted. Then

    .. math::
        G^{(n)}_t = \sum_{l=0}^{h-1} \gamma^l r_{t+l} + \gamma^h (1 - \mathrm{terminated}_{t+h-1}) V(s_{t+h}),
        \qquad
        A^{(n)}_t = G^{(n)}_t - V(s_t)

    with V(s_{t+h}) read from `next_values[t + h - 1]`. A rollout's tail thus has a shorter horizon, not a wrong one.
    Where `next_values[t] == values[t + 1]` inside episodes, A^(n) is the sum of the next h discounted residuals
    (equation 14), `n=1` gives :func:`td_residuals`, and `n >= T` gives :func:`gae` with `lam=1`.

    Args:
      rewards: `[T, ...]`, r_t.
      values: `[T, ...]`, V(s_t); used for the advantages only.
      next_values: `[T, ...]`, V of the true successor of step t.
      terminated: `[T, ...]`, boolean.
      truncated: `[T, ...]`, boolean.
      gamma: scalar discount in [0, 1]; may be traced.
      n: static number of steps, at least 1; more than T is the same as T. The work is O(min(n, T) * T).

    Returns:
      `(advantages, returns)`, each `[T, ...]`.

    Raises:
      AssertionError: if the shapes differ, or `gamma` is no scalar.
      TypeError: if `n` is no integer.
      ValueError: if there is no time step, `n < 1`, or a concrete `gamma` is outside [0, 1].

    Examples:
      Three steps and no end; the last step has only one step left, the others look two ahead.

      >>> import jax.numpy as jnp
      >>> zero, never = jnp.zeros(3), jnp.zeros(3, bool)
      >>> _, returns = n_step(jnp.array([1., 2., 4.]), zero, jnp.full(3, 8.), never, never, gamma=0.5, n=2)
      >>> returns.tolist()
      [4.0, 6.0, 8.0]

    References:
      arXiv 1506.02438, equations 11 to 15; Sutton and Barto, section 7.1.
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    steps = _require_steps(rewards)
    n = operator.index(n)
    if n < 1:
        raise ValueError(f"n_step needs n >= 1, got n={n}.")
    dtype = _float_dtype(rewards, values, next_values)
    gamma = _unit_interval("gamma", gamma, dtype)
    rewards = jnp.asarray(rewards, dtype)
    bootstrap = _bootstrap(next_values, terminated, dtype)
    stop = _cut(terminated, truncated).at[-1].set(True)

    def look_one_further(_: int, shorter: chex.Array) -> chex.Array:
        following = jnp.concatenate([shorter[1:], shorter[-1:]])
        return rewards + gamma * jnp.where(stop, bootstrap, following)

    returns = jax.lax.fori_loop(1, min(n, steps), look_one_further, rewards + gamma * bootstrap)
    return returns - jnp.asarray(values, dtype), returns


def gae(
    rewards: chex.Array,
    values: chex.Array,
    next_values: chex.Array,
    terminated: chex.Array,
    truncated: chex.Array,
    *,
    gamma: chex.Numeric,
    lam: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
    r"""Generalized advantage estimation, GAE(gamma, lambda), by a reverse `jax.lax.scan`.

    .. math::
        \delta_t &= r_t + \gamma (1 - \mathrm{terminated}_t) V(s_{t+1}) - V(s_t) \\
        A_t &= \delta_t + \gamma \lambda (1 - (\mathrm{terminated}_t \lor \mathrm{truncated}_t)) A_{t+1}, \qquad A_T = 0

    Within an episode this is equation 16, :math:`A_t = \sum_l (\gamma\lambda)^l \delta_{t+l}`, the exponentially
    weighted average of the n-step estimators. `lam=0` is the one-step residual (equation 17), `lam=1` the discounted
    return minus the value (equation 18).

    Args:
      rewards: `[T, ...]`, r_t.
      values: `[T, ...]`, V(s_t).
      next_values: `[T, ...]`, V of the true successor of step t, before any reset.
      terminated: `[T, ...]`, boolean; the task ended the episode at step t.
      truncated: `[T, ...]`, boolean; the time limit did.
      gamma: scalar discount in [0, 1]; may be traced.
      lam: scalar trace in [0, 1]; may be traced.

    Returns:
      `(advantages, returns)`, each `[T, ...]`; `returns = advantages + values` is the regression target of the critic.

    Raises:
      AssertionError: if the shapes differ, or `gamma` or `lam` is no scalar.
      ValueError: if there is no time step, or a concrete `gamma` or `lam` is outside [0, 1].

    Examples:
      The second step is cut by a time limit: it bootstraps from its true successor, worth 4, and the third step, which
      belongs to the next episode, does not reach back.

      >>> import jax.numpy as jnp
      >>> advantages, returns = gae(
      ...     jnp.array([1., 1., 1.]), jnp.array([1., 2., 8.]), jnp.array([2., 4., 16.]),
      ...     jnp.array([False, False, True]), jnp.array([False, True, False]), gamma=0.5, lam=0.5)
      >>> advantages.tolist()
      [1.25, 1.0, -7.0]
      >>> returns.tolist()
      [2.25, 3.0, 1.0]

    References:
      arXiv 1506.02438, section 3, equation 16.
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    deltas = td_residuals(rewards, values, next_values, terminated, gamma=gamma)
    decay = _unit_interval("gamma", gamma, deltas.dtype) * _unit_interval("lam", lam, deltas.dtype)

    def step(following: chex.Array, inputs: tuple[chex.Array, chex.Array]) -> tuple[chex.Array, chex.Array]:
        delta, cut = inputs
        advantage = delta + decay * jnp.where(cut, 0, following)
        return advantage, advantage

    inputs = (deltas, _cut(terminated, truncated))
    _, advantages = jax.lax.scan(step, jnp.zeros_like(deltas[-1]), inputs, reverse=True)
    return advantages, advantages + jnp.asarray(values, deltas.dtype)


def gae_associative(
    rewards: chex.Array,
    values: chex.Array,
    next_values: chex.Array,
    terminated: chex.Array,
    truncated: chex.Array,
    *,
    gamma: chex.Numeric,
    lam: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
    r"""GAE(gamma, lambda) by `jax.lax.associative_scan`: depth O(log T) instead of T, for more arithmetic.

    The recursion of :func:`gae` composes affine maps :math:`x \mapsto \delta_t + \gamma\lambda x`, and composition is
    associative. Worth measuring when T is long and the trailing shape small, so that the steps of :func:`gae` do not
    fill the device. The results are those of :func:`gae` up to rounding.

    Args:
      rewards: `[T, ...]`, see :func:`gae`, as for all the others.
      values: `[T, ...]`.
      next_values: `[T, ...]`.
      terminated: `[T, ...]`.
      truncated: `[T, ...]`.
      gamma: scalar discount in [0, 1]; may be traced.
      lam: scalar trace in [0, 1]; may be traced.

    Returns:
      `(advantages, returns)`, each `[T, ...]`.

    Raises:
      AssertionError: if the shapes differ, or `gamma` or `lam` is no scalar.
      ValueError: if there is no time step, or a concrete `gamma` or `lam` is outside [0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> never = jnp.zeros(2, bool)
      >>> advantages, _ = gae_associative(
      ...     jnp.ones(2), jnp.zeros(2), jnp.zeros(2), never, never, gamma=0.5, lam=0.5)
      >>> advantages.tolist()
      [1.25, 1.0]

    References:
      arXiv 1506.02438, equation 16; Blelloch, "Prefix Sums and Their Applications", 1990, section 1.4.
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    deltas = td_residuals(rewards, values, next_values, terminated, gamma=gamma)
    decay = _unit_interval("gamma", gamma, deltas.dtype) * _unit_interval("lam", lam, deltas.dtype)

    def compose(
        later: tuple[chex.Array, chex.Array, chex.Array], earlier: tuple[chex.Array, chex.Array, chex.Array]
    ) -> tuple[chex.Array, chex.Array, chex.Array]:
        later_cut, later_decay, later_sum = later
        cut, earlier_decay, earlier_sum = earlier
        # A zero decay would not do in place of the flag: 0 * NaN from the next episode is NaN.
        return (
            cut | later_cut,
            earlier_decay * later_decay,
            earlier_sum + earlier_decay * jnp.where(cut, 0, later_sum),
        )

    elements = (_cut(terminated, truncated), jnp.broadcast_to(decay, deltas.shape), deltas)
    _, _, advantages = jax.lax.associative_scan(compose, elements, reverse=True)
    return advantages, advantages + jnp.asarray(values, deltas.dtype)


def lambda_returns(
    rewards: chex.Array,
    next_values: chex.Array,
    terminated: chex.Array,
    truncated: chex.Array,
    *,
    gamma: chex.Numeric,
    lam: chex.Numeric,
) -> chex.Array:
    r"""The lambda-return of TD(lambda), which needs no value of the states themselves.

    .. math:: G_t = r_t + \gamma \left[ (1 - \lambda) V(s_{t+1}) + \lambda G_{t+1} \right]

    where the episode goes on, :math:`r_t + \gamma V(s_{t+1})` at a truncation and at the rollout's end, and
    :math:`r_t` at a termination. Equal to the returns of :func:`gae` where `next_values[t] == values[t + 1]` inside
    episodes.

    Args:
      rewards: `[T, ...]`, r_t.
      next_values: `[T, ...]`, V of the true successor of step t.
      terminated: `[T, ...]`, boolean.
      truncated: `[T, ...]`, boolean.
      gamma: scalar discount in [0, 1]; may be traced.
      lam: scalar trace in [0, 1]; may be traced.

    Returns:
      `[T, ...]` returns.

    Raises:
      AssertionError: if the shapes differ, or `gamma` or `lam` is no scalar.
      ValueError: if there is no time step, or a concrete `gamma` or `lam` is outside [0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> never = jnp.zeros(2, bool)
      >>> lambda_returns(jnp.array([1., 2.]), jnp.array([4., 8.]), never, never, gamma=0.5, lam=0.5).tolist()
      [3.5, 6.0]

    References:
      Sutton and Barto, section 12.1, equation 12.2; arXiv 1506.02438, section 3.
    """
    chex.assert_equal_shape([rewards, next_values, terminated, truncated])
    _require_steps(rewards)
    dtype = _float_dtype(rewards, next_values)
    gamma = _unit_interval("gamma", gamma, dtype)
    lam = _unit_interval("lam", lam, dtype)
    rewards = jnp.asarray(rewards, dtype)
    bootstraps = _bootstrap(next_values, terminated, dtype)
    stop = _cut(terminated, truncated).at[-1].set(True)

    def step(following: chex.Array, inputs: tuple[chex.Array, chex.Array, chex.Array]) -> tuple[chex.Array, chex.Array]:
        reward, bootstrap, stops = inputs
        target = reward + gamma * jnp.where(stops, bootstrap, (1 - lam) * bootstrap + lam * following)
        return target, target

    _, returns = jax.lax.scan(step, jnp.zeros_like(rewards[-1]), (rewards, bootstraps, stop), reverse=True)
    return returns


def _require_steps(rewards: chex.Array) -> int:
    if rewards.ndim == 0 or rewards.shape[0] == 0:
        raise ValueError(
            f"expected time-major arrays [T, ...] with at least one time step (T >= 1), got shape {rewards.shape}."
        )
    return rewards.shape[0]


def _unit_interval(name: str, value: chex.Numeric, dtype: jnp.dtype) -> chex.Array:
    chex.assert_rank(value, 0)
    try:
        concrete = float(value)
    except jax.errors.ConcretizationTypeError:
        return jnp.asarray(value, dtype)
    if not 0.0 <= concrete <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {concrete}.")
    return jnp.asarray(value, dtype)


def _float_dtype(*arrays: chex.Array) -> jnp.dtype:
    return jnp.result_type(jnp.float32, *arrays)


def _bootstrap(next_values: chex.Array, terminated: chex.Array, dtype: jnp.dtype) -> chex.Array:
    return jnp.where(jnp.asarray(terminated).astype(bool), 0, jnp.asarray(next_values, dtype))


def _cut(terminated: chex.Array, truncated: chex.Array) -> chex.Array:
    return jnp.asarray(terminated).astype(bool) | jnp.asarray(truncated).astype(bool)
