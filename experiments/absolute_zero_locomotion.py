"""Does a proposer that learns beat tasks drawn at random? Self-play on bodies, arm against arm: docs/selfplay.md.

Command:   python experiments/absolute_zero_locomotion.py run --scale pointmass --out runs/absolute_zero/pointmass
           python experiments/absolute_zero_locomotion.py run --scale ant --out runs/absolute_zero/ant
           python experiments/absolute_zero_locomotion.py report --out runs/absolute_zero/ant
Hardware:  2 CPU cores; --scale gpu repeats ant with all arms on one accelerator
Time:      until --minutes are over; what is missing is run at the next start, a run that was cut off goes on
Expected:  not known before the runs; the plan below was written down before them

The plan. Every arm gets the same number of environment steps, those of verification included, and the same solver
(PPO with the body's preset). Each run ends with 16 deterministic episodes at each of 1024 fixed held-out tasks, 256 of
them outside of the training range: mean success, coverage (share of tasks with p of at least 0.8), and CVaR10 (mean
success of the worst tenth, chosen by 8 of the episodes and reported by the other 8). Reported are the means over at
least 5 seeds with 95 % bootstrap intervals over seeds, and the environment steps after which coverage first reaches the
final coverage of uniform tasks. The claim is that the best proposer beats uniform tasks in coverage and CVaR10 with
intervals that don't overlap, on ant's goal tasks; null and negative results are reported as they are.

Arms: uniform tasks, a widening schedule, the grid-adaptive curriculum, the learnability buffer (SFL), the learned
proposer, success-model-guided sampling, the learned proposer with 1 - p as its reward, the learned one that never
learns, and the learned one with ranked reward for the solver. On ant, two cores run four of them.

A run is an ordinary run folder ``OUT/ARM/SEED``. ``report`` writes ``table.md``, ``results.json`` and ``curves.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study

from azjax.config import ConfigError, require
from azjax.runs.folder import read_metrics, replacing, write_json, write_text
from azjax.runs.selfplay import resume, selfplay
from azjax.runs.selfplay_options import SelfPlayOptions, selfplay_preset
from azjax.statistics import stratified_bootstrap_interval

ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"proposer": "uniform"},
    "widening": {"proposer": "widening"},
    "grid": {"proposer": "grid"},
    "sfl": {"proposer": "sfl"},
    "learned": {"proposer": "learned"},
    "guided": {"proposer": "guided"},
    "learned-1-p": {"proposer": "learned", "learnability": "absolute-zero"},
    "frozen": {"proposer": "frozen"},
    "ranked": {"proposer": "learned", "solver_reward": "ranked"},
}
FIGURES = ("success", "coverage", "cvar10", "outside_success", "outside_coverage", "outside_cvar10")


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is compared, and how long runs are."""

    body: str
    arms: tuple[str, ...]
    seeds: int
    changes: dict[str, Any]


HELD_OUT = {"evaluation_tasks": 1024, "evaluation_episodes": 16}
SCALES = {
    "pointmass": Scale(
        "pointmass", tuple(ARMS), 5, {"tasks": "goal,command,disturbance", "steps": 6_000_000} | HELD_OUT
    ),
    "ant": Scale("ant", ("uniform", "sfl", "learned", "frozen"), 5, {"tasks": "goal", "steps": 10_000_000} | HELD_OUT),
    "gpu": Scale(
        "ant",
        tuple(ARMS),
        10,
        {"tasks": "goal", "steps": 200_000_000, "proposals": 512, "attempts": 16, "minibatches": 64} | HELD_OUT,
    ),
}


def main() -> None:
    """Runs what is missing, or writes the report."""
    args = parse()
    try:
        (run_missing if args.command == "run" else report)(args)
    except ConfigError as error:
        raise SystemExit(f"absolute_zero_locomotion: {error}") from None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = study.parser(__doc__, SCALES, "pointmass")
    parser.add_argument("--steps", type=int, help="environment steps of each run")
    parser.add_argument("--held-out", type=int, help="held-out tasks")
    return parser.parse_args(arguments)


# ---- runs


def options_of(args: argparse.Namespace, arm: str, seed: int) -> SelfPlayOptions:
    """The options of a run, all of which but seed and arm are those of the scale."""
    scale = SCALES[args.scale]
    given = {"steps": args.steps, "evaluation_tasks": args.held_out}
    changes = scale.changes | {name: value for name, value in given.items() if value is not None}
    folder = args.out / arm / str(seed)
    own = {"seed": seed, "run": folder, "evaluations": 10, "tensorboard": False, "quiet": True}
    return selfplay_preset(scale.body, **changes, **own, **ARMS[arm])


