"""PPO: what it estimates, what it minimises, how it walks through a batch, and what it never does."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_envs import numpy_gae

import azjax
from azjax.config import traced_names
from azjax.normalization import init_statistics, update_statistics
from azjax.on_policy import default_network
from azjax.ppo import (
    LEARNING_RATE_RANGE,
    Minibatch,
    _steer,
    make_schedule,
    ppo_loss,
)

SPEC = jax.ShapeDtypeStruct((3,), jnp.float32)
BOX = azjax.Box(2)
SMALL = {"policy_hidden": (8,), "value_hidden": (8,)}


# ---------------------------------------------------------------------------------------------------------------------
# A policy that is a table: one mean and one value for each row of a batch, so that gradients show what took part
# ---------------------------------------------------------------------------------------------------------------------

ROWS = 12


@dataclasses.dataclass(frozen=True)
class Table:
    """The observation is a row's number; ``with_value`` False gives a policy without a critic."""

    rows: int = ROWS
    with_value: bool = True

    def init(self, key: Any, observation_spec: Any, action_spec: Any) -> Any:
        table = {"loc": jnp.zeros((self.rows, action_spec.size)), "log_std": jnp.full(action_spec.size, -0.5)}
        return {**table, "value": jnp.zeros(self.rows)} if self.with_value else table

    def apply(self, params: Any, observation: Any) -> Any:
        row = observation[..., 0].astype(jnp.int32)
        loc = params["loc"][row]
        log_std = jnp.broadcast_to(params["log_std"], loc.shape)
        return azjax.Normal(loc, log_std), params["value"][row] if self.with_value else None


@functools.cache
def recorder(steps: int) -> optax.GradientTransformation:
    """Changes no parameter and keeps every gradient that it is given, in order."""

    def init(params: Any) -> Any:
        return {
            "step": jnp.zeros((), jnp.int32),
            "gradients": jax.tree.map(lambda x: jnp.zeros((steps, *x.shape)), params),
        }

    def update(gradient: Any, state: Any, params: Any = None) -> Any:
        kept = jax.tree.map(lambda all_, one: all_.at[state["step"]].set(one), state["gradients"], gradient)
        return jax.tree.map(jnp.zeros_like, gradient), {"step": state["step"] + 1, "gradients": kept}

    return optax.GradientTransformation(init, update)


TABLE = Table()


def table_batch(seed: int = 0, rows: int = ROWS, actions: int = 2) -> azjax.Batch:
    """One entry a row; log_prob is that of the untrained table, so that every ratio is 1."""
    rng = np.random.default_rng(seed)
    observation = np.arange(rows, dtype=np.float32)[:, None]
    action = rng.normal(size=(rows, actions)).astype(np.float32)
    policy = azjax.Normal(jnp.zeros((rows, actions)), jnp.full((rows, actions), -0.5))
    return azjax.Batch(
        observation=jnp.asarray(observation),
        action=jnp.asarray(action),
        log_prob=policy.log_prob(jnp.asarray(action)),
        advantages=jnp.asarray(rng.normal(size=rows) * 3 + 1, jnp.float32),
        returns=jnp.asarray(rng.normal(size=rows) + 5, jnp.float32),
        mask=jnp.ones(rows, bool),
    )


def table_config(**settings: Any) -> azjax.PPOConfig:
    return azjax.PPOConfig(**{"normalize_observations": False, "epochs": 1, "minibatches": 1, **settings})


@functools.cache
def table_program(config: azjax.PPOConfig, optimizer: Any, table: Table) -> tuple[azjax.Learner, Any]:
    """A learner over the table, and its compiled fit: one for all traced hyperparameters."""
    learner = azjax.ppo(config, network=table, optimizer=optimizer)
    return learner, jax.jit(learner.fit)


def table_learner(optimizer: Any = None, table: Table = TABLE, **settings: Any) -> Any:
    """Compiled fit and initial state of a learner over the table."""
    config = table_config(**settings)
    fixed = {name: value for name, value in vars(config).items() if name not in traced_names(config)}
    learner, fit = table_program(azjax.PPOConfig(**fixed), optimizer, table)
    spec = jax.ShapeDtypeStruct((1,), jnp.float32)
    return learner._replace(fit=fit), learner.init(jax.random.key(0), spec, BOX, config)


def fit_table(batch: azjax.Batch | None = None, key: int = 1, **settings: Any) -> Any:
    """Both states and the info of one ``fit``."""
    learner, state = table_learner(**settings)
    after, info = learner.fit(state, table_batch() if batch is None else batch, jax.random.key(key))
    return state, after, info


def recorded_gradients(epochs: int = 1, minibatches: int = 1, batch: Any = None, **settings: Any) -> Any:
    _, after, _ = fit_table(
        batch,
        optimizer=recorder(epochs * minibatches),
        epochs=epochs,
        minibatches=minibatches,
        **settings,
    )
    return jax.tree.map(np.asarray, after.optimizer["gradients"])


