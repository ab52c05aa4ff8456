"""The figures of a comparison as tables of text, which the report and the command line both show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from azjax.runs.comparison import Aggregate, Comparison, Estimate, Figures, TaskResult
from azjax.runs.groups import differing, shown
from azjax.runs.results import Plain, Run
from azjax.statistics import SPIKE_FACTOR, SPIKE_WINDOW, Crossings

NONE = "–"
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, the others hold numbers."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    marked: frozenset[tuple[int, int]] = frozenset()  # cells (row, column) that stand out


def task_tables(result: TaskResult) -> list[Table]:
    """Final return, stability and sample efficiency of the configurations on one task."""
    return [_final_return(result), _stability(result), _efficiency(result)]


def aggregate_table(comparison: Comparison) -> Table:
    """The configurations that were run on every task, in normalised returns."""
    note = (
        f"Final returns over {len(comparison.tasks)} environments, normalised by min-max over the runs shown: 0 is the "
        "lowest evaluation of any run shown on that environment, 1 the highest. Other runs beside them change the "
        "numbers. "
    )
    rows = (
        (a.label, str(a.runs), f"{a.mean:.3f}", f"{a.iqm.value:.3f}", interval(a.iqm, ".3f"), *_improvement(a))
        for a in comparison.aggregates
    )
    first = comparison.aggregates[0].label
    return _with_improvement("All environments", note, ("configuration", "runs", "mean"), rows, first)


def run_table(comparison: Comparison) -> Table:
    """One row a run."""
    return Table(
        "Runs",
        "Seconds are those of training, without compilation and evaluation.",
        ("run", "environment", "configuration", "seed", "state", "steps", "seconds", "steps/s", "final return"),
        tuple(
            (
                run.name,
                result.task.name,
                group.label,
                str(run.seed),
                "finished" if run.finished else "unfinished",
                compact(run.env_steps),
                number(run.seconds),
                compact(run.env_steps / run.seconds) if run.seconds > 0.0 else NONE,
                number(run.final_return),
            )
            for result in comparison.tasks
            for group in result.task.groups
            for run in group.runs
        ),
    )


def option_table(result: TaskResult) -> Table:
    """The options in which the configurations on a task differ."""
    groups = result.task.groups
    names = differing([group.options for group in groups])
    return Table(
        "Differences between the configurations",
        "Options not listed are equal.",
        ("option", *(group.label for group in groups)),
        tuple((name, *(_option(group.options, name) for group in groups)) for name in names),
    )


def common_options(result: TaskResult) -> list[tuple[str, str]]:
    """The options in which they don't differ."""
    groups = result.task.groups
    different = set(differing([group.options for group in groups]))
    return [(name, shown(value)) for name, value in groups[0].options.items() if name not in different]


def machine_table(runs: Sequence[Run]) -> tuple[Table, list[tuple[str, str]]]:
    """Versions and devices: where runs differ, with what is not the most frequent value marked; and what is common."""
    facts = [
        {name: shown(value) for name, value in {**run.devices, **run.versions}.items()} for run in runs if run.finished
    ]
    named = [run.name for run in runs if run.finished]
    names = dict.fromkeys(name for fact in facts for name in fact)
    columns = {name: [fact.get(name, NONE) for fact in facts] for name in names}
    different = {name: values for name, values in columns.items() if len(set(values)) > 1}
    usual = {name: max(dict.fromkeys(values), key=values.count) for name, values in different.items()}
    table = Table(
        "Different versions and devices",
        "Values other than the most frequent one are marked. Unfinished runs have not written theirs yet.",
        ("run", *different),
        tuple((name, *(values[n] for values in different.values())) for n, name in enumerate(named)),
        frozenset(
            (n, column)
            for column, (name, values) in enumerate(different.items(), start=1)
            for n, value in enumerate(values)
            if value != usual[name]
        ),
    )
    return table, [(name, values[0]) for name, values in columns.items() if name not in different]


# ---- the three tables of a task


def _final_return(result: TaskResult) -> Table:
    rows = (
        (
            f.label,
            str(len(f.seeds)) + ("" if f.finished or not f.seeds else " unfinished"),
            number(f.mean),
            number(f.std),
            number(f.iqm.value if f.iqm else None),
            interval(f.iqm),
            *_improvement(f),
        )
        for f in result.figures
    )
    note = "Mean return of each seed's last evaluation, over seeds. "
    return _with_improvement("Final return", note, ("configuration", "seeds", "mean", "std"), rows, result.first)


