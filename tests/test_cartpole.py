"""The cart-pole against an integration in numpy, by hand, and as a task that is vectorised, trained and drawn."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import azjax
from azjax.config import ConfigError
from azjax.envs.locomotion.cartpole import CartPole
from azjax.runs.replay import has_scene

ENV = CartPole()
STEP = jax.jit(ENV.step)
RESET = jax.jit(lambda key: ENV.reset(key, ()))


def state_of(*values: float) -> azjax.EnvState:
    state = RESET(jax.random.key(0))
    return state.replace(inner=jnp.array(values, jnp.float32), observation=jnp.array(values, jnp.float32))


def numpy_step(state: np.ndarray, force: float) -> tuple[np.ndarray, float, bool]:
    """Accelerations from the two coupled equations of motion, solved as a linear system, with 1983's friction.

    Of the cart with pole: (M + m) x'' + m l cos(a) a'' = F + m l a'^2 sin(a) - mu_c sgn(x').
    Of the pole about its pivot: m l cos(a) x'' + 4/3 m l^2 a'' = m g l sin(a) - mu_p a'.
    """
    _, dx, a, da = state
    cart, pole, length, g = 1.0, 0.1, 0.5, 9.8
    matrix = np.array(
        [[cart + pole, pole * length * math.cos(a)], [pole * length * math.cos(a), 4 / 3 * pole * length**2]]
    )
    right = np.array(
        [
            force + pole * length * da**2 * math.sin(a) - 0.0005 * np.sign(dx),
            pole * g * length * math.sin(a) - 0.000002 * da,
        ]
    )
    ddx, dda = np.linalg.solve(matrix, right)
    after = state + 0.02 * np.array([dx, ddx, da, dda])
    fallen = abs(after[0]) > 2.4 or abs(after[2]) > 12 * math.pi / 180
    return after, 0.0 if fallen else 10 - (1 - math.cos(after[2])) - 1e-5 * force**2, fallen


# Without subnormal numbers, which XLA flushes to zero: the sign of a velocity of 1e-41 is 0 there.
number = st.floats(-1, 1, width=32).map(lambda value: round(value, 6))


@settings(max_examples=60, deadline=None)
@given(number, number, number, number, number)
def test_a_step_equals_the_coupled_equations_of_motion(x, dx, a, da, action):
    start = np.array([2.3 * x, 3 * dx, 0.2 * a, 3 * da])
    after, reward, fallen = numpy_step(start, 10.0 * action)
    if min(abs(abs(after[0]) - 2.4), abs(abs(after[2]) - math.radians(12))) < 1e-5:
        return  # float32 may fall on the other side
    result = STEP(state_of(*start), jnp.array([action], jnp.float32))
    np.testing.assert_allclose(result.observation, after, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(result.inner, result.observation)
    assert (float(result.reward), bool(result.terminated)) == (pytest.approx(reward, rel=1e-6), fallen)
    assert not bool(result.truncated)


def test_steps_by_hand():
    """From rest upright with full force the pole falls against the push; standing earns 10; ends at the limits."""
    after = STEP(state_of(0, 0, 0, 0), jnp.array([1.0])).observation
    push = 10.0 / 1.1
    angular = -push / (0.5 * (4 / 3 - 0.1 / 1.1))
    np.testing.assert_allclose(after, [0, 0.02 * (push - 0.05 * angular / 1.1), 0, 0.02 * angular], rtol=1e-6)
    # At rest nothing moves, and the reward is that of standing upright for nothing.
    still = STEP(state_of(0, 0, 0, 0), jnp.array([0.0]))
    np.testing.assert_array_equal(still.observation, np.zeros(4))
    assert float(still.reward) == 10.0
    # A cart at 2.39 m with 1 m/s is beyond the track after 0.02 s; a pole at 0.2 rad with 1 rad/s beyond 12 degrees.
    for state in ((2.39, 1, 0, 0), (-2.39, -1, 0, 0), (0, 0, 0.2, 1), (0, 0, -0.2, -1)):
        over = STEP(state_of(*state), jnp.array([0.0]))
        assert bool(over.terminated)
        assert float(over.reward) == 0.0
    assert not bool(STEP(state_of(2.37, 1, 0.18, 1), jnp.array([0.0])).terminated)


def test_without_force_the_energy_is_kept():
    """Up to friction and what Euler's method makes of 20 steps, against 0.49 J of the standing pole."""
    state = state_of(0, 0.1, 0.02, 0.0)

    def energy(x: np.ndarray) -> float:
        _, dx, a, da = np.asarray(x, np.float64)
        kinetic = 0.5 * 1.1 * dx**2 + 0.1 * 0.5 * dx * da * math.cos(a) + 0.5 * 4 / 3 * 0.1 * 0.25 * da**2
        return kinetic + 0.1 * 9.8 * 0.5 * math.cos(a)

    before = energy(state.observation)
    for _ in range(20):
        state = STEP(state, jnp.array([0.0]))
    assert abs(energy(state.observation) - before) < 2e-3


