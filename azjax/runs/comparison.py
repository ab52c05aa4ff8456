"""The figures by which configurations are compared: final return, stability, sample efficiency.

Reports and the command line show these numbers and make none of their own. What each of them means is in
``azjax.statistics`` and docs/reports.md.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from azjax import statistics
from azjax.config import require
from azjax.runs.groups import Group, Task, group_runs
from azjax.runs.results import Curve, Run, find_runs, read_run
from azjax.statistics import Crossings

# Parts of the way from the lowest to the highest evaluation shown.
_PARTS = (0.25, 0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over seeds; of a single seed a task there is none."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Figures:
    """A configuration on one task. ``None``: it can't be said. Lists have one entry a seed, or a threshold."""

    label: str
    runs: tuple[str, ...]  # those that count
    seeds: tuple[int, ...]
    finished: bool
    returns: tuple[float, ...]  # final, of each seed
    mean: float | None
    std: float | None  # over seeds, with n - 1
    iqm: Estimate | None
    improvement: Estimate | None  # P(this > first configuration)
    drawdowns: tuple[float, ...]  # worst fall of each seed's evaluation curve, in the unit of the return
    relative_drawdowns: tuple[float, ...]  # of the curve's range
    spikes: float | None  # fraction of records with a spike of KL or value loss, mean over seeds
    area: float | None  # under the evaluation curve, mean over seeds
    steps_to: tuple[Crossings, ...]
    seconds_to: tuple[Crossings, ...]


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """All configurations on one task."""

    task: Task
    thresholds: tuple[float, ...]  # returns
    span: tuple[float, float] | None  # environment steps over which areas are taken; None if there is no common one
    first: str  # the configuration that others are compared to: the first one with a final return
    figures: tuple[Figures, ...]  # in the order of the task's groups


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """A configuration over all tasks, in returns normalised to [0, 1] by the evaluations shown of each task."""

    label: str
    runs: int
    mean: float
    iqm: Estimate
    improvement: Estimate | None  # P(this > first configuration), averaged over tasks


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything about some runs."""

    runs: tuple[Run, ...]
    tasks: tuple[TaskResult, ...]
    aggregates: tuple[Aggregate, ...]  # empty for one task, or if no configuration was run on all
    warnings: tuple[str, ...]  # what a reader should know about the runs
    passed_over: tuple[str, ...]  # paths given that are no folders


def compare_folders(paths: Sequence[str | os.PathLike[str]], thresholds: Sequence[float] = ()) -> Comparison:
    """Reads run folders, or folders that hold some, and compares the runs.

    Args:
      paths: what to read; see ``azjax.runs.results.find_runs``. The first configuration is what others are compared to.
      thresholds: returns to time the way to; default some between the lowest and the highest evaluation of a task.

    Raises:
      ConfigError: if a folder is missing, no run, or malformed.
    """
    require(bool(np.isfinite(thresholds).all()), f"thresholds are {list(thresholds)}; they must be finite returns")
    folders, passed_over = find_runs([Path(path) for path in paths])
    runs = tuple(read_run(folder) for folder in folders)
    tasks = group_runs(runs)
    results = tuple(_compare(task, thresholds) for task in tasks)
    warnings = [text for run in runs for text in run.warnings]
    warnings += [text for task in tasks for group in task.groups for text in _doubts(task, group)]
    return Comparison(runs, results, _aggregates(tasks), tuple(warnings), tuple(passed_over))


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """The numbers as plain data for JSON."""
    return {
        "tasks": [
            {
                "env": result.task.env,
                "backend": result.task.backend,
                "thresholds": list(result.thresholds),
                "area_span": result.span,
                "first": result.first,
                "configurations": [
                    {
                        **dataclasses.asdict(figures),
                        "steps_to": [crossings._asdict() for crossings in figures.steps_to],
                        "seconds_to": [crossings._asdict() for crossings in figures.seconds_to],
                    }
                    for figures in result.figures
                ],
            }
            for result in comparison.tasks
        ],
        "all_tasks": [dataclasses.asdict(aggregate) for aggregate in comparison.aggregates],
        "warnings": list(comparison.warnings),
    }


def _doubts(task: Task, group: Group) -> list[str]:
    """What a reader of the group's figures should know."""
    counted = group.counted
    warnings = []
    for run in group.runs:
        if run in counted:
            continue
        reason = "it has no evaluation" if run.final_return is None else "it is unfinished"
        warnings.append(f"{run.name} is left out of the figures: {reason}")
    seeds = [run.seed for run in counted]
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        warnings.append(
            f"{task.name}, {group.label}: more than one run of seed {', '.join(map(str, repeated))}; they are not "
            "independent, and intervals come out too narrow"
        )
    if counted and not counted[0].finished:
        warnings.append(f"{task.name}, {group.label}: no run is finished; the figures are those so far")
    return warnings


# ---- one task


def _compare(task: Task, thresholds: Sequence[float]) -> TaskResult:
    counted = [run for group in task.groups for run in group.counted]
    low, high = evaluation_range(counted)
    spread = [_rounded(low + part * (high - low), high - low) for part in _PARTS]
    chosen = tuple(thresholds) or tuple(dict.fromkeys(spread))  # all alike where there was one evaluation
    span = _common_span([run.evaluation for run in counted])
    first = next((group for group in task.groups if group.counted), task.groups[0])
    figures = (_figures(group, chosen, span, _returns(first) if group is not first else []) for group in task.groups)
    return TaskResult(task, chosen, span, first.label, tuple(figures))


