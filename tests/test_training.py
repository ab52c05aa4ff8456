"""The training program: accounting, freshness, tracing, devices, populations, and that it learns what is known."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from toy_envs import numpy_gae

import azjax
from azjax.counters import counter_from_int
from azjax.envs.lanes import plain_vmap, pool_layout
from azjax.on_policy import default_network

TINY = {"epochs": 1, "minibatches": 1, "policy_hidden": (8,), "value_hidden": (8,)}


def bits(tree: Any) -> list[np.ndarray]:
    """The leaves as numpy arrays of numbers that compare exactly, keys and NaN included."""

    def of(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        return array.view(np.uint32) if array.dtype == np.float32 else array

    return [of(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_bits(one: Any, other: Any) -> None:
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one: Any, other: Any, rtol: float, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def copy(tree: Any) -> Any:
    """A copy that outlives the donation of the original."""
    return jax.tree.map(jnp.copy, tree)


# ---------------------------------------------------------------------------------------------------------------------
# Accounting
# ---------------------------------------------------------------------------------------------------------------------


def replay(rollouts: list[azjax.Rollout], repeat: int = 1, is_broken: Any = None) -> list[dict[str, Any]]:
    """Plain Python: the episodes that end in each rollout, lane by lane, running ones carried over."""
    lanes = rollouts[0].reward.shape[1]
    running_return, running_length = np.zeros(lanes), np.zeros(lanes, int)
    updates = []
    for rollout in rollouts:
        returns, lengths, broken, over = [], [], 0, np.asarray(rollout.terminated | rollout.truncated)
        for t in range(rollout.reward.shape[0]):
            for lane in range(lanes):
                running_return[lane] += float(rollout.reward[t, lane])
                running_length[lane] += repeat
                if over[t, lane]:
                    if is_broken is not None and is_broken(rollout, t, lane):
                        broken += 1
                    else:
                        returns.append(running_return[lane])
                        lengths.append(int(running_length[lane]))
                    running_return[lane], running_length[lane] = 0.0, 0
        updates.append({"returns": returns, "lengths": lengths, "broken": broken, "over": over})
    return updates


@pytest.fixture(scope="module")
def lanes_metrics(lanes_program):
    """Three updates of lanes that end in every way, each call's single update unpacked."""
    return [jax.tree.map(lambda x: np.asarray(x[0]), m) for m in lanes_program.run(jax.random.key(0), 3)]


def is_broken(rollout: azjax.Rollout, t: int, lane: int) -> bool:
    """``Scripted`` rewards are positive, so only the 0 of a broken lane is 0."""
    return bool(rollout.truncated[t, lane]) and float(rollout.reward[t, lane]) == 0.0


def test_episode_accounting_equals_a_plain_python_replay(lanes_program, lanes_metrics):
    """Ended episodes over update borders, broken ones left out of every figure and counted."""
    rollouts = [m.learner["rollout"] for m in lanes_metrics]
    for n, (metrics, expected) in enumerate(zip(lanes_metrics, replay(rollouts, 1, is_broken), strict=True)):
        assert min(len(expected["returns"]), expected["broken"]) > 10
        assert int(metrics.episodes.ended) == len(expected["returns"])
        assert int(metrics.episodes.length_sum) == sum(expected["lengths"])
        np.testing.assert_allclose(metrics.episodes.return_sum, sum(expected["returns"]), rtol=1e-5)
        np.testing.assert_allclose(metrics.episodes.return_min, min(expected["returns"]), rtol=1e-5)
        np.testing.assert_allclose(metrics.episodes.return_max, max(expected["returns"]), rtol=1e-5)
        assert int(metrics.nonfinite_lanes) == expected["broken"]
        np.testing.assert_allclose(metrics.reward_mean, np.mean(rollouts[n].reward), rtol=1e-5)
        assert azjax.counter_to_int(metrics.env_steps) == (n + 1) * 64 * 16


def test_all_ways_to_end_happen_and_never_two_at_once(lanes_metrics):
    rollouts = [m.learner["rollout"] for m in lanes_metrics]
    terminated = np.concatenate([r.terminated for r in rollouts])
    truncated = np.concatenate([r.truncated for r in rollouts])
    assert terminated.sum() > 50
    assert truncated.sum() > 50
    assert not (terminated & truncated).any()
    for rollout in rollouts:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rollout))


