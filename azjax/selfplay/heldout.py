"""A fixed grid of tasks on which solvers are compared, and what their success on it comes down to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import require, require_number
from azjax.selfplay.spaces import Proposal, Task, TaskFamily

__all__ = ["COVERED", "HeldOut", "HeldOutScores", "held_out_grid", "held_out_scores"]

COVERED = 0.8
"""The success rate from which on a task counts as covered."""
_WORST = 0.1
_MOST_DRAWN = 2**22


class HeldOut(NamedTuple):
    """Tasks of the grid, ``[G]``."""

    task: Task  # [G]
    cube: np.ndarray  # float32 [G, D] points of the training family's cube; beyond [0, 1] outside of it
    inside: np.ndarray  # bool [G] within the training range


class HeldOutScores(NamedTuple):
    """A solver on a part of the grid."""

    tasks: int
    success: float  # mean over tasks
    coverage: float  # share of the tasks whose success rate is at least ``COVERED``
    cvar10: float  # mean success of the worst tenth of the tasks, chosen by other episodes than those reported


def held_out_grid(family: TaskFamily, wider: TaskFamily, tasks: int = 1024, outside: float = 0.25) -> HeldOut:
    """A fixed grid of tasks, a part of them outside of the training range.

    Points are those of an additive recurrence with the generalised golden ratio, which cover a cube of any dimension
    evenly, each type with as many of them as the others.

    Args:
      family: what is trained on.
      wider: the same types and parameters with wider bounds, see ``azjax.selfplay.wider_family``.
      tasks: how many.
      outside: the share of them outside of ``family``'s bounds.

    Raises:
      ConfigError: for numbers out of range, families whose types differ, or nothing outside.
    """
    types = len(family.types)
    require_number("tasks of the held-out grid", tasks, types, 2**20)
    require_number("outside share of the held-out grid", outside, 0.0, 1.0)
    require(family.types == wider.types, f"the wider family has types {wider.types}, the family {family.types}")
    rows = []
    for number, (space, wide) in enumerate(zip(family.spaces.values(), wider.spaces.values(), strict=True)):
        count = (number + 1) * tasks // types - number * tasks // types
        beyond = round(outside * count)
        inner = _lattice(count - beyond, space.size)
        outer = np.zeros((0, space.size), np.float32)
        drawn = 64 + 4 * beyond
        while beyond and len(outer) < beyond:
            require(drawn <= _MOST_DRAWN, f"next to no {family.types[number]} task is outside of the training range")
            points = np.asarray(space.encode(wide.decode(jnp.asarray(_lattice(drawn, space.size)))))
            outer, drawn = points[((points < -1e-4) | (points > 1 + 1e-4)).any(axis=1)][:beyond], 2 * drawn
        cube = np.zeros((count, family.size), np.float32)
        cube[:, : space.size] = np.concatenate([inner, outer])
        rows.append((np.full(count, number, np.int32), cube, np.arange(count) < count - beyond))
    type_, cube, inside = (np.concatenate(x) for x in zip(*rows, strict=True))
    return HeldOut(family.decode(Proposal(jnp.asarray(type_), jnp.asarray(cube))), cube, inside)


def held_out_scores(success: np.ndarray, chosen: np.ndarray) -> HeldOutScores | None:
    """What success on some tasks comes down to.

    Args:
      success: bool ``[G, n]`` of the episodes at each task; the first half of them, played with seeds of their own,
        chooses the worst tasks, of which the other half is reported.
      chosen: bool ``[G]`` the tasks that are asked about.

    Returns:
      ``None`` if there are no such tasks.

    Raises:
      ConfigError: for fewer than 2 episodes a task.
    """
    require_number("episodes of each held-out task", success.shape[1], 2)
    part = np.asarray(success, np.float64)[np.asarray(chosen)]
    if not len(part):
        return None
    half = part.shape[1] // 2
    choosing, reported = part[:, :half].mean(axis=1), part[:, half:].mean(axis=1)
    worst = np.argsort(choosing, kind="stable")[: math.ceil(_WORST * len(part))]
    rate = part.mean(axis=1)
    return HeldOutScores(
        tasks=len(part),
        success=float(rate.mean()),
        coverage=float((rate >= COVERED).mean()),
        cvar10=float(reported[worst].mean()),
    )


def repeat_tasks(held_out: HeldOut, episodes: int) -> Any:
    """The tasks of so many episodes at each, ``[episodes * G]``: one episode at each task after the other."""
    return jax.tree.map(lambda x: jnp.tile(x, episodes), held_out.task)


def _lattice(count: int, size: int) -> np.ndarray:
    """Points ``[count, size]`` inside the unit cube."""
    ratio = 2.0
    for _ in range(64):  # the root of x ** (size + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (size + 1))
    steps = ratio ** -np.arange(1.0, size + 1)
    return ((0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0).astype(np.float32)
