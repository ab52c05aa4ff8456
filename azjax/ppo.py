"""Proximal policy optimisation as a tuple of pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from azjax.config import register_config, require, require_number, static, traced
from azjax.minibatches import mean_over_devices, normalize_advantages, scan_minibatches
from azjax.networks import Network
from azjax.normalization import RunningStatistics
from azjax.on_policy import (
    OnPolicyConfig,
    PolicyParams,
    acting_values,
    blank_masked,
    default_network,
    flatten_batch,
    initial_hyperparameters,
    initial_params,
    initial_return_statistics,
    is_sequence,
    log_importance_ratio,
    make_act,
    make_estimate,
    make_forward,
    network_input,
    update_running_statistics,
    value_diagnostics,
    value_units,
)
from azjax.types import ActionSpec, Array, Batch, Info, Key, Learner, ObservationSpec, Params

KL_STEP = 1.5
LEARNING_RATE_RANGE = (1e-6, 1e-2)


@register_config
@dataclasses.dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Hyperparameters of PPO. Floats are traced, the rest is static: see ``azjax.config``."""

    learning_rate: float = traced(3e-4)
    """Adam's step size; the schedule scales it."""
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

    @property
    def batch_divisor(self) -> int:
        """The number of minibatches."""
        return self.minibatches

    def lengthened(self, updates: int, before: int = 0) -> PPOConfig:
        """The configuration with a falling schedule over so many updates, if it falls over ``before`` of them."""
        if self.schedule not in ("linear", "cosine") or self.schedule_updates != before:
            return self
        return dataclasses.replace(self, schedule_updates=updates)

    def validate(self) -> None:
        """Raises ``ConfigError``, naming field and value, for the first field that makes no sense."""
        super().validate()
        infinity = float("inf")
        self._require_numbers(
            ("learning_rate", 0.0, 1.0),
            ("clip", 1e-6, 1e6),
            ("value_clip", 1e-6, infinity),
            ("value_coefficient", 0.0, 1e6),
            ("entropy_coefficient", -1e6, 1e6),
            ("max_grad_norm", 1e-12, infinity),
            ("target_kl", 1e-9, 1e6),
            ("epochs", 1, 10_000),
            ("minibatches", 1, 1_000_000),
            ("schedule_updates", 0, 2**31 - 1),
        )
        self._require_choice("schedule", ("constant", "linear", "cosine", "adaptive-kl"))
        self._require_choice("advantage_normalization", ("batch", "minibatch", "none"))
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


@flax.struct.dataclass
class PPOState:
    """All that learning carries from update to update."""

    params: PolicyParams
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
    batch = blank_masked(minibatch.batch, sequence=is_sequence(network))
    advantages = jnp.where(batch.mask, minibatch.advantages, 0.0)
    observation = network_input(config, statistics, batch.observation)
    distribution, value = network.apply(network_params, observation)

    count = jnp.maximum(batch.mask.sum(dtype=jnp.float32), 1.0)

    def mean(x: Array) -> Array:
        return jnp.where(batch.mask, x, 0.0).sum() / count

    log_ratio = log_importance_ratio(distribution, batch)
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
        scale, centre = value_units(return_statistics, config)
        target = (batch.returns - centre) / scale
        old = (acting_values(batch) - centre) / scale
        near = old + jnp.clip(value - old, -config.value_clip / scale, config.value_clip / scale)
        error = jnp.maximum(jnp.square(value - target), jnp.square(near - target))
        info["value_loss"] = 0.5 * mean(error)
        loss = loss + config.value_coefficient * info["value_loss"]
    return loss, info


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
        values = initial_hyperparameters(config, hyperparameters)
        params = initial_params(net, key, observation_spec, action_spec)
        state = PPOState(
            params=params,
            optimizer=None,
            hyperparameters=values,
            return_statistics=initial_return_statistics(),
            learning_rate=jnp.array(values.learning_rate),  # a copy, for the state is donated leaf by leaf
            updates=jnp.zeros((), jnp.int32),
        )
        return dataclasses.replace(state, optimizer=make_optimizer(state).init(params.network))

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

    def fit(state: PPOState, batch: Batch, key: Key) -> tuple[PPOState, Info]:
        flat_batch = flatten_batch(batch, sequence=is_sequence(net))
        advantages = flat_batch.advantages
        if config.advantage_normalization == "batch":
            advantages = normalize_advantages(advantages, flat_batch.mask, axis_name)
        flat = Minibatch(flat_batch, advantages)
        (state, _), info = scan_minibatches(
            gradient_step,
            (state, jnp.ones((), bool)),
            flat,
            key,
            epochs=config.epochs,
            minibatches=config.minibatches,
            axis_name=axis_name,
        )
        # The last minibatch saw all that the update changed but its own step; the first sees no change at all.
        steered = _steer(state.learning_rate, info["kl"][-1, -1], state.hyperparameters.target_kl)
        info = {name: jnp.mean(x) for name, x in info.items()} | value_diagnostics(flat_batch, axis_name)
        state = dataclasses.replace(
            state, learning_rate=steered if adaptive else state.learning_rate, updates=state.updates + 1
        )
        # Statistics change only now: the ratio of the first minibatch is 1 because it saw what the actor saw.
        return update_running_statistics(state, batch, config, axis_name), info

    forward = make_forward(config, net)
    return Learner(init=init, act=make_act(forward), estimate=make_estimate(forward), fit=fit, axis_name=axis_name)


def _steer(rate: Array, kl: Array, target: Array | float) -> Array:
    """The learning rate one step down if the policy moved too far, one step up if it hardly moved."""
    rate = jnp.where(kl > 2.0 * target, rate / KL_STEP, jnp.where(kl < 0.5 * target, rate * KL_STEP, rate))
    return jnp.clip(rate, *LEARNING_RATE_RANGE)


__all__ = ["Minibatch", "PPOConfig", "PPOState", "ppo", "ppo_loss"]
