"""What the on-policy learners share: common hyperparameters, acting, estimating advantages, running statistics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import flax
import jax
import jax.numpy as jnp

from azjax.advantages import gae
from azjax.config import as_arrays, require, require_number, static, traced, traced_names
from azjax.distributions import Distribution
from azjax.minibatches import masked_mean
from azjax.networks import ACTIVATIONS, LOG_STD_RANGE, ActorCritic, Network
from azjax.normalization import RunningStatistics, init_statistics, normalize, std, update_statistics
from azjax.types import (
    ActFn,
    ActInfo,
    ActionSpec,
    Array,
    Batch,
    Carry,
    EstimateFn,
    Info,
    Key,
    Observation,
    ObservationSpec,
    Rollout,
)

C = TypeVar("C", bound="OnPolicyConfig")
LARGEST_LOG_RATIO = 20.0
"""Where logarithms of importance ratios are clipped: an overflowing ratio would make a NaN of a gradient of 0."""


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
    """The hyperparameters that every on-policy learner has; see ``azjax.config`` for traced and static."""

    gamma: float = traced(0.99)
    """Discount of future rewards."""
    lam: float = traced(0.95)
    """Trace of GAE: 0 is the TD residual, 1 the full return."""
    reward_scale: float = traced(1.0)
    """Factor on rewards inside the learner; reported returns stay unscaled."""
    normalize_observations: bool = static(True)
    """Centre and scale observations by running statistics, updated after the learner."""
    normalize_returns: bool = static(False)
    """Let the critic predict returns centred and scaled by running statistics."""
    policy_hidden: tuple[int, ...] = static((64, 64))
    """Hidden layers of the policy, and of both if the torso is shared."""
    value_hidden: tuple[int, ...] = static((64, 64))
    """Hidden layers of the value function; unused with shared_torso."""
    activation: Literal["tanh", "relu", "silu", "elu", "gelu"] = static("tanh")
    """Activation of the hidden layers."""
    distribution: Literal["tanh-normal", "normal"] = static("tanh-normal")
    """Policy over continuous actions: Gaussian squashed by tanh, or plain and clipped at the bounds."""
    state_dependent_std: bool = static(False)
    """Let the network give the standard deviation, instead of one learned number per action."""
    init_std: float = static(0.7)
    """Standard deviation of the untrained policy, before any squashing."""
    shared_torso: bool = static(False)
    """One torso for policy and value function."""
    policy_observation: str | None = static(None)
    """Entry of a dict observation that the policy sees; None: all of them."""
    value_observation: str | None = static(None)
    """Entry of a dict observation that the value function sees; None: all of them."""

    def validate(self) -> None:
        """Raises ``ConfigError``, naming field and value, for the first field that makes no sense."""
        self._require_numbers(
            ("gamma", 0.0, 1.0),
            ("lam", 0.0, 1.0),
            ("reward_scale", 1e-12, 1e12),
            # Beyond this the network would clip it.
            ("init_std", math.exp(LOG_STD_RANGE[0]), math.exp(LOG_STD_RANGE[1])),
        )
        self._require_choice("activation", tuple(ACTIVATIONS))
        self._require_choice("distribution", ("tanh-normal", "normal"))
        for name in ("policy_hidden", "value_hidden"):
            sizes = getattr(self, name)
            require(all(n >= 1 for n in sizes), f"{name} is {sizes}; every layer needs at least 1 unit")
        require(
            not self.shared_torso or self.policy_observation == self.value_observation,
            "shared_torso needs the same observation for policy and value function",
        )

    @property
    def batch_divisor(self) -> int:
        """What the number of decisions in a batch, on each device, must be divisible by."""
        return 1

    def lengthened(self: C, updates: int, before: int = 0) -> C:
        """The configuration for a run of so many updates, where it depends on them and was made for ``before``."""
        return self

    def _require_numbers(self, *bounds: tuple[str, float, float]) -> None:
        for name, low, high in bounds:
            require_number(name, getattr(self, name), low, high)

    def _require_choice(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        require(value in choices, f"{name} is {value!r}; it must be one of {', '.join(choices)}")


@flax.struct.dataclass
class PolicyParams:
    """All that acting needs."""

    network: Any
    statistics: RunningStatistics  # of observations


Forward = Callable[[PolicyParams, Observation], tuple[Distribution, Array | None]]


def default_network(config: OnPolicyConfig) -> ActorCritic:
    """The actor-critic of the configured sizes."""
    names = {field.name for field in dataclasses.fields(ActorCritic)}
    return ActorCritic(**{name: getattr(config, name) for name in names})


def initial_params(
    network: Network, key: Key, observation_spec: ObservationSpec, action_spec: ActionSpec
) -> PolicyParams:
    """Untrained parameters and empty statistics; ``key`` is consumed."""
    return PolicyParams(
        network=network.init(key, observation_spec, action_spec), statistics=init_statistics(observation_spec)
    )


def initial_return_statistics() -> RunningStatistics:
    """Statistics of no return."""
    return init_statistics(jax.ShapeDtypeStruct((), jnp.float32))


def initial_hyperparameters(config: C, hyperparameters: C | None) -> C:
    """What a state holds, traced fields as float32 arrays.

    Raises:
      ConfigError: if the programs built around ``config`` would not be those of the hyperparameters.
    """
    values = as_arrays(config if hyperparameters is None else hyperparameters)
    static_names = [field.name for field in dataclasses.fields(config) if field.name not in traced_names(config)]
    other = [name for name in static_names if getattr(values, name) != getattr(config, name)]
    require(
        not other, f"hyperparameters may differ from the learner's in traced fields only, not in {', '.join(other)}"
    )
    return values


def make_forward(config: OnPolicyConfig, network: Network) -> Forward:
    """The network on observations as the environment gives them."""

    def forward(params: PolicyParams, observation: Observation) -> tuple[Distribution, Array | None]:
        return network.apply(params.network, network_input(config, params.statistics, observation))

    return forward


def network_input(config: OnPolicyConfig, statistics: RunningStatistics, observation: Observation) -> Observation:
    """Observations as the network gets them."""
    return normalize(statistics, observation) if config.normalize_observations else observation


def make_act(forward: Forward) -> ActFn:
    """``Learner.act`` of a policy without a recurrent state."""

    def act(
        params: PolicyParams, observation: Observation, carry: Carry, key: Key, *, deterministic: bool = False
    ) -> tuple[Array, Carry, ActInfo]:
        distribution, _ = forward(params, observation)
        raw = distribution.mode() if deterministic else distribution.sample(key)
        return distribution.action(raw), carry, ActInfo(log_prob=distribution.log_prob(raw), raw_action=raw)

    return act


def make_estimate(forward: Forward) -> EstimateFn:
    """``Learner.estimate``: GAE of the values at acting time.

    The learner's state has ``params``, ``hyperparameters`` (an ``OnPolicyConfig``) and ``return_statistics``.
    """

    def estimate(state: Any, rollout: Rollout) -> Batch:
        hp = state.hyperparameters
        scale, centre = value_units(state.return_statistics, hp)

        def value_of(observation: Observation) -> Array:
            value = forward(state.params, observation)[1]
            return jnp.zeros_like(rollout.reward) if value is None else value * scale + centre

        advantages, returns = gae(
            rollout.reward * hp.reward_scale,
            value_of(rollout.observation),
            value_of(rollout.final_observation),
            rollout.terminated,
            rollout.truncated,
            gamma=hp.gamma,
            lam=hp.lam,
        )
        # An episode that starts with broken physics has no finite observation to stand in; such a row takes no part.
        mask = jnp.isfinite(advantages) & _finite_rows(rollout.observation, rollout.reward.ndim)
        return Batch(
            observation=rollout.observation,
            action=rollout.info.raw_action,
            log_prob=rollout.info.log_prob,
            advantages=advantages,
            returns=returns,
            mask=mask,
        )

    return estimate


def is_sequence(network: Network) -> bool:
    """Whether an observation of the network is one of a whole sequence of decisions; see ``Network``."""
    return getattr(network, "sequence", False)


def flatten_batch(batch: Batch, *, sequence: bool = False) -> Batch:
    """The batch with one leading axis: that of decisions, or of sequences, with the decisions of each behind it."""
    rank = batch.log_prob.ndim - sequence
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[rank:]), batch)


def blank_masked(batch: Batch, *, sequence: bool = False) -> Batch:
    """Zeros in place of masked entries: a NaN in one would reach the gradient even past a later selection.

    The observation of a sequence is left as it is if any decision of it counts.
    """

    def blank(tree: Any, mask: Array) -> Any:
        def one(x: Array) -> Array:
            return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, jnp.zeros_like(x))

        return jax.tree.map(one, tree)

    observation, *decisions = batch
    return Batch(
        blank(observation, batch.mask.any(-1) if sequence else batch.mask), *(blank(x, batch.mask) for x in decisions)
    )


def acting_values(batch: Batch) -> Array:
    """The values ``[...]`` at acting time."""
    return batch.returns - batch.advantages if batch.values is None else batch.values


def log_importance_ratio(distribution: Distribution, batch: Batch) -> Array:
    """``log(pi / pi_old)`` of the actions taken, 0 at masked entries, clipped to +-``LARGEST_LOG_RATIO``."""
    log_ratio = jnp.where(batch.mask, distribution.log_prob(batch.action) - batch.log_prob, 0.0)
    return jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def value_units(return_statistics: RunningStatistics, config: OnPolicyConfig) -> tuple[Array, Array]:
    """Scale and centre of what the critic predicts."""
    if config.normalize_returns:
        return std(return_statistics), return_statistics.mean
    return jnp.ones(()), jnp.zeros(())


def value_diagnostics(batch: Batch, axis_name: str | None) -> Info:
    """How well the values at acting time explained the returns."""

    def mean(x: Array) -> Array:
        return masked_mean(x, batch.mask, axis_name)

    variance = mean(jnp.square(batch.returns - mean(batch.returns)))
    error = batch.advantages if batch.values is None else batch.returns - batch.values
    residual = mean(jnp.square(error - mean(error)))
    return {
        "explained_variance": jnp.where(variance > 0, 1.0 - residual / jnp.maximum(variance, 1e-12), 0.0),
        "return_mean": mean(batch.returns),
    }


def update_running_statistics(state: Any, batch: Batch, config: OnPolicyConfig, axis_name: str | None) -> Any:
    """The learner's state with the batch counted in its statistics of observations and returns.

    The last act of a ``fit``: until then all ratios refer to what the actor saw.
    """
    statistics, return_statistics = state.params.statistics, state.return_statistics
    if config.normalize_observations:
        statistics = update_statistics(statistics, batch.observation, mask=batch.mask, axis_name=axis_name)
    if config.normalize_returns:
        return_statistics = update_statistics(return_statistics, batch.returns, mask=batch.mask, axis_name=axis_name)
    params = dataclasses.replace(state.params, statistics=statistics)
    return dataclasses.replace(state, params=params, return_statistics=return_statistics)


def _finite_rows(observation: Observation, rank: int) -> Array:
    """Whether all numbers of a row are finite; rows are the first ``rank`` axes of every leaf."""
    leaves = jax.tree.leaves(observation)
    flags = [jnp.isfinite(x).all(axis=tuple(range(rank, x.ndim))) for x in leaves]
    return jnp.stack(flags).all(axis=0)
