r"""Advantages of whole attempts without a value function: a baseline and a scale for each kind of entry.

Task-relative REINFORCE++ (TRR++): the rewards of each cell, task type x role, are centred and scaled by that cell's own
mean and standard deviation, for a proposer's reward and a solver's are different things, and so are those of different
task types:

.. math:: A = \frac{r - \mu_{task, role}}{\sigma_{task, role}}

References:
  Zhao et al., "Absolute Zero: Reinforced Self-play Reasoning with Zero Data", 2025, https://arxiv.org/abs/2505.03335,
  equation 8.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from azjax.config import nearest, require
from azjax.minibatches import sum_over_devices

__all__ = ["Baseline", "CellStatistics", "cell_statistics", "task_role_advantages"]

Baseline = Literal["task-role", "global", "question"]


class CellStatistics(NamedTuple):
    """Rewards of each cell, over all devices; 0 for a cell without entries."""

    mean: chex.Array  # float32 [C]
    std: chex.Array  # float32 [C] population standard deviation; exactly 0 if all rewards of a cell are equal
    weight: chex.Array  # float32 [C] sum of the weights: without weights, the number of entries


def cell_statistics(
    rewards: chex.Array,
    cell: chex.Array,
    cells: int,
    *,
    weights: chex.Array | None = None,
    axis_name: str | None = None,
) -> CellStatistics:
    """Mean and standard deviation of the rewards of each cell.

    Args:
      rewards: `[...]`.
      cell: int, of the same shape: which cell an entry belongs to, from 0 to `cells - 1`; others belong to none.
      cells: the number of cells.
      weights: of the same shape, not negative; 0 or False leaves an entry out, whatever its reward. Numbers of tokens
        give the statistics over tokens that Absolute Zero's published code takes.
      axis_name: the device axis, over which cells extend.

    Raises:
      AssertionError: if the shapes differ.
    """
    centred = _centre(rewards, cell, cells, weights, axis_name)
    return CellStatistics(centred.origin + centred.mean, centred.std, centred.weight)


def task_role_advantages(
    rewards: chex.Array,
    task: chex.Array,
    role: chex.Array,
    *,
    tasks: int,
    roles: int = 2,
    baseline: Baseline = "task-role",
    question: chex.Array | None = None,
    questions: int | None = None,
    weights: chex.Array | None = None,
    axis_name: str | None = None,
    epsilon: float = 1e-8,
) -> chex.Array:
    r"""Advantages of attempts and proposals: :math:`(r - \mu_{cell}) / (\sigma_{cell} + \epsilon)`.

    A cell whose rewards are all equal, or that has a single entry, gives exactly 0.

    Args:
      rewards: `[...]`, one for each attempt or proposal.
      task: int, of the same shape: the task type, from 0 to `tasks - 1`. An entry of no type or role gets 0.
      role: int, of the same shape: 0 or 1, from 0 to `roles - 1`.
      tasks: the number of task types.
      roles: the number of roles.
      baseline: `task-role`, a cell for each task type x role; `global`, one for all entries; `question`, one for each
        group of attempts at the same question (GRPO).
      question: int, of the same shape, for `question` only: which question an entry answers, numbered over all devices.
      questions: their number.
      weights: see :func:`cell_statistics`; entries of weight 0 get advantage 0.
      axis_name: the device axis: statistics are those of all devices' entries together.
      epsilon: added to the standard deviation.

    Returns:
      float32 `[...]`.

    Raises:
      ConfigError: for an unknown baseline, or questions that are missing or not asked for.
      AssertionError: if the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> rewards, task = jnp.array([0., 1., 10., 30., 5.]), jnp.array([0, 0, 1, 1, 2])
      >>> task_role_advantages(rewards, task, jnp.zeros_like(task), tasks=3).tolist()
      [-1.0, 1.0, -1.0, 1.0, 0.0]

    References:
      arXiv 2505.03335, equation 8.
      Shao et al., "DeepSeekMath", 2024, https://arxiv.org/abs/2402.03300, section 4.1, for the baseline per question.
    """
    known = list(get_args(Baseline))
    require(baseline in known, f"no baseline {baseline!r}{nearest(baseline, known)} (there are: {', '.join(known)})")
    chex.assert_equal_shape([rewards, task, role])
    known_cell = (task >= 0) & (task < tasks) & (role >= 0) & (role < roles)
    if baseline == "question":
        require(question is not None and questions is not None, "baseline 'question' needs question and questions")
        cell, cells = jnp.asarray(question), int(questions or 0)
    else:
        require(question is None and questions is None, f"baseline {baseline!r} has no use for question and questions")
        cell, cells = (task * roles + role, tasks * roles) if baseline == "task-role" else (jnp.zeros_like(task), 1)
    centred = _centre(rewards, jnp.where(known_cell, cell, cells), cells, weights, axis_name)
    scale = jnp.append(centred.std, 0.0)[centred.cell] + epsilon
    return jnp.where(centred.counts, centred.deviation / scale, 0.0)


class _Centred(NamedTuple):
    deviation: chex.Array  # [...] from the mean of the entry's cell; 0 for an entry that doesn't count
    counts: chex.Array  # bool [...]
    cell: chex.Array  # int32 [...] C for an entry that doesn't count
    origin: chex.Array  # [C] the smallest reward
    mean: chex.Array  # [C] above the origin
    std: chex.Array  # [C]
    weight: chex.Array  # [C]


def _centre(
    rewards: chex.Array, cell: chex.Array, cells: int, weights: chex.Array | None, axis_name: str | None
) -> _Centred:
    """Rewards less their cell's mean.

    They are counted from the cell's smallest: so equal ones deviate by exactly 0, and a constant in all rewards costs
    no digits of their differences.
    """
    chex.assert_equal_shape([rewards, cell] + ([] if weights is None else [weights]))
    weight = jnp.ones(rewards.shape) if weights is None else jnp.asarray(weights, jnp.float32)
    counts = (cell >= 0) & (cell < cells) & (weight > 0)
    cell = jnp.where(counts, cell, cells).astype(jnp.int32)
    weight = jnp.where(counts, weight, 0.0)
    rewards = jnp.where(counts, jnp.asarray(rewards, jnp.float32), 0.0)

    def total(x: chex.Array) -> chex.Array:
        return sum_over_devices(jnp.zeros(cells + 1).at[cell].add(x), axis_name)

    origin = jnp.full(cells + 1, jnp.inf).at[cell].min(rewards)
    origin = origin if axis_name is None else jax.lax.pmin(origin, axis_name)
    origin = jnp.where(jnp.isfinite(origin), origin, 0.0)
    weight_sum = total(weight)
    safe_sum = jnp.where(weight_sum > 0, weight_sum, 1.0)
    above = rewards - origin[cell]
    mean = total(weight * above) / safe_sum
    deviation = jnp.where(counts, above - mean[cell], 0.0)
    std = jnp.sqrt(total(weight * jnp.square(deviation)) / safe_sum)
    return _Centred(deviation, counts, cell, origin[:-1], mean[:-1], std[:-1], weight_sum[:-1])
