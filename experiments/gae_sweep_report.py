"""What a sweep over gamma and lambda found: scores, intervals over seeds, verdicts, table, pictures. Not a script."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from azjax.runs import machine
from azjax.runs.folder import write_json, write_text
from azjax.statistics import stratified_bootstrap_interval

RESAMPLES = 2000


class Setting(NamedTuple):
    """A discount and a trace; without a trace there is no value function."""

    gamma: float
    lam: float | None

    def __str__(self) -> str:
        """As in tables."""
        return f"gamma {self.gamma:g}, {trace(self.lam)}"


def trace(lam: float | None) -> str:
    return "no value function" if lam is None else f"lambda {lam:g}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared: curves over all iterations, and a grid after some of them."""

    curves: tuple[Setting, ...]
    iterations: int
    grid: tuple[Setting, ...]  # those that are not among the curves
    grid_iterations: int
    seeds: int
    at_once: int


Curves = dict[Setting, np.ndarray]  # [seeds, iterations + 1] returns of the trajectories before each update
Scores = Mapping[Any, np.ndarray]  # [seeds] by what is compared; [rows, seeds] where it has the best of some rows


def write(folder: Path, task: Any, study: Study, members: Mapping[tuple[Setting, int], dict[str, Any]]) -> None:
    """Writes ``table.md``, ``results.json`` and the pictures of the seeds that all settings have."""
    settings = study.curves + study.grid
    seeds = [n for n in range(study.seeds) if all((setting, n) in members for setting in settings)]
    if not seeds:
        print("no seed has been run with all settings yet, so there is nothing to compare")
        return
    returns = {s: np.array([members[s, n]["trajectory_return"] for n in seeds]) for s in settings}
    curves = {s: returns[s][:, : study.iterations + 1] for s in study.curves}
    grid = {s: returns[s][:, study.grid_iterations] for s in settings} if study.grid else {}
    verdicts = judge(curves, grid, study.grid_iterations)
    write_text(folder / "table.md", table(curves, grid, study, verdicts))
    write_json(folder / "results.json", results(task, study, seeds, curves, grid, members) | {"verdicts": verdicts})
    plot_curves(folder / "curves.png", curves, task.env)
    if grid:
        plot_grid(folder / "heat_map.png", grid, f"{task.env}, mean return after {study.grid_iterations} iterations")
    print(f"wrote {folder / 'table.md'}, results.json, curves.png" + (" and heat_map.png" if grid else ""))


def results(
    task: Any, study: Study, seeds: Sequence[int], curves: Curves, grid: Scores, members: Mapping[Any, dict[str, Any]]
) -> dict[str, Any]:
    """All that the table and the pictures show, and what they were made with."""
    broken = sum(sum(member["nonfinite_lanes"]) for member in members.values())
    return {
        "task": dataclasses.asdict(task),
        "hyperparameters": task.hyperparameters(),
        "iterations": study.iterations,
        "grid_iterations": study.grid_iterations,
        "seeds": list(seeds),
        "nonfinite_lanes": broken,
        "curves": [
            setting._asdict()
            | {
                "mean_return": rounded(curve.mean(axis=0)),
                "after_grid_iterations_by_seed": rounded(curve[:, study.grid_iterations]),
                "mean_of_curve_by_seed": rounded(speed(curve)),
            }
            for setting, curve in curves.items()
        ],
        "grid": [
            setting._asdict() | {"mean_return": rounded(score.mean()), "return_by_seed": rounded(score)}
            for setting, score in grid.items()
        ],
        "devices": machine.describe_devices(),
        "versions": machine.versions(),
    }


def rounded(values: Any) -> Any:
    return np.round(np.asarray(values, np.float64), 1).tolist()


def speed(curve: np.ndarray) -> np.ndarray:
    """Mean return over all iterations of each seed: how fast, and how far, it learned."""
    return curve.mean(axis=1)


# ---- the verdict


