"""Statistics of returns over episodes, seeds and tasks, and of learning curves; numpy alone.

Scores of several tasks come as *strata*: a sequence with one array a task, which holds one score a run. Tasks may have
different numbers of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from azjax.config import require, require_number

Strata = Sequence[ArrayLike]
SPIKE_FACTOR = 5.0
SPIKE_WINDOW = 50
_ROWS = 4096  # windows whose medians are taken at once


# ---- over runs and tasks


def interquartile_mean(values: ArrayLike, axis: int | None = None) -> Any:
    """Mean of the middle half of the values, split values weighted.

    With the values in ascending order ``x_0 ... x_{n-1}`` and ``w_i`` the part of ``[i/n, (i+1)/n]`` inside
    ``[1/4, 3/4]``, ``IQM = sum_i w_i x_i / sum_i w_i``. Source: Agarwal et al., 2021, arXiv 2108.13264, section 4.3.

    Args:
      values: at least one value.
      axis: the axis to reduce; all of them if ``None``.

    Returns:
      A float if ``axis`` is ``None``, else an array without that axis.

    Raises:
      ValueError: if there are no values.

    Examples:
      >>> interquartile_mean([0.0, 1.0, 3.0, 100.0])
      2.0
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=axis)
    if axis is not None:
        ordered = np.moveaxis(ordered, axis, -1)
    n = ordered.shape[-1]
    require(n > 0, "the interquartile mean of no values is not defined")
    # Value i covers the quantiles [i/n, (i+1)/n]; its weight is the part of that inside [1/4, 3/4].
    edges = np.arange(n + 1) / n
    weights = np.clip(edges[1:], 0.25, 0.75) - np.clip(edges[:-1], 0.25, 0.75)
    mean = (weights * ordered).sum(axis=-1) / weights.sum()
    return float(mean) if axis is None else mean