def test_the_next_observation_is_the_final_one_unless_the_lane_ended_and_then_a_fresh_one(lanes_metrics):
    """brax stores the reset observation as the successor of an ending step, so its value is lost."""
    previous = None
    for metrics in lanes_metrics:
        rollout = metrics.learner["rollout"]
        over = rollout.terminated | rollout.truncated
        broken = (rollout.reward == 0.0) & rollout.truncated
        count, tag = rollout.observation[..., 0], rollout.observation[..., 1]
        final_count, final_tag = rollout.final_observation[..., 0], rollout.final_observation[..., 1]
        np.testing.assert_array_equal(final_tag, tag)  # the successor belongs to the same episode on every step
        np.testing.assert_array_equal(final_count, np.where(broken, count, count + 1))
        if previous is not None:
            rollout = jax.tree.map(lambda a, b: np.concatenate([a[-1:], b]), previous, rollout)
            over = np.concatenate([previous.terminated[-1:] | previous.truncated[-1:], over])
        following, final = rollout.observation[1:], rollout.final_observation[:-1]
        np.testing.assert_array_equal(following[~over[:-1]], final[~over[:-1]])
        assert (following[over[:-1]][:, 0] == 0).all()
        same_start = following[over[:-1]][:, 1] == final[over[:-1]][:, 1]
        # A start may follow itself only where the pool of four has wrapped: by chance once in four.
        assert same_start.mean() < 0.25
        assert metrics.reset_reuse.sum() > 0 or not same_start.any()
        previous = metrics.learner["rollout"]


def test_resets_are_fresh_in_every_update_and_wrapping_is_counted(lanes_program, lanes_metrics):
    """brax gives a lane its own first state for ever. Here an entry repeats only when its group has used them all."""
    layout = pool_layout(64, 64 * 16)
    groups = 64 // layout.group
    assert lanes_program.trainer.reset_group == layout.group == 8
    seen: set[float] = set(lanes_metrics[0].learner["rollout"].observation[0, :, 1].tolist())
    assert len(seen) == 64  # the first episodes, all different
    total_reuse = 0
    rollouts = [m.learner["rollout"] for m in lanes_metrics]
    for n, rollout in enumerate(rollouts):
        over = np.asarray(rollout.terminated | rollout.truncated)
        # The tag that follows an end; that of an end on the last step shows in the next update.
        after = (
            np.concatenate([rollout.observation[1:, :, 1], rollouts[n + 1].observation[:1, :, 1]]) if n < 2 else None
        )
        fresh: set[float] = set()
        reuse = 0
        for group in range(groups):
            lanes = slice(group * layout.group, (group + 1) * layout.group)
            ends = int(over[:, lanes].sum())
            reuse += max(ends - layout.entries, 0)
            if after is not None:
                tags = after[:, lanes][over[:, lanes]].tolist()
                assert len(set(tags)) == min(ends, layout.entries)
                assert tags[: layout.entries] == list(dict.fromkeys(tags))  # in order, none early
                assert tags == [tags[i % layout.entries] for i in range(ends)]
                fresh |= set(tags)
        assert int(lanes_metrics[n].reset_reuse) == reuse
        assert not fresh & seen  # nothing from an earlier update or another group
        seen |= fresh
        total_reuse += reuse
    assert total_reuse > 0


def test_action_repeat_counts_every_environment_step():
    """Steps, lengths and returns alike; ends inside the repeat included."""
    env = toy_envs.Scripted(9, terminate=(1, 12))
    trainer = azjax.make_trainer(
        env, toy_envs.idle(), lanes=16, rollout_length=5, action_repeat=3, reset_pool=128, vectorize=plain_vmap
    )
    assert trainer.env_steps_per_update == 16 * 5 * 3
    assert trainer.decisions == 16 * 5
    compiled = azjax.compile(trainer, updates_per_call=2)
    _, metrics = compiled.step(compiled.init(jax.random.key(0)))
    rollouts = [jax.tree.map(lambda x, n=n: np.asarray(x[n]), metrics.learner["rollout"]) for n in range(2)]
    for n, expected in enumerate(replay(rollouts, repeat=3)):
        assert azjax.counter_to_int(jax.tree.map(lambda x, n=n: x[n], metrics.env_steps)) == (n + 1) * 240
        assert int(metrics.episodes.ended[n]) == len(expected["returns"]) > 5
        assert int(metrics.episodes.length_sum[n]) == sum(expected["lengths"])
        np.testing.assert_allclose(metrics.episodes.return_sum[n], sum(expected["returns"]), rtol=1e-5)
    # Rewards are count + tag, so those of one decision are known: three counts from the first, fewer at the end.
    rollout = rollouts[0]
    count, tag = rollout.observation[..., 0], rollout.observation[..., 1]
    sub_steps = np.rint(rollout.final_observation[..., 0] - count)
    expected = sub_steps * (count + tag) + sub_steps * (sub_steps + 1) / 2
    np.testing.assert_allclose(rollout.reward, expected, rtol=1e-5)
    assert set(sub_steps[rollout.terminated].tolist()) == {1.0, 2.0, 3.0}
    assert (sub_steps[~rollout.terminated] == 3).all()


