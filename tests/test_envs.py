"""Environments: the adapter of Brax, the registry and its errors, domain randomisation, local shims."""

from __future__ import annotations

import copy
import functools
from typing import Any

import brax.envs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from brax import fluid
from brax.envs.wrappers import training as brax_wrappers

import azjax
from azjax.config import ConfigError
from azjax.envs import SUPPORTED, default_backend, fresh_state, plain_vmap
from azjax.envs.brax import BACKENDS, effective_system, quiet_dependencies, scale_system
from azjax.envs.lanes import reset_lanes

PAIRS = [(name, backend) for name, backends in SUPPORTED.items() for backend in backends]
SIZES = {  # observation and action, as measured on brax 0.14.2
    "ant": (27, 8),
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "humanoid": (244, 17),
    "humanoidstandup": (244, 17),
    "inverted_double_pendulum": (8, 1),
    "inverted_pendulum": (4, 1),
    "pusher": (23, 7),
    "reacher": (11, 2),
    "swimmer": (8, 2),
    "walker2d": (17, 6),
}


def assert_same_types(one: Any, other: Any) -> None:
    """A scan over steps needs a state that keeps its structure, shapes and types."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)


def traced(env: azjax.Environment) -> tuple[Any, Any]:
    """What reset and step return, by tracing alone."""
    state = jax.eval_shape(lambda key: fresh_state(env, key), jax.random.key(0))
    action = jax.ShapeDtypeStruct((env.action_spec.size,), jnp.float32)
    return state, jax.eval_shape(env.step, state, action)


# ---------------------------------------------------------------------------------------------------------------------
# Every Brax environment
# ---------------------------------------------------------------------------------------------------------------------


def test_the_registry_has_every_environment_of_brax():
    assert set(SUPPORTED) == set(brax.envs._envs) - {"fast"}
    assert set(SIZES) == set(SUPPORTED)
    for name, backends in SUPPORTED.items():
        assert set(backends) <= set(BACKENDS)
        assert default_backend(name) == backends[0]


def test_swimmer_has_one_backend_only():
    for backend in set(BACKENDS) - set(SUPPORTED["swimmer"]):
        with quiet_dependencies(), pytest.raises(ValueError, match="Unsupported backend"):
            brax.envs.get_environment("swimmer", backend=backend)


def check_traces(name: str, backend: str) -> None:
    env = azjax.make_env(name, backend, episode_length=7, randomize=True)
    assert (env.name, env.backend, env.episode_length) == (name, backend, 7)
    assert env.observation_spec.shape == (SIZES[name][0],)
    assert env.action_spec == azjax.Box(SIZES[name][1])
    state, after = traced(env)
    assert_same_types(state, after)
    assert state.observation.shape == env.observation_spec.shape
    assert (state.reward.dtype, state.terminated.dtype, state.truncated.dtype) == (jnp.float32, bool, bool)
    assert set(state.params) == {"friction", "mass", "motor_strength"}


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_every_environment_traces_on_its_default_backend(name):
    check_traces(name, default_backend(name))


@pytest.mark.parametrize("backend", ["positional", "generalized", "mjx"])
def test_every_backend_traces(backend):
    check_traces("reacher", backend)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_every_environment_traces_on_every_backend(name, backend):
    check_traces(name, backend)


@functools.cache
def compiled(name: str, backend: str, randomize: bool = True) -> tuple[azjax.Environment, Any, Any]:
    """An environment with its compiled reset(keys, params) and step(states, actions), both over a first axis."""
    env = azjax.make_env(name, backend, randomize=randomize)
    return env, jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))


def factors(*rows: tuple[float, float, float]) -> dict[str, jax.Array]:
    return dict(zip(FACTORS, jnp.asarray(rows, jnp.float32).T, strict=True))


NOMINAL = (1.0, 1.0, 1.0)
FACTORS = ("friction", "mass", "motor_strength")


def check_steps(name: str, backend: str, steps: int = 5) -> None:
    """Finite, moving, different starts, and nothing over after a few small actions."""
    env, reset, step = compiled(name, backend)
    state = reset(jax.random.split(jax.random.key(0), 4), factors(*[NOMINAL] * 4))
    assert not (state.terminated | state.truncated).any()
    first = np.asarray(state.observation)
    assert len(np.unique(first, axis=0)) == 4
    for t in range(steps):
        state = step(state, 0.1 * jax.random.normal(jax.random.key(t), (4, env.action_spec.size)))
    assert all(np.isfinite(x).all() for x in (state.observation, state.reward))
    assert (np.abs(np.asarray(state.observation) - first).max(axis=1) > 0).all()
    assert not state.truncated.any()


def test_a_brax_environment_steps():
    check_steps("ant", "spring")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_every_environment_steps_on_every_backend(name, backend):
    check_steps(name, backend)


def test_azjaxs_steps_are_those_of_brax():
    """With all factors 1 too."""
    name, backend = "inverted_pendulum", "spring"
    with quiet_dependencies():
        bare = brax.envs.get_environment(name, backend=backend)
    key, action = jax.random.key(3), jnp.array([0.3])
    randomised = azjax.make_env(name, backend, randomize=True)
    mine, theirs = jax.jit(randomised.reset)(key, dict.fromkeys(FACTORS, jnp.float32(1.0))), jax.jit(bare.reset)(key)
    step, brax_step = jax.jit(randomised.step), jax.jit(bare.step)
    for _ in range(4):
        np.testing.assert_allclose(mine.observation, theirs.obs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mine.reward, theirs.reward, rtol=1e-4)
        assert bool(mine.terminated) == bool(theirs.done)
        mine, theirs = step(mine, action), brax_step(theirs, action)


# ---------------------------------------------------------------------------------------------------------------------
# The adapter
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own_time_limit", "terminated", "truncated"), [(False, True, False), (True, False, True)])
def test_done_is_a_termination_unless_the_environment_says_that_its_clock_ran_out(
    own_time_limit, terminated, truncated
):
    env = azjax.make_env(toy_envs.BraxCounter(2, own_time_limit))
    state = fresh_state(env, jax.random.key(0))
    for _ in range(2):
        assert not state.terminated | state.truncated
        state = env.step(state, jnp.zeros(2))
    assert (bool(state.terminated), bool(state.truncated)) == (terminated, truncated)
    assert float(state.reward) == 2.0


def test_the_callers_state_is_not_changed_by_a_step():
    """Brax environments write into the dicts of the state that they are given; so do nested ones of Playground."""
    env = azjax.make_env(toy_envs.BraxCounter())
    state = fresh_state(env, jax.random.key(0))
    before = jax.tree.map(lambda x: x, state.inner)
    rng = jax.random.key_data(before.info["rng"])
    after = env.step(state, jnp.ones(2))
    assert state.inner.metrics == before.metrics == {"steps": 0.0}
    assert state.inner.info["nested"] == {"count": 0}
    np.testing.assert_array_equal(jax.random.key_data(state.inner.info["rng"]), rng)
    assert after.inner.info["nested"] == {"count": 1}
    # So a state can be stepped twice, with the same result.
    again = env.step(state, jnp.ones(2))
    np.testing.assert_array_equal(after.observation, again.observation)
    assert float(again.inner.metrics["steps"]) == 1.0


def test_a_state_needs_no_more_than_observation_reward_and_done():
    env = azjax.make_env(toy_envs.BareBrax())
    state = env.step(fresh_state(env, jax.random.key(0)), jnp.array([0.5]))
    assert (float(state.reward), bool(state.terminated), bool(state.truncated)) == (0.5, False, False)
    assert env.observation_spec.shape == (1,)
    assert (env.name, env.backend) == ("barebrax", "custom")


def test_dict_observations_have_a_dict_of_specs():
    env = azjax.make_env(toy_envs.DictBrax(), episode_length=9)
    assert {name: spec.shape for name, spec in env.observation_spec.items()} == {
        "state": (1,),
        "privileged_state": (4,),
    }
    assert env.episode_length == 9
    state, after = traced(env)
    assert_same_types(state, after)


def test_a_wrapped_environment_is_refused():
    """Brax's wrappers reset to a cached first state and hide the last observation."""
    wrapped = brax_wrappers.EpisodeWrapper(toy_envs.BraxCounter(), 10, 1)
    with pytest.raises(ValueError, match="EpisodeWrapper is a training wrapper"):
        azjax.make_env(wrapped)


