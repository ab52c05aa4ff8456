"""Uniform domain randomisation: the baseline that every proposer must beat."""

from __future__ import annotations

from typing import Any

import jax

from azjax.selfplay.proposers.base import Feedback, Proposer
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Info, Key

__all__ = ["uniform"]


def uniform(family: TaskFamily) -> Proposer:
    """Proposes each type with equal probability, and each point of its cube.

    Args:
      family: the tasks.

    Raises:
      ConfigError: for a family that makes no sense.
    """
    family.validate()

    def init(key: Key) -> tuple[()]:
        return ()

    def propose(state: Any, keys: Key) -> tuple[Proposal, Any]:
        return jax.vmap(family.sample)(keys), ()

    def update(state: Any, feedback: Feedback, key: Key) -> tuple[Any, Info]:
        return state, {}

    return Proposer(init, propose, update)
