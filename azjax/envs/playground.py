"""Adapter for MuJoCo Playground, the optional package ``playground``: tasks by name, environments as objects."""

from __future__ import annotations

import contextlib
import shlex
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from azjax.config import ConfigError, require
from azjax.envs.base import EnvState
from azjax.envs.brax import BraxEnvironment, Randomization, quiet_dependencies
from azjax.envs.compat import barriers_if_deep
from azjax.envs.scene import Scene, scene_from_mujoco
from azjax.types import Array

PREFIX = "playground:"
BACKENDS = ("mjx",)
DM_CONTROL = "dm_control"
# The tasks of playground 0.2.0, so that they can be listed and checked without importing it.
SUITES: dict[str, tuple[str, ...]] = {
    DM_CONTROL: (
        "AcrobotSwingup",
        "AcrobotSwingupSparse",
        "BallInCup",
        "CartpoleBalance",
        "CartpoleBalanceSparse",
        "CartpoleSwingup",
        "CartpoleSwingupSparse",
        "CheetahRun",
        "FingerSpin",
        "FingerTurnEasy",
        "FingerTurnHard",
        "FishSwim",
        "HopperHop",
        "HopperStand",
        "HumanoidRun",
        "HumanoidStand",
        "HumanoidWalk",
        "PendulumSwingup",
        "PointMass",
        "ReacherEasy",
        "ReacherHard",
        "SwimmerSwimmer6",
        "WalkerRun",
        "WalkerStand",
        "WalkerWalk",
    ),
    "locomotion": (
        "ApolloJoystickFlatTerrain",
        "BarkourJoystick",
        "BerkeleyHumanoidJoystickFlatTerrain",
        "BerkeleyHumanoidJoystickRoughTerrain",
        "G1JoystickFlatTerrain",
        "G1JoystickRoughTerrain",
        "Go1Footstand",
        "Go1Getup",
        "Go1Handstand",
        "Go1JoystickFlatTerrain",
        "Go1JoystickRoughTerrain",
        "H1InplaceGaitTracking",
        "H1JoystickGaitTracking",
        "Op3Joystick",
        "SpotFlatTerrainJoystick",
        "SpotGetup",
        "SpotJoystickGaitTracking",
        "T1JoystickFlatTerrain",
        "T1JoystickRoughTerrain",
    ),
    "manipulation": (
        "AeroCubeRotateZAxis",
        "AlohaHandOver",
        "AlohaSinglePegInsertion",
        "LeapCubeReorient",
        "LeapCubeRotateZAxis",
        "PandaOpenCabinet",
        "PandaPickCube",
        "PandaPickCubeCartesian",
        "PandaPickCubeOrientation",
        "PandaRobotiqPushCube",
    ),
}
TASKS: dict[str, str] = {task: suite for suite, tasks in SUITES.items() for task in tasks}
_MENAGERIE = "https://github.com/google-deepmind/mujoco_menagerie.git"


class PlaygroundEnvironment(BraxEnvironment):
    """An environment of MuJoCo Playground behind azjax's protocol.

    Playground's ``reset`` and ``step`` are Brax's, with MJX's own ``data`` for a pipeline state. Its ``done`` is an end
    that the task sets, or a position or velocity that is not finite; the latter is a broken lane here.

    Args:
      env: a ``mujoco_playground.MjxEnv`` that computes with MJX's JAX implementation.
      name: what to call it.
      episode_length: the time limit in environment steps.
      randomization: must be ``None``: the ranges of ``Randomization`` are for models of Brax.

    Raises:
      ValueError: for an environment of another implementation, or with randomisation.
    """

    def __init__(
        self,
        env: Any,
        *,
        name: str | None = None,
        episode_length: int = 1000,
        randomization: Randomization | None = None,
    ) -> None:
        name = name or type(env).__name__
        require(randomization is None, f"{name} can't be randomised: only Brax's environments can; leave randomize out")
        implementation = getattr(env.mjx_model.impl, "value", env.mjx_model.impl)
        require(
            implementation == "jax",
            f"{name} computes with MJX's {implementation!r} implementation, whose states have no lanes of their own; "
            "load it with config_overrides={'impl': 'jax'}",
        )
        super().__init__(env, name=name, episode_length=episode_length)
        self.backend = BACKENDS[0]

    def scene(self) -> Scene:
        """What a viewer draws."""
        return scene_from_mujoco(self._env.mj_model, self.dt)

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World positions ``[L, 3]`` and quaternions ``[L, 4]`` (w, x, y, z) of the bodies, without the world."""
        data = state.inner.data
        return data.xpos[1:], data.xquat[1:]

    def _patches(self) -> list[contextlib.AbstractContextManager[None]]:
        return [barriers_if_deep(self._env.mj_model.body_parentid)]

    def _state(self, inner: Any, params: Any, done: Array) -> EnvState:
        state = super()._state(inner, params, done)
        whole = jnp.isfinite(inner.data.qpos).all() & jnp.isfinite(inner.data.qvel).all()
        return state.replace(reward=jnp.where(whole, state.reward, jnp.nan))  # type: ignore[attr-defined]


def load_playground(name: str, **settings: Any) -> Any:
    """A task of MuJoCo Playground with MJX's JAX implementation, quietly and without downloading anything.

    Args:
      name: ``"playground:"`` and the task.
      **settings: overrides of the task's own configuration, e.g. ``ctrl_dt=0.02``.

    Raises:
      ConfigError: if Playground is not installed, robot models are missing, or the settings don't fit.
    """
    task = name.removeprefix(PREFIX)
    with quiet_dependencies():
        playground = _import_playground(name)
        if TASKS[task] != DM_CONTROL:
            _require_models(name)
        try:
            return playground.registry.load(task, config_overrides={"impl": "jax", **settings})
        except (KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"environment {name!r} does not take these settings: {error}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"environment {name!r} can't be loaded: {error}") from error


def _import_playground(name: str) -> ModuleType:
    try:
        import mujoco_playground
    except ModuleNotFoundError as error:
        missing = "MuJoCo Playground" if error.name == "mujoco_playground" else f"{error.name}, which Playground needs,"
        raise ConfigError(f"{name!r}: {missing} is not installed; pip install 'azjax[playground]' does it") from error
    return mujoco_playground  # type: ignore[no-any-return]


def _require_models(name: str) -> None:
    """Playground would clone the robot models with git at this point; azjax says how to instead."""
    from mujoco_playground._src import mjx_env

    folder, revision = mjx_env.MENAGERIE_PATH, mjx_env.MENAGERIE_COMMIT_SHA
    quoted = shlex.quote(str(folder))
    require(
        folder.exists(),
        f"{name!r} needs the robot models of MuJoCo Menagerie, and there is no {folder}; get them with: "
        f"git clone {_MENAGERIE} {quoted} && git -C {quoted} checkout {revision}",
    )
