"""What was measured of bias and variance: unbiased figures with their errors, table and picture. Not a script."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from azjax.runs import machine
from azjax.runs.folder import write_json, write_text

BATCH = 20  # trajectories in a batch whose gradient is judged
RESAMPLES = 300


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A way to estimate advantages; ``lam`` is that of GAE, ``n`` that of n-step advantages."""

    kind: str  # "gae", "n-step", "monte-carlo" (without a baseline) or "truth"
    gamma: float
    lam: float | None = None
    n: int | None = None

    def __str__(self) -> str:
        """As in tables."""
        detail = {"gae": f", lambda {self.lam or 0:g}", "n-step": f", n {self.n}"}.get(self.kind, "")
        return f"{self.kind}, gamma {self.gamma:g}{detail}"


def estimators(
    gammas: Sequence[float], lambdas: Sequence[float], steps: Sequence[int], compared: Sequence[float]
) -> tuple[Estimator, ...]:
    """Those that are compared, and as the last one the truth's."""
    of_gae = (Estimator("gae", g, lam=lam) for g in gammas for lam in lambdas)
    of_n_step = (Estimator("n-step", g, n=n) for g in compared for n in steps)
    without = (Estimator("monte-carlo", g) for g in compared)
    return (*of_gae, *of_n_step, *without, Estimator("truth", 1.0))


def write(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    subject: Mapping[str, Any],
    estimators: Sequence[Estimator],
    advantages: Mapping[str, np.ndarray],
    gradients: np.ndarray,
    true_gradients: np.ndarray,
) -> None:
    """Writes ``table.md``, ``results.json`` and ``bias_variance.png``.

    Args:
      folder: where to.
      settings: of the measurement.
      subject: facts about policy and value functions.
      estimators: E of them, the last one the truth's.
      advantages: over the continuations of K states with J actions each: ``mean`` and ``variance`` ``[K, J, E]`` of the
        estimates, ``q`` and ``q_variance`` ``[K, J]``, ``v`` and ``v_variance`` ``[K]`` of the true returns.
      gradients: ``[E, trajectories, P]``.
      true_gradients: ``[trajectories, P]``, of other trajectories.
    """
    of_advantages = judge_advantages(advantages, settings["continuations"], settings["truth"])
    of_gradients = judge_gradients(gradients, true_gradients)
    rows = [
        dataclasses.asdict(estimator)
        | {name: pick(figures, n) for name, figures in (of_advantages | of_gradients).items()}
        for n, estimator in enumerate(estimators)
        if estimator.kind != "truth"
    ]
    truth = truth_of_advantages(advantages, settings["truth"]) | truth_of_gradients(true_gradients)
    findings = find(rows)
    write_text(folder / "table.md", table(rows, truth, findings))
    content = {"settings": settings, "subject": subject, "truth": truth, "findings": findings, "estimators": rows}
    environment = {"devices": machine.describe_devices(), "versions": machine.versions()}
    write_json(folder / "results.json", content | environment)
    plot(folder / "bias_variance.png", rows)
    print(f"wrote {folder / 'table.md'}, results.json and bias_variance.png")


def pick(figures: np.ndarray, n: int) -> list[float]:
    """One estimator's figure and the ends of its 95 % interval."""
    return [float(f"{x:.4g}") for x in figures[:, n]]


