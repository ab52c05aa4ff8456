"""A point mass with a heading: the cheap body on which self-play is tested and compared widely."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from azjax.envs.base import EnvState
from azjax.envs.brax import quiet_dependencies
from azjax.envs.scene import Scene, scene_from_mujoco
from azjax.types import ActionSpec, Array, Box, Key, ObservationSpec

__all__ = ["PointMass"]

_THRUST = 4.0  # N at full throttle on 1 kg
_TORQUE = 6.0  # rad/s² at full lock on 1 kg
_DRAG = 1.0  # 1/s, along the heading, at friction 1
_SKID = 4.0  # 1/s, across the heading, at friction 1
_HEIGHT = 0.25  # m
_LOOKS = f"""
<mujoco model="pointmass">
  <worldbody>
    <light pos="0 0 6" dir="0 0 -1" directional="true"/>
    <geom name="floor" type="plane" size="20 20 0.1" rgba="0.8 0.8 0.8 1"/>
    <body name="ball" pos="0 0 {_HEIGHT}">
      <freejoint/>
      <geom type="sphere" size="{_HEIGHT}" rgba="0.2 0.4 0.7 1"/>
      <geom type="box" size="0.12 0.05 0.05" pos="0.3 0 0" rgba="0.9 0.5 0.1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


class PointMass:
    r"""A body of 1 kg on a plane that is driven along its heading and steered.

    With the actions :math:`a \in [-1, 1]^2`, mass m, friction f, motor strength s, gravity g and heading
    :math:`\theta`, all per second:

    .. math::
        \dot v = \frac{4 s a_1}{m} e_\theta - f (v_\parallel + 4 v_\perp) + g_{xy}, \qquad
        \dot\omega = \frac{6 s a_2}{m} - f \omega

    integrated semi-implicitly in steps of 0.1 s. Nothing ends an episode but the time limit. The observation, as those
    of Brax, hides where the body is: cosine and sine of the heading, velocity along and across it [m/s], turn rate
    [rad/s]. The params are the names that :func:`azjax.envs.brax.scale_system` reads, gravity included.
    """

    name = "pointmass"
    backend = "azjax"
    dt = 0.1
    action_spec: ActionSpec = Box(size=2)
    observation_spec: ObservationSpec = jax.ShapeDtypeStruct((5,), jnp.float32)

    def __init__(self, episode_length: int = 1000) -> None:
        self.episode_length = episode_length

    def sample_params(self, key: Key) -> dict[str, Array]:
        """The nominal physics; ``key`` is not used."""
        one = jnp.ones((), jnp.float32)
        return {"friction": one, "mass": one, "motor_strength": one, "gravity": jnp.array([0.0, 0.0, -9.81])}

    def reset(self, key: Key, params: Any) -> EnvState:
        """At the origin, nearly at rest, heading along x within 0.1 rad; ``key`` is consumed."""
        noise = 0.1 * jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        return self._state(jnp.zeros(2), noise[0], noise[1:3], noise[3], params)

    def step(self, state: EnvState, action: Array) -> EnvState:
        """One control step with an action ``[2]`` in [-1, 1]: throttle and steering, to the left if positive."""
        body, physics = state.inner, state.params
        power = physics["motor_strength"] / physics["mass"]
        ahead = _ahead(body["heading"])
        along = (body["velocity"] @ ahead) * ahead
        drag = physics["friction"] * (_DRAG * along + _SKID * (body["velocity"] - along))
        velocity = body["velocity"] + self.dt * (_THRUST * power * action[0] * ahead - drag + physics["gravity"][:2])
        turn_rate = body["turn_rate"] * (1.0 - self.dt * physics["friction"]) + self.dt * _TORQUE * power * action[1]
        position = body["position"] + self.dt * velocity
        return self._state(position, body["heading"] + self.dt * turn_rate, velocity, turn_rate, physics)

    def scene(self) -> Scene:
        """What a viewer draws: a ball with a nose."""
        return scene_from_mujoco(self.model(), self.dt)

    def model(self) -> Any:
        """The ``mujoco.MjModel`` of the looks; the physics is not MuJoCo's."""
        return _looks()

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World position ``[1, 3]`` and quaternion ``[1, 4]`` (w, x, y, z)."""
        half = 0.5 * state.inner["heading"]
        zero = jnp.zeros_like(half)
        position = jnp.append(state.inner["position"], _HEIGHT)
        return position[None], jnp.stack([jnp.cos(half), zero, zero, jnp.sin(half)])[None]

    def _state(self, position: Array, heading: Array, velocity: Array, turn_rate: Array, params: Any) -> EnvState:
        ahead = _ahead(heading)
        along, across = velocity @ ahead, ahead[0] * velocity[1] - ahead[1] * velocity[0]
        never = jnp.zeros((), bool)
        return EnvState(
            inner={"position": position, "heading": heading, "velocity": velocity, "turn_rate": turn_rate},
            params=params,
            observation=jnp.concatenate([ahead, jnp.stack([along, across, turn_rate])]),
            reward=jnp.zeros((), jnp.float32),
            terminated=never,
            truncated=never,
        )


@functools.cache
def _looks() -> Any:
    with quiet_dependencies():
        import mujoco

        return mujoco.MjModel.from_xml_string(_LOOKS)


def _ahead(heading: Array) -> Array:
    return jnp.stack([jnp.cos(heading), jnp.sin(heading)])
