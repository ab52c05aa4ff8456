"""A linear classifier on top of given logits."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax

__all__ = ["log_softmax_regression"]


def log_softmax_regression(
    features: chex.Array,
    offset: chex.Array,
    labels: chex.Array,
    *,
    fitted: chex.Array,
    steps: int,
    learning_rate: float,
    decay: float,
) -> chex.Array:
    r"""Multinomial logistic regression with an offset, :math:`\log \mathrm{softmax}(o + W x)`.

    Args:
      features: `[N, F]` x.
      offset: `[N, A]` o.
      labels: int `[N]`, from 0 to A - 1.
      fitted: int `[M]` rows that W is fitted to, from W = 0.
      steps: steps of Adam on all of them.
      learning_rate: of those.
      decay: weight of the squared W in the loss.

    Returns:
      `[N, A]` log-probabilities of all rows.
    """

    def log_probabilities(weights: chex.Array) -> chex.Array:
        return jax.nn.log_softmax(offset + features @ weights)

    def loss(weights: chex.Array) -> chex.Array:
        chosen = jnp.take_along_axis(log_probabilities(weights), labels[:, None], axis=1)[:, 0]
        return -chosen[fitted].mean() + decay * jnp.square(weights).sum()

    optimizer = optax.adam(learning_rate)
    start = jnp.zeros((features.shape[1], offset.shape[1]))

    def step(carry: tuple[chex.Array, optax.OptState], _: None) -> tuple[tuple[chex.Array, optax.OptState], None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, steps)
    return log_probabilities(weights)
