"""Adapter for Brax environments, and for any object with Brax's ``reset(rng)`` and ``step(state, action)``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import ConfigError, require, require_number
from azjax.envs.base import EnvState
from azjax.envs.compat import barriers_if_deep, old_clip_in_fluid
from azjax.envs.scene import Scene, scene_from_brax
from azjax.types import ActionSpec, Array, Box, Key, ObservationSpec

BACKENDS = ("spring", "positional", "generalized", "mjx")
_ALL = BACKENDS
# Which pipelines each environment of brax 0.14.2 accepts; `pytest -m slow` steps every pair.
SUPPORTED: dict[str, tuple[str, ...]] = {
    "ant": _ALL,
    "halfcheetah": _ALL,
    "hopper": _ALL,
    "humanoid": _ALL,
    "humanoidstandup": _ALL,
    "inverted_pendulum": _ALL,
    "inverted_double_pendulum": _ALL,
    "pusher": _ALL,
    "reacher": _ALL,
    "swimmer": ("generalized",),
    "walker2d": _ALL,
}


@contextlib.contextmanager
def quiet_dependencies() -> Iterator[None]:
    """Silences what Brax and its dependencies print and warn while they are imported or load a model."""
    root = logging.getLogger()
    level = root.level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            with _quiet_mujoco():
                yield
        finally:
            root.setLevel(level)


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """Silences the warnings of MuJoCo's own model compiler, which would also leave a log file in the working folder."""
    try:
        import mujoco
    except Exception as error:
        # MuJoCo loads its driver with itself, and what a driver raises has no common type.
        setting = os.environ.get("MUJOCO_GL")
        if not setting:
            raise
        raise ConfigError(f"MuJoCo can't be imported with MUJOCO_GL={setting}: {error}; unset it") from error
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


@dataclasses.dataclass(frozen=True)
class Randomization:
    """Ranges ``(low, high)`` of the factors that each episode draws uniformly, relative to the model's values.

    ``friction`` scales the sliding friction of all geometries, ``mass`` all masses and inertias together, and
    ``motor_strength`` the gear of all actuators.
    """

    friction: tuple[float, float] = (0.6, 1.4)
    mass: tuple[float, float] = (0.8, 1.2)
    motor_strength: tuple[float, float] = (0.8, 1.2)

    def validate(self) -> None:
        """Raises ``ValueError`` for a range that is empty, negative or not finite."""
        for field in dataclasses.fields(self):
            low, high = getattr(self, field.name)
            require_number(f"randomization {field.name}", low, 1e-3, 1e3)
            require_number(f"randomization {field.name}", high, low, 1e3)

    def sample(self, key: Key) -> dict[str, Array]:
        """One factor a name, each a float32 scalar."""
        names = [field.name for field in dataclasses.fields(self)]
        return {
            name: jax.random.uniform(k, (), jnp.float32, *getattr(self, name))
            for name, k in zip(names, jax.random.split(key, len(names)), strict=True)
        }


def effective_system(system: Any) -> Any:
    """The same spring or positional system with its masses and inertias as those pipelines use them.

    They raise mass to the power ``1 - spring_mass_scale`` (and inertia likewise), which for several of Brax's models is
    the power 0: a factor on the mass would change nothing. Here the power is taken, and the exponents are 1.
    """
    inertia = system.link.inertia
    mass = inertia.mass ** (1.0 - system.spring_mass_scale)
    diagonal = jnp.diagonal(inertia.i, axis1=-2, axis2=-1) ** (1.0 - system.spring_inertia_scale)
    return system.replace(
        link=system.link.replace(inertia=inertia.replace(mass=mass, i=jax.vmap(jnp.diag)(diagonal))),
        spring_mass_scale=jnp.zeros_like(jnp.asarray(system.spring_mass_scale, jnp.float32)),
        spring_inertia_scale=jnp.zeros_like(jnp.asarray(system.spring_inertia_scale, jnp.float32)),
    )


def scale_system(system: Any, factors: Mapping[str, Array]) -> Any:
    """A ``brax.base.System`` with friction, mass and motor strength multiplied by ``factors``.

    Brax's own pipelines read links and actuators, MJX reads the arrays of its model; both are scaled alike. The inverse
    weights by which MuJoCo regularises constraints scale inversely with mass. A vector ``gravity`` [m/s²] among the
    factors takes the place of the model's.
    """
    friction, mass, strength = factors["friction"], factors["mass"], factors["motor_strength"]
    inertia = system.link.inertia
    gravity = jnp.asarray(factors.get("gravity", system.gravity))
    return system.replace(
        gravity=gravity,
        opt=system.opt.replace(gravity=gravity),
        geom_friction=jnp.asarray(system.geom_friction).at[:, 0].multiply(friction),
        pair_friction=jnp.asarray(system.pair_friction).at[:, :2].multiply(friction),
        body_mass=system.body_mass * mass,
        body_subtreemass=system.body_subtreemass * mass,
        body_inertia=system.body_inertia * mass,
        body_invweight0=system.body_invweight0 / mass,
        dof_invweight0=system.dof_invweight0 / mass,
        link=system.link.replace(inertia=inertia.replace(mass=inertia.mass * mass, i=inertia.i * mass)),
        actuator=system.actuator.replace(gear=system.actuator.gear * strength),
        actuator_gear=system.actuator_gear * strength,
    )


