"""What the solver learns from: the dense reward and how its attempts ended, each counted once."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp

from azjax.minibatches import normalize_advantages
from azjax.on_policy import acting_values
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Batch, Rollout

__all__ = ["SOLVER_REWARDS", "Ends", "SolverReward", "add_success", "only_outcome", "task_cells"]

SolverReward = Literal["dense", "success", "ranked"]
SOLVER_REWARDS: tuple[str, ...] = get_args(SolverReward)


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