def test_the_step_counter_is_exact_past_2_to_the_31(lanes_program):
    """brax's 32-bit counter overflowed within a day of training."""
    state = lanes_program.compiled.init(jax.random.key(0))
    start = 2**32 - 1500
    state = dataclasses.replace(state, env_steps=counter_from_int(start))
    for n in range(1, 4):
        state, metrics = lanes_program.compiled.step(state)
        assert azjax.counter_to_int(state.env_steps) == start + n * 1024
        assert azjax.counter_to_int(jax.tree.map(lambda x: x[0], metrics.env_steps)) == start + n * 1024


def test_staggered_first_episodes_end_at_different_times_and_only_whole_ones_count():
    env = toy_envs.Scripted(10)
    trainer = azjax.make_trainer(
        env, toy_envs.idle(), lanes=64, rollout_length=10, reset_pool=256, stagger=True, vectorize=plain_vmap
    )
    compiled = azjax.compile(trainer, updates_per_call=2)
    state = compiled.init(jax.random.key(0))
    limits = np.asarray(state.lanes.limit)
    assert limits.min() >= 1
    assert limits.max() <= 10
    assert len(set(limits.tolist())) > 5
    state, metrics = compiled.step(state)
    first = np.asarray(metrics.learner["rollout"].truncated[0])
    np.testing.assert_array_equal(first.argmax(axis=0) + 1, limits)
    assert int(metrics.episodes.ended[0]) == (limits == 10).sum()
    # Every lane ends one whole episode of 10 steps in the second update.
    assert int(metrics.episodes.ended[1]) == 64
    assert int(metrics.episodes.length_sum[1]) == 640
    np.testing.assert_array_equal(state.lanes.limit, np.full(64, 10))


# ---------------------------------------------------------------------------------------------------------------------
# PPO inside the program
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ppo_updates(ppo_program):
    """Four updates: the learner's state before each, its metrics, and the last state."""
    state, updates = ppo_program.compiled.init(jax.random.key(3)), []
    for _ in range(4):
        before = copy(state.learner)
        state, metrics = ppo_program.compiled.step(state)
        updates.append((before, jax.tree.map(lambda x: x[0], metrics)))
    return updates, state


CONFIG = azjax.PPOConfig(**TINY)


@jax.jit
def policy_and_value(learner_state: Any, observation: Any, action: Any) -> Any:
    normal = azjax.normalize(learner_state.params.statistics, observation)
    distribution, value = default_network(CONFIG).apply(learner_state.params.network, normal)
    return distribution.log_prob(action), value


def test_what_is_learned_from_was_scored_by_the_policy_that_acted(ppo_updates):
    """Also after the normaliser and the parameters have moved: importance ratio 1 within 1e-5."""
    for before, metrics in ppo_updates[0]:
        batch, rollout = metrics.learner["batch"], metrics.learner["rollout"]
        log_prob, _ = policy_and_value(before, batch.observation, batch.action)
        assert np.abs(np.expm1(log_prob - batch.log_prob)).max() < 1e-5
        np.testing.assert_allclose(rollout.action, np.tanh(batch.action), rtol=1e-5, atol=1e-6)
    last, _ = ppo_updates[0][-1]
    assert azjax.counter_to_int(last.params.statistics.count) == 3 * 32 * 8


def test_truncations_bootstrap_the_value_of_the_final_observation(ppo_updates):
    """From the environment through the program: GAE in numpy of what the rollout and the acting critic say."""
    for before, metrics in ppo_updates[0]:
        batch, rollout = metrics.learner["batch"], metrics.learner["rollout"]
        _, values = policy_and_value(before, rollout.observation, batch.action)
        _, next_values = policy_and_value(before, rollout.final_observation, batch.action)
        advantages, returns = numpy_gae(
            rollout.reward, values, next_values, rollout.terminated, rollout.truncated, 0.9, 0.8
        )
        np.testing.assert_allclose(batch.advantages, advantages, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(batch.returns, returns, rtol=1e-3, atol=1e-4)
        ends = np.asarray(rollout.truncated)
        assert ends.any()
        # An end by the clock is worth its last reward and what would have followed, not the reset state's value.
        np.testing.assert_allclose(
            np.asarray(batch.returns)[ends], (rollout.reward + 0.9 * next_values)[ends], rtol=1e-3, atol=1e-4
        )


def test_broken_lanes_leave_the_learner_finite(ppo_updates):
    updates, state = ppo_updates
    assert sum(int(metrics.nonfinite_lanes) for _, metrics in updates) > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.learner.params, state.learner.optimizer)))
    for _, metrics in updates:
        assert float(metrics.learner["skipped"]) == 0.0
    # The broken rows never reached the batch: their observations are the last finite ones.
    assert azjax.counter_to_int(state.learner.params.statistics.count) == 4 * 32 * 8