# ---------------------------------------------------------------------------------------------------------------------
# A small network on made-up rollouts
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def learner_of(config: azjax.PPOConfig, action_spec: Any = BOX) -> Any:
    """Learner, initial state, and its functions compiled."""
    learner = azjax.ppo(config)
    state = learner.init(jax.random.key(0), SPEC, action_spec)
    compiled = learner._replace(
        act=jax.jit(
            jax.vmap(learner.act, in_axes=(None, 0, None, 0)),
        ),
        estimate=jax.jit(learner.estimate),
        fit=jax.jit(learner.fit),
    )
    return compiled, state


def rollout_of(learner: Any, state: Any, seed: int = 0, steps: int = 6, lanes: int = 4) -> azjax.Rollout:
    """A rollout whose actions the policy chose; observations, rewards and ends are random."""
    rng = np.random.default_rng(seed)
    observation = (rng.normal(size=(steps, lanes, 3)) * [1, 5, 20] + [0, 3, -40]).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), steps * lanes)
    action, _, info = learner.act(state.params, observation.reshape(-1, 3), (), keys)
    shape = (steps, lanes)
    terminated = rng.random(shape) < 0.2
    return azjax.Rollout(
        observation=jnp.asarray(observation),
        carry=(),
        action=action.reshape(*shape, *action.shape[1:]),
        info=jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), info),
        reward=jnp.asarray(rng.normal(size=shape), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray((rng.random(shape) < 0.2) & ~terminated),
        final_observation=jnp.asarray(observation + rng.normal(size=observation.shape), jnp.float32),
    )


@functools.partial(jax.jit, static_argnums=0)
def log_ratio(config: azjax.PPOConfig, state: Any, batch: azjax.Batch) -> jax.Array:
    observation = azjax.normalize(state.params.statistics, batch.observation)
    distribution, _ = default_network(config).apply(state.params.network, observation)
    return distribution.log_prob(batch.action) - batch.log_prob


@functools.partial(jax.jit, static_argnums=0)
def value_of(config: azjax.PPOConfig, state: Any, observation: Any) -> jax.Array:
    return default_network(config).apply(state.params.network, azjax.normalize(state.params.statistics, observation))[1]


@pytest.mark.parametrize(
    ("settings", "action_spec"),
    [
        ({"init_std": 3.0}, azjax.Box(2)),  # most actions saturate the tanh: stored squashed they could not be scored
        ({"distribution": "normal"}, azjax.Box(2)),
        ({"state_dependent_std": True, "shared_torso": True}, azjax.Box(2)),
        ({}, azjax.Discrete(3)),
    ],
    ids=["tanh-normal", "normal", "state-dependent-std", "categorical"],
)
def test_the_ratio_of_the_first_minibatch_is_1_as_the_normaliser_is_updated_after_the_learner(settings, action_spec):
    """brax updates the normaliser between rollout and learner, so its first ratio is not 1."""
    config = azjax.PPOConfig(learning_rate=1e-2, epochs=2, minibatches=2, **SMALL, **settings)
    learner, state = learner_of(config, action_spec)
    for update in range(2):
        rollout = rollout_of(learner, state, seed=update)
        batch = learner.estimate(state, rollout)
        assert np.abs(np.expm1(log_ratio(config, state, batch))).max() < 1e-5
        np.testing.assert_array_equal(batch.action, rollout.info.raw_action)
        before = state
        state, _ = learner.fit(state, batch, jax.random.key(update))
        # Both would have shown, had the normaliser or the parameters not moved in this fit.
        moved = state.replace(params=before.params.replace(statistics=state.params.statistics))
        assert np.abs(np.expm1(log_ratio(config, moved, batch))).max() > 1e-3
        assert np.abs(np.expm1(log_ratio(config, state, batch))).max() > 1e-3
    if isinstance(action_spec, azjax.Box) and config.init_std == 3.0:
        assert (jnp.abs(rollout.action) > 0.999).mean() > 0.1


def test_the_normaliser_sees_each_observation_once_whatever_the_epochs():
    config = azjax.PPOConfig(learning_rate=1e-2, epochs=2, minibatches=2, **SMALL, init_std=3.0)
    learner, state = learner_of(config)
    rollouts = [rollout_of(learner, state, seed=n) for n in range(2)]
    for n, rollout in enumerate(rollouts):
        state, _ = learner.fit(state, learner.estimate(state, rollout), jax.random.key(n))
    seen = np.concatenate([np.asarray(r.observation, np.float64).reshape(-1, 3) for r in rollouts])
    assert azjax.counter_to_int(state.params.statistics.count) == len(seen) == 48
    np.testing.assert_allclose(state.params.statistics.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.params.statistics.variance, seen.var(0), rtol=1e-4)
    assert int(state.updates) == 2


