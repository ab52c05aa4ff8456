"""Ranked reward, learnability and the baselines of task types and roles, against plain Python and numpy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from azjax.config import ConfigError
from azjax.selfplay import (
    RankedBuffer,
    cell_statistics,
    init_ranked,
    learnability,
    ranked_reward,
    task_role_advantages,
)

KEY = jax.random.key(0)


def mesh_of(count: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), ("devices",))


# ---------------------------------------------------------------------------------------------------------------------
# Ranked reward
# ---------------------------------------------------------------------------------------------------------------------


def filled(past: list[list[float]], capacity: int) -> RankedBuffer:
    """A buffer that holds these scores of each group."""
    count = np.array([len(scores) for scores in past], np.int32)
    rows = [scores + [-1e9] * (capacity - len(scores)) for scores in past]
    return RankedBuffer(jnp.array(rows, jnp.float32), jnp.array(count), jnp.array(count % capacity))


def judge(past: list[list[float]], scores: Any, groups: Any = None, key: Any = KEY, **options: Any) -> Any:
    """Outcomes of a batch against a past, without a minimum."""
    groups = jnp.zeros(len(scores), jnp.int32) if groups is None else jnp.asarray(groups)
    buffer = filled(past, 128)  # as large for every past: one program serves them all
    options = {"minimum": 1} | options
    return jit_ranked(buffer, jnp.asarray(scores, jnp.float32), groups, key, **options)[1]


jit_ranked = jax.jit(ranked_reward, static_argnames=("minimum", "max_score", "axis_name"))


def held(buffer: RankedBuffer, group: int = 0) -> list[float]:
    return sorted(np.asarray(buffer.scores[group, : int(buffer.count[group])]).tolist())


@pytest.mark.parametrize("percentile", [0, 1, 10, 25, 50, 75, 90, 99, 100])
@pytest.mark.parametrize("length", [1, 2, 4, 10, 100])
def test_the_threshold_is_the_nearest_rank_percentile_of_the_past(percentile: int, length: int) -> None:
    past = np.random.default_rng(length).permutation(length).astype(float)
    rank = max(-(-percentile * length // 100), 1)
    outcome = judge([past.tolist()], [0.5], percentile=percentile)
    assert outcome.threshold.tolist() == [rank - 1]
    expected = np.percentile(past, percentile, method="inverted_cdf")
    assert outcome.threshold.tolist() == [expected]


small = st.integers(-50, 50)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(small, min_size=20, max_size=20), st.lists(small, min_size=8, max_size=8), st.sampled_from([50, 75, 90])
)
def test_outcomes_are_those_of_plain_python_and_invariant_under_increasing_transforms(
    past: list[int], scores: list[int], percentile: int
) -> None:
    threshold = sorted(past)[max(-(-percentile * len(past) // 100), 1) - 1]
    outcome = judge([past], scores, percentile=percentile).outcome
    for score, z in zip(scores, outcome.tolist(), strict=True):
        assert z == (1 if score > threshold else -1) or (score == threshold and abs(z) == 1)
    for transform in (lambda x: 3.0 * x + 7.0, lambda x: float(x) ** 3, lambda x: math.exp(x / 8.0)):
        again = judge([[transform(x) for x in past]], [transform(x) for x in scores], percentile=percentile)
        np.testing.assert_array_equal(again.outcome, outcome)


def test_nothing_of_the_current_batch_leaks_into_its_own_threshold() -> None:
    past, scores = list(map(float, range(20))), np.arange(8) + 8.5
    outcome = judge([past], scores).outcome
    changed = scores.copy()
    changed[1:] = 1e6
    assert judge([past], changed).outcome[0] == outcome[0]
    assert judge([past], changed).threshold == judge([past], scores).threshold
    buffer, _ = jit_ranked(filled([past], 30), jnp.asarray(changed), jnp.zeros(8, jnp.int32), KEY, minimum=1)
    assert held(buffer) == sorted([*past, *changed.tolist()])


def test_ties_go_either_way_with_equal_probability_and_by_the_key() -> None:
    outcome = judge([[3.0] * 10], [3.0] * 4000).outcome
    assert set(outcome.tolist()) == {-1.0, 1.0}
    assert abs(float(outcome.mean())) < 4 / math.sqrt(4000)
    np.testing.assert_array_equal(outcome, judge([[3.0] * 10], [3.0] * 4000).outcome)
    assert (outcome != judge([[3.0] * 10], [3.0] * 4000, key=jax.random.key(1)).outcome).any()
    # What is within rounding is not a tie: that would break the invariance.
    assert judge([[3.0] * 10], [np.nextafter(np.float32(3.0), np.float32(4.0))]).outcome.tolist() == [1.0]


def test_a_perfect_score_always_wins_only_where_there_is_such_a_rule() -> None:
    assert set(judge([[1.0] * 10], [1.0] * 100).outcome.tolist()) == {-1.0, 1.0}
    assert set(judge([[1.0] * 10], [1.0] * 100, max_score=1.0).outcome.tolist()) == {1.0}
    assert judge([[1.0] * 10], [0.5], max_score=1.0).outcome.tolist() == [-1.0]


def test_a_short_past_judges_nothing() -> None:
    first = judge([[1.0, 2.0], [1.0, 2.0, 3.0]], [9.0, 9.0], [0, 1], minimum=3, max_score=9.0)
    assert first.outcome.tolist() == [0.0, 1.0]
    assert first.mask.tolist() == [False, True]
    assert np.isnan(first.threshold[0])


def test_groups_are_apart() -> None:
    outcome = judge([[0.0] * 5, [10.0] * 5], [5.0, 5.0], [0, 1])
    assert outcome.outcome.tolist() == [1.0, -1.0]
    buffer = init_ranked(3, 4)
    buffer, _ = jit_ranked(buffer, jnp.array([1.0, 2.0, 3.0]), jnp.array([0, 2, 0]), KEY, minimum=1)
    assert [held(buffer, group) for group in range(3)] == [[1.0, 3.0], [], [2.0]]


def test_invalid_entries_are_neither_judged_nor_remembered() -> None:
    scores = jnp.array([1.0, jnp.nan, jnp.inf, 2.0, 3.0, 4.0])
    groups = jnp.array([0, 0, 0, 7, -1, 0])
    mask = jnp.array([True, True, True, True, True, False])
    buffer, outcome = jit_ranked(filled([[0.0]], 9), scores, groups, KEY, minimum=1, mask=mask)
    assert outcome.mask.tolist() == [True] + [False] * 5
    assert outcome.outcome.tolist() == [1.0] + [0.0] * 5
    assert held(buffer) == [0.0, 1.0]


def test_the_oldest_scores_make_room() -> None:
    buffer, push = init_ranked(1, 4), jax.jit(lambda b, s: ranked_reward(b, s, jnp.zeros(2, int), KEY, minimum=1)[0])
    for expected in ([0, 1], [0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]):
        buffer = push(buffer, jnp.array(expected[-2:], jnp.float32))
        assert held(buffer) == expected


def test_of_a_batch_larger_than_the_buffer_a_random_subset_stays() -> None:
    scores, zeros = jnp.arange(40.0), jnp.zeros(40, jnp.int32)
    push = jax.jit(jax.vmap(lambda key: ranked_reward(init_ranked(1, 10), scores, zeros, key, minimum=1)[0]))
    buffers = push(jax.random.split(KEY, 2000))
    kept = np.asarray(buffers.scores[:, 0], int)
    assert (np.asarray(buffers.count) == 10).all()
    assert (np.diff(np.sort(kept, axis=1)) > 0).all()
    counts = np.bincount(kept.ravel(), minlength=40)  # each stays with probability 1/4
    assert abs(counts - 500).max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_a_buffer_of_one_entry() -> None:
    buffer, _ = jit_ranked(init_ranked(1, 1), jnp.array([2.0]), jnp.array([0]), KEY, minimum=1)
    _, outcome = jit_ranked(buffer, jnp.array([1.0, 3.0]), jnp.array([0, 0]), KEY, minimum=1)
    assert outcome.outcome.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_ranked_reward_does_not_depend_on_the_devices(devices: int, require_devices: Any) -> None:
    require_devices(devices)
    rng = np.random.default_rng(0)
    past = rng.integers(0, 6, (2, 20)).astype(float).tolist()
    scores, groups = jnp.asarray(rng.integers(0, 6, 64), jnp.float32), jnp.asarray(rng.integers(0, 2, 64))
    alone = jit_ranked(filled(past, 24), scores, groups, KEY, minimum=5)
    spec = PartitionSpec("devices")
    program = jax.shard_map(
        lambda s, g: ranked_reward(filled(past, 24), s, g, KEY, minimum=5, axis_name="devices"),
        mesh=mesh_of(devices),
        in_specs=(spec, spec),
        out_specs=(PartitionSpec(), type(alone[1])(spec, spec, PartitionSpec())),
        check_vma=False,
    )
    jax.tree.map(np.testing.assert_array_equal, jax.jit(program)(scores, groups), alone)


def test_ranked_reward_under_vmap_and_a_traced_percentile() -> None:
    past, scores, zeros = list(map(float, range(16))), jnp.arange(16.0) - 0.5, jnp.zeros(16, jnp.int32)
    outcome = jax.vmap(
        lambda p: ranked_reward(filled([past], 20), scores, zeros, KEY, percentile=p, minimum=1)[1].outcome
    )(jnp.array([25.0, 50.0, 75.0]))
    assert (outcome > 0).sum(axis=1).tolist() == [12, 8, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init_ranked(0), "groups is 0"),
        (
            lambda: ranked_reward(init_ranked(1, 4), jnp.ones(1), jnp.zeros(1, int), KEY, percentile=101.0, minimum=1),
            "percentile is 101",
        ),
        (lambda: judge([[1.0]], [1.0], minimum=200), "minimum is 200"),
        (lambda: learnability(jnp.array(0), 1), "attempts is 1"),
        (lambda: learnability(jnp.array(0), 4, "varience"), "did you mean 'variance'"),  # type: ignore[arg-type]
        (lambda: advantages([1.0], [0], [0], baseline="globl"), "did you mean 'global'"),
        (lambda: advantages([1.0], [0], [0], baseline="question"), "needs question"),
        (lambda: advantages([1.0], [0], [0], question=jnp.array([0])), "no use for question"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Learnability
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_learnability_equals_its_definitions(n: int) -> None:
    k = np.arange(n + 1)
    p = k / n
    expected = {
        "variance": 4 * p * (1 - p) * n / (n - 1),
        "absolute-zero": np.where(p == 0, 0, 1 - p),
        "absolute-zero-code": np.where((p > 0) & (p < 1), 1 - p, -0.5),
        "min": np.minimum(p, 1 - p),
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(learnability(jnp.asarray(k), n, kind), values, rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_default_is_unbiased(n: int, p: float) -> None:
    k = np.arange(n + 1)
    probability = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in k])
    np.testing.assert_allclose((probability * np.asarray(learnability(jnp.asarray(k), n))).sum(), 4 * p * (1 - p), 1e-5)


def test_attempts_may_differ_between_tasks_and_too_few_of_them_say_nothing() -> None:
    attempts = jnp.array([4, 8, 1, 0])
    scores = jax.jit(learnability)(jnp.array([2, 4, 1, 0]), attempts)
    np.testing.assert_allclose(scores, [4 / 3, 8 / 7, 0, 0], rtol=1e-6)
    with pytest.raises(ConfigError, match="attempts is 0"):
        learnability(jnp.array([2, 4, 1, 0]), attempts)


# ---------------------------------------------------------------------------------------------------------------------
# Baselines
# ---------------------------------------------------------------------------------------------------------------------


def advantages(rewards: Any, task: Any, role: Any, **options: Any) -> Any:
    return task_role_advantages(
        jnp.asarray(rewards, jnp.float32), jnp.asarray(task), jnp.asarray(role), **{"tasks": 3} | options
    )


def batch(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    task, role = rng.integers(0, 3, shape), rng.integers(0, 2, shape)
    return (rng.normal(size=shape) * (1 + 5 * task) + 20 * role).astype(np.float32), task, role


def in_numpy(rewards: np.ndarray, cell: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Each cell centred and scaled on its own."""
    result = np.zeros(rewards.shape)
    counts = np.ones(rewards.shape, bool) if counts is None else counts
    for c in np.unique(cell):
        here = (cell == c) & counts
        x = rewards[here].astype(np.float64)
        if here.any():
            result[here] = (x - x.mean()) / x.std() if x.std() > 0 else 0
    return result


