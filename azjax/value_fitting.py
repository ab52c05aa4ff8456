"""Two ways to fit a value function that has parameters of its own: a trust region, and epochs of minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from azjax.fisher import gauss_newton_product
from azjax.line_search import Measurement
from azjax.minibatches import masked_mean, mean_over_devices, row_weights, scan_minibatches, sum_over_devices
from azjax.trust_region import Search, trust_region_step
from azjax.types import Array, Info, Key, Observation

__all__ = ["fit_values", "value_optimizer", "value_step"]


def value_step(
    value: Callable[[Array], Array],
    phi: Array,
    target: Array,
    mask: Array,
    *,
    bound: Array | float,
    damping: Array | float,
    search: Search,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    r"""One Gauss-Newton step of the value function inside a trust region.

    .. math::
        \min_\phi\; \mathbb{E}[(V_\phi - R)^2] \quad \text{subject to} \quad
        \mathbb{E}\left[\frac{(V_\phi - V_{old})^2}{2 \sigma^2}\right] \le \epsilon,
        \qquad \sigma^2 = \mathbb{E}[(V_{old} - R)^2]

    The step :math:`s = -H^{-1} g` with :math:`H = \mathbb{E}[j j^T]` is shortened to the edge of the region,
    :math:`\tfrac12 s^T H s = \epsilon \sigma^2`, if it would leave it. (The rescaling that the paper prints omits
    :math:`\sigma^2`.) A line search then holds the step to the bound itself, not to its quadratic model.

    Args:
      value: from parameters `[n]` to the values `[N]` of a batch.
      phi: `[n]`, the parameters before.
      target: `[N]`, R, in the units of the values.
      mask: bool `[N]`, which entries count; the others must be finite.
      bound: epsilon.
      damping: multiple of the identity that is added to H.
      search: of the direction and the length of the step.
      axis_name: the device axis, if there is one.

    Returns:
      The new parameters, bit for bit the old ones where no step was accepted, and diagnostics.

    References:
      Schulman, Moritz, Levine, Jordan, Abbeel, 2015, High-Dimensional Continuous Control Using Generalized Advantage
      Estimation, arXiv 1506.02438, section 5.
    """
    weights = row_weights(mask, axis_name)
    old = value(phi)

    def local_mean(x: Array) -> Array:
        return jnp.sum(jnp.where(mask, weights * x, 0.0))

    loss, gradient = jax.value_and_grad(lambda p: 0.5 * local_mean(jnp.square(value(p) - target)))(phi)
    loss, gradient = sum_over_devices((loss, gradient), axis_name)
    # All in units of sigma^2, so that the distance is the bounded one; there is nothing to improve where it is 0.
    variance = jnp.where(loss > 0, 2.0 * loss, 1.0)
    hessian = gauss_newton_product(value, phi, weights, axis_name=axis_name)

    def measure(candidate: Array) -> Measurement:
        change = value(candidate) - old
        improvement = -change * (0.5 * change + old - target)
        both = jnp.stack([local_mean(improvement), local_mean(0.5 * jnp.square(change))])
        return Measurement(*(sum_over_devices(both, axis_name) / variance))

    phi, info = trust_region_step(
        phi,
        -gradient / variance,
        lambda v: (hessian(v) + damping * v) / variance,
        measure,
        bound=bound,
        search=search,
        longest=1.0,
    )
    return phi, {
        "value_loss": loss - info.line_search.improvement * variance,
        "value_change": info.line_search.distance,
        "value_accepted": info.line_search.accepted.astype(jnp.float32),
        "value_step_fraction": info.line_search.fraction,
        "value_cg_residual": info.residual,
        "value_cg_iterations": info.iterations.astype(jnp.float32),
    }


def value_optimizer(learning_rate: Array | float) -> optax.GradientTransformation:
    """Adam; its state has no hyperparameter in it."""
    return optax.chain(optax.scale_by_adam(eps=1e-5), optax.scale_by_learning_rate(learning_rate))


def fit_values(
    value: Callable[[Array, Observation], Array],
    phi: Array,
    optimizer: Any,
    rows: tuple[Observation, Array, Array],
    key: Key,
    *,
    learning_rate: Array | float,
    epochs: int,
    minibatches: int,
    axis_name: str | None = None,
) -> tuple[Array, Any, Info]:
    """Epochs of Adam on half the mean squared error.

    Args:
      value: from parameters `[n]` and observations, as the network gets them, to values `[N]`.
      phi: `[n]`, the parameters before.
      optimizer: Adam's state.
      rows: observations, targets in the units of the values and mask, `[N, ...]`; masked entries are finite.
      key: for the order of the rows; consumed.
      learning_rate: Adam's step size.
      epochs: passes over the rows.
      minibatches: gradient steps in a pass.
      axis_name: the device axis, if there is one.

    Returns:
      Parameters, Adam's state and diagnostics. A minibatch whose gradient is not finite is left out and counted.

    Raises:
      ConfigError: if the rows can't be divided into minibatches.
    """

    def step(carry: tuple[Array, Any], minibatch: tuple[Observation, Array, Array]) -> tuple[Any, Info]:
        phi, optimizer = carry
        observation, target, mask = minibatch

        def loss_of(phi: Array) -> Array:
            return 0.5 * masked_mean(jnp.square(value(phi, observation) - target), mask)

        loss, gradient = jax.value_and_grad(loss_of)(phi)
        if axis_name is not None:
            loss, gradient = mean_over_devices((loss, gradient), mask, axis_name)
        change, moved = value_optimizer(learning_rate).update(gradient, optimizer)
        use = jnp.isfinite(optax.tree.norm(gradient))
        carry = jax.tree.map(lambda a, b: jnp.where(use, a, b), (phi + change, moved), carry)
        return carry, {"value_loss": loss, "skipped": 1.0 - use.astype(jnp.float32)}

    (phi, optimizer), info = scan_minibatches(
        step,
        (phi, optimizer),
        rows,
        key,
        epochs=epochs,
        minibatches=minibatches,
        axis_name=axis_name,
    )
    return phi, optimizer, {name: jnp.mean(x) for name, x in info.items()}
