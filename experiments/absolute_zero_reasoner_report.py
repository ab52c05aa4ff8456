"""What ``experiments/absolute_zero_reasoner.py`` found: tables, numbers and a picture of finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from azjax.config import require
from azjax.reasoning.tasks import TASKS
from azjax.runs.folder import read_metrics, replacing, write_json, write_text

BUDGET, LONG, SEARCH = "full", "long", "search"
"""The arm that sets the budget of others, the longer one, and the one that trains nothing."""


def finished(folder: Path) -> bool:
    return (folder / "examination.json").exists()


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def shares(spent: dict[str, Any], budget: dict[str, Any]) -> tuple[float, float]:
    """Parts of the budget in executions and in tokens trained on."""
    return spent["executions"] / budget["executions"], spent["tokens_trained"] / budget["tokens_trained"]


def report(out: Path, arms: Sequence[str]) -> None:
    """Table, numbers and picture of the runs that are finished; ``arms`` in the order of the tables."""
    seeds = {
        arm: sorted(int(path.name) for path in (out / arm).glob("[0-9]*") if path.is_dir() and finished(path))
        for arm in arms
    }
    arms = [arm for arm in arms if seeds[arm] and arm != SEARCH]
    require(bool(arms), f"no run in {out} is finished; start with: run --out {out}")
    results: dict[str, Any] = {arm: figures_of(out, arm, seeds[arm]) for arm in arms}
    searches = [read_json(out / SEARCH / str(seed) / "examination.json") for seed in seeds.get(SEARCH, [])]
    curves = {arm: curves_of(out / arm, seeds[arm]) for arm in arms}
    content = {"seeds": seeds, "arms": results, "search": searches, "curves": curves}
    write_json(out / "results.json", content)
    write_text(out / "table.md", table_of(results, searches))
    draw(out / "curves.png", curves)
    print((out / "table.md").read_text())


def figures_of(out: Path, arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Means over seeds of what examinations found and runs spent."""
    folders = [out / arm / str(seed) for seed in seeds]
    tables = [read_json(folder / "examination.json") for folder in folders]
    summaries = [read_json(folder / "summary.json") for folder in folders]
    marks: dict[str, Any] = {}
    for task, groups in tables[0].items():
        marks[task] = {
            group: {name: float(np.mean([table[task][group][name] for table in tables])) for name in row}
            for group, row in groups.items()
        }
    budget = [out / BUDGET / str(seed) / "summary.json" for seed in seeds]
    spent = [shares(s, read_json(b)) for s, b in zip(summaries, budget, strict=True) if b.exists()]
    lengths = [growth_of(folder / "metrics.jsonl") for folder in folders]
    return {
        "seeds": len(seeds),
        "marks": marks,
        "updates": float(np.mean([s["updates"] for s in summaries])),
        "level": float(np.mean([s["level"] for s in summaries])),
        "executions": float(np.mean([s["executions"] for s in summaries])),
        "tokens_trained": float(np.mean([s["tokens_trained"] for s in summaries])),
        "seconds": float(np.mean([s["seconds"]["total"] for s in summaries])),
        "share_of_budget": None if not spent else np.mean(spent, axis=0).tolist(),
        "written_lines": None if None in lengths else np.mean(lengths, axis=0).tolist(),  # type: ignore[arg-type]
    }


def curve(records: Sequence[dict[str, Any]], front: str, back: str) -> tuple[list[float], list[float]]:
    """Updates, and the mean over what is named like this."""
    rows = [(r["env_steps"], [x for k, x in r.items() if k.startswith(front) and k.endswith(back)]) for r in records]
    found = [(float(updates), float(np.mean(values))) for updates, values in rows if values]
    return [x for x, _ in found], [y for _, y in found]