def stratified_bootstrap_interval(
    scores: Strata,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of all scores, resampled within each task.

    Each resample draws, for every task ``m``, its ``N_m`` runs with replacement from that task's runs alone, joins the
    tasks' scores and takes the statistic; the interval holds the middle ``confidence`` of those values. Source: Agarwal
    et al., 2021, arXiv 2108.13264, section 4.1, where the strata are the tasks; Efron & Tibshirani, 1993, chapter 13.

    Args:
      scores: one array a task, ``[runs of that task]``.
      statistic: from the joined scores ``[runs of all tasks]`` to a number.
      confidence: the interval's.
      resamples: how many to draw.
      seed: of the draws; the same seed gives the same interval.

    Returns:
      The interval's ends. Of a single run a task it has no width, which says nothing about other seeds.

    Raises:
      ValueError: if a task has no runs, or a score is not finite.
    """
    strata = _strata(scores)
    generator = np.random.default_rng(seed)
    draws = [statistic(np.concatenate(_resampled(strata, generator))) for _ in range(resamples)]
    low, high = _middle(draws, confidence)
    return float(low), float(high)


def probability_of_improvement(x: Strata, y: Strata) -> float:
    """How likely a run of X is to score higher than a run of Y on the same task, averaged over tasks.

    ``P(X > Y) = 1/M sum_m 1/(N_m K_m) sum_i sum_j S(x_mi, y_mj)`` with ``S`` 1 where ``x > y``, 1/2 where they are
    equal and 0 else: the Mann-Whitney statistic of each task. Source: Agarwal et al., 2021, arXiv 2108.13264, section
    4.3.

    Args:
      x: one array a task, ``[N_m]``.
      y: one array a task, ``[K_m]``, of the same tasks in the same order.

    Raises:
      ValueError: if the tasks don't pair up, a task has no runs, or a score is not finite.

    Examples:
      >>> probability_of_improvement([[2.0, 3.0]], [[1.0, 2.0]])  # 2 > 1, 2 = 2, 3 > 1, 3 > 2
      0.875
    """
    return _improvement(*_paired(x, y))


def probability_of_improvement_interval(
    x: Strata, y: Strata, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Stratified percentile bootstrap interval of ``probability_of_improvement``.

    X and Y are resampled independently, each within every task. Source: Agarwal et al., 2021, arXiv 2108.13264,
    sections 4.1 and 4.3. The arguments are those of ``probability_of_improvement`` and
    ``stratified_bootstrap_interval``.
    """
    left, right = _paired(x, y)
    generator = np.random.default_rng(seed)
    draws = [_improvement(_resampled(left, generator), _resampled(right, generator)) for _ in range(resamples)]
    low, high = _middle(draws, confidence)
    return float(low), float(high)


def _strata(scores: Strata) -> list[np.ndarray]:
    strata = [np.asarray(values, np.float64).reshape(-1) for values in scores]
    require(bool(strata) and all(values.size > 0 for values in strata), "every task needs at least one score")
    require(all(bool(np.isfinite(values).all()) for values in strata), "a score is not finite; leave that run out")
    return strata


def _paired(x: Strata, y: Strata) -> tuple[list[np.ndarray], list[np.ndarray]]:
    left, right = _strata(x), _strata(y)
    require(len(left) == len(right), f"X has {len(left)} tasks and Y has {len(right)}; give both the same tasks")
    return left, right


def _resampled(strata: list[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    return [generator.choice(values, len(values)) for values in strata]


def _improvement(x: list[np.ndarray], y: list[np.ndarray]) -> float:
    pairs = (np.sign(np.subtract.outer(a, b)) for a, b in zip(x, y, strict=True))
    return float(np.mean([0.5 + 0.5 * signs.mean() for signs in pairs]))


def _middle(draws: ArrayLike, confidence: float) -> tuple[Any, Any]:
    """Both ends of the middle part of the draws, along their first axis."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.asarray(draws, np.float64), [tail, 100.0 - tail], axis=0)
    return low, high


# ---- of one learning curve


class Drawdown(NamedTuple):
    """The largest fall of a curve from its running maximum."""

    absolute: float  # in the unit of the return
    relative: float  # of the curve's range, largest minus smallest value: 0 never fell, 1 fell over all of it


def worst_drawdown(returns: ArrayLike) -> Drawdown:
    """Largest fall of an evaluation curve below what it had reached before.

    ``D = max_t (max_{s <= t} R_s - R_t)``, and ``D / (max R - min R)``: relative to the range instead of the peak,
    since returns may be negative. Drawdown as a measure of stability: Chan et al., 2020, "Measuring the reliability of
    reinforcement learning algorithms", arXiv 1912.05663.

    Args:
      returns: ``[T]``, at least one.

    Examples:
      >>> worst_drawdown([0.0, 8.0, 6.0, 10.0, 9.0])
      Drawdown(absolute=2.0, relative=0.2)
    """
    values = np.asarray(returns, np.float64)
    require(values.size > 0, "the drawdown of an empty curve is not defined")
    absolute = float((np.maximum.accumulate(values) - values).max())
    spread = float(values.max() - values.min())
    return Drawdown(absolute, absolute / spread if spread > 0.0 else 0.0)


def steps_to_thresholds(x: ArrayLike, returns: ArrayLike, thresholds: Sequence[float]) -> list[float | None]:
    """Where a curve first reaches each threshold, linearly interpolated between its points.

    For the first ``t`` with ``R_t >= c``: ``x_{t-1} + (c - R_{t-1}) / (R_t - R_{t-1}) (x_t - x_{t-1})``, or ``x_0`` if
    the curve starts there. Known as time to threshold: Taylor & Stone, 2009, "Transfer learning for reinforcement
    learning domains: a survey", JMLR 10.

    Args:
      x: environment steps, or seconds, ``[T]``, strictly increasing.
      returns: ``[T]``.
      thresholds: returns to reach.

    Returns:
      One entry a threshold, in the unit of ``x``; ``None`` where the curve never gets there.

    Examples:
      >>> steps_to_thresholds([0, 100, 200], [0.0, 10.0, 5.0], [5.0, 10.0, 11.0])
      [50.0, 100.0, None]
    """
    at, values = _curve(x, returns)
    found: list[float | None] = []
    for threshold in thresholds:
        reached = np.flatnonzero(values >= threshold)
        if reached.size == 0:
            found.append(None)
            continue
        t = int(reached[0])
        part = 1.0 if t == 0 else (threshold - values[t - 1]) / (values[t] - values[t - 1])
        found.append(float(at[t] if t == 0 else at[t - 1] + part * (at[t] - at[t - 1])))
    return found


class Crossings(NamedTuple):
    """When the seeds of a configuration reached a threshold."""

    reached: int  # how many did
    runs: int  # of how many
    median: float | None  # Kaplan-Meier; None where not more than half are known to get there


def summarize_crossings(crossings: Sequence[float | None], ends: Sequence[float]) -> Crossings:
    """Median time to a threshold over seeds of which some never reached it.

    A seed without a crossing is *censored* at its end: it took longer than that. With ``d_i`` seeds crossing at ``t_i``
    of the ``n_i`` that neither crossed nor ended before, ``S(t) = prod_{t_i <= t} (1 - d_i / n_i)`` estimates the share
    that has not crossed by ``t``, and the median is where ``S`` falls below 1/2 (the midpoint, if it rests exactly at
    1/2 in between). Leaving those seeds out, or counting their end as a crossing, would make a configuration look
    faster the more seeds fail. Source: Kaplan & Meier, 1958, "Nonparametric estimation from incomplete observations".

    Args:
      crossings: one a seed, as of ``steps_to_thresholds``.
      ends: where each seed's curve ends, in the same unit.

    Examples:
      >>> summarize_crossings([10.0, None, 30.0], [50.0, 50.0, 50.0])
      Crossings(reached=2, runs=3, median=30.0)
      >>> summarize_crossings([10.0, None], [50.0, 50.0])
      Crossings(reached=1, runs=2, median=None)
    """
    reached = np.array([time for time in crossings if time is not None], np.float64)
    lasted = np.array([end if time is None else time for time, end in zip(crossings, ends, strict=True)], np.float64)
    share, rests_since = 1.0, None
    median: float | None = None
    for time in np.unique(reached):
        at_risk = int((lasted >= time).sum())
        share *= 1.0 - int((reached == time).sum()) / at_risk
        if share < 0.5 - 1e-12:
            median = float(time if rests_since is None else (rests_since + time) / 2.0)
            break
        if share <= 0.5 + 1e-12:
            rests_since = time
    return Crossings(len(reached), len(lasted), median)


def area_under_curve(
    x: ArrayLike, returns: ArrayLike, *, start: float | None = None, end: float | None = None
) -> float:
    """Mean height of a curve: its area by the trapezoid rule over its span, so that it has the unit of a return.

    ``A = 1/(x_T - x_0) sum_t (x_{t+1} - x_t) (R_t + R_{t+1}) / 2``. Known as total reward when not divided: Taylor &
    Stone, 2009, JMLR 10.

    Args:
      x: environment steps, ``[T]``, strictly increasing.
      returns: ``[T]``.
      start: where to begin, inside the curve; default its first point. Curves are comparable over one span alone.
      end: where to stop, inside the curve; default its last point.

    Raises:
      ValueError: if the span is empty or reaches beyond the curve.

    Examples:
      >>> area_under_curve([0, 10, 30], [0.0, 2.0, 4.0])
      2.3333
    """
    at, values = _curve(x, returns)
    first, last = float(at[0] if start is None else start), float(at[-1] if end is None else end)
    require(at[0] <= first < last <= at[-1], f"the span {first:g} to {last:g} is empty or goes beyond the curve")
    inside = at[(at > first) & (at < last)]
    edges = np.concatenate([[first], inside, [last]])
    return float(np.trapezoid(np.interp(edges, at, values), edges) / (last - first))


def spike_fraction(
    series: Sequence[ArrayLike], *, factor: float = SPIKE_FACTOR, window: int = SPIKE_WINDOW, warmup: int = 10
) -> float | None:
    """Fraction of records in which any of several diagnostics jumps far above what it has been lately.

    Record ``t`` is a spike of series ``x`` if ``x_t > factor * median(x_{t-window} ... x_{t-1})``, or if ``x_t`` is not
    finite. Medians, because one spike must not hide the next; multiples of them, because KL and value loss differ by
    orders of magnitude between tasks. The factor is azjax's convention; no paper fixes one.

    Args:
      series: diagnostics that aren't negative, e.g. KL and value loss, ``[T]`` each; NaN where a record has none.
      factor: how many times the median is a spike.
      window: how many records the median looks back over.
      warmup: how many finite records it takes; a record with fewer before it is not counted in that series.

    Returns:
      Spikes per counted record; ``None`` if no record has enough others before it.

    Examples:
      >>> spike_fraction([[1, 1, 1, 9, 1]], factor=5, window=3, warmup=1)
      0.25
    """
    require_number("factor", factor, 0.0)
    require_number("warmup", warmup, 1, window)
    pairs = [_spikes(np.asarray(values, np.float64), factor, window, warmup) for values in series]
    if not pairs:
        return None
    counted = np.any([judged for judged, _ in pairs], axis=0)
    spikes = np.any([spike for _, spike in pairs], axis=0)
    return float(spikes.sum() / counted.sum()) if counted.any() else None


def _spikes(values: np.ndarray, factor: float, window: int, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    """Which records can be judged, and which of those are spikes."""
    known = np.where(np.isfinite(values), values, np.nan)
    before = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(window, np.nan), known]), window)[:-1]
    judged, spikes = np.zeros(len(values), bool), np.zeros(len(values), bool)
    for start in range(0, len(values), _ROWS):
        rows = start + np.flatnonzero(np.isfinite(before[start : start + _ROWS]).sum(axis=1) >= warmup)
        judged[rows] = True
        limits = factor * np.nanmedian(before[rows], axis=1) if rows.size else np.zeros(0)
        spikes[rows] = ~(known[rows] <= limits)
    return judged, spikes


# ---- of the curves of several seeds


class CurveSummary(NamedTuple):
    """Curves of several seeds on one grid; the last three are pointwise over seeds."""

    x: np.ndarray  # [G] environment steps, or seconds
    values: np.ndarray  # [S, G] each seed's curve
    mean: np.ndarray  # [G]
    iqm: np.ndarray  # [G]
    low: np.ndarray  # [G] bootstrap interval of the IQM; the IQM itself where there is one seed
    high: np.ndarray  # [G]


def summarize_curves(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    points: int = 200,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> CurveSummary | None:
    """Mean, IQM and bootstrap interval of several seeds' curves, only where every seed has data.

    Between its points a curve is interpolated linearly. The grid holds every point of every curve in the common range,
    or ``points`` equally spaced ones if that is fewer. The intervals are percentile bootstrap intervals over seeds
    (Agarwal et al., 2021, arXiv 2108.13264, section 4.1), pointwise: 95 % of them cover at each x, not all at once.

    Args:
      curves: ``(x [T], values [T])`` of each seed; x strictly increasing.
      points: the most points of the grid.
      confidence: the interval's.
      resamples: how many to draw.
      seed: of the draws.

    Returns:
      The summary, or ``None`` if there is no x at which all seeds have data.
    """
    checked = [_curve(x, values) for x, values in curves]
    if not checked:
        return None
    start, end = max(x[0] for x, _ in checked), min(x[-1] for x, _ in checked)
    if start > end:
        return None
    grid = np.unique(np.concatenate([x for x, _ in checked]))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > points:
        grid = np.linspace(start, end, points)
    values = np.stack([np.interp(grid, x, y) for x, y in checked])
    iqm = interquartile_mean(values, axis=0)
    low = high = iqm
    if len(values) > 1:
        generator = np.random.default_rng(seed)
        picks = (generator.integers(0, len(values), len(values)) for _ in range(resamples))
        low, high = _middle([interquartile_mean(values[pick], axis=0) for pick in picks], confidence)
    return CurveSummary(grid, values, values.mean(axis=0), iqm, low, high)


def _curve(x: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    at, heights = np.asarray(x, np.float64), np.asarray(values, np.float64)
    require(at.ndim == 1 and at.shape == heights.shape, f"a curve's x has shape {at.shape}, its values {heights.shape}")
    require(at.size > 0, "a curve needs at least one point")
    require(bool((np.diff(at) > 0.0).all()) and math.isfinite(at[0]), "a curve's x must be strictly increasing")
    return at, heights
