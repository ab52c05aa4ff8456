"""An episode as one HTML file: an interactive 3D replay that opens anywhere, without a network.

The page holds its viewer, its styles and its data, and its Content-Security-Policy forbids every request. The viewer
is `assets/replay.js`, the page around it `assets/replay.html`.

How poses are stored, all little-endian and in base64:

- time: about 50 frames per simulated second at most. An episode with a finer step keeps every k-th frame and its last
  one, and the viewer interpolates; rewards keep every step.
- positions: the first link as float32, which resolves 8 micrometres at a distance of 100 m. Every other link as its
  offset from the first one, in 16 bits between the smallest and the largest offset of the episode: at worst
  range / 131070, so 0.02 mm for a robot 2 m across and 0.8 mm for a ball that rolls 100 m away from it.
- rotations: unit quaternions with 16 bits per component, off by less than 0.01 degrees.

A thousand frames of a robot with nine links take about 170 kB.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from azjax.envs.base import Environment
from azjax.envs.scene import Geom, Scene
from azjax.evaluation import Episodes
from azjax.runs import markup
from azjax.runs.folder import write_text
from azjax.runs.reading import parse_json
from azjax.selfplay.markers import mark_task
from azjax.selfplay.spaces import Task
from azjax.selfplay.tasks import TaskEnvironment

__all__ = [
    "Motion",
    "has_scene",
    "marked",
    "read_replay",
    "recorded_motion",
    "replay_page",
    "save_replay",
    "viewer_sources",
    "write_motion",
    "write_replay",
]

FRAMES_PER_SECOND = 50
_INT16_MAX = 32767
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_KINDS: dict[str, Any] = {
    "links": list,
    "geoms": list,
    "dt": int | float,
    "steps": int,
    "stride": int,
    "root": str,
    "middle": list,
    "reach": list,
    "offsets": str,
    "rotations": str,
    "terminated": bool,
}


class Motion(NamedTuple):
    """How the links move in one episode, `N` frames of it."""

    positions: np.ndarray  # float32 [N, L, 3] metres
    rotations: np.ndarray  # float32 [N, L, 4] quaternions w x y z
    rewards: np.ndarray  # float32 [N] received on arriving at each frame; 0 for the first
    terminated: bool  # whether the task ended the episode at the last frame
    dt: float  # seconds from one frame to the next


def has_scene(env: Environment) -> bool:
    """Whether an episode of this environment can be drawn."""
    scene = getattr(env, "scene", None)
    return callable(scene) and scene() is not None


def recorded_motion(env: Any, episodes: Episodes, action_repeat: int) -> Motion:
    """The recorded one of the episodes (`record=env.poses`), up to where its poses break if they do."""
    frames: Any = episodes.frames
    positions, rotations = (np.asarray(x) for x in frames.recorded)
    decisions = -(-int(episodes.length[0]) // action_repeat)
    last = decisions + 1
    finite = np.isfinite(positions[:last]).all(axis=(1, 2)) & np.isfinite(rotations[:last]).all(axis=(1, 2))
    if not finite.all():
        last = max(1, int(finite.argmin()))
    return Motion(
        positions[:last],
        rotations[:last],
        np.asarray(frames.reward)[:last],
        bool(episodes.terminated[0]),
        env.scene().dt * action_repeat,
    )


def marked(env: Any, scene: Scene, motion: Motion, task: Task | None) -> tuple[Scene, Motion]:
    """Scene and motion of an attempt with what its task, a single one, asked for; as they are if there is no task."""
    if task is None or not isinstance(env, TaskEnvironment):
        return scene, motion
    kind, values = env.family.types[int(task.type)], {name: float(value) for name, value in task.values.items()}
    scene, positions, rotations = mark_task(scene, motion.positions, motion.rotations, kind, values, env.settings)
    return scene, motion._replace(positions=positions, rotations=rotations)


def save_replay(path: Path, env: Any, episodes: Episodes, action_repeat: int, title: str) -> None:
    """Writes the recorded one of the episodes as a page."""
    write_motion(path, env.scene(), recorded_motion(env, episodes, action_repeat), title)


def write_motion(path: Path, scene: Scene, motion: Motion, title: str) -> None:
    """Writes an episode as a page: `write_replay` for a `Motion`."""
    write_replay(
        path,
        dataclasses.replace(scene, dt=motion.dt),
        motion.positions,
        motion.rotations,
        title=title,
        rewards=motion.rewards,
        terminated=motion.terminated,
    )


def write_replay(
    path: str | os.PathLike[str],
    scene: Scene,
    positions: ArrayLike,
    rotations: ArrayLike,
    *,
    title: str,
    rewards: ArrayLike | None = None,
    terminated: bool = False,
) -> None:
    """Writes one episode as a self-contained HTML page, replacing the file at once or not at all.

    Args:
      path: the file to write; missing folders above it are created.
      scene: what the environment looks like, with `L` links, `dt` seconds from one frame to the next.
      positions: `[N, L, 3]` position of each link in each frame, in metres: `pipeline_state.x.pos`.
      rotations: `[N, L, 4]` orientation of each link, quaternions w x y z of any length: `pipeline_state.x.rot`.
      title: heading of the page, plain text.
      rewards: `[N]` the reward received on arriving at each frame (0 for the first, as `state.reward` has it), or
        `[N - 1]` the reward of each step from one frame to the next; None leaves rewards out of the page.
      terminated: whether the task ended the episode at the last frame, rather than a time limit.

    Raises:
      ValueError: if a shape does not fit, there is no frame, or a number is not finite.
    """
    data = _replay_data(scene, positions, rotations, rewards=rewards, terminated=terminated)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, replay_page(title, data))


def _replay_data(
    scene: Scene,
    positions: ArrayLike,
    rotations: ArrayLike,
    *,
    rewards: ArrayLike | None,
    terminated: bool,
) -> dict[str, Any]:
    """Everything the viewer reads, ready for JSON."""
    links = len(scene.links)
    if links == 0:
        raise ValueError("the scene has no links, so nothing in it can move")
    position = _checked("positions", positions, (None, links, 3))
    frames = position.shape[0]
    rotation = _checked("rotations", rotations, (frames, links, 4))
    if not all(-1 <= geom.link < links for geom in scene.geoms):
        raise ValueError(f"the scene has {links} links, but one of its geoms is attached to another")
    if not (math.isfinite(scene.dt) and scene.dt > 0):
        raise ValueError(f"scene.dt must be a positive number of seconds, got {scene.dt}")
    norm = np.linalg.norm(rotation, axis=-1, keepdims=True)
    if (norm == 0).any():
        raise ValueError(f"rotations has a quaternion of length zero in frame {_first_frame(norm == 0)}")

    stride = _stride(scene.dt)
    kept = np.unique(np.append(np.arange(0, frames, stride), frames - 1))
    position, rotation = position[kept], (rotation / norm)[kept]
    root = position[:, 0].astype("<f4")
    # Taken from the stored root, so that its own rounding does not add to that of the offsets.
    offset = position - root[:, None].astype(np.float64)
    low, high = offset.min(axis=0), offset.max(axis=0)
    middle, reach = (low + high) / 2, (high - low) / 2
    scaled = (offset - middle) / np.where(reach > 0, reach, 1.0)
    return {
        "links": list(scene.links),
        "geoms": _geoms(scene.geoms),
        "dt": scene.dt,
        "steps": frames,
        "stride": stride,
        "root": _base64(root),
        "middle": _significant(middle),
        "reach": _significant(reach),
        "offsets": _base64(_int16(scaled)),
        "rotations": _base64(_int16(rotation)),
        "returns": None if rewards is None else _base64(_returns(rewards, frames)),
        "terminated": bool(terminated),
    }


def _checked(name: str, values: ArrayLike, shape: tuple[int | None, ...]) -> np.ndarray:
    """The values as finite float64 of the given shape, in which None stands for any number from 1."""
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        actual == wanted or (wanted is None and actual > 0) for actual, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}] with at least one frame, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a number that is not finite in frame {_first_frame(~np.isfinite(array))}")
    return array


def _first_frame(mask: np.ndarray) -> int:
    return int(np.argmax(mask.reshape(mask.shape[0], -1).any(axis=1)))


def _stride(dt: float) -> int:
    # The small allowance keeps a step of 0.02 s, which float32 has as 0.0199999996, at a stride of one.
    return max(1, math.ceil(1 / (FRAMES_PER_SECOND * dt) - 1e-3))


def _returns(rewards: ArrayLike, frames: int) -> np.ndarray:
    """The sum of rewards up to and including each frame, `[N]` float32."""
    array = np.asarray(rewards, dtype=np.float64)
    if array.shape not in ((frames,), (frames - 1,)):
        raise ValueError(f"rewards must have shape [{frames}] or [{frames - 1}], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"rewards has a number that is not finite in frame {_first_frame(~np.isfinite(array))}")
    start = np.zeros(frames - array.shape[0])
    return np.cumsum(np.concatenate([start, array])).astype("<f4")


def _geoms(geoms: tuple[Geom, ...]) -> list[dict[str, Any]]:
    """The geoms with their meshes packed; a mesh that several geoms share is stored by the first of them only."""
    packed: list[dict[str, Any]] = []
    owners: dict[tuple[Any, Any], int] = {}
    for index, geom in enumerate(geoms):
        entry = {
            field.name: getattr(geom, field.name)
            for field in dataclasses.fields(geom)
            if field.name not in ("vertices", "faces")
        }
        if geom.vertices is not None and geom.faces is not None:
            owner = owners.setdefault((geom.vertices, geom.faces), index)
            if owner == index:
                entry["vertices"] = _base64(np.asarray(geom.vertices, "<f4"))
                entry["faces"] = _base64(np.asarray(geom.faces, "<u4"))
            else:
                entry["same_mesh_as"] = owner
        packed.append(entry)
    return packed


def _int16(fractions: np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1] as 16-bit fractions of 32767."""
    return np.rint(np.clip(fractions, -1.0, 1.0) * _INT16_MAX).astype("<i2")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _significant(array: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.9g}") for value in row] for row in array]