def test_an_object_without_an_action_size_is_refused():
    class Sizeless:
        reset, step = toy_envs.BareBrax.reset, toy_envs.BareBrax.step

    with pytest.raises(ValueError, match="Sizeless has no action_size"):
        azjax.make_env(Sizeless())


@pytest.mark.parametrize("settings", [{"episode_length": 7}, {"randomize": True}])
def test_settings_that_an_environment_of_ones_own_would_ignore_are_refused(settings):
    env = toy_envs.Target()
    assert azjax.make_env(env) is env
    with pytest.raises(ValueError, match="Target follows azjax's protocol"):
        azjax.make_env(env, **settings)


class Matrix(toy_envs.BraxCounter):
    """Its step multiplies matrices."""

    def step(self, state: Any, action: jax.Array) -> Any:
        product = jnp.ones((4, 4)) @ jnp.full((4,), action.sum())
        return super().step(state, action).replace(reward=product.sum())


def test_matrix_products_of_physics_have_full_precision_whatever_the_platforms_default():
    """TF32, the default on some GPUs, ruins training (Playground's issues 86 and 87)."""
    env = azjax.make_env(Matrix())
    state = fresh_state(env, jax.random.key(0))
    text = str(jax.make_jaxpr(env.step)(state, jnp.ones(2)))
    assert "dot_general" in text
    assert "HIGHEST" in text
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize("episode_length", [0, -5])
def test_an_episode_needs_a_step(episode_length):
    with pytest.raises(ValueError, match="episode_length"):
        azjax.make_env(toy_envs.BraxCounter(), episode_length=episode_length)


