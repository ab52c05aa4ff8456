"""``azjax evaluate``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azjax.cli.parsing import parse
from azjax.cli.results import ResultOptions, give
from azjax.config import require, require_number
from azjax.evaluation import summarize
from azjax.runs import machine
from azjax.runs.episodes import make_player, play_all
from azjax.runs.folder import check_output
from azjax.runs.policy import load_policy
from azjax.runs.selfplay_evaluation import evaluate_tasks, task_rows
from azjax.selfplay.tasks import TaskEnvironment

_EPISODES, _EPISODES_PER_TASK, _TASKS = 128, 8, 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ResultOptions):
    """Options of an evaluation."""

    run: Path
    """Folder of a finished run."""
    episodes: int | None = None
    """Full episodes to play, for a self-play run at each held-out task. Default: 128, or 8 at each task."""
    tasks: int | None = None
    """Held-out tasks of a self-play run, a quarter of them outside of the training range. Default: 1024."""
    seed: int = 0
    """Seed of initial states and of exploration; evaluation never shares a key with training."""
    stochastic: bool = False
    """Sample actions instead of taking the distribution's mode."""
    output: Path | None = None
    """File for the statistics and each episode's return, as JSON; must not exist yet."""


def run(args: Sequence[str], prog: str) -> int:
    """Evaluates a policy."""
    options = parse(EvaluateOptions, args, prog=prog)
    if options.episodes is not None:
        require_number("episodes", options.episodes, 1, 2**24)
    require_number("seed", options.seed, 0, 2**32 - 1)
    if options.output is not None:
        check_output(options.output)
    machine.split_host(lambda n: (options.episodes or _EPISODES) >= n)
    machine.use_cache()
    statistics = evaluate(options)
    give(statistics, options, f"{options.run}: {statistics['env']} ({statistics['backend']})", rows(statistics))
    return 0


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Plays the episodes and sums them up; of a self-play run at its held-out tasks."""
    policy = load_policy(options.run)
    env, seed, stochastic = policy.env, options.seed, options.stochastic
    if isinstance(env, TaskEnvironment):
        tasks = _TASKS if options.tasks is None else options.tasks
        episodes = _EPISODES_PER_TASK if options.episodes is None else options.episodes
        played = evaluate_tasks(policy, env, tasks=tasks, episodes=episodes, seed=seed, stochastic=stochastic)
    else:
        require(options.tasks is None, f"{options.run} is no self-play run; leave tasks out")
        episodes = options.episodes or _EPISODES
        player = make_player(policy, episodes=episodes, seed=seed, stochastic=stochastic)
        played = summarize(play_all(player, episodes))
    return {
        "env": env.name,
        "backend": env.backend,
        "deterministic": not options.stochastic,
        "seed": options.seed,
        **played,
    }


def rows(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """The statistics as lines of a table."""
    s = statistics
    kind = "deterministic" if s["deterministic"] else "stochastic"
    own = task_rows(s) if "heldout" in s else []
    return [
        *own,
        ("episodes", f"{s['episodes']} {kind}, seed {s['seed']}"),
        ("return", f"{s['return_mean']:.2f} ± {s['return_std']:.2f} (mean ± std)"),
        ("IQM", f"{s['return_iqm']:.2f}, 95 % interval {s['return_iqm_low']:.2f} to {s['return_iqm_high']:.2f}"),
        ("median, min, max", f"{s['return_median']:.2f}, {s['return_min']:.2f}, {s['return_max']:.2f}"),
        ("length", f"{s['length_mean']:.1f} environment steps; {100 * s['terminated_fraction']:.0f} % terminated"),
        ("broken physics", f"{s['nonfinite_episodes']} episodes"),
    ]
