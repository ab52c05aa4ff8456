"""azjax.population: members are what they would be alone, and one that breaks stays by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from scipy.stats import ks_2samp

import azjax
from azjax.batching import fold_members
from azjax.config import ConfigError, as_arrays
from azjax.counters import counter_to_int
from azjax.evaluation import make_evaluator
from azjax.population import (
    POPULATION,
    compile_population,
    compile_population_evaluator,
    divide_devices,
    make_population,
    make_population_mesh,
    member,
    stack_hyperparameters,
    with_hyperparameters,
)
from azjax.runs.options import preset_options, resolve
from azjax.runs.population import member_bytes, plan_part

AXIS = "lanes"
SMALL = {"epochs": 1, "minibatches": 1, "policy_hidden": (8,), "value_hidden": (8,)}
CONFIGS = [
    azjax.PPOConfig(learning_rate=rate, gamma=gamma, **SMALL)  # type: ignore[arg-type]
    for rate, gamma in ((1e-2, 0.9), (1e-3, 0.8), (0.0, 0.9), (1e-2, 0.9))
]


def make_trainer(axis_name: str | None = AXIS) -> azjax.Trainer:
    env = toy_envs.Scripted(6, terminate=(3, 12))
    return azjax.make_trainer(env, azjax.ppo(CONFIGS[0], axis_name=axis_name), lanes=64, rollout_length=8,
                              axis_name=axis_name)  # fmt: skip


def keys_of(count: int = 4) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.arange(count))


def numbers(tree: Any) -> list[np.ndarray]:
    def of(leaf: Any) -> np.ndarray:
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return [of(leaf) for leaf in jax.tree.leaves(tree)]


def assert_close(one: Any, other: Any, tolerance: float = 2e-5) -> None:
    for a, b in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def population_program() -> Any:
    """Four members on two devices, two updates a call."""
    population = make_population(make_trainer())
    return compile_population(population, 4, make_population_mesh((2, 1), AXIS), 2)


@pytest.fixture(scope="module")
def trained(population_program: Any) -> Any:
    """The members after two calls, and the metrics of each."""
    state = population_program.init(keys_of(), stack_hyperparameters(CONFIGS))
    start = jax.device_get(state.members.learner.params)
    metrics = []
    for _ in range(2):
        state, reported = population_program.step(state)
        metrics.append(jax.device_get(reported))
    return start, jax.device_get(dataclasses.replace(state, members=state.members)), metrics


def test_a_member_is_what_it_would_be_alone(trained: Any) -> None:
    _, state, metrics = trained
    compiled = azjax.compile(make_trainer(None), updates_per_call=2)
    for index, config in enumerate(CONFIGS):
        own = with_hyperparameters(compiled.init(jax.random.key(index)), as_arrays(config))
        for call in range(2):
            own, reported = compiled.step(own)
            theirs = jax.tree.map(lambda x, i=index: x[:, i], metrics[call].members)
            assert_close(theirs, reported)
        assert_close(member(state.members, index).learner.params, own.learner.params)
        assert_close(member(state.members, index).lanes, own.lanes)


def test_hyperparameters_are_the_members_own(trained: Any) -> None:
    start, state, _ = trained
    before, after = start.network, state.members.learner.params.network
    moved = [
        max(np.abs(a - b).max() for a, b in zip(numbers(member(before, i)), numbers(member(after, i)), strict=True))
        for i in range(4)
    ]
    assert moved[2] == 0.0  # learning rate 0
    assert moved[0] > 5 * moved[1] > 0.0


def test_a_member_that_becomes_nan_stands_still_and_the_others_do_not_notice(population_program: Any) -> None:
    values = stack_hyperparameters(CONFIGS)
    sound, broken = (population_program.init(keys_of(), values) for _ in range(2))

    def poison(leaf: jax.Array) -> jax.Array:
        return leaf.at[1].set(jnp.nan)

    learner = broken.members.learner
    params = dataclasses.replace(learner.params, network=jax.tree.map(poison, learner.params.network))
    members = dataclasses.replace(broken.members, learner=dataclasses.replace(learner, params=params))
    broken = jax.device_put(dataclasses.replace(broken, members=members), sharding_of(population_program))
    for _ in range(2):
        sound, _ = population_program.step(sound)
        broken, metrics = population_program.step(broken)
    assert metrics.alive.tolist() == [[True, False, True, True]] * 2
    assert broken.alive.tolist() == [True, False, True, True]
    steps = [counter_to_int(jax.device_get(member(broken.members.env_steps, i))) for i in range(4)]
    assert steps == [2048, 0, 2048, 2048]
    for i in (0, 2, 3):
        for a, b in zip(numbers(member(sound.members, i)), numbers(member(broken.members, i)), strict=True):
            np.testing.assert_array_equal(a, b)


def sharding_of(program: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, program.state)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2)])
def test_devices_change_nothing_but_rounding(trained: Any, shape: tuple[int, int], require_devices: Any) -> None:
    require_devices(shape[0] * shape[1])
    compiled = compile_population(make_population(make_trainer()), 4, make_population_mesh(shape, AXIS), 2)
    state = compiled.init(keys_of(), stack_hyperparameters(CONFIGS))
    for _ in range(2):
        state, _ = compiled.step(state)
    # Each device shuffles its own rows, so that more lanes' devices are another order of the minibatches: with one
    # minibatch they are the same.
    assert_close(state.members.learner.params, trained[1].members.learner.params, 1e-4)


def test_every_member_is_evaluated_as_it_would_be_alone(trained: Any, require_devices: Any) -> None:
    require_devices(4)
    env = toy_envs.Scripted(6, terminate=(3, 12))
    learner = azjax.ppo(CONFIGS[0], axis_name=AXIS)
    mesh = make_population_mesh((2, 2), AXIS)
    both = make_evaluator(env, learner.act, lanes=3, axis_name=AXIS)
    alone = make_evaluator(env, learner.act, lanes=6)
    params = trained[1].members.learner.params
    episodes = compile_population_evaluator(both, mesh)(params, keys_of())
    assert episodes.episode_return.shape == (4, 6)
    for i in range(4):
        own = jax.jit(alone)(member(params, i), jax.random.key(i))
        assert_close(member(episodes, i), own)


@pytest.mark.parametrize(
    ("members", "devices", "expected"),
    [(8, 2, (2, 1)), (3, 2, (1, 2)), (6, 4, (2, 2)), (1, 4, (1, 4)), (5, 8, (1, 8)), (4, 4, (4, 1)), (6, 8, (2, 4))],
)
def test_devices_divide_members_first(members: int, devices: int, expected: tuple[int, int]) -> None:
    assert divide_devices(members, devices, lambda count: True) == expected


def test_devices_that_lanes_can_not_be_divided_among_stay_idle() -> None:
    assert divide_devices(3, 4, lambda count: count in (1, 2)) == (3, 1)
    assert divide_devices(5, 4, lambda count: count in (1, 2)) == (1, 2)
    assert divide_devices(3, 2, lambda count: count == 1) == (1, 1)
    assert divide_devices(7, 1, lambda count: True) == (1, 1)


def test_members_of_a_population_share_what_is_static() -> None:
    with pytest.raises(ConfigError, match="traced hyperparameters only"):
        stack_hyperparameters([azjax.PPOConfig(epochs=1), azjax.PPOConfig(epochs=2)])
    with pytest.raises(ConfigError, match="no members"):
        stack_hyperparameters([])
    stacked = stack_hyperparameters([azjax.PPOConfig(gamma=0.5), azjax.PPOConfig(gamma=0.25)])
    assert stacked.gamma.tolist() == [0.5, 0.25]
    assert stacked.epochs == 4


def test_a_mesh_that_does_not_fit_is_refused() -> None:
    population = make_population(make_trainer())
    with pytest.raises(ConfigError, match="3 members can't be divided among 2 devices"):
        compile_population(population, 3, make_population_mesh((2, 1), AXIS))
    with pytest.raises(ConfigError, match="needs 'population' and the trainer's axis_name"):
        compile_population(population, 2, make_population_mesh((2, 1), "other"))
    with pytest.raises(ConfigError, match="devices asked for"):
        make_population_mesh((1000, 1), AXIS)
    assert POPULATION == "population"


def test_an_adaptive_rate_starts_at_the_members_own() -> None:
    config = azjax.PPOConfig(schedule="adaptive-kl", minibatches=2, policy_hidden=(8,), value_hidden=(8,))
    env = toy_envs.Scripted(6, terminate=(3, 12))
    trainer = azjax.make_trainer(env, azjax.ppo(config), lanes=64, rollout_length=8)
    configs = [dataclasses.replace(config, learning_rate=rate) for rate in (1e-4, 1e-3)]
    state = jax.jit(make_population(trainer).init)(keys_of(2), stack_hyperparameters(configs))
    np.testing.assert_allclose(state.members.learner.learning_rate, [1e-4, 1e-3], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------------------

SEEDS, UPDATES, LAST = 16, 40, 8


def cartpole_trainer(config: azjax.PPOConfig, axis_name: str | None) -> azjax.Trainer:
    env = azjax.make_env("azjax:cartpole", episode_length=200)
    learner = azjax.ppo(config, axis_name=axis_name)
    return azjax.make_trainer(env, learner, lanes=16, rollout_length=32, axis_name=axis_name)


def mean_returns(metrics: Any, updates: slice) -> np.ndarray:
    """Of the episodes that ended in some updates, [P]; metrics [UPDATES, P]."""
    ended, total = (np.asarray(x)[updates].sum(0) for x in (metrics.episodes.ended, metrics.episodes.return_sum))
    return np.asarray(total / ended)


@pytest.mark.slow
def test_whole_runs_have_the_returns_of_runs_alone() -> None:
    config = azjax.PPOConfig(learning_rate=1e-2, minibatches=1, policy_hidden=(16,), value_hidden=(16,))
    compiled = azjax.compile(cartpole_trainer(config, None), updates_per_call=UPDATES)
    runs = [compiled.step(compiled.init(jax.random.key(seed)))[1] for seed in range(SEEDS)]
    alone = jax.tree.map(lambda *each: np.stack(each, 1), *runs)
    mesh = make_population_mesh((1, 1), AXIS)
    program = compile_population(make_population(cartpole_trainer(config, AXIS)), SEEDS, mesh, UPDATES)

    def together(own: azjax.PPOConfig) -> Any:
        return program.step(program.init(keys_of(SEEDS), stack_hyperparameters([own] * SEEDS)))[1].members

    def final(metrics: Any) -> np.ndarray:
        return mean_returns(metrics, slice(-LAST, None))

    members = together(config)
    assert final(members).mean() > 5 * mean_returns(members, slice(0, 2)).mean()  # they have learned
    assert ks_2samp(final(members), final(alone)).pvalue > 0.1
    for wrong in ({"lam": 0.5}, {"learning_rate": 1e-4}):  # which the test would find
        other = together(dataclasses.replace(config, **wrong))  # type: ignore[arg-type]
        assert ks_2samp(final(other), final(alone)).pvalue < 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Folding
# ---------------------------------------------------------------------------------------------------------------------


def test_a_mapped_axis_becomes_part_of_the_lanes() -> None:
    seen: list[tuple[int, ...]] = []

    def double(pair: tuple[jax.Array, jax.Array], shift: jax.Array) -> Any:
        seen.append(pair[0].shape)
        return {"sum": pair[0] * 2 + shift, "other": pair[1]}

    x, y = jnp.arange(24.0).reshape(3, 2, 4), jnp.arange(6).reshape(3, 2)
    shift = jnp.arange(4.0)
    result = jax.vmap(fold_members(double), in_axes=(0, None))((x, y), shift)
    assert seen[-1] == (2, 12)
    np.testing.assert_array_equal(result["sum"], x * 2 + shift)
    np.testing.assert_array_equal(result["other"], y)
    np.testing.assert_array_equal(fold_members(double)((x[0], y[0]), shift)["sum"], x[0] * 2 + shift)


def test_nested_axes_fold_and_a_condition_stays_one() -> None:
    def draw(x: jax.Array) -> jax.Array:
        return jax.lax.cond((x > 0).any(), lambda: jnp.where(x > 0, 0.0, x), lambda: x)

    x = jnp.arange(-12.0, 12.0).reshape(2, 3, 4)
    mapped = jax.vmap(jax.vmap(fold_members(draw)))
    np.testing.assert_array_equal(mapped(x), np.where(x > 0, 0.0, x))
    assert "cond" in str(jax.make_jaxpr(mapped)(x))
    assert "cond" not in str(jax.make_jaxpr(jax.vmap(jax.vmap(draw)))(x))


def test_empty_leaves_and_keys_fold() -> None:
    empty, keys = jnp.zeros((3, 0, 4)), jax.random.split(jax.random.key(0), (3, 4))
    result = jax.vmap(fold_members(lambda e, k: (e, jax.vmap(jax.random.uniform)(k))))(empty, keys)
    assert result[0].shape == (3, 0, 4)
    np.testing.assert_array_equal(result[1], jax.vmap(jax.vmap(jax.random.uniform))(keys))


@pytest.mark.parametrize(
    "count", [pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 16]
)
def test_the_memory_of_a_member_in_training_is_about_what_xla_plans_for(count: int) -> None:
    sizes = {"lanes": 256, "rollout_length": 64, "minibatches": 4, "epochs": 1}
    options, env = resolve(preset_options("azjax:cartpole", **sizes)), azjax.make_env("azjax:cartpole")
    compiled = plan_part([options] * count, env, (1, 1)).compiled
    assert 0.7 < count * member_bytes(options, env) / planned(compiled.step, compiled.state) < 1.5


def test_the_memory_of_a_member_in_evaluation_is_about_what_xla_plans_for() -> None:
    sizes = {"lanes": 16, "rollout_length": 16, "minibatches": 1, "evaluation_episodes": 4096}
    options, env = resolve(preset_options("azjax:cartpole", **sizes)), azjax.make_env("azjax:cartpole")
    fewer = dataclasses.replace(options, evaluation_episodes=1)
    learner = azjax.ppo(options.learner, axis_name=AXIS)  # type: ignore[arg-type]
    evaluate = make_evaluator(env, learner.act, lanes=options.evaluation_episodes, axis_name=AXIS)
    program = compile_population_evaluator(evaluate, make_population_mesh((1, 1), AXIS))
    for count in (1, 4, 16):
        init = jax.vmap(lambda key: learner.init(key, env.observation_spec, env.action_spec).params)
        bytes_planned = planned(program, jax.eval_shape(init, keys_of(count)), keys_of(count))
        assert 0.7 < count * member_bytes(options, env) / bytes_planned < 1.5
        assert count * member_bytes(fewer, env) < 0.5 * bytes_planned


def planned(program: Any, *arguments: Any) -> int:
    """Bytes that XLA plans for a program and its results, beside arguments that live on."""
    analysis = program.lower(*arguments).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes)
