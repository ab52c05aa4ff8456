"""Where in the task space proposals fell and how they went, through time: what heat maps are drawn from."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp

from azjax.minibatches import sum_over_devices
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array

__all__ = ["CELLS", "PHASES", "Plane", "TaskMaps", "add_to_maps", "init_maps", "planes_of", "proposal_entropy"]

PHASES, CELLS = 16, 10


class Plane(NamedTuple):
    """Two axes of a type's cube; a type with a single one has it twice."""

    type: int
    first: int
    second: int


@flax.struct.dataclass
class TaskMaps:
    """Sums over the proposals of each phase of training, on a grid over each plane.

    Once all phases are in use, neighbours are merged and phases last twice as long: so the maps of a run of any length
    fit, and the length need not be known.
    """

    proposed: Array  # float32 [PHASES, planes, CELLS, CELLS] proposals
    accepted: Array  # likewise: those of them that verification accepted
    rate: Array  # likewise: sum of their success rates
    reward: Array  # likewise: sum of their learnability
    length: Array  # int32 [] updates of a phase
    updates: Array  # int32 [] so far


def planes_of(family: TaskFamily) -> tuple[Plane, ...]:
    """All pairs of axes of every type, in the order of ``TaskMaps``."""
    planes = []
    for number, space in enumerate(family.spaces.values()):
        pairs = list(itertools.combinations(range(space.size), 2)) or [(0, 0)]
        planes += [Plane(number, *pair) for pair in pairs]
    return tuple(planes)


def init_maps(family: TaskFamily) -> TaskMaps:
    """Empty maps."""
    proposed, accepted, rate, reward = (jnp.zeros((PHASES, len(planes_of(family)), CELLS, CELLS)) for _ in range(4))
    return TaskMaps(proposed, accepted, rate, reward, jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32))


def add_to_maps(
    maps: TaskMaps,
    family: TaskFamily,
    proposal: Proposal,
    accepted: Array,
    rate: Array,
    reward: Array,
    axis_name: str | None = None,
) -> TaskMaps:
    """Maps with the proposals ``[N]`` of one more update.

    Args:
      maps: so far.
      family: whose tasks they are.
      proposal: ``[N]``, each device its own.
      accepted: bool ``[N]`` by verification.
      rate: ``[N]`` share of the attempts that succeeded; not read where refused.
      reward: ``[N]`` learnability; not read where refused.
      axis_name: the device axis.
    """
    full = maps.updates >= PHASES * maps.length
    names = ("proposed", "accepted", "rate", "reward")
    merged = {name: jnp.where(full, _merge(getattr(maps, name)), getattr(maps, name)) for name in names}
    length = jnp.where(full, 2 * maps.length, maps.length)
    phase = maps.updates // length
    one = jnp.ones(rate.shape)
    entries = {
        "proposed": one,
        "accepted": jnp.where(accepted, one, 0.0),
        "rate": jnp.where(accepted, rate, 0.0),
        "reward": jnp.where(accepted, reward, 0.0),
    }
    cell = jnp.clip(jnp.nan_to_num(proposal.cube) * CELLS, 0, CELLS - 1).astype(jnp.int32)
    planes = planes_of(family)

    def drawn(values: Array) -> Array:
        layers = []
        for plane in planes:
            mine = jnp.where(proposal.type == plane.type, values, 0.0)
            layers.append(jnp.zeros((CELLS, CELLS)).at[cell[:, plane.first], cell[:, plane.second]].add(mine))
        return jnp.stack(layers)

    sums = sum_over_devices({name: drawn(values) for name, values in entries.items()}, axis_name)
    after = {name: merged[name].at[phase].add(sums[name]) for name in names}
    return TaskMaps(**after, length=length, updates=maps.updates + 1)


def proposal_entropy(counts: Array) -> Array:
    """Entropy of proposals over the cells of a map ``[..., C, C]``, as a share of the largest possible, ``[...]``.

    The plug-in estimate: of few proposals it is too small. 0 where there were none.
    """
    flat = counts.reshape(*counts.shape[:-2], -1)
    total = flat.sum(axis=-1, keepdims=True)
    share = flat / jnp.maximum(total, 1.0)
    bits = -jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0).sum(axis=-1)
    return bits / jnp.log(jnp.minimum(flat.shape[-1], jnp.maximum(total[..., 0], 2.0)))


def _merge(sums: Array) -> Array:
    """Pairs of neighbouring phases added up in the first half; the second is empty."""
    pairs = sums[0::2] + sums[1::2]
    return jnp.concatenate([pairs, jnp.zeros_like(pairs)])