def test_each_cell_has_its_own_baseline_and_scale() -> None:
    rewards, task, role = batch(0, 40, 3)
    np.testing.assert_allclose(advantages(rewards, task, role), in_numpy(rewards, task * 2 + role), atol=2e-5)
    global_cell = np.zeros_like(task)
    np.testing.assert_allclose(
        advantages(rewards, task, role, baseline="global"), in_numpy(rewards, global_cell), atol=2e-5
    )
    question = np.random.default_rng(1).integers(0, 20, task.shape)
    np.testing.assert_allclose(
        advantages(rewards, task, role, baseline="question", question=jnp.asarray(question), questions=20),
        in_numpy(rewards, question),
        atol=2e-5,
    )


@pytest.mark.parametrize("value", [0.1, -1.0, 1e6, 3.3333333])
def test_a_cell_of_equal_rewards_gives_exactly_0(value: float) -> None:
    """The mean of seven times 0.1 is not 0.1 in float32; a division by the rounding error would give 1."""
    rewards = np.full(50, value, np.float32)
    assert (np.asarray(advantages(rewards, np.arange(50) % 3, np.zeros(50, int))) == 0).all()
    assert np.asarray(cell_statistics(jnp.asarray(rewards), jnp.zeros(50, int), 1).std) == 0
    assert advantages([7.0], [1], [1]).tolist() == [0.0]