def test_estimate_is_textbook_gae_of_rollout_time_values_with_truncations_bootstrapped():
    """brax's advantages are not GAE(lambda), and most peers treat a time limit as the end of the task."""
    config = azjax.PPOConfig(gamma=0.9, lam=0.7, reward_scale=3.0, **SMALL)
    learner, state = learner_of(config)
    rollout = rollout_of(learner, state)
    assert rollout.truncated.any()
    assert rollout.terminated.any()
    values, next_values = (
        value_of(config, state, rollout.observation),
        value_of(config, state, rollout.final_observation),
    )
    batch = learner.estimate(state, rollout)
    advantages, returns = numpy_gae(
        3.0 * rollout.reward, values, next_values, rollout.terminated, rollout.truncated, 0.9, 0.7
    )
    np.testing.assert_allclose(batch.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.returns, returns, rtol=1e-4, atol=1e-5)
    assert batch.mask.all()
    # The test could not fail if these were the same:
    wrong = numpy_gae(
        3.0 * rollout.reward, values, next_values, rollout.terminated | rollout.truncated, rollout.truncated, 0.9, 0.7
    )
    assert np.abs(wrong[0] - advantages).max() > 1e-2


def test_a_non_finite_final_observation_of_a_terminated_step_reaches_nothing():
    learner, state = learner_of(azjax.PPOConfig(gamma=0.9, lam=0.7, reward_scale=3.0, **SMALL))
    rollout = rollout_of(learner, state)
    spoilt = jnp.where(rollout.terminated[..., None], jnp.nan, rollout.final_observation)
    batch = learner.estimate(state, rollout)
    again = learner.estimate(state, rollout._replace(final_observation=spoilt))
    np.testing.assert_array_equal(batch.advantages, again.advantages)


def test_normalised_returns_are_in_units_of_the_running_statistics():
    config = azjax.PPOConfig(gamma=0.9, lam=0.7, normalize_returns=True, **SMALL)
    learner, state = learner_of(config)
    statistics = update_statistics(state.return_statistics, jnp.array([90.0, 100.0, 110.0]))
    state = state.replace(return_statistics=statistics)
    rollout = rollout_of(learner, state)
    batch = learner.estimate(state, rollout)
    raw = value_of(config, state, rollout.observation)
    scale = np.std([90.0, 100.0, 110.0])
    np.testing.assert_allclose(batch.returns - batch.advantages, raw * scale + 100.0, rtol=1e-4)
    after, _ = learner.fit(state, batch, jax.random.key(0))
    assert azjax.counter_to_int(after.return_statistics.count) == 3 + batch.returns.size
    seen = np.concatenate([[90.0, 100.0, 110.0], np.asarray(batch.returns).ravel()])
    np.testing.assert_allclose(after.return_statistics.mean, seen.mean(), rtol=1e-4)


