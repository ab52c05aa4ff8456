"""Runs as one HTML page: curves, tables and replays, which opens anywhere and asks for nothing.

The page has no script of its own. Its Content-Security-Policy allows one style sheet and the replay viewer, both by
their digests, and no request at all. Run folders may come from a stranger: their text is escaped, and of a
``replay.html`` only the data are taken, which azjax's own viewer shows in a sandboxed frame.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from azjax.config import ConfigError
from azjax.runs import charts, markup, tables
from azjax.runs.charts import Series
from azjax.runs.comparison import Comparison, TaskResult, increasing
from azjax.runs.folder import write_text
from azjax.runs.groups import Group
from azjax.runs.markup import Html, element, join
from azjax.runs.reading import read_limited
from azjax.runs.replay import read_replay, replay_page, viewer_sources
from azjax.runs.results import REPLAY, Curve, Run
from azjax.runs.selfplay_options import types_of
from azjax.runs.selfplay_pictures import picture_section
from azjax.runs.tables import Table
from azjax.selfplay.bodies import task_family
from azjax.statistics import summarize_curves

_LARGEST_REPLAY = 1 << 24
_MARKED = ("evaluation return", "environment steps")  # the chart in which seeds share their points
_MOST_OPEN_REPLAYS = 8  # a browser keeps about 16 pages of 3D graphics alive


def write_report(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Writes the page, whole or not at all."""
    write_text(Path(path), report_page(comparison))


