"""Pictures of an episode, drawn by MuJoCo's renderer as the replay page shows it: the same shapes and colours.

What is drawn is a model of its own, made from the environment's `Scene`. Its links are put where the physics had them.
Generalised coordinates would not do: the joints of the spring and positional backends give a little, which no joint
angle shows. The environment's own model is asked for its cameras only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import mujoco
import numpy as np

from azjax.config import ConfigError, require
from azjax.envs.scene import WORLD, Geom, Scene, moving_trees
from azjax.runs.opengl import MEND, context_class
from azjax.runs.replay import Motion

TRACK = "track"
_FOVY = 45.0  # degrees from the lower to the upper edge
_ELEVATION, _ELEVATION_FLAT = -20.0, -50.0  # degrees, looking down; the second on what moves in a plane only
_FLAT = 0.3  # how high that is, relative to its reach
_AHEAD = 25.0  # degrees by which the tracking camera stands in front of a side view
_SMOOTHING = 1.0  # seconds over which it averages the robot's path
_MARGIN = 1.1
_LARGEST_REACH = 3.0  # up to which it keeps other objects in view, relative to the robot's reach

_SKY, _GROUND = (0.44, 0.58, 0.76), (0.93, 0.95, 0.97)
_HORIZON = tuple((a + b) / 2 for a, b in zip(_SKY, _GROUND, strict=True))
_TILES = (0.62, 0.67, 0.72), (0.68, 0.73, 0.78)
_TYPES = {
    "plane": mujoco.mjtGeom.mjGEOM_PLANE,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "mesh": mujoco.mjtGeom.mjGEOM_MESH,
}


class View(NamedTuple):
    """From where a picture is taken."""

    target: np.ndarray  # [3] what it is about, where the light falls, in metres
    position: np.ndarray  # [3] of the camera, in metres
    rotation: np.ndarray  # [3, 3] columns: the camera's right, up and backwards
    fovy: float  # degrees from the lower to the upper edge


class Camera(NamedTuple):
    """What to see of an episode."""

    view: Callable[[int], View]  # of each frame
    radius: float  # about the size of what moves, in metres


class Studio:
    """Draws a scene in any poses of its links; a context manager, since it holds an OpenGL context.

    Args:
      scene: the shapes.
      driver: ``egl``, ``osmesa``, or what else ``MUJOCO_GL`` may be.
      width: of the pictures, in pixels.
      height: likewise.
      radius: about the size of what moves, in metres: near it things are sharp, far beyond it hazy.

    Raises:
      ConfigError: if the driver can't draw pictures of that size.
    """

    def __init__(self, scene: Scene, driver: str, *, width: int, height: int, radius: float) -> None:
        self._model = build_model(scene, width, height, radius)
        self._data = mujoco.MjData(self._model)
        self._scene = mujoco.MjvScene(self._model, maxgeom=len(scene.geoms) + 100)
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, 0
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

    def draw(self, positions: np.ndarray, rotations: np.ndarray, view: View) -> np.ndarray:
        """One picture, uint8 ``[height, width, 3]``.

        Args:
          positions: ``[L, 3]`` world positions of the links, in metres.
          rotations: ``[L, 4]`` their quaternions w x y z, of any length.
          view: from where.
        """
        place(self._model, self._data, positions, rotations, view)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        option = mujoco.MjvOption()
        mujoco.mjv_updateScene(self._model, self._data, option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._renderer)
        return self._pixels[::-1].copy()  # OpenGL counts rows from below


def build_model(scene: Scene, width: int, height: int, radius: float) -> Any:
    """A MuJoCo model that only shows: a body for each link, one for the light and one for the camera, all to be placed.

    Floors have no end, as in the physics.
    """
    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth, spec.visual.global_.offheight = width, height
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.35] * 3, [0.25] * 3
    spec.visual.quality.shadowsize, spec.visual.map.shadowclip = 4096, 4.0
    spec.visual.rgba.haze = [*_HORIZON, 1.0]
    spec.stat.extent, spec.stat.center = radius, [0.0, 0.0, 0.0]
    _add_surroundings(spec)
    bodies = [spec.worldbody, *(spec.worldbody.add_body(name=f"link {n}", mocap=True) for n in range(len(scene.links)))]
    for number, geom in enumerate(scene.geoms):
        _add_geom(spec, bodies[geom.link - WORLD], geom, number)
    light = spec.worldbody.add_body(name="light", mocap=True).add_light()
    light.type, light.castshadow = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, True
    light.pos, light.dir = [0.3 * radius, -0.9 * radius, 3.0 * radius], [-0.1, 0.3, -1.0]
    light.diffuse, light.specular = [0.6] * 3, [0.1] * 3
    spec.worldbody.add_body(name="camera", mocap=True).add_camera()
    return spec.compile()


def _add_surroundings(spec: Any) -> None:
    """The sky, and tiles of 1 m for floors, by which one sees how fast the robot is."""
    kinds, builtins = mujoco.mjtTexture, mujoco.mjtBuiltin
    spec.add_texture(
        name="sky", type=kinds.mjTEXTURE_SKYBOX, builtin=builtins.mjBUILTIN_GRADIENT, rgb1=_SKY, rgb2=_GROUND,
        width=256, height=256,
    )  # fmt: skip
    spec.add_texture(
        name="tiles", type=kinds.mjTEXTURE_2D, builtin=builtins.mjBUILTIN_CHECKER, rgb1=_TILES[0], rgb2=_TILES[1],
        width=256, height=256,
    )  # fmt: skip
    material = spec.add_material(name="floor", texuniform=True, texrepeat=[0.5, 0.5])
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "tiles"


def _add_geom(spec: Any, body: Any, geom: Geom, number: int) -> None:
    settings: dict[str, Any] = {"type": _TYPES[geom.kind], "pos": geom.position, "quat": geom.quaternion}
    if geom.kind == "plane":
        settings |= {"size": [0.0, 0.0, 1.0], "material": "floor"}
    elif geom.kind == "mesh":
        mesh = spec.add_mesh(name=f"mesh {number}")
        mesh.uservert, mesh.userface = (np.ravel(np.asarray(x)) for x in (geom.vertices, geom.faces))
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # open surfaces have no volume
        settings |= {"meshname": mesh.name, "rgba": geom.rgba}
    else:
        settings |= {"size": geom.size, "rgba": geom.rgba}
    body.add_geom(contype=0, conaffinity=0, **settings)


def place(model: Any, data: Any, positions: np.ndarray, rotations: np.ndarray, view: View) -> None:
    """Puts links, light and camera of a model from `build_model` in their places."""
    turned = np.empty(4)
    mujoco.mju_mat2Quat(turned, np.ascontiguousarray(view.rotation).ravel())
    data.mocap_pos[:] = [*positions, view.target, view.position]
    data.mocap_quat[:] = [*rotations, (1.0, 0.0, 0.0, 0.0), turned]  # MuJoCo normalises them
    model.cam_fovy[0] = view.fovy
    mujoco.mj_kinematics(model, data)
    mujoco.mj_camlight(model, data)


def find_camera(model: Any, wanted: str) -> int | None:
    """Index of one of the model's cameras by name or number; ``None`` for the camera that tracks the robot.

    Raises:
      ConfigError: listing the cameras that there are.
    """
    if wanted == TRACK:
        return None
    names = [model.camera(index).name for index in range(model.ncam)]
    if wanted and wanted in names:
        return names.index(wanted)
    known = ", ".join(f"{index} ({name!r})" if name else f"{index}" for index, name in enumerate(names))
    require(
        wanted in map(str, range(model.ncam)),
        f"there is no camera {wanted!r}; there is {TRACK!r}, which follows the robot"
        + (f", and the model's own: {known}" if names else "; the model has none of its own"),
    )
    return int(wanted)


def make_camera(model: Any, wanted: str, motion: Motion, aspect: float) -> Camera:
    """A camera for an episode.

    Args:
      model: the environment's.
      wanted: see ``find_camera``.
      motion: the episode.
      aspect: width of the picture over its height.
    """
    index = find_camera(model, wanted)
    return tracking_camera(model, motion, aspect) if index is None else own_camera(model, index, motion)


def own_camera(model: Any, index: int, motion: Motion) -> Camera:
    """One of the cameras that the environment's model has, wherever it hangs and whatever it follows."""
    data = mujoco.MjData(model)
    shapes = carried_shapes(model, motion)
    targets = robot_path(shapes)

    def view(frame: int) -> View:
        data.xpos[1:], data.xquat[1:] = motion.positions[frame], motion.rotations[frame]
        for body in range(1, model.nbody):
            mujoco.mju_normalize4(data.xquat[body])
            mujoco.mju_quat2Mat(data.xmat[body], data.xquat[body])
            data.xipos[body] = data.xpos[body] + data.xmat[body].reshape(3, 3) @ model.body_ipos[body]
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        rotation = data.cam_xmat[index].reshape(3, 3).copy()
        return View(targets[frame], data.cam_xpos[index].copy(), rotation, float(model.cam_fovy[index]))

    return Camera(view, reach_in_view(shapes, targets))


