"""What a task asks for, drawn into the picture of an attempt: the goal and the way to it, or the command."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np

from azjax.envs.scene import WORLD, Geom, GeomKind, Scene, Vector3, Vector4
from azjax.selfplay.tasks import TaskSettings

__all__ = ["mark_task"]

_GOAL: Vector4 = (0.87, 0.2, 0.15, 1.0)
_COMMAND: Vector4 = (0.1, 0.6, 0.3, 1.0)
_SECONDS = 1.0  # of the commanded way that is shown
_PIECES = 8  # straight ones in it
_LINK = "task"


def mark_task(
    scene: Scene,
    positions: np.ndarray,
    rotations: np.ndarray,
    kind: str,
    values: Mapping[str, float],
    settings: TaskSettings,
) -> tuple[Scene, np.ndarray, np.ndarray]:
    """A scene and its motion with markers of a task in them.

    A goal is a disc within which the root must come, with a post, and an arrow beneath the body points to it. A command
    is the way of the next second, beneath the body. Both move with a link of their own, the last one, on the ground.

    Args:
      scene: of the body, with `L` links.
      positions: `[N, L, 3]` of the links in each frame [m], from the start of the attempt on.
      rotations: `[N, L, 4]` quaternions w x y z.
      kind: the type of task, as in ``azjax.selfplay.TYPES``.
      values: the task's, by name.
      settings: of the tasks of the body.

    Returns:
      The scene, positions `[N, L + 1, 3]` and rotations `[N, L + 1, 4]`.
    """
    ground = positions[:, 0] * np.array([1.0, 1.0, 0.0])
    heading = np.zeros(len(ground)) if settings.planar else _headings(rotations[:, 0])
    link, geoms = len(scene.links), []
    if kind == "goal":
        start = heading[0] + values["bearing"]
        target = ground[0, :2] + values["distance"] * np.array([math.cos(start), math.sin(start)])
        offset = target - ground[:, :2]
        direction = np.arctan2(offset[:, 1], offset[:, 0])
        geoms += _post(target, settings.reach)
        geoms += _arrow([(0.0, 0.0), (2.0 * settings.reach, 0.0)], link, 0.1 * settings.reach, _GOAL)
    else:
        direction = heading
        way = _way(values["speed"], values["turn_rate"])
        geoms += _arrow(way, link, 0.1 * settings.reach, _COMMAND)
    turned = np.zeros((len(ground), 1, 4))
    turned[:, 0, 0], turned[:, 0, 3] = np.cos(0.5 * direction), np.sin(0.5 * direction)
    marked = dataclasses.replace(scene, links=(*scene.links, _LINK), geoms=(*scene.geoms, *geoms))
    return (
        marked,
        np.concatenate([positions, ground[:, None]], axis=1).astype(positions.dtype),
        np.concatenate([rotations, turned], axis=1).astype(rotations.dtype),
    )


def _headings(quaternions: np.ndarray) -> np.ndarray:
    """The directions on the ground ``[N]`` of the x axes of bodies with rotations ``[N, 4]`` [rad]."""
    w, x, y, z = quaternions.T
    return np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y**2 + z**2))


def _way(speed: float, turn_rate: float) -> list[tuple[float, float]]:
    """Where a command leads in the body's frame."""
    points, angle, step = [(0.0, 0.0)], 0.0, _SECONDS / _PIECES
    for _ in range(_PIECES):
        angle += turn_rate * step
        x, y = points[-1]
        points.append((x + speed * step * math.cos(angle), y + speed * step * math.sin(angle)))
    return points


def _arrow(points: list[tuple[float, float]], link: int, width: float, rgba: Vector4) -> list[Geom]:
    """Pieces through the points on the ground, and two more that make a tip."""
    (x0, y0), (x1, y1) = points[-2:]
    ahead, tip = math.atan2(y1 - y0, x1 - x0), 5.0 * width
    barbs = [(x1 - tip * math.cos(ahead + side), y1 - tip * math.sin(ahead + side)) for side in (0.5, -0.5)]
    pairs = [*itertools.pairwise(points), *((barb, points[-1]) for barb in barbs)]
    return [_bar(one, other, link, width, rgba) for one, other in pairs]


def _bar(one: tuple[float, float], other: tuple[float, float], link: int, width: float, rgba: Vector4) -> Geom:
    """A capsule that lies on the ground between two points."""
    across, along = other[0] - one[0], other[1] - one[1]
    half, angle = 0.5 * math.hypot(across, along), math.atan2(along, across)
    # From z to x, and then by the angle about z.
    tilt = math.sqrt(0.5)
    cos, sin = math.cos(0.5 * angle), math.sin(0.5 * angle)
    quaternion = (tilt * cos, -tilt * sin, tilt * cos, tilt * sin)
    middle = (0.5 * (one[0] + other[0]), 0.5 * (one[1] + other[1]), width)
    return _geom("capsule", link, (width, half, 0.0), middle, quaternion, rgba)


def _post(target: np.ndarray, reach: float) -> list[Geom]:
    """A disc within reach of the target, and a post with a ball on it that is seen from afar."""
    x, y = (float(value) for value in target)
    flat: Vector4 = (1.0, 0.0, 0.0, 0.0)
    height = 4.0 * reach
    return [
        _geom("cylinder", WORLD, (reach, 0.01 * reach, 0.0), (x, y, 0.02 * reach), flat, _GOAL),
        _geom("cylinder", WORLD, (0.06 * reach, 0.5 * height, 0.0), (x, y, 0.5 * height), flat, _GOAL),
        _geom("sphere", WORLD, (0.3 * reach, 0.0, 0.0), (x, y, height), flat, _GOAL),
    ]


def _geom(kind: GeomKind, link: int, size: Vector3, position: Vector3, quaternion: Vector4, rgba: Vector4) -> Geom:
    return Geom(link=link, kind=kind, size=size, position=position, quaternion=quaternion, rgba=rgba)