def test_deterministic_is_the_mode_and_actions_are_squashed():
    config = azjax.PPOConfig(gamma=0.9, lam=0.7, reward_scale=3.0, **SMALL)
    learner, (_, state) = azjax.ppo(config), learner_of(config)
    observation = jnp.array([0.5, 1.0, -1.0])
    distribution, _ = default_network(config).apply(
        state.params.network, azjax.normalize(state.params.statistics, observation)
    )
    first, carry, info = learner.act(state.params, observation, (), jax.random.key(0), deterministic=True)
    second, _, _ = learner.act(state.params, observation, (), jax.random.key(1), deterministic=True)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(info.raw_action, distribution.mode(), rtol=1e-6)
    np.testing.assert_allclose(first, jnp.tanh(distribution.mode()), rtol=1e-6)
    np.testing.assert_allclose(info.log_prob, distribution.log_prob(info.raw_action), rtol=1e-6)
    assert carry == ()
    sampled, _, info = learner.act(state.params, observation, (), jax.random.key(0))
    other, _, _ = learner.act(state.params, observation, (), jax.random.key(1))
    assert (sampled != other).all()
    np.testing.assert_allclose(sampled, jnp.tanh(info.raw_action), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------------------


def moved_table(seed: int = 3) -> Any:
    """Parameters away from those that acted, so that ratios differ from 1 on both sides."""
    rng = np.random.default_rng(seed)
    return {
        "loc": jnp.asarray(rng.normal(size=(ROWS, 2)) * 0.4, jnp.float32),
        "log_std": jnp.asarray([-0.3, -0.6], jnp.float32),
        "value": jnp.asarray(rng.normal(size=ROWS) * 3 + 4, jnp.float32),
    }


def numpy_loss(params: Any, batch: azjax.Batch, advantages: Any, config: azjax.PPOConfig) -> dict[str, float]:
    """The whole loss again, row by row, in float64."""
    params, batch = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, batch))
    policy, value, entropy, kl, clipped, rows = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    std = np.exp(params["log_std"])
    for i in range(len(batch.log_prob)):
        if not batch.mask[i]:
            continue
        rows += 1
        score = (batch.action[i] - params["loc"][i]) / std
        log_prob = (-0.5 * score**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum()
        ratio = np.exp(log_prob - batch.log_prob[i])
        bounded = min(max(ratio, 1 - config.clip), 1 + config.clip)
        policy -= min(ratio * advantages[i], bounded * advantages[i])
        entropy += (np.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum()
        kl += ratio - 1 - np.log(ratio)
        clipped += abs(ratio - 1) > config.clip
        old, new, target = batch.returns[i] - batch.advantages[i], params["value"][i], batch.returns[i]
        near = old + min(max(new - old, -config.value_clip), config.value_clip)
        value += 0.5 * max((new - target) ** 2, (near - target) ** 2)
    total = policy + config.value_coefficient * value - config.entropy_coefficient * entropy
    return {
        "loss": total / rows,
        "policy_loss": policy / rows,
        "value_loss": value / rows,
        "entropy": entropy / rows,
        "kl": kl / rows,
        "clip_fraction": clipped / rows,
    }


def loss_of(params: Any, minibatch: Minibatch, config: azjax.PPOConfig, **settings: Any) -> Any:
    arguments = {
        "network": Table(),
        "statistics": init_statistics(jax.ShapeDtypeStruct((1,), jnp.float32)),
        "return_statistics": init_statistics(jax.ShapeDtypeStruct((), jnp.float32)),
        "config": config,
        **settings,
    }
    return ppo_loss(params, minibatch, **arguments)


@pytest.mark.parametrize("value_clip", [float("inf"), 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_equals_a_numpy_reimplementation(value_clip, masked):
    config = table_config(clip=0.15, value_clip=value_clip, value_coefficient=0.7, entropy_coefficient=0.02)
    batch = table_batch()
    if masked:
        batch = batch._replace(mask=jnp.arange(ROWS) % 3 != 0)
    advantages = np.asarray(batch.advantages) * 2 - 1
    params = moved_table()
    loss, info = jax.jit(lambda p: loss_of(p, Minibatch(batch, jnp.asarray(advantages)), config))(params)
    expected = numpy_loss(params, batch, advantages, config)
    assert 0.2 < expected["clip_fraction"] < 1.0
    np.testing.assert_allclose(loss, expected.pop("loss"), rtol=1e-4)
    for name, number in expected.items():
        np.testing.assert_allclose(info[name], number, rtol=1e-4, err_msg=name)


def test_value_clipping_changes_the_loss_and_infinity_does_not():
    batch, params = table_batch(), moved_table()
    minibatch = Minibatch(batch, batch.advantages)
    losses = [float(loss_of(params, minibatch, table_config(value_clip=c))[1]["value_loss"]) for c in (0.5, 1e6)]
    losses.append(float(loss_of(params, minibatch, table_config())[1]["value_loss"]))
    assert losses[0] > losses[1] * 1.05
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[2] == pytest.approx(float(0.5 * jnp.square(params["value"] - batch.returns).mean()), rel=1e-5)


def test_the_gradient_vanishes_exactly_where_the_objective_is_clipped():
    """Beyond the clip in the direction that the advantage favours: nothing; everywhere else: the policy gradient."""
    batch, params, config = table_batch(), moved_table(), table_config(clip=0.2, value_coefficient=0.0)
    gradient = jax.jit(jax.grad(lambda p: loss_of(p, Minibatch(batch, batch.advantages), config)[0]))(params)["loc"]
    policy, _ = Table().apply(params, batch.observation)
    ratio = np.exp(np.asarray(policy.log_prob(batch.action) - batch.log_prob))
    advantage = np.asarray(batch.advantages)
    stopped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    assert 0 < stopped.sum() < ROWS
    np.testing.assert_array_equal(np.abs(gradient).max(axis=1) == 0, stopped)
    score = (batch.action - params["loc"]) / jnp.square(policy.std)
    expected = -(ratio * advantage)[:, None] * score / ROWS
    np.testing.assert_allclose(gradient[~stopped], expected[~stopped], rtol=1e-3, atol=1e-6)


def test_masked_entries_take_no_part_whatever_is_in_them():
    """Their values and their gradients: a product with 0 would let a NaN through, and so does `where` backwards."""
    batch = table_batch()
    mask = jnp.arange(ROWS) % 4 != 1
    kept = jax.tree.map(lambda x: x[np.flatnonzero(mask)], batch)
    spoilt = jax.tree.map(
        lambda x: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan) if x.dtype == jnp.float32 else x, batch
    )._replace(mask=mask, observation=batch.observation)
    for mode in ("batch", "minibatch", "none"):
        settings = {"advantage_normalization": mode, "entropy_coefficient": 0.01}
        alone = recorded_gradients(batch=kept, **settings)
        among = recorded_gradients(batch=spoilt, **settings)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), among, alone)


def test_a_masked_observation_that_is_not_finite_reaches_no_gradient():
    config = azjax.PPOConfig(learning_rate=1e-2, epochs=2, minibatches=2, **SMALL, init_std=3.0)
    learner, state = learner_of(config)
    batch = learner.estimate(state, rollout_of(learner, state))
    mask = jnp.arange(4) != 2
    batch = batch._replace(mask=jnp.broadcast_to(mask, batch.mask.shape))
    spoilt = batch._replace(observation=jnp.where(mask[:, None], batch.observation, jnp.nan))
    expected, _ = learner.fit(state, batch, jax.random.key(0))
    after, info = learner.fit(state, spoilt, jax.random.key(0))
    assert float(info["skipped"]) == 0.0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        after.params.network,
        expected.params.network,
    )


