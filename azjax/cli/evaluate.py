"""``azjax evaluate``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azjax.cli.parsing import parse
from azjax.cli.results import ResultOptions, give
from azjax.config import require_number
from azjax.evaluation import summarize
from azjax.runs import machine
from azjax.runs.episodes import make_player, play_all
from azjax.runs.folder import check_output
from azjax.runs.policy import load_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ResultOptions):
    """Options of an evaluation."""

    run: Path
    """Folder of a finished run."""
    episodes: int = 128
    """Full episodes to play."""
    seed: int = 0
    """Seed of initial states and of exploration; evaluation never shares a key with training."""
    stochastic: bool = False
    """Sample actions instead of taking the distribution's mode."""
    output: Path | None = None
    """File for the statistics and each episode's return, as JSON; must not exist yet."""


def run(args: Sequence[str], prog: str) -> int:
    """Evaluates a policy."""
    options = parse(EvaluateOptions, args, prog=prog)
    require_number("episodes", options.episodes, 1, 2**24)
    require_number("seed", options.seed, 0, 2**32 - 1)
    if options.output is not None:
        check_output(options.output)
    machine.split_host(lambda n: options.episodes >= n)
    machine.use_cache()
    statistics = evaluate(options)
    give(statistics, options, f"{options.run}: {statistics['env']} ({statistics['backend']})", rows(statistics))
    return 0


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Plays the episodes and sums them up."""
    policy = load_policy(options.run)
    player = make_player(policy, episodes=options.episodes, seed=options.seed, stochastic=options.stochastic)
    episodes = play_all(player, options.episodes)
    return {
        "env": policy.env.name,
        "backend": policy.env.backend,
        "deterministic": not options.stochastic,
        "seed": options.seed,
        **summarize(episodes),
    }


def rows(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """The statistics as lines of a table."""
    s = statistics
    kind = "deterministic" if s["deterministic"] else "stochastic"
    return [
        ("episodes", f"{s['episodes']} {kind}, seed {s['seed']}"),
        ("return", f"{s['return_mean']:.2f} ± {s['return_std']:.2f} (mean ± std)"),
        ("IQM", f"{s['return_iqm']:.2f}, 95 % interval {s['return_iqm_low']:.2f} to {s['return_iqm_high']:.2f}"),
        ("median, min, max", f"{s['return_median']:.2f}, {s['return_min']:.2f}, {s['return_max']:.2f}"),
        ("length", f"{s['length_mean']:.1f} environment steps; {100 * s['terminated_fraction']:.0f} % terminated"),
        ("broken physics", f"{s['nonfinite_episodes']} episodes"),
    ]