def _with_improvement(title: str, note: str, columns: tuple[str, ...], rows: Iterable[Row], first: str) -> Table:
    """A table whose last columns are IQM and P(better); the latter left out where there is nothing to compare."""
    kept = tuple(rows)
    columns += ("IQM", "95 % interval")
    note += "IQM: mean of the middle half. "
    if len(kept) > 1:
        note += f"P(better): probability that a run scores higher than one of the first configuration, {first}. "
        columns += ("P(better)", "95 % interval")
    note += "Bootstrap intervals over seeds; with fewer than about five seeds they are too narrow."
    return Table(title, note, columns, tuple(row[: len(columns)] for row in kept))


def _stability(result: TaskResult) -> Table:
    return Table(
        "Stability",
        "Spread of the final return across seeds. Drawdown: largest fall of a seed's evaluation curve from its "
        "running maximum, and that as a part of the curve's range. Spikes: lines of metrics.jsonl "
        f"whose KL or value loss is above {SPIKE_FACTOR:g} times the median of the {SPIKE_WINDOW} lines before.",
        ("configuration", "std", "lowest seed", "highest seed", "drawdown, mean", "drawdown, worst", "spikes"),
        tuple(
            (
                f.label,
                number(f.std),
                number(min(f.returns, default=None)),
                number(max(f.returns, default=None)),
                _fall(f, np.mean),
                _fall(f, np.max),
                NONE if f.spikes is None else f"{100.0 * f.spikes:.1f} %",
            )
            for f in result.figures
        ),
    )


def _efficiency(result: TaskResult) -> Table:
    span = f"from {compact(result.span[0])} to {compact(result.span[1])}" if result.span else "all runs have in common"
    return Table(
        "Sample efficiency",
        f"Area under the evaluation curve: its mean height over the environment steps {span}. Then environment steps "
        "and seconds of training until the evaluation return first reaches a threshold: the median over seeds, in "
        "which a seed that never did counts as one that would have taken longer.",
        ("configuration", "area", *(f"return ≥ {threshold:,.6g}" for threshold in result.thresholds)),
        tuple(
            (
                f.label,
                number(f.area),
                *(_reached(steps, seconds) for steps, seconds in zip(f.steps_to, f.seconds_to, strict=True)),
            )
            for f in result.figures
        ),
    )


def _improvement(figures: Figures | Aggregate) -> tuple[str, str]:
    p = figures.improvement
    return (NONE if p is None else f"{p.value:.2f}", interval(p, ".2f"))


def _fall(figures: Figures, over: Callable[[Any], float]) -> str:
    if not figures.drawdowns:
        return NONE
    return f"{number(over(figures.drawdowns))} ({100.0 * over(figures.relative_drawdowns):.0f} %)"


def _reached(steps: Crossings, seconds: Crossings) -> str:
    if steps.runs == 0:
        return NONE
    if steps.reached == 0:
        return "never"
    count = "" if steps.reached == steps.runs else f"{steps.reached} of {steps.runs} seeds"
    if steps.median is None:
        return count
    when = f"{compact(steps.median)} · {NONE if seconds.median is None else number(seconds.median)} s"
    return f"{when} ({count})" if count else when


# ---- numbers


def number(value: float | None) -> str:
    """A return, or seconds: three to four digits that matter."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000.0 else f"{value:.1f}" if size >= 10.0 else f"{value:.3g}"


def compact(value: float) -> str:
    """Environment steps with three digits and k, M or G."""
    size = abs(value)
    for least, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= least:
            return f"{value / least:.3g}{suffix}" if size < 999.5 * least else f"{value / least:.0f}{suffix}"
    return f"{value:.3g}"


def interval(estimate: Estimate | None, form: str | None = None) -> str:
    """Both ends of an interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return NONE
    ends: Iterable[float] = (estimate.low, estimate.high)
    return " to ".join(number(end) if form is None else format(end, form) for end in ends)


def _option(options: Mapping[str, Plain], name: str) -> str:
    return shown(options[name]) if name in options else NONE