def test_an_overflowing_ratio_that_is_clipped_has_no_gradient_rather_than_nan():
    params, batch = moved_table(), table_batch()
    batch = batch._replace(log_prob=batch.log_prob - 200.0, advantages=jnp.abs(batch.advantages))
    config = table_config(entropy_coefficient=0.0, value_coefficient=0.0)
    gradient, info = jax.grad(lambda p: loss_of(p, Minibatch(batch, batch.advantages), config), has_aux=True)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, info)))
    np.testing.assert_array_equal(gradient["loc"], 0.0)


def test_a_policy_without_a_critic_has_monte_carlo_returns_and_no_value_loss():
    learner, state = table_learner(table=Table(with_value=False), gamma=0.5, lam=1.0)
    reward = jnp.array([[1.0], [2.0], [4.0]])
    never, action = jnp.zeros((3, 1), bool), jnp.zeros((3, 1, 2))
    rollout = azjax.Rollout(
        observation=jnp.arange(3.0)[:, None, None],
        carry=(),
        action=action,
        info=azjax.ActInfo(jnp.zeros((3, 1)), action),
        reward=reward,
        terminated=never.at[2].set(True),
        truncated=never,
        final_observation=jnp.arange(1.0, 4.0)[:, None, None],
    )
    batch = learner.estimate(state, rollout)
    np.testing.assert_allclose(batch.returns[:, 0], [3.0, 4.0, 4.0])
    np.testing.assert_allclose(batch.advantages[:, 0], [3.0, 4.0, 4.0])
    _, info = learner.fit(state, batch, jax.random.key(0))
    assert "value_loss" not in info


# ---------------------------------------------------------------------------------------------------------------------
# Advantages
# ---------------------------------------------------------------------------------------------------------------------


def score_of(batch: azjax.Batch) -> np.ndarray:
    """Gradient of log_prob with respect to the untrained table's means."""
    return np.asarray(batch.action) / np.exp(-0.5) ** 2


@pytest.mark.parametrize("mode", ["batch", "minibatch", "none"])
def test_advantages_are_normalised_where_asked(mode):
    """With every ratio 1 the gradient of a row's means is its advantage times its score."""
    batch, minibatches = table_batch(), 3
    gradients = recorded_gradients(minibatches=minibatches, advantage_normalization=mode)["loc"]
    advantages = np.asarray(batch.advantages, np.float64)
    for gradient in gradients:
        rows = np.flatnonzero(np.abs(gradient).max(axis=1) > 0)
        assert len(rows) == ROWS // minibatches
        expected = advantages[rows]
        if mode != "none":
            over = advantages if mode == "batch" else expected
            expected = (expected - over.mean()) / over.std()
        np.testing.assert_allclose(
            gradient[rows], -expected[:, None] * score_of(batch)[rows] / len(rows), rtol=1e-3, atol=1e-5
        )


# ---------------------------------------------------------------------------------------------------------------------
# The walk through a batch
# ---------------------------------------------------------------------------------------------------------------------


