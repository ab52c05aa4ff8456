"""azjax's own 3D tasks: their models, rewards and ends by hand, contact forces against MuJoCo, lanes, names."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import azjax
from azjax.batching import list_fallbacks
from azjax.cli import main
from azjax.config import ConfigError
from azjax.envs import default_backend, plain_vmap
from azjax.envs.lanes import reset_lanes, step_lanes
from azjax.envs.locomotion import CARTPOLE, EPISODE_LENGTHS, PREFIX, TASKS
from azjax.envs.locomotion.models import load_model

BODIES = ("biped", "quadruped", "getup")
SIZES = {"biped": (33, 10), "quadruped": (29, 8), "getup": (33, 10)}
GEARS = {"biped": [100, 100, 100] * 2 + [20] * 4, "quadruped": [150] * 8}
needs_cartpole = pytest.mark.skipif(
    importlib.util.find_spec("azjax.envs.locomotion.cartpole") is None, reason="the cart-pole is not there yet"
)


@functools.cache
def task(name: str, backend: str = "spring", **settings: Any) -> Any:
    """The bare Brax environment."""
    return azjax.make_env(PREFIX + name, backend, **settings)._env


@functools.cache
def compiled(name: str, backend: str = "spring", **settings: Any) -> tuple[Any, Any, Any]:
    """A bare task, and its compiled start from ``(q, qd)`` and step."""
    env = task(name, backend, **settings)
    return env, jax.jit(env.begin), jax.jit(env.step)


# ---------------------------------------------------------------------------------------------------------------------
# The models
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["spring", "mjx"])
@pytest.mark.parametrize("name", BODIES)
def test_sizes_steps_and_horizon_are_those_of_the_paper(name: str, backend: str) -> None:
    env = azjax.make_env(PREFIX + name, backend)
    assert (env.observation_spec.shape, env.action_spec.size) == ((SIZES[name][0],), SIZES[name][1])
    assert env.dt == pytest.approx(0.01)
    assert env.episode_length == EPISODE_LENGTHS[name] == 2000
    assert (env.name, env.backend) == (PREFIX + name, backend)
    shorter = azjax.make_env(PREFIX + name, backend, exclude_position=True, episode_length=7)
    assert shorter.observation_spec.shape == (SIZES[name][0] - 2,)
    assert shorter.episode_length == 7


@pytest.mark.parametrize("name", sorted(GEARS))
def test_torques_are_the_action_times_the_gear(name: str) -> None:
    np.testing.assert_array_equal(task(name).sys.actuator.gear, GEARS[name])


def test_the_biped_has_the_papers_size() -> None:
    model = load_model("biped")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert (model.nq, model.nv, model.nu) == (17, 16, 10)
    assert model.body_mass.sum() == pytest.approx(39.9)
    soles = data.geom("left_foot").xpos[2] - model.geom("left_foot").size[0]
    assert data.geom("head").xpos[2] - soles == pytest.approx(1.48, abs=0.01)


@pytest.mark.parametrize("name", sorted(GEARS))
def test_the_models_are_their_own_mirror_images(name: str) -> None:
    """Every shape on the right has one on the left with y reversed; masses and ranges of the joints agree."""
    model = load_model(name)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pairs = 0
    for index in range(model.ngeom):
        right = model.geom(index).name
        if "left" in right:
            continue
        left = model.geom(right.replace("right", "left")).id
        np.testing.assert_allclose(data.geom_xpos[index] * [1, -1, 1], data.geom_xpos[left], atol=1e-9)
        np.testing.assert_allclose(model.geom_size[index], model.geom_size[left])
        assert model.body_mass[model.geom_bodyid[index]] == pytest.approx(model.body_mass[model.geom_bodyid[left]])
        pairs += left != index
    assert pairs == {"biped": 7, "quadruped": 6}[name]
    names = [model.joint(index).name for index in range(1, model.njnt)]
    for name in filter(lambda name: "right" in name, names):
        right, left = model.joint(name), model.joint(name.replace("right", "left"))
        # A mirror turns axial vectors: about y an angle keeps its sign, about x and z it changes.
        same = np.allclose(right.axis * [-1, 1, -1], left.axis)
        np.testing.assert_allclose(right.range if same else -right.range[::-1], left.range)


def test_mirrored_torques_move_the_biped_in_mirror_images() -> None:
    """Flexing the left and the right hip: the other way round in y, else the same, also on the springs."""
    env, start, step = compiled("biped")
    names = [env.sys.mj_model.actuator(i).name for i in range(10)]
    state = start(env._reference, jnp.zeros(16))
    ends = []
    for side in ("right", "left"):
        action = jnp.zeros(10).at[names.index(f"{side}_hip_y")].set(-1.0)
        after = state
        for _ in range(5):
            after = step(after, action)
        ends.append(np.asarray(after.pipeline_state.x.pos))
    links = [env.sys.mj_model.body(i + 1).name for i in range(7)]
    swapped = [links.index(n.replace("left", "#").replace("right", "left").replace("#", "right")) for n in links]
    np.testing.assert_allclose(ends[0] * [1, -1, 1], ends[1][swapped], atol=2e-4)
    assert np.abs(ends[0] - ends[1]).max() > 0.01


def test_the_spring_backend_returns_the_angles_that_it_was_given() -> None:
    env = task("biped")
    model = env.sys.mj_model
    low, high = model.jnt_range[1:].T
    q = env._reference.at[7:].set(low + (high - low) * np.linspace(0.2, 0.8, 10))
    rest = jax.jit(lambda q: env._pipeline.step(env.sys, env.pipeline_init(q, jnp.zeros(16)), jnp.zeros(10)))
    np.testing.assert_allclose(rest(q.at[2].add(1.0)).q[7:], q[7:], atol=0.02)


# ---------------------------------------------------------------------------------------------------------------------
# Starts, rewards, ends
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BODIES)
def test_starts_are_uniform_around_the_reference(name: str) -> None:
    env = task(name)
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 200))
    angles, velocities = np.asarray(states.pipeline_state.q[:, 7:]), np.asarray(states.pipeline_state.qd)
    for values in (angles, velocities):
        assert 0.045 < np.abs(values).max() <= 0.0501
        assert np.abs(values.mean()) < 0.005
    np.testing.assert_allclose(states.pipeline_state.q[:, :3], np.broadcast_to(env._reference[:3], (200, 3)))
    np.testing.assert_allclose(np.linalg.norm(states.pipeline_state.q[:, 3:7], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(states.obs[:, : env.sys.q_size()], states.pipeline_state.q)
    np.testing.assert_array_equal(states.obs[:, env.sys.q_size() :], states.pipeline_state.qd)


@pytest.mark.parametrize(
    ("name", "backend", "torque_cost", "alive"),
    [("biped", "spring", 1e-5, 0.2), ("quadruped", "spring", 1e-6, 0.05), ("quadruped", "mjx", 1e-6, 0.05)],
)
def test_rewards_of_a_walker_in_the_air_by_hand(name: str, backend: str, torque_cost: float, alive: float) -> None:
    """Flying forward at 2 m/s, one motor at half its strength, another asked for twice its strength; no contact."""
    env, start, step = compiled(name, backend)
    height = 3.0
    state = start(env._reference.at[2].set(height), jnp.zeros(env.sys.qd_size()).at[0].set(2.0))
    after = step(state, jnp.zeros(env.action_size).at[1].set(0.5).at[2].set(-2.0))
    gear = GEARS[name]
    squares = (0.5 * gear[1]) ** 2 + gear[2] ** 2
    terms = {key: float(value) for key, value in after.metrics.items()}
    assert terms["reward_forward"] == pytest.approx(2.0, rel=2e-3)
    assert terms["reward_torque"] == pytest.approx(-torque_cost * squares, rel=1e-5)
    assert terms["reward_impact"] == terms["impact_force"] == 0.0
    assert terms["reward_alive"] == pytest.approx(alive)
    assert float(after.reward) == pytest.approx(sum(v for k, v in terms.items() if k.startswith("reward")), rel=1e-5)
    assert not after.done


def test_the_impact_of_a_landing_is_clipped_as_asked() -> None:
    """Both feet hit the floor: with a clip of 1 N few newtons count, as printed all of them do."""
    for clip, most in ((1.0, 12.0), (None, np.inf)):
        env, start, step = compiled("biped", impact_clip=clip)
        state = start(env._reference.at[2].set(1.285), jnp.zeros(16).at[2].set(-1.0))
        terms = step(state, jnp.zeros(10)).metrics
        cost = -float(terms["reward_impact"])
        assert 0 < cost <= 1e-5 * most
        if clip is None:
            assert cost == pytest.approx(1e-5 * float(terms["impact_force"]) ** 2, rel=1e-5)
            assert terms["impact_force"] > 500  # the 39.9 kg weigh 391 N


@pytest.mark.parametrize(("name", "lowest"), [("biped", 0.8), ("quadruped", 0.2)])
def test_an_episode_ends_when_the_root_is_too_low(name: str, lowest: float) -> None:
    env, start, step = compiled(name)
    on_its_head = env._reference.at[3].set(0.0).at[4].set(1.0)  # nothing that collides is near the floor
    for height, over in ((lowest + 0.02, False), (lowest - 0.02, True)):
        state = start(on_its_head.at[2].set(height), jnp.zeros(env.sys.qd_size()))
        assert bool(step(state, jnp.zeros(env.action_size)).done) is over


def test_getting_up_starts_on_the_back_and_never_ends() -> None:
    env, start, step = compiled("getup")
    state = start(env._reference, jnp.zeros(16))
    w, x, y, z = state.pipeline_state.q[3:7]
    assert float(1 - 2 * (x**2 + y**2)) == pytest.approx(0.0, abs=1e-6)  # the trunk lies
    assert float(2 * (x * z - w * y)) == pytest.approx(1.0)  # the chest looks up
    assert float(env.head_height(state.pipeline_state)) == pytest.approx(0.12, abs=1e-6)
    after = step(state, jnp.zeros(10).at[0].set(1.0))
    head = float(after.metrics["head_height"])
    assert float(after.reward) == pytest.approx(-((head - 1.5) ** 2) - 1e-5 * 100**2, rel=1e-5)
    upright = start(jnp.zeros(17).at[2].set(1.3).at[3].set(1.0), jnp.zeros(16))
    assert float(env.head_height(upright.pipeline_state)) == pytest.approx(1.49)
    for _ in range(30):
        after = step(after, jnp.zeros(10))
        assert not after.done
    # Lying still, it neither sinks into the floor nor jumps.
    assert 0.03 < float(after.pipeline_state.q[2]) < 0.15


# ---------------------------------------------------------------------------------------------------------------------
# Contact forces
# ---------------------------------------------------------------------------------------------------------------------


def test_contact_forces_on_mjx_are_those_of_mujoco() -> None:
    """The same state in MuJoCo, its forces by ``mj_rnePostConstraint``; both solvers must converge for that."""
    from azjax.envs.locomotion.impact import mjx_step

    env = task("biped", "mjx")
    system = env.sys.tree_replace({"opt.iterations": 50, "opt.ls_iterations": 50})
    q = np.asarray(env._reference).copy()
    q[2] = 1.285
    qd = np.zeros(16)
    qd[2] = -0.3
    action = np.linspace(-0.3, 0.3, 10)
    step = jax.jit(lambda q, qd: mjx_step(system, env.pipeline_init(q, qd), jnp.asarray(action)))
    _, forces = step(jnp.asarray(q), jnp.asarray(qd))

    model = env.sys.mj_model
    model.opt.timestep, model.opt.iterations, model.opt.ls_iterations = 0.005, 50, 50
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    model.opt.disableflags = int(env.sys.opt.disableflags)
    data = mujoco.MjData(model)
    data.qpos, data.qvel, data.ctrl = q, qd, action
    mujoco.mj_step(model, data)
    mujoco.mj_rnePostConstraint(model, data)
    assert data.ncon >= 4
    assert np.abs(data.cfrc_ext[1:, 3:]).max() > 100
    np.testing.assert_allclose(forces, data.cfrc_ext[1:, 3:], rtol=2e-2, atol=1.0)


def test_the_floor_carries_the_weight_of_a_body_at_rest_on_springs() -> None:
    """On average over a second the quadruped, 10.4 kg, is pushed up with 102 N."""
    env, start, _ = compiled("quadruped")
    first = start(env._reference.at[2].set(0.5), jnp.zeros(14))

    @jax.jit
    def vertical(state: Any) -> jax.Array:
        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            after, _, force = env.move(state, jnp.zeros(8))
            return after, force[:, 2].sum()

        return jax.lax.scan(step, state.pipeline_state, length=150)[1]

    assert float(vertical(first)[50:].mean()) == pytest.approx(10.4 * 9.81, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Lanes
# ---------------------------------------------------------------------------------------------------------------------


def check_lanes(name: str, backend: str, steps: int = 3) -> None:
    """``minor_vmap`` steps as ``jax.vmap`` does, without a fallback."""
    env = azjax.make_env(PREFIX + name, backend)
    state = jax.jit(lambda keys: reset_lanes(env, azjax.minor_vmap, keys))(jax.random.split(jax.random.key(0), 4))
    actions = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (steps, 4, env.action_spec.size)), jnp.float32)
    assert list_fallbacks(env.step, state, actions[0].T) == []
    both = [
        jax.jit(lambda state, action, v=v: step_lanes(env, v, state, jnp.zeros(4, jnp.int32), action, limit=9))
        for v in (azjax.minor_vmap, plain_vmap)
    ]
    for action in actions:
        ours, theirs = (step(state, action) for step in both)
        np.testing.assert_allclose(ours.final_observation, theirs.final_observation, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(ours.reward, theirs.reward, rtol=1e-3, atol=2e-3)
        state = ours.state


def test_lanes() -> None:
    check_lanes("biped", "spring")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"), [("quadruped", "spring"), ("getup", "spring"), *((name, "mjx") for name in BODIES)]
)
def test_lanes_of_the_other_pairs(name: str, backend: str) -> None:
    check_lanes(name, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["spring", "mjx"])
@pytest.mark.parametrize("name", BODIES)
def test_random_torques_break_nothing(name: str, backend: str) -> None:
    """Three seconds of full random torques, episodes' ends ignored: all stays finite and in place."""
    env = azjax.make_env(PREFIX + name, backend)
    reset = lambda keys: reset_lanes(env, azjax.minor_vmap, keys)  # noqa: E731

    @jax.jit
    def roll(key: jax.Array) -> Any:
        def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            action = jax.random.choice(key, jnp.array([-1.0, 1.0]), (env.action_spec.size, 64))
            after = azjax.minor_vmap(env.step)(state, action)
            return after, jnp.abs(after.inner.pipeline_state.qd).max()

        return jax.lax.scan(step, reset(jax.random.split(key, 64)), jax.random.split(key, 300))

    state, fastest = roll(jax.random.key(0))
    assert np.isfinite(fastest).all()
    assert fastest.max() < 150
    assert np.abs(np.asarray(state.inner.pipeline_state.q[2])).max() < 3


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("biped", "did you mean 'azjax:biped'?"),
        ("cartpole", "did you mean 'azjax:cartpole'?"),
        ("azjax:bipet", "did you mean 'azjax:biped'? (see azjax envs --suite azjax)"),
        ("azjax:", "unknown environment 'azjax:' (see azjax envs --suite azjax)"),
    ],
)
def test_wrong_names_are_told(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        azjax.make_env(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_backends_and_settings_are_checked() -> None:
    assert {name: default_backend(PREFIX + name) for name in TASKS} == {name: TASKS[name][0] for name in TASKS}
    with pytest.raises(ConfigError, match=r"'azjax:biped' has no backend 'positional' \(it has: spring, mjx\)"):
        azjax.make_env("azjax:biped", "positional")
    with pytest.raises(ConfigError, match=r"'azjax:biped' does not take these settings: .*gravity"):
        azjax.make_env("azjax:biped", gravity=3.7)
    with pytest.raises(ConfigError, match="reset_noise"):
        azjax.make_env("azjax:quadruped", reset_noise=-1.0)
    with pytest.raises(ConfigError, match="'azjax:cartpole' has no backend 'spring'"):
        azjax.make_env(CARTPOLE, "spring")
    with pytest.raises(ConfigError, match="can't be randomised"):
        azjax.make_env(CARTPOLE, randomize=True)


def test_a_randomised_biped_starts() -> None:
    env = azjax.make_env("azjax:biped", randomize=True)
    params = env.sample_params(jax.random.key(0))
    state = jax.eval_shape(env.step, jax.eval_shape(env.reset, jax.random.key(1), params), jnp.zeros(10))
    assert state.observation.shape == (33,)


@needs_cartpole
def test_the_cartpole_is_wired() -> None:
    env = azjax.make_env(CARTPOLE, episode_length=20)
    assert (env.backend, env.episode_length) == ("jax", 20)
    assert azjax.make_env(CARTPOLE).episode_length == 1000
    with pytest.raises(ConfigError, match="'azjax:cartpole' does not take these settings"):
        azjax.make_env(CARTPOLE, gravity_on_mars=3.7)


@needs_cartpole
def test_the_suite_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--suite", "azjax", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert list(facts) == [PREFIX + name for name in TASKS]
    for name, sizes in SIZES.items():
        fact = facts[PREFIX + name]
        assert (fact["observation_size"], fact["action_size"], fact["seconds_per_step"]) == (*sizes, 0.01)
        assert fact["backends"] == ["spring", "mjx"]
        assert fact["preset"]


def test_names_are_known_without_the_physics() -> None:
    code = "import azjax.envs.registry, sys; assert 'azjax.envs.locomotion.tasks' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