def test_environments_follow_the_protocol():
    for env in (azjax.make_env(toy_envs.BraxCounter()), toy_envs.Scripted(), toy_envs.Corridor()):
        assert isinstance(env, azjax.Environment)


# ---------------------------------------------------------------------------------------------------------------------
# Names and errors
# ---------------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_what_exists_and_the_nearest_match():
    with pytest.raises(ConfigError, match="did you mean 'halfcheetah'") as error:
        azjax.make_env("half_cheetah")
    assert all(name in str(error.value) for name in SUPPORTED)
    with pytest.raises(ConfigError, match="unknown environment 'zzzz'") as error:
        azjax.make_env("zzzz")
    assert "did you mean" not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_impossible_pair_lists_the_backends_and_the_nearest_match():
    with pytest.raises(ConfigError, match=r"'ant' has no backend 'generalised'; did you mean 'generalized'\?") as error:
        azjax.make_env("ant", "generalised")
    assert all(backend in str(error.value) for backend in BACKENDS)
    with pytest.raises(
        ConfigError, match=r"'swimmer' has no backend 'mjx' .*\(it has: generalized\)|it has: generalized"
    ):
        azjax.make_env("swimmer", "mjx")


def test_settings_that_the_environment_does_not_take_are_an_error():
    with pytest.raises(ConfigError, match="gravity_on_mars"):
        azjax.make_env("reacher", gravity_on_mars=3.7)


def test_settings_reach_the_environment():
    assert azjax.make_env("hopper", "spring", reset_noise_scale=0.25)._env._reset_noise_scale == 0.25


def test_something_without_reset_and_step_is_no_environment():
    with pytest.raises(TypeError, match="not dict"):
        azjax.make_env({"name": "ant"})


def test_backend_and_settings_belong_to_names():
    with pytest.raises(ConfigError, match="by name only"):
        azjax.make_env(toy_envs.BraxCounter(), "spring")
    with pytest.raises(ConfigError, match="by name only"):
        azjax.make_env(toy_envs.BraxCounter(), n_frames=3)


def test_an_environment_of_azjaxs_protocol_comes_back_as_it_is():
    env = toy_envs.Scripted()
    assert azjax.make_env(env) is env


# ---------------------------------------------------------------------------------------------------------------------
# The shim for swimmer
# ---------------------------------------------------------------------------------------------------------------------