def test_each_decision_takes_part_exactly_once_an_epoch_in_a_new_order():
    """A row's value has gradient (V - R) * coefficient / size in the one minibatch that holds it."""
    epochs, minibatches = 3, 4
    gradients = recorded_gradients(epochs, minibatches, value_coefficient=1.0)["value"].reshape(
        epochs, minibatches, ROWS
    )
    member = gradients != 0
    np.testing.assert_array_equal(member.sum(axis=1), np.ones((epochs, ROWS)))
    np.testing.assert_array_equal(member.sum(axis=2), np.full((epochs, minibatches), ROWS // minibatches))
    returns = np.asarray(table_batch().returns)
    np.testing.assert_allclose(gradients.sum(axis=1), np.tile(-returns / (ROWS // minibatches), (epochs, 1)), rtol=1e-5)
    assert len({tuple(map(tuple, order)) for order in member.argmax(axis=1)[:, None].tolist()}) == epochs
    other = recorded_gradients(epochs, minibatches, value_coefficient=1.0, key=2)["value"] != 0
    assert (other != member.reshape(-1, ROWS)).any()


def test_leading_axes_of_a_batch_make_no_difference():
    flat = table_batch()
    shaped = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), flat)
    one = recorded_gradients(batch=flat)
    two = recorded_gradients(batch=shaped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


def test_minibatches_that_do_not_divide_the_batch_are_an_error():
    with pytest.raises(ValueError, match=r"12 decisions per device .* 5 equal minibatches"):
        fit_table(minibatches=5)


# ---------------------------------------------------------------------------------------------------------------------
# Gradient steps
# ---------------------------------------------------------------------------------------------------------------------


def first_moment(state: Any) -> Any:
    return jax.tree.map(np.asarray, optax.tree.get(state.optimizer, "mu"))


@pytest.mark.parametrize("bound", [0.05, 1e6, float("inf")])
def test_gradients_are_clipped_by_their_global_norm(bound):
    """rejax's max_grad_norm clips each element. Adam's first moment is a tenth of what it was given."""
    gradient = jax.tree.map(lambda x: x[0], recorded_gradients())
    norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(gradient)))
    assert norm > 0.5
    _, after, info = fit_table(max_grad_norm=bound)
    np.testing.assert_allclose(info["gradient_norm"], norm, rtol=1e-4)
    factor = 0.1 * min(1.0, bound / norm)
    jax.tree.map(
        lambda mu, g: np.testing.assert_allclose(mu, factor * g, rtol=1e-3, atol=1e-8), first_moment(after), gradient
    )


def test_the_first_step_of_adam_is_the_learning_rate():
    before, after, info = fit_table(learning_rate=0.01)
    gradient = jax.tree.map(lambda x: x[0], recorded_gradients())
    for name in ("loc", "value"):
        change = np.asarray(after.params.network[name] - before.params.network[name])
        sure = np.abs(gradient[name]) > 1e-2
        np.testing.assert_allclose(change[sure], -0.01 * np.sign(gradient[name][sure]), rtol=0.05)
    assert float(info["learning_rate"]) == pytest.approx(0.01)


def test_schedules_start_at_1_and_end_at_0():
    linear = make_schedule(table_config(schedule="linear", schedule_updates=4))
    np.testing.assert_allclose([linear(n) for n in range(6)], [1, 0.75, 0.5, 0.25, 0, 0], atol=1e-6)
    cosine = make_schedule(table_config(schedule="cosine", schedule_updates=4))
    expected = [0.5 * (1 + np.cos(np.pi * n / 4)) for n in range(5)]
    np.testing.assert_allclose([cosine(n) for n in range(5)], expected, atol=1e-6)
    assert float(make_schedule(table_config())(123)) == 1.0


@pytest.mark.parametrize(
    ("config", "schedule", "factors"),
    [
        ({"schedule": "linear", "schedule_updates": 4}, None, [1.0, 0.75, 0.5]),
        ({}, optax.exponential_decay(1.0, 1, 0.5), [1.0, 0.5, 0.25]),
    ],
    ids=["linear", "exponential"],
)
def test_the_learning_rate_follows_the_schedule_update_by_update(config, schedule, factors):
    learner = azjax.ppo(table_config(learning_rate=0.02, epochs=2, **config), network=Table(), schedule=schedule)
    state = learner.init(jax.random.key(0), jax.ShapeDtypeStruct((1,), jnp.float32), azjax.Box(2))
    fit, rates, steps = jax.jit(learner.fit), [], []
    for n in range(len(factors)):
        before = state
        state, info = fit(state, table_batch(n), jax.random.key(n))
        rates.append(float(info["learning_rate"]))
        steps.append(float(jnp.abs(state.params.network["value"] - before.params.network["value"]).max()))
    np.testing.assert_allclose(rates, 0.02 * np.array(factors), rtol=1e-5)
    assert steps[0] > steps[1] > steps[2]


def test_the_adaptive_learning_rate_goes_down_up_or_stays():
    rate, target = jnp.float32(1e-3), 0.01
    for kl, expected in ((0.021, 1e-3 / 1.5), (0.019, 1e-3), (0.006, 1e-3), (0.004, 1.5e-3), (np.nan, 1e-3)):
        assert float(_steer(rate, jnp.float32(kl), target)) == pytest.approx(expected, rel=1e-5)
    low, high = LEARNING_RATE_RANGE
    assert float(_steer(jnp.float32(low), jnp.float32(1.0), target)) == pytest.approx(low)
    assert float(_steer(jnp.float32(high), jnp.float32(0.0), target)) == pytest.approx(high)


def test_the_adaptive_learning_rate_is_carried_from_update_to_update():
    learner, state = table_learner(schedule="adaptive-kl", learning_rate=1e-4, target_kl=0.01, minibatches=3)
    fit = learner.fit
    state, _ = fit(state, table_batch(), jax.random.key(0))
    assert float(state.learning_rate) == pytest.approx(1e-4 * 1.5, rel=1e-4)
    state, info = fit(state, table_batch(), jax.random.key(1))
    assert float(state.learning_rate) == pytest.approx(1e-4 * 1.5**2, rel=1e-4)
    assert float(info["learning_rate"]) == pytest.approx(1e-4 * 1.5, rel=1e-4)
    # Against a tiny target it goes down.
    state = state.replace(
        hyperparameters=dataclasses.replace(state.hyperparameters, target_kl=jnp.float32(1e-9)),
        params=table_learner()[1].params,
        learning_rate=jnp.float32(1e-3),
    )
    state, _ = fit(state, table_batch(), jax.random.key(1))
    assert float(state.learning_rate) == pytest.approx(1e-3 / 1.5, rel=1e-4)


def test_the_adaptive_learning_rate_goes_down_also_where_minibatches_are_stopped():
    settings = {"schedule": "adaptive-kl", "target_kl": 1e-8, "stop_at_kl": True, "minibatches": 3}
    learner, state = table_learner(learning_rate=1e-3, **settings)
    state, info = learner.fit(state, table_batch(), jax.random.key(0))
    assert float(info["skipped"]) > 0
    assert float(state.learning_rate) == pytest.approx(1e-3 / 1.5, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.5}, {"epochs": 1, "minibatches": 1}])