class BrokenStarts(toy_envs.Target):
    """A fifth of the episodes start with broken physics."""

    def reset(self, key: Any, params: Any) -> azjax.EnvState:
        state = super().reset(key, params)
        broken = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.2)
        return state.replace(observation=jnp.where(broken, jnp.nan, state.observation))


def test_a_broken_initial_state_takes_no_part_and_stops_nothing():
    """One NaN in a batch would make all its normalised advantages NaN, and every update would be skipped."""
    config = azjax.PPOConfig(**TINY | {"minibatches": 2})
    learner = toy_envs.spy(azjax.ppo(config))
    trainer = azjax.make_trainer(BrokenStarts(), learner, lanes=64, rollout_length=4, vectorize=plain_vmap)
    state, metrics = azjax.compile(trainer, updates_per_call=3).step(jax.jit(trainer.init)(jax.random.key(0)))
    batch, rollout = metrics.learner["batch"], metrics.learner["rollout"]
    broken = np.isnan(rollout.observation[..., 0])
    assert 0.1 < broken.mean() < 0.3
    np.testing.assert_array_equal(batch.mask, ~broken)
    assert np.isfinite(np.asarray(batch.advantages)[~broken]).all()
    np.testing.assert_array_equal(metrics.nonfinite_lanes, broken.sum(axis=(1, 2)))
    np.testing.assert_array_equal(metrics.learner["skipped"], 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.learner.params))
    assert azjax.counter_to_int(state.learner.params.statistics.count) == (~broken).sum()


def test_each_update_resets_as_often_as_its_pool_has_entries():
    """Wrappers that reset every lane on every step spend more on resets than on physics."""
    resets: list[int] = []

    class Counted(toy_envs.Target):
        def reset(self, key: Any, params: Any) -> azjax.EnvState:
            jax.debug.callback(lambda _: resets.append(1), jax.random.key_data(key))
            return super().reset(key, params)

    trainer = azjax.make_trainer(Counted(), toy_envs.idle(), lanes=64, rollout_length=40, vectorize=plain_vmap)
    state = jax.jit(trainer.init)(jax.random.key(0))
    jax.effects_barrier()
    assert len(resets) == 64
    jax.block_until_ready(jax.jit(trainer.step)(state))
    jax.effects_barrier()
    layout = pool_layout(64, 64 * 40)
    assert len(resets) - 64 == layout.entries * 64 // layout.group == 80


def test_the_same_seed_gives_the_same_bits_and_another_one_others(ppo_program, ppo_updates):
    state = ppo_program.compiled.init(jax.random.key(3))
    for _ in range(4):
        state, _ = ppo_program.compiled.step(state)
    assert_same_bits(state, ppo_updates[1])
    other, _ = ppo_program.compiled.step(ppo_program.compiled.init(jax.random.key(4)))
    assert (other.lanes.env.observation != state.lanes.env.observation).any()


def test_several_updates_per_call_equal_as_many_calls(ppo_program, ppo_updates):
    compiled = azjax.compile(ppo_program.trainer, updates_per_call=4)
    state, metrics = compiled.step(compiled.init(jax.random.key(3)))
    updates, expected = ppo_updates
    assert_close(state.learner.params, expected.learner.params, rtol=1e-5, atol=1e-6)
    assert_same_bits(state.key, expected.key)
    assert azjax.counter_to_int(state.env_steps) == azjax.counter_to_int(expected.env_steps) == 4 * 256
    for n, (_, single) in enumerate(updates):
        assert_close(jax.tree.map(lambda x, n=n: x[n], metrics.episodes), single.episodes, rtol=1e-5, atol=1e-5)


