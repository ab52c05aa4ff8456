"""The lines of a self-play run's ``metrics.jsonl``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from azjax.counters import counter_to_int
from azjax.evaluation import Episodes
from azjax.runs.records import evaluation_record, training_record
from azjax.runs.selfplay_options import SelfPlayOptions
from azjax.selfplay.heldout import HeldOut, held_out_scores
from azjax.selfplay.maps import TaskMaps, planes_of, proposal_entropy
from azjax.selfplay.spaces import TaskFamily
from azjax.selfplay.trainer import SelfPlayMetrics, SelfPlayState
from azjax.statistics import stratified_bootstrap_interval


def selfplay_record(metrics: SelfPlayMetrics, options: SelfPlayOptions, seconds: float) -> dict[str, Any]:
    """The line of one call; what its updates have nothing to tell of is left out."""
    record = training_record(metrics.training, options, seconds)
    training, verification = (
        counter_to_int(jax.tree.map(lambda x: x[-1], counter))
        for counter in (metrics.training_steps, metrics.verification_steps)
    )
    record |= {
        "selfplay/training_steps": training,
        "selfplay/verification_steps": verification,
        "time/training_steps_per_second": training / max(seconds, 1e-9),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is left out
        means = {name: float(np.nanmean(value)) for name, value in metrics.selfplay.items()}
    return record | {name: value for name, value in means.items() if math.isfinite(value)}


def successes_of(episodes: Episodes, tasks: int) -> np.ndarray:
    """Bool ``[tasks, episodes]``: which episodes at the held-out tasks succeeded; broken ones did not."""
    success = np.asarray(episodes.outcome.success) & ~np.asarray(episodes.nonfinite)
    return success.reshape(-1, tasks).T


def held_out_record(
    state: SelfPlayState,
    episodes: Episodes,
    success: np.ndarray,
    held_out: HeldOut,
    family: TaskFamily,
    seconds: float,
) -> dict[str, Any]:
    """The line of an evaluation: scores inside of the training range, of each type there, and outside."""
    record = evaluation_record(counter_to_int(state.env_steps), episodes, seconds)
    scores = held_out_figures(success, held_out, family)
    record |= {f"heldout/{name}": value for name, value in scores.items()}
    return record | recent_entropy(jax.device_get(state.maps), family)


def held_out_figures(success: np.ndarray, held_out: HeldOut, family: TaskFamily) -> dict[str, float]:
    """Scores of success ``[tasks, episodes]``: ``success``, ``coverage`` and ``cvar10`` inside of the training range.

    And the same outside, as ``outside_success`` and so on, and the success of each type inside, as ``success_goal``.
    """
    return {name: figure(success[chosen]) for name, (chosen, figure) in _figures(held_out, family).items()}


def held_out_intervals(
    success: np.ndarray, held_out: HeldOut, family: TaskFamily
) -> dict[str, tuple[float, float, float]]:
    """The same figures, each with its 95 % bootstrap interval over tasks."""
    found = {}
    for name, (chosen, figure) in _figures(held_out, family).items():
        part = success[chosen]
        low, high = stratified_bootstrap_interval(
            [np.arange(len(part))],
            lambda rows: figure(part[rows.astype(int)]),  # noqa: B023 - called here
        )
        found[name] = (figure(part), low, high)
    return found


def _figures(held_out: HeldOut, family: TaskFamily) -> dict[str, tuple[np.ndarray, Callable[[np.ndarray], float]]]:
    """Of which tasks each figure is, bool ``[tasks]``, and what it makes of their success; only where there are any."""

    def score(field: str) -> Callable[[np.ndarray], float]:
        return lambda success: float(getattr(held_out_scores(success, np.ones(len(success), bool)), field))

    kind = np.asarray(held_out.task.type)
    parts = {"": held_out.inside, "outside_": ~held_out.inside}
    figures = {
        f"{name}{field}": (chosen, score(field))
        for name, chosen in parts.items()
        for field in ("success", "coverage", "cvar10")
    }
    for number, name in enumerate(family.types):
        figures[f"success_{name}"] = (held_out.inside & (kind == number), score("success"))
    return {name: (chosen, figure) for name, (chosen, figure) in figures.items() if chosen.any()}


def recent_entropy(maps: TaskMaps, family: TaskFamily) -> dict[str, float]:
    """Entropy of the proposals of the last phase that is complete, mean over the planes of each type."""
    length = int(maps.length)
    last = max(0, int(maps.updates) // length - 1)
    entropy = np.asarray(proposal_entropy(maps.proposed[last]))
    planes = planes_of(family)
    return {
        f"selfplay/entropy_{name}": float(np.mean([entropy[n] for n, plane in enumerate(planes) if plane.type == kind]))
        for kind, name in enumerate(family.types)
    }


def held_out_line(record: dict[str, Any]) -> str:
    """What the console says of an evaluation."""
    inside = f"held-out success {record['heldout/success']:.3f}, coverage {record['heldout/coverage']:.3f}"
    worst = f"worst tenth {record['heldout/cvar10']:.3f}"
    outside = record.get("heldout/outside_success")
    return f"{inside}, {worst}" + ("" if outside is None else f"; outside of the range {outside:.3f}")