def test_initial_states_fill_their_ranges():
    states = np.asarray(jax.vmap(RESET)(jax.random.split(jax.random.key(1), 4000)).observation)
    limits = np.array([0.05 * 2.4, 0.05 * 4, 0.05 * 0.2, 0.05 * 4])
    assert (np.abs(states) <= limits * 1.000001).all()
    np.testing.assert_allclose(states.std(axis=0), limits / math.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(states.mean(axis=0) / limits, 0, atol=0.05)


def test_lanes_give_what_single_environments_give():
    keys = jax.random.split(jax.random.key(2), 24)
    actions = jax.random.uniform(jax.random.key(3), (24, 1), minval=-1, maxval=1)
    single = jax.vmap(lambda k, a: ENV.step(ENV.reset(k, ()), a))(keys, actions)
    assert azjax.batching.list_fallbacks(ENV.step, jax.vmap(RESET, out_axes=-1)(keys), actions.T) == []
    lanes = azjax.minor_vmap(lambda k, a: ENV.step(ENV.reset(k, ()), a))(keys, actions.T)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(lanes), strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(b), -1, 0), a, rtol=1e-5, atol=1e-7)


def test_it_is_an_environment_with_a_time_limit():
    assert isinstance(ENV, azjax.Environment)
    assert azjax.make_env(ENV) is ENV
    assert (ENV.name, ENV.backend, ENV.episode_length) == ("azjax:cartpole", "jax", 1000)
    with pytest.raises(ConfigError, match="episode_length is 0"):
        CartPole(episode_length=0)
    learner = azjax.trpo(azjax.TRPOConfig(policy_hidden=(), value_hidden=(4,), epochs=1, minibatches=1))
    params = learner.init(jax.random.key(0), ENV.observation_spec, ENV.action_spec).params
    evaluate = azjax.make_evaluator(CartPole(episode_length=7), learner.act, lanes=4, record=ENV.poses)
    episodes: Any = jax.jit(evaluate)(params, jax.random.key(1))
    assert episodes.length.tolist() == [7] * 4
    assert episodes.frames.recorded[0].shape == (8, 2, 3)


def test_poses_are_those_of_the_pole_in_its_picture():
    """MuJoCo's kinematics puts the bodies where ``poses`` says, on a model without floor."""
    model = ENV.model()
    data = mujoco.MjData(model)
    for x, angle in ((0.0, 0.0), (1.2, 0.15), (-2.0, -0.2)):
        data.qpos[:] = [x, angle]
        mujoco.mj_kinematics(model, data)
        positions, rotations = ENV.poses(state_of(x, 0.3, angle, 0.1))
        np.testing.assert_allclose(positions, data.xpos[1:], atol=1e-6)
        np.testing.assert_allclose(rotations, data.xquat[1:], atol=1e-6)
    assert has_scene(ENV)
    assert ENV.scene().links == ("cart", "pole")
    assert {geom.kind for geom in ENV.scene().geoms} == {"capsule", "box"}
    assert ENV.scene().dt == 0.02