def with_interval(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """``[3, E]``: a statistic of all ``count`` samples, and its 95 % bootstrap interval over them."""
    generator = np.random.default_rng(0)
    draws = [statistic(generator.integers(0, count, count)) for _ in range(RESAMPLES)]
    return np.stack([statistic(np.arange(count)), *np.percentile(draws, [2.5, 97.5], axis=0)])


# ---- advantages


def signal(advantages: Mapping[str, np.ndarray], truth: int) -> np.ndarray:
    """Unbiased variance ``[K]`` of the true advantage over the actions of each state."""
    return advantages["q"].var(axis=1, ddof=1) - advantages["q_variance"].mean(axis=1) / truth


def judge_advantages(advantages: Mapping[str, np.ndarray], continuations: int, truth: int) -> dict[str, np.ndarray]:
    r"""Squared bias and variance of advantages, relative to the mean square of the true ones; ``[3, E]`` each.

    With :math:`d_{ij} = \hat m_{ij} - \hat q_{ij}` for state i and action j, :math:`\hat m` the mean of M estimates and
    :math:`\hat q` that of N true returns, :math:`\nu_{ij} = s^2_{ij} / M + t^2_{ij} / N` is the noise in it. Both
    squares are unbiased, and may come out below 0 where there is next to no bias:

    - ``bias``: of what depends on the action, which alone moves the policy: the variance of :math:`d_{ij}` over j, less
      the mean of :math:`\nu_{ij}`;
    - ``whole_bias``: :math:`(d_{ij} + \hat v_i)^2 - \nu_{ij} - w_i^2 / N`, v the state's true value. It also counts an
      error of the value function at the state itself, which is the same for all actions.
    """
    mean, spread = advantages["mean"], advantages["variance"]
    noise = spread / continuations + advantages["q_variance"][..., None] / truth
    difference = mean - advantages["q"][..., None]
    of_action = difference.var(axis=1, ddof=1) - noise.mean(axis=1)
    whole = np.square(difference + advantages["v"][:, None, None]) - noise
    whole = whole.mean(axis=1) - advantages["v_variance"][:, None] / truth
    scale = signal(advantages, truth)
    variance = spread.mean(axis=1)

    def relative(x: np.ndarray) -> np.ndarray:
        return with_interval(lambda states: x[states].mean(axis=0) / scale[states].mean(), len(x))

    return {
        "advantage_bias": relative(of_action),
        "advantage_whole_bias": relative(whole),
        "advantage_variance": relative(variance),
    }


def truth_of_advantages(advantages: Mapping[str, np.ndarray], truth: int) -> dict[str, float]:
    """How large the true advantages are, and how large the noise in their estimates."""
    size = signal(advantages, truth).mean()
    noise = advantages["q_variance"].mean() / truth
    return {"advantage_rms": float(np.sqrt(max(size, 0.0))), "advantage_noise_over_signal": float(noise / size)}


# ---- gradients


def judge_gradients(gradients: np.ndarray, true_gradients: np.ndarray) -> dict[str, np.ndarray]:
    """How the gradients of batches of trajectories relate to the truth; ``[3, E]`` each.

    - ``gradient_bias``: the squared sine of the angle between the mean and the truth, 0 if they are parallel. The noise
      of both is taken out of squares and products, so it may come out below 0.
    - ``gradient_variance``: the trace of a batch's covariance over the squared norm of the mean.
    - ``gradient_cosine``: the mean cosine of a single batch's gradient with the truth.
    """
    batches = batched(gradients)
    truth = batched(true_gradients[None])[0]
    target, target_noise = truth.mean(axis=0), np.cov(truth.T) / len(truth)
    size = target @ target - np.trace(target_noise)

    def moments(pick: np.ndarray) -> tuple[np.ndarray, ...]:
        chosen = batches[:, pick]
        mean = chosen.mean(axis=1)
        centred = chosen - mean[:, None]
        covariance = np.einsum("ebp,ebq->epq", centred, centred) / (chosen.shape[1] - 1)
        noise = covariance / chosen.shape[1]
        square = np.square(mean).sum(axis=1) - np.trace(noise, axis1=1, axis2=2)
        spurious = np.einsum("p,epq,q->e", target, noise, target) + np.einsum("ep,pq,eq->e", mean, target_noise, mean)
        sine = 1.0 - (np.square(mean @ target) - spurious) / (square * size)
        cosine = chosen @ target / (np.linalg.norm(chosen, axis=-1) * np.linalg.norm(target))
        return sine, np.trace(covariance, axis1=1, axis2=2) / square, cosine.mean(axis=1)

    all_three = with_interval(lambda picked: np.stack(moments(picked)), batches.shape[1])
    return dict(zip(("gradient_bias", "gradient_variance", "gradient_cosine"), all_three.swapaxes(0, 1), strict=True))


def batched(gradients: np.ndarray) -> np.ndarray:
    """Means of ``BATCH`` trajectories each: ``[E, batches, P]``, in float64."""
    count = gradients.shape[1] // BATCH
    return gradients[:, : count * BATCH].astype(np.float64).reshape(len(gradients), count, BATCH, -1).mean(axis=2)


def truth_of_gradients(true_gradients: np.ndarray) -> dict[str, float]:
    """The share of noise in the true gradient's squared norm."""
    batches = batched(true_gradients[None])[0]
    mean = batches.mean(axis=0)
    noise = np.trace(np.cov(batches.T)) / len(batches)
    return {"gradient_noise_over_signal": float(noise / (mean @ mean - noise))}


# ---- findings


def find(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the picture is about, computed for each gamma that n-step advantages were computed with."""
    return [find_at(gamma, rows) for gamma in sorted({row["gamma"] for row in rows if row["kind"] == "n-step"})]


def find_at(gamma: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of_gae = sorted((r for r in rows if r["kind"] == "gae" and r["gamma"] == gamma), key=lambda r: r["lam"])
    of_n_step = [r for r in rows if r["kind"] == "n-step" and r["gamma"] == gamma]
    steps = [r for r in of_n_step if r["n"] > 1]  # n = 1 is TD(0), which is GAE, too
    return {
        "gamma": gamma,
        "lambda_of_least_advantage_error": min(of_gae, key=error)["lam"],
        "n_of_least_advantage_error": min(of_n_step, key=error)["n"],
        "lambda_of_best_gradient": best_gradient(of_gae)["lam"],
        "n_of_best_gradient": best_gradient(of_n_step)["n"],
        "from_lambda_0_to_1": {
            name: [of_gae[0][name][0], of_gae[-1][name][0]]
            for name in ("advantage_bias", "advantage_variance", "gradient_bias", "gradient_variance")
        },
        "n_step_compared": [r["n"] for r in steps],
        "n_step_dominated_by_gae": {
            part: [r["n"] for r in steps if dominated(r, of_gae, part)] for part in ("advantage", "gradient")
        },
    }


def best_gradient(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(rows, key=lambda row: row["gradient_cosine"][0])


def error(row: Mapping[str, Any]) -> float:
    """Squared bias and variance together."""
    return float(row["advantage_bias"][0] + row["advantage_variance"][0])


def dominated(row: Mapping[str, Any], mixtures: Sequence[Mapping[str, Any]], part: str) -> bool:
    """Whether a lambda, measured or between two neighbours, has both less squared bias and less variance."""
    place = np.linspace(0, len(mixtures) - 1, 100 * len(mixtures))
    less = [
        np.interp(place, np.arange(len(mixtures)), [r[f"{part}_{name}"][0] for r in mixtures])
        < row[f"{part}_{name}"][0]
        for name in ("bias", "variance")
    ]
    return bool((less[0] & less[1]).any())


# ---- table and picture

COLUMNS = {
    "advantage_bias": "advantage: bias²",
    "advantage_variance": "variance",
    "advantage_whole_bias": "bias² with the state's own",
    "gradient_bias": "gradient: sin² of the mean",
    "gradient_variance": "variance of a batch",
    "gradient_cosine": "cosine of a batch",
}


def table(rows: Sequence[Mapping[str, Any]], truth: Mapping[str, float], findings: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the estimators of the compared gammas, the truth's own noise, and the findings."""
    lines = [f"| estimator | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        if row["gamma"] in {finding["gamma"] for finding in findings}:
            name = Estimator(row["kind"], row["gamma"], row["lam"], row["n"])
            lines.append(f"| {name} | {' | '.join(shown(row[column]) for column in COLUMNS)} |")
    lines += ["", *(f"- {name.replace('_', ' ')}: {value:.3g}" for name, value in truth.items())]
    for finding in findings:
        lines += ["", *(f"- {name.replace('_', ' ')}: {value}" for name, value in finding.items())]
    return "\n".join(lines) + "\n"


def shown(figure: Sequence[float]) -> str:
    value, low, high = figure
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Against lambda, and as planes of bias and variance; advantages above, gradients below."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    gammas = sorted({row["gamma"] for row in rows if row["kind"] == "gae"})
    for gamma, colour in zip(gammas, colormaps["viridis"](np.linspace(0, 0.9, len(gammas))), strict=True):
        of_gae = [row for row in rows if row["kind"] == "gae" and row["gamma"] == gamma]
        label = f"gamma {gamma:g}"
        band(axes[0, 0], of_gae, "advantage_bias", label, colour)
        band(axes[0, 1], of_gae, "advantage_variance", label, colour)
        band(axes[1, 0], of_gae, "gradient_bias", label, colour)
        band(axes[1, 1], of_gae, "gradient_cosine", label, colour)
    axes[0, 0].set(title="advantages: bias²", ylabel="over the mean square of the truth", ylim=(-0.1, None))
    axes[0, 1].set(title="advantages: variance", yscale="log", ylim=(1e-3, None))
    axes[1, 0].set(title="gradients: bias, sin² of the angle of the mean", ylim=(-0.01, None))
    axes[1, 1].set(title=f"cosine of a {BATCH}-trajectory batch's gradient with the truth")
    gamma = max(row["gamma"] for row in rows if row["kind"] == "n-step")
    plane(axes[0, 2], rows, gamma, "advantage", "bias²", "variance")
    plane(axes[1, 2], rows, gamma, "gradient", "sin² of the angle of the mean", "variance of a batch")
    for axis in axes[:, :2].flat:
        axis.set_xlabel("lambda")
    for axis in axes.flat:
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


def band(axis: Any, rows: Sequence[Mapping[str, Any]], name: str, label: str, colour: Any) -> None:
    lams, figures = [row["lam"] for row in rows], np.array([row[name] for row in rows])
    axis.plot(lams, figures[:, 0], "o-", markersize=3, color=colour, label=label)
    axis.fill_between(lams, figures[:, 1], figures[:, 2], color=colour, alpha=0.15, linewidth=0)


def plane(axis: Any, rows: Sequence[Mapping[str, Any]], gamma: float, part: str, across: str, up: str) -> None:
    """GAE and n-step estimators of one gamma; a bias that is lost in noise stands at the left edge."""
    styles = {
        "gae": ("o-", "#33619f", "GAE"),
        "n-step": ("s-", "#c8452d", "n-step"),
        "monte-carlo": ("^", "black", "MC"),
    }
    floor = 1e-3
    for kind, (marker, colour, label) in styles.items():
        chosen = [row for row in rows if row["kind"] == kind and row["gamma"] == gamma]
        x = np.maximum([row[f"{part}_bias"][0] for row in chosen], floor)
        y = [row[f"{part}_variance"][0] for row in chosen]
        text = "Monte Carlo without baseline" if kind == "monte-carlo" else label
        axis.plot(x, y, marker, color=colour, markersize=4, linewidth=1, label=text)
        for row, a, b in list(zip(chosen, x, y, strict=True))[:: 3 if kind == "gae" else 1]:
            note = {"gae": f"{row['lam'] or 0:g}", "n-step": f"{row['n']}"}.get(kind, "")
            axis.annotate(
                note, (a, b), fontsize=7, color=colour, xytext=(4, 3), textcoords="offset points", annotation_clip=True
            )
    # TD(0) on deterministic dynamics has no variance once the action is given, so its point is below the axes.
    bottom = 1e-2 if part == "advantage" else None
    axis.set(
        xscale="log",
        yscale="log",
        ylim=(bottom, None),
        xlabel=across,
        ylabel=up,
        title=f"{part.capitalize()}s, gamma {gamma:g}",
    )
