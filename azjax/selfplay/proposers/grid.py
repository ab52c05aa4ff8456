"""Grid-adaptive curriculum: what was done well makes its surroundings likelier.

References:
  Margolis et al., "Rapid Locomotion via Reinforcement Learning", 2022, https://arxiv.org/abs/2205.02824, section III-B.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from azjax.config import require_number
from azjax.selfplay.proposers.base import Feedback, Proposer, gather, neutral_points
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Info, Key

__all__ = ["GridConfig", "grid_adaptive"]

_MOST_CELLS = 2**20


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Settings of the grid.

    Attributes:
      cells: cells along each axis of the cube.
      start: half the width, along each axis, of the part around the neutral task that is likely from the start.
      passing: success rate of a task from which on its cell and all that touch it become likelier.
      step: by how much; weights end at 1, and never fall.
    """

    cells: int = 5
    start: float = 0.1
    passing: float = 0.8
    step: float = 0.2

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        require_number("cells of the adaptive grid", self.cells, 1, 1024)
        require_number("start of the adaptive grid", self.start, 0.0, 1.0)
        require_number("passing of the adaptive grid", self.passing, 0.0, 1.0)
        require_number("step of the adaptive grid", self.step, 1e-6, 1.0)


def grid_adaptive(family: TaskFamily, config: GridConfig | None = None, *, axis_name: str | None = None) -> Proposer:
    """The grid-adaptive curriculum, a grid for each type; the state is a tuple of their weights ``[cells] * size``.

    Args:
      family: the tasks; each type is proposed with equal probability.
      config: settings; default ``GridConfig()``.
      axis_name: the device axis, over which proposals are gathered.

    Raises:
      ConfigError: for a family or settings that make no sense, or a grid of more than 2^20 cells.
    """
    config = GridConfig() if config is None else config
    config.validate()
    family.validate()
    cells = config.cells
    sizes = [space.size for space in family.spaces.values()]
    require_number("the number of cells of the adaptive grid", cells ** max(sizes), 1, _MOST_CELLS)
    shapes = [(cells,) * size for size in sizes]

    def init(key: Key) -> tuple[Array, ...]:
        weights = []
        for space, point, shape in zip(family.spaces.values(), neutral_points(family), shapes, strict=True):
            apart = jnp.abs(space.grid(cells) - point[: space.size]).max(axis=-1)
            # The cell that the neutral task is in is always among them.
            near = apart <= jnp.maximum(config.start, 0.5 / cells + 1e-6)
            weights.append(near.astype(jnp.float32).reshape(shape))
        return tuple(weights)

    def propose(state: tuple[Array, ...], keys: Key) -> tuple[Proposal, tuple[()]]:
        def one(key: Key) -> Proposal:
            key_task, key_cell = jax.random.split(key)
            drawn = family.sample(key_task)
            cube = drawn.cube
            for number, (weights, size) in enumerate(zip(state, sizes, strict=True)):
                index = jax.random.categorical(key_cell, jnp.log(weights.reshape(-1)))
                cell = jnp.stack(jnp.unravel_index(index, weights.shape))
                inside = drawn.cube.at[:size].set((cell + drawn.cube[:size]) / cells)
                cube = jnp.where(drawn.type == number, inside, cube)
            return Proposal(drawn.type, jnp.clip(cube, 0.0, 1.0))

        return jax.vmap(one)(keys), ()

    def update(state: tuple[Array, ...], feedback: Feedback, key: Key) -> tuple[tuple[Array, ...], Info]:
        feedback = gather(feedback, axis_name)
        passed = feedback.accepted & (feedback.rate >= config.passing)
        after = []
        for number, (weights, size) in enumerate(zip(state, sizes, strict=True)):
            cell = jnp.clip((feedback.proposal.cube[:, :size] * cells).astype(jnp.int32), 0, cells - 1)
            index = jnp.ravel_multi_index(tuple(cell.T), weights.shape, mode="clip")
            mine = passed & (feedback.proposal.type == number)
            hit = jnp.zeros(weights.size).at[index].max(mine.astype(jnp.float32)).reshape(weights.shape)
            after.append(jnp.minimum(weights + config.step * _spread(hit), 1.0))
        likely = jnp.concatenate([(x > 0).reshape(-1) for x in after])
        return tuple(after), {"proposer/open_cells": jnp.mean(likely, dtype=jnp.float32)}

    return Proposer(init, propose, update)


def _spread(hit: Array) -> Array:
    """The largest value among a cell and all that touch it, corners included."""
    for axis in range(hit.ndim):
        padded = jnp.pad(hit, [(1, 1) if a == axis else (0, 0) for a in range(hit.ndim)])
        count = hit.shape[axis]
        hit = jnp.stack([jax.lax.slice_in_dim(padded, i, i + count, axis=axis) for i in range(3)]).max(axis=0)
    return hit
