"""What is left at the end of a run: summary, curves, replay, and the table on the screen."""

from __future__ import annotations

import dataclasses
from typing import Any

from azjax.counters import counter_to_int
from azjax.envs import Environment
from azjax.evaluation import Episodes
from azjax.runs import machine
from azjax.runs.folder import RunFolder, read_metrics, write_json
from azjax.runs.loop import Position
from azjax.runs.options import TrainOptions
from azjax.runs.plots import plot_curves
from azjax.runs.policy import params_sha256
from azjax.runs.programs import Plan
from azjax.runs.records import evaluation_statistics
from azjax.runs.replay import save_replay
from azjax.runs.starting import Outcome
from azjax.training import TrainState


def finish(plan: Plan, job: object, outcome: Outcome) -> dict[str, Any]:
    """Makes picture and replay, without which a run can do; then the summary, which says that it is over."""
    folder, episodes = outcome.folder, outcome.result
    outcome.position.clock.lap()
    summary = run_summary(plan.options, plan.env, outcome.state, episodes, outcome.position)
    title = title_of(summary)
    try:
        plot_curves(folder.file("curves.png"), read_metrics(folder.file("metrics.jsonl")), title=title)
        if episodes.frames is not None:
            save_replay(folder.file("replay.html"), plan.env, episodes, plan.options.action_repeat, title)
    except (OSError, ValueError, KeyError) as error:
        outcome.warn(f"curves or replay could not be made: {error}")
    write_json(folder.file("summary.json"), summary)
    return summary


def run_summary(
    options: TrainOptions, env: Environment, state: TrainState, episodes: Episodes, position: Position
) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    env_steps, clock, dt = counter_to_int(state.env_steps), position.clock, getattr(env, "dt", None)
    return {
        "env": options.env,
        "backend": options.backend,
        "algorithm": options.algorithm,
        "seed": options.seed,
        "env_steps": env_steps,
        "simulated_seconds": None if dt is None else env_steps * dt,
        "updates": options.updates,
        "evaluation": evaluation_statistics(episodes),
        "best": {"env_steps": position.best_env_steps, "return_mean": position.best_return},
        "env_steps_per_second": env_steps / max(clock.training, 1e-9),
        "seconds": dataclasses.asdict(clock),
        "params_sha256": params_sha256(state.learner.params),
        "replay": episodes.frames is not None,
        "devices": machine.describe_devices() | {"used": options.devices},
        "versions": machine.versions(),
    }


def title_of(summary: dict[str, Any]) -> str:
    """What ran, in a few words."""
    return f"{summary['algorithm']} on {summary['env']} ({summary['backend']}), seed {summary['seed']}"


def return_rows(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows about the last evaluation."""
    if not evaluation["episodes"]:
        return [("episode return", "unknown: the physics broke in every evaluation episode")]
    e = evaluation
    return [
        (
            "episode return",
            f"{e['return_mean']:.1f} ± {e['return_std']:.1f} (mean ± std of {e['episodes']} deterministic episodes)",
        ),
        (
            "",
            f"IQM {e['return_iqm']:.1f}, 95 % interval {e['return_iqm_low']:.1f} to {e['return_iqm_high']:.1f}; "
            f"length {e['length_mean']:.0f}",
        ),
    ]


def duration(seconds: float) -> str:
    """A time in the unit in which its number is short."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def summary_table(folder: RunFolder, summary: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the summary on the screen."""
    evaluation, seconds = summary["evaluation"], summary["seconds"]
    simulated = summary["simulated_seconds"]
    experience = "" if simulated is None else f", {duration(simulated)} of simulated time,"
    rows = [
        *return_rows(evaluation),
        ("trained", f"{summary['env_steps']:,} environment steps{experience} in {seconds['training']:.1f} s "
         f"({summary['env_steps_per_second']:,.0f} steps/s)"),
        ("time", f"{seconds['total']:.1f} s: {seconds['compilation']:.1f} compilation, {seconds['training']:.1f} "
         f"training, {seconds['evaluation']:.1f} evaluation"),
        ("policy", str(folder.file("policy.npz"))),
        ("learning curve", str(folder.file("curves.png"))),
    ]  # fmt: skip
    if summary["replay"]:
        rows.append(("3D replay", f"{folder.file('replay.html')} (open it in a browser)"))
    rows += [
        ("metrics", str(folder.file("metrics.jsonl"))),
        ("summary", str(folder.file("summary.json"))),
        ("evaluate again", f"azjax evaluate {folder.path}"),
    ]
    return title_of(summary), rows
