"""PPO on six Brax locomotion tasks, three seeds each: the learning curves in docs/results.md.

Command:   python experiments/brax_ppo.py --out runs/brax_ppo
Hardware:  2 CPU cores (any machine works; the presets are tuned for few cores)
Time:      23 minutes beside other work on 2 cores of an AMD EPYC, a longer while on older ones
Expected:  mean over seeds: inverted_pendulum 1000, reacher -73, hopper 2367, walker2d 2439, halfcheetah 5171, ant 5372

Every run is an ``azjax train`` in a process of its own and keeps its folder. The script can be interrupted and started
again: a run that is finished is not repeated, and one that was interrupted goes on. At the end it writes ``table.md``,
``results.json`` and ``curves.png`` into the output folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from azjax.runs.folder import read_metrics, write_json, write_text
from azjax.runs.plots import series

TASKS = ("inverted_pendulum", "reacher", "hopper", "walker2d", "halfcheetah", "ant")


def main() -> None:
    """Trains what is missing, then writes table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps of every run, instead of the preset's")
    args = parser.parse_args()
    for task in args.tasks:
        for seed in args.seeds:
            train(args.out / f"{task}-{seed}", task, seed, args.steps)
    runs = {task: [read_run(args.out / f"{task}-{seed}") for seed in args.seeds] for task in args.tasks}
    write_text(args.out / "table.md", table(runs))
    write_json(args.out / "results.json", {task: [r["summary"] for r in rs] for task, rs in runs.items()})
    plot(args.out / "curves.png", runs)
    print(f"wrote {args.out / 'table.md'}, results.json and curves.png")


def train(folder: Path, task: str, seed: int, steps: int | None) -> None:
    """One run, unless it is finished already; goes on with one that was interrupted."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "azjax"]
    if (folder / "config.yaml").exists():
        command += ["resume", str(folder)]
    else:
        command += ["train", task, "--seed", str(seed), "--run", str(folder)]
        command += ["--evaluations", "12", "--evaluation-episodes", "64"]
        command += ["--steps", str(steps)] if steps else []
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


def read_run(folder: Path) -> dict[str, Any]:
    """Summary and metrics of a finished run."""
    return {
        "summary": json.loads((folder / "summary.json").read_text()),
        "metrics": read_metrics(folder / "metrics.jsonl"),
    }


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One line per task: return of the final policy. Three seeds allow no interval worth printing."""
    lines = [
        "| task | environment steps | mean return of each seed | IQM of each seed | mean over seeds | length |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task, members in runs.items():
        summaries = [m["summary"] for m in members]
        means = [s["evaluation"]["return_mean"] for s in summaries]
        iqms = ", ".join(f"{s['evaluation']['return_iqm']:.0f}" for s in summaries)
        length = np.mean([s["evaluation"]["length_mean"] for s in summaries])
        lines.append(
            f"| {task} ({summaries[0]['backend']}) | {summaries[0]['env_steps']:,} | "
            f"{', '.join(f'{mean:.0f}' for mean in means)} | {iqms} | {np.mean(means):.0f} | {length:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Evaluation return against environment steps: each seed, and their mean."""
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis, (task, members) in zip(axes.flat, runs.items(), strict=False):
        curves = [series(m["metrics"], "eval/episode_return_mean") for m in members]
        for steps, _, means in curves:
            axis.plot(steps, means, color="#8aa4c8", linewidth=1)
        shortest = min(len(means) for _, _, means in curves)
        mean = np.mean([means[:shortest] for _, _, means in curves], axis=0)
        axis.plot(curves[0][0][:shortest], mean, "o-", color="#c8452d", markersize=3, linewidth=1.6)
        axis.set_title(task, fontsize=10)
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    for axis in axes[-1]:
        axis.set_xlabel("environment steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("evaluation return")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