def judge(curves: Curves, grid: Scores, grid_iterations: int) -> list[dict[str, Any]]:
    """Whether an intermediate lambda, and an intermediate gamma, beat the ends of the range.

    Lambda is compared at the gamma that most curves have, gamma at the lambda that most have; and, where there is a
    grid, every gamma with the lambda that suits it best.
    """
    gamma = commonest([s.gamma for s in curves])
    lam = commonest([s.lam for s in curves if s.lam is not None and s.gamma != gamma])
    without = {s.gamma: curve for s, curve in curves.items() if s.lam is None}
    by_lambda = {s.lam: curve for s, curve in curves.items() if s.gamma == gamma and s.lam is not None}
    by_gamma = {s.gamma: curve for s, curve in curves.items() if lam is not None and s.lam == lam}
    verdicts = []
    for name, score in (
        (f"return after {grid_iterations} iterations", lambda curve: curve[:, grid_iterations]),
        ("return after the last iteration", lambda curve: curve[:, -1]),
        ("mean return over all iterations", speed),
    ):
        others = {"no value function": score(without[gamma])} if gamma in without else {}
        scores = {value: score(curve) for value, curve in by_lambda.items()}
        verdicts.append(compare(f"lambda at gamma {gamma:g}", name, scores, others))
        if len(by_gamma) > 1:
            scores = {value: score(curve) for value, curve in by_gamma.items()}
            verdicts.append(compare(f"gamma at lambda {lam:g}", name, scores, {}))
    if grid:
        gammas, lams = sorted({s.gamma for s in grid}), list(dict.fromkeys(s.lam for s in grid))
        table = {g: np.stack([grid[Setting(g, value)] for value in lams]) for g in gammas}
        name = f"return after {grid_iterations} iterations, with each gamma's best lambda"
        verdicts.append(compare("gamma", name, table, {}))
        verdicts[-1]["best_lambda_of_gamma"] = {
            f"{g:g}": lams[int(own.mean(axis=1).argmax())] for g, own in table.items()
        }
    return verdicts


def commonest(values: Sequence[Any]) -> Any:
    """The value that is there most often, the largest of several; ``None`` if there are none."""
    return max(sorted(set(values)), key=values.count, default=None)


def best_of(scores: Scores) -> Any:
    return max(scores, key=lambda key: best_mean(scores[key]))


def best_mean(score: np.ndarray) -> float:
    """The mean over seeds, of the best row if there are several."""
    return float(np.atleast_2d(score).mean(axis=1).max())


