"""Running statistics against numpy in float64: batches, devices, large offsets and counts, broken observations."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from azjax.counters import counter_from_int, counter_to_int
from azjax.normalization import RunningStatistics, init_statistics, normalize, std, update_statistics

update = jax.jit(update_statistics, static_argnames="axis_name")


def spec(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def rows(seed: int, *shape: int, scale: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * scale + rng.normal(size=shape[-1])).astype(np.float32)


def assert_statistics_of(
    statistics: RunningStatistics, seen: np.ndarray, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    """Compares with the moments of `seen` `[N, ...]`, taken in float64."""
    seen = np.asarray(seen, np.float64)
    assert counter_to_int(statistics.count) == len(seen)
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=rtol, atol=atol)
    np.testing.assert_allclose(statistics.variance, seen.var(0), rtol=rtol, atol=atol)


def test_equals_numpy_over_batches_of_any_leading_axes():
    statistics = init_statistics(spec(3))
    batches = [rows(0, 3), rows(1, 1, 3), rows(2, 7, 3), rows(3, 5, 4, 3), rows(4, 2, 3, 2, 3)]
    for batch in batches:
        statistics = update(statistics, batch)
    assert_statistics_of(statistics, np.concatenate([batch.reshape(-1, 3) for batch in batches]))


def test_statistics_have_no_lane_axis():
    """purejaxrl, issue 21, keeps one mean and variance per environment."""
    statistics = update(init_statistics(spec(3)), rows(0, 10, 4, 3))
    assert statistics.mean.shape == statistics.variance.shape == (3,)


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_features_of_any_rank(shape):
    batch = rows(5, 6, 8, *shape) if shape else rows(5, 6, 8)
    statistics = update(init_statistics(spec(*shape)), batch)
    assert_statistics_of(statistics, batch.reshape(48, *shape))


def test_an_update_keeps_structure_and_types_so_that_it_can_be_a_scan_carry():
    statistics = init_statistics(spec(3))
    batches = rows(6, 10, 4, 3)
    scanned, _ = jax.lax.scan(lambda s, batch: (update_statistics(s, batch), None), statistics, batches)
    chex.assert_trees_all_equal_shapes_and_dtypes(scanned, statistics)
    assert_statistics_of(scanned, batches.reshape(40, 3))


def test_a_population_by_vmap():
    statistics = jax.vmap(lambda _: init_statistics(spec(3)))(jnp.arange(2))
    batches = rows(7, 2, 5, 3)
    population = jax.jit(jax.vmap(update_statistics))(statistics, batches)
    for member in range(2):
        assert_statistics_of(jax.tree.map(lambda leaf, i=member: leaf[i], population), batches[member])


class Sensors(NamedTuple):
    joints: object
    extra: object


def test_nested_observations_with_leaves_that_are_not_normalised():
    observation_spec = {
        "state": Sensors(joints=spec(3), extra=(spec(), None)),
        "image": spec(4, 4, 3, dtype=jnp.uint8),
        "goal": spec(dtype=jnp.int32),
    }
    joints, extra = rows(8, 5, 2, 3), rows(9, 5, 2)
    batch = {
        "state": Sensors(joints=joints, extra=(extra, None)),
        "image": np.full((5, 2, 4, 4, 3), 200, np.uint8),
        "goal": np.arange(10, dtype=np.int32).reshape(5, 2),
    }
    statistics = update(init_statistics(observation_spec), batch)
    assert statistics.mean["image"] is statistics.mean["goal"] is None
    np.testing.assert_allclose(statistics.mean["state"].joints, joints.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance["state"].extra[0], extra.var(), rtol=1e-5)

    normalized = normalize(statistics, batch, clip=None)
    chex.assert_trees_all_equal_shapes_and_dtypes(normalized, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(normalized["image"], batch["image"])
    np.testing.assert_array_equal(normalized["goal"], batch["goal"])
    np.testing.assert_allclose(
        normalized["state"].joints, (joints - joints.mean((0, 1))) / joints.std((0, 1)), atol=1e-4
    )


def test_observations_without_any_floating_point_leaf_pass_through():
    statistics = init_statistics({"image": spec(2, 2, dtype=jnp.uint8)})
    batch = {"image": np.ones((3, 2, 2), np.uint8)}
    chex.assert_trees_all_equal(update_statistics(statistics, batch), statistics)
    chex.assert_trees_all_equal(normalize(statistics, batch), batch)


def test_before_the_first_update_observations_pass_unchanged_but_for_the_clip():
    statistics = init_statistics(spec(3))
    observation = jnp.array([[0.5, -9.0, 1e3]])
    np.testing.assert_array_equal(std(statistics), 1)
    np.testing.assert_array_equal(normalize(statistics, observation, clip=None), observation)
    np.testing.assert_array_equal(normalize(statistics, observation), [[0.5, -9.0, 10.0]])
    np.testing.assert_array_equal(normalize(statistics, -observation, clip=2.0), [[-0.5, 2.0, -2.0]])


def test_normalized_rows_have_mean_0_and_standard_deviation_1():
    batch = rows(10, 1000, 3)
    normalized = np.asarray(normalize(update(init_statistics(spec(3)), batch), batch, clip=None), np.float64)
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(0), 1, rtol=1e-5)


def test_a_feature_that_never_moved_is_not_blown_up():
    batch = np.tile(np.float32([0.0, 1e4, 3.0]), (50, 1))
    batch[:, 2] += rows(11, 50, 1)[:, 0]
    statistics = update(init_statistics(spec(3)), batch)
    np.testing.assert_allclose(std(statistics), [1e-6, 1e-2, batch[:, 2].std()], rtol=1e-4)
    np.testing.assert_array_equal(normalize(statistics, batch)[:, :2], 0)
    # One unit in the last place at an offset of 10,000 is noise, and stays small.
    assert abs(normalize(statistics, np.nextafter(batch[0], np.float32(np.inf)))[1]) < 0.2
    chex.assert_tree_all_finite(jax.grad(lambda s: jnp.sum(std(s)), allow_int=True)(statistics).variance)


def test_low_precision_observations_are_counted_in_float32_and_keep_their_type():
    batch = jnp.asarray(rows(12, 40, 3), jnp.bfloat16)
    statistics = update(init_statistics(spec(3, dtype=jnp.bfloat16)), batch)
    assert statistics.mean.dtype == statistics.variance.dtype == jnp.float32
    assert_statistics_of(statistics, np.asarray(batch, np.float64))
    assert normalize(statistics, batch).dtype == jnp.bfloat16
    half = jnp.array([[1.0, 2.0, jnp.inf], [1.0, 2.0, 3.0]], jnp.float16)
    assert counter_to_int(update(init_statistics(spec(3)), half).count) == 1


def test_float64_observations_keep_float32_statistics():
    with jax.enable_x64(True):
        batch = np.asarray(rows(13, 40, 3), np.float64)
        batch[0, 0] = 1e300
        statistics = update(init_statistics(spec(3, dtype=jnp.float64)), batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(statistics, init_statistics(spec(3)))
        assert_statistics_of(statistics, batch[1:])
        assert normalize(statistics, batch).dtype == jnp.float64


# What is left out.


def test_masked_rows_are_left_out():
    batch, mask = rows(14, 6, 4, 3), np.random.default_rng(14).random((6, 4)) < 0.5
    statistics = update(init_statistics(spec(3)), batch, mask=mask)
    assert_statistics_of(statistics, batch[mask])
    # What a masked row contains cannot matter, not even through 0 * inf.
    poisoned = np.where(mask[..., None], batch, np.inf)
    chex.assert_trees_all_equal(update(init_statistics(spec(3)), poisoned, mask=mask), statistics)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e38, -1e20])
def test_a_broken_observation_cannot_poison_the_statistics(poison):
    """In brax one NaN turns mean and standard deviation into NaN for the rest of the run."""
    first, second = rows(15, 8, 3), rows(16, 8, 3)
    second[5, 1] = poison
    statistics = update(update(init_statistics(spec(3)), first), second)
    assert_statistics_of(statistics, np.concatenate([first, np.delete(second, 5, axis=0)]))


def test_a_row_is_all_leaves_of_one_observation():
    batch = {"a": rows(17, 6, 2), "b": rows(18, 6, 3)}
    batch["a"][1, 0] = np.nan
    batch["b"][4, 2] = np.inf
    statistics = update(init_statistics({"a": spec(2), "b": spec(3)}), batch)
    kept = [0, 2, 3, 5]
    for name in batch:
        single = statistics.replace(mean=statistics.mean[name], variance=statistics.variance[name])
        assert_statistics_of(single, batch[name][kept])


@pytest.mark.parametrize("start", ["empty", "filled"])
def test_a_batch_without_any_valid_row_changes_nothing(start):
    statistics = init_statistics(spec(3))
    if start == "filled":
        statistics = update(statistics, rows(19, 8, 3))
    unchanged = update(statistics, np.full((4, 3), np.nan, np.float32))
    chex.assert_trees_all_equal(unchanged, statistics)
    chex.assert_trees_all_equal(update(statistics, rows(20, 0, 3)), statistics)


# Order and partition.

NUMBER, FEATURES = 12, 2
data = hnp.arrays(np.float32, (NUMBER, FEATURES), elements=st.floats(-1000, 1000, width=32))
groups = hnp.arrays(np.int32, NUMBER, elements=st.integers(0, 2))


@settings(deadline=None, max_examples=40)
@given(data, groups, st.permutations(range(NUMBER)), st.permutations(range(3)))
def test_property_order_and_partition_do_not_matter(batch, group, row_order, group_order):
    together = update(init_statistics(spec(FEATURES)), batch, mask=np.ones(NUMBER, bool))
    in_parts = init_statistics(spec(FEATURES))
    for part in group_order:
        in_parts = update(in_parts, batch[row_order], mask=group[row_order] == part)
    tolerance = 1e-6 * max(1.0, np.abs(batch).max())
    assert_statistics_of(together, batch, atol=tolerance**2 + tolerance)
    assert counter_to_int(in_parts.count) == NUMBER
    np.testing.assert_allclose(in_parts.mean, together.mean, rtol=1e-5, atol=tolerance)
    np.testing.assert_allclose(std(in_parts), std(together), rtol=1e-4, atol=tolerance)


# Devices.


def on_devices(number: int, statistics: RunningStatistics, batch: np.ndarray, mask: np.ndarray) -> RunningStatistics:
    """One update with the lanes, axis 1 of `batch` and `mask`, spread over devices."""
    if len(jax.devices()) < number:
        pytest.skip(f"needs {number} devices")
    mesh = Mesh(np.array(jax.devices()[:number]), ("devices",))
    sharded = jax.shard_map(
        lambda statistics, batch, mask: update_statistics(statistics, batch, mask=mask, axis_name="devices"),
        mesh=mesh,
        in_specs=(P(), P(None, "devices"), P(None, "devices")),
        out_specs=P(),  # also makes jax check that the result is the same on all devices
    )
    return jax.jit(sharded)(statistics, batch, mask)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_merging_over_devices_equals_a_single_device(number):
    first, batch = rows(21, 5, 12, 3), rows(22, 5, 12, 3)
    batch += np.arange(12, dtype=np.float32)[None, :, None]  # devices differ in their means
    mask = np.random.default_rng(22).random((5, 12)) < 0.7
    mask[:, :3] = False  # with four devices, one of them has nothing to say
    batch[2, 7] = np.nan
    before = update(init_statistics(spec(3)), first)
    alone = update(before, batch, mask=mask)
    merged = on_devices(number, before, batch, mask)
    chex.assert_trees_all_close(merged, alone, rtol=1e-6, atol=1e-6)
    valid = mask & np.isfinite(batch).all(-1)
    assert_statistics_of(merged, np.concatenate([first.reshape(-1, 3), batch[valid]]))


def test_the_spread_between_devices_counts():
    """brax's moving average takes the mean of the devices' variances, which here would be 0."""
    batch = np.repeat(np.float32([1.0, 5.0]), 3)[None, :, None]
    merged = on_devices(2, init_statistics(spec(1)), batch, np.ones((1, 6), bool))
    np.testing.assert_allclose(merged.mean, 3.0)
    np.testing.assert_allclose(merged.variance, 4.0)


def test_merging_over_a_vmap_axis():
    batch = rows(23, 4, 6, 3)
    merged = jax.vmap(
        lambda batch: update_statistics(init_statistics(spec(3)), batch, axis_name="lanes"), axis_name="lanes"
    )(batch)
    for lane in range(4):
        assert_statistics_of(jax.tree.map(lambda leaf, i=lane: leaf[i], merged), batch.reshape(24, 3))


# Long runs.


def single_precision_welford(batches: np.ndarray) -> np.ndarray:
    """The usual running mean without a residual, in float32."""
    mean = np.zeros(batches.shape[2:], np.float32)
    for index, batch in enumerate(batches, start=1):
        mean = np.float32(mean + np.float32((batch - mean).mean(0) / np.float32(index)))
    return mean


def test_a_drifting_feature_at_a_large_offset_over_many_updates():
    """The mean must follow where each update's share of it is below the resolution of float32."""
    updates, number = 20_000, 4
    rng = np.random.default_rng(24)
    drift = np.linspace(0, 4, updates)[:, None, None]
    batches = (1e4 + drift + rng.normal(size=(updates, number, 1))).astype(np.float32)
    statistics, _ = jax.jit(
        lambda batches: jax.lax.scan(
            lambda s, batch: (update_statistics(s, batch), None), init_statistics(spec(1)), batches
        )
    )(batches)
    exact = batches.astype(np.float64).reshape(-1, 1)
    mean = np.asarray(statistics.mean, np.float64) + np.asarray(statistics.mean_residual, np.float64)
    assert counter_to_int(statistics.count) == updates * number
    np.testing.assert_allclose(mean, exact.mean(0), atol=1e-3)
    np.testing.assert_allclose(statistics.variance, exact.var(0), rtol=1e-3)
    assert abs(single_precision_welford(batches) - exact.mean(0)) > 0.1  # a tenth of a standard deviation off, or more
    normalized = np.asarray(normalize(statistics, batches[-100:], clip=None), np.float64)
    np.testing.assert_allclose(normalized, (batches[-100:] - exact.mean(0)) / exact.std(0), atol=5e-3)


