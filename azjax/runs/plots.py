"""Pictures of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azjax.runs.folder import replacing


def series(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float], list[float]]:
    """Environment steps, seconds and values of the records that have ``key``."""
    rows = [(r["env_steps"], r["time/seconds"], r[key]) for r in records if key in r]
    return tuple(map(list, zip(*rows, strict=True))) if rows else ([], [], [])  # type: ignore[return-value]


def plot_curves(path: Path, records: list[dict[str, Any]], *, title: str) -> None:
    """Writes the learning curve: episode return against environment steps and against seconds of training."""
    # Imported late: it takes long, only this needs it, and on a new machine it talks about its font cache.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    steps, seconds, returns = series(records, "train/episode_return")
    eval_steps, eval_seconds, means = series(records, "eval/episode_return_mean")
    deviations = series(records, "eval/episode_return_std")[2]
    low = [m - d for m, d in zip(means, deviations, strict=True)]
    high = [m + d for m, d in zip(means, deviations, strict=True)]
    for axis, x, eval_x, label in (
        (axes[0], steps, eval_steps, "environment steps"),
        (axes[1], seconds, eval_seconds, "seconds of training"),
    ):
        axis.plot(x, returns, color="#8aa4c8", linewidth=1.2, label="training episodes (exploring)")
        axis.plot(eval_x, means, "o-", color="#c8452d", markersize=4, label="evaluation (deterministic), ± 1 std")
        axis.fill_between(eval_x, low, high, color="#c8452d", alpha=0.15, linewidth=0)
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0].set_ylabel("episode return")
    axes[0].legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(title, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def plot_success(path: Path, records: list[dict[str, Any]], tasks: Sequence[str]) -> None:
    """Writes what a reasoner's evaluations found: for each task type, the share of right first answers by group.

    Args:
      path: of the picture.
      records: of ``metrics.jsonl``; steps are updates.
      tasks: names of the task types.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(tasks) + 0.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        front, back = f"eval/{task}/", "/greedy"
        names = dict.fromkeys(key for r in records for key in r if key.startswith(front) and key.endswith(back))
        for name in names:
            steps, _, right = series(records, name)
            axis.plot(steps, right, "o-", markersize=3, label=name[len(front) : -len(back)])
        axis.set(title=task, xlabel="updates", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("right first answers")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
