r"""Products with the Fisher information matrix of a policy, or the Gauss-Newton matrix of a function, never formed.

For a policy :math:`\pi_\theta(\cdot|s)` with distribution parameters :math:`\phi(s; \theta)` and Jacobian
:math:`J = \partial\phi/\partial\theta`,

.. math:: F = \mathbb{E}_s[J^T F_\phi J] = \nabla^2_\theta \mathbb{E}_s[KL(\pi_{old} \| \pi_\theta)]_{\theta = old}

where :math:`F_\phi`, the Fisher information of the distribution's own parameters, is known in closed form. The two
sides are two ways to compute a product with F; they are equal because the gradient of the divergence is 0 there.

References:
  Schulman, Levine, Moritz, Jordan, Abbeel, 2015, Trust Region Policy Optimization, arXiv 1502.05477, appendix C.
  Martens, 2020, New Insights and Perspectives on the Natural Gradient Method, arXiv 1412.1193, sections 5 and 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from azjax.config import require
from azjax.distributions import Distribution
from azjax.minibatches import sum_over_devices
from azjax.types import Array

__all__ = ["double_backward_product", "fisher_product", "gauss_newton_product"]

Product = Callable[[Array], Array]


def fisher_product(
    policy: Callable[[Array], Distribution], theta: Array, weights: Array, axis_name: str | None = None
) -> Product:
    """F v in Gauss-Newton form: forward through the network, the distribution's own Fisher, and back.

    Args:
      policy: from parameters `[n]` to the distributions of a batch `[N]`.
      theta: `[n]`, where F is taken.
      weights: `[N]`, of each state in the mean; on several devices they add up to 1 over all of them.
      axis_name: the device axis, if there is one.

    Returns:
      The function from v `[n]` to F v `[n]`. The network is linearised once, here; a product is one jvp and one vjp.

    Raises:
      ConfigError: if the distributions have no ``fisher_product``.
    """

    def broadcast(theta: Array) -> Distribution:
        # A parameter that all states share, as log_std may be, must be counted for each of them.
        distribution = policy(theta)
        rows = jnp.broadcast_shapes(*(x.shape for x in jax.tree.leaves(distribution)))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, rows), distribution)

    distribution = policy_at(broadcast, theta)
    require(
        hasattr(distribution, "fisher_product"),
        f"{type(distribution).__name__} has no fisher_product; give it one, or set fisher_form to double-backward",
    )
    return gauss_newton_product(broadcast, theta, weights, distribution.fisher_product, axis_name)


def policy_at(policy: Callable[[Array], Distribution], theta: Array) -> Distribution:
    """The distributions at theta, as constants."""
    return jax.lax.stop_gradient(policy(theta))


def gauss_newton_product(
    function: Callable[[Array], Any],
    theta: Array,
    weights: Array,
    curvature: Callable[[Any], Any] = lambda tangent: tangent,
    axis_name: str | None = None,
) -> Product:
    r""":math:`\sum_i w_i J_i^T C_i J_i v` for the Jacobians J of a function of a batch.

    Args:
      function: from `[n]` to a pytree of `[N, ...]`.
      theta: `[n]`, where the Jacobians are taken.
      weights: `[N]`.
      curvature: C, from tangents of the outputs to cotangents; the default is that of half a square.
      axis_name: the device axis over which products are summed, if there is one.

    Returns:
      The function from v `[n]` to the product `[n]`.
    """
    _, push = jax.linearize(function, theta)
    pull = jax.linear_transpose(push, theta)

    def weigh(leaf: Array) -> Array:
        return weights.reshape(weights.shape + (1,) * (leaf.ndim - weights.ndim)) * leaf

    def product(v: Array) -> Array:
        (image,) = pull(jax.tree.map(weigh, curvature(push(v))))
        return sum_over_devices(image, axis_name)

    return product


def double_backward_product(
    policy: Callable[[Array], Distribution], theta: Array, weights: Array, axis_name: str | None = None
) -> Product:
    """F v as the gradient of (gradient of the mean divergence) . v, for distributions that know only their divergence.

    Args and result are those of ``fisher_product``.
    """
    old = policy_at(policy, theta)

    def slope(theta: Array, v: Array) -> Array:
        return jnp.sum(jax.grad(lambda t: jnp.sum(weights * old.kl(policy(t))))(theta) * v)

    def product(v: Array) -> Array:
        image = jax.grad(slope)(theta, v)
        return sum_over_devices(image, axis_name)

    return product
