"""Trust region policy optimisation as a tuple of pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import optax

from azjax.config import register_config, require, static, traced
from azjax.distributions import Distribution
from azjax.fisher import Product, double_backward_product, fisher_product
from azjax.line_search import Measurement
from azjax.minibatches import (
    normalize_advantages,
    row_weights,
    shuffled,
    sum_over_devices,
)
from azjax.networks import Network
from azjax.normalization import RunningStatistics
from azjax.on_policy import (
    OnPolicyConfig,
    PolicyParams,
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
from azjax.parameters import as_vector, separate
from azjax.trust_region import Search, trust_region_step
from azjax.types import ActionSpec, Array, Batch, Info, Key, Learner, Observation, ObservationSpec
from azjax.value_fitting import fit_values, value_optimizer, value_step

__all__ = ["TRPOConfig", "TRPOState", "trpo"]


@register_config
@dataclasses.dataclass(frozen=True)
class TRPOConfig(OnPolicyConfig):
    """Hyperparameters of TRPO. Floats are traced, the rest is static: see ``azjax.config``."""

    max_kl: float = traced(0.01)
    """Bound on the mean of KL(old || new), summed over action dimensions, of an update."""
    damping: float = traced(0.1)
    """Multiple of the identity that is added to the Fisher matrix."""
    cg_tolerance: float = traced(1e-5)
    """Residual, relative to the gradient, at which conjugate gradients stop."""
    accept_ratio: float = traced(0.1)
    """Part of the expected improvement that a step of the policy must bring to be accepted."""
    backtrack_factor: float = traced(0.8)
    """Factor by which a step that is not accepted is shortened."""
    learning_rate: float = traced(1e-3)
    """Adam's step size for the value function, with value_update=adam."""
    max_value_change: float = traced(0.01)
    """Bound on mean (V - V_old)^2 / (2 sigma^2), sigma^2 the mean squared error, with value_update=trust-region."""
    value_damping: float = traced(0.01)
    """Multiple of the identity that is added to the value function's Gauss-Newton matrix, with trust-region."""
    cg_iterations: int = static(10)
    """Products with the Fisher matrix at most, for the direction of a step."""
    max_backtracks: int = static(10)
    """How often a step is shortened before none is taken."""
    fisher_form: Literal["gauss-newton", "double-backward"] = static("gauss-newton")
    """How Fisher-vector products are computed: the results are equal, gauss-newton is cheaper."""
    fisher_subsampling: int = static(1)
    """Estimate the Fisher matrix from one in so many decisions, drawn at random; 1: from all."""
    value_update: Literal["adam", "trust-region"] = static("adam")
    """How values are fitted: epochs of minibatches, or a Gauss-Newton step to the edge of a trust region."""
    epochs: int = static(10)
    """Passes over each rollout that fit the value function, with value_update=adam."""
    minibatches: int = static(8)
    """Gradient steps per pass, with value_update=adam."""
    advantage_normalization: Literal["batch", "none"] = static("batch")
    """Whether advantages are centred and scaled over the whole batch of all devices."""

    @property
    def batch_divisor(self) -> int:
        """The number of minibatches that the value function is fitted in."""
        return self.minibatches if self.value_update == "adam" else 1

    def validate(self) -> None:
        """Raises ``ConfigError``, naming field and value, for the first field that makes no sense."""
        super().validate()
        self._require_numbers(
            ("max_kl", 1e-12, 1e6),
            ("damping", 0.0, 1e6),
            ("cg_tolerance", 0.0, 1.0),
            ("accept_ratio", 0.0, 1.0),
            ("backtrack_factor", 0.01, 0.99),
            ("learning_rate", 0.0, 1.0),
            ("max_value_change", 1e-12, 1e12),
            ("value_damping", 0.0, 1e6),
            ("cg_iterations", 1, 1000),
            ("max_backtracks", 0, 1000),
            ("fisher_subsampling", 1, 1_000_000),
            ("epochs", 1, 10_000),
            ("minibatches", 1, 1_000_000),
        )
        self._require_choice("fisher_form", ("gauss-newton", "double-backward"))
        self._require_choice("value_update", ("adam", "trust-region"))
        self._require_choice("advantage_normalization", ("batch", "none"))
        require(
            not self.shared_torso,
            "shared_torso is True, but TRPO fits the value function apart from the policy, whose trust region a shared "
            "torso would leave; leave it False",
        )


def _search(config: TRPOConfig) -> Search:
    return Search(
        accept_ratio=config.accept_ratio,
        backtrack_factor=config.backtrack_factor,
        max_backtracks=config.max_backtracks,
        tolerance=config.cg_tolerance,
        iterations=config.cg_iterations,
    )


@flax.struct.dataclass
class TRPOState:
    """All that learning carries from update to update."""

    params: PolicyParams
    optimizer: Any  # of the value function's parameters as one vector; None with value_update=trust-region
    hyperparameters: TRPOConfig  # traced fields as float32 arrays
    return_statistics: RunningStatistics
    updates: Array  # int32 []