def _figures(
    group: Group, thresholds: Sequence[float], span: tuple[float, float] | None, first: Sequence[float]
) -> Figures:
    runs, returns = group.counted, _returns(group)
    curves = [run.evaluation for run in runs if run.evaluation.values.size]
    drawdowns = [statistics.worst_drawdown(curve.values) for curve in curves]
    areas = [_area(curve, span) for curve in curves] if span else []
    return Figures(
        label=group.label,
        runs=tuple(run.name for run in runs),
        seeds=tuple(run.seed for run in runs),
        finished=bool(runs) and runs[0].finished,
        returns=tuple(returns),
        mean=float(np.mean(returns)) if returns else None,
        std=float(np.std(returns, ddof=1)) if len(returns) > 1 else None,
        iqm=estimate_iqm([returns]) if returns else None,
        improvement=estimate_improvement([returns], [first]) if returns and first else None,
        drawdowns=tuple(fall.absolute for fall in drawdowns),
        relative_drawdowns=tuple(fall.relative for fall in drawdowns),
        spikes=_mean([statistics.spike_fraction([run.kl, run.value_loss]) for run in runs]),
        area=_mean(areas),
        steps_to=_crossings(curves, thresholds, lambda curve: curve.env_steps),
        seconds_to=_crossings(curves, thresholds, lambda curve: curve.seconds),
    )


def estimate_iqm(scores: Sequence[Sequence[float]]) -> Estimate:
    """The IQM of all scores with its stratified bootstrap interval; one entry a task."""
    iqm = statistics.interquartile_mean(np.concatenate([np.asarray(values) for values in scores]))
    if max(map(len, scores)) < 2:
        return Estimate(iqm, None, None)
    return Estimate(iqm, *statistics.stratified_bootstrap_interval(scores))


def estimate_improvement(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> Estimate:
    """P(X > Y) with its stratified bootstrap interval; one entry a task."""
    value = statistics.probability_of_improvement(x, y)
    if min(max(map(len, x)), max(map(len, y))) < 2:
        return Estimate(value, None, None)
    return Estimate(value, *statistics.probability_of_improvement_interval(x, y))


def evaluation_range(runs: Sequence[Run]) -> tuple[float, float]:
    """Lowest and highest evaluation return of the runs, the final ones included; 0 and 0 if there are none."""
    values = [*_returns_of(runs), *(value for run in runs for value in run.evaluation.values)]
    return (float(min(values)), float(max(values))) if values else (0.0, 0.0)


def _returns(group: Group) -> list[float]:
    return _returns_of(group.counted)


def _returns_of(runs: Sequence[Run]) -> list[float]:
    return [run.final_return for run in runs if run.final_return is not None]


def _rounded(value: float, spread: float) -> float:
    """The value with as many digits as tell a hundredth of the spread."""
    if spread <= 0.0:
        return value
    return round(value, 2 - int(np.floor(np.log10(spread)))) + 0.0


def _common_span(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """The environment steps over which every curve has data."""
    if not curves or any(curve.env_steps.size == 0 for curve in curves):
        return None
    start, end = max(curve.env_steps[0] for curve in curves), min(curve.env_steps[-1] for curve in curves)
    return (float(start), float(end)) if start < end else None


def _area(curve: Curve, span: tuple[float, float]) -> float:
    return statistics.area_under_curve(curve.env_steps, curve.values, start=span[0], end=span[1])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _crossings(
    curves: Sequence[Curve], thresholds: Sequence[float], axis: Callable[[Curve], np.ndarray]
) -> tuple[Crossings, ...]:
    """For each threshold, when the seeds reached it."""
    times = [statistics.steps_to_thresholds(*increasing(axis(curve), curve.values), thresholds) for curve in curves]
    ends = [float(axis(curve)[-1]) for curve in curves]
    return tuple(statistics.summarize_crossings([row[n] for row in times], ends) for n in range(len(thresholds)))


def increasing(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with the last of the points that share an x: seconds are rounded, so several may."""
    kept = np.append(np.diff(x) > 0.0, True) if len(x) else np.zeros(0, bool)
    return x[kept], values[kept]


# ---- all tasks


def _aggregates(tasks: Sequence[Task]) -> tuple[Aggregate, ...]:
    """The configurations that were run on every task, if there are several tasks."""
    if len(tasks) < 2:
        return ()
    scores: dict[str, list[list[float]]] = {}
    for task in tasks:
        low, high = evaluation_range([run for group in task.groups for run in group.counted])
        for group in task.groups:
            if group.counted:
                scores.setdefault(group.label, []).append([_normalised(r, low, high) for r in _returns(group)])
    whole = {label: strata for label, strata in scores.items() if len(strata) == len(tasks)}
    found: list[Aggregate] = []
    for label, strata in whole.items():
        joined = [score for values in strata for score in values]
        first = next(iter(whole.values()))
        improvement = estimate_improvement(strata, first) if found else None
        found.append(Aggregate(label, len(joined), float(np.mean(joined)), estimate_iqm(strata), improvement))
    return tuple(found)


def _normalised(value: float, low: float, high: float) -> float:
    """0 for the lowest evaluation shown of a task, 1 for the highest; 1 if all are equal."""
    return (value - low) / (high - low) if high > low else 1.0
