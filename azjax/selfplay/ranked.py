r"""Ranked reward: an agent plays against its own recent past.

A score becomes a win (+1) or a loss (-1) by comparison with a percentile of the scores of the recent past:

.. math::
    z = \begin{cases} +1 & r > r_\alpha \text{ or } r \ge r_{max} \\ -1 & r < r_\alpha \\
    \pm 1 \text{ at random} & r = r_\alpha \end{cases}

:math:`r_\alpha` is the :math:`\alpha`-th percentile, by nearest rank, of a ring buffer of the scores before this batch.
At a standstill a share :math:`1 - \alpha / 100` wins, so that improvement cannot be seen in z: the scores themselves
are what to plot.

References:
  Laterre et al., "Ranked Reward: Enabling Self-Play Reinforcement Learning for Combinatorial Optimization", 2018,
  https://arxiv.org/abs/1807.01672, equation 2.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from azjax.config import require_number

__all__ = ["RankedBuffer", "RankedReward", "init_ranked", "ranked_reward"]


@flax.struct.dataclass
class RankedBuffer:
    """The most recent scores of each group; the same on all devices."""

    scores: chex.Array  # float32 [G, capacity] a ring
    count: chex.Array  # int32 [G] entries that hold a score
    position: chex.Array  # int32 [G] where the next score goes


class RankedReward(NamedTuple):
    """Wins and losses of a batch."""

    outcome: chex.Array  # float32 [N] +1, -1, or 0 where masked
    mask: chex.Array  # bool [N] False: the group's past is too short, or the entry was no valid score
    threshold: chex.Array  # float32 [G] what there was to beat; NaN where the past is too short


def init_ranked(groups: int, capacity: int = 250) -> RankedBuffer:
    """A buffer without scores.

    Args:
      groups: number of groups, each with a past of its own, e.g. one for each task type or cell of a grid of tasks.
      capacity: scores remembered for each group; 2 to 4 times what a batch brings, or the threshold reflects the last
        batch only.

    Raises:
      ConfigError: for a number below 1.
    """
    require_number("groups", groups, 1, 2**30)
    require_number("capacity", capacity, 1, 2**30)
    count, position = jnp.zeros(groups, jnp.int32), jnp.zeros(groups, jnp.int32)  # of one array no two can be donated
    return RankedBuffer(jnp.zeros((groups, capacity), jnp.float32), count, position)


def ranked_reward(
    buffer: RankedBuffer,
    scores: chex.Array,
    groups: chex.Array,
    key: chex.PRNGKey,
    *,
    percentile: chex.Numeric = 75.0,
    minimum: int = 50,
    max_score: chex.Numeric | None = None,
    mask: chex.Array | None = None,
    axis_name: str | None = None,
) -> tuple[RankedBuffer, RankedReward]:
    r"""Wins and losses of a batch of scores against their groups' past, and the past with the batch in it.

    The threshold is taken before the batch is pushed, so that no score competes with its own batch. Ties, which must be
    exact, go either way with equal probability. The scores of a batch count as simultaneous: they enter the ring in
    random order, and if a group gets more of them than its buffer holds, a random subset stays.

    Only order matters: a strictly increasing transform of all scores, past ones included, changes no outcome. A binary
    score makes nearly all comparisons ties, which is noise; a continuous one is what this is for.

    Args:
      buffer: the past, from :func:`init_ranked`.
      scores: `[N]`, each device's own; an entry that is not finite is masked and not remembered.
      groups: int `[N]` which group's past a score competes with; an entry outside `[0, G)` is masked.
      key: for ties and for the order in the ring, the same on every device; consumed.
      percentile: in [0, 100]; may be traced. The threshold is the score of rank `ceil(percentile / 100 * n)` (at least
        1) among the group's n.
      minimum: scores that a group must have before anything is won or lost; until then outcomes are 0 and masked.
      max_score: a score that cannot be improved, which always wins once the group has its minimum; None: no rule.
      mask: bool `[N]`, False entries are neither judged nor remembered.
      axis_name: the device axis: the batches of all devices are pushed, outcomes don't depend on how they are divided.

    Returns:
      The buffer with the batch, and the `RankedReward`.

    Raises:
      ConfigError: for a concrete percentile outside [0, 100], or a minimum outside [1, capacity].
      AssertionError: if `scores`, `groups` and `mask` are not of one shape `[N]`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> buffer = init_ranked(groups=1, capacity=4)
      >>> key, group = jax.random.key(0), jnp.zeros(4, jnp.int32)
      >>> buffer, first = ranked_reward(buffer, jnp.array([1., 2., 3., 4.]), group, key, minimum=4)
      >>> first.outcome.tolist(), first.mask.tolist()
      ([0.0, 0.0, 0.0, 0.0], [False, False, False, False])
      >>> buffer, second = ranked_reward(buffer, jnp.array([2., 2.9, 3.1, 9.]), group, key, minimum=4)
      >>> second.threshold.tolist(), second.outcome.tolist()
      ([3.0], [-1.0, -1.0, 1.0, 1.0])

    References:
      arXiv 1807.01672, equation 2.
    """
    chex.assert_rank(scores, 1)
    chex.assert_equal_shape([scores, groups] + ([] if mask is None else [mask]))
    number, capacity = buffer.scores.shape
    require_number("minimum", minimum, 1, capacity)
    if not isinstance(percentile, jax.core.Tracer):
        require_number("percentile", float(percentile), 0.0, 100.0)
    scores = jnp.asarray(scores, jnp.float32)
    groups = jnp.asarray(groups, jnp.int32)
    valid = jnp.isfinite(scores) & (groups >= 0) & (groups < number)
    valid = valid if mask is None else valid & mask.astype(bool)
    key_ties, key_order = jax.random.split(key)

    threshold = _nearest_rank(buffer, percentile)
    inside = jnp.clip(groups, 0, number - 1)
    own, judged = threshold[inside], valid & (buffer.count[inside] >= minimum)
    wins = (scores > own) | ((scores == own) & _coins(key_ties, scores.shape[0], axis_name))
    wins = wins if max_score is None else wins | (scores >= max_score)
    outcome = jnp.where(judged, jnp.where(wins, 1.0, -1.0), 0.0)

    if axis_name is not None:
        scores, groups, valid = jax.lax.all_gather((scores, groups, valid), axis_name, tiled=True)
    pushed = _push(buffer, scores, jnp.where(valid, groups, number), key_order)
    return pushed, RankedReward(outcome, judged, jnp.where(buffer.count >= minimum, threshold, jnp.nan))


def _nearest_rank(buffer: RankedBuffer, percentile: chex.Numeric) -> chex.Array:
    """The percentile of each group's entries, `[G]`; infinite for an empty group."""
    held = jnp.arange(buffer.scores.shape[1]) < buffer.count[:, None]
    ordered = jnp.sort(jnp.where(held, buffer.scores, jnp.inf), axis=1)
    # Multiplied first, a whole percentage of a whole number is exact in float32.
    rank = jnp.ceil(jnp.asarray(percentile, jnp.float32) * buffer.count / 100.0).astype(jnp.int32)
    index = jnp.clip(rank - 1, 0, jnp.maximum(buffer.count - 1, 0))
    return jnp.take_along_axis(ordered, index[:, None], axis=1)[:, 0]


