"""azjax.statistics: hand cases, properties, and independent versions in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.statistics import (
    Crossings,
    Drawdown,
    area_under_curve,
    interquartile_mean,
    probability_of_improvement,
    probability_of_improvement_interval,
    spike_fraction,
    steps_to_thresholds,
    stratified_bootstrap_interval,
    summarize_crossings,
    summarize_curves,
    worst_drawdown,
)

numbers = st.integers(-1000, 1000).map(float)
scores = st.lists(numbers, min_size=1, max_size=8)
strata = st.lists(scores, min_size=1, max_size=4)
curves = st.lists(st.tuples(st.integers(1, 50), numbers), min_size=1, max_size=20).map(
    lambda steps: (np.cumsum([step for step, _ in steps]).astype(float), np.array([value for _, value in steps]))
)
quick = settings(deadline=None, derandomize=True)


# ---- over runs and tasks


@quick
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=60).filter(lambda x: len(x) % 4 == 0))
def test_the_interquartile_mean_is_scipys_where_quarters_are_whole(values):
    expected = scipy.stats.trim_mean(values, 0.25)
    assert interquartile_mean(np.array(values)) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_the_interquartile_mean_weighs_values_at_the_quartiles_by_their_part():
    # Of 5 values the middle half covers [1.25, 3.75] fifths: 0.75 of the second, the third, 0.75 of the fourth.
    assert interquartile_mean(np.array([-100.0, 1.0, 2.0, 4.0, 100.0])) == pytest.approx((0.75 + 2 + 3) / 2.5)
    assert interquartile_mean(np.array([7.0])) == 7.0
    assert interquartile_mean(np.array([5.0, 1.0])) == 3.0
    assert interquartile_mean(np.array([3.0, 1.0, 2.0])) == 2.0


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    """200 samples of 40 from a known distribution; its 95 % interval may miss a few more than 5 %, being small."""
    generator = np.random.default_rng(0)
    covered = 0
    for n in range(200):
        sample = generator.normal(3.0, 2.0, size=40)
        low, high = stratified_bootstrap_interval([sample], np.mean, resamples=300, seed=n)
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_bootstrap_interval_is_reproducible_and_widens_with_confidence():
    sample = np.random.default_rng(1).normal(size=30)
    assert stratified_bootstrap_interval([sample]) == stratified_bootstrap_interval([sample])
    narrow, wide = (stratified_bootstrap_interval([sample], confidence=part) for part in (0.5, 0.99))
    assert wide[0] < narrow[0] < interquartile_mean(sample) < narrow[1] < wide[1]
    assert stratified_bootstrap_interval([np.full(5, 2.5)]) == (2.5, 2.5)


def test_the_interquartile_mean_of_an_axis_is_that_of_each_row():
    values = np.random.default_rng(0).normal(size=(3, 7, 2))
    along = interquartile_mean(values, axis=1)
    assert along.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert along[i, j] == interquartile_mean(values[i, :, j])
    assert interquartile_mean(values) == interquartile_mean(values.ravel())


def test_what_is_not_defined_is_refused():
    with pytest.raises(ValueError, match="no values"):
        interquartile_mean([])
    for wrong in ([], [[]], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one score"):
            stratified_bootstrap_interval(wrong)
    with pytest.raises(ValueError, match="not finite"):
        stratified_bootstrap_interval([[1.0, math.nan]])
    with pytest.raises(ValueError, match="X has 1 tasks and Y has 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="X has 1 tasks and Y has 2"):
        probability_of_improvement_interval([[1.0]], [[1.0], [2.0]])


def test_each_task_is_resampled_from_its_own_runs():
    """Tasks far apart: with strata the mean of two tasks of one value each never moves; without, it would."""
    assert stratified_bootstrap_interval([[0.0] * 3, [100.0] * 3], np.mean) == (50.0, 50.0)
    low, high = stratified_bootstrap_interval([[0.0] * 3 + [100.0] * 3], np.mean)
    assert low < 30.0 < 70.0 < high
    seen = []
    stratified_bootstrap_interval(
        [[1.0, 2.0], [10.0, 20.0, 30.0]], lambda x: seen.append(x.copy()) or 0.0, resamples=50
    )
    assert len(seen) == 50
    assert all(len(x) == 5 and set(x[:2]) <= {1.0, 2.0} and set(x[2:]) <= {10.0, 20.0, 30.0} for x in seen)


def test_one_task_is_the_plain_bootstrap():
    """An independent version of it, draw by draw."""
    sample = np.random.default_rng(3).normal(size=12)
    generator = np.random.default_rng(0)
    draws = [interquartile_mean(generator.choice(sample, 12)) for _ in range(1000)]
    assert stratified_bootstrap_interval([sample]) == pytest.approx(np.percentile(draws, [2.5, 97.5]))
    assert stratified_bootstrap_interval([sample]) == stratified_bootstrap_interval([sample])


def test_a_stratified_interval_covers_the_iqm_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for n in range(100):
        sample = [generator.normal(mean, 1.0, size=10) for mean in (0.0, 0.2, -0.1)]
        low, high = stratified_bootstrap_interval(sample, np.mean, resamples=200, seed=n)
        covered += low <= 0.1 / 3.0 <= high
    assert 0.85 <= covered / 100 <= 1.0


def test_the_probability_of_improvement_by_hand():
    assert probability_of_improvement([[1.0]], [[0.0]]) == 1.0
    assert probability_of_improvement([[1.0]], [[1.0]]) == 0.5
    # 1 > 0, 1 = 1; 3 > 0, 3 > 1: 3.5 of 4.
    assert probability_of_improvement([[1.0, 3.0]], [[0.0, 1.0]]) == 0.875
    # Tasks count alike, however many runs they have.
    assert probability_of_improvement([[1.0], [0.0, 0.0, 0.0]], [[0.0], [1.0, 1.0]]) == 0.5


@quick
@given(strata, strata)
def test_the_probability_of_improvement_is_that_of_loops_over_pairs(x, y):
    tasks = min(len(x), len(y))
    x, y = x[:tasks], y[:tasks]
    parts = []
    for a, b in zip(x, y, strict=True):
        wins = [1.0 if u > v else 0.5 if u == v else 0.0 for u in a for v in b]
        parts.append(sum(wins) / len(wins))
    p = probability_of_improvement(x, y)
    assert p == pytest.approx(sum(parts) / tasks)
    assert probability_of_improvement(y, x) == pytest.approx(1.0 - p)
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


@quick
@given(scores, scores)
def test_the_probability_of_improvement_is_the_mann_whitney_statistic(x, y):
    u = scipy.stats.mannwhitneyu(x, y, method="asymptotic").statistic
    assert probability_of_improvement([x], [y]) == pytest.approx(u / (len(x) * len(y)))


def test_the_interval_of_an_improvement_tells_clear_from_unclear():
    generator = np.random.default_rng(0)
    x, y = [generator.normal(1.0, 1.0, 10) for _ in range(3)], [generator.normal(0.0, 1.0, 10) for _ in range(3)]
    low, high = probability_of_improvement_interval(x, y)
    assert 0.5 < low < probability_of_improvement(x, y) < high < 1.0
    low, high = probability_of_improvement_interval(x, x)
    assert low < 0.5 < high
    assert probability_of_improvement_interval([[2.0, 3.0]], [[0.0, 1.0]]) == (1.0, 1.0)
    assert probability_of_improvement_interval(x, y) == probability_of_improvement_interval(x, y)


# ---- of one curve


def test_drawdown_by_hand():
    assert worst_drawdown([1.0, 2.0, 3.0]) == Drawdown(0.0, 0.0)
    assert worst_drawdown([3.0, 2.0, 1.0]) == Drawdown(2.0, 1.0)
    # The fall from 10 to 4 is smaller than that from 20 to 12, which is two fifths of the range.
    assert worst_drawdown([0.0, 10.0, 4.0, 20.0, 12.0, 19.0]) == Drawdown(8.0, 0.4)
    assert worst_drawdown([-5.0]) == Drawdown(0.0, 0.0)
    assert worst_drawdown([-80.0, -60.0, -70.0]) == Drawdown(10.0, 0.5)
    with pytest.raises(ValueError, match="empty"):
        worst_drawdown([])


@quick
@given(st.lists(numbers, min_size=1, max_size=20))
def test_drawdown_is_the_largest_fall_of_all_pairs(values):
    falls = [values[i] - values[j] for i in range(len(values)) for j in range(i, len(values))]
    fall = worst_drawdown(values)
    assert fall.absolute == max(falls)
    assert 0.0 <= fall.relative <= 1.0


def test_steps_to_thresholds_by_hand():
    steps, returns = [100, 200, 300, 400], [0.0, 10.0, 5.0, 20.0]
    assert steps_to_thresholds(steps, returns, [-1.0, 0.0, 5.0, 10.0, 12.5, 20.0, 20.1]) == [
        100.0, 100.0, 150.0, 200.0, 350.0, 400.0, None,
    ]  # fmt: skip
    assert steps_to_thresholds([7], [3.0], [3.0, 4.0]) == [7.0, None]


@quick
@given(curves, numbers)
def test_steps_to_a_threshold_are_where_the_interpolated_curve_first_gets_there(curve, threshold):
    x, values = curve
    (found,) = steps_to_thresholds(x, values, [threshold])
    if found is None:
        assert values.max() < threshold
        return
    assert np.interp(found, x, values) >= threshold - 1e-6
    before = np.linspace(x[0], found, 50)[:-1]
    assert found == x[0] or (np.interp(before, x, values) < threshold + 1e-6).all()


def test_crossings_of_seeds_that_never_got_there_by_hand():
    # Kaplan-Meier on the textbook's kind of example: 5 at risk, deaths at 6 and 10, one lost at 7.
    # S(6) = 4/5, S(10) = 4/5 * 2/3 = 0.533, S(12) = 0.533 * 1/2 = 0.267.
    assert summarize_crossings([6.0, None, 10.0, 12.0, None], [20.0, 7.0, 20.0, 20.0, 20.0]) == Crossings(3, 5, 12.0)
    assert summarize_crossings([], []) == Crossings(0, 0, None)
    assert summarize_crossings([None, None], [5.0, 6.0]) == Crossings(0, 2, None)
    assert summarize_crossings([3.0], [9.0]) == Crossings(1, 1, 3.0)
    # Half of them: the median lies beyond what was seen.
    assert summarize_crossings([3.0, None], [9.0, 9.0]) == Crossings(1, 2, None)
    # Lost before anyone crossed: it says nothing.
    assert summarize_crossings([5.0, None], [9.0, 1.0]) == Crossings(1, 2, 5.0)


@quick
@given(st.lists(st.integers(1, 100).map(float), min_size=1, max_size=12))
def test_without_censoring_the_median_crossing_is_the_median(times):
    assert summarize_crossings(times, [200.0] * len(times)) == Crossings(len(times), len(times), np.median(times))


@quick
@given(st.lists(st.one_of(st.none(), st.integers(1, 99).map(float)), min_size=1, max_size=12))
def test_with_one_common_end_a_seed_that_never_crossed_is_later_than_all(times):
    """The median of times in which never is infinity."""
    expected = np.median([math.inf if time is None else time for time in times])
    assert summarize_crossings(times, [100.0] * len(times)).median == (None if math.isinf(expected) else expected)


def test_areas_by_hand():
    assert area_under_curve([0, 10], [4.0, 4.0]) == 4.0
    assert area_under_curve([0, 10, 20], [0.0, 10.0, 10.0]) == 7.5
    assert area_under_curve([0, 10, 20], [0.0, 10.0, 10.0], start=5, end=15) == pytest.approx((7.5 * 5 + 10 * 5) / 10)
    for start, end in ((-1, 10), (0, 21), (5, 5), (15, 5)):
        with pytest.raises(ValueError, match="empty or goes beyond"):
            area_under_curve([0, 10, 20], [0.0, 10.0, 10.0], start=start, end=end)
    with pytest.raises(ValueError, match="empty or goes beyond"):
        area_under_curve([10], [4.0])


@quick
@given(curves)
def test_an_area_is_scipys_over_the_span_and_lies_between_the_extremes(curve):
    x, values = curve
    if len(x) < 2:
        return
    area = area_under_curve(x, values)
    assert area == pytest.approx(scipy.integrate.trapezoid(values, x) / (x[-1] - x[0]), abs=1e-9)
    assert values.min() - 1e-9 <= area <= values.max() + 1e-9


@pytest.mark.parametrize("x", [[1.0, 1.0], [2.0, 1.0], [math.nan, 1.0], [0.0, math.nan], [1.0]])
def test_a_curve_must_go_forward(x):
    for of_curve in (lambda: area_under_curve(x, [1.0, 2.0]), lambda: steps_to_thresholds(x, [1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="a curve's x"):
            of_curve()
    with pytest.raises(ValueError, match="at least one point"):
        steps_to_thresholds([], [], [1.0])


def test_spikes_by_hand():
    steady = [1.0] * 20
    assert spike_fraction([steady]) == 0.0
    # Ten records are judged, of which one is a spike; six times the median is one, five times is none.
    assert spike_fraction([[*steady[:15], 6.0, *steady[:4]]]) == 0.1
    assert spike_fraction([[*steady[:15], 5.0, *steady[:4]]]) == 0.0
    assert spike_fraction([[*steady[:15], 6.0, *steady[:4]]], factor=7.0) == 0.0
    # A spike does not hide the next, and a new level is none any more once half of the window has it.
    assert spike_fraction([[*steady[:10], 9.0, 9.0, 9.0]], window=10) == 1.0
    assert spike_fraction([[1, 1, 1, 9, 9, 9, 9]], window=3, warmup=3) == 0.5
    # What is not finite is one; what a series never has isn't.
    assert spike_fraction([[*steady[:19], math.nan]]) == 0.1
    assert spike_fraction([steady, [math.nan] * 20]) == 0.0
    # Either series counts, once a record.
    assert spike_fraction([[*steady[:19], 9.0], [*steady[:18], 9.0, 9.0]]) == 0.2
    assert spike_fraction([steady[:10]]) is None
    assert spike_fraction([[]]) is None
    assert spike_fraction([]) is None
    for wrong in ({"warmup": 0}, {"warmup": 51}, {"factor": -1.0}):
        with pytest.raises(ValueError, match="must lie between"):
            spike_fraction([steady], **wrong)


@quick
@given(st.lists(st.integers(0, 50).map(float), max_size=40), st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_spikes_are_those_of_a_loop(values, window, warmup, factor):
    warmup = min(warmup, window)
    judged = [t for t in range(len(values)) if min(t, window) >= warmup]
    spikes = [t for t in judged if values[t] > factor * np.median(values[max(0, t - window) : t])]
    expected = len(spikes) / len(judged) if judged else None
    assert spike_fraction([values], factor=factor, window=window, warmup=warmup) == expected


def test_many_records_are_judged_in_pieces():
    values = np.ones(10_000)
    values[[5000, 9999]] = 100.0
    assert spike_fraction([values]) == pytest.approx(2 / 9990)


# ---- of several curves


def test_curves_are_summarised_where_every_seed_has_data():
    a = ([0.0, 10.0, 20.0], [0.0, 10.0, 20.0])
    b = ([5.0, 15.0, 25.0], [5.0, 5.0, 5.0])
    summary = summarize_curves([a, b])
    np.testing.assert_array_equal(summary.x, [5.0, 10.0, 15.0, 20.0])
    np.testing.assert_array_equal(summary.values, [[5.0, 10.0, 15.0, 20.0], [5.0] * 4])
    np.testing.assert_array_equal(summary.mean, [5.0, 7.5, 10.0, 12.5])
    np.testing.assert_array_equal(summary.iqm, summary.mean)
    np.testing.assert_array_equal(summary.low, [5.0] * 4)
    np.testing.assert_array_equal(summary.high, [5.0, 10.0, 15.0, 20.0])
    assert summarize_curves([a, ([30.0], [1.0])]) is None
    assert summarize_curves([]) is None


def test_one_seed_has_no_band():
    summary = summarize_curves([([1.0, 2.0], [3.0, 4.0])])
    for line in (summary.mean, summary.iqm, summary.low, summary.high, summary.values[0]):
        np.testing.assert_array_equal(line, [3.0, 4.0])
    single = summarize_curves([([1.0], [3.0]), ([1.0], [5.0])])
    assert (single.x.tolist(), single.mean.tolist()) == ([1.0], [4.0])


def test_many_points_become_a_grid():
    x = np.arange(1000.0)
    summary = summarize_curves([(x, 2 * x), (x, 3 * x)], points=50)
    np.testing.assert_allclose(summary.x, np.linspace(0, 999, 50))
    np.testing.assert_allclose(summary.mean, 2.5 * summary.x)


@quick
@given(st.lists(curves, min_size=1, max_size=5))
def test_a_summary_lies_between_its_seeds(members):
    summary = summarize_curves(members, resamples=20)
    start, end = max(x[0] for x, _ in members), min(x[-1] for x, _ in members)
    assert (summary is None) == (start > end)
    if summary is None:
        return
    assert summary.x[0] == start
    assert summary.x[-1] == end
    low, high = summary.values.min(axis=0) - 1e-9, summary.values.max(axis=0) + 1e-9
    for line in (summary.mean, summary.iqm, summary.low, summary.high):
        assert ((low <= line) & (line <= high)).all()
    assert (summary.low <= summary.high).all()
    for (x, values), row in zip(members, summary.values, strict=True):
        np.testing.assert_allclose(row, np.interp(summary.x, x, values))


def test_the_bands_are_those_of_single_points():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(6, 4))
    summary = summarize_curves([(np.arange(4.0), row) for row in values])
    for point in range(4):
        ends = stratified_bootstrap_interval([values[:, point]])
        assert (summary.low[point], summary.high[point]) == pytest.approx(ends)
