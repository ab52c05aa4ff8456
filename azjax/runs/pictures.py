"""Pictures of a MuJoCo model in recorded poses, drawn by MuJoCo's own renderer.

The poses of the links are what the physics computed, and go to the renderer as they are. Generalised coordinates would
not do: the joints of the spring and positional backends give a little, which no joint angle shows.
"""

from __future__ import annotations

import copy
import math
from types import TracebackType
from typing import Any, NamedTuple

import mujoco
import numpy as np

from azjax.config import ConfigError, require
from azjax.envs.scene import moving_trees
from azjax.runs.opengl import MEND, context_class

TRACK = "track"
_SMOOTHING = 1.0  # seconds over which the tracking camera averages the trunk's path
_ELEVATION = -20.0  # degrees
_AHEAD = 25.0  # degrees by which the tracking camera stands in front of a side view
_MARGIN = 1.1
_LARGEST_REACH = 3.0  # of other objects that the tracking camera keeps in view, relative to the robot's


class TrackingShot(NamedTuple):
    """A camera that follows the robot at a constant distance, chosen so that it never leaves the picture."""

    targets: np.ndarray  # [N, 3] where the camera looks, in metres
    distance: float  # metres from there
    azimuth: float  # degrees; 90 looks along the y axis


class Studio:
    """Draws a model in any poses of its links; a context manager, since it holds an OpenGL context.

    Args:
      model: left as it is; a copy of it is drawn.
      driver: ``egl``, ``osmesa``, or what else ``MUJOCO_GL`` may be.
      width: of the pictures, in pixels.
      height: likewise.

    Raises:
      ConfigError: if the driver can't draw pictures of that size.
    """

    def __init__(self, model: Any, driver: str, *, width: int, height: int) -> None:
        self._model = prepared(model, width, height)
        self._data = mujoco.MjData(self._model)
        self._scene = mujoco.MjvScene(self._model, maxgeom=10_000)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)
        try:
            self._context = context_class(driver)(width, height)
            self._context.make_current()
            self._renderer = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except (ImportError, RuntimeError, mujoco.FatalError) as error:
            raise ConfigError(f"{driver} can't draw {width} x {height} pixels: {error}; {MEND}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._renderer)

    def __enter__(self) -> Studio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._renderer.free()
        self._context.free()

    def draw(self, positions: np.ndarray, rotations: np.ndarray, camera: Any) -> np.ndarray:
        """One picture, uint8 ``[height, width, 3]``.

        Args:
          positions: ``[L, 3]`` world positions of the links, in metres.
          rotations: ``[L, 4]`` their quaternions w x y z, of any length.
          camera: a ``mujoco.MjvCamera``.
        """
        pose(self._model, self._data, positions, rotations)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        option = mujoco.MjvOption()
        mujoco.mjv_updateScene(self._model, self._data, option, None, camera, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._renderer)
        return self._pixels[::-1].copy()  # OpenGL counts rows from below


def prepared(model: Any, width: int, height: int) -> Any:
    """A copy of a model to be drawn: an offscreen buffer of that size, and floors without an end, as in the physics."""
    model = copy.copy(model)
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    model.geom_size[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, :2] = 0.0
    return model


def pose(model: Any, data: Any, positions: np.ndarray, rotations: np.ndarray) -> None:
    """Puts the bodies, and all that is fixed to them, where the links are: what ``mj_kinematics`` does from joints."""
    data.xpos[1:] = positions
    data.xquat[1:] = rotations / np.linalg.norm(rotations, axis=-1, keepdims=True)
    body = matrices(data.xquat)
    data.xmat[:] = body.reshape(-1, 9)
    for place, frame, offset, turn, owner in (
        (data.xipos, data.ximat, model.body_ipos, model.body_iquat, np.arange(model.nbody)),
        (data.geom_xpos, data.geom_xmat, model.geom_pos, model.geom_quat, model.geom_bodyid),
        (data.site_xpos, data.site_xmat, model.site_pos, model.site_quat, model.site_bodyid),
    ):
        place[:] = data.xpos[owner] + np.einsum("nij,nj->ni", body[owner], offset)
        frame[:] = (body[owner] @ matrices(turn)).reshape(-1, 9)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices ``[N, 3, 3]`` of unit quaternions ``[N, 4]``, w x y z."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def find_camera(model: Any, wanted: str) -> int | None:
    """Index of one of the model's cameras by name or number; ``None`` for the camera that tracks the robot.

    Raises:
      ConfigError: listing the cameras that there are.
    """
    if wanted == TRACK:
        return None
    names = [model.camera(index).name for index in range(model.ncam)]
    if wanted in names:
        return names.index(wanted)
    known = ", ".join(f"{index} ({name!r})" if name else f"{index}" for index, name in enumerate(names))
    require(
        wanted in map(str, range(model.ncam)),
        f"there is no camera {wanted!r}; there is {TRACK!r}, which follows the robot"
        + (f", and the model's own: {known}" if names else "; the model has none of its own"),
    )
    return int(wanted)


def camera_at(index: int | None, shot: TrackingShot, frame: int) -> Any:
    """The ``mujoco.MjvCamera`` of a frame: one of the model's, or the tracking one."""
    camera = mujoco.MjvCamera()
    if index is not None:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, index
        return camera
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE.value
    camera.lookat[:] = shot.targets[frame]
    camera.distance, camera.azimuth, camera.elevation = shot.distance, shot.azimuth, _ELEVATION
    return camera


def tracking_shot(model: Any, positions: np.ndarray, *, dt: float, aspect: float) -> TrackingShot:
    """Places the tracking camera for an episode.

    Args:
      model: the MuJoCo model.
      positions: ``[N, L, 3]`` of its links, ``dt`` seconds apart, in metres.
      dt: seconds from one frame to the next.
      aspect: width of the picture over its height.
    """
    roots, robot = moving_trees(model)
    trunk = positions[:, max(robot, 1) - 1].astype(np.float64)
    targets = smoothed(trunk, round(_SMOOTHING / dt))
    radius = body_radii(model)[1:]
    reach = (np.linalg.norm(positions - targets[:, None], axis=-1) + radius).max(axis=0)
    fixed = np.array([int(body) == 0 for body in model.body_weldid[1:]])
    mine = np.array([root == robot for root in roots[1:]])
    near = reach[mine].max() if mine.any() else reach.max()
    others = reach[~mine & ~fixed].max(initial=0.0)
    radius_in_view = max(near, min(others, _LARGEST_REACH * near))
    vertical = math.radians(float(model.vis.global_.fovy)) / 2
    half_angle = min(vertical, math.atan(math.tan(vertical) * aspect))
    path = targets[-1] - targets[0]
    heading = math.degrees(math.atan2(path[1], path[0])) if math.hypot(path[0], path[1]) > near else 0.0
    return TrackingShot(targets, _MARGIN * radius_in_view / math.sin(half_angle), heading + 90.0 + _AHEAD)


def smoothed(path: np.ndarray, window: int) -> np.ndarray:
    """A centred moving average over about ``window`` frames of a path ``[N, 3]``; straight motion stays as it is."""
    half = min(window // 2, len(path) - 1)
    if half < 1:
        return path
    # Turned over at its ends, so that the average there does not lag behind.
    padded = np.pad(path, ((half, half), (0, 0)), mode="reflect", reflect_type="odd")
    sums = np.cumsum(np.concatenate([np.zeros((1, 3)), padded]), axis=0)
    width = 2 * half + 1
    return (sums[width:] - sums[:-width]) / width


def body_radii(model: Any) -> np.ndarray:
    """``[nbody]`` radius of a sphere around each body's origin that holds its shapes, planes left out."""
    radii = np.zeros(model.nbody)
    for geom in range(model.ngeom):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_PLANE:
            body = model.geom_bodyid[geom]
            radii[body] = max(radii[body], np.linalg.norm(model.geom_pos[geom]) + model.geom_rbound[geom])
    return radii
