"""What a proposer is: three pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp

from azjax.selfplay.scores import LearnabilityKind, learnability
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Info, Key

__all__ = ["Feedback", "Proposer", "gather", "neutral_points", "proposer_reward"]

T = TypeVar("T")
REFUSED = -1.0


class Feedback(NamedTuple):
    """What became of a device's own proposals ``[N]``."""

    proposal: Proposal  # [N]
    memo: Any  # what ``propose`` returned beside them
    reward: Array  # float32 [N] the proposer's, see ``proposer_reward``
    accepted: Array  # bool [N] by verification; the rest was not attempted
    rate: Array  # float32 [N] share of the attempts that succeeded; 0 where refused
    regret: Array  # float32 [N] what replay ranks by: e.g. the attempts' mean |GAE|; 0 where refused


class InitFn(Protocol):
    """``init(key) -> state``."""

    def __call__(self, key: Key) -> Any:
        """A fresh state, the same on every device; ``key`` is consumed."""
        ...


class ProposeFn(Protocol):
    """``propose(state, keys) -> (Proposal, memo)``."""

    def __call__(self, state: Any, keys: Key) -> tuple[Proposal, Any]:
        """A proposal for each of ``keys`` ``[N]``, which are consumed, and what ``update`` must know about it."""
        ...


class UpdateFn(Protocol):
    """``update(state, feedback, key) -> (state, Info)``."""

    def __call__(self, state: Any, feedback: Feedback, key: Key) -> tuple[Any, Info]:
        """A state that has learned from feedback, the same on every device, and diagnostics; ``key`` is consumed."""
        ...


class Proposer(NamedTuple):
    """Three pure functions, as a ``Learner`` is four.

    Each proposal has a key of its own, so that which tasks are proposed does not depend on how they are divided among
    devices; the state is the same on all of them.
    """

    init: InitFn
    propose: ProposeFn
    update: UpdateFn


def proposer_reward(
    accepted: chex.Array, successes: chex.Array, attempts: chex.Numeric, kind: LearnabilityKind = "variance"
) -> chex.Array:
    """The proposer's reward ``[N]``: -1 for what verification refused, else the learnability of the task.

    Args:
      accepted: bool `[N]`.
      successes: `[N]` attempts that succeeded; not read where refused.
      attempts: how many there were of each task, at least 2.
      kind: see :func:`azjax.selfplay.learnability`.

    Examples:
      >>> import jax.numpy as jnp
      >>> proposer_reward(jnp.array([True, True, False]), jnp.array([1, 4, 0]), 4).tolist()
      [1.0, 0.0, -1.0]
    """
    return jnp.where(accepted, learnability(jnp.where(accepted, successes, 0), attempts, kind), REFUSED)


def gather(tree: T, axis_name: str | None) -> T:
    """The entries of all devices, in order, along the first axis."""
    if axis_name is None:
        return tree
    gathered: T = jax.lax.all_gather(tree, axis_name, tiled=True)
    return gathered


def neutral_points(family: TaskFamily) -> Array:
    """The point ``[types, D]`` of the cube nearest to the neutral task of each type; 0 on axes that a type lacks."""
    points = jnp.zeros((len(family.types), family.size))
    for number, space in enumerate(family.spaces.values()):
        values = {name: jnp.clip(p.neutral, p.low, p.high) for name, p in space.parameters.items()}
        points = points.at[number, : space.size].set(space.encode(values))
    return points