def tracking_camera(model: Any, motion: Motion, aspect: float) -> Camera:
    """A camera that follows the robot at a distance at which it stays in the picture, seen from the side."""
    shapes = carried_shapes(model, motion)
    path = robot_path(shapes)
    middle = (path.min(axis=0) + path.max(axis=0)) / 2
    if np.linalg.norm(path - middle, axis=-1).max() < reach_in_view(shapes, path):
        targets = np.broadcast_to(middle, path.shape)  # it stays where it is, and so does the camera
    else:
        targets = smoothed(path, round(_SMOOTHING / motion.dt))
    reach = reach_in_view(shapes, targets)
    half_angle = math.radians(_FOVY) / 2
    half_angle = min(half_angle, math.atan(math.tan(half_angle) * aspect))
    way = targets[-1] - targets[0]
    heading = math.atan2(way[1], way[0]) if math.hypot(way[0], way[1]) > reach else 0.0
    height = float(np.ptp(shapes.centres[..., 2]))
    azimuth = heading + math.radians(90.0 + _AHEAD)
    elevation = math.radians(_ELEVATION_FLAT if height < _FLAT * reach else _ELEVATION)
    right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
    flat = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    forward = math.cos(elevation) * flat + np.array([0.0, 0.0, math.sin(elevation)])
    rotation = np.stack([right, np.cross(right, forward), -forward], axis=1)
    back = _MARGIN * reach / math.sin(half_angle) * forward
    return Camera(lambda frame: View(targets[frame], targets[frame] - back, rotation, _FOVY), reach)