def test_a_small_feature_keeps_its_digits():
    """The variance of 1 that stands for "nothing seen" must not leave its rounding error in the first update."""
    batch = rows(28, 40, 2, scale=1.0) * np.float32(1e-4)
    np.testing.assert_allclose(update(init_statistics(spec(2)), batch).variance, batch.var(0, np.float64), rtol=1e-4)


def test_one_large_batch_at_a_large_offset():
    batch = (1e4 + np.random.default_rng(25).normal(size=(50_000, 2))).astype(np.float32)
    statistics = update(init_statistics(spec(2)), batch)
    np.testing.assert_allclose(statistics.mean, batch.mean(0, np.float64), rtol=0, atol=2e-3)
    np.testing.assert_allclose(statistics.variance, batch.var(0, np.float64), rtol=1e-4)


@pytest.mark.parametrize("before", [2**31 - 3, 2**32 - 3, 2**33, 2**40])
def test_counts_and_weights_past_2_to_the_31(before):
    """An int32 count would wrap to a negative weight here."""
    statistics = init_statistics(spec(1)).replace(count=counter_from_int(before))
    batch = np.full((8, 1), 1e6, np.float32)
    statistics = update(statistics, batch)
    assert counter_to_int(statistics.count) == before + 8
    weight = 8 / (before + 8)
    np.testing.assert_allclose(statistics.mean + statistics.mean_residual, weight * 1e6, rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, (1 - weight) + weight * (1 - weight) * 1e12, rtol=1e-5)


def test_errors_are_clear():
    statistics = init_statistics({"a": spec(2), "b": spec(3)})
    good = {"a": rows(26, 4, 2), "b": rows(27, 4, 3)}
    for function in (update_statistics, normalize):
        with pytest.raises(ValueError, match="structured as"):
            function(statistics, {"a": good["a"]})
        with pytest.raises(ValueError, match=r"expected features of shape \[\.\.\., 2\], got \(4, 3\)"):
            function(statistics, {"a": good["b"], "b": good["b"]})
        with pytest.raises(ValueError, match="expected features"):
            function(statistics, {"a": jnp.float32(0), "b": good["b"]})
    with pytest.raises(ValueError, match="leading axes"):
        update_statistics(statistics, {"a": good["a"], "b": good["b"][:2]})
    with pytest.raises(AssertionError, match="shape"):
        update_statistics(statistics, good, mask=np.ones(3, bool))
