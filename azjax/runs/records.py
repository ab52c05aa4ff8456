"""The lines of ``metrics.jsonl``: what a call of the training program and an evaluation have to say."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from azjax.counters import counter_to_int
from azjax.evaluation import Episodes, summarize
from azjax.runs import hosts
from azjax.runs.run_options import EnvRunOptions
from azjax.training import Metrics


def training_record(metrics: Metrics, options: EnvRunOptions, seconds: float) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` for one call; what no episode ended for is left out."""
    env_steps = counter_to_int(jax.tree.map(lambda x: x[-1], metrics.env_steps))
    totals = metrics.episodes
    count = int(totals.ended.sum())
    record: dict[str, Any] = {
        "env_steps": env_steps,
        "time/seconds": round(seconds, 4),
        "time/env_steps_per_second": env_steps / max(seconds, 1e-9),
        "train/episodes": count,
        "train/reward_mean": float(metrics.reward_mean.mean()) / options.action_repeat,
        "train/nonfinite_lanes": int(metrics.nonfinite_lanes.sum()),
        "train/reset_reuse": int(metrics.reset_reuse.sum()),
    }
    if count:
        record |= {
            "train/episode_return": float(totals.return_sum.sum()) / count,
            "train/episode_return_min": float(totals.return_min.min()),
            "train/episode_return_max": float(totals.return_max.max()),
            "train/episode_length": float(totals.length_sum.sum()) / count,
        }
    record |= {f"learner/{name}": float(np.mean(value)) for name, value in metrics.learner.items()}
    return {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}


def evaluation_record(env_steps: int, episodes: Episodes, seconds: float) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` for one evaluation after so many environment steps."""
    statistics = evaluation_statistics(episodes)
    return {
        "env_steps": env_steps,
        "time/seconds": round(seconds, 4),
        "eval/episodes": statistics["episodes"],
        "eval/nonfinite_episodes": statistics["nonfinite_episodes"],
        **{f"eval/episode_{k}": v for k, v in statistics.items() if k.startswith(("return_", "length_"))},
    }


def evaluation_statistics(episodes: Episodes) -> dict[str, Any]:
    """Statistics of the episodes; only their numbers if the physics broke in all of them, which must not end a run."""
    broken = np.asarray(episodes.nonfinite) | ~np.isfinite(episodes.episode_return)
    if broken.all():
        return {"episodes": 0, "nonfinite_episodes": int(broken.sum()), "returns": []}
    return summarize(episodes)


def evaluation_line(record: dict[str, Any]) -> str:
    """What the console says of an evaluation."""
    if not record["eval/episodes"]:
        return "the physics broke in every evaluation episode"
    return (
        f"evaluation return {record['eval/episode_return_mean']:.1f} ± {record['eval/episode_return_std']:.1f}, "
        f"length {record['eval/episode_length_mean']:.0f}"
    )


def first_episodes(episodes: Episodes, count: int) -> Episodes:
    """As many episodes as were asked for: devices play equally many, so there may be some more."""
    kept: Episodes = jax.tree.map(lambda x: np.asarray(x)[:count], hosts.whole(episodes._replace(frames=None)))
    return kept._replace(frames=episodes.frames)
