"""Tasks on bodies: what is observed, rewarded and called a success, and how physics reach each lane."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs

import azjax
from azjax.config import ConfigError
from azjax.envs import fresh_state
from azjax.envs.brax import scale_system
from azjax.envs.lanes import choose_vectorize, step_lanes
from azjax.envs.scene import Geom
from azjax.runs.replay import Motion, marked
from azjax.selfplay import (
    Parameter,
    PointMass,
    Task,
    TaskEnvironment,
    TaskFamily,
    TaskSettings,
    TaskSpace,
    make_task_env,
    task_family,
)

KEY = jax.random.key(0)
SETTINGS = TaskSettings(reference_speed=2.0, reach=0.5, speed_width=0.5, turn_width=1.0, control_cost=0.0)


class Rail(PointMass):
    """Goes ahead at ``10 a[0]`` m/s and turns by ``a[1]`` rad/s at once; starts at rest at the origin, looking to 0.3.

    It falls at the step whose throttle is -1.
    """

    def reset(self, key: jax.Array, params: Any) -> azjax.EnvState:
        return self._state(jnp.zeros(2), jnp.float32(0.3), jnp.zeros(2), jnp.zeros(()), params)

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        heading = state.inner["heading"]
        velocity = 10.0 * action[0] * jnp.stack([jnp.cos(heading), jnp.sin(heading)])
        position = state.inner["position"] + self.dt * velocity
        after = self._state(position, heading + self.dt * action[1], velocity, action[1], state.params)
        return after.replace(terminated=action[0] <= -1.0)


@functools.cache
def rail(*types: str, **changes: Any) -> TaskEnvironment:
    return TaskEnvironment(Rail(), task_family("pointmass", types or None), dataclasses.replace(SETTINGS, **changes))


def task_of(env: TaskEnvironment, type_: str, **values: float) -> Task:
    """A task with these values, the rest neutral."""
    merged = {name: jnp.float32(values.pop(name, x)) for name, x in env.family.neutral.items()}
    assert not values
    return Task(jnp.int32(env.family.types.index(type_)), merged, jnp.int32(0))


@functools.cache
def compiled(env: TaskEnvironment) -> tuple[Any, Any]:
    return jax.jit(env.reset), jax.jit(env.step)


def attempt(env: TaskEnvironment, task: Task, actions: Any, key: Any = KEY) -> list[azjax.EnvState]:
    """The states of an episode, the initial one first, up to its end."""
    reset, step = compiled(env)
    states = [reset(key, task)]
    for action in actions:
        if states[-1].terminated | states[-1].truncated:
            break
        states.append(step(states[-1], jnp.asarray(action, jnp.float32)))
    return states


# ---------------------------------------------------------------------------------------------------------------------
# Goals
# ---------------------------------------------------------------------------------------------------------------------


def test_a_goal_is_seen_in_the_bodys_frame_and_in_units_of_the_reference_speed():
    env = rail()
    states = attempt(env, task_of(env, "goal", distance=4.0, bearing=0.5, horizon=2.0), [(0.1, 1.0), (0.2, -0.5)])
    np.testing.assert_allclose(states[0].inner.target, [4 * math.cos(0.8), 4 * math.sin(0.8)], rtol=1e-5)
    for state, heading, left in zip(states, (0.3, 0.4, 0.35), (1.0, 0.95, 0.9), strict=True):
        turn = np.array([[math.cos(heading), math.sin(heading)], [-math.sin(heading), math.cos(heading)]])
        offset = np.asarray(state.inner.target - state.inner.body.inner["position"])
        np.testing.assert_allclose(state.observation[:5], state.inner.body.observation)
        np.testing.assert_allclose(state.observation[5:8], [1.0, 0.0, 0.0])  # which type
        np.testing.assert_allclose(state.observation[8:10], turn @ offset / 2.0, rtol=1e-4)
        np.testing.assert_allclose(state.observation[10:], [0.0, 0.0, left], atol=1e-6)


def test_reaching_the_goal_ends_the_attempt_in_success_and_rewards_add_up_to_the_way():
    """3 m straight on at 10 m/s in steps of 1 m, reach 0.5 m: the third step arrives."""
    env = rail()
    states = attempt(env, task_of(env, "goal", distance=3.0, horizon=6.0), [(1.0, 0.0)] * 10)
    assert [bool(s.terminated) for s in states] == [False, False, False, True]
    assert [bool(env.outcome(s).success) for s in states] == [False, False, False, True]
    assert not any(bool(s.truncated) for s in states)
    np.testing.assert_allclose([env.outcome(s).score for s in states], [0.0, 1 / 3, 2 / 3, 1.0], atol=1e-5)
    # 1 m a step of 0.1 s, in units of 2 m/s.
    np.testing.assert_allclose([s.reward for s in states[1:]], [5.0] * 3, rtol=1e-4)


def test_a_goal_not_reached_in_time_is_a_failure_cut_short_by_the_time_limit():
    env = rail()
    states = attempt(env, task_of(env, "goal", distance=10.0, horizon=0.5), [(0.1, 0.0)] * 10)
    assert len(states) == 6
    assert (bool(states[-1].terminated), bool(states[-1].truncated)) == (False, True)
    outcome = env.outcome(states[-1])
    assert not outcome.success
    assert float(outcome.score) == pytest.approx(0.05, abs=1e-5)


def test_walking_in_circles_earns_nothing():
    env = rail()
    back_and_forth = [(0.3, 0.0), (-0.3, 0.0)] * 5
    states = attempt(env, task_of(env, "goal", distance=8.0, bearing=1.0, horizon=3.0), back_and_forth)
    assert sum(float(s.reward) for s in states) == pytest.approx(0.0, abs=1e-4)


def test_a_goal_within_reach_is_over_at_the_start():
    env = rail()
    state = env.reset(KEY, task_of(env, "goal", distance=0.4))
    assert bool(state.terminated)


# ---------------------------------------------------------------------------------------------------------------------
# Commands and disturbances
# ---------------------------------------------------------------------------------------------------------------------


def test_tracking_scores_by_hand_and_a_command_that_was_followed():
    env = rail()
    task = task_of(env, "command", speed=3.0, turn_rate=0.5, horizon=0.4)
    actions = [(0.3, 0.5), (0.35, 0.5), (0.3, -0.5), (0.35, -0.5)]
    states = attempt(env, task, actions)
    expected = np.exp([0.0, -1.0, -1.0, -2.0])
    np.testing.assert_allclose([s.reward for s in states[1:]], expected, rtol=1e-3)
    np.testing.assert_allclose(states[0].observation[5:], [0.0, 1.0, 0.0, 0.0, 0.0, 1.5, 0.5, 1.0])
    assert (bool(states[-1].terminated), bool(states[-1].truncated)) == (False, True)
    outcome = env.outcome(states[-1])
    assert float(outcome.score) == pytest.approx(expected.mean(), rel=1e-3)
    assert not outcome.success  # 0.4678 is less than 0.5
    lenient = rail(passing=0.46)
    states = attempt(lenient, task, actions)
    assert [bool(lenient.outcome(s).success) for s in states] == [False] * 4 + [True]


def test_a_fall_is_a_failure_however_good_the_rest_was():
    env = rail(passing=0.0)
    task = task_of(env, "command", speed=1.0, horizon=0.5)
    followed = attempt(env, task, [(0.1, 0.0)] * 5)
    assert bool(env.outcome(followed[-1]).success)
    fallen = attempt(env, task, [(0.1, 0.0)] * 4 + [(-1.0, 0.0)])
    assert (bool(fallen[-1].terminated), bool(fallen[-1].truncated)) == (True, False)
    assert not env.outcome(fallen[-1]).success


def test_the_price_of_control():
    env = rail(control_cost=0.4)
    states = attempt(env, task_of(env, "command", speed=5.0), [(0.5, 0.0)])
    assert float(states[1].reward) == pytest.approx(1.0 - 0.4 * 0.125, abs=1e-4)


def test_a_slope_tilts_gravity_and_keeps_its_strength():
    env = rail()
    gravity = env.physics(task_of(env, "disturbance", slope=0.2))["gravity"]
    np.testing.assert_allclose(gravity, [-9.81 * math.sin(0.2), 0.0, -9.81 * math.cos(0.2)], rtol=1e-5)
    assert not env.valid(task_of(env, "disturbance", slope=1.6))
    assert env.valid(task_of(env, "disturbance", slope=-0.2))


def test_a_push_changes_the_velocity_by_what_it_says_once_an_interval():
    env = make_task_env("pointmass", ("disturbance",))
    states = attempt(env, task_of(env, "disturbance", push=3.0), [(0.0, 0.0)] * 31)
    velocity = np.stack([np.asarray(s.inner.body.inner["velocity"]) for s in states])
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=1)
    pushed = [10, 20, 30]  # steps of 0.1 s, a push a second
    assert np.linalg.norm(velocity[11] - velocity[10]) == pytest.approx(3.0, abs=0.05)
    assert (change[pushed] > 1.5).all()
    assert change[:10].max() < 0.1
    direction = [np.arctan2(*(velocity[t + 1] - velocity[t])) for t in pushed]
    assert len({round(float(x), 2) for x in direction}) == 3
    other = attempt(env, task_of(env, "disturbance", push=3.0), [(0.0, 0.0)] * 11, jax.random.key(1))
    assert not np.allclose(other[-1].inner.body.inner["velocity"], velocity[11], atol=0.1)


def test_the_point_mass_feels_its_physics():
    body = PointMass()
    nominal = body.sample_params(KEY)
    speeds = {}
    for name, factor in (("none", 1.0), ("mass", 2.0), ("friction", 2.0), ("motor_strength", 2.0)):
        physics = nominal | ({} if name == "none" else {name: jnp.float32(factor)})
        state = body.reset(KEY, physics)
        for _ in range(5):
            state = body.step(state, jnp.array([1.0, 0.0]))
        speeds[name] = float(state.observation[2])
    assert speeds["mass"] < speeds["none"] < speeds["motor_strength"]
    assert speeds["friction"] < speeds["none"]
    # By hand from rest: v' = v + 0.1 (4 - v), five times.
    rest = body._state(jnp.zeros(2), jnp.zeros(()), jnp.zeros(2), jnp.zeros(()), nominal)
    for _ in range(5):
        rest = body.step(rest, jnp.array([1.0, 0.0]))
    assert float(rest.observation[2]) == pytest.approx(4.0 * (1.0 - 0.9**5), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for in the picture of an attempt
# ---------------------------------------------------------------------------------------------------------------------


def motion_of(env: TaskEnvironment, states: list[azjax.EnvState]) -> Motion:
    positions, rotations = (np.stack(x) for x in zip(*(env.poses(state) for state in states), strict=True))
    return Motion(positions, rotations, np.zeros(len(states), np.float32), False, env.dt)


def rotated(quaternion: np.ndarray, vector: Any) -> np.ndarray:
    w, axis = quaternion[0], quaternion[1:]
    turn = 2.0 * np.cross(axis, vector)
    return np.asarray(vector + w * turn + np.cross(axis, turn))


def ends_of(geom: Geom) -> list[np.ndarray]:
    """Both ends of a capsule in the frame of its link."""
    along = rotated(np.asarray(geom.quaternion), [0.0, 0.0, geom.size[1]])
    return [np.asarray(geom.position) - along, np.asarray(geom.position) + along]


def test_a_goal_stands_where_it_is_and_an_arrow_points_to_it():
    env = rail()
    task = task_of(env, "goal", distance=4.0, bearing=0.5, horizon=2.0)
    states = attempt(env, task, [(0.2, 1.0), (0.1, -5.0), (0.2, 0.5)])
    scene, motion = marked(env, env.scene(), motion_of(env, states), task)
    assert scene.links == ("ball", "task")
    target = np.asarray(states[0].inner.target)
    fixed = [geom for geom in scene.geoms if geom.link < 0 and geom.kind != "plane"]
    assert len(fixed) == 3
    for geom in fixed:
        np.testing.assert_allclose(geom.position[:2], target, atol=1e-5)
    assert fixed[0].size[0] == SETTINGS.reach
    for position, rotation in zip(motion.positions, motion.rotations, strict=True):
        np.testing.assert_allclose(position[1], [*position[0, :2], 0.0])
        ahead = rotated(rotation[1], [1.0, 0.0, 0.0])[:2]
        np.testing.assert_allclose(
            ahead, (target - position[0, :2]) / np.linalg.norm(target - position[0, :2]), atol=1e-5
        )


def test_a_command_is_the_way_of_the_next_second_and_turns_with_the_body():
    env = rail()
    task = task_of(env, "command", speed=2.0, turn_rate=1.5)
    states = attempt(env, task, [(0.2, 1.0), (0.1, -5.0)])
    scene, motion = marked(env, env.scene(), motion_of(env, states), task)
    pieces = [ends_of(geom) for geom in scene.geoms if geom.link == 1]
    for one, other in itertools.pairwise(pieces[:8]):
        np.testing.assert_allclose(one[1], other[0], atol=1e-6)
    np.testing.assert_allclose(pieces[0][0][:2], 0.0, atol=1e-6)
    # A circle of radius v / w, up to the pieces being straight.
    expected = 2.0 / 1.5 * np.array([math.sin(1.5), 1.0 - math.cos(1.5)])
    np.testing.assert_allclose(pieces[7][1][:2], expected, atol=0.15)
    headings = [float(state.inner.body.inner["heading"]) for state in states]
    turned = [2.0 * math.atan2(rotation[1, 3], rotation[1, 0]) for rotation in motion.rotations]
    np.testing.assert_allclose(turned, headings, atol=1e-5)


def test_a_body_without_a_task_is_shown_as_it_is():
    env = rail()
    motion = motion_of(env, attempt(env, task_of(env, "command"), [(0.2, 1.0)]))
    assert marked(env, env.scene(), motion, None) == (env.scene(), motion)


# ---------------------------------------------------------------------------------------------------------------------
# In lanes and training
# ---------------------------------------------------------------------------------------------------------------------


def test_new_tasks_recompile_nothing_and_each_lane_has_its_own():
    env = make_task_env("pointmass")
    vectorize, traces = choose_vectorize(), []

    @jax.jit
    def final(tasks: Task) -> Any:
        traces.append(None)
        keys = jnp.broadcast_to(KEY, (8,))
        state, elapsed = vectorize(env.reset)(keys, tasks), jnp.zeros(8, jnp.int32)
        for _ in range(3):
            lane = step_lanes(env, vectorize, state, elapsed, jnp.full((8, 2), 0.5), limit=env.episode_length)
            state, elapsed = lane.state, lane.elapsed
        return state.inner.body.inner["velocity"], state.params

    for seed in range(3):
        proposals = env.family.sample(jax.random.key(seed), (8,))
        velocity, kept = final(env.family.decode(proposals))
        np.testing.assert_array_equal(kept.values["mass"], env.family.decode(proposals).values["mass"])
        for lane in (0, 5):
            task = jax.tree.map(lambda x, lane=lane: x[lane], env.family.decode(proposals))
            states = attempt(env, task, [(0.5, 0.5)] * 3)
            np.testing.assert_allclose(velocity[:, lane], states[-1].inner.body.inner["velocity"], rtol=1e-4)
    assert len(traces) == 1


@pytest.mark.slow
def test_a_task_environment_trains_like_any_other():
    env = make_task_env("pointmass", ("goal", "command"))
    config = azjax.PPOConfig(epochs=1, minibatches=1, policy_hidden=(8,), value_hidden=(8,))
    trainer = azjax.make_trainer(env, azjax.ppo(config), lanes=32, rollout_length=8)
    compiled = azjax.compile(trainer)
    state = compiled.init(KEY)
    for _ in range(9):
        state, metrics = compiled.step(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics.learner))
    assert isinstance(env, azjax.Environment)


@pytest.mark.parametrize("body", ["pointmass", "hopper"])
def test_what_a_viewer_draws_is_the_body(body):
    env = make_task_env(body)
    scene, state = env.scene(), jax.eval_shape(lambda key: fresh_state(env, key), KEY)
    links = {geom.link for geom in scene.geoms}
    assert max(links) < jax.eval_shape(env.poses, state)[0].shape[0] == env.model().nbody - 1
    assert scene.dt == pytest.approx(env.dt)


# ---------------------------------------------------------------------------------------------------------------------
# Brax's bodies
# ---------------------------------------------------------------------------------------------------------------------


def check_physics_reach_the_body(body: str, backend: str, steps: int = 14) -> None:
    """The same start and actions: a nominal task twice, and one for each disturbance."""
    env = make_task_env(body, backend=backend)
    names = {"none": {}, "again": {}, "slope": {"slope": 0.25}, "friction": {"friction": 0.3}, "mass": {"mass": 1.8}}
    names |= {"motor_strength": {"motor_strength": 0.5}, "push": {"push": 1.0}}
    env.settings = dataclasses.replace(env.settings, push_interval=2 * env.dt)
    env._push_every = 2
    tasks = [task_of(env, "disturbance", **values) for values in names.values()]
    lanes, vectorize = len(names), choose_vectorize()
    keys = jnp.broadcast_to(KEY, (lanes,))
    state = jax.jit(vectorize(env.reset))(keys, jax.tree.map(lambda *x: jnp.stack(x, -1), *tasks))
    assert not (state.terminated | state.truncated).any()
    step = jax.jit(vectorize(env.step))
    for t in range(steps):
        action = jnp.sin(0.5 * t + jnp.arange(env.action_spec.size))
        state = step(state, jnp.broadcast_to(action[:, None], (env.action_spec.size, lanes)))
    x = np.asarray(state.observation)
    assert np.isfinite(x).all()
    moved = dict(zip(names, np.abs(x - x[:, :1]).max(axis=0), strict=True))
    assert moved.pop("none") == moved.pop("again") == 0.0
    assert min(moved.values()) > 1e-3, moved


def test_physics_reach_the_ant():
    check_physics_reach_the_body("ant", "spring")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "backend"),
    [("ant", "mjx"), ("ant", "positional"), ("ant", "generalized")]
    + [(body, "spring") for body in ("hopper", "walker2d", "humanoid")],
)
def test_physics_reach_every_body(body, backend):
    check_physics_reach_the_body(body, backend)


def test_gravity_is_set_where_each_engine_reads_it_and_stays_otherwise():
    system = azjax.make_env("ant", "spring")._env.sys
    factors = dict.fromkeys(("friction", "mass", "motor_strength"), jnp.float32(1.0))
    kept = scale_system(system, factors)
    np.testing.assert_allclose(kept.gravity, [0.0, 0.0, -9.81], rtol=1e-6)
    np.testing.assert_allclose(kept.opt.gravity, kept.gravity)
    tilted = scale_system(system, factors | {"gravity": jnp.array([1.0, 2.0, -3.0])})
    np.testing.assert_array_equal(tilted.gravity, [1.0, 2.0, -3.0])
    np.testing.assert_array_equal(tilted.opt.gravity, [1.0, 2.0, -3.0])


def test_a_planar_body_traces_with_tasks():
    env, bare = make_task_env("hopper"), azjax.make_env("hopper")
    assert env.observation_spec.shape == (bare.observation_spec.shape[0] + 8,)
    state = jax.eval_shape(lambda key: fresh_state(env, key), KEY)
    after = jax.eval_shape(env.step, state, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "bearing" not in env.family.spaces["goal"].parameters


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def family_with(spaces: dict[str, TaskSpace]) -> TaskFamily:
    known = {n: Parameter(0.1, 1.0, 1.0) for n in task_family("pointmass").neutral}
    return TaskFamily(spaces, {n: p for n, p in known.items() if all(n not in s.parameters for s in spaces.values())})


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (family_with({"fly": TaskSpace({"speed": Parameter(0, 1, 0)})}), SETTINGS, "unknown type of task 'fly'"),
        (TaskFamily({"goal": TaskSpace({"distance": Parameter(1, 2, 1)})}), SETTINGS, "lack bearing, friction"),
        (family_with({"goal": TaskSpace({"colour": Parameter(0, 1, 0)})}), SETTINGS, "don't know colour"),
        (task_family("pointmass"), dataclasses.replace(SETTINGS, planar=True), "leave bearing, turn_rate out"),
        (task_family("pointmass"), dataclasses.replace(SETTINGS, passing=1.5), "passing is 1.5"),
        (task_family("pointmass"), dataclasses.replace(SETTINGS, reach=0.0), "reach is 0.0"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(family, settings, message):
    with pytest.raises(ConfigError, match=message):
        TaskEnvironment(PointMass(), family, settings)


def test_settings_that_a_body_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="no backends"):
        make_task_env("pointmass", backend="spring")
    with pytest.raises(ConfigError, match="no backend 'fast'"):
        make_task_env("ant", backend="fast")


def test_a_body_that_observes_a_dict_is_refused():
    with pytest.raises(ConfigError, match="observes a dict"):
        TaskEnvironment(toy_envs.DictTask(), task_family("pointmass"), SETTINGS)
