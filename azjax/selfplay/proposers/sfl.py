"""Sampling for learnability (SFL): a buffer of the tasks whose outcome is most in doubt.

The published method scores thousands of random tasks in rollouts of their own every so often, and trains half on the
best of them. Here the attempts that the solver learns from are the score, so that none is spent on scoring: fresh
proposals, which are a share of each update's, compete with the buffer's tasks, which are scored again whenever they are
replayed and lose a share of their score at every update in which they are not.

References:
  Rutherford et al., "No Regrets: Investigating and Improving Regret Approximations for Curriculum Discovery", 2024,
  https://arxiv.org/abs/2408.15099; the small preference for solvable tasks among equals is that of Kinetix (Matthews et
  al., 2024, https://arxiv.org/abs/2410.23208).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from azjax.config import require_number
from azjax.selfplay.proposers.base import Feedback, Proposer, gather
from azjax.selfplay.proposers.buffer import EMPTY, Buffer, init_buffer, keep_best, mean_by_place, replay_or_sample
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Info, Key

__all__ = ["SFLConfig", "sfl"]

_TIE_BREAK = 1e-3  # times the success rate


@dataclasses.dataclass(frozen=True)
class SFLConfig:
    """Settings of the learnability buffer.

    Attributes:
      capacity: tasks that the buffer holds.
      fresh: probability that a proposal is a uniform one; the rest is drawn from the buffer with equal probability.
      decay: factor on the score of a task at every update in which it was not attempted.
    """

    capacity: int = 1024
    fresh: float = 0.5
    decay: float = 0.98

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        require_number("capacity of the learnability buffer", self.capacity, 1, 2**24)
        require_number("fresh share of the learnability buffer", self.fresh, 0.0, 1.0)
        require_number("decay of the learnability buffer", self.decay, 1e-3, 1.0)


def sfl(family: TaskFamily, config: SFLConfig | None = None, *, axis_name: str | None = None) -> Proposer:
    """The learnability buffer as a proposer; the memo is the place in the buffer, -1 for a fresh task.

    Args:
      family: the tasks.
      config: settings; default ``SFLConfig()``. A task enters the buffer if its reward is greater than 0.
      axis_name: the device axis, over which proposals are gathered.

    Raises:
      ConfigError: for a family or settings that make no sense.
    """
    config = SFLConfig() if config is None else config
    config.validate()
    family.validate()
    capacity = config.capacity

    def init(key: Key) -> Buffer:
        return init_buffer(family, capacity)

    def propose(state: Buffer, keys: Key) -> tuple[Proposal, Array]:
        held = jnp.maximum(state.count, 1)
        return replay_or_sample(
            state, family, keys, fresh=config.fresh, draw=lambda key: jax.random.randint(key, (), 0, held)
        )

    def update(state: Buffer, feedback: Feedback, key: Key) -> tuple[Buffer, Info]:
        feedback = gather(feedback, axis_name)
        fresh = feedback.memo < 0
        seen, reward, rate = mean_by_place(feedback.memo, capacity, feedback.reward, feedback.rate)
        again = dataclasses.replace(state, score=jnp.where(seen, _score(reward, rate), state.score * config.decay))
        first = jnp.where(fresh & feedback.accepted, _score(feedback.reward, feedback.rate), EMPTY)
        state = keep_best(again, feedback.proposal, first, jnp.zeros((), jnp.int32))
        held = state.score > EMPTY
        info = {
            "proposer/buffer_tasks": state.count.astype(jnp.float32),
            "proposer/buffer_score": jnp.where(held, state.score, 0.0).sum() / jnp.maximum(state.count, 1),
            "proposer/fresh": jnp.mean(fresh, dtype=jnp.float32),
        }
        return state, info

    return Proposer(init, propose, update)


def _score(reward: Array, rate: Array) -> Array:
    """What tasks compete by; a task from which nothing can be learned does not."""
    return jnp.where(reward > 0.0, reward + _TIE_BREAK * rate, EMPTY)
