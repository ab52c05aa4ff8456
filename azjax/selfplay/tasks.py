r"""Tasks on a body: reach a place, follow a command, withstand a disturbance.

Each task is a set of values in ``EnvState.params``, so that the lanes of one program do different tasks and a new task
recompiles nothing. Three types exist, all of them an episode on the body with its own reward replaced:

* ``goal``: be within ``reach`` of a place at ``distance`` and ``bearing`` from the start before ``horizon`` is over.
  Success, which is sparse, ends the episode. The dense reward is the approach of each step, as a share of the reference
  speed; it adds up to the distance covered, so that it prefers no way of getting there.
* ``command``: move ahead with ``speed`` and turn with ``turn_rate``.
* ``disturbance``: the same at the reference speed, straight on, while the ground slopes, physics differ and pushes
  come.

The dense reward of the last two is the step's tracking score

.. math:: \exp(-(v - v^*)^2 / \sigma_v^2 - (\omega - \omega^*)^2 / \sigma_\omega^2),

and success is not to have fallen until the time limit, with a mean score, over the whole time, of at least ``passing``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from azjax.config import require, require_number
from azjax.envs.base import Environment, EnvState
from azjax.envs.scene import Scene
from azjax.selfplay.spaces import Task, TaskFamily
from azjax.types import ActionSpec, Array, Key, ObservationSpec

__all__ = ["PREFIX", "TYPES", "Body", "Outcome", "TaskEnvironment", "TaskSettings", "steps_of"]

TYPES = ("goal", "command", "disturbance")
"""The types of task that :class:`TaskEnvironment` knows."""

PREFIX = "tasks:"
"""Of the names of bodies with tasks: ``tasks:ant/goal+command``."""

GRAVITY = 9.81  # m/s²
_FACTORS = ("friction", "mass", "motor_strength")
VALUES = ("distance", "bearing", "horizon", "speed", "turn_rate", "slope", "push", *_FACTORS)
"""The values that a task has, whatever its type."""


class Body(Environment, Protocol):
    """An environment whose params are physics: the factors of ``azjax.envs.Randomization`` and ``gravity``."""

    @property
    def dt(self) -> float:
        """Seconds of an environment step."""
        ...

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World positions ``[L, 3]`` and quaternions ``[L, 4]`` (w, x, y, z) of the links, the root's first."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    r"""What tasks on a body mean.

    Attributes:
      reference_speed: what the body can do without effort [m/s]: the unit of speeds, and the command of disturbances.
      reach: how near to its goal the root must come, on the ground [m].
      speed_width: :math:`\sigma_v` [m/s].
      turn_width: :math:`\sigma_\omega` [rad/s].
      passing: the mean tracking score from which on an attempt succeeded.
      control_cost: price of the mean squared action of a step.
      push_interval: seconds between pushes.
      planar: the body moves in the x-z plane alone: it has no heading, and is pushed along x.
    """

    reference_speed: float
    reach: float
    speed_width: float
    turn_width: float
    passing: float = 0.5
    control_cost: float = 0.05
    push_interval: float = 1.0
    planar: bool = False

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        for name in ("reference_speed", "reach", "speed_width", "turn_width", "push_interval"):
            require_number(name, getattr(self, name), 1e-3, 1e3)
        require_number("passing", self.passing, 0.0, 1.0)
        require_number("control_cost", self.control_cost, 0.0, 1e3)


class Outcome(NamedTuple):
    """What became of an attempt, so far."""

    success: Array  # bool []
    score: Array  # float32 [] in [0, 1]: share of the way to the goal, or of the tracking scores that were possible


@flax.struct.dataclass
class TaskState:
    """An attempt at a task."""

    body: EnvState
    key: Key  # of the pushes
    elapsed: Array  # int32 [] steps
    target: Array  # float32 [2] the goal in the world [m]
    closest: Array  # float32 [] least distance to it so far [m]
    tracking: Array  # float32 [] sum of the tracking scores
    success: Array  # bool []


def steps_of(family: TaskFamily, dt: float) -> int:
    """The longest horizon of a family's tasks in environment steps of ``dt`` seconds."""
    bounds = [s.parameters["horizon"].high for s in family.spaces.values() if "horizon" in s.parameters]
    return max(1, round(max([family.neutral["horizon"], *bounds]) / dt))


