"""The 3D tasks of Schulman et al., "High-dimensional continuous control using generalized advantage estimation".

arXiv:1506.02438, section 6.2.2. Costs there are rewards here. What the paper leaves open is said where it is decided.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import PipelineEnv, State
from mujoco.mjx._src import smooth

from azjax.config import require_number
from azjax.envs.locomotion.impact import control_step
from azjax.envs.locomotion.models import SOLVERS, load_model, load_system
from azjax.types import Array, Key

_FEET_AND_KNEES = ("right_foot", "left_foot", "right_knee", "left_knee")
_ON_THE_BACK = (0.0, 0.0, 0.12, 0.5**0.5, 0.0, -(0.5**0.5), 0.0)


class Body(PipelineEnv):  # type: ignore[misc]
    """What the tasks share: a body that starts near a reference configuration and is moved by torques.

    The observation is the state of the paper: positions ``q`` and velocities ``qd`` of the joints, that of the root
    first: position [m], orientation (w, x, y, z), then angles [rad]; linear velocity [m/s], angular velocity and the
    rates of the angles [rad/s].

    Args:
      model: name of the MJCF file.
      reference: ``[7]`` position and orientation of the root in the reference configuration; all angles are 0.
      backend: ``"spring"`` or ``"mjx"``.
      touching: the shapes that collide with the floor; default all that the file lets collide.
      reset_noise: initial angles, the root's tilt and velocities differ from the reference configuration by a number
        uniform in ``[-reset_noise, reset_noise]`` each (rad, m/s and rad/s). The root's position does not: on a floor
        without features it means nothing, and lower feet would be inside the floor.
      exclude_position: leave the root's x and y out of the observation. The paper's counts, 33 and 29, include them.

    Raises:
      ValueError: for a setting out of its range.
    """

    def __init__(
        self,
        model: str,
        reference: Collection[float],
        *,
        backend: str = "spring",
        touching: Collection[str] | None = None,
        reset_noise: float = 0.05,
        exclude_position: bool = False,
    ) -> None:
        require_number("reset_noise", reset_noise, 0.0, 1.0)
        system = load_system(load_model(model, touching), backend)
        super().__init__(sys=system, backend=backend, n_frames=SOLVERS[backend].substeps)
        angles = jnp.zeros(system.q_size() - len(reference))
        self._reference = jnp.concatenate([jnp.asarray(tuple(reference), jnp.float32), angles])
        mass = system.mj_model.body_mass[1:]
        self._shares = jnp.asarray(mass / mass.sum(), jnp.float32)
        self._reset_noise = reset_noise
        self._exclude_position = exclude_position

    def reset(self, rng: Key) -> State:
        """An initial state around the reference configuration; ``rng`` is consumed."""
        key_position, key_velocity = jax.random.split(rng)
        noise = self._reset_noise * jax.random.uniform(key_position, self._reference.shape, minval=-1.0, maxval=1.0)
        q = self._reference + noise.at[:3].set(0.0)
        q = q.at[3:7].divide(jnp.linalg.norm(q[3:7]))
        qd = self._reset_noise * jax.random.uniform(key_velocity, (self.sys.qd_size(),), minval=-1.0, maxval=1.0)
        return self.begin(q, qd)

    def begin(self, q: Array, qd: Array) -> State:
        """The state with these positions and velocities, as at the start of an episode."""
        state = self.pipeline_init(q, qd)
        zero = jnp.zeros(())
        return State(state, self.observe(state), zero, zero, dict.fromkeys(self.metrics, zero))

    metrics: tuple[str, ...] = ()
    """Names of what ``step`` reports beside the reward."""

    def move(self, state: Any, action: Array) -> tuple[Any, Array, Array]:
        """A control step: the state after it, the torques ``[A]`` in N m, and the contact forces ``[L, 3]`` in N."""
        action = jnp.clip(action, -1.0, 1.0)
        after, force = control_step(self.backend, self.sys, state, action, self._n_frames)
        return after, self.sys.actuator.gear * action, force

    def centre(self, state: Any) -> Array:
        """The centre of mass ``[3]`` in m."""
        # Randomised masses are all scaled by one factor. A step of mjx leaves the links where they were before its last
        # substep; only its q is that of after.
        links = state.x_i.pos if self.backend == "spring" else smooth.kinematics(self.sys, state).xipos[1:]
        return self._shares @ links

    def observe(self, state: Any) -> Array:
        """The state as the policy sees it."""
        return jnp.concatenate([state.q[2:] if self._exclude_position else state.q, state.qd])


class Walker(Body):
    """Locomotion: ``reward = v_forward - torque_cost |u|^2 - impact_cost |f_impact|^2 + alive``.

    ``v_forward`` is the displacement of the centre of mass along x over the control step [m/s], ``u`` are the torques
    of the joints [N m], and ``f_impact`` the contact forces on the links [N], their mean over the control step. The
    episode ends when the root is lower than ``lowest``. The paper says centre of mass, but that is at 0.85 m when
    this biped stands, at 0.78 m in the authors' model; their public code tests the root.

    Args:
      model: as in ``Body``.
      reference: as in ``Body``.
      torque_cost: price of the squared torques [1/(N m)²].
      impact_cost: price of the squared contact forces [1/N²].
      alive: reward of each step.
      lowest: height of the root [m] under which the episode ends.
      impact_clip: each component of a contact force counts as at most this [N]; ``None`` is the formula as printed. At
        rest, 39.9 kg on two feet cost 1e-5 x 2 x (196 N)² = 0.77 a step, which is more than ``alive``: to fall at once
        would be the best policy. The authors' public code clips to 1 N, and so does the default here.
      **settings: those of ``Body``.
    """

    metrics = ("reward_forward", "reward_torque", "reward_impact", "reward_alive", "impact_force")

    def __init__(
        self,
        model: str,
        reference: Collection[float],
        *,
        torque_cost: float,
        impact_cost: float,
        alive: float,
        lowest: float,
        impact_clip: float | None = 1.0,
        **settings: Any,
    ) -> None:
        for name, value in (("torque_cost", torque_cost), ("impact_cost", impact_cost)):
            require_number(name, value, 0.0, 1e6)
        require_number("alive", alive, -1e6, 1e6)
        require_number("lowest", lowest, 0.0, 1e3)
        if impact_clip is not None:
            require_number("impact_clip", impact_clip, 0.0, 1e9)
        super().__init__(model, reference, **settings)
        self._torque_cost, self._impact_cost = torque_cost, impact_cost
        self._alive, self._lowest = alive, lowest
        self._impact_clip = np.inf if impact_clip is None else impact_clip

    def step(self, state: State, action: Array) -> State:
        """One control step with an action ``[A]`` in [-1, 1]."""
        before = state.pipeline_state
        after, torque, force = self.move(before, action)
        terms = {
            "reward_forward": (self.centre(after) - self.centre(before))[0] / self.dt,
            "reward_torque": -self._torque_cost * jnp.sum(torque**2),
            "reward_impact": -self._impact_cost * jnp.sum(jnp.clip(force, -self._impact_clip, self._impact_clip) ** 2),
            "reward_alive": jnp.full((), self._alive),
        }
        return state.replace(
            pipeline_state=after,
            obs=self.observe(after),
            reward=sum(terms.values()),
            done=(after.q[2] < self._lowest).astype(jnp.float32),
            metrics={**terms, "impact_force": jnp.sqrt(jnp.sum(force**2))},
        )


class Biped(Walker):
    """3D biped locomotion: 33 state dimensions, 10 torques; ends below 0.8 m.

    Args:
      **settings: those of ``Walker`` and ``Body``.
    """

    def __init__(self, **settings: Any) -> None:
        costs = {"torque_cost": 1e-5, "impact_cost": 1e-5, "alive": 0.2, "lowest": 0.8, "touching": _FEET_AND_KNEES}
        super().__init__("biped", (0.0, 0.0, 1.3, 1.0, 0.0, 0.0, 0.0), **{**costs, **settings})


class Quadruped(Walker):
    """Quadruped locomotion: 29 state dimensions, 8 torques; ends below 0.2 m.

    Args:
      **settings: those of ``Walker`` and ``Body``.
    """

    def __init__(self, **settings: Any) -> None:
        costs = {"torque_cost": 1e-6, "impact_cost": 1e-3, "alive": 0.05, "lowest": 0.2}
        super().__init__("quadruped", (0.0, 0.0, 0.52, 1.0, 0.0, 0.0, 0.0), **{**costs, **settings})


class GetUp(Body):
    """The biped that lies on its back and shall get up: ``reward = -(h_head - 1.5)^2 - torque_cost |u|^2``.

    ``h_head`` is the height of the head's centre [m]: 1.48 m when it stands. Only the time limit ends the episode.

    Args:
      torque_cost: price of the squared torques [1/(N m)²].
      height: the wanted height of the head [m].
      **settings: those of ``Body``.
    """

    metrics = ("reward_height", "reward_torque", "head_height")

    def __init__(self, *, torque_cost: float = 1e-5, height: float = 1.5, **settings: Any) -> None:
        require_number("torque_cost", torque_cost, 0.0, 1e6)
        require_number("height", height, 0.0, 1e3)
        super().__init__("biped", _ON_THE_BACK, **settings)
        self._torque_cost, self._height = torque_cost, height
        self._head = self.sys.mj_model.geom("head").pos[2]

    def step(self, state: State, action: Array) -> State:
        """One control step with an action ``[A]`` in [-1, 1]."""
        after, torque, _ = self.move(state.pipeline_state, action)
        head = self.head_height(after)
        terms = {
            "reward_height": -((head - self._height) ** 2),
            "reward_torque": -self._torque_cost * jnp.sum(torque**2),
        }
        return state.replace(
            pipeline_state=after,
            obs=self.observe(after),
            reward=sum(terms.values()),
            done=jnp.zeros(()),
            metrics={**terms, "head_height": head},
        )

    def head_height(self, state: Any) -> Array:
        """Height of the head's centre [m]: straight above the root in the root's frame."""
        _, x, y, _ = state.q[3:7]
        return state.q[2] + self._head * (1.0 - 2.0 * (x**2 + y**2))


CLASSES = {"biped": Biped, "quadruped": Quadruped, "getup": GetUp}
