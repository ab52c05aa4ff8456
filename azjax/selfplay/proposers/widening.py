"""A schedule by hand: tasks near the neutral ones at first, and farther from them with every update."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from azjax.config import require_number
from azjax.selfplay.proposers.base import Feedback, Proposer, neutral_points
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Info, Key

__all__ = ["WideningConfig", "widening"]


@dataclasses.dataclass(frozen=True)
class WideningConfig:
    """Settings of the schedule.

    Attributes:
      start: how much of each axis of the cube is proposed at first, as a share.
      updates: after how many updates all of it is; it grows linearly in between.
    """

    start: float = 0.1
    updates: int = 1000

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        require_number("start of the widening schedule", self.start, 0.0, 1.0)
        require_number("updates of the widening schedule", self.updates, 1, 2**30)


def widening(family: TaskFamily, config: WideningConfig | None = None) -> Proposer:
    """Uniform proposals from a part of the cube that grows around the neutral task; the state counts updates.

    Args:
      family: the tasks. A neutral value outside its bounds counts as the nearest inside.
      config: settings; default ``WideningConfig()``.

    Raises:
      ConfigError: for a family or settings that make no sense.
    """
    config = WideningConfig() if config is None else config
    config.validate()
    family.validate()
    centres = neutral_points(family)

    def share(count: Array) -> Array:
        return jnp.minimum(1.0, config.start + (1.0 - config.start) * count / config.updates)

    def init(key: Key) -> Array:
        return jnp.zeros((), jnp.int32)

    def propose(state: Array, keys: Key) -> tuple[Proposal, tuple[()]]:
        drawn = jax.vmap(family.sample)(keys)
        centre = centres[drawn.type]
        return drawn._replace(cube=centre + share(state) * (drawn.cube - centre)), ()

    def update(state: Array, feedback: Feedback, key: Key) -> tuple[Array, Info]:
        return jnp.minimum(state + 1, config.updates), {"proposer/width": share(state)}

    return Proposer(init, propose, update)