def test_the_shim_for_swimmer_is_local_to_its_tracing():
    """brax 0.14.2 calls ``jnp.clip`` with an argument that jax 0.10 removed."""
    original, clip = fluid.jp, jnp.clip
    env = azjax.make_env("swimmer")
    assert fluid.jp is original
    state, after = traced(env)
    assert_same_types(state, after)
    assert fluid.jp is original
    assert jnp.clip is clip
    with pytest.raises(TypeError):
        jnp.clip(jnp.ones(2), a_min=0.0)


def test_the_shim_is_taken_back_when_tracing_fails():
    env, original = azjax.make_env("swimmer"), fluid.jp
    state, _ = traced(env)
    with pytest.raises(Exception):  # noqa: B017, PT011 what brax raises for a wrong action is not ours to say
        jax.eval_shape(env.step, state, jax.ShapeDtypeStruct((77, 3), jnp.float32))
    assert fluid.jp is original


def test_importing_and_loading_is_quiet(capfd):
    azjax.make_env("halfcheetah", "mjx")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


# ---------------------------------------------------------------------------------------------------------------------
# Domain randomisation
# ---------------------------------------------------------------------------------------------------------------------


def test_factors_are_drawn_inside_their_ranges_and_fill_them():
    ranges = azjax.Randomization(friction=(0.5, 0.6), mass=(0.9, 1.5), motor_strength=(1.0, 1.0))
    drawn = jax.vmap(ranges.sample)(jax.random.split(jax.random.key(0), 500))
    for name, (low, high) in {"friction": (0.5, 0.6), "mass": (0.9, 1.5)}.items():
        x = np.asarray(drawn[name])
        assert low <= x.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < x.max() <= high
    np.testing.assert_array_equal(drawn["motor_strength"], np.ones(500))
    correlation = np.corrcoef(drawn["friction"], drawn["mass"])[0, 1]
    assert abs(correlation) < 0.2  # a key of its own for each


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"friction": (0.0, 1.0)}, "friction"),
        ({"mass": (1.2, 0.8)}, "mass"),
        ({"motor_strength": (1.0, float("inf"))}, "motor_strength"),
        ({"mass": (float("nan"), 1.0)}, "mass"),
    ],
)
def test_ranges_that_make_no_sense_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        azjax.make_env("inverted_pendulum", "spring", randomize=azjax.Randomization(**settings))


def test_an_environment_without_a_physics_model_cannot_be_randomised():
    with pytest.raises(ValueError, match="no physics model"):
        azjax.make_env(toy_envs.BraxCounter(), randomize=True)


def test_without_randomisation_there_are_no_params():
    env = azjax.make_env("inverted_pendulum", "spring")
    assert env.sample_params(jax.random.key(0)) == ()


def test_the_system_is_scaled_where_each_engine_reads_it():
    system = azjax.make_env("ant", "spring")._env.sys
    scaled = scale_system(
        system, {"friction": jnp.float32(0.5), "mass": jnp.float32(2.0), "motor_strength": jnp.float32(3.0)}
    )
    np.testing.assert_allclose(scaled.link.inertia.mass, 2 * system.link.inertia.mass)
    np.testing.assert_allclose(scaled.link.inertia.i, 2 * system.link.inertia.i)
    np.testing.assert_allclose(scaled.body_mass, 2 * system.body_mass)
    np.testing.assert_allclose(scaled.body_inertia, 2 * system.body_inertia)
    np.testing.assert_allclose(scaled.dof_invweight0, system.dof_invweight0 / 2)
    np.testing.assert_allclose(scaled.actuator.gear, 3 * system.actuator.gear)
    np.testing.assert_allclose(scaled.actuator_gear, 3 * system.actuator_gear)
    np.testing.assert_allclose(scaled.geom_friction[:, 0], 0.5 * system.geom_friction[:, 0])
    np.testing.assert_array_equal(scaled.geom_friction[:, 1:], system.geom_friction[:, 1:])
    np.testing.assert_array_equal(scaled.link.transform.pos, system.link.transform.pos)


