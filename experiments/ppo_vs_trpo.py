"""PPO and TRPO on locomotion tasks, several seeds each: the tables and learning curves in docs/results.md.

Command:   python experiments/ppo_vs_trpo.py --out runs/ppo_vs_trpo
Hardware:  2 CPU cores (any machine works; the presets are tuned for few cores)
Time:      80 minutes beside other work on 2 cores of an AMD EPYC, a longer while on older ones
Expected:  the table of docs/results.md

Every run is an ``azjax train`` with its preset, in a process of its own, and keeps its folder.
The script can be interrupted and started again: a run that is finished is not repeated, and one that was interrupted
goes on. At the end it writes ``table.md``, ``results.json`` and ``curves.png`` into the output folder. The folders are
ordinary runs: ``azjax report runs/ppo_vs_trpo/*`` compares them in more ways.
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

from azjax.algorithms import ALGORITHMS
from azjax.runs.folder import read_metrics, write_json, write_text
from azjax.runs.plots import series
from azjax.statistics import probability_of_improvement, stratified_bootstrap_interval

TASKS = ("inverted_pendulum", "reacher", "hopper", "walker2d", "halfcheetah", "ant")
COLOURS = {"ppo": ("#c8452d", "#e6b3a8"), "trpo": ("#2d5fa8", "#a8bbd8")}  # of the mean, and of each seed

Members = dict[str, list[dict[str, Any]]]  # runs of each algorithm


def main() -> None:
    """Trains what is missing, then writes table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help="names that azjax train takes")
    parser.add_argument("--algorithms", nargs="+", choices=tuple(ALGORITHMS), default=tuple(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="environment steps of every run, instead of the preset's")
    args = parser.parse_args()

    def folder(task: str, algorithm: str, seed: int) -> Path:
        return args.out / f"{task.replace(':', '-')}-{algorithm}-{seed}"

    for seed in args.seeds:
        for task in args.tasks:
            for algorithm in args.algorithms:
                train(folder(task, algorithm, seed), task, algorithm, seed, args.steps)
    runs: dict[str, Members] = {
        task: {a: [read_run(folder(task, a, seed)) for seed in args.seeds] for a in args.algorithms}
        for task in args.tasks
    }
    write_text(args.out / "table.md", table(runs))
    results = {task: {a: [r["summary"] for r in rs] for a, rs in members.items()} for task, members in runs.items()}
    write_json(args.out / "results.json", results)
    plot(args.out / "curves.png", runs)
    print(f"wrote {args.out / 'table.md'}, results.json and curves.png")


def train(folder: Path, task: str, algorithm: str, seed: int, steps: int | None) -> None:
    """One run, unless it is finished already; goes on with one that was interrupted."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "azjax"]
    if (folder / "config.yaml").exists():
        command += ["resume", str(folder)]
    else:
        command += ["train", task, "--algorithm", algorithm, "--seed", str(seed), "--run", str(folder)]
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


def final_returns(members: list[dict[str, Any]]) -> list[float]:
    """Mean return of each seed's final policy."""
    return [member["summary"]["evaluation"]["return_mean"] for member in members]


def table(runs: dict[str, Members]) -> str:
    """One line per task and algorithm: return of the final policy, and who is ahead."""
    lines = [
        "| task | algorithm | environment steps | mean return of each seed | mean | 95 % interval | length |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, by_algorithm in runs.items():
        for algorithm, members in by_algorithm.items():
            first = members[0]["summary"]
            means = final_returns(members)
            # Fewer than three runs have no spread worth an interval.
            ends = stratified_bootstrap_interval([means], np.mean) if len(means) > 2 else None
            length = np.mean([m["summary"]["evaluation"]["length_mean"] for m in members])
            lines.append(
                f"| {task} ({first['backend']}) | {algorithm} | {first['env_steps']:,} | "
                f"{', '.join(f'{mean:.0f}' for mean in means)} | {np.mean(means):.0f} | "
                f"{f'{ends[0]:.0f} to {ends[1]:.0f}' if ends else '-'} | {length:.0f} |"
            )
    text = "\n".join(lines) + "\n"
    if all({"ppo", "trpo"} <= set(by_algorithm) for by_algorithm in runs.values()):
        trpo, ppo = ([final_returns(by[name]) for by in runs.values()] for name in ("trpo", "ppo"))
        each = ", ".join(
            f"{task} {probability_of_improvement([x], [y]):.2f}" for task, x, y in zip(runs, trpo, ppo, strict=True)
        )
        text += f"\nProbability that a seed of TRPO ends higher than one of PPO: {each}.\n"
    return text


def plot(path: Path, runs: dict[str, Members]) -> None:
    """Evaluation return against environment steps: each seed, and the mean of each algorithm."""
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis, (task, by_algorithm) in zip(axes.flat, runs.items(), strict=False):
        for algorithm, members in by_algorithm.items():
            curves = [series(m["metrics"], "eval/episode_return_mean") for m in members]
            strong, pale = COLOURS[algorithm]
            for steps, _, means in curves:
                axis.plot(steps, means, color=pale, linewidth=1)
            shortest = min(len(means) for _, _, means in curves)
            mean = np.mean([means[:shortest] for _, _, means in curves], axis=0)
            label = algorithm.upper()
            axis.plot(curves[0][0][:shortest], mean, "o-", color=strong, markersize=3, linewidth=1.6, label=label)
        axis.set_title(task, fontsize=10)
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axes[0, 0].legend(frameon=False, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("environment steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("evaluation return")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
