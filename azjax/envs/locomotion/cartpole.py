"""The cart-pole of the GAE paper: a few lines of JAX behind azjax's own environment protocol."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from azjax.config import require_number
from azjax.envs.base import EnvState
from azjax.envs.brax import quiet_dependencies
from azjax.envs.scene import Scene, scene_from_mujoco
from azjax.types import ActionSpec, Array, Box, Key, ObservationSpec

GRAVITY = 9.8  # m/s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # m, from the pivot to the pole's centre of mass
CART_FRICTION = 5e-4  # N, of the cart on the track
POLE_FRICTION = 2e-6  # N m s, of the pole on the cart
MAX_FORCE = 10.0  # N
DT = 0.02  # s
TRACK_LIMIT = 2.4  # m
ANGLE_LIMIT = math.radians(12.0)
RESET_RANGES = (0.12, 0.2, 0.01, 0.2)  # of position, velocity, angle and angular velocity, either way

LOOKS = f"""
<mujoco model="cartpole">
  <worldbody>
    <geom name="track" type="capsule" size="0.02" fromto="{-TRACK_LIMIT} 0 1 {TRACK_LIMIT} 0 1"/>
    <body name="cart" pos="0 0 1">
      <joint type="slide" axis="1 0 0"/>
      <geom name="cart" type="box" size="0.2 0.1 0.06" mass="{CART_MASS}"/>
      <body name="pole">
        <joint type="hinge" axis="0 1 0"/>
        <geom name="pole" type="capsule" size="0.03" fromto="0 0 0 0 0 {2 * HALF_LENGTH}" mass="{POLE_MASS}"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


class CartPole:
    r"""A pole on a cart that a horizontal force moves along a track; the episode ends when the pole has fallen.

    State and observation are :math:`(x, \dot x, \theta, \dot\theta)` in m, m/s, rad and rad/s, the angle measured from
    the upright. The action in [-1, 1] is a force :math:`F` of up to 10 N. With cart mass M, pole mass m, half length l:

    .. math::
        \ddot\theta &= \frac{g \sin\theta
          - \cos\theta\, \frac{F + m l \dot\theta^2 \sin\theta - \mu_c\, \mathrm{sgn}\, \dot x}{M + m}
          - \frac{\mu_p \dot\theta}{m l}}{l \left(\frac43 - \frac{m \cos^2\theta}{M + m}\right)},
        \\
        \ddot x &= \frac{F + m l (\dot\theta^2 \sin\theta - \ddot\theta \cos\theta)
          - \mu_c\, \mathrm{sgn}\, \dot x}{M + m}

    Equations, parameters, Euler's method with 0.02 s and both limits (2.4 m, 12 degrees) are those of Barto, Sutton
    and Anderson; there the force was +10 or -10 N. The GAE paper takes over the parameters and a horizon of 1000
    steps. It prints neither reward nor initial states; here they are those of the cart-pole in rllab, the code base of
    its authors, whose size fits the paper's figure 2: :math:`10 - (1 - \cos\theta) - 10^{-5} F^2` for a step after
    which the pole is still up, 0 for the one that ends the episode, and initial states uniform within a twentieth of
    rllab's bounds (2.4 m, 4 m/s, 0.2 rad, 4 rad/s).

    Args:
      episode_length: the time limit in environment steps.

    Raises:
      ConfigError: for an episode length below 1.

    Examples:
      >>> import jax
      >>> env = CartPole()
      >>> state = env.reset(jax.random.key(0), ())
      >>> state.observation.shape, env.step(state, jax.numpy.zeros(1)).reward > 9.9
      ((4,), Array(True, dtype=bool))

    References:
      Barto, Sutton, Anderson, 1983, Neuronlike adaptive elements that can solve difficult learning control problems,
      IEEE Transactions on Systems, Man, and Cybernetics 13 (5), appendix. Schulman, Moritz, Levine, Jordan, Abbeel,
      2015, arXiv 1506.02438, section 6.2.1. Duan, Chen, Houthooft, Schulman, Abbeel, 2016, Benchmarking deep
      reinforcement learning for continuous control, arXiv 1604.06778 (rllab).
    """

    name = "azjax:cartpole"
    backend = "jax"
    observation_spec: ObservationSpec = jax.ShapeDtypeStruct((4,), jnp.float32)
    action_spec: ActionSpec = Box(1)
    dt = DT

    def __init__(self, episode_length: int = 1000) -> None:
        require_number("episode_length", episode_length, 1, 2**30)
        self.episode_length = episode_length

    def sample_params(self, key: Key) -> tuple[()]:
        """Nothing: every episode has the same physics."""
        return ()

    def reset(self, key: Key, params: tuple[()]) -> EnvState:
        """A state near the upright at the middle of the track; ``key`` is consumed."""
        state = jax.random.uniform(key, (4,), jnp.float32, -1.0, 1.0) * jnp.array(RESET_RANGES, jnp.float32)
        return _env_state(state, jnp.zeros(()), jnp.zeros((), bool))

    def step(self, state: EnvState, action: Array) -> EnvState:
        """One Euler step with a force of ``10 N * action[0]``."""
        force = MAX_FORCE * action[0]
        after = state.inner + DT * derivative(state.inner, force)
        fallen = (jnp.abs(after[0]) > TRACK_LIMIT) | (jnp.abs(after[2]) > ANGLE_LIMIT)
        reward = jnp.where(fallen, 0.0, 10.0 - (1.0 - jnp.cos(after[2])) - 1e-5 * jnp.square(force))
        return _env_state(after, reward, fallen)

    def scene(self) -> Scene:
        """What a viewer draws."""
        return scene_from_mujoco(self.model(), DT)

    def model(self) -> Any:
        """The ``mujoco.MjModel`` of the looks, whose bodies are cart and pole; the physics is not MuJoCo's."""
        return _looks()

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World positions ``[2, 3]`` and quaternions ``[2, 4]`` (w, x, y, z) of cart and pole; the pivot is 1 m up."""
        x, _, angle, _ = state.inner
        zero, half = jnp.zeros_like(x), 0.5 * angle
        place = jnp.stack([x, zero, jnp.ones_like(x)])
        turned = jnp.stack([jnp.cos(half), zero, jnp.sin(half), zero])
        return jnp.stack([place, place]), jnp.stack([jnp.array([1.0, 0.0, 0.0, 0.0]), turned])


@functools.cache
def _looks() -> Any:
    with quiet_dependencies():
        import mujoco

        return mujoco.MjModel.from_xml_string(LOOKS)


def derivative(state: Array, force: Array) -> Array:
    """The time derivative ``[4]`` of a state ``[4]`` under a force in N: the equations of ``CartPole``."""
    _, velocity, angle, angular_velocity = state
    mass, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    push = (force + moment * jnp.square(angular_velocity) * sine - CART_FRICTION * jnp.sign(velocity)) / mass
    turn = GRAVITY * sine - cosine * push - POLE_FRICTION * angular_velocity / moment
    angular = turn / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * jnp.square(cosine) / mass))
    return jnp.stack([velocity, push - moment * angular * cosine / mass, angular_velocity, angular])


def _env_state(state: Array, reward: Array, terminated: Array) -> EnvState:
    return EnvState(
        inner=state,
        params=(),
        observation=state,
        reward=reward,
        terminated=terminated,
        truncated=jnp.zeros((), bool),
    )
