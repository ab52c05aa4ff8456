"""What the solver learns from: the dense reward and how its attempts ended, each counted once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from azjax.minibatches import masked_mean, normalize_advantages
from azjax.on_policy import acting_values
from azjax.selfplay.baselines import task_role_advantages
from azjax.selfplay.config import SelfPlayConfig
from azjax.selfplay.ranked import RankedBuffer, ranked_reward
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Batch, Info, Key, Learner, Rollout

__all__ = ["Attempted", "Ends", "add_success", "only_outcome", "solver_batch", "task_cells"]


class Ends(NamedTuple):
    """How attempts ended, ``[T, B]``; an attempt ends at the step that ``over`` marks."""

    over: Array  # bool
    success: Array  # bool, False where no attempt ended
    score: Array  # float32, 0 where no attempt ended

    @property
    def first(self) -> Array:
        """Bool ``[T, B]``: the steps of the first attempt of each lane, its last one included."""
        before = jnp.cumsum(self.over, axis=0, dtype=jnp.int32) - self.over
        return before == 0

    def of_first(self, flags: Array) -> Array:
        """The entry ``[B]`` of ``[T, B]`` at the end of the first attempt of each lane; 0 or False if it has none."""
        at_end = self.first & self.over
        return jnp.where(at_end, flags, jnp.zeros_like(flags)).sum(axis=0).astype(flags.dtype)


class Attempted(NamedTuple):
    """What the lanes attempted in an update, and how that ended."""

    ends: Ends  # [T, B]
    proposal: Proposal  # [B]
    question: Array  # int32 [B] number of the proposal
    active: Array  # bool [B] False: not to be trained on


def solver_batch(
    learner: Learner,
    state: Any,
    past: RankedBuffer | None,
    rollout: Rollout,
    attempted: Attempted,
    key: Key,
    *,
    family: TaskFamily,
    config: SelfPlayConfig,
    axis_name: str | None,
) -> tuple[Batch, RankedBuffer | None, Info]:
    """What the solver learns from, by ``config.solver_reward``.

    Args:
      learner: the solver's.
      state: its state.
      past: the scores of the past, for ranked reward; else ``None``.
      rollout: ``[T, B]`` with the tasks' own reward.
      attempted: what the lanes did.
      key: for ties of ranked reward, the same on every device; consumed.
      family: of the tasks.
      config: settings.
      axis_name: the device axis.

    Returns:
      A batch ``[T, B]``, the past with this update's scores, and diagnostics.
    """
    ends, info = attempted.ends, {}
    if config.solver_reward == "success":
        rollout = only_outcome(rollout, ends, ends.success.astype(jnp.float32))
    elif past is not None:
        cell, _ = task_cells(family, attempted.proposal, config.past_cells)
        entered = ends.over & attempted.active
        past, judged = ranked_reward(
            past,
            ends.score.reshape(-1),
            jnp.broadcast_to(cell, ends.over.shape).reshape(-1),
            key,
            percentile=config.percentile,
            minimum=config.past_minimum,
            mask=entered.reshape(-1),
            axis_name=axis_name,
        )
        rollout = only_outcome(rollout, ends, judged.outcome.reshape(ends.over.shape))
        info["ranked_wins"] = masked_mean((judged.outcome > 0).astype(jnp.float32), judged.mask, axis_name)
        info["ranked_judged"] = masked_mean(judged.mask.reshape(ends.over.shape), entered, axis_name)
    batch = learner.estimate(state, rollout)
    batch = batch._replace(mask=batch.mask & attempted.active)
    if config.solver_reward == "dense":
        advantages = _of_success(attempted, len(family.types), config, axis_name)
        batch = add_success(batch, ends, advantages, config.success_weight, axis_name)
    return batch, past, info


def _of_success(attempted: Attempted, types: int, config: SelfPlayConfig, axis_name: str | None) -> Array:
    """The advantage of success of each lane's first attempt, ``[B]``."""
    ends, kind = attempted.ends, attempted.proposal.type
    per_question = config.baseline == "question"
    return task_role_advantages(
        ends.of_first(ends.success).astype(jnp.float32),
        kind,
        jnp.zeros_like(kind),
        tasks=types,
        roles=1,
        baseline=config.baseline,
        question=attempted.question if per_question else None,
        questions=config.proposals if per_question else None,
        weights=attempted.active,
        axis_name=axis_name,
    )


def add_success(
    batch: Batch, ends: Ends, advantages: Array, weight: Array | float, axis_name: str | None = None
) -> Batch:
    """The batch with the advantage of each lane's first attempt added to that of its decisions.

    The dense advantages are centred and scaled over the whole batch first, so that ``weight`` is in units of their
    standard deviation. Later attempts at the same task, of which short ones are seen more often, get their dense
    advantages alone. Targets of the value function, which knows the dense reward only, stay.

    Args:
      batch: of a rollout ``[T, B]`` whose rewards hold no bonus for success.
      ends: of its attempts.
      advantages: ``[B]`` of success, from ``task_role_advantages``.
      weight: of the success.
      axis_name: the device axis.
    """
    dense = normalize_advantages(batch.advantages, batch.mask, axis_name)
    total = dense + weight * jnp.where(ends.first, advantages, 0.0)
    return batch._replace(advantages=total, values=acting_values(batch))


def only_outcome(rollout: Rollout, ends: Ends, outcome: Array) -> Rollout:
    """The rollout with nothing to earn but an attempt's outcome ``[T, B]``, at its end.

    Every end is one of the task: nothing comes after the attempt that a value could stand for, for the time limit is
    part of the task.
    """
    reward = jnp.where(ends.over, outcome, 0.0)
    return rollout._replace(reward=reward, terminated=ends.over, truncated=jnp.zeros_like(ends.over))


def task_cells(family: TaskFamily, proposal: Proposal, cells: int) -> tuple[Array, int]:
    """In which cell of a coarse grid, ``cells`` along each axis of each type, proposals ``[...]`` lie; how many exist.

    Scores are comparable within such a cell: else easy tasks would always win.
    """
    cell = jnp.clip(jnp.nan_to_num(family.canonical(proposal).cube) * cells, 0, cells - 1).astype(jnp.int32)
    number = proposal.type
    for axis in range(family.size):
        number = number * cells + cell[..., axis]
    return number, len(family.types) * cells**family.size