def test_seeds_under_vmap_equal_separate_runs(ppo_program):
    keys = jax.random.split(jax.random.key(7), 3)
    states = jax.jit(jax.vmap(ppo_program.trainer.init))(keys)
    step = jax.jit(jax.vmap(ppo_program.trainer.step))
    for _ in range(2):
        states, metrics = step(states)
    for n in range(3):
        state = ppo_program.compiled.init(keys[n])
        for _ in range(2):
            state, alone = ppo_program.compiled.step(state)
        mine = jax.tree.map(lambda x, n=n: x[n], (states.learner.params, metrics.episodes, states.lanes.elapsed))
        theirs = (state.learner.params, jax.tree.map(lambda x: x[0], alone.episodes), state.lanes.elapsed)
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Tracing and buffers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectorize", "learner"),
    [(plain_vmap, azjax.ppo(azjax.PPOConfig(**TINY))), (azjax.minor_vmap, toy_envs.idle())],
    ids=["plain", "minor"],
)
def test_the_step_is_traced_exactly_once_and_its_argument_donated(vectorize, learner):
    """On an environment whose numbers are weakly typed, which carries a key and writes into its caller's dicts."""
    env = azjax.make_env(toy_envs.BraxCounter(3), episode_length=5)
    trainer = azjax.make_trainer(env, learner, lanes=8, rollout_length=4, vectorize=vectorize)
    chex.clear_trace_counter()
    counted = trainer._replace(step=chex.assert_max_traces(trainer.step, n=1))
    compiled = azjax.compile(counted, updates_per_call=3)
    state = compiled.init(jax.random.key(0))
    for call in range(1, 4):
        old = state
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*donated buffers were not usable.*")
            state, metrics = compiled.step(state)
        assert metrics.env_steps.low.shape == (3,)
        assert azjax.counter_to_int(state.env_steps) == call * 3 * 8 * 4
        kept = [path for path, leaf in jax.tree_util.tree_leaves_with_path(old) if not leaf.is_deleted()]
        assert kept == []
    assert compiled.step._cache_size() == 1


def test_a_state_from_an_init_that_was_not_jitted_can_be_donated(ppo_program):
    state = ppo_program.trainer.init(jax.random.key(3))
    state, _ = ppo_program.compiled.step(state)
    assert azjax.counter_to_int(state.env_steps) == 256


def test_the_described_state_is_the_real_one(ppo_program):
    """``compiled.state`` is for compiling ahead of time."""
    real = jax.eval_shape(ppo_program.compiled.init, jax.random.key(0))
    described = ppo_program.compiled.state
    chex.assert_trees_all_equal_shapes_and_dtypes(real, described)


# ---------------------------------------------------------------------------------------------------------------------
# Devices
# ---------------------------------------------------------------------------------------------------------------------

AXIS = "devices"


@pytest.fixture(scope="module")
def on_devices():
    """Programs and three updates of the same training on 1, 2 and 4 devices."""
    env = toy_envs.Scripted(6, terminate=(3, 12), nan_observation=(2, 60))
    config = azjax.PPOConfig(
        learning_rate=1e-3, entropy_coefficient=0.01, advantage_normalization="batch", normalize_returns=True, **TINY
    )
    learner = toy_envs.spy(azjax.ppo(config, axis_name=AXIS), AXIS)
    trainer = azjax.make_trainer(
        env, learner, lanes=32, rollout_length=6, reset_pool=16, axis_name=AXIS, vectorize=plain_vmap
    )

    def run(count: int) -> Any:
        traces = []

        def step(state: Any) -> Any:
            traces.append(count)
            return trainer.step(state)

        compiled = azjax.compile(trainer._replace(step=step), azjax.make_mesh(count, AXIS))
        state, metrics = compiled.init(jax.random.key(5)), []
        for _ in range(3):
            state, reported = compiled.step(state)
            metrics.append(jax.tree.map(lambda x: np.asarray(x[0]), reported))
        return state, metrics, traces

    results: dict[int, Any] = {}

    def get(count: int) -> Any:
        if count not in results:
            results[count] = run(count)
        return results[count]

    return get