def test_an_adaptive_learning_rate_that_cannot_be_steered_is_an_error(wrong):
    with pytest.raises(ValueError, match="adaptive-kl"):
        azjax.PPOConfig(schedule="adaptive-kl", **wrong).validate()


def test_stop_at_kl_freezes_the_rest_of_the_update_and_no_more():
    """With one minibatch an epoch and a tiny target, all epochs but the first are left out."""
    settings = {"learning_rate": 0.05, "target_kl": 1e-8}
    _, once, _ = fit_table(epochs=1, **settings)
    _, stopped, info = fit_table(epochs=4, stop_at_kl=True, **settings)
    _, free, free_info = fit_table(epochs=4, stop_at_kl=False, **settings)
    assert float(info["skipped"]) == 0.75
    assert float(free_info["skipped"]) == 0.0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stopped.params.network, once.params.network
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), first_moment(stopped), first_moment(once)
    )
    assert np.abs(free.params.network["loc"] - once.params.network["loc"]).max() > 0.02
    _, lenient, info = fit_table(epochs=4, stop_at_kl=True, learning_rate=0.05, target_kl=100.0)
    assert float(info["skipped"]) == 0.0
    np.testing.assert_array_equal(lenient.params.network["loc"], free.params.network["loc"])


def test_a_schedule_length_without_a_falling_schedule_is_an_error():
    with pytest.raises(ValueError, match="schedule_updates is 7, but schedule 'constant' doesn't fall"):
        azjax.ppo(table_config(schedule_updates=7))


def test_any_optax_transformation_replaces_the_default():
    gradient = jax.tree.map(lambda x: x[0], recorded_gradients())
    before, after, _ = fit_table(optimizer=optax.sgd(0.3), learning_rate=123e-3, max_grad_norm=1e-3)
    jax.tree.map(
        lambda a, b, g: np.testing.assert_allclose(a - b, -0.3 * g, rtol=1e-3, atol=1e-6),
        after.params.network,
        before.params.network,
        gradient,
    )


@pytest.mark.parametrize("extra", [{"schedule": "linear", "schedule_updates": 3}, {"schedule": "adaptive-kl"}])
def test_an_optimizer_and_a_schedule_exclude_each_other(extra):
    with pytest.raises(ValueError, match="learning rate"):
        azjax.ppo(table_config(**{"minibatches": 2} | extra), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="learning rate"):
        azjax.ppo(optimizer=optax.sgd(0.1), schedule=optax.constant_schedule(1.0))


@pytest.mark.parametrize("stop", [{}, {"stop_at_kl": True, "target_kl": 100.0}])
@pytest.mark.parametrize("where", ["advantages", "log_prob"])  # in log_prob it makes the divergence NaN, too
def test_a_non_finite_gradient_is_left_out_and_counted(where, stop):
    batch = table_batch()
    broken = batch._replace(**{where: getattr(batch, where).at[5].set(jnp.nan)})
    settings = {"advantage_normalization": "none", "minibatches": 3, "learning_rate": 0.01, **stop}
    before, after, info = fit_table(broken, **settings)
    assert float(info["skipped"]) == pytest.approx(1 / 3)
    changed = np.asarray(after.params.network["value"] != before.params.network["value"])
    assert changed.sum() == 8  # the rows of the two minibatches without row 5
    assert not changed[5]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params.network))
    assert int(optax.tree.get(after.optimizer, "count")) == 2

    before, after, info = fit_table(broken._replace(**{where: jnp.full(ROWS, jnp.nan)}), **settings)
    assert float(info["skipped"]) == 1.0
    jax.tree.map(np.testing.assert_array_equal, after.params.network, before.params.network)
    jax.tree.map(np.testing.assert_array_equal, after.optimizer, before.optimizer)
    assert int(after.updates) == 1