def report_page(comparison: Comparison, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page as text.

    Args:
      comparison: of the runs.
      pictures: more of them, PNG files by their titles.
    """
    script, viewer_style = viewer_sources()
    template = markup.asset("report.html")
    style = markup.source(markup.style_of(template))
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {script}; style-src {style} {viewer_style}"
    )
    body = join(*_parts(comparison, pictures or {}))
    names = ", ".join(result.task.name for result in comparison.tasks)
    return markup.fill(template, {"policy": policy, "title": join(f"azjax report: {names}"), "body": body})


def _parts(comparison: Comparison, pictures: Mapping[str, bytes]) -> Iterator[Html]:
    runs, tasks = comparison.runs, comparison.tasks
    counts = [_plural(len(runs), "run"), _plural(len(tasks), "environment")]
    counts.append(_plural(len({f.label for result in tasks for f in result.figures}), "configuration"))
    yield element(
        "header", element("h1", "Comparison of runs"), element("p", " · ".join(counts)), _contents(comparison)
    )
    if comparison.warnings:
        items = [element("li", text) for text in comparison.warnings]
        yield element("aside", element("h2", "To be kept in mind"), element("ul", *items))
    if comparison.aggregates:
        yield element("section", _table(tables.aggregate_table(comparison), heading="h2"), id="all")
    for number, result in enumerate(tasks):
        yield element("section", *_task(result, len(tasks)), id=f"task-{number}")
    for title, content in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        yield element("section", element("h2", title), element("img", alt=title, src=source))
    yield element("section", *_provenance(comparison), id="runs")


def _contents(comparison: Comparison) -> Html:
    links = [("all", "All environments")] if comparison.aggregates else []
    links += [(f"task-{number}", result.task.name) for number, result in enumerate(comparison.tasks)]
    links.append(("runs", "Runs, versions, devices"))
    return element("nav", *(element("a", text, href=f"#{target}") for target, text in links))


def _task(result: TaskResult, tasks: int) -> Iterator[Html]:
    groups = result.task.groups
    yield element("h2", result.task.name)
    yield element("ul", *(_legend(n, group) for n, group in enumerate(groups)), class_="legend")
    yield element("div", *_charts(groups), class_="charts")
    yield element(
        "p",
        "Lines: interquartile mean over the seeds, where all of them have data. Bands: 95 % bootstrap interval over "
        "seeds, at each point. Thin lines: single seeds.",
        class_="note",
    )
    for table in tables.task_tables(result):
        yield _table(table, swatches=True)
    if len(groups) > 1:
        yield _table(tables.option_table(result))
    common = "Configuration" if len(groups) == 1 else "What the configurations have in common"
    yield _folded(common, tables.common_options(result))
    yield from _task_spaces(groups)
    yield element("h3", "Replays")
    shown = "The first episode of the last evaluation of each configuration's best seed."
    if any(run.selfplay for group in groups for run in group.runs):
        shown = "Hardest solved tasks of each configuration's best seed, a type each: their neighbours succeed least."
    yield element("p", shown, class_="note")
    yield _replays(result, opened=tasks * len(groups) <= _MOST_OPEN_REPLAYS)


def _task_spaces(groups: Sequence[Group]) -> Iterator[Html]:
    """Heat maps and curves of each configuration of self-play, of its best seed."""
    for index, group in enumerate(groups):
        runs = [run for run in _best_first(group) if run.selfplay]
        if not runs:
            continue
        yield element("h3", charts.swatch(index), f"Task space of {group.label}, seed {runs[0].seed}")
        try:
            family = task_family(str(runs[0].options["env"]), types_of(str(runs[0].options.get("tasks", ""))))
        except ConfigError as error:
            yield element("p", f"Its tasks are unknown: {error}.", class_="note")
            continue
        yield picture_section(runs[0].folder, runs[0].records, family)


def _best_first(group: Group) -> list[Run]:
    return sorted(group.counted, key=lambda run: -(run.final_return or 0.0))


def _replay_files(run: Run) -> list[Path]:
    """Its replays: one, or for self-play one of each type of task."""
    found = sorted(run.folder.glob("replay-*.html"))[:_MOST_OPEN_REPLAYS] if run.selfplay else [run.folder / REPLAY]
    return [path for path in found if path.exists()]


def _provenance(comparison: Comparison) -> Iterator[Html]:
    yield _table(tables.run_table(comparison), heading="h2")
    different, common = tables.machine_table(comparison.runs)
    if len(different.columns) > 1:
        yield _table(different)
    yield _folded("Versions and devices that all finished runs have in common", common)


# ---- pieces


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _legend(index: int, group: Group) -> Html:
    count = _plural(len(group.counted), "seed")
    return element("li", charts.swatch(index), element("span", group.label), element("small", count))


def _charts(groups: Sequence[Group]) -> Iterator[Html]:
    """Evaluation and training return, each against environment steps and seconds."""
    curves: list[tuple[str, Callable[[Run], Curve]]] = [
        ("evaluation return", lambda run: run.evaluation),
        ("training return", lambda run: run.training),
    ]
    axes: list[tuple[str, Callable[[Curve], np.ndarray]]] = [
        ("environment steps", lambda curve: curve.env_steps),
        ("seconds of training", lambda curve: curve.seconds),
    ]
    for (y_label, curve_of), (x_label, axis_of) in itertools.product(curves, axes):
        series = []
        for index, group in enumerate(groups):
            members = [curve_of(run) for run in group.counted]
            summary = summarize_curves([increasing(axis_of(c), c.values) for c in members if c.values.size])
            if summary is not None:
                series.append(Series(index, group.label, summary))
        title = f"{y_label.capitalize()} against {x_label}"
        if series:
            chart = charts.draw(series, x_label=x_label, y_label=y_label, marks=(y_label, x_label) == _MARKED)
        else:
            chart = element("p", "No data yet.", class_="note")
        yield element("figure", element("figcaption", title), chart)


def _table(table: Table, *, heading: str = "h3", swatches: bool = False) -> Html:
    head = element("tr", *(element("th", column, scope="col") for column in table.columns))
    rows = []
    for n, (name, *values) in enumerate(table.rows):
        # Names are long words; lines may end behind a sign inside them.
        parts = (join(part, Html("<wbr>")) for part in re.split("(?<=[_=/])", name))
        first = [*([charts.swatch(n)] if swatches else []), element("span", *parts)]
        cells = (
            element("td", element("mark", value) if (n, column) in table.marked else value)
            for column, value in enumerate(values, start=1)
        )
        rows.append(element("tr", element("th", *first, scope="row"), *cells))
    body = element("table", element("thead", head), element("tbody", *rows))
    box = element("div", body, class_="scroll", tabindex="0", role="region", aria_label=table.title)
    return join(element(heading, table.title), box, element("p", table.note, class_="note"))


def _folded(title: str, rows: Sequence[tuple[str, str]]) -> Html:
    cells = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    box = element("div", element("table", element("tbody", *cells)), class_="scroll")
    return element("details", element("summary", title), box)


def _replays(result: TaskResult, *, opened: bool) -> Html:
    """The best run of each configuration that has a replay."""
    shown, missing = [], []
    for index, group in enumerate(result.task.groups):
        best = next((run for run in _best_first(group) if _replay_files(run)), None)
        if best is None:
            missing.append(group.label)
            continue
        for path in _replay_files(best):
            kind = path.stem.removeprefix("replay").replace("-", ", ")
            caption = f"{group.label}, seed {best.seed}{kind}"
            summary = element("summary", charts.swatch(index), element("span", caption))
            attributes = {"open": ""} if opened else {}
            content = _replay(best, path, f"{result.task.name}, {caption}")
            shown.append(element("details", summary, content, class_="replay", **attributes))
    note = [element("p", f"Without a replay: {', '.join(missing)}.", class_="note")] if missing else []
    return join(element("div", *shown, class_="replays"), *note)


def _replay(run: Run, path: Path, title: str) -> Html:
    """A frame in which azjax's own viewer shows the run's replay, or why it can't."""
    try:
        content = read_limited(path, _LARGEST_REPLAY).decode("utf-8", "replace")
        page = replay_page(title, read_replay(content))
    except (ConfigError, ValueError) as error:
        return element("p", f"The replay of {run.name} can't be shown: {error}.", class_="note")
    return element("iframe", title=f"3D replay: {title}", sandbox="allow-scripts", loading="lazy", srcdoc=page)