@pytest.mark.parametrize("count", [2, 4])
def test_rollouts_are_the_same_for_every_device_count(count, on_devices, require_devices):
    """Up to rounding: actions, resets, episodes and counts."""
    require_devices(count)
    _, expected, _ = on_devices(1)
    _, metrics, _ = on_devices(count)
    for one, many in zip(expected, metrics, strict=True):
        assert_close(many.learner["rollout"], one.learner["rollout"], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(many.learner["rollout"].terminated, one.learner["rollout"].terminated)
        np.testing.assert_array_equal(
            many.learner["rollout"].observation[..., 1], one.learner["rollout"].observation[..., 1]
        )
        assert_close(many.episodes, one.episodes, rtol=1e-5, atol=1e-5)
        assert (many.nonfinite_lanes, many.reset_reuse) == (one.nonfinite_lanes, one.reset_reuse)
        np.testing.assert_allclose(many.reward_mean, one.reward_mean, rtol=1e-5)
    assert sum(int(m.reset_reuse) for m in expected) > 0
    assert sum(int(m.nonfinite_lanes) for m in expected) > 0


@pytest.mark.parametrize("count", [2, 4])
def test_parameters_are_equal_for_every_device_count(count, on_devices, require_devices):
    """Within 1e-4 for one minibatch per epoch, statistics, optimizer and entropy bonus included."""
    require_devices(count)
    one, _, _ = on_devices(1)
    many, _, _ = on_devices(count)
    assert_close(many.learner.params.network, one.learner.params.network, rtol=1e-4, atol=1e-6)
    for a, b in (
        (many.learner.params.statistics, one.learner.params.statistics),
        (many.learner.return_statistics, one.learner.return_statistics),
    ):
        assert_close((a.mean, a.variance), (b.mean, b.variance), rtol=1e-4, atol=1e-6)
    assert azjax.counter_to_int(many.learner.params.statistics.count) == 3 * 32 * 6
    assert azjax.counter_to_int(many.env_steps) == 3 * 32 * 6


@pytest.mark.parametrize("count", [2, 4])
def test_replicas_are_equal_to_the_bit_and_lanes_divided(count, on_devices, require_devices):
    require_devices(count)
    state, _, traces = on_devices(count)
    for leaf in jax.tree.leaves((state.learner, state.key, state.env_steps)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        replicas = [bits(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == count
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])
    for leaf in jax.tree.leaves((state.lanes.elapsed, state.lanes.env.observation)):
        assert {shard.data.shape[-1] for shard in leaf.addressable_shards} == {32 // count}
    assert traces == [count]


class WithEmpty(toy_envs.Target):
    """Has an array without elements in its state, like MJX's."""

    def reset(self, key: Any, params: Any) -> azjax.EnvState:
        return super().reset(key, params).replace(inner={"empty": jnp.zeros((0, 3))})

    def step(self, state: azjax.EnvState, action: Any) -> azjax.EnvState:
        return super().step(state, action).replace(inner=state.inner)


@pytest.mark.parametrize("count", [1, 2])
def test_empty_arrays_in_a_state_pass_programs_that_were_compiled_ahead(count, require_devices):
    require_devices(count)
    trainer = azjax.make_trainer(WithEmpty(), toy_envs.idle(AXIS), lanes=32, rollout_length=2, axis_name=AXIS)
    compiled = azjax.compile(trainer, azjax.make_mesh(count, AXIS), updates_per_call=2)
    init = compiled.init.lower(jax.random.key(0)).compile()
    step = compiled.step.lower(compiled.state).compile()
    state, _ = step(init(jax.random.key(0)))
    state, _ = step(state)
    assert state.lanes.env.inner["empty"].shape == (0, 3, 32)
    assert azjax.counter_to_int(state.env_steps) == 4 * 32 * 2


def test_replicas_stay_equal_with_minibatches_of_their_own(require_devices):
    """Each device permutes its own lanes; what they learn from it is reduced, so they never part."""
    require_devices(4)
    config = azjax.PPOConfig(
        **TINY | {"epochs": 2, "minibatches": 3}, advantage_normalization="minibatch", stop_at_kl=True
    )
    learner = azjax.ppo(config, axis_name=AXIS)
    trainer = azjax.make_trainer(
        toy_envs.Target(), learner, lanes=32, rollout_length=3, axis_name=AXIS, vectorize=plain_vmap
    )
    compiled = azjax.compile(trainer, azjax.make_mesh(4, AXIS), updates_per_call=2)
    state, _ = compiled.step(compiled.init(jax.random.key(0)))
    for leaf in jax.tree.leaves(state.learner):
        replicas = [bits(shard.data) for shard in leaf.addressable_shards]
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])
    assert_same_bits(state.learner.updates, jnp.int32(2))


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def idle_trainer(**settings: Any) -> azjax.Trainer:
    learner = toy_envs.idle(settings.get("axis_name"))
    return azjax.make_trainer(toy_envs.Scripted(), learner, **{"lanes": 64, "rollout_length": 4} | settings)


@pytest.mark.parametrize("name", ["lanes", "rollout_length", "action_repeat"])
def test_counts_below_1_are_errors(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        idle_trainer(**{name: 0})


def test_an_update_that_overflows_the_counter_is_an_error():
    with pytest.raises(ValueError, match=r"2\^31"):
        idle_trainer(lanes=2**16, rollout_length=2**15)


def test_lengths_that_overflow_when_added_up_are_an_error():
    with pytest.raises(ValueError, match=r"episodes of 1000000 .* too long for 4096 lanes"):
        azjax.make_trainer(toy_envs.Target(1_000_000), toy_envs.idle(), lanes=4096, rollout_length=1)


def test_a_policy_with_a_recurrent_state_is_refused_rather_than_run_without_it():
    learner = toy_envs.idle()

    def act(params: Any, observation: Any, carry: Any, key: Any, *, deterministic: bool = False) -> Any:
        action, _, info = learner.act(params, observation, carry, key)
        return action, jnp.zeros(3), info

    trainer = azjax.make_trainer(toy_envs.Target(), learner._replace(act=act), lanes=8, rollout_length=2)
    with pytest.raises(ValueError, match="recurrent state"):
        jax.eval_shape(lambda key: trainer.step(trainer.init(key)), jax.random.key(0))


def test_a_mesh_without_an_axis_name_is_an_error():
    with pytest.raises(ValueError, match="axis_name='devices'"):
        azjax.compile(idle_trainer(), azjax.make_mesh(1, AXIS))


def test_another_axis_name_than_the_meshs_is_an_error():
    with pytest.raises(ValueError, match=r"'i'.*'devices'|'devices'.*'i'"):
        azjax.compile(idle_trainer(axis_name="i"), azjax.make_mesh(1, AXIS))


def test_a_learner_without_the_trainers_axis_name_is_an_error():
    """Its devices would each learn alone, and their parameters drift apart."""
    with pytest.raises(ValueError, match="drift apart"):
        azjax.make_trainer(toy_envs.Scripted(4), azjax.ppo(), lanes=8, rollout_length=2, axis_name="lanes")


def test_lanes_that_cannot_be_divided_are_an_error_that_says_what_can(require_devices):
    require_devices(3)
    with pytest.raises(ValueError, match=r"64 lanes .* 3 devices .* multiple of 96 lanes"):
        azjax.compile(idle_trainer(axis_name=AXIS), azjax.make_mesh(3, AXIS))
    azjax.compile(idle_trainer(axis_name=AXIS, lanes=96), azjax.make_mesh(3, AXIS))


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="1000 devices asked for"):
        azjax.make_mesh(1000, AXIS)


def test_minibatches_that_do_not_divide_are_an_error_before_anything_is_compiled():
    learner = azjax.ppo(azjax.PPOConfig(minibatches=7))
    trainer = azjax.make_trainer(toy_envs.Target(), learner, lanes=8, rollout_length=4)
    compiled = azjax.compile(trainer)
    with pytest.raises(ValueError, match=r"32 decisions per device .* 7 equal minibatches"):
        compiled.step.lower(compiled.state)


# ---------------------------------------------------------------------------------------------------------------------
# It learns what is known
# ---------------------------------------------------------------------------------------------------------------------


def learn(env: Any, updates: int, **settings: Any) -> Any:
    """The learner's network, its state and the metrics after so many updates of 64 lanes and 4 decisions."""
    config = azjax.PPOConfig(
        **{
            "learning_rate": 1e-2,
            "gamma": 0.9,
            "epochs": 4,
            "minibatches": 2,
            "policy_hidden": (16,),
            "value_hidden": (16,),
            "init_std": 0.5,
            **settings,
        }
    )
    learner = azjax.ppo(config)
    trainer = azjax.make_trainer(env, learner, lanes=64, rollout_length=4, reset_pool=256, vectorize=plain_vmap)
    compiled = azjax.compile(trainer, updates_per_call=updates)
    state, metrics = compiled.step(trainer.init(jax.random.key(0)))

    def value(observation: Any) -> np.ndarray:
        normal = azjax.normalize(state.learner.params.statistics, observation)
        raw = default_network(config).apply(state.learner.params.network, normal)[1]
        if config.normalize_returns:
            from azjax.normalization import std

            raw = raw * std(state.learner.return_statistics) + state.learner.return_statistics.mean
        return np.asarray(raw)

    def act(observation: Any) -> np.ndarray:
        mode = jax.vmap(lambda o: learner.act(state.learner.params, o, (), jax.random.key(0), deterministic=True)[0])
        return np.asarray(mode(observation))

    return value, act, metrics


@pytest.mark.slow
def test_learns_a_value_that_depends_on_the_observation():
    value, _, _ = learn(toy_envs.ObservedReward(), 40)
    np.testing.assert_allclose(value(jnp.array([[1.0], [-1.0]])), [1.0, -1.0], atol=0.05)


@pytest.mark.slow
def test_learns_the_discounted_value_of_a_delayed_reward():
    value, _, _ = learn(toy_envs.DelayedReward(), 60, gamma=0.5)
    np.testing.assert_allclose(value(jnp.array([[0.0], [1.0]])), [0.5, 1.0], atol=0.05)


def test_learns_that_a_time_limit_is_not_the_end_of_the_task():
    """Reward 1 for ever is worth 1 / (1 - gamma) = 4; to who takes the limit of 5 steps as the end, 2.2."""
    value, _, metrics = learn(toy_envs.EndlessReward(5), 80, gamma=0.75, normalize_returns=True)
    assert int(metrics.episodes.ended.sum()) > 0
    np.testing.assert_allclose(value(jnp.ones((1, 1))), [4.0], atol=0.3)


@pytest.mark.parametrize("distribution", ["tanh-normal", pytest.param("normal", marks=pytest.mark.slow)])
def test_learns_a_continuous_action_that_depends_on_the_observation(distribution):
    _, act, _ = learn(toy_envs.Target(), 80, distribution=distribution, minibatches=1)
    observation = jnp.array([[-0.8], [0.0], [0.8]])
    np.testing.assert_allclose(act(observation)[:, 0], [-0.4, 0.0, 0.4], atol=0.12)


def test_learns_from_dict_observations_that_policy_and_critic_share_unequally():
    """The policy sees one entry and the critic another; both show what is needed."""
    _, act, _ = learn(toy_envs.DictTask(), 80, minibatches=1, policy_observation="seen", value_observation="hidden")
    x = jnp.array([-0.8, 0.0, 0.8])
    observation = {"seen": jnp.stack([x, 1 - x], axis=-1), "hidden": jnp.zeros((3, 1, 1))}
    np.testing.assert_allclose(act(observation)[:, 0], [-0.4, 0.0, 0.4], atol=0.12)


def test_learns_discrete_actions_to_the_optimum():
    """Of a shared torso, on a task whose best return is known."""
    env = toy_envs.Corridor(20)
    _, act, metrics = learn(env, 40, minibatches=1, shared_torso=True, entropy_coefficient=0.01)
    np.testing.assert_array_equal(act(jnp.eye(5)[:4]), [2, 2, 2, 2])
    ended, returns = np.asarray(metrics.episodes.ended), np.asarray(metrics.episodes.return_sum)
    assert returns[:4].sum() / ended[:4].sum() < env.OPTIMAL_RETURN - 0.3
    assert returns[-1] / ended[-1] > env.OPTIMAL_RETURN - 0.05
    assert float(metrics.episodes.return_max.max()) == pytest.approx(env.OPTIMAL_RETURN, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Brax
# ---------------------------------------------------------------------------------------------------------------------


def test_a_randomised_brax_environment_trains(brax_program):
    """Everything finite, episodes end, every episode starts elsewhere and with factors of its own."""
    state = brax_program.compiled.init(jax.random.key(0))
    factors = [{name: np.asarray(x) for name, x in state.lanes.env.params.items()}]
    updates, programs = [], []
    for _ in range(3):
        state, metrics = brax_program.compiled.step(state)
        updates.append(jax.tree.map(lambda x: np.asarray(x[0]), metrics))
        factors.append({name: np.asarray(x) for name, x in state.lanes.env.params.items()})
        programs.append(brax_program.compiled.step._cache_size())
    assert len(set(programs)) == 1  # the first call compiled, or another test had; the others did not
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.learner.params, state.learner.optimizer)))
    assert sum(int(m.episodes.ended) for m in updates) >= 32
    assert sum(int(m.nonfinite_lanes) for m in updates) == 0
    assert azjax.counter_to_int(state.env_steps) == 3 * 32 * 8
    starts: list[tuple[float, ...]] = []
    over = np.ones(32, bool)
    for metrics in updates:
        rollout = metrics.learner["rollout"]
        for t in range(8):
            starts += [tuple(row) for row in rollout.observation[t][over].tolist()]
            over = rollout.terminated[t] | rollout.truncated[t]
    reused = sum(int(m.reset_reuse) for m in updates)
    assert len(set(starts)) >= len(starts) - reused
    for name in ("mass", "motor_strength"):
        assert len(set(factors[0][name].tolist())) == 32
        assert not set(factors[0][name].tolist()) & set(factors[-1][name].tolist())
