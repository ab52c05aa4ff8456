"""azjax.envs.scene: every Brax environment's shapes, placed where MuJoCo places them."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs, kinematics
from brax.envs.base import PipelineEnv

from azjax.envs.scene import Scene, scene_from_brax, scene_from_mujoco

ENVIRONMENTS = {
    "ant": ({"plane", "sphere", "capsule"}, 18),
    "halfcheetah": ({"plane", "capsule"}, 9),
    "hopper": ({"plane", "capsule"}, 5),
    "humanoid": ({"plane", "sphere", "capsule"}, 18),
    "humanoidstandup": ({"plane", "sphere", "capsule"}, 18),
    "inverted_double_pendulum": ({"plane", "capsule"}, 5),
    "inverted_pendulum": ({"capsule"}, 3),
    "pusher": ({"plane", "sphere", "capsule"}, 20),  # one more in the model, fully transparent
    "reacher": ({"plane", "sphere", "capsule"}, 10),
    "swimmer": ({"plane", "capsule"}, 4),
    "walker2d": ({"plane", "capsule"}, 8),
}


def rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    rotated = np.zeros(3)
    mujoco.mju_rotVecQuat(rotated, vector, quaternion)
    return rotated


def multiply(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    product = np.zeros(4)
    mujoco.mju_mulQuat(product, first, second)
    return product


@functools.cache
def environment(name: str) -> PipelineEnv:
    return envs.get_environment(name, backend="generalized")


def random_configuration(name: str) -> np.ndarray:
    """Joint positions away from the default, but for free joints, whose quaternions must keep their length."""
    system = environment(name).sys
    model = system.mj_model
    q = np.array(system.init_q, float)
    free = {int(model.jnt_qposadr[joint]) + k for joint in np.flatnonzero(model.jnt_type == 0) for k in range(7)}
    joints = [index for index in range(q.size) if index not in free]
    q[joints] += np.random.default_rng(3).uniform(-0.7, 0.7, len(joints))
    return q


def mujoco_data(name: str) -> mujoco.MjData:
    model = environment(name).sys.mj_model
    data = mujoco.MjData(model)
    data.qpos[:] = random_configuration(name)
    mujoco.mj_kinematics(model, data)
    return data


COMPILED_QUICKLY = {"ant", "reacher", "swimmer"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in COMPILED_QUICKLY else pytest.mark.slow) for name in ENVIRONMENTS]
)
def test_brax_links_move_as_mujoco_bodies(name: str):
    system = environment(name).sys
    forward = jax.jit(lambda q: kinematics.forward(system, q, jnp.zeros(system.qd_size()))[0])
    poses = forward(random_configuration(name).astype(np.float32))
    data = mujoco_data(name)
    np.testing.assert_allclose(poses.pos, data.xpos[1:], atol=1e-5)
    likeness = np.abs((np.asarray(poses.rot) * data.xquat[1:]).sum(axis=-1))  # q and -q are the same rotation
    np.testing.assert_allclose(likeness, 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_brax_environment_is_drawn_where_mujoco_has_it(name: str):
    kinds, count = ENVIRONMENTS[name]
    system, dt = environment(name).sys, environment(name).dt
    model, data = system.mj_model, mujoco_data(name)
    scene = scene_from_brax(system, dt)

    assert scene.dt == pytest.approx(float(dt))
    assert len(scene.links) == system.num_links()
    assert all(scene.links)
    assert {geom.kind for geom in scene.geoms} == kinds
    assert len(scene.geoms) == count
    visible = [index for index in range(model.ngeom) if model.geom_rgba[index, 3] > 0]
    for geom, index in zip(scene.geoms, visible, strict=True):
        assert -1 <= geom.link < len(scene.links)
        assert all(0 <= channel <= 1 for channel in geom.rgba)
        body = geom.link + 1
        position = data.xpos[body] + rotate(data.xquat[body], np.array(geom.position))
        np.testing.assert_allclose(position, data.geom_xpos[index], atol=1e-5)
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, multiply(data.xquat[body], np.array(geom.quaternion)))
        np.testing.assert_allclose(matrix, data.geom_xmat[index], atol=1e-5)


@pytest.mark.parametrize("backend", ["spring", "positional", "mjx"])
def test_scene_is_the_same_on_every_backend(backend: str):
    system = environment("reacher").sys
    other = envs.get_environment("reacher", backend=backend).sys
    assert scene_from_brax(other, 0.02) == scene_from_brax(system, 0.02)


def model_of(xml: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(f"<mujoco>{xml}</mujoco>")


ZOO = """
<asset>
  <material name="painted" rgba="0.1 0.2 0.8 1"/>
  <material name="plain"/>
  <mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
