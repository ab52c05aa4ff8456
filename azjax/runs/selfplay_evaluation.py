"""A self-play run's policy at the held-out tasks: what ``azjax evaluate`` does with one."""

from __future__ import annotations

from typing import Any

from azjax.config import require, require_number
from azjax.evaluation import summarize
from azjax.runs.episodes import make_player, play_all
from azjax.runs.policy import LoadedPolicy
from azjax.runs.selfplay_records import held_out_intervals, successes_of
from azjax.selfplay.bodies import wider_family
from azjax.selfplay.heldout import held_out_grid, repeat_tasks
from azjax.selfplay.tasks import TaskEnvironment


def evaluate_tasks(
    policy: LoadedPolicy, env: TaskEnvironment, *, tasks: int, episodes: int, seed: int, stochastic: bool
) -> dict[str, Any]:
    """Plays so many episodes at each of so many held-out tasks; the tasks are those of the runs' own evaluations.

    Returns:
      The statistics of ``azjax.evaluation.summarize``, and ``tasks``, ``episodes_per_task`` and ``heldout``: each
      figure with its mean and 95 % bootstrap interval over tasks.

    Raises:
      ConfigError: for fewer than four tasks of each type, or an odd number of episodes.
    """
    require_number("tasks", tasks, 4 * len(env.family.types), 2**20)
    require_number("episodes at each task", episodes, 2, 2**16)
    require(
        episodes % 2 == 0,
        f"episodes is {episodes}; half of those at each task choose the worst tasks, so use an even number",
    )
    held_out = held_out_grid(env.family, wider_family(env.family), tasks)
    player = make_player(
        policy,
        episodes=tasks * episodes,
        seed=seed,
        stochastic=stochastic,
        outcome=env.outcome,
        episode_params=repeat_tasks(held_out, 1),
    )
    played = play_all(player, tasks * episodes)
    figures = held_out_intervals(successes_of(played, tasks), held_out, env.family)
    return {
        **summarize(played),
        "tasks": tasks,
        "episodes_per_task": episodes,
        "heldout": {name: {"mean": x, "low": low, "high": high} for name, (x, low, high) in figures.items()},
    }


def task_rows(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as lines of a table."""
    names = {"success": "success", "coverage": "coverage", "cvar10": "CVaR10"}
    names |= {f"outside_{name}": f"{label} outside" for name, label in names.items()}
    rows = [("held-out tasks", f"{statistics['tasks']}, {statistics['episodes_per_task']} episodes at each")]
    for name, x in statistics["heldout"].items():
        label = names.get(name) or f"success, {name.removeprefix('success_')}"
        rows.append((label, f"{x['mean']:.3f}, 95 % interval over tasks {x['low']:.3f} to {x['high']:.3f}"))
    return rows
