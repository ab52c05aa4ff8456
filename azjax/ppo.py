"""Proximal policy optimisation as a tuple of pure functions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from azjax.advantages import gae
from azjax.config import as_arrays, register_config, require, require_number, static, traced, traced_names
from azjax.distributions import Distribution
from azjax.minibatches import masked_mean, mean_over_devices, normalize_advantages, shuffled
from azjax.networks import ACTIVATIONS, LOG_STD_RANGE, ActorCritic, Network
from azjax.normalization import RunningStatistics, init_statistics, normalize, std, update_statistics
from azjax.types import (
    ActInfo,
    ActionSpec,
    Array,
    Batch,
    Carry,
    Info,
    Key,
    Learner,
    Observation,
    ObservationSpec,
    Params,
    Rollout,
)

KL_STEP = 1.5
LARGEST_LOG_RATIO = 20.0
LEARNING_RATE_RANGE = (1e-6, 1e-2)


@register_config
@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of PPO. Floats are traced, the rest is static: see ``azjax.config``."""

    learning_rate: float = traced(3e-4)
    """Adam's step size; the schedule scales it."""
    gamma: float = traced(0.99)
    """Discount of future rewards."""
    lam: float = traced(0.95)
    """Trace of GAE: 0 is the TD residual, 1 the full return."""
    clip: float = traced(0.2)
    """How far the importance ratio may leave 1 before its gradient vanishes."""
    value_clip: float = traced(float("inf"))
    """How far a value may move from its value at acting time; inf: no value clipping."""
    value_coefficient: float = traced(0.5)
    """Weight of the value loss."""
    entropy_coefficient: float = traced(0.0)
    """Weight of the entropy bonus."""
    max_grad_norm: float = traced(1.0)
    """Global norm to which gradients are clipped; inf: no clipping."""
    reward_scale: float = traced(1.0)
    """Factor on rewards inside the learner; reported returns stay unscaled."""
    target_kl: float = traced(0.01)
    """KL divergence of an update that schedule=adaptive-kl steers to, and 1.5 times which stop_at_kl stops."""
    epochs: int = static(4)
    """Passes over each rollout."""
    minibatches: int = static(8)
    """Gradient steps per pass."""
    schedule: Literal["constant", "linear", "cosine", "adaptive-kl"] = static("constant")
    """How the learning rate goes: constant, falling to 0 over schedule_updates, or steered by target_kl."""
    schedule_updates: int = static(0)
    """Updates over which linear and cosine fall to 0; the command line fills in the length of the run."""
    stop_at_kl: bool = static(False)
    """Skip the rest of an update's minibatches once the KL divergence exceeds 1.5 times target_kl."""
    advantage_normalization: Literal["batch", "minibatch", "none"] = static("batch")
    """Where advantages are centred and scaled: over the whole batch of all devices, per minibatch, or not at all."""
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
        """Raises ``ValueError``, naming field and value, for the first field that makes no sense."""
        infinity = float("inf")
        bounds: tuple[tuple[str, float, float], ...] = (
            ("learning_rate", 0.0, 1.0),
            ("gamma", 0.0, 1.0),
            ("lam", 0.0, 1.0),
            ("clip", 1e-6, 1e6),
            ("value_clip", 1e-6, infinity),
            ("value_coefficient", 0.0, 1e6),
            ("entropy_coefficient", -1e6, 1e6),
            ("max_grad_norm", 1e-12, infinity),
            ("reward_scale", 1e-12, 1e12),
            ("target_kl", 1e-9, 1e6),
            ("epochs", 1, 10_000),
            ("minibatches", 1, 1_000_000),
            ("schedule_updates", 0, 2**31 - 1),
            # Beyond this the network would clip it.
            ("init_std", math.exp(LOG_STD_RANGE[0]), math.exp(LOG_STD_RANGE[1])),
        )
        for name, low, high in bounds:
            require_number(name, getattr(self, name), low, high)
        for name, choices in (
            ("schedule", ("constant", "linear", "cosine", "adaptive-kl")),
            ("advantage_normalization", ("batch", "minibatch", "none")),
            ("activation", tuple(ACTIVATIONS)),
            ("distribution", ("tanh-normal", "normal")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        for name in ("policy_hidden", "value_hidden"):
            sizes = getattr(self, name)
            require(all(n >= 1 for n in sizes), f"{name} is {sizes}; every layer needs at least 1 unit")
        if self.schedule == "adaptive-kl":
            require_number("learning_rate (with schedule adaptive-kl)", self.learning_rate, *LEARNING_RATE_RANGE)
            require(
                self.epochs * self.minibatches > 1,
                "schedule 'adaptive-kl' needs more than one minibatch in an update to see the policy move",
            )
        falls = self.schedule in ("linear", "cosine")
        require(
            not falls or self.schedule_updates >= 1,
            f"schedule {self.schedule!r} needs schedule_updates, the number of updates over which it falls",
        )
        require(
            falls or self.schedule_updates == 0,
            f"schedule_updates is {self.schedule_updates}, but schedule {self.schedule!r} doesn't fall; leave it out",
        )
        require(
            not self.shared_torso or self.policy_observation == self.value_observation,
            "shared_torso needs the same observation for policy and value function",
        )


@flax.struct.dataclass
class PPOParams:
    """All that acting needs."""

    network: Any
    statistics: RunningStatistics  # of observations


@flax.struct.dataclass
class PPOState:
    """All that learning carries from update to update."""

    params: PPOParams
    optimizer: Any
    hyperparameters: PPOConfig  # traced fields as float32 arrays
    return_statistics: RunningStatistics
    learning_rate: Array  # float32 [] what schedule=adaptive-kl has steered it to
    updates: Array  # int32 []


class Minibatch(NamedTuple):
    """What ``ppo_loss`` averages over: a batch, and its advantages as the loss uses them."""

    batch: Batch
    advantages: Array  # [...] normalised as the configuration says


def make_schedule(config: PPOConfig) -> optax.Schedule:
    """The factor on the learning rate as a function of the update."""
    if config.schedule == "linear":
        return optax.linear_schedule(1.0, 0.0, config.schedule_updates)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(1.0, config.schedule_updates)
    return optax.constant_schedule(1.0)


def ppo_loss(
    network_params: Params,
    minibatch: Minibatch,
    *,
    network: Network,
    statistics: RunningStatistics,
    return_statistics: RunningStatistics,
    config: PPOConfig,
) -> tuple[Array, Info]:
    r"""The clipped objective with value loss and entropy bonus, to be minimised.

    .. math::
      L = -\mathbb{E}[\min(\rho A, \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A)]
          + \tfrac{c_v}{2} \mathbb{E}[(V - R)^2] - c_e \mathbb{E}[H]

    with the importance ratio :math:`\rho = \pi(a|s) / \pi_\mathrm{old}(a|s)`. With ``value_clip`` finite, the value
    error is the larger of that of V and that of V clipped around the value at acting time.

    Args:
      network_params: what is differentiated.
      minibatch: batch entries with any leading axes.
      network: forward pass.
      statistics: of observations, constant in the loss.
      return_statistics: of returns; the value loss is in their units if ``normalize_returns``.
      config: hyperparameters, traced fields may be arrays.

    Returns:
      The loss [] and diagnostics, each [], means over the entries where the mask holds.

    References:
      Schulman et al., 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347, section 3 and equation 9.
    """
    batch, advantages = _blank_masked(minibatch)
    observation = normalize(statistics, batch.observation) if config.normalize_observations else batch.observation
    distribution, value = network.apply(network_params, observation)

    count = jnp.maximum(batch.mask.sum(dtype=jnp.float32), 1.0)

    def mean(x: Array) -> Array:
        return jnp.where(batch.mask, x, 0.0).sum() / count

    log_ratio = jnp.where(batch.mask, distribution.log_prob(batch.action) - batch.log_prob, 0.0)
    # An overflowing ratio would make a NaN of the gradient that clipping sets to 0.
    log_ratio = jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    policy_loss = -mean(jnp.minimum(ratio * advantages, clipped * advantages))
    entropy = mean(distribution.entropy())
    info = {
        "policy_loss": policy_loss,
        "entropy": entropy,
        # Schulman's low-variance estimate of KL(old || new), never negative: joschu.net/blog/kl-approx.html
        "kl": mean(ratio - 1.0 - log_ratio),
        "clip_fraction": mean((jnp.abs(ratio - 1.0) > config.clip).astype(jnp.float32)),
    }
    loss = policy_loss - config.entropy_coefficient * entropy
    if value is not None:
        scale, centre = _value_units(return_statistics, config)
        target = (batch.returns - centre) / scale
        old = (batch.returns - batch.advantages - centre) / scale
        near = old + jnp.clip(value - old, -config.value_clip / scale, config.value_clip / scale)
        error = jnp.maximum(jnp.square(value - target), jnp.square(near - target))
        info["value_loss"] = 0.5 * mean(error)
        loss = loss + config.value_coefficient * info["value_loss"]
    return loss, info


def _blank_masked(minibatch: Minibatch) -> Minibatch:
    """Zeros in place of masked entries: a NaN in one would reach the gradient even past a later selection."""
    mask = minibatch.batch.mask

    def blank(x: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, jnp.zeros_like(x))

    return jax.tree.map(blank, minibatch)


def _finite_rows(observation: Observation, rank: int) -> Array:
    """Whether all numbers of a row are finite; rows are the first ``rank`` axes of every leaf."""
    leaves = jax.tree.leaves(observation)
    flags = [jnp.isfinite(x).all(axis=tuple(range(rank, x.ndim))) for x in leaves]
    return jnp.stack(flags).all(axis=0)


def _value_units(return_statistics: RunningStatistics, config: PPOConfig) -> tuple[Array, Array]:
    """Scale and centre of what the critic predicts."""
    if config.normalize_returns:
        return std(return_statistics), return_statistics.mean
    return jnp.ones(()), jnp.zeros(())


def ppo(
    config: PPOConfig | None = None,
    *,
    network: Network | None = None,
    optimizer: optax.GradientTransformation | None = None,
    schedule: optax.Schedule | None = None,
    axis_name: str | None = None,
) -> Learner:
    """A PPO learner.

    Args:
      config: hyperparameters; validated here.
      network: forward pass and initialiser; default an ``ActorCritic`` of the configured sizes.
      optimizer: any optax transformation in place of clipped Adam; it then owns learning rate and clipping.
      schedule: any optax schedule, a factor on ``config.learning_rate`` as a function of the update; overrides
        ``config.schedule``.
      axis_name: the axis of ``shard_map`` or ``vmap`` over which gradients and statistics are reduced.

    Returns:
      The learner. Its ``fit`` needs the number of decisions per device to be divisible by ``config.minibatches``.

    Raises:
      ValueError: for hyperparameters that make no sense, or a schedule together with an optimizer.

    Examples:
      >>> import azjax, jax
      >>> learner = azjax.ppo(azjax.PPOConfig(learning_rate=1e-3))
      >>> state = learner.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), "float32"), azjax.Box(2))
      >>> action, _, info = learner.act(state.params, jax.numpy.zeros(3), (), jax.random.key(1))
      >>> action.shape, info.log_prob.shape
      ((2,), ())

    References:
      Schulman et al., 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347.
    """
    config = PPOConfig() if config is None else config
    config.validate()
    adaptive = config.schedule == "adaptive-kl" and schedule is None
    require(
        optimizer is None or (schedule is None and config.schedule == "constant"),
        "an optimizer of your own carries its own learning rate; leave schedule constant",
    )
    rate_of = schedule or make_schedule(config)
    net = network if network is not None else default_network(config)

    def make_optimizer(state: PPOState) -> optax.GradientTransformation:
        if optimizer is not None:
            return optimizer
        # Built inside the program, so that traced hyperparameters reach it; its state has no hyperparameter in it.
        return optax.chain(
            optax.clip_by_global_norm(state.hyperparameters.max_grad_norm),
            optax.scale_by_adam(eps=1e-5),
            optax.scale_by_learning_rate(_learning_rate(state)),
        )

    def _learning_rate(state: PPOState) -> Array:
        base = state.learning_rate if adaptive else state.hyperparameters.learning_rate
        return base * rate_of(state.updates)

    def init(
        key: Key, observation_spec: ObservationSpec, action_spec: ActionSpec, hyperparameters: PPOConfig | None = None
    ) -> PPOState:
        values = as_arrays(config if hyperparameters is None else hyperparameters)
        _require_same_static(values, config)
        params = PPOParams(
            network=net.init(key, observation_spec, action_spec), statistics=init_statistics(observation_spec)
        )
        state = PPOState(
            params=params,
            optimizer=None,
            hyperparameters=values,
            return_statistics=init_statistics(jax.ShapeDtypeStruct((), jnp.float32)),
            learning_rate=jnp.array(values.learning_rate),  # a copy, for the state is donated leaf by leaf
            updates=jnp.zeros((), jnp.int32),
        )
        return dataclasses.replace(state, optimizer=make_optimizer(state).init(params.network))

    def forward(params: PPOParams, observation: Observation) -> tuple[Distribution, Array | None]:
        if config.normalize_observations:
            observation = normalize(params.statistics, observation)
        return net.apply(params.network, observation)

    def act(
        params: PPOParams, observation: Observation, carry: Carry, key: Key, *, deterministic: bool = False
    ) -> tuple[Array, Carry, ActInfo]:
        distribution, _ = forward(params, observation)
        raw = distribution.mode() if deterministic else distribution.sample(key)
        return distribution.action(raw), carry, ActInfo(log_prob=distribution.log_prob(raw), raw_action=raw)

    def estimate(state: PPOState, rollout: Rollout) -> Batch:
        hp = state.hyperparameters
        scale, centre = _value_units(state.return_statistics, hp)

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

    def gradient_step(carry: tuple[PPOState, Array], minibatch: Minibatch) -> tuple[Any, Info]:
        state, running = carry
        hp = state.hyperparameters
        if config.advantage_normalization == "minibatch":
            scaled = normalize_advantages(minibatch.advantages, minibatch.batch.mask, axis_name)
            minibatch = minibatch._replace(advantages=scaled)

        def loss(network_params: Params) -> tuple[Array, Info]:
            return ppo_loss(
                network_params,
                minibatch,
                network=net,
                statistics=state.params.statistics,
                return_statistics=state.return_statistics,
                config=hp,
            )

        gradient, info = jax.grad(loss, has_aux=True)(state.params.network)
        if axis_name is not None:
            gradient, info = mean_over_devices((gradient, info), minibatch.batch.mask, axis_name)
        norm = optax.tree.norm(gradient)
        rate = _learning_rate(state)
        change, optimizer_state = make_optimizer(state).update(gradient, state.optimizer, state.params.network)
        if config.stop_at_kl:
            running = running & ~(info["kl"] > KL_STEP * hp.target_kl)  # a NaN leaves out this minibatch alone
        # A non-finite gradient would destroy the run; the minibatch is left out and counted instead.
        use = running & jnp.isfinite(norm)
        new = dataclasses.replace(
            state,
            params=dataclasses.replace(state.params, network=optax.apply_updates(state.params.network, change)),
            optimizer=optimizer_state,
        )
        state = jax.tree.map(lambda a, b: jnp.where(use, a, b), new, state)
        info = {**info, "gradient_norm": norm, "skipped": 1.0 - use.astype(jnp.float32)}
        return (state, running), info if optimizer is not None else {**info, "learning_rate": rate}

    def epoch(carry: tuple[PPOState, Array], key: Key, flat: Minibatch) -> tuple[Any, Info]:
        size = flat.advantages.shape[0]
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        order = shuffled(key, size).reshape(config.minibatches, -1)

        def body(carry: Any, rows: Array) -> tuple[Any, Info]:
            return gradient_step(carry, jax.tree.map(lambda leaf: leaf[rows], flat))

        return jax.lax.scan(body, carry, order)

    def fit(state: PPOState, batch: Batch, key: Key) -> tuple[PPOState, Info]:
        rank = batch.log_prob.ndim
        flat_batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[rank:]), batch)
        size = flat_batch.log_prob.shape[0]
        require(
            size % config.minibatches == 0,
            f"{size} decisions per device can't be cut into {config.minibatches} equal minibatches",
        )
        advantages = flat_batch.advantages
        if config.advantage_normalization == "batch":
            advantages = normalize_advantages(advantages, flat_batch.mask, axis_name)
        flat = Minibatch(flat_batch, advantages)
        keys = jax.random.split(key, config.epochs)
        (state, _), info = jax.lax.scan(lambda c, k: epoch(c, k, flat), (state, jnp.ones((), bool)), keys)
        # The last minibatch saw all that the update changed but its own step; the first sees no change at all.
        steered = _steer(state.learning_rate, info["kl"][-1, -1], state.hyperparameters.target_kl)
        info = {name: jnp.mean(x) for name, x in info.items()} | _value_diagnostics(flat_batch, axis_name)
        # Statistics change only now: the ratio of the first minibatch is 1 because it saw what the actor saw.
        statistics, return_statistics = state.params.statistics, state.return_statistics
        if config.normalize_observations:
            statistics = update_statistics(statistics, batch.observation, mask=batch.mask, axis_name=axis_name)
        if config.normalize_returns:
            return_statistics = update_statistics(
                return_statistics, batch.returns, mask=batch.mask, axis_name=axis_name
            )
        return (
            dataclasses.replace(
                state,
                params=dataclasses.replace(state.params, statistics=statistics),
                return_statistics=return_statistics,
                learning_rate=steered if adaptive else state.learning_rate,
                updates=state.updates + 1,
            ),
            info,
        )

    return Learner(init=init, act=act, estimate=estimate, fit=fit, axis_name=axis_name)


