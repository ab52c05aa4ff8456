"""Flax networks of policies and value functions, and the actor-critic that learners use by default."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from azjax.config import require
from azjax.distributions import Categorical, Distribution, Normal, TanhNormal
from azjax.types import ActionSpec, Array, Box, Discrete, Key, Observation, ObservationSpec, Params

Activation = Literal["tanh", "relu", "silu", "elu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
}
LOG_STD_RANGE = (-5.0, 2.0)


class Network(Protocol):
    """What a learner needs of a network: parameters from specs, and a pure forward pass on batches of any rank.

    A network with a true attribute ``sequence`` takes observations of whole sequences of decisions, and gives
    distributions ``[N, R]`` and values ``[N, R]`` for N of them: batches then end with an axis of R decisions, which
    learners keep together.
    """

    def init(self, key: Key, observation_spec: ObservationSpec, action_spec: ActionSpec) -> Params:
        """Parameters for one kind of observation and action; ``key`` is consumed."""
        ...

    def apply(self, params: Params, observation: Observation) -> tuple[Distribution, Array | None]:
        """``(distribution over raw actions, value [...] or None)`` for observations ``[..., *shape]``."""
        ...


def orthogonal(scale: float) -> Callable[..., Array]:
    """Flax's orthogonal initialiser, one matrix at a time where ``jax.vmap`` asks for many.

    A batch of factorisations can hang on a CPU with a device for each core: see ``azjax.batching.linear_algebra``.
    """
    initialise = nn.initializers.orthogonal(scale)

    def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        alone = jax.custom_batching.sequential_vmap(lambda k: initialise(k, shape, dtype))
        return alone(key)  # type: ignore[no-any-return]

    return init


class MLP(nn.Module):
    """A multi-layer perceptron with orthogonal initialisation; the last entry of ``sizes`` is a layer like the rest."""

    sizes: tuple[int, ...]
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., n]`` to ``[..., sizes[-1]]``."""
        for size in self.sizes:
            x = nn.Dense(size, kernel_init=orthogonal(math.sqrt(2.0)))(x)
            x = ACTIVATIONS[self.activation](x)
        return x


EventRanks = tuple[tuple[str, int], ...]


def _entries(observation: Any) -> Mapping[str, Any]:
    """The entries of a dict observation; an array is one entry without a name."""
    return observation if isinstance(observation, Mapping) else {"": observation}


def flatten_observation(observation: Observation, key: str | None, event_ranks: EventRanks) -> Array:
    """One vector ``[..., n]`` of an observation: the entry ``key`` of a dict, or all its entries in sorted order."""
    entries = _entries(observation)
    parts = []
    for name, rank in event_ranks:
        if key is None or name == key:
            leaf = jnp.asarray(entries[name], jnp.float32)
            parts.append(leaf.reshape(*leaf.shape[: leaf.ndim - rank], -1))
    return jnp.concatenate(parts, axis=-1)


class _ActorCriticModule(nn.Module):
    """Both heads on vectors; the policy head starts near zero so that the first actions are centred."""

    config: ActorCritic
    outputs: int
    with_log_std: bool

    @nn.compact
    def __call__(self, policy_input: Array, value_input: Array) -> tuple[Array, Array | None, Array]:
        config = self.config
        if config.shared_torso:
            features = MLP(config.policy_hidden, config.activation, name="torso")(policy_input)
            value_features = features
        else:
            features = MLP(config.policy_hidden, config.activation, name="policy_torso")(policy_input)
            value_features = MLP(config.value_hidden, config.activation, name="value_torso")(value_input)
        small = orthogonal(0.01)
        output = nn.Dense(self.outputs, kernel_init=small, name="policy_head")(features)
        log_std = None
        if self.with_log_std and config.state_dependent_std:
            log_std = nn.Dense(self.outputs, kernel_init=small, name="log_std_head")(features)
        elif self.with_log_std:
            log_std = self.param("log_std", nn.initializers.zeros_init(), (self.outputs,))
            log_std = jnp.broadcast_to(log_std, output.shape)
        value = nn.Dense(1, kernel_init=orthogonal(1.0), name="value_head")(value_features)
        return output, log_std, value[..., 0]


@flax.struct.dataclass
class ActorCriticParams:
    """The weights, with the static facts that the forward pass needs beside them."""

    weights: Any
    action_spec: ActionSpec = flax.struct.field(pytree_node=False)
    event_ranks: EventRanks = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """Multi-layer perceptrons for policy and value, on separate torsos or a shared one.

    Dict observations allow an asymmetric pair: ``policy_observation`` and ``value_observation`` name the entry that
    each side sees (``None``: all entries, concatenated in sorted order). Continuous actions get a tanh-squashed or a
    plain diagonal Gaussian, discrete ones a categorical distribution.
    """

    policy_hidden: tuple[int, ...] = (64, 64)
    value_hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    distribution: str = "tanh-normal"
    state_dependent_std: bool = False
    init_std: float = 1.0
    shared_torso: bool = False
    policy_observation: str | None = None
    value_observation: str | None = None

    def init(self, key: Key, observation_spec: ObservationSpec, action_spec: ActionSpec) -> ActorCriticParams:
        """Parameters for one kind of observation and action; ``key`` is consumed.

        Raises:
          ValueError: if an observation entry is named that does not exist.
        """
        entries = _entries(observation_spec)
        known = ", ".join(sorted(entries)) or "no named entries: it is one array"
        for field in ("policy_observation", "value_observation"):
            name = getattr(self, field)
            require(name is None or name in entries, f"{field} is {name!r}, but the observation has {known}")
        ranks = tuple((name, len(entries[name].shape)) for name in sorted(entries))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), observation_spec)
        weights = self._module(action_spec).init(key, *self._inputs(zeros, ranks))
        return ActorCriticParams(weights=weights, action_spec=action_spec, event_ranks=ranks)

    def apply(self, params: ActorCriticParams, observation: Observation) -> tuple[Distribution, Array]:
        """``(distribution over raw actions, value [...])`` for observations ``[..., *shape]``."""
        inputs = self._inputs(observation, params.event_ranks)
        outputs: Any = self._module(params.action_spec).apply(params.weights, *inputs)
        output, log_std, value = outputs
        if isinstance(params.action_spec, Discrete):
            return Categorical(logits=output), value
        log_std = jnp.clip(log_std + math.log(self.init_std), *LOG_STD_RANGE)
        kind = TanhNormal if self.distribution == "tanh-normal" else Normal
        return kind(loc=output, log_std=log_std), value

    def _module(self, action_spec: ActionSpec) -> _ActorCriticModule:
        return _ActorCriticModule(self, action_spec.size, with_log_std=isinstance(action_spec, Box))

    def _inputs(self, observation: Observation, ranks: EventRanks) -> tuple[Array, Array]:
        return (
            flatten_observation(observation, self.policy_observation, ranks),
            flatten_observation(observation, self.value_observation, ranks),
        )
