"""The bodies that come with tasks, and the bounds within which their tasks lie."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from azjax.config import nearest, require
from azjax.envs.brax import BraxEnvironment, load_brax
from azjax.envs.registry import check_env_name, default_backend
from azjax.selfplay.pointmass import PointMass
from azjax.selfplay.spaces import Parameter, TaskFamily, TaskSpace
from azjax.selfplay.tasks import PREFIX, TaskEnvironment, TaskSettings, steps_of

__all__ = ["BODIES", "episode_length_of", "make_task_env", "task_env_by_name", "task_family", "wider_family"]


@dataclasses.dataclass(frozen=True)
class _Bounds:
    """How far the tasks of a body go; what they mean is in ``settings``."""

    settings: TaskSettings
    dt: float  # s, an environment step
    distance: tuple[float, float]  # m
    horizon: tuple[float, float]  # s, of goals
    speed: tuple[float, float]  # m/s
    turn_rate: float  # rad/s, to either side
    push: float  # m/s
    slope: float = 0.1  # rad, up or down
    friction: tuple[float, float] = (0.5, 1.5)
    mass: tuple[float, float] = (0.8, 1.25)
    motor_strength: tuple[float, float] = (0.8, 1.25)
    duration: float = 5.0  # s, of the other types


_PLANAR = TaskSettings(1.0, 0.25, 0.75, 1.0, planar=True)
BODIES: dict[str, _Bounds] = {
    "pointmass": _Bounds(
        TaskSettings(2.0, 0.5, 0.75, 0.75), 0.1, (1.0, 9.0), (3.5, 6.0), (0.75, 2.75), 2.0, 1.0,
        slope=0.07, friction=(0.3, 1.1), mass=(0.5, 1.1), motor_strength=(0.9, 1.7),
    ),
    "ant": _Bounds(TaskSettings(2.0, 0.5, 1.0, 1.0), 0.05, (1.0, 8.0), (4.0, 8.0), (0.75, 3.0), 1.0, 1.0),
    "hopper": _Bounds(_PLANAR, 0.008, (0.5, 3.0), (3.0, 5.0), (0.6, 1.5), 0.0, 0.5),
    "walker2d": _Bounds(_PLANAR, 0.008, (0.5, 3.0), (3.0, 5.0), (0.6, 1.5), 0.0, 0.5),
    "humanoid": _Bounds(TaskSettings(1.0, 0.5, 0.75, 1.0), 0.015, (1.0, 3.0), (3.0, 5.0), (0.6, 1.5), 0.5, 0.5),
}  # fmt: skip
"""Every task inside can be solved, and next to none by doing nothing: what is impossible teaches and tells nothing.