def test_diagnostics_of_the_critic_equal_numpy():
    batch = table_batch()
    _, _, info = fit_table(batch)
    returns, advantages = np.asarray(batch.returns, np.float64), np.asarray(batch.advantages, np.float64)
    np.testing.assert_allclose(info["explained_variance"], 1 - advantages.var() / returns.var(), rtol=1e-4)
    np.testing.assert_allclose(info["return_mean"], returns.mean(), rtol=1e-5)
    assert float(info["kl"]) == pytest.approx(0.0, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Hyperparameters are inputs
# ---------------------------------------------------------------------------------------------------------------------


def test_a_population_of_learning_rates_equals_runs_of_their_own():
    learner = azjax.ppo(table_config(epochs=2), network=Table())
    spec, box, batch = jax.ShapeDtypeStruct((1,), jnp.float32), azjax.Box(2), table_batch()
    rates, gammas = [0.001, 0.05], [0.5, 0.9]

    def run(key: Any, hyperparameters: Any) -> Any:
        state = learner.init(key, spec, box, hyperparameters)
        return learner.fit(state, batch, jax.random.key(1))

    keys = jax.random.split(jax.random.key(0), 2)
    each = [
        azjax.PPOConfig(**vars(table_config(epochs=2)) | {"learning_rate": r, "gamma": g})
        for r, g in zip(rates, gammas, strict=True)
    ]
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *each)
    together, info = jax.jit(jax.vmap(run))(keys, stacked)
    np.testing.assert_allclose(info["learning_rate"], rates, rtol=1e-6)
    np.testing.assert_allclose(together.hyperparameters.gamma, gammas, rtol=1e-6)
    alone = jax.jit(run)
    for n, config in enumerate(each):
        expected, _ = alone(keys[n], config)
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-7),
            together.params.network,
            expected.params.network,
        )
    assert alone._cache_size() == 1  # another learning rate compiled nothing
    moved = np.abs(together.params.network["value"]).max(axis=1)
    assert moved[1] > 10 * moved[0]


def test_estimate_reads_gamma_from_the_state():
    learner, state = learner_of(azjax.PPOConfig(gamma=0.9, lam=0.7, reward_scale=3.0, **SMALL))
    rollout = rollout_of(learner, state)
    other = state.replace(hyperparameters=dataclasses.replace(state.hyperparameters, gamma=jnp.float32(0.1)))
    assert np.abs(learner.estimate(state, rollout).returns - learner.estimate(other, rollout).returns).max() > 0.1


def test_hyperparameters_with_other_static_fields_are_refused():
    """The compiled program is built around the static fields of the factory's configuration; mixing two is a trap."""
    learner = azjax.ppo(azjax.PPOConfig(normalize_observations=False, **SMALL))
    with pytest.raises(ValueError, match="normalize_observations"):
        learner.init(jax.random.key(0), SPEC, azjax.Box(2), azjax.PPOConfig(learning_rate=1e-2, **SMALL))


def test_no_two_leaves_of_a_fresh_state_share_a_buffer():
    """Even if init is not jitted: donating the state would give the same buffer away twice."""
    learner = azjax.ppo(azjax.PPOConfig(**SMALL))
    state = learner.init(jax.random.key(0), SPEC, azjax.Box(2))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
    assert len(pointers) == len(set(pointers))


# ---------------------------------------------------------------------------------------------------------------------
# Several devices
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "minibatch"])
@pytest.mark.parametrize("first", [5, ROWS - 1])  # the devices keep 1 and 6 of their 6 entries, or 0 and 1
def test_devices_that_share_a_batch_learn_what_one_learns_from_all_of_it(mode, first):
    """Exact also where their masks differ: a mean over all entries is no mean of the devices' means."""
    settings = {"advantage_normalization": mode, "normalize_returns": True, "epochs": 2, "learning_rate": 1e-3}
    batch = table_batch()._replace(mask=jnp.arange(ROWS) >= first)
    _, expected, expected_info = fit_table(batch, **settings)

    learner = azjax.ppo(table_config(**settings), network=Table(), axis_name="devices")
    state = table_learner(**settings)[1]
    halves = jax.tree.map(lambda x: x.reshape(2, ROWS // 2, *x.shape[1:]), batch)
    fit = jax.vmap(learner.fit, in_axes=(None, 0, None), axis_name="devices")
    after, info = jax.jit(fit)(state, halves, jax.random.key(1))
    for both in jax.tree.leaves((after, info)):
        np.testing.assert_array_equal(both[0], both[1])
    first = jax.tree.map(lambda x: x[0], (after, info))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), first, (expected, expected_info))


def test_devices_meet_once_in_each_minibatch():
    """Twenty small sums instead of one had two CPU devices wait for each other a third of the time."""
    mesh, devices = azjax.make_mesh(1, "devices"), jax.sharding.PartitionSpec("devices")
    learner = azjax.ppo(table_config(epochs=2, minibatches=3), network=Table(), axis_name="devices")
    whole = jax.sharding.PartitionSpec()
    fit = jax.shard_map(
        learner.fit, mesh=mesh, in_specs=(whole, devices, whole), out_specs=(whole, whole), check_vma=False
    )
    sums: dict[int, int] = {}

    def walk(jaxpr: Any, loops: int) -> None:
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            if eqn.primitive.name.startswith("psum"):
                sums[loops] = sums.get(loops, 0) + 1
            for value in eqn.params.values():
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    walk(value, loops + (eqn.primitive.name == "scan"))

    walk(jax.make_jaxpr(fit)(table_learner()[1], table_batch(), jax.random.key(0)), 0)
    assert sums[2] <= 2  # epochs and minibatches: the number of entries, then gradient and diagnostics