def test_a_constant_in_all_rewards_and_their_scale_change_nothing() -> None:
    rewards, task, role = batch(2, 60)
    rewards = np.round(rewards * 64) / 64  # so that adding 1024 is exact
    expected = advantages(rewards, task, role)
    np.testing.assert_allclose(advantages(rewards + 1024, task, role), expected, atol=1e-5)
    np.testing.assert_allclose(advantages(rewards * 100, task, role), expected, atol=1e-5)


def test_entries_of_no_cell_or_weight_0_take_no_part() -> None:
    rewards, task, role = batch(3, 60)
    counts = np.random.default_rng(3).random(60) < 0.7
    expected = in_numpy(rewards, task * 2 + role, counts)
    poisoned = np.where(counts, rewards, np.nan)
    np.testing.assert_allclose(advantages(poisoned, task, role, weights=jnp.asarray(counts)), expected, atol=2e-5)
    np.testing.assert_allclose(advantages(poisoned, np.where(counts, task, 3), role), expected, atol=2e-5)
    np.testing.assert_allclose(advantages(poisoned, np.where(counts, task, -1), role), expected, atol=2e-5)
    assert np.isfinite(advantages(poisoned, task, role, weights=jnp.zeros(60))).all()


def test_weights_are_repetitions() -> None:
    """A response of five tokens counts as five, where statistics are taken over tokens."""
    rewards, task, role = batch(4, 30)
    times = np.random.default_rng(4).integers(0, 5, 30)
    repeated = cell_statistics(
        jnp.asarray(np.repeat(rewards, times)), jnp.asarray(np.repeat(task * 2 + role, times)), 6
    )
    weighted = cell_statistics(jnp.asarray(rewards), jnp.asarray(task * 2 + role), 6, weights=jnp.asarray(times))
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_advantages_are_those_of_all_devices_together(devices: int, require_devices: Any) -> None:
    require_devices(devices)
    rewards, task, role = batch(5, 64)
    rewards[task == 2] = 0.1  # equal on every device: exactly 0 whatever the order of the sum
    spec = PartitionSpec("devices")
    program = jax.jit(
        jax.shard_map(
            lambda r, t, o: task_role_advantages(r, t, o, tasks=3, axis_name="devices"),
            mesh=mesh_of(devices),
            in_specs=(spec, spec, spec),
            out_specs=spec,
        )
    )
    result = np.asarray(program(rewards, task, role))
    np.testing.assert_allclose(result, in_numpy(rewards, task * 2 + role), atol=2e-5)
    assert (result[task == 2] == 0).all()


def test_baselines_under_vmap() -> None:
    rewards, task, role = batch(6, 4, 30)
    result = jax.vmap(lambda r, t, o: task_role_advantages(r, t, o, tasks=3))(rewards, task, role)
    for member in range(4):
        np.testing.assert_allclose(result[member], in_numpy(rewards[member], (task * 2 + role)[member]), atol=2e-5)