For the point mass a controller shows it at the corners (``tests/test_selfplay_bounds.py``). The others are asked for at
most about half of the speed of a trained ant (returns of 6000 in 1000 steps, so at least 5 m/s) and about that of a
trained hopper or walker2d (returns of 2400 in 1000 steps, so about 1.4 m/s); humanoid is taken to be as fast as they.
"""


def task_family(body: str, types: tuple[str, ...] | None = None) -> TaskFamily:
    """The task spaces of a body: all of them, or those of some types in that order.

    Raises:
      ConfigError: for a body without tasks, or a type of task that it does not have.

    Examples:
      >>> task_family("hopper", ("goal",)).types
      ('goal',)
      >>> list(task_family("ant").spaces["command"].parameters)
      ['speed', 'turn_rate']
    """
    require(body in BODIES, f"no tasks for {body!r}{nearest(body, list(BODIES))} (there are for: {', '.join(BODIES)})")
    b = BODIES[body]
    distance = Parameter(*b.distance, b.distance[0], unit="m")
    bearing = Parameter(-math.pi, math.pi, 0.0, unit="rad")
    horizon = Parameter(*b.horizon, b.duration, unit="s")
    speed = Parameter(*b.speed, b.settings.reference_speed, unit="m/s")
    turn_rate = Parameter(-b.turn_rate, b.turn_rate, 0.0, unit="rad/s")
    disturbance = {
        "slope": Parameter(-b.slope, b.slope, 0.0, unit="rad"),
        "friction": Parameter(*b.friction, 1.0, "log"),
        "mass": Parameter(*b.mass, 1.0, "log"),
        "motor_strength": Parameter(*b.motor_strength, 1.0, "log"),
        "push": Parameter(0.0, b.push, 0.0, unit="m/s"),
    }
    turns = not b.settings.planar
    spaces = {
        "goal": TaskSpace({"distance": distance} | ({"bearing": bearing} if turns else {}) | {"horizon": horizon}),
        "command": TaskSpace({"speed": speed} | ({"turn_rate": turn_rate} if turns else {})),
        "disturbance": TaskSpace(disturbance),
    }
    family = TaskFamily(spaces, {"bearing": bearing, "turn_rate": turn_rate})
    return family if types is None else family.only(types)


def episode_length_of(body: str, types: tuple[str, ...] | None = None) -> int:
    """The time limit of a body's tasks in environment steps, without the body itself being made.

    Raises:
      ConfigError: as ``task_family``.

    Examples:
      >>> episode_length_of("ant"), episode_length_of("ant", ("command",))
      (160, 100)
    """
    family = task_family(body, types)
    return steps_of(family, BODIES[body].dt)


def wider_family(family: TaskFamily, share: float = 0.25) -> TaskFamily:
    """The types of a family with bounds that reach beyond, to see what a policy does outside of what it trained on.

    Every parameter goes on by ``share`` of its range (of its logarithm, for the kind `log`) to where tasks are harder:
    distances, speeds and pushes upwards, horizons downwards (the time limit stays), the rest to both sides. A bearing
    is an angle: there is nothing outside.

    Args:
      family: one of :func:`task_family`'s.
      share: how far, above 0; a value must not lose its sign or become 0.

    Raises:
      ConfigError: for bounds that this would make senseless.

    Examples:
      >>> wider_family(task_family("ant")).spaces["command"].parameters["speed"].high
      3.5625
    """
    spaces = {
        name: TaskSpace({n: _wider(n, p, share) for n, p in space.parameters.items()})
        for name, space in family.spaces.items()
    }
    wider = TaskFamily(spaces, family.others)
    wider.validate()
    return wider


_ONE_SIDED = {"distance": (0, 1), "speed": (0, 1), "push": (0, 1), "horizon": (1, 0), "bearing": (0, 0)}


def _wider(name: str, parameter: Parameter, share: float) -> Parameter:
    below, above = _ONE_SIDED.get(name, (1, 1))
    low, high = parameter.low, parameter.high
    if parameter.kind == "log":
        factor = (high / low) ** share
        return dataclasses.replace(parameter, low=low / factor**below, high=high * factor**above)
    step = share * (high - low)
    lowest = 0.5 * low if low > 0 else -math.inf  # a short horizon must not become none
    return dataclasses.replace(parameter, low=max(low - below * step, lowest), high=high + above * step)


def task_env_by_name(name: str, backend: str | None) -> TaskEnvironment:
    """The environment of a name like ``tasks:ant/goal+command``, as ``TaskEnvironment.name`` has it.

    Raises:
      ConfigError: if there is none of that name.
    """
    body, slash, types = name.removeprefix(PREFIX).partition("/")
    require(name.startswith(PREFIX) and bool(slash), f"{name!r} is no name of a body with tasks, like tasks:ant/goal")
    own = None if body == "pointmass" else backend
    return make_task_env(body, tuple(types.split("+")), backend=own)


def make_task_env(
    body: str,
    types: tuple[str, ...] | None = None,
    *,
    backend: str | None = None,
    family: TaskFamily | None = None,
    **settings: Any,
) -> TaskEnvironment:
    """A body of azjax's with tasks.

    Args:
      body: `pointmass`, `ant`, `hopper`, `walker2d` or `humanoid`.
      types: the types of task, default all of `goal`, `command` and `disturbance`.
      backend: the physics of Brax's bodies; default `spring`.
      family: other bounds than :func:`task_family`'s, e.g. wider ones for evaluation.
      **settings: what the Brax environment's own constructor takes.

    Raises:
      ConfigError: for a name that does not exist, or settings that the body does not take.

    Examples:
      >>> env = make_task_env("pointmass", ("goal", "command"))
      >>> env.observation_spec.shape, env.episode_length
      ((12,), 60)
    """
    family = task_family(body, types) if family is None else family
    if body == "pointmass":
        require(backend is None and not settings, "the point mass has no backends and no settings; leave backend= out")
        return TaskEnvironment(PointMass(), family, BODIES[body].settings)
    backend = backend or default_backend(body)
    check_env_name(body, backend)
    return TaskEnvironment(
        BraxEnvironment(load_brax(body, backend, **settings), name=body), family, BODIES[body].settings
    )