def _coins(key: chex.PRNGKey, number: int, axis_name: str | None) -> chex.Array:
    """A fair coin for each entry, which depends on its number among those of all devices only."""
    offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * number
    return jax.vmap(lambda n: jax.random.bernoulli(jax.random.fold_in(key, n)))(offset + jnp.arange(number))


def _push(buffer: RankedBuffer, scores: chex.Array, groups: chex.Array, key: chex.PRNGKey) -> RankedBuffer:
    """Writes scores `[M]` into the rings of their groups; those of group G, one past the last, are dropped."""
    number, capacity = buffer.scores.shape
    order = jnp.lexsort((jax.random.bits(key, scores.shape), groups))
    scores, groups = scores[order], groups[order]
    first = jnp.searchsorted(groups, jnp.arange(number + 1))
    rank = jnp.arange(scores.shape[0]) - first[groups]
    groups = jnp.where(rank < capacity, groups, number)
    inside = jnp.minimum(groups, number - 1)
    slot = (buffer.position[inside] + rank) % capacity
    arrived = jnp.minimum(jnp.diff(first), capacity).astype(jnp.int32)
    return RankedBuffer(
        scores=buffer.scores.at[groups, slot].set(scores, mode="drop"),
        count=jnp.minimum(buffer.count + arrived, capacity),
        position=(buffer.position + arrived) % capacity,
    )
