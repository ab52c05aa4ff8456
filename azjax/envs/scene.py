"""What an environment looks like: coloured shapes attached to links, as plain data.

A `Scene` says nothing about motion. Together with the pose of every link in every frame (`pipeline_state.x` of a Brax
state) it is all that a viewer needs. Both classes hold numbers, strings and tuples only, so that
`json.dumps(dataclasses.asdict(scene))` works.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import mujoco
    from brax.base import System

__all__ = ["Geom", "GeomKind", "Scene", "Vector3", "Vector4", "scene_from_brax", "scene_from_mujoco"]

GeomKind = Literal["sphere", "capsule", "box", "plane", "cylinder", "ellipsoid", "mesh"]
Vector3 = tuple[float, float, float]
Vector4 = tuple[float, float, float, float]

WORLD = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geom:
    """One shape, fixed to a link.

    Attributes:
      link: index of the link that carries the shape; -1 is the world, which never moves.
      kind: what shape it is; it decides what `size` means.
      size: sphere `(radius, -, -)`; capsule and cylinder `(radius, half length, -)`, along the local z axis; box and
        mesh half extents along x, y, z; ellipsoid radii; plane `(half x, half y, -)`, its normal the local z axis
        (physics takes every plane as endless, and so should a viewer).
      position: `[3]` centre of the shape in the frame of the link (not of the link's centre of mass).
      quaternion: `[4]` orientation of the shape in the frame of the link, unit length, w x y z.
      rgba: colour and opacity, each in [0, 1], as a display shows them (sRGB).
      vertices: `[V][3]` corners of a mesh in the frame of the shape; None for every other kind.
      faces: `[F][3]` triangles as indices of vertices, counter-clockwise from outside; None for every other kind.
    """

    link: int
    kind: GeomKind
    size: Vector3
    position: Vector3
    quaternion: Vector4
    rgba: Vector4
    vertices: tuple[Vector3, ...] | None = None
    faces: tuple[tuple[int, int, int], ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything visible in an environment.

    Attributes:
      links: names of the `L` links, in the order of the poses.
      geoms: the visible shapes.
      dt: seconds from one environment step to the next.
    """

    links: tuple[str, ...]
    geoms: tuple[Geom, ...]
    dt: float


def scene_from_brax(sys: System, dt: float) -> Scene:
    """Describes the looks of a Brax system.

    Brax takes a link's pose to be that of the MuJoCo body it was made from, on each of its backends, so the shapes of
    `sys.mj_model` belong to the links as they stand: link `i` is body `i + 1`, and body 0 is the world. Bodies without
    a joint raise no difficulty, for Brax merges them into their parents before MuJoCo compiles the model.

    Args:
      sys: the system, e.g. `env.sys`.
      dt: seconds per environment step, e.g. `env.dt`.

    Returns:
      The scene, whose links are those of `pipeline_state.x`.

    Raises:
      ValueError: if the system carries no MuJoCo model, or if its links are not that model's bodies.
    """
    model = sys.mj_model
    if model is None:
        raise ValueError("the Brax system has no mj_model, so there are no shapes to show")
    if sys.num_links() != model.nbody - 1:
        raise ValueError(f"the Brax system has {sys.num_links()} links, but its mj_model has {model.nbody - 1} bodies")
    return scene_from_mujoco(model, dt)


def scene_from_mujoco(model: mujoco.MjModel, dt: float) -> Scene:
    """Describes the looks of a MuJoCo model; its links are the bodies except the world, as in `xpos[1:]`.

    Left out are shapes that are fully transparent, those in the groups that MuJoCo itself hides (3 and up, by custom
    the collision shapes of a robot that has visual ones), and height fields.

    Args:
      model: the compiled model.
      dt: seconds per environment step.

    Returns:
      The scene.

    Raises:
      ValueError: if `dt` is not a positive number.
    """
    dt = float(dt)
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be a positive number of seconds, got {dt}")
    palette = _body_colours(model)
    geoms: list[Geom] = []
    for index in range(model.ngeom):
        kind = _KINDS.get(int(model.geom_type[index]))
        rgba = _colour(model, index, palette)
        if kind is None or rgba[3] == 0 or int(model.geom_group[index]) > _LAST_VISIBLE_GROUP:
            continue
        vertices, faces = _mesh(model, index) if kind == "mesh" else (None, None)
        geoms.append(
            Geom(
                link=int(model.geom_bodyid[index]) - 1,
                kind=kind,
                size=_vector3(model.geom_size[index]),
                position=_vector3(model.geom_pos[index]),
                quaternion=_vector4(model.geom_quat[index]),
                rgba=rgba,
                vertices=vertices,
                faces=faces,
            )
        )
    names = tuple(model.body(body).name or f"link {body - 1}" for body in range(1, model.nbody))
    return Scene(links=names, geoms=tuple(geoms), dt=_tidy(dt))


# MuJoCo's mjtGeom. A height field (1) is missing on purpose; a signed distance field (8) has a mesh made from it.
_KINDS: dict[int, GeomKind] = {
    0: "plane",
    2: "sphere",
    3: "capsule",
    4: "ellipsoid",
    5: "cylinder",
    6: "box",
    7: "mesh",
    8: "mesh",
}
_LAST_VISIBLE_GROUP = 2

# Two colours mean that nobody chose one: the grey that MuJoCo fills in, and the brown that Brax gives to nearly every
# shape of its own models. Such shapes are coloured by limb, since a robot of one colour hides which leg is which. The
# hues stay apart for most colour-blind eyes and on light and dark backgrounds.
_PLAIN = (0.5, 0.5, 0.5, 1.0)
_UNCHOSEN = (_PLAIN, (0.4, 0.33, 0.26, 1.0))
_FIXTURE = (0.56, 0.60, 0.66)
_TRUNK = (0.93, 0.64, 0.26)
_LIMBS = ((0.22, 0.52, 0.76), (0.13, 0.62, 0.52), (0.74, 0.42, 0.66), (0.40, 0.70, 0.88), (0.55, 0.50, 0.82))
_OBJECTS = ((0.87, 0.31, 0.23), (0.45, 0.68, 0.29), (0.95, 0.78, 0.25))


def _colour(model: mujoco.MjModel, geom: int, palette: list[Vector3]) -> Vector4:
    """The colour of a shape: its own if chosen, else its material's if that is one, else that of its limb."""
    own = _vector4(model.geom_rgba[geom])
    if not _is_unchosen(own):
        return own
    material = int(model.geom_matid[geom])
    if material >= 0:
        rgba = _vector4(model.mat_rgba[material])
        # White is what a material starts as: with a texture on it, which no viewer here draws, it is nobody's choice.
        if rgba[:3] != (1.0, 1.0, 1.0) or not (np.asarray(model.mat_texid[material]) >= 0).any():
            return rgba
    if _KINDS.get(int(model.geom_type[geom])) == "plane":
        return _PLAIN  # viewers give a grey floor the colours of their theme
    return (*palette[int(model.geom_bodyid[geom])], own[3])


def _is_unchosen(rgba: Vector4) -> bool:
    return any(np.allclose(rgba, colour, atol=1e-3) for colour in _UNCHOSEN)


def _body_colours(model: mujoco.MjModel) -> list[Vector3]:
    """One colour per body: the robot's trunk, each of its limbs, other things that move, and what is fixed.

    The robot is the largest tree of moving bodies; its trunk is the root and every body from which several limbs branch
    off. Along a limb the colour alternates between a darker and a lighter tone, so that joints are seen.
    """
    parents = [int(parent) for parent in model.body_parentid]
    fixed = [int(body) == 0 for body in model.body_weldid]
    root, robot = moving_trees(model)
    tips = [0] * model.nbody
    for body in reversed(range(1, model.nbody)):
        tips[body] = max(tips[body], 1)
        tips[parents[body]] += tips[body]

    objects = [body for body in range(model.nbody) if root[body] == body and body != robot and not fixed[body]]
    limb: dict[int, int] = {}
    depth: dict[int, int] = {}
    colours: list[Vector3] = []
    for body in range(model.nbody):
        if fixed[body]:
            colours.append(_FIXTURE)
        elif root[body] != robot:
            colours.append(_OBJECTS[objects.index(root[body]) % len(_OBJECTS)])
        elif body == robot or tips[body] > 1:
            colours.append(_TRUNK)
        else:
            parent = parents[body]
            limb[body] = limb.get(parent, len(set(limb.values())))
            depth[body] = depth.get(parent, -1) + 1
            colours.append(_tone(_LIMBS[limb[body] % len(_LIMBS)], lighter=depth[body] % 2 == 1))
    return colours


def moving_trees(model: mujoco.MjModel) -> tuple[list[int], int]:
    """The root of the tree of moving bodies that each body belongs to, itself if it is fixed; and the robot's root.

    The robot is the largest of the trees; its root is 0 if nothing moves.
    """
    fixed = [int(body) == 0 for body in model.body_weldid]
    root = list(range(model.nbody))
    for body in range(1, model.nbody):  # parents come before their children
        parent = int(model.body_parentid[body])
        if not fixed[body] and not fixed[parent]:
            root[body] = root[parent]
    return root, max((body for body in range(model.nbody) if not fixed[body]), key=root.count, default=0)


def _tone(colour: Vector3, *, lighter: bool) -> Vector3:
    share = 0.32 if lighter else 0.0
    red, green, blue = (round(channel + share * (1.0 - channel), 3) for channel in colour)
    return (red, green, blue)


def _mesh(model: mujoco.MjModel, geom: int) -> tuple[tuple[Vector3, ...], tuple[tuple[int, int, int], ...]]:
    mesh = int(model.geom_dataid[geom])
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    vertices = tuple(_vector3(vertex) for vertex in model.mesh_vert[first : first + count])
    first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    faces = tuple((int(a), int(b), int(c)) for a, b, c in model.mesh_face[first : first + count])
    return vertices, faces


def _vector3(values: np.ndarray) -> Vector3:
    x, y, z = (_tidy(value) for value in values)
    return (x, y, z)


def _vector4(values: np.ndarray) -> Vector4:
    a, b, c, d = (_tidy(value) for value in values)
    return (a, b, c, d)


def _tidy(value: float) -> float:
    """The same number without the tail that float32 and trigonometry leave: 0.4 and not 0.4000000059604645."""
    return round(float(value), 7) + 0.0