def viewer_sources() -> tuple[str, str]:
    """The viewer's script and style as a Content-Security-Policy names them."""
    return markup.source(markup.asset("replay.js")), markup.source(markup.style_of(markup.asset("replay.html")))


def replay_page(title: str, data: dict[str, Any]) -> str:
    """The page that shows an episode.

    Args:
      title: heading of the page, plain text.
      data: what the viewer reads; whatever it holds, it runs no script and asks for nothing.
    """
    script, style = viewer_sources()
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {script}; style-src {style}"
    )
    # Inside a script element only "<" can end the element or open a comment.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    values = {"title": html.escape(title), "policy": policy, "script": markup.asset("replay.js"), "data": text}
    return markup.fill(markup.asset("replay.html"), values)


def read_replay(content: str) -> dict[str, Any]:
    """The data of a page that ``write_replay`` wrote, for another page around it; no other part of it is kept.

    Raises:
      ValueError: if it is no such page.
    """
    match = _DATA.search(content)
    if match is None:
        raise ValueError("it is no replay page")
    data = parse_json(match.group(1).encode("utf-8", "replace"))
    if not isinstance(data, dict) or not all(isinstance(data.get(name), kind) for name, kind in _KINDS.items()):
        raise ValueError("its data are not those of a replay")
    return {name: data[name] for name in (*_KINDS, "returns") if name in data}
