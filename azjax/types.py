"""The pytrees and function types that the rooms of azjax exchange.

In the shapes below ``T`` is the rollout length, ``B`` the number of lanes and ``A`` the action size. An *observation*
is an array or a dict of arrays; ``[T, B, ...]`` in front of it stands for the same leading axes on every leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array
Params = Any
Carry = Any
Observation = Array | Mapping[str, Array]
ObservationSpec = jax.ShapeDtypeStruct | Mapping[str, jax.ShapeDtypeStruct]
Info = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Box:
    """A continuous action space: ``size`` numbers in [-1, 1], which the environment scales to units of its own."""

    size: int


@dataclasses.dataclass(frozen=True)
class Discrete:
    """A choice among ``size`` actions, numbered from 0."""

    size: int


ActionSpec = Box | Discrete


class ActInfo(NamedTuple):
    """What a policy knows about the action it chose and a learner needs later."""

    log_prob: Array  # [...] log density of raw_action under the policy that chose it
    raw_action: Array  # [..., A] the sample before any squashing or clipping; int32 [...] for discrete actions


class Rollout(NamedTuple):
    """``T`` environment steps of ``B`` lanes with one policy, time-major."""

    observation: Observation  # [T, B, ...] what the policy saw
    carry: Carry  # [T, B, ...] the policy's recurrent state before the step; () for feed-forward networks
    action: Array  # [T, B, A] continuous ones are clipped to [-1, 1] on their way in; int32 [T, B] for discrete ones
    info: ActInfo  # [T, B, ...]
    reward: Array  # [T, B]
    terminated: Array  # bool [T, B] the task ended the episode
    truncated: Array  # bool [T, B] the time limit (or a non-finite state) did
    final_observation: Observation  # [T, B, ...] the true successor on every step, before any reset


class Batch(NamedTuple):
    """What a learner fits: one entry for each decision, any number of leading axes."""

    observation: Observation  # [..., ...]
    action: Array  # [..., A] raw actions
    log_prob: Array  # [...] under the policy that acted
    advantages: Array  # [...] not normalised
    returns: Array  # [...] targets of the value function
    mask: Array  # bool [...] False entries take no part
    values: Array | None = None  # [...] of the value function at acting time; None: returns - advantages


class InitFn(Protocol):
    """``init(key, observation_spec, action_spec, hyperparameters=None) -> LearnerState``."""

    def __call__(
        self, key: Key, observation_spec: ObservationSpec, action_spec: ActionSpec, hyperparameters: Any = None
    ) -> Any:
        """A fresh learner state; ``key`` is consumed."""
        ...


class ActFn(Protocol):
    """``act(params, observation, carry, key, *, deterministic=False) -> (action, carry, ActInfo)``."""

    def __call__(
        self, params: Params, observation: Observation, carry: Carry, key: Key, *, deterministic: bool = False
    ) -> tuple[Array, Carry, ActInfo]:
        """An action for each observation; ``key`` is consumed, unless ``deterministic`` takes the mode."""
        ...


class EstimateFn(Protocol):
    """``estimate(state, rollout) -> Batch``."""

    def __call__(self, state: Any, rollout: Rollout) -> Batch:
        """Advantages and returns of every decision."""
        ...


class FitFn(Protocol):
    """``fit(state, batch, key) -> (state, Info)``."""

    def __call__(self, state: Any, batch: Batch, key: Key) -> tuple[Any, Info]:
        """A state improved on the batch, and diagnostics; ``key`` is consumed."""
        ...


class Learner(NamedTuple):
    """A learner is four pure functions, in the spirit of optax's ``GradientTransformation``, and their device axis.

    ``init`` makes the learner's state; ``act`` needs only ``state.params`` (the observation normaliser included);
    ``estimate`` turns a rollout into a batch of advantages and returns; ``fit`` improves the state on a batch. State is
    what must be carried, ``Info`` is diagnostics only.
    """

    init: InitFn
    act: ActFn
    estimate: EstimateFn
    fit: FitFn
    axis_name: str | None = None  # the axis over which ``fit`` reduces gradients and statistics