def policy_step(
    policy: Callable[[Array, Observation], Distribution],
    theta: Array,
    batch: Batch,
    key: Key,
    *,
    config: TRPOConfig,
    axis_name: str | None = None,
) -> tuple[Array, Info]:
    r"""One natural gradient step of the policy.

    .. math::
        \max_\theta\; \mathbb{E}[\rho A] \quad \text{subject to} \quad
        \mathbb{E}[KL(\pi_{old}(\cdot|s) \| \pi_\theta(\cdot|s))] \le \delta,
        \qquad \rho = \pi_\theta(a|s) / \pi_{old}(a|s)

    The divergence is the exact one of the distributions, summed over action dimensions.

    Args:
      policy: from parameters `[n]` and observations `[N, ...]`, as the network gets them, to distributions `[N]`.
      theta: `[n]`, the parameters that acted.
      batch: `[N, ...]`, its advantages as the objective uses them, its masked entries finite.
      key: draws the states of the Fisher matrix; consumed.
      config: hyperparameters, traced fields may be arrays.
      axis_name: the device axis, if there is one.

    Returns:
      The new parameters, bit for bit the old ones where no step was accepted, and diagnostics.

    References:
      Schulman, Levine, Moritz, Jordan, Abbeel, 2015, Trust Region Policy Optimization, arXiv 1502.05477, equation 14
      and appendix C.
    """
    weights = row_weights(batch.mask, axis_name)
    old = policy(theta, batch.observation)
    old_log_ratio = log_importance_ratio(old, batch)

    def local_mean(x: Array) -> Array:
        return jnp.sum(jnp.where(batch.mask, weights * x, 0.0))

    def surrogate(theta: Array) -> Array:
        ratio = jnp.exp(log_importance_ratio(policy(theta, batch.observation), batch))
        return local_mean(ratio * batch.advantages)

    def measure(candidate: Array) -> Measurement:
        new = policy(candidate, batch.observation)
        # The difference of two surrogates without their difference: small steps keep their digits.
        change = jnp.exp(old_log_ratio) * jnp.expm1(log_importance_ratio(new, batch) - old_log_ratio)
        both = jnp.stack([local_mean(change * batch.advantages), local_mean(old.kl(new))])
        return Measurement(*sum_over_devices(both, axis_name))

    before, gradient = jax.value_and_grad(surrogate)(theta)
    before, gradient, entropy = sum_over_devices((before, gradient, local_mean(old.entropy())), axis_name)
    fisher = _fisher(policy, theta, batch, key, config, axis_name)
    theta, info = trust_region_step(
        theta,
        gradient,
        lambda v: fisher(v) + config.damping * v,
        measure,
        bound=config.max_kl,
        search=_search(config),
    )
    return theta, {
        "policy_loss": -(before + info.line_search.improvement),
        "entropy": entropy,
        "kl": info.line_search.distance,
        "gradient_norm": optax.tree.norm(gradient),
        "cg_residual": info.residual,
        "cg_iterations": info.iterations.astype(jnp.float32),
        "step_fraction": info.line_search.fraction,
        "backtracks": info.line_search.backtracks.astype(jnp.float32),
        "accepted": info.line_search.accepted.astype(jnp.float32),
        "expected_improvement": info.expected_improvement,
        "improvement": info.line_search.improvement,
    }


