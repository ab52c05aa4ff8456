"""The environment protocol of azjax: pure functions on a single environment."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax
import jax

from azjax.types import ActionSpec, Array, Key, Observation, ObservationSpec


@flax.struct.dataclass
class EnvState:
    """The state of one environment after a reset or a step."""

    inner: Any  # the suite's own state
    params: Any  # pytree of physics and task values of this episode; () if there are none
    observation: Observation
    reward: Array  # float32 []
    terminated: Array  # bool [] the task ended the episode
    truncated: Array  # bool [] the environment itself cut the episode short (azjax's time limit comes on top)


@runtime_checkable
class Environment(Protocol):
    """A functional environment: azjax vectorises, counts episodes and resets it.

    ``params`` are inputs of the program, drawn anew for each episode by ``sample_params``; nothing is patched.
    """

    name: str
    backend: str
    episode_length: int
    observation_spec: ObservationSpec
    action_spec: ActionSpec

    def sample_params(self, key: Key) -> Any:
        """The physics and task values of one episode; ``key`` is consumed."""
        ...

    def reset(self, key: Key, params: Any) -> EnvState:
        """A fresh initial state; ``key`` is consumed."""
        ...

    def step(self, state: EnvState, action: Array) -> EnvState:
        """One control step with an action ``[A]`` inside the action space."""
        ...


def fresh_state(env: Environment, key: Key) -> EnvState:
    """A fresh episode: new params, then a new initial state; ``key`` is consumed."""
    key_params, key_reset = jax.random.split(key)
    return env.reset(key_reset, env.sample_params(key_params))