def default_network(config: PPOConfig) -> ActorCritic:
    """The actor-critic of the configured sizes."""
    names = {field.name for field in dataclasses.fields(ActorCritic)}
    return ActorCritic(**{name: getattr(config, name) for name in names})


def _require_same_static(hyperparameters: PPOConfig, config: PPOConfig) -> None:
    """Raises ``ConfigError`` if the programs built around ``config`` would not be those of the hyperparameters."""
    static_names = [field.name for field in dataclasses.fields(config) if field.name not in traced_names(config)]
    other = [name for name in static_names if getattr(hyperparameters, name) != getattr(config, name)]
    require(
        not other, f"hyperparameters may differ from the learner's in traced fields only, not in {', '.join(other)}"
    )


def _steer(rate: Array, kl: Array, target: Array | float) -> Array:
    """The learning rate one step down if the policy moved too far, one step up if it hardly moved."""
    rate = jnp.where(kl > 2.0 * target, rate / KL_STEP, jnp.where(kl < 0.5 * target, rate * KL_STEP, rate))
    return jnp.clip(rate, *LEARNING_RATE_RANGE)


def _value_diagnostics(batch: Batch, axis_name: str | None) -> Info:
    """How well the values at acting time explained the returns."""

    def mean(x: Array) -> Array:
        return masked_mean(x, batch.mask, axis_name)

    variance = mean(jnp.square(batch.returns - mean(batch.returns)))
    residual = mean(jnp.square(batch.advantages - mean(batch.advantages)))
    return {
        "explained_variance": jnp.where(variance > 0, 1.0 - residual / jnp.maximum(variance, 1e-12), 0.0),
        "return_mean": mean(batch.returns),
    }


__all__ = ["Minibatch", "PPOConfig", "PPOParams", "PPOState", "ppo", "ppo_loss"]
