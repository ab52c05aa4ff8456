"""A policy and a value function that are trained apart: which parameters belong to which, and each part as a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from azjax.config import require
from azjax.networks import Network
from azjax.types import Array, Observation, Params

__all__ = ["Parts", "as_vector", "separate"]


class Parts(NamedTuple):
    """Which leaves of a network's parameters each output depends on, in the order of ``jax.tree.leaves``."""

    policy: tuple[bool, ...]
    value: tuple[bool, ...]  # all False for a policy without a value function


def separate(network: Network, params: Params, observation: Observation) -> Parts:
    """Finds out which parameters the policy uses and which the value function, from the network's program.

    Args:
      network: any network.
      params: its parameters, or their shapes.
      observation: what it is applied to, or its shapes.

    Returns:
      The two parts, which have nothing in common.

    Raises:
      ConfigError: if a parameter serves both, as with a shared torso: a step of the value function would then move
        the policy, outside of its trust region.
    """
    shapes: list[Any] = []

    def outputs(params: Params, observation: Observation) -> Any:
        distribution, value = network.apply(params, observation)
        shapes.extend(jax.tree.leaves(distribution))
        return distribution, value

    program = jax.make_jaxpr(outputs)(params, observation).jaxpr
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    of_policy = [n < len(shapes) for n in range(len(program.outvars))]

    def used(by: list[bool]) -> tuple[bool, ...]:
        return tuple(dce_jaxpr(program, by)[1][: len(paths)])

    parts = Parts(used(of_policy), used([not flag for flag in of_policy]))
    shared = [path for path, *both in zip(paths, *parts, strict=True) if all(both)]
    require(
        not shared,
        f"policy and value function share parameters ({', '.join(shared[:2])}{', ...' * (len(shared) > 2)}), so that "
        "fitting values would move the policy out of its trust region; use a network with separate torsos and heads",
    )
    return parts


def as_vector(params: Params, chosen: tuple[bool, ...]) -> tuple[Array, Callable[[Array], Params]]:
    """The chosen leaves as one vector `[n]`, and the way from such a vector to parameters, the other leaves as here."""
    structure: Any  # jax types it as something that has no methods
    leaves, structure = jax.tree.flatten(params)
    vector, unravel = jax.flatten_util.ravel_pytree([x for x, mine in zip(leaves, chosen, strict=True) if mine])

    def rebuild(vector: Array) -> Params:
        mine = iter(unravel(vector))
        return structure.unflatten([next(mine) if flag else leaf for leaf, flag in zip(leaves, chosen, strict=True)])

    return jnp.asarray(vector), rebuild
