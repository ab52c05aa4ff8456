"""What a sweep leaves: a table of its members, the configurations ranked, pictures of each option's effect, a page."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from azjax.config import ConfigError
from azjax.runs.comparison import compare_folders
from azjax.runs.folder import RunFolder, replacing, write_json, write_text
from azjax.runs.options import TrainOptions
from azjax.runs.report import report_page
from azjax.statistics import interquartile_mean, stratified_bootstrap_interval

_MOST_IN_A_REPORT = 64
_MOST_VALUES = 12  # of an option, for which means are drawn
Row = dict[str, Any]


def write_results(
    folder: RunFolder,
    base: TrainOptions,
    members: Sequence[Mapping[str, Any]],
    folders: Sequence[Path],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Writes the results of finished members into the sweep's folder, the summary last.

    Args:
      folder: the sweep's.
      base: options of all members.
      members: what each changes, its seed among it.
      folders: of the members, in the same order.
      warn: takes a line on what could not be made.
    """
    rows = [member_row(i, own, place, folder.path) for i, (own, place) in enumerate(zip(members, folders, strict=True))]
    swept = [name for name in members[0] if name != "seed"]
    files = {"table": "results.csv"}
    write_text(folder.file("results.csv"), to_csv(rows))
    if importlib.util.find_spec("pyarrow") is None:
        warn('results.parquet is left out: pyarrow is not installed; pip install "azjax[sweep]"')
    else:
        write_parquet(folder.file("results.parquet"), rows)
        files["table for data frames"] = "results.parquet"
    usable = [row for row in rows if row["return_mean"] is not None and not row["frozen"]]
    if swept and usable:
        with _allowed_to_fail("marginals.png", warn):
            plot_marginals(folder.file("marginals.png"), usable, swept)
            files["effect of each option"] = "marginals.png"
    if len(rows) <= _MOST_IN_A_REPORT:
        with _allowed_to_fail("report.html", warn):
            marginals = folder.file("marginals.png")
            title = "Final return against each option, whatever the others are"
            pictures = {title: marginals.read_bytes()} if marginals.exists() else {}
            write_text(folder.file("report.html"), report_page(compare_folders(folders), pictures))
            files["page"] = "report.html"
    summary = {
        "kind": "sweep",
        "env": base.env,
        "backend": base.backend,
        "algorithm": base.algorithm,
        "members": len(rows),
        "frozen": sum(row["frozen"] for row in rows),
        "env_steps": sum(row["env_steps"] for row in rows),
        "configurations": rank(usable, swept),
        "best_member": max(usable, key=lambda row: (not row["stopped_early"], row["return_mean"]), default=None),
        "files": files,
        "rows": rows,
    }
    write_json(folder.file("summary.json"), summary)
    return summary


@contextlib.contextmanager
def _allowed_to_fail(name: str, warn: Callable[[str], None]) -> Any:
    try:
        yield
    except (OSError, ValueError, KeyError, ConfigError) as error:
        warn(f"{name} could not be made: {error}")


def member_row(number: int, changes: Mapping[str, Any], place: Path, sweep: Path) -> Row:
    """A member's line of the table, from its summary."""
    summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    evaluation = summary["evaluation"]
    values = {name: "x".join(map(str, v)) if isinstance(v, tuple) else v for name, v in changes.items()}
    return {
        "member": number,
        **values,
        "env_steps": summary["env_steps"],
        "return_mean": evaluation.get("return_mean"),
        "return_std": evaluation.get("return_std"),
        "length_mean": evaluation.get("length_mean"),
        "best_return_mean": summary["best"]["return_mean"],
        "best_env_steps": summary["best"]["env_steps"],
        "frozen": summary["frozen"],
        "stopped_early": summary["stopped_early"],
        "seconds": summary["seconds"]["training"],
        "folder": str(place.relative_to(sweep)),
    }


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; missing numbers are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows as Parquet."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(rows))
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def rank(rows: Sequence[Row], swept: Sequence[str]) -> list[dict[str, Any]]:
    """The configurations that trained to the end, then those that were stopped; each the better ones first.

    Better: by the interquartile mean of the returns of their seeds that did not break.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in swept), []).append(row)
    entries = []
    for key, own in groups.items():
        returns = np.array([row["return_mean"] for row in own], np.float64)
        low, high = stratified_bootstrap_interval([returns])
        entries.append(
            {
                "values": dict(zip(swept, key, strict=True)),
                "seeds": len(own),
                "return_iqm": interquartile_mean(returns),
                "return_iqm_low": low,
                "return_iqm_high": high,
                "return_mean": float(returns.mean()),
                "stopped_early": all(row["stopped_early"] for row in own),
                "members": [row["member"] for row in own],
            }
        )
    return sorted(entries, key=lambda entry: (entry["stopped_early"], -entry["return_iqm"]))


def plot_marginals(path: Path, rows: Sequence[Row], swept: Sequence[str]) -> None:
    """Draws the final return against each option, whatever the others are: members, and their interquartile mean."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(swept) + 0.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    returns = np.array([row["return_mean"] for row in rows])
    for axis, name in zip(figure.subplots(1, len(swept), sharey=True, squeeze=False)[0], swept, strict=True):
        values = [row[name] for row in rows]
        distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
        numeric = all(type(value) in (int, float) for value in distinct)
        x = np.array(values, float) if numeric else np.array([distinct.index(v) for v in values], float)
        axis.plot(x, returns, "o", color="#8aa4c8", markersize=4, alpha=0.8, label="member")
        if len(distinct) <= _MOST_VALUES and len(distinct) < len(rows):
            _draw_means(axis, x, returns)
        if not numeric:
            axis.set_xticks(range(len(distinct)), [str(value) for value in distinct])
        elif min(x) > 0 and max(x) / min(x) > 5:
            axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("final evaluation return")
    figure.axes[0].legend(frameon=False, fontsize=8, loc="best")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_means(axis: Any, x: np.ndarray, returns: np.ndarray) -> None:
    places = np.unique(x)
    means = [interquartile_mean(returns[x == place]) for place in places]
    ends = np.array([stratified_bootstrap_interval([returns[x == place]]) for place in places])
    axis.plot(places, means, "-", color="#c8452d", linewidth=1.4, label="interquartile mean, 95 % interval")
    axis.vlines(places, ends[:, 0], ends[:, 1], color="#c8452d", linewidth=1.4)