class BraxEnvironment:
    """A Brax environment, or an object that looks like one, behind azjax's protocol.

    Args:
      env: object with ``reset(rng) -> state``, ``step(state, action) -> state`` and ``action_size``, where a state has
        ``obs``, ``reward``, ``done`` and ``replace``; ``info["truncation"]``, if there and not 0, marks an end as a
        time limit.
      name: what to call it.
      episode_length: the time limit in environment steps.
      randomization: ranges of physics factors drawn per episode; needs Brax's ``env.sys``.

    ``reset`` and ``step`` are jitted: what changes in ``env`` after their first use is not seen. They take any params
    that ``scale_system`` does, or ``()``, whatever ``sample_params`` draws.

    Raises:
      ValueError: if ``env`` has no ``action_size``, is already wrapped for training, or cannot be randomised.
    """

    def __init__(
        self,
        env: Any,
        *,
        name: str | None = None,
        episode_length: int = 1000,
        randomization: Randomization | None = None,
    ) -> None:
        wrapper = type(env).__module__
        require(
            ".wrapper" not in wrapper,
            f"{type(env).__name__} is a training wrapper; pass the bare environment: azjax vectorises and resets",
        )
        require(
            isinstance(getattr(env, "action_size", None), int | np.integer),
            f"{type(env).__name__} has no action_size, the number of its actions; add it as an integer attribute",
        )
        require_number("episode_length", episode_length, 1, 2**30)
        if randomization is not None:
            randomization.validate()
            require(
                hasattr(env, "sys"),
                f"{name or type(env).__name__} has no physics model (sys), so it can't be randomised",
            )
        self._env = env
        self._randomization = randomization
        self._jit()
        self.name = name or type(env).__name__.lower()
        self.backend = str(getattr(env, "backend", "custom"))
        self.episode_length = episode_length
        self.action_spec: ActionSpec = Box(size=int(env.action_size))
        self.observation_spec: ObservationSpec = jax.eval_shape(
            lambda key: self.reset(key, self.sample_params(key)).observation, jax.random.key(0)
        )

    def _jit(self) -> None:
        # A program steps and resets in several places; under jit each of the two is traced once for all of them.
        self._reset, self._step = jax.jit(self._trace_reset), jax.jit(self._trace_step)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_reset", "_step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._jit()

    @property
    def dt(self) -> float:
        """Simulated seconds of an environment step (0.02 where the environment doesn't say)."""
        return float(getattr(self._env, "dt", 0.02))

    def sample_params(self, key: Key) -> Any:
        """Physics factors of one episode, ``()`` without randomisation; ``key`` is consumed."""
        return () if self._randomization is None else self._randomization.sample(key)

    def reset(self, key: Key, params: Any) -> EnvState:
        """A fresh initial state; ``key`` is consumed."""
        return self._reset(key, params)

    def step(self, state: EnvState, action: Array) -> EnvState:
        """One control step with an action ``[A]`` in [-1, 1]."""
        return self._step(state, action)

    def _trace_reset(self, key: Key, params: Any) -> EnvState:
        with self._tracing():
            state = self._with(params).reset(key)
        return self._state(state, params, jnp.zeros((), bool))

    def _trace_step(self, state: EnvState, action: Array) -> EnvState:
        # Brax writes into the dicts of its states; the map makes new ones, so that the caller's state stays as it is.
        inner = jax.tree.map(lambda x: x, state.inner)
        with self._tracing():
            after = self._with(state.params).step(inner, action)
        return self._state(after, state.params, jnp.asarray(after.done) > 0.5)

    def scene(self) -> Scene | None:
        """What a viewer draws, or ``None`` if the environment has no Brax model."""
        return None if self.model() is None else scene_from_brax(self._env.sys, self.dt)

    def model(self) -> Any:
        """The ``mujoco.MjModel`` whose bodies, without the world, are the links; ``None`` if there is none."""
        return getattr(getattr(self._env, "sys", None), "mj_model", None)

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World positions ``[L, 3]`` and quaternions ``[L, 4]`` (w, x, y, z) of the links."""
        x = state.inner.pipeline_state.x
        return x.pos, x.rot

    def _with(self, params: Any) -> Any:
        if not params:
            return self._env
        env, system = copy.copy(self._env), self._env.sys
        if self.backend in ("spring", "positional"):
            system = effective_system(system)
        env.sys = scale_system(system, params)
        return env

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        # TF32 on recent GPUs ruins contact physics, so the precision is stated rather than left to the platform.
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.default_matmul_precision("highest"))
            for patch in self._patches():
                stack.enter_context(patch)
            yield

    def _patches(self) -> list[contextlib.AbstractContextManager[None]]:
        """What must hold while this environment's code is traced."""
        system = getattr(self._env, "sys", None)
        patches: list[contextlib.AbstractContextManager[None]] = []
        if getattr(system, "enable_fluid", False):
            patches.append(old_clip_in_fluid())
        if self.backend == "mjx" and system is not None:
            patches.append(barriers_if_deep(system.body_parentid))
        return patches

    def _state(self, inner: Any, params: Any, done: Array) -> EnvState:
        time_limit = jnp.asarray(getattr(inner, "info", {}).get("truncation", 0.0)) > 0.5
        return EnvState(
            inner=inner,
            params=params,
            observation=inner.obs,
            reward=jnp.asarray(inner.reward, jnp.float32),
            terminated=done & ~time_limit,
            truncated=done & time_limit,
        )


def load_brax(name: str, backend: str, **settings: Any) -> Any:
    """The environment ``name`` of ``brax.envs`` on one of its backends, quietly."""
    with quiet_dependencies():
        from brax import envs

        return envs.get_environment(name, backend=backend, **settings)