</asset>
<worldbody>
  <geom type="plane" size="0 0 1"/>
  <body name="robot">
    <freejoint/>
    <geom type="box" size="0.1 0.2 0.3" material="painted"/>
    <geom type="cylinder" size="0.1 0.2" material="painted" rgba="1 0 0 0.5"/>
    <geom type="ellipsoid" size="0.1 0.2 0.3" material="plain"/>
    <geom type="sphere" size="0.1" group="3"/>
    <geom type="sphere" size="0.1" rgba="1 1 1 0"/>
    <body pos="0 0 1"><joint/><geom type="mesh" mesh="wedge"/></body>
    <body pos="0 0 -1"><joint/><geom type="capsule" size="0.1 0.2"/></body>
  </body>
  <body name="ball" pos="2 0 0"><freejoint/><geom type="sphere" size="0.1"/></body>
  <body name="post" pos="3 0 0"><geom type="sphere" size="0.1"/></body>
</worldbody>
"""


@pytest.fixture(scope="module")
def zoo() -> Scene:
    return scene_from_mujoco(model_of(ZOO), 0.02)


def test_every_kind_of_shape(zoo: Scene):
    kinds = [geom.kind for geom in zoo.geoms]
    assert kinds == ["plane", "box", "cylinder", "ellipsoid", "mesh", "capsule", "sphere", "sphere"]
    assert [geom.link for geom in zoo.geoms] == [-1, 0, 0, 0, 1, 2, 3, 4]
    assert zoo.links == ("robot", "link 1", "link 2", "ball", "post")
    assert zoo.geoms[1].size == (0.1, 0.2, 0.3)


def test_mesh_brings_its_triangles(zoo: Scene):
    mesh = zoo.geoms[4]
    assert mesh.vertices is not None
    assert mesh.faces is not None
    assert len(mesh.vertices) == len(mesh.faces) == 4
    assert {corner for face in mesh.faces for corner in face} == {0, 1, 2, 3}
    assert all(geom.vertices is None for geom in zoo.geoms if geom.kind != "mesh")


def test_colours_that_somebody_chose_are_kept(zoo: Scene):
    _, box, cylinder, *_ = zoo.geoms
    assert box.rgba == (0.1, 0.2, 0.8, 1.0)  # its material's
    assert cylinder.rgba == (1.0, 0.0, 0.0, 0.5)  # its own, which wins over its material's
    assert zoo.geoms[3].rgba == (1.0, 1.0, 1.0, 1.0)  # a white material without a texture


def test_colours_that_nobody_chose_tell_parts_apart(zoo: Scene):
    upper, lower, ball, post = (geom.rgba for geom in zoo.geoms[4:])
    assert len({upper, lower, ball, post}) == 4
    legs = {geom.rgba for geom in scene_from_brax(environment("ant").sys, 0.05).geoms if geom.link > 0}
    assert len(legs) == 8  # four legs of two tones


def test_scene_is_plain_data(zoo: Scene):
    again = json.loads(json.dumps(dataclasses.asdict(zoo)))
    assert again["geoms"][0]["kind"] == "plane"
    assert again["dt"] == 0.02


def test_what_cannot_be_shown_is_refused():
    model = model_of(ZOO)
    with pytest.raises(ValueError, match="positive number of seconds"):
        scene_from_mujoco(model, 0.0)
    with pytest.raises(ValueError, match="no mj_model"):
        scene_from_brax(types.SimpleNamespace(mj_model=None), 0.02)
    with pytest.raises(ValueError, match="4 links, but its mj_model has 5 bodies"):
        scene_from_brax(types.SimpleNamespace(mj_model=model, num_links=lambda: 4), 0.02)