def check_factors_change_the_motion(name: str, backend: str, steps: int) -> None:
    """The same start and actions under four physics: each factor changes the motion, and a factor of 1 does not."""
    env, reset, step = compiled(name, backend)
    rows = [NOMINAL, NOMINAL, (1.0, 1.4, 1.0), (1.0, 1.0, 0.6), (0.5, 1.0, 1.0)]
    keys = jnp.broadcast_to(jax.random.key(0), (5,))
    state = reset(keys, factors(*rows))
    np.testing.assert_array_equal(state.observation[0], state.observation[1])
    for t in range(steps):
        action = jnp.sin(0.3 * t + jnp.arange(env.action_spec.size))
        state = step(state, jnp.broadcast_to(action, (5, env.action_spec.size)))
    assert np.isfinite(state.observation).all()
    difference = np.abs(np.asarray(state.observation) - np.asarray(state.observation[0])).max(axis=1)
    assert difference[1] == 0.0
    for name, moved in zip(("mass", "motor_strength", "friction"), difference[2:], strict=True):
        assert moved > 1e-3, name
    for row, params in enumerate(rows):  # the factors stay with the episode
        np.testing.assert_allclose([float(state.params[k][row]) for k in FACTORS], params)


def test_each_factor_changes_the_motion():
    """The spring engine takes the masses of ant to the power 0, so a factor on them alone would do nothing."""
    check_factors_change_the_motion("ant", "spring", steps=25)


def test_masses_are_scaled_as_the_spring_and_positional_engines_use_them():
    """Their power of mass is taken before the factor; a factor of 1 changes no effective mass."""
    system = azjax.make_env("halfcheetah", "spring")._env.sys
    assert 0 < system.spring_mass_scale < 1
    scaled = scale_system(effective_system(system), dict.fromkeys(FACTORS, jnp.float32(2.0)))
    for name, power in (("mass", "spring_mass_scale"), ("i", "spring_inertia_scale")):
        used, usual = (
            jnp.asarray(getattr(s.link.inertia, name)) ** (1.0 - getattr(s, power)) for s in (scaled, system)
        )
        if name == "i":
            used, usual = (jnp.diagonal(x, axis1=-2, axis2=-1) for x in (used, usual))
        np.testing.assert_allclose(used, 2 * usual, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["positional", "generalized", "mjx"])
def test_each_factor_changes_the_motion_on_every_backend(backend):
    check_factors_change_the_motion("ant", backend, steps=25)


def test_randomisation_leaves_the_environment_as_it_was_and_leaks_no_tracer():
    """brax's wrapper patches ``env.sys`` while it is traced, and tracers have leaked out of it."""
    env = azjax.make_env("inverted_pendulum", "spring", randomize=True)
    before = env._env.sys
    leaves = [np.asarray(x).copy() for x in jax.tree.leaves(before)]
    with jax.checking_leaks():
        jax.jit(lambda key: env.step(fresh_state(env, key), jnp.zeros(1))).trace(jax.random.key(0))
    assert env._env.sys is before
    for now, then in zip(jax.tree.leaves(env._env.sys), leaves, strict=True):
        assert not isinstance(now, jax.core.Tracer)
        np.testing.assert_array_equal(now, then)


def test_every_lane_has_factors_of_its_own():
    env = azjax.make_env("inverted_pendulum", "spring", randomize=azjax.Randomization(mass=(0.5, 0.7)))
    program = jax.jit(lambda keys: reset_lanes(env, plain_vmap, keys).params)
    params = program(jax.random.split(jax.random.key(0), 32))
    for name in FACTORS:
        assert len(set(params[name].tolist())) == 32
    assert float(params["mass"].max()) <= 0.7


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_environment_steps_by_itself(duplicate):
    env = azjax.make_env(toy_envs.BraxCounter())
    env.step(env.reset(jax.random.key(0), ()), jnp.zeros(2))
    other = duplicate(env)
    other._env = toy_envs.BraxCounter(ends_at=1)
    ended = [e.step(e.reset(jax.random.key(0), ()), jnp.zeros(2)).terminated for e in (env, other)]
    assert [bool(flag) for flag in ended] == [False, True]
