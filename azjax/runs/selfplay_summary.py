"""What is left at the end of a self-play run: summary, curves, task space, replays, and the table on the screen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from azjax.counters import counter_to_int
from azjax.runs import machine
from azjax.runs.folder import RunFolder, read_metrics, replacing, write_json
from azjax.runs.policy import params_sha256
from azjax.runs.records import evaluation_statistics
from azjax.runs.replay import recorded_motion, write_motion
from azjax.runs.selfplay_pictures import draw_curves, picture_section, save_tasks, write_page
from azjax.runs.selfplay_records import held_out_record, successes_of
from azjax.runs.starting import Outcome
from azjax.runs.summary import duration
from azjax.selfplay.heldout import COVERED, HeldOut
from azjax.selfplay.spaces import TaskFamily
from azjax.selfplay.trainer import SelfPlayState

if TYPE_CHECKING:
    from azjax.runs.selfplay import SelfPlayJob, SelfPlayPlan

_NEIGHBOURS = 8


def finish(plan: SelfPlayPlan, job: SelfPlayJob, outcome: Outcome) -> dict[str, Any]:
    """Makes pictures and replays, without which a run can do; then the summary, which says that it is over."""
    state, episodes, position, folder, warn = outcome
    clock, options, family = position.clock, plan.options, plan.env.family
    success = successes_of(episodes, options)
    scores = held_out_record(state, episodes, success, plan.held_out, family, clock.training)
    env_steps, training_steps = counter_to_int(state.env_steps), counter_to_int(state.training_steps)
    hardest = hardest_solved(success, plan.held_out)
    statistics = evaluation_statistics(episodes)
    del statistics["returns"]
    title = f"Self-play on {options.env}: {options.proposer} proposer, {options.algorithm}, seed {options.seed}"
    try:
        replays = save_replays(job, state, hardest, folder)
    except (OSError, ValueError) as error:
        warn(f"replays could not be made: {error}")
        replays = {}
    clock.lap()
    summary = {
        "kind": options.kind,
        "env": options.env,
        "backend": options.backend,
        "tasks": list(family.types),
        "proposer": options.proposer,
        "solver_reward": options.solver_reward,
        "algorithm": options.algorithm,
        "seed": options.seed,
        "env_steps": env_steps,
        "training_steps": training_steps,
        "verification_steps": counter_to_int(state.verification_steps),
        "simulated_seconds": env_steps * plan.env.dt,
        "updates": options.updates,
        "evaluation": statistics,
        "heldout": {k.removeprefix("heldout/"): v for k, v in scores.items() if k.startswith("heldout/")},
        "best": {"env_steps": position.best_env_steps, "success": position.best_return},
        "hardest_solved": replays,
        "env_steps_per_second": env_steps / max(clock.training, 1e-9),
        "training_steps_per_second": training_steps / max(clock.training, 1e-9),
        "seconds": dataclasses.asdict(clock),
        "params_sha256": params_sha256(state.learner.params),
        "devices": machine.describe_devices() | {"used": options.devices},
        "versions": machine.versions(),
    }
    try:
        save_tasks(folder.path, jax.device_get(state.maps), plan.held_out, success)
        records = read_metrics(folder.file("metrics.jsonl"))
        with replacing(folder.file("curves.png")) as temporary:
            temporary.write_bytes(draw_curves(records, family))
        section = picture_section(folder.path, records, family)
        write_page(folder.file("selfplay.html"), title, summary_rows(summary), section)
    except (OSError, ValueError, KeyError) as error:
        warn(f"pictures could not be made: {error}")
    write_json(folder.file("summary.json"), summary)
    return summary


def hardest_solved(success: np.ndarray, held_out: HeldOut) -> list[int]:
    """For each type the covered task, if there is any, whose neighbours in the task space succeed least.

    Tasks far inside of what a solver can do have neighbours that succeed; so the hardest solved one lies at the edge.
    """
    rate, kind = success.mean(axis=1), np.asarray(held_out.task.type)
    found = []
    for number in np.unique(kind):
        members = np.flatnonzero(kind == number)
        solved = members[rate[members] >= COVERED]
        if not len(solved):
            continue
        apart = np.linalg.norm(held_out.cube[solved][:, None] - held_out.cube[members][None], axis=-1)
        nearest = members[np.argsort(apart, axis=1)[:, : _NEIGHBOURS + 1]]
        found.append(int(solved[np.argmin(rate[nearest].mean(axis=1))]))
    return found


def save_replays(job: SelfPlayJob, state: SelfPlayState, tasks: list[int], folder: RunFolder) -> dict[str, Any]:
    """A replay of an episode at each of the tasks; their values by the name of the file."""
    plan, scene, written = job.plan, job.plan.env.scene(), {}
    for task in tasks if scene is not None else []:
        episodes = job.play(state, task)
        alone = jax.tree.map(lambda x: x[task : task + 1], episodes._replace(frames=None))  # noqa: B023
        described = describe_task(plan.held_out, task, plan.env.family)
        name = f"replay-{described['type']}.html"
        motion = recorded_motion(plan.env, alone._replace(frames=episodes.frames), plan.options.action_repeat)
        values = ", ".join(f"{key} {value:.3g}" for key, value in described.items() if key != "type")
        title = f"{plan.options.env}, {described['type']}: {values}"
        if scene is not None:
            write_motion(folder.file(name), scene, motion, title)
        written[name] = described
    return written


def describe_task(held_out: HeldOut, number: int, family: TaskFamily) -> dict[str, Any]:
    """Type and values of a held-out task."""
    name = family.types[int(held_out.task.type[number])]
    own = family.spaces[name].parameters
    return {"type": name} | {key: float(held_out.task.values[key][number]) for key in own}


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a run."""
    scores, seconds = summary["heldout"], summary["seconds"]

    def three(prefix: str) -> str:
        return (
            f"mean success {scores[prefix + 'success']:.3f}, coverage {scores[prefix + 'coverage']:.3f}, "
            f"worst tenth {scores[prefix + 'cvar10']:.3f}"
        )

    rows = [("held-out tasks", three(""))]
    if "outside_success" in scores:
        rows.append(("outside of the range", three("outside_")))
    by_type = [f"{name} {scores['success_' + name]:.3f}" for name in summary["tasks"] if "success_" + name in scores]
    return [
        *rows,
        ("success by type", ", ".join(by_type)),
        (
            "trained",
            f"{summary['training_steps']:,} environment steps and {summary['verification_steps']:,} of verification, "
            f"{duration(summary['simulated_seconds'])} of simulated time, in {seconds['training']:.1f} s "
            f"({summary['training_steps_per_second']:,.0f} training steps/s)",
        ),
        (
            "time",
            f"{seconds['total']:.1f} s: {seconds['compilation']:.1f} compilation, {seconds['training']:.1f} training, "
            f"{seconds['evaluation']:.1f} evaluation",
        ),
    ]


def summary_table(folder: RunFolder, summary: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the summary on the screen."""
    title = f"self-play on {summary['env']} ({summary['backend']}), seed {summary['seed']}: {summary['proposer']}"
    rows = summary_rows(summary)
    rows.append(("policy", str(folder.file("policy.npz"))))
    rows.append(("task space", f"{folder.file('selfplay.html')} (open it in a browser)"))
    rows += [("3D replay", str(folder.file(name))) for name in summary["hardest_solved"]]
    rows += [
        ("metrics", str(folder.file("metrics.jsonl"))),
        ("summary", str(folder.file("summary.json"))),
        ("evaluate again", f"azjax evaluate {folder.path}"),
    ]
    return title, rows