class TaskEnvironment:
    """A body with tasks, behind azjax's protocol; ``params`` are a :class:`~azjax.selfplay.spaces.Task`.

    The observation is the body's, and then, in the body's frame and in units of the reference speed: the kind of task
    (one-hot over the family), the goal (2), the command (2: speed and turn rate) and the share of time left. What a
    task of the type does not have is 0. Physics are not shown.

    Args:
      body: where the tasks happen.
      family: their types, named as in ``TYPES``, and the bounds of their parameters.
      settings: what they mean.

    Raises:
      ConfigError: for a family whose types or parameters are not those of this module, bounds that make no sense, or a
        body without heading that is asked to turn.
    """

    def __init__(self, body: Body, family: TaskFamily, settings: TaskSettings) -> None:
        family.validate()
        settings.validate()
        for name in family.types:
            require(name in TYPES, f"unknown type of task {name!r} (there are: {', '.join(TYPES)})")
        missing = sorted(set(VALUES) - set(family.neutral))
        unknown = sorted(set(family.neutral) - set(VALUES))
        require(not missing, f"the tasks of {body.name} lack {', '.join(missing)}; give each a parameter in others")
        require(not unknown, f"the tasks of {body.name} don't know {', '.join(unknown)}; they know {', '.join(VALUES)}")
        require(
            isinstance(body.observation_spec, jax.ShapeDtypeStruct),
            f"{body.name} observes a dict; tasks can only be appended to an array",
        )
        if settings.planar:
            turning = [n for n in ("bearing", "turn_rate") for s in family.spaces.values() if n in s.parameters]
            require(not turning, f"{body.name} moves in a plane; leave {', '.join(turning)} out of its tasks")
        self.body, self.family, self.settings = body, family, settings
        self.name, self.backend, self.dt = f"{PREFIX}{body.name}/{'+'.join(family.types)}", body.backend, body.dt
        self.action_spec: ActionSpec = body.action_spec
        self.episode_length = steps_of(family, body.dt)
        self._is = {name: family.types.index(name) if name in family.types else -1 for name in TYPES}
        self._push_every = max(1, round(settings.push_interval / self.dt))
        self.observation_spec: ObservationSpec = jax.eval_shape(
            lambda key: self.reset(key, self.sample_params(key)).observation, jax.random.key(0)
        )

    def sample_params(self, key: Key) -> Task:
        """A task of uniform type at a uniform point of its unit cube; ``key`` is consumed."""
        return self.family.decode(self.family.sample(key))

    def reset(self, key: Key, params: Task) -> EnvState:
        """The start of an attempt at a task; ``key`` is consumed."""
        key_body, key_push = jax.random.split(key)
        body = self.body.reset(key_body, self.physics(params))
        values = params.values
        position, heading = self._pose(body)
        bearing = heading + values["bearing"]
        target = position + values["distance"] * jnp.stack([jnp.cos(bearing), jnp.sin(bearing)])
        state = TaskState(
            body=body,
            key=key_push,
            elapsed=jnp.zeros((), jnp.int32),
            target=target,
            closest=values["distance"],
            tracking=jnp.zeros((), jnp.float32),
            success=self._arrived(params, values["distance"]),
        )
        return self._state(state, params, jnp.zeros((), jnp.float32))

    def step(self, state: EnvState, action: Array) -> EnvState:
        """One control step with an action ``[A]`` in [-1, 1]."""
        before, task = state.inner, state.params
        physics = self.physics(task) | {"gravity": self._gravity(task, before)}
        body = self.body.step(before.body.replace(params=physics), action)
        (old, old_heading), (new, new_heading) = self._pose(before.body), self._pose(body)
        speed = (new - old) @ _unit(old_heading) / self.dt
        turn_rate = _wrapped(new_heading - old_heading) / self.dt
        tracking = self._tracking(task, speed, turn_rate)
        distance = _distance(before.target, new)
        approach = (_distance(before.target, old) - distance) / (self.dt * self.settings.reference_speed)
        cost = self.settings.control_cost * jnp.mean(action**2)
        after = before.replace(
            body=body,
            elapsed=before.elapsed + 1,
            closest=jnp.minimum(before.closest, distance),
            tracking=before.tracking + tracking,
        )
        lasted = (after.elapsed >= self.horizon(task)) & ~body.terminated
        passed = lasted & (after.tracking >= self.settings.passing * self.horizon(task))
        after = after.replace(
            success=jnp.where(self._goal(task), self._arrived(task, distance) & ~body.terminated, passed)
        )
        return self._state(after, task, jnp.where(self._goal(task), approach, tracking) - cost)

    def outcome(self, state: EnvState) -> Outcome:
        """What became of the attempt that this state belongs to; final once the episode is over."""
        attempt, task = state.inner, state.params
        covered = 1.0 - attempt.closest / jnp.maximum(task.values["distance"], 1e-6)
        covered = jnp.where(attempt.success, 1.0, jnp.clip(covered, 0.0, 1.0))
        return Outcome(
            success=attempt.success,
            score=jnp.where(self._goal(task), covered, attempt.tracking / self.horizon(task)),
        )

    def horizon(self, task: Task) -> Array:
        """The time limit of a task in steps: int32 [], at least 1."""
        return jnp.maximum(1, jnp.round(task.values["horizon"] / self.dt).astype(jnp.int32))

    def physics(self, task: Task) -> dict[str, Array]:
        """What a task makes of the body: factors, and gravity [m/s²], tilted so that a positive slope rises along x."""
        slope = task.values["slope"]
        gravity = -GRAVITY * jnp.stack([jnp.sin(slope), jnp.zeros_like(slope), jnp.cos(slope)])
        return {name: task.values[name] for name in _FACTORS} | {"gravity": gravity}

    def valid(self, task: Task) -> Array:
        """Bool []: the model that a task makes can be simulated: positive factors, and a ground that carries."""
        factors = jnp.stack([task.values[name] for name in _FACTORS])
        finite = jnp.stack([jnp.isfinite(x) for x in task.values.values()]).all()
        carries = jnp.abs(task.values["slope"]) < 0.5 * jnp.pi
        return finite & (factors > 0).all() & carries & (task.values["horizon"] >= self.dt)

    def scene(self) -> Scene | None:
        """What a viewer draws, the body's own scene; ``mark_task`` adds goals. ``None`` if the body has none."""
        scene: Scene | None = getattr(self.body, "scene", lambda: None)()
        return scene

    def model(self) -> Any:
        """The body's ``mujoco.MjModel``; ``None`` if it has none."""
        return getattr(self.body, "model", lambda: None)()

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World positions ``[L, 3]`` and quaternions ``[L, 4]`` (w, x, y, z) of the body's links."""
        return self.body.poses(state.inner.body)

    def _gravity(self, task: Task, attempt: TaskState) -> Array:
        """Gravity of the next step. A push is one step of horizontal gravity: it changes every velocity by as much."""
        number = attempt.elapsed // self._push_every
        pushed = (attempt.elapsed % self._push_every == 0) & (number > 0)
        direction = _unit(jax.random.uniform(jax.random.fold_in(attempt.key, number), maxval=2.0 * jnp.pi))
        if self.settings.planar:
            direction = jnp.stack([jnp.sign(direction[0]), jnp.zeros(())])
        push = jnp.where(pushed, task.values["push"] / self.dt, 0.0) * direction
        return self.physics(task)["gravity"].at[:2].add(push)

    def _goal(self, task: Task) -> Array:
        return task.type == self._is["goal"]

    def _arrived(self, task: Task, distance: Array) -> Array:
        return self._goal(task) & (distance <= self.settings.reach)

    def _tracking(self, task: Task, speed: Array, turn_rate: Array) -> Array:
        slow = (speed - task.values["speed"]) / self.settings.speed_width
        astray = (turn_rate - task.values["turn_rate"]) / self.settings.turn_width
        return jnp.exp(-(slow**2) - astray**2)

    def _pose(self, body: EnvState) -> tuple[Array, Array]:
        """Where the root is on the ground ``[2]``, and its heading [rad]; a planar body always looks along x."""
        position, rotation = self.body.poses(body)
        heading = jnp.zeros(()) if self.settings.planar else _heading(rotation[0])
        return position[0, :2], heading

    def _features(self, attempt: TaskState, task: Task) -> Array:
        """What the policy sees of the task."""
        position, heading = self._pose(attempt.body)
        ahead, is_goal = _unit(heading), self._goal(task)
        offset = attempt.target - position
        goal = jnp.stack([offset @ ahead, ahead[0] * offset[1] - ahead[1] * offset[0]])
        command = jnp.stack([task.values["speed"] / self.settings.reference_speed, task.values["turn_rate"]])
        left = 1.0 - attempt.elapsed / self.horizon(task)
        return jnp.concatenate(
            [
                jax.nn.one_hot(task.type, len(self.family.types)),
                jnp.where(is_goal, goal / self.settings.reference_speed, 0.0),
                jnp.where(is_goal, 0.0, command),
                left[None],
            ]
        )

    def _state(self, attempt: TaskState, task: Task, reward: Array) -> EnvState:
        terminated = attempt.body.terminated | (self._goal(task) & attempt.success)
        over = attempt.elapsed >= self.horizon(task)
        return EnvState(
            inner=attempt,
            params=task,
            observation=jnp.concatenate([jnp.asarray(attempt.body.observation), self._features(attempt, task)]),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=(attempt.body.truncated | over) & ~terminated,
        )


def _unit(angle: Array) -> Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def _heading(quaternion: Array) -> Array:
    """The direction on the ground of the body's x axis [rad]."""
    w, x, y, z = quaternion
    return jnp.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y**2 + z**2))


def _wrapped(angle: Array) -> Array:
    """The same angle in [-pi, pi]."""
    return jnp.arctan2(jnp.sin(angle), jnp.cos(angle))


def _distance(one: Array, other: Array) -> Array:
    return jnp.sqrt(jnp.sum((one - other) ** 2))