def compare(parameter: str, score: str, values: Scores, others: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The best value of a parameter, how sure that is, and the best intermediate one against both ends and others."""
    low, high = min(values), max(values)
    inner = {value: x for value, x in values.items() if low < value < high}
    references = {f"{low:g}": values[low], f"{high:g}": values[high], **others}
    best = best_of(values)
    verdict: dict[str, Any] = {
        "parameter": parameter,
        "score": score,
        "best": best,
        "mean_return": {f"{value:g}": rounded(best_mean(x)) for value, x in values.items()}
        | {name: rounded(best_mean(x)) for name, x in others.items()},
        "share_of_resamples_in_which_best": shares(values),
    }
    if inner and low < high:
        verdict["best_intermediate"] = best_of(inner)
        verdict["advantage_over"] = {name: out_of_bag(inner, x) for name, x in references.items()}
    verdict["text"] = sentence(verdict, f"{low:g}", f"{high:g}")
    return verdict


def sentence(verdict: dict[str, Any], low: str, high: str) -> str:
    start = f"{verdict['score']}, {verdict['parameter']}: best at {verdict['best']:g}"
    if "advantage_over" not in verdict:
        return f"{start}; there is nothing between the ends to compare."
    if None in verdict["advantage_over"].values():
        return f"{start}; too few seeds for an interval."
    words = []
    for name, (mean, least, most) in verdict["advantage_over"].items():
        relation = "better than" if least > 0 else "worse than" if most < 0 else "not told apart from"
        words.append(f"{relation} {name} ({mean:+.0f}, 95 % interval {least:+.0f} to {most:+.0f})")
    seen = all(verdict["advantage_over"][end][1] > 0 for end in (low, high))
    conclusion = "beats both ends" if seen else "does not clearly beat both ends"
    return f"{start}; the best intermediate value is {', '.join(words)}: it {conclusion}."


def resampled(seeds: int) -> np.ndarray:
    """Seeds drawn with replacement, ``[RESAMPLES, seeds]``; settings share seeds, so they are resampled together."""
    return np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))


def shares(scores: Scores) -> dict[str, float]:
    """In which share of the resamples of seeds each value has the highest mean."""
    names = list(scores)
    rows = [np.atleast_2d(x) for x in scores.values()]
    picks = resampled(rows[0].shape[1])
    winners = np.stack([x[:, picks].mean(axis=-1).max(axis=0) for x in rows]).argmax(axis=0)
    return {f"{name:g}": float(np.mean(winners == n)) for n, name in enumerate(names)}


def out_of_bag(candidates: Scores, reference: np.ndarray) -> tuple[float, float, float] | None:
    """The best candidate's mean advantage over a reference, and its 95 % interval.

    The candidate, and the row of candidate and reference if they have several, is chosen on each resample of the seeds
    and judged on the seeds outside of it: choosing the best of many and judging it on the same seeds would favour it.
    ``None`` with fewer than four seeds.
    """
    values, others = np.vstack(list(candidates.values())), np.atleast_2d(reference)
    seeds = values.shape[1]
    if seeds < 4:
        return None
    differences = []
    for pick in resampled(seeds):
        outside = np.setdiff1d(np.arange(seeds), pick)
        if outside.size:
            chosen, other = (x[x[:, pick].mean(axis=1).argmax(), outside] for x in (values, others))
            differences.append(np.mean(chosen - other))
    low, high = np.percentile(differences, [2.5, 97.5])
    return tuple(float(round(x, 1)) for x in (np.mean(differences), low, high))


# ---- table


def table(curves: Curves, grid: Scores, study: Study, verdicts: Sequence[dict[str, Any]]) -> str:
    """Markdown: the settings with curves, the grid, and the verdicts."""
    middle, last = study.grid_iterations, study.iterations
    lines = [
        f"| setting | return after {middle} iterations | after {last} | mean over all iterations |",
        "| --- | --- | --- | --- |",
    ]
    for setting, curve in curves.items():
        cells = (curve[:, middle], curve[:, last], speed(curve))
        lines.append(f"| {setting} | {' | '.join(map(with_interval, cells))} |")
    if grid:
        gammas, lams = axes_of(grid)
        lines += ["", f"Mean return after {middle} iterations:", ""]
        lines += [f"| gamma | {' | '.join(map(trace, lams))} |", "| --- " * (len(lams) + 1) + "|"]
        for gamma in gammas:
            lines.append(f"| {gamma:g} | {' | '.join(f'{grid[Setting(gamma, lam)].mean():.0f}' for lam in lams)} |")
    return "\n".join([*lines, "", *(f"- {verdict['text']}" for verdict in verdicts)]) + "\n"


def with_interval(scores: np.ndarray) -> str:
    if len(scores) < 2:
        return f"{scores.mean():.0f}"
    low, high = stratified_bootstrap_interval([scores], lambda x: float(x.mean()))
    return f"{scores.mean():.0f} ({low:.0f} to {high:.0f})"


def axes_of(grid: Scores) -> tuple[list[float], list[float | None]]:
    """Gammas and lambdas downwards, no value function first."""
    gammas = sorted({s.gamma for s in grid}, reverse=True)
    return gammas, sorted({s.lam for s in grid}, key=lambda lam: 2.0 if lam is None else lam, reverse=True)


# ---- pictures


def plot_curves(path: Path, curves: Curves, title: str) -> None:
    """Mean return of a batch's trajectories against iterations, with its interval over seeds."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    with_value = [setting for setting in curves if setting.lam is not None]
    colours = dict(zip(with_value, colormaps["viridis"](np.linspace(0, 0.95, max(len(with_value), 1))), strict=False))
    for setting, curve in curves.items():
        style: Any = {"color": colours[setting]} if setting in colours else {"color": "black", "linestyle": "--"}
        x, mean = np.arange(curve.shape[1]), curve.mean(axis=0)
        axis.plot(x, mean, linewidth=1.5, label=str(setting), **style)
        if len(curve) > 1:
            low, high = np.percentile(curve[resampled(len(curve))].mean(axis=1), [2.5, 97.5], axis=0)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)
    axis.set_xlabel("iterations")
    axis.set_ylabel("return of a batch's trajectories")
    seeds = len(next(iter(curves.values())))
    axis.set_title(f"{title}, mean of {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110)


def plot_grid(path: Path, grid: Scores, title: str) -> None:
    """Mean return of every gamma and lambda."""
    gammas, lams = axes_of(grid)
    means = np.array([[grid[Setting(gamma, lam)].mean() for lam in lams] for gamma in gammas])
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(means, cmap="viridis", aspect="auto")
    middle = 0.5 * (means.min() + means.max())
    for (row, column), value in np.ndenumerate(means):
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                  color="black" if value > middle else "white")  # fmt: skip
    axis.set_xticks(range(len(lams)), ["no value\nfunction" if lam is None else f"{lam:g}" for lam in lams])
    axis.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    axis.set_xlabel("lambda")
    axis.set_ylabel("gamma")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image)
    figure.savefig(path, dpi=110)
