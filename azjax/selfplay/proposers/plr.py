r"""Prioritised level replay: tasks from which the solver's value function was surprised come again.

A task is replayed with probability

.. math:: (1 - \rho) \frac{\mathrm{rank}_i^{-1 / \beta}}{\sum_j \mathrm{rank}_j^{-1 / \beta}}
          + \rho \frac{t - t_i}{\sum_j (t - t_j)},

where the rank is that of its score, t counts updates and :math:`t_i` is when it was last attempted. The score is what
the loop reports as ``Feedback.regret``.

References:
  Jiang et al., "Prioritized Level Replay", 2021, https://arxiv.org/abs/2010.03934, section 3.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from azjax.config import require_number
from azjax.selfplay.proposers.base import Feedback, Proposer, gather
from azjax.selfplay.proposers.buffer import EMPTY, Buffer, init_buffer, keep_best, mean_by_place, replay_or_sample
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Info, Key

__all__ = ["PLRConfig", "PLRState", "plr"]


@dataclasses.dataclass(frozen=True)
class PLRConfig:
    r"""Settings of prioritised level replay.

    Attributes:
      capacity: tasks that the buffer holds.
      replay: probability that a proposal is replayed.
      temperature: :math:`\beta`; the smaller, the more the best ranks are preferred.
      staleness: :math:`\rho`, the weight of how long ago a task was attempted.
    """

    capacity: int = 4000
    replay: float = 0.5
    temperature: float = 0.3
    staleness: float = 0.3

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        require_number("capacity of prioritised level replay", self.capacity, 1, 2**24)
        require_number("replay of prioritised level replay", self.replay, 0.0, 1.0)
        require_number("temperature of prioritised level replay", self.temperature, 1e-3, 1e3)
        require_number("staleness of prioritised level replay", self.staleness, 0.0, 1.0)


@flax.struct.dataclass
class PLRState:
    """The buffer, and the number of updates so far."""

    buffer: Buffer
    updates: Array  # int32 []


def plr(family: TaskFamily, config: PLRConfig | None = None, *, axis_name: str | None = None) -> Proposer:
    """Prioritised level replay as a proposer; the memo is the place in the buffer, -1 for a fresh task.

    Args:
      family: the tasks.
      config: settings; default ``PLRConfig()``.
      axis_name: the device axis, over which proposals are gathered.

    Raises:
      ConfigError: for a family or settings that make no sense.
    """
    config = PLRConfig() if config is None else config
    config.validate()
    family.validate()

    def init(key: Key) -> PLRState:
        return PLRState(init_buffer(family, config.capacity), jnp.zeros((), jnp.int32))

    def propose(state: PLRState, keys: Key) -> tuple[Proposal, Array]:
        log_weights = jnp.log(replay_weights(state.buffer, state.updates, config))
        return replay_or_sample(
            state.buffer,
            family,
            keys,
            fresh=1.0 - config.replay,
            draw=lambda key: jax.random.categorical(key, log_weights),
        )

    def update(state: PLRState, feedback: Feedback, key: Key) -> tuple[PLRState, Info]:
        feedback = gather(feedback, axis_name)
        buffer, now = state.buffer, state.updates + 1
        usable = feedback.accepted & jnp.isfinite(feedback.regret)
        score = jnp.where(usable, feedback.regret, EMPTY)
        seen, again = mean_by_place(feedback.memo, config.capacity, score)
        times = jnp.where(seen, now, buffer.attempted)
        buffer = Buffer(buffer.tasks, jnp.where(seen, again, buffer.score), times)
        fresh = feedback.memo < 0
        buffer = keep_best(buffer, feedback.proposal, jnp.where(fresh, score, EMPTY), now)
        info = {
            "proposer/buffer_tasks": buffer.count.astype(jnp.float32),
            "proposer/fresh": jnp.mean(fresh, dtype=jnp.float32),
        }
        return PLRState(buffer, now), info

    return Proposer(init, propose, update)


def replay_weights(buffer: Buffer, updates: Array, config: PLRConfig) -> Array:
    """The probability ``[K]`` with which each task is replayed; 0 where there is none."""
    held = buffer.score > EMPTY
    # In logarithms: of a rank in the thousands, at a small temperature, float32 has no power.
    ranks = jnp.arange(1, held.shape[0] + 1, dtype=jnp.float32)
    by_score = jax.nn.softmax(jnp.where(held, -jnp.log(ranks) / config.temperature, EMPTY))
    stale = jnp.where(held, updates - buffer.attempted, 0).astype(jnp.float32)
    by_age = jnp.where(stale.sum() > 0, stale / jnp.maximum(stale.sum(), 1.0), by_score)
    mixed = (1.0 - config.staleness) * by_score + config.staleness * by_age
    return jnp.where(held, mixed, 0.0)
