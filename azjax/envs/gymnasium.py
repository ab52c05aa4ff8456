"""Gymnasium's two interfaces around azjax's lanes; only ``azjax.to_gymnasium`` imports this module."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from azjax.config import require
from azjax.envs.bridge import Autoreset, SteppedLanes
from azjax.types import ActionSpec, Box, Key, ObservationSpec

Info = dict[str, Any]


def observation_space(spec: ObservationSpec) -> gymnasium.Space[Any]:
    """The space of an observation: azjax knows no bounds, so a box is as wide as its type."""
    if isinstance(spec, jax.ShapeDtypeStruct):
        dtype: Any = np.dtype(spec.dtype)
        if dtype == np.bool_:
            return gymnasium.spaces.Box(0, 1, spec.shape, dtype)
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            return gymnasium.spaces.Box(limits.min, limits.max, spec.shape, dtype)
        return gymnasium.spaces.Box(-np.inf, np.inf, spec.shape, dtype)
    return gymnasium.spaces.Dict({name: observation_space(leaf) for name, leaf in spec.items()})


def action_space(spec: ActionSpec) -> gymnasium.Space[Any]:
    """[-1, 1] in every direction, or whole numbers from 0."""
    if isinstance(spec, Box):
        return gymnasium.spaces.Box(-1.0, 1.0, (spec.size,), np.float32)
    return gymnasium.spaces.Discrete(spec.size)


class LaneVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Lanes as a ``gymnasium.vector.VectorEnv``; see ``azjax.to_gymnasium``."""

    def __init__(self, lanes: SteppedLanes, mode: Autoreset, seed: int | None) -> None:
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode(mode)}
        self.num_envs = lanes.lanes
        self.single_observation_space = observation_space(lanes.env.observation_spec)
        self.single_action_space = action_space(lanes.env.action_spec)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._lanes: SteppedLanes | None = lanes
        self._seed = seed
        self._over: np.ndarray | None = None  # lanes whose episode has ended; None before the first reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """New episodes in all lanes, or in those of ``options["reset_mask"]`` (bool ``[num_envs]``).

        The same ``seed`` gives the same episodes for the same actions, those after automatic resets included; without
        one the sequence of the last seed goes on.

        Raises:
          ValueError: for other options, or a mask of another type or shape.
        """
        lanes = _open(self._lanes)
        mask = _reset_mask(options or {}, self.num_envs)
        seed = self._seed if seed is None and self._over is None else seed
        super().reset(seed=seed)
        if seed is not None or self._over is None:
            lanes.start(_key(self.np_random))
        observation = _to_numpy(lanes.reset(mask))
        if self._over is None or mask is None:
            self._over = np.zeros(self.num_envs, bool)
        else:
            self._over = self._over & ~mask
        return observation, {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Info]:
        """One decision of all lanes.

        Where episodes ended, the infos say ``nonfinite``: whether the physics broke. With ``SAME_STEP`` that stands in
        ``final_info``, and ``final_obs`` has the true last observations; each with its mask, as Gymnasium has them.

        Raises:
          ValueError: for actions of another shape, or outside a discrete space.
          ResetNeeded: before the first reset, or for a lane that is over when nothing resets it.
        """
        lanes, mode = _open(self._lanes), self.metadata["autoreset_mode"]
        if self._over is None:
            raise ResetNeeded("call reset() before step()")
        if mode == AutoresetMode.DISABLED and self._over.any():
            raise ResetNeeded(
                "an episode is over; call reset(), for some of many lanes with a reset_mask among the options"
            )
        output, final = lanes.step(_checked(actions, self.action_space))
        out = _to_numpy(output)
        self._over = out.terminated | out.truncated
        infos: Info = {}
        if self._over.any():
            infos = {"nonfinite": out.nonfinite, "_nonfinite": self._over.copy()}
            if mode == AutoresetMode.SAME_STEP:
                last = _each(_to_numpy(final), self._over)
                infos = {"final_obs": last, "final_info": infos}
                infos |= {"_" + name: self._over.copy() for name in ("final_obs", "final_info")}
        return out.observation, out.reward, out.terminated, out.truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Lets go of the lanes and their programs."""
        self._lanes = None


class LaneEnv(gymnasium.Env[Any, Any]):
    """One lane as a ``gymnasium.Env``; see ``azjax.to_gymnasium``."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, lanes: SteppedLanes, seed: int | None) -> None:
        self._vector = LaneVectorEnv(lanes, "Disabled", seed)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """A new episode; the same ``seed`` gives the same ones, without one the sequence of the last seed goes on."""
        super().reset(seed=seed)
        observation, info = self._vector.reset(seed=seed, options=options)
        return _first(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """One decision; ``info["nonfinite"]`` says whether the physics broke.

        Raises:
          ValueError: for an action of another shape, or outside a discrete space.
          ResetNeeded: before the first reset, or when the episode is over.
        """
        observation, reward, terminated, truncated, infos = self._vector.step(np.asarray(action)[None])
        info = {"nonfinite": bool(infos.get("nonfinite", [False])[0])}
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def close(self) -> None:
        """Lets go of the lane and its programs."""
        self._vector.close()


def _open(lanes: SteppedLanes | None) -> SteppedLanes:
    if lanes is None:
        raise ClosedEnvironmentError("the environment is closed; make a new one")
    return lanes


def _key(generator: np.random.Generator) -> Key:
    return jax.random.key(np.uint32(generator.integers(2**32, dtype=np.uint64)))


def _reset_mask(options: dict[str, Any], lanes: int) -> np.ndarray | None:
    """``options["reset_mask"]``, the one option there is; ``None`` for all lanes."""
    unknown = sorted(set(options) - {"reset_mask"})
    require(not unknown, f"unknown reset option {unknown[:1]}; the only one is 'reset_mask'")
    mask = options.get("reset_mask")
    if mask is None:
        return None
    fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (lanes,)
    require(fits, f"reset_mask must be a NumPy array of {lanes} booleans, not {type(mask).__name__} {np.shape(mask)}")
    return mask


def _checked(actions: Any, space: gymnasium.Space[Any]) -> np.ndarray:
    """The actions as the program takes them."""
    array = np.asarray(actions)
    require(array.shape == space.shape, f"actions have shape {array.shape}; the action space has {space.shape}")
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        require(np.issubdtype(array.dtype, np.integer), f"actions are {array.dtype}; they must be whole numbers")
        require(bool(space.contains(array.astype(space.dtype))), f"actions {array} are outside of {space}")
        return array.astype(np.int32)
    return array.astype(np.float32)


def _to_numpy(tree: Any) -> Any:
    """Arrays of the caller's own: JAX's are read-only and may be shared."""
    return jax.tree.map(np.array, jax.device_get(tree))


def _first(observation: Any) -> Any:
    return jax.tree.map(lambda x: x[0], observation)


def _each(observation: Any, mask: np.ndarray) -> np.ndarray:
    """Gymnasium's array of objects: one lane's observation where the mask is true, ``None`` elsewhere."""
    objects = np.full(len(mask), None, dtype=object)
    for lane in np.flatnonzero(mask):
        objects[lane] = jax.tree.map(lambda x, lane=lane: x[lane].copy(), observation)
    return objects