def quotient(records: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """The mean over written proposals that were accepted, where there were any: refused ones count 0 in both parts."""
    both = [dict(zip(*curve(records, "train/", part), strict=True)) for part in (name, "/written_accepted")]
    found = {updates: value / both[1][updates] for updates, value in both[0].items() if both[1].get(updates)}
    return list(found), list(found.values())


def growth_of(path: Path) -> tuple[float, float] | None:
    """Mean lines of accepted proposals that were written, in the first and in the last fifth; None without any."""
    _, lines = quotient(read_metrics(path), "/written_level")
    part = -(-len(lines) // 5)
    return (float(np.mean(lines[:part])), float(np.mean(lines[-part:]))) if lines else None


PANELS: dict[str, tuple[Any, ...]] = {
    **{f"{task}: right first answers": (curve, f"eval/{task}/", "/greedy") for task in TASKS},
    "lines of written proposals": (quotient, "/written_level"),
    "lines allowed": (curve, "train/level", ""),
    "written proposals: attempts solved": (quotient, "/written_solved"),
}
"""Title of a panel: what it shows."""


def curves_of(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """By panel: share of the run's updates, and means over seeds."""
    records = [read_metrics(folder / str(seed) / "metrics.jsonl") for seed in seeds]
    found: dict[str, Any] = {}
    for title, (function, *names) in PANELS.items():
        each = [function(own, *names) for own in records]
        if all(x for x, _ in each):
            points = np.linspace(0.0, 1.0, 1 + min(50, *(len(x) for x, _ in each)))[1:]
            values = [np.interp(points, np.array(x) / x[-1], y) for x, y in each]
            found[title] = {"share": points.tolist(), "mean": np.mean(values, axis=0).tolist()}
    return found


def table_of(results: dict[str, Any], searches: Sequence[dict[str, Any]]) -> str:
    marks = next(iter(results.values()))["marks"]
    parts = [_spent(results)]
    parts += [_marks(results, task, group) for task in marks for group in marks[task]]
    if searches:
        parts.append(_searches(searches, results.get(BUDGET)))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _spent(results: dict[str, Any]) -> str:
    head = [
        "arm",
        "seeds",
        "updates",
        "executions",
        "tokens trained on",
        "share of the budget",
        "level",
        "lines written",
    ]
    rows = []
    for arm, own in results.items():
        share, lines = own["share_of_budget"], own["written_lines"]
        rows.append([
            arm, str(own["seeds"]), f"{own['updates']:,.0f}", f"{own['executions'] / 1e6:.2f}M",
            f"{own['tokens_trained'] / 1e6:.2f}M", "" if share is None else f"{share[0]:.2f}, {share[1]:.2f}",
            f"{own['level']:.1f}", "none" if lines is None else f"{lines[0]:.2f} to {lines[1]:.2f}",
        ])  # fmt: skip
    return (
        "## Spent\n\nMeans over seeds. Share of the budget: executions, tokens trained on. Lines written: mean of "
        "accepted proposals of the model, in the first and the last fifth of training.\n\n" + _table(head, rows)
    )


def _marks(results: dict[str, Any], task: str, group: str) -> str:
    names = [name for name in next(iter(results.values()))["marks"][task][group] if f"{name} low" in
             next(iter(results.values()))["marks"][task][group]]  # fmt: skip
    rows = []
    for arm, own in results.items():
        row = own["marks"][task][group]
        cells = [f"{row[name]:.3f} [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]" for name in names]
        rows.append([arm, *cells])
    return (
        f"## {task}, {group}\n\nMeans over seeds, and over the ends of their exact 95 % intervals over questions.\n\n"
        + _table(["arm", *names], rows)
    )


def _searches(searches: Sequence[dict[str, Any]], budget: dict[str, Any] | None) -> str:
    rows = []
    for name, groups in searches[0].items():
        for group, found in groups.items():
            cells = [f"{k}: {np.mean([s[name][group][k] for s in searches]):.3f}" for k in found]
            rows.append([name, group, ", ".join(cells)])
    text = "## Search\n\nShare of questions solved after so many candidates; mean over seeds."
    if budget is not None:
        questions = sum(row["questions"] for groups in budget["marks"].values() for row in groups.values())
        text += f" Training of `{BUDGET}` spent {budget['executions'] / questions:,.0f} executions for each question."
    return text + "\n\n" + _table(["search", "group", "solved"], rows)


def draw(path: Path, curves: dict[str, Any]) -> None:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flat
    colours = colormaps["tab20"]
    for axis, title in zip(axes, PANELS, strict=True):
        for n, (arm, own) in enumerate(curves.items()):
            if title in own:
                axis.plot(
                    own[title]["share"], own[title]["mean"], label=arm, color=colours(n % 20),
                    linewidth=2.2 if arm in (BUDGET, LONG) else 1.0,
                )  # fmt: skip
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("share of training", fontsize=8)
        axis.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