def _fisher(
    policy: Callable[[Array, Observation], Distribution],
    theta: Array,
    batch: Batch,
    key: Key,
    config: TRPOConfig,
    axis_name: str | None,
) -> Product:
    """Products with the Fisher matrix of all states of the batch, or of some."""
    observation, mask = batch.observation, batch.mask
    if config.fisher_subsampling > 1:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        rows = shuffled(key, mask.shape[0])[: max(mask.shape[0] // config.fisher_subsampling, 1)]
        observation, mask = jax.tree.map(lambda x: x[rows], (observation, mask))
    weights = row_weights(mask, axis_name)
    if config.fisher_form == "double-backward":
        return double_backward_product(lambda t: policy(t, observation), theta, weights, axis_name)
    return fisher_product(lambda t: policy(t, observation), theta, weights, axis_name)


def trpo(config: TRPOConfig | None = None, *, network: Network | None = None, axis_name: str | None = None) -> Learner:
    """A TRPO learner.

    Args:
      config: hyperparameters; validated here.
      network: forward pass and initialiser; default an ``ActorCritic`` of the configured sizes. Its distributions need
        ``kl``, and with ``fisher_form=gauss-newton`` ``fisher_product``. Its policy and its value function must not
        share parameters; without a value function (None) advantages are those of Monte Carlo returns.
      axis_name: the axis of ``shard_map`` or ``vmap`` over which gradients, products and statistics are reduced.

    Returns:
      The learner. With ``value_update=adam`` its ``fit`` needs the number of decisions per device to be divisible by
      ``config.minibatches``. One call of ``fit`` is one step of the policy, then the fit of the value function.

    Raises:
      ConfigError: for hyperparameters that make no sense; from ``init``, for a network whose policy and value function
        share parameters.

    Examples:
      >>> import azjax, jax
      >>> learner = azjax.trpo(azjax.TRPOConfig(max_kl=0.02))
      >>> state = learner.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), "float32"), azjax.Box(2))
      >>> action, _, info = learner.act(state.params, jax.numpy.zeros(3), (), jax.random.key(1))
      >>> action.shape, info.log_prob.shape
      ((2,), ())

    References:
      Schulman, Levine, Moritz, Jordan, Abbeel, 2015, Trust Region Policy Optimization, arXiv 1502.05477.
      Schulman, Moritz, Levine, Jordan, Abbeel, 2015, High-Dimensional Continuous Control Using Generalized Advantage
      Estimation, arXiv 1506.02438.
    """
    config = TRPOConfig() if config is None else config
    config.validate()
    net = network if network is not None else default_network(config)

    def init(
        key: Key, observation_spec: ObservationSpec, action_spec: ActionSpec, hyperparameters: TRPOConfig | None = None
    ) -> TRPOState:
        values = initial_hyperparameters(config, hyperparameters)
        params = initial_params(net, key, observation_spec, action_spec)
        one = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), observation_spec)
        phi, _ = as_vector(params.network, separate(net, params.network, one).value)
        return TRPOState(
            params=params,
            optimizer=value_optimizer(values.learning_rate).init(phi) if config.value_update == "adam" else None,
            hyperparameters=values,
            return_statistics=initial_return_statistics(),
            updates=jnp.zeros((), jnp.int32),
        )

    def improve_policy(state: TRPOState, batch: Batch, key: Key, chosen: tuple[bool, ...]) -> tuple[TRPOState, Info]:
        theta, rebuild = as_vector(state.params.network, chosen)
        theta, info = policy_step(
            lambda t, observation: net.apply(rebuild(t), observation)[0],
            theta,
            batch,
            key,
            config=state.hyperparameters,
            axis_name=axis_name,
        )
        return _with_network(state, rebuild(theta)), info

    def improve_value(state: TRPOState, batch: Batch, key: Key, chosen: tuple[bool, ...]) -> tuple[TRPOState, Info]:
        if not any(chosen):
            return state, {}
        hp = state.hyperparameters
        phi, rebuild = as_vector(state.params.network, chosen)
        scale, centre = value_units(state.return_statistics, hp)
        target = (batch.returns - centre) / scale

        def value(phi: Array, observation: Observation) -> Array:
            predicted = net.apply(rebuild(phi), observation)[1]
            return jnp.asarray(predicted)

        if config.value_update == "trust-region":
            phi, info = value_step(
                lambda p: value(p, batch.observation),
                phi,
                target,
                batch.mask,
                bound=hp.max_value_change,
                damping=hp.value_damping,
                # Of a full Gauss-Newton step just half of the first order is gained: the policy's ratio is not for it.
                search=_search(hp)._replace(accept_ratio=Search().accept_ratio),
                axis_name=axis_name,
            )
            return _with_network(state, rebuild(phi)), info
        rows = (batch.observation, target, batch.mask)
        phi, optimizer, info = fit_values(
            value,
            phi,
            state.optimizer,
            rows,
            key,
            learning_rate=hp.learning_rate,
            epochs=config.epochs,
            minibatches=config.minibatches,
            axis_name=axis_name,
        )
        state = dataclasses.replace(state, optimizer=optimizer)
        return _with_network(state, rebuild(phi)), info | {"learning_rate": jnp.asarray(hp.learning_rate)}

    def fit(state: TRPOState, batch: Batch, key: Key) -> tuple[TRPOState, Info]:
        key_policy, key_value = jax.random.split(key)
        flat = flatten_batch(batch, sequence=is_sequence(net))
        diagnostics = value_diagnostics(flat, axis_name)
        advantages = flat.advantages
        if config.advantage_normalization == "batch":
            advantages = normalize_advantages(advantages, flat.mask, axis_name)
        observation = network_input(config, state.params.statistics, flat.observation)
        flat = flat._replace(observation=observation, advantages=advantages)
        flat = blank_masked(flat, sequence=is_sequence(net))
        parts = separate(net, state.params.network, flat.observation)
        # Advantages and returns were estimated before either, so neither sees what the other changes.
        state, of_policy = improve_policy(state, flat, key_policy, parts.policy)
        state, of_value = improve_value(state, flat, key_value, parts.value)
        state = dataclasses.replace(state, updates=state.updates + 1)
        # Statistics change only now: the ratio of the first step is 1 because it saw what the actor saw.
        return update_running_statistics(state, batch, config, axis_name), of_policy | of_value | diagnostics

    forward = make_forward(config, net)
    return Learner(init=init, act=make_act(forward), estimate=make_estimate(forward), fit=fit, axis_name=axis_name)


def _with_network(state: TRPOState, network: Any) -> TRPOState:
    return dataclasses.replace(state, params=dataclasses.replace(state.params, network=network))