class Shapes(NamedTuple):
    """The `G` shapes that the links of a model carry, planes left out, in the `N` frames of an episode."""

    centres: np.ndarray  # [N, G, 3] metres
    radii: np.ndarray  # [G] of spheres around them, in metres
    robot: np.ndarray  # bool [G] whether they belong to the robot


def carried_shapes(model: Any, motion: Motion) -> Shapes:
    """Where the shapes of an environment's model are if its links move like that."""
    roots, robot = moving_trees(model)
    plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    geoms = np.flatnonzero((model.geom_bodyid > 0) & ~plane)
    require(geoms.size > 0, "the bodies of the model have no shapes, so there is nothing to draw")
    links = model.geom_bodyid[geoms] - 1
    rotations = motion.rotations[:, links] / np.linalg.norm(motion.rotations[:, links], axis=-1, keepdims=True)
    scalar, vector = rotations[..., :1], rotations[..., 1:]
    offsets = np.broadcast_to(model.geom_pos[geoms], vector.shape)
    turn = 2 * np.cross(vector, offsets)  # v + w t + q x t with t = 2 q x v turns v by the quaternion (w, q)
    centres = motion.positions[:, links] + offsets + scalar * turn + np.cross(vector, turn)
    mine = np.array([roots[link + 1] == robot for link in links])
    return Shapes(centres, model.geom_rbound[geoms], mine if mine.any() else ~mine)


def robot_path(shapes: Shapes) -> np.ndarray:
    """``[N, 3]`` the middle of the robot in each frame."""
    centres = shapes.centres[:, shapes.robot]
    return (centres.min(axis=1) + centres.max(axis=1)) / 2


def reach_in_view(shapes: Shapes, targets: np.ndarray) -> float:
    """How far from the targets ``[N, 3]`` the robot ever reaches, and other bodies if they stay near it."""
    distance = np.linalg.norm(shapes.centres - targets[:, None], axis=-1) + shapes.radii
    near = float(distance[:, shapes.robot].max())
    return max(near, min(float(distance.max()), _LARGEST_REACH * near))


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