def run_missing(args: argparse.Namespace) -> None:
    """Makes the missing runs, as long as there is time."""
    scale, stop, begun = SCALES[args.scale], time.monotonic() + 60 * args.minutes, time.monotonic()
    todo = study.missing(args, ARMS, scale.arms, scale.seeds, finished)
    for count, (arm, seed) in enumerate(todo):
        if time.monotonic() > stop:
            print(f"time is over: {len(todo) - count} of {len(todo)} runs are left; start again to go on")
            return
        options = options_of(args, arm, seed)
        folder = args.out / arm / str(seed)
        result = resume(folder, quiet=True) if (folder / "config.yaml").exists() else selfplay(options)
        scores = result.summary["heldout"]
        print(
            f"{count + 1} of {len(todo)}, {time.monotonic() - begun:.0f} s: {arm}, seed {seed}: success "
            f"{scores['success']:.3f}, coverage {scores['coverage']:.3f}, CVaR10 {scores['cvar10']:.3f}",
            flush=True,
        )


def finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


# ---- report


def report(args: argparse.Namespace) -> None:
    """Table, numbers and picture of the seeds that all arms have finished."""
    arms = [arm for arm in ARMS if any(map(finished, (args.out / arm).glob("*")))]
    require(bool(arms), f"no run in {args.out} is finished; start with: run --out {args.out}")
    seeds = sorted(set.intersection(*({int(p.name) for p in (args.out / a).glob("*") if finished(p)} for a in arms)))
    require(bool(seeds), "no seed is finished in all arms yet; run goes on")
    summaries = {arm: [summary_of(args.out / arm / str(seed)) for seed in seeds] for arm in arms}
    steps = {s["env_steps"] for own in summaries.values() for s in own}
    require(
        max(steps) - min(steps) <= 0.05 * max(steps), f"runs have from {min(steps)} to {max(steps)} steps: not equal"
    )
    curves = {arm: [coverage_curve(args.out / arm / str(seed)) for seed in seeds] for arm in arms}
    target = float(np.mean([s["heldout"]["coverage"] for s in summaries.get("uniform", summaries[arms[0]])]))
    results = {arm: figures_of(summaries[arm], curves[arm], target) for arm in arms}
    write_json(args.out / "results.json", {"seeds": seeds, "coverage_of_uniform": target, "arms": results})
    write_text(args.out / "table.md", table_of(results, len(seeds)))
    draw(args.out / "curves.png", curves)
    print((args.out / "table.md").read_text())


def summary_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def coverage_curve(folder: Path) -> tuple[list[int], list[float]]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "heldout/coverage" in line]
    return [line["env_steps"] for line in lines], [line["heldout/coverage"] for line in lines]


def figures_of(
    summaries: Sequence[dict[str, Any]], curves: Sequence[tuple[list[int], list[float]]], target: float
) -> dict[str, Any]:
    """Mean and interval of each figure, and the steps at which coverage first reached the target."""
    figures: dict[str, Any] = {}
    for name in FIGURES:
        values = np.array([summary["heldout"][name] for summary in summaries])
        low, high = (
            stratified_bootstrap_interval([values], lambda x: float(x.mean())) if len(values) > 1 else (None, None)
        )
        figures[name] = {"mean": float(values.mean()), "low": low, "high": high, "seeds": values.tolist()}
    reached = [next((x for x, y in zip(*curve, strict=True) if y >= target), None) for curve in curves]
    figures["steps_to_coverage_of_uniform"] = reached
    return figures


def table_of(results: dict[str, Any], seeds: int) -> str:
    head = ["arm", "success", "coverage", "CVaR10", "success outside", "coverage outside", "CVaR10 outside"]
    head.append("steps to coverage of uniform")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for arm, own in results.items():
        cells = [arm]
        for name in FIGURES:
            figure = own[name]
            interval = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
            cells.append(f"{figure['mean']:.3f}{interval}")
        reached = [steps for steps in own["steps_to_coverage_of_uniform"] if steps is not None]
        text = f"{np.median(reached) / 1e6:.2f}M, {len(reached)} of {seeds} seeds" if reached else "never"
        lines.append(f"| {' | '.join([*cells, text])} |")
    return "\n".join(lines) + f"\n\nMeans over {seeds} seeds; in brackets 95 % bootstrap intervals over seeds.\n"


def draw(path: Path, curves: dict[str, list[tuple[list[int], list[float]]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for arm, own in curves.items():
        points = min(len(x) for x, _ in own)
        x = np.mean([x[:points] for x, _ in own], axis=0)
        y = np.array([y[:points] for _, y in own])
        (line,) = axis.plot(x, y.mean(axis=0), label=arm)
        axis.fill_between(x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.12, linewidth=0)
    axis.set_xlabel("environment steps, verification included")
    axis.set_ylabel("coverage of held-out tasks inside the range")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    axis.set_title("mean over seeds; bands: lowest to highest seed", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


if __name__ == "__main__":
    main()
