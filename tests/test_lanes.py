"""Many lanes: the two kinds of end, true successors, action repeat, broken lanes, pools of fresh initial states."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_envs import NEVER, BraxCounter, Corridor, Scripted, idle

import azjax
from azjax.envs.lanes import (
    LaneStep,
    Pool,
    PoolLayout,
    _finite,
    choose_vectorize,
    draw_from_pool,
    fill_pool,
    group_size,
    plain_vmap,
    pool_layout,
    reset_lanes,
    reused_resets,
    step_lanes,
)

EVENTS = ("terminate", "truncate", "nan_observation", "nan_reward")
vectorizers = pytest.mark.parametrize("vectorize", [plain_vmap, azjax.minor_vmap], ids=["plain", "minor"])


@functools.cache
def fresh_states(lanes: int) -> azjax.EnvState:
    return jax.jit(lambda keys: reset_lanes(Scripted(), plain_vmap, keys))(jax.random.split(jax.random.key(0), lanes))


def scripted_states(lanes: int, **events: list[int]) -> azjax.EnvState:
    """Fresh lanes of ``Scripted`` in which the named events happen at the given counts, one a lane."""
    states = fresh_states(lanes)
    params = {name: jnp.asarray(events.get(name, [NEVER] * lanes), jnp.int32) for name in EVENTS}
    return states.replace(params=params)


def play(
    states: azjax.EnvState,
    decisions: int,
    *,
    limit: Any = 1000,
    action_repeat: int = 1,
    vectorize: Any = plain_vmap,
    action: Any = None,
) -> list[LaneStep]:
    """What each decision did, without resets."""
    lanes = states.reward.shape[0]
    action = jnp.full((lanes, 1), 0.5) if action is None else action

    def decide(carry: Any, _: None) -> Any:
        state, elapsed = carry
        result = step_lanes(Scripted(), vectorize, state, elapsed, action, limit=limit, action_repeat=action_repeat)
        return (result.state, result.elapsed), result

    _, results = jax.jit(lambda s: jax.lax.scan(decide, (s, jnp.zeros(lanes, jnp.int32)), None, decisions))(states)
    results = jax.device_get(results)
    return [jax.tree.map(lambda x, t=t: x[t], results) for t in range(decisions)]


@vectorizers
def test_termination_and_truncation_are_told_apart(vectorize):
    """Lanes: task ends at 2; environment cuts at 2; time limit at 3; task ends at the time limit; both at once."""
    states = scripted_states(5, terminate=[2, NEVER, NEVER, 3, 2], truncate=[NEVER, 2, NEVER, NEVER, 2])
    steps = play(states, 3, limit=3, vectorize=vectorize)
    terminated = np.stack([step.terminated for step in steps])
    truncated = np.stack([step.truncated for step in steps])
    np.testing.assert_array_equal(terminated[0], [False] * 5)
    np.testing.assert_array_equal(truncated[0], [False] * 5)
    np.testing.assert_array_equal(terminated[1], [True, False, False, False, True])
    np.testing.assert_array_equal(truncated[1], [False, True, False, False, False])
    np.testing.assert_array_equal(terminated[2, 2:4], [False, True])
    np.testing.assert_array_equal(truncated[2, 2:4], [True, False])
    assert not (terminated & truncated).any()
    assert not any(step.nonfinite.any() for step in steps)


def test_each_lane_may_have_a_time_limit_of_its_own():
    steps = play(scripted_states(3), 3, limit=jnp.array([1, 2, 3]))
    np.testing.assert_array_equal([step.truncated[t] for t, step in enumerate(steps)], [True] * 3)
    np.testing.assert_array_equal(steps[0].truncated, [True, False, False])


@vectorizers
def test_final_observation_is_the_true_successor_on_every_step_the_ending_one_included(vectorize):
    states = scripted_states(2, terminate=[2, NEVER])
    tags = np.asarray(states.inner["tag"])
    for t, step in enumerate(play(states, 3, limit=3, vectorize=vectorize), start=1):
        expected = np.stack([[t, t], tags, [0.5 * t, 0.5 * t]], axis=1)
        np.testing.assert_allclose(step.final_observation, expected, rtol=1e-6)
        np.testing.assert_allclose(step.reward, t + tags, rtol=1e-6)
        np.testing.assert_array_equal(step.elapsed, [t, t])


@vectorizers
@pytest.mark.parametrize("event", ["nan_observation", "nan_reward"])
def test_a_broken_lane_is_truncated_with_reward_0_and_its_last_finite_observation(event, vectorize):
    """Lane 1 breaks at step 2, lane 2 breaks and ends there: broken wins, an end with a made-up value is none."""
    broken = scripted_states(4, terminate=[NEVER, NEVER, 2, 2], **{event: [NEVER, 2, 2, NEVER]})
    whole = scripted_states(4, terminate=[NEVER, NEVER, 2, 2])
    before, step = play(broken, 2, vectorize=vectorize)
    _, expected = play(whole, 2, vectorize=vectorize)
    np.testing.assert_array_equal(step.nonfinite, [False, True, True, False])
    np.testing.assert_array_equal(step.truncated, [False, True, True, False])
    np.testing.assert_array_equal(step.terminated, [False, False, False, True])
    np.testing.assert_array_equal(step.reward[1:3], [0.0, 0.0])
    np.testing.assert_array_equal(step.final_observation[1:3], before.final_observation[1:3])
    for lane in (0, 3):  # the neighbours are untouched, to the bit
        np.testing.assert_array_equal(step.reward[lane], expected.reward[lane])
        np.testing.assert_array_equal(step.final_observation[lane], expected.final_observation[lane])


def test_integers_in_an_observation_are_finite():
    env = Corridor()
    states = reset_lanes(env, plain_vmap, jax.random.split(jax.random.key(0), 3))
    states = states.replace(observation={"a": jnp.zeros((2, 3)), "b": jnp.ones((3,), jnp.int32)})
    np.testing.assert_array_equal(_finite(states.observation), [True] * 3)
    spoilt = {**states.observation, "a": states.observation["a"].at[1, 2].set(jnp.inf)}
    np.testing.assert_array_equal(_finite(spoilt), [True, True, False])


class Whole(Scripted):
    """Observes whole numbers only."""

    observation_spec = jax.ShapeDtypeStruct((3,), jnp.int32)

    def reset(self, key: Any, params: Any) -> azjax.EnvState:
        state = super().reset(key, params)
        return state.replace(observation=state.observation.astype(jnp.int32))

    def step(self, state: azjax.EnvState, action: Any) -> azjax.EnvState:
        state = super().step(state, action)
        return state.replace(observation=state.observation.astype(jnp.int32))


def test_whole_numbers_may_be_observed_under_action_repeat():
    env = Whole(10)
    trainer = azjax.make_trainer(env, idle(), lanes=8, rollout_length=3, action_repeat=2, vectorize=plain_vmap)
    _, metrics = jax.jit(trainer.step)(trainer.init(jax.random.key(0)))
    np.testing.assert_array_equal(metrics.learner["rollout"].final_observation[:, 0, 0], [2, 4, 6])


def replay_repeat(tag: float, repeat: int, limit: int, **events: int) -> list[dict[str, Any]]:
    """One lane of ``Scripted`` in plain Python, up to its end."""
    count, position, played, observation, ended = 0, 0.0, [], [0.0, tag, 0.0], None
    while not ended:
        reward, broken, last = 0.0, False, list(observation)
        for _ in range(repeat):
            if ended or broken:
                break
            count, position = count + 1, position + 0.5
            observation = [count, tag, position]
            broken = count in (events.get("nan_observation"), events.get("nan_reward"))
            reward += count + tag
            if count >= events.get("terminate", NEVER):
                ended = "terminated"
            elif count >= min(events.get("truncate", NEVER), limit):
                ended = "truncated"
        if broken:
            reward, ended, observation = 0.0, "truncated", last
        elapsed = min((len(played) + 1) * repeat, limit)
        played.append(
            {"reward": reward, "ended": ended, "broken": broken, "observation": observation, "elapsed": elapsed}
        )
    return played


@pytest.mark.parametrize(("repeat", "limit"), [(1, 4), (3, 12), (3, 7)])
@vectorizers
def test_action_repeat_equals_plain_python(repeat, limit, vectorize):
    """Among the lanes: ends on each sub-step of a decision, of every kind, and a NaN that is gone at the next sub-step.

    brax's wrapper adds the rewards that come after an end inside the repeat, and lets a later sub-step overwrite it.
    """
    script = [
        {},
        {"terminate": 4},
        {"terminate": 5},
        {"terminate": 6},
        {"truncate": 4},
        {"nan_reward": 5},
        {"nan_observation": 4},
        {"nan_observation": 6},
        {"terminate": 4, "nan_reward": 5},
        {"terminate": 4, "nan_observation": 4},
    ]
    events = {name: [lane.get(name, NEVER) for lane in script] for name in EVENTS}
    states = scripted_states(len(script), **events)
    steps = play(states, -(-limit // repeat), limit=limit, action_repeat=repeat, vectorize=vectorize)
    for lane, plan in enumerate(script):
        for t, expected in enumerate(replay_repeat(float(states.inner["tag"][lane]), repeat, limit, **plan)):
            step, place = steps[t], f"lane {lane}, decision {t}"
            assert bool(step.terminated[lane]) == (expected["ended"] == "terminated"), place
            assert bool(step.truncated[lane]) == (expected["ended"] == "truncated"), place
            assert bool(step.nonfinite[lane]) == expected["broken"], place
            assert int(step.elapsed[lane]) == expected["elapsed"], place
            np.testing.assert_allclose(step.reward[lane], expected["reward"], rtol=1e-6, err_msg=place)
            np.testing.assert_allclose(step.final_observation[lane], expected["observation"], rtol=1e-6, err_msg=place)


def test_continuous_actions_are_clipped_on_their_way_in_and_discrete_ones_pass():
    steps = play(scripted_states(3), 1, action=jnp.array([[-7.0], [0.25], [3.0]]))
    np.testing.assert_allclose(steps[0].final_observation[:, 2], [-1.0, 0.25, 1.0])

    env = Corridor()
    states = reset_lanes(env, plain_vmap, jax.random.split(jax.random.key(0), 3))
    step = step_lanes(env, plain_vmap, states, jnp.zeros(3, jnp.int32), jnp.array([0, 1, 2], jnp.int32), limit=10)
    np.testing.assert_array_equal(step.state.inner, [0, 0, 1])


# ---------------------------------------------------------------------------------------------------------------------
# Fresh resets
# ---------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(lanes=st.integers(1, 20_000), decisions=st.integers(1, 1024))
def test_the_default_pool_has_an_entry_for_32_environment_steps_at_least_32_and_at_most_4_a_lane(lanes, decisions):
    layout = pool_layout(lanes, lanes * decisions)
    assert lanes % layout.group == 0
    groups = lanes // layout.group
    wanted = max(min(lanes * decisions // 32, 4 * lanes), 32)
    assert wanted <= groups * layout.entries < wanted + groups


@settings(deadline=None, derandomize=True)
@given(devices=st.integers(1, 64), times=st.integers(1, 64))
def test_a_multiple_of_32_lanes_a_device_can_be_divided(devices, times):
    """What the error about devices recommends must work."""
    lanes = 32 * devices * times
    assert (lanes // group_size(lanes)) % devices == 0


@settings(deadline=None, derandomize=True)
@given(lanes=st.integers(1, 500), pool=st.integers(1, 2000))
def test_a_pool_of_ones_own_size_has_at_least_that_many_entries(lanes, pool):
    layout = pool_layout(lanes, 16 * lanes, pool)
    assert (lanes // layout.group) * layout.entries >= pool
    assert layout.entries >= 1


def test_a_pool_needs_an_entry():
    with pytest.raises(ValueError, match="reset_pool is 0"):
        pool_layout(64, 1024, 0)


def allocate(over: np.ndarray, group: int, entries: int) -> tuple[np.ndarray, int]:
    """Plain Python: which entry each lane of each step gets (-1: none), and how many entries were taken again."""
    used: dict[int, int] = {}
    taken = np.full(over.shape, -1)
    reused = 0
    for t in range(over.shape[0]):
        for lane in range(over.shape[1]):
            if over[t, lane]:
                mine = lane // group
                number = used.get(mine, 0)
                taken[t, lane] = mine * entries + number % entries
                reused += number >= entries
                used[mine] = number + 1
    return taken, reused


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    over=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=4, max_size=4),
    layout=st.sampled_from([PoolLayout(1, 2), PoolLayout(4, 1), PoolLayout(4, 3), PoolLayout(8, 5), PoolLayout(2, 40)]),
)
def test_the_pool_is_given_out_like_a_plain_python_reference(over, layout):
    over = np.array(over)
    entries = 8 // layout.group * layout.entries
    pool = Pool(states=jnp.arange(entries) + 1000, used=jnp.zeros(8 // layout.group, jnp.int32))
    expected, expected_reuse = allocate(over, layout.group, layout.entries)
    for t in range(4):
        old = jnp.arange(8) + 10 * t
        used, new = _draw(pool, jnp.asarray(over[t]), old, layout)
        pool = pool._replace(used=used)
        np.testing.assert_array_equal(new, np.where(over[t], expected[t] + 1000, old))
    assert int(reused_resets(pool.used, layout)) == expected_reuse


_draw = jax.jit(draw_from_pool, static_argnums=3)


def test_every_entry_of_a_pool_is_a_different_episode_and_so_are_those_of_the_next_update():
    env, layout = Scripted(terminate=(1, 1000)), PoolLayout(group=4, entries=3)
    index = jnp.arange(16, dtype=jnp.int32)
    fill = jax.jit(lambda key: fill_pool(env, plain_vmap, key, index, layout))
    first, again, second = fill(jax.random.key(0)), fill(jax.random.key(0)), fill(jax.random.key(1))
    np.testing.assert_array_equal(first.states.inner["tag"], again.states.inner["tag"])
    tags = np.concatenate([first.states.inner["tag"], second.states.inner["tag"]])
    assert len(set(tags.tolist())) == 2 * 12
    assert len(set(np.asarray(first.states.params["terminate"]).tolist())) > 6  # params are drawn per episode
    np.testing.assert_array_equal(first.used, [0, 0, 0, 0])


def test_a_pool_does_not_depend_on_how_its_lanes_are_divided_among_devices():
    env, layout = Scripted(terminate=(1, 1000)), PoolLayout(group=4, entries=3)
    index, key = jnp.arange(16, dtype=jnp.int32), jax.random.key(0)
    fill = jax.jit(lambda part: fill_pool(env, plain_vmap, key, part, layout))
    whole, halves = fill(index), [fill(part) for part in (index[:8], index[8:])]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *[half.states for half in halves])
    jax.tree.map(np.testing.assert_array_equal, joined, whole.states)


@vectorizers
def test_fresh_states_are_strongly_typed_so_that_nothing_is_traced_twice(vectorize):
    """Brax environments reset to weakly typed numbers; what comes out of an update is strongly typed."""
    env = azjax.make_env(BraxCounter())
    states = jax.eval_shape(lambda keys: reset_lanes(env, vectorize, keys), jax.random.split(jax.random.key(0), 4))
    weak = [path for path, leaf in jax.tree_util.tree_leaves_with_path(states) if getattr(leaf, "weak_type", False)]
    assert weak == []


@vectorizers
def test_typed_keys_inside_a_state_survive_stepping_and_resetting(vectorize):
    env, layout = azjax.make_env(BraxCounter(2)), PoolLayout(group=2, entries=2)
    over = jnp.array([True, False, False, True])

    @jax.jit
    def program(keys):
        states = reset_lanes(env, vectorize, keys)
        pool = fill_pool(env, vectorize, jax.random.key(1), jnp.arange(4, dtype=jnp.int32), layout)
        step = step_lanes(env, vectorize, states, jnp.zeros(4, jnp.int32), jnp.zeros((4, 2)), limit=10)
        return pool, step, draw_from_pool(pool, over, step.state, layout)[1]

    pool, step, after = program(jax.random.split(jax.random.key(0), 4))
    data = jax.random.key_data
    np.testing.assert_array_equal(data(after.inner.info["rng"])[0], data(pool.states.inner.info["rng"])[0])
    np.testing.assert_array_equal(data(after.inner.info["rng"])[1], data(step.state.inner.info["rng"])[1])
    np.testing.assert_array_equal(after.observation[0], [0, 1, 1, 0])


@pytest.mark.parametrize(("name", "platform", "blocks"), [("minor", "cpu", 4), ("minor", "gpu", 0), ("vmap", "cpu", 0)])
def test_lanes_are_taken_in_blocks_on_a_cpu(name, platform, blocks):
    mapped = choose_vectorize(name, platform)
    program = str(jax.make_jaxpr(mapped(lambda x: x * 2.0))(jnp.zeros(4 * azjax.batching.CPU_BLOCK)))
    assert (f"length={blocks}" in program) if blocks else ("scan" not in program)
