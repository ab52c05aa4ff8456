"""The studies on tiny settings, end to end, and their statistics against numbers known beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from azjax.config import ConfigError
from azjax.runs.selfplay_options import resolve_selfplay

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import absolute_zero_locomotion as absolute_zero  # noqa: E402
import absolute_zero_reasoner as reasoner  # noqa: E402
import bias_variance  # noqa: E402
import bias_variance_report as bias  # noqa: E402
import gae_lambda_sweep  # noqa: E402
import gae_sweep_report as sweep  # noqa: E402
import gae_walkers  # noqa: E402
import paper_trpo  # noqa: E402
import ppo_vs_trpo  # noqa: E402
from gae_lambda_sweep import DIAGNOSTICS  # noqa: E402


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


# ---- the sweep

TINY = ("--lanes", 4, "--rollout-length", 30, "--no-grid", "--at-once", 12, "--iterations", 2, "--seeds", 1)
FINISHED = {"gamma": 0.99, "lam": 0.36, "seed": 0, **{name: [100.0, 200.0, 300.0] for name in DIAGNOSTICS}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that an interrupt has left with one member and a half."""
    out = tmp_path_factory.mktemp("sweep") / "cartpole"
    out.mkdir()
    line = json.dumps(FINISHED)
    (out / "members.jsonl").write_text(line + "\n" + line.replace("0.36", "0.68")[:40])
    done = run("gae_lambda_sweep.py", "--out", out, *TINY)
    assert done.returncode == 0, done.stderr
    assert "9 of 9 members" in done.stdout
    return out


def test_the_sweep_goes_on_and_writes_what_it_promises(swept: Path) -> None:
    first, *members = [json.loads(line) for line in (swept / "members.jsonl").read_text().splitlines()]
    assert first == FINISHED
    assert {member["lam"] for member in members} == {None, 1, 0.99, 0.98, 0.96, 0.92, 0.84, 0.68, 0}
    for member in members:
        lengths = np.array(member["trajectory_length"])
        assert lengths.shape == (3,)
        assert (lengths > 5).all()
        assert (lengths <= 30).all()
        # 10 a step but for the falls and the small costs of angle and force.
        np.testing.assert_allclose(member["trajectory_return"], 10 * lengths, rtol=0.15)
    # All begin alike; what follows depends on lambda.
    assert len({member["trajectory_return"][0] for member in members}) == 1
    assert len({member["trajectory_return"][2] for member in members}) > 4
    results = json.loads((swept / "results.json").read_text())
    assert results["seeds"] == [0]
    assert results["versions"]["azjax-source"]
    assert results["hyperparameters"]["value_update"] == "trust-region"
    table = (swept / "table.md").read_text()
    assert "| gamma 0.99, lambda 0.36 | 300 | 300 | 200 |" in table
    assert "too few seeds for an interval" in table
    assert (swept / "curves.png").stat().st_size < 200_000


def test_members_of_other_settings_are_refused(swept: Path) -> None:
    gae_lambda_sweep.check_settings(swept / "settings.json", json.loads((swept / "settings.json").read_text()))
    with pytest.raises(ConfigError, match="members of other settings"):
        gae_lambda_sweep.check_settings(swept / "settings.json", {"task": {"max_value_change": 0.5}})


def test_what_is_missing_comes_seed_by_seed_and_longer_runs_are_run_anew() -> None:
    short, long = sweep.Setting(0.99, 0.5), sweep.Setting(0.9, None)
    study = sweep.Study((short,), 4, (long,), 2, seeds=2, at_once=2)
    members = {(short, 0): {"trajectory_return": [0.0] * 4}, (long, 1): {"trajectory_return": [0.0] * 3}}
    assert list(gae_lambda_sweep.missing(study, members)) == [(short, 0, 4), (long, 0, 2), (short, 1, 4)]


def test_the_verdict_says_what_was_put_in() -> None:
    rng = np.random.default_rng(0)
    noise = {lam: rng.normal(size=(21, 5)) for lam in (None, 0.0, 0.5, 0.9, 1.0)}
    level = {None: 5.0, 0.0: 0.0, 0.5: 10.0, 0.9: 50.0, 1.0: 20.0}
    curves = {sweep.Setting(0.99, lam): noise[lam] + level[lam] for lam in level}
    for verdict in sweep.judge(curves, {}, 3):
        assert verdict["best"] == verdict["best_intermediate"] == 0.9
        assert verdict["share_of_resamples_in_which_best"]["0.9"] == 1.0
        mean, low, high = verdict["advantage_over"]["1"]
        assert low < 30.0 < high
        assert mean == pytest.approx(30.0, abs=1.0)
        assert verdict["text"].endswith("it beats both ends.")
    # An intermediate value that is only the best of many by chance is not called better.
    same = {sweep.Setting(0.99, lam): rng.normal(size=(21, 5)) for lam in np.linspace(0, 1, 11)}
    for verdict in sweep.judge(same, {}, 3):
        assert "does not clearly beat both ends" in verdict["text"]


def test_the_verdict_on_gamma_is_at_the_lambda_that_most_gammas_have() -> None:
    level = {(0.995, 0.9): 1.0, (0.995, 0.96): 5.0, (0.995, 1.0): 2.0, (0.96, 0.96): 3.0, (1.0, 0.96): 4.0}
    curves = {sweep.Setting(*pair): np.full((4, 5), value) for pair, value in level.items()}
    of_lambda, of_gamma = sweep.judge(curves, {}, 3)[:2]
    assert of_lambda["parameter"] == "lambda at gamma 0.995"
    assert of_gamma["parameter"] == "gamma at lambda 0.96"
    assert of_gamma["best"] == of_gamma["best_intermediate"] == 0.995
    assert of_gamma["advantage_over"] == {"0.96": (2.0, 2.0, 2.0), "1": (1.0, 1.0, 1.0)}


def test_a_grid_compares_gammas_with_the_lambda_that_suits_each(tmp_path: Path) -> None:
    grid = {
        sweep.Setting(gamma, lam): {**FINISHED, "trajectory_return": [0.0, 0.0, 0.0, 10 * gamma + (lam == best)]}
        for gamma, best in ((0.9, 0.5), (0.95, 1.0), (1.0, 0.5))
        for lam in (0.5, 1.0)
    }
    settings = tuple(grid)
    study = sweep.Study(settings[:1], 3, settings[1:], 3, seeds=4, at_once=2)
    sweep.write(tmp_path, paper_trpo.default_task("cartpole"), study, {(s, n): grid[s] for s in grid for n in range(4)})
    verdict = json.loads((tmp_path / "results.json").read_text())["verdicts"][-1]
    assert verdict["mean_return"] == {"0.9": 10.0, "0.95": 10.5, "1": 11.0}
    assert verdict["best_lambda_of_gamma"] == {"0.9": 0.5, "0.95": 1.0, "1": 0.5}
    assert verdict["advantage_over"]["1"] == [-0.5, -0.5, -0.5]
    assert (tmp_path / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert "| 0.95 | 10 | 10 |" in (tmp_path / "table.md").read_text()


def test_a_batch_of_the_biped_has_steps_as_late_as_an_episode_can_have() -> None:
    task = paper_trpo.default_task("biped")
    assert task.rollout_length == task.make_env().episode_length
    assert task.lanes * task.rollout_length == 50_000


# ---- walkers


def test_a_gait_is_a_line_of_pictures_of_each_body() -> None:
    colours = ["red", "lime", "blue", "white", "yellow", "black", "cyan"]
    frames = [Image.new("RGB", gae_walkers.SIZE, colour) for colour in colours for _ in range(gae_walkers.BETWEEN)]
    picture = gae_walkers.strip([("biped", frames), ("quadruped", frames[2:])])
    assert picture.size == (900, 330)
    assert [picture.getpixel((75 + 150 * n, 100)) for n in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert picture.getpixel((75, 300)) == (0, 255, 0)


def test_walkers_are_of_finished_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no finished run"):
        gae_walkers.read_run(tmp_path)


# ---- PPO and TRPO


def fake_run(final: float) -> dict[str, Any]:
    evaluation = {"return_mean": final, "length_mean": 900.0}
    metrics = [{"env_steps": n, "time/seconds": n / 10, "eval/episode_return_mean": final * n / 30} for n in (10, 30)]
    return {"summary": {"backend": "spring", "env_steps": 30_000, "evaluation": evaluation}, "metrics": metrics}


def test_the_table_of_both_algorithms_says_who_is_ahead(tmp_path: Path) -> None:
    runs = {
        "ant": {"ppo": [fake_run(x) for x in (10.0, 20.0, 30.0)], "trpo": [fake_run(x) for x in (25.0, 25.0, 25.0)]}
    }
    text = ppo_vs_trpo.table(runs)
    assert "| ant (spring) | ppo | 30,000 | 10, 20, 30 | 20 | 10 to 30 | 900 |" in text
    assert "| ant (spring) | trpo | 30,000 | 25, 25, 25 | 25 | 25 to 25 | 900 |" in text
    assert "ends higher than one of PPO: ant 0.67." in text  # of the nine pairs, six
    assert " - |" in ppo_vs_trpo.table({"ant": {"ppo": runs["ant"]["ppo"][:2]}})
    ppo_vs_trpo.plot(tmp_path / "curves.png", runs)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


# ---- bias and variance


def test_squared_bias_is_unbiased() -> None:
    """Noise of known size on advantages of known bias, averaged over many states."""
    rng = np.random.default_rng(1)
    states, actions, continuations, truth = 4000, 6, 10, 20
    q = rng.normal(size=(states, actions)) * 3.0
    extra = rng.normal(size=(states, actions)) * 2.0  # the bias that depends on the action
    offset = 5.0  # the one that does not
    estimates = q[..., None] + extra[..., None] + offset + rng.normal(size=(states, actions, continuations)) * 4.0
    returns = q[..., None] + rng.normal(size=(states, actions, truth)) * 6.0
    measured = {
        "mean": estimates.mean(axis=-1)[..., None],
        "variance": estimates.var(axis=-1, ddof=1)[..., None],
        "q": returns.mean(axis=-1),
        "q_variance": returns.var(axis=-1, ddof=1),
        "v": np.zeros(states),
        "v_variance": np.zeros(states),
    }
    found = bias.judge_advantages(measured, continuations, truth)
    assert found["advantage_bias"][0, 0] * 9.0 == pytest.approx(4.0, rel=0.1)
    assert found["advantage_whole_bias"][0, 0] * 9.0 == pytest.approx(4.0 + 25.0, rel=0.1)
    assert found["advantage_variance"][0, 0] * 9.0 == pytest.approx(16.0, rel=0.1)
    assert bias.truth_of_advantages(measured, truth)["advantage_rms"] == pytest.approx(3.0, rel=0.05)


def test_the_angle_of_gradients_is_unbiased() -> None:
    """With so much noise in both means that a sine of 0.07 would be found between parallel vectors."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(60):
        noise = rng.normal(size=(3, 400, 3)) * 10.0
        truth, parallel, turned = noise + np.array([[[3.0, 0, 0]], [[6.0, 0, 0]], [[3.0, 3.0, 0]]])
        found.append(bias.judge_gradients(np.stack([parallel, turned]), truth))
    mean = {name: np.mean([figures[name][0] for figures in found], axis=0) for name in found[0]}
    np.testing.assert_allclose(mean["gradient_bias"], [0.0, 0.5], atol=0.04)
    assert mean["gradient_variance"][0] == pytest.approx(15.0 / 36, rel=0.1)  # 3 * 100 / 20
    assert mean["gradient_cosine"][0] > mean["gradient_cosine"][1]


def test_domination() -> None:
    def row(b: float, v: float) -> dict[str, Any]:
        return {"advantage_bias": [b], "advantage_variance": [v]}

    mixtures = [row(4.0, 0.0), row(2.0, 2.0), row(0.0, 4.0)]
    assert bias.dominated(row(3.5, 1.0), mixtures, "advantage")
    assert not bias.dominated(row(2.5, 1.0), mixtures, "advantage")


def test_bias_and_variance_end_to_end(tmp_path: Path) -> None:
    small = {"horizon": 30, "trained-to": 0.7, "value-iterations": 1, "states": 2, "actions": 2, "continuations": 4}
    small |= {"truth": 8, "trajectories": 40, "true-trajectories": 40}
    options = [word for name, value in small.items() for word in (f"--{name}", value)]
    done = run("bias_variance.py", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = results["estimators"]
    assert {row["kind"] for row in rows} == {"gae", "n-step", "monte-carlo"}
    same = [
        next(r for r in rows if (r["kind"], r["gamma"], r[name]) == (kind, 0.99, value))
        for kind, name, value in (("gae", "lam", 0.0), ("n-step", "n", 1))
    ]
    assert same[0]["gradient_cosine"] == pytest.approx(same[1]["gradient_cosine"], rel=1e-3)
    assert (tmp_path / "out" / "bias_variance.png").exists()
    with pytest.raises(ConfigError, match="--states is 1"):
        bias_variance.measure(tmp_path / "none", bias_variance.Settings(states=1))
    assert not (tmp_path / "none").exists()


# ---- self-play on bodies


def selfplay_run(folder: Path, coverage: list[float], steps: int = 1000) -> None:
    """A finished run of an arm as its report reads it."""
    folder.mkdir(parents=True)
    figures = dict.fromkeys(absolute_zero.FIGURES, coverage[-1] / 2) | {"coverage": coverage[-1]}
    lines = [{"env_steps": steps * (n + 1) // len(coverage), "heldout/coverage": c} for n, c in enumerate(coverage)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"env_steps": steps, "heldout": figures}))


def test_the_report_of_self_play_compares_arms_on_the_seeds_that_all_have(tmp_path: Path) -> None:
    for seed, (uniform, learned) in enumerate([([0.2, 0.4], [0.4, 0.5]), ([0.2, 0.6], [0.6, 0.7])]):
        selfplay_run(tmp_path / "uniform" / str(seed), uniform)
        selfplay_run(tmp_path / "learned" / str(seed), learned)
    selfplay_run(tmp_path / "uniform" / "2", [0.0, 0.0])
    done = run("absolute_zero_locomotion.py", "report", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seeds"] == [0, 1]
    assert results["coverage_of_uniform"] == pytest.approx(0.5)
    learned = results["arms"]["learned"]
    assert learned["coverage"]["mean"] == pytest.approx(0.6)
    assert learned["coverage"]["low"] <= 0.6 <= learned["coverage"]["high"]
    assert learned["steps_to_coverage_of_uniform"] == [1000, 500]
    assert "| learned | 0.300 (" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_arms_of_unequal_length_are_not_compared(tmp_path: Path) -> None:
    selfplay_run(tmp_path / "uniform" / "0", [0.2, 0.4])
    selfplay_run(tmp_path / "sfl" / "0", [0.2, 0.4], steps=2000)
    done = run("absolute_zero_locomotion.py", "report", "--out", tmp_path)
    assert done.returncode == 1
    assert "not equal" in done.stderr


@pytest.mark.slow
def test_the_study_of_self_play_runs_what_is_missing(tmp_path: Path) -> None:
    tiny = ("--out", tmp_path, "--arms", "uniform,ranked", "--seeds", 1, "--steps", 50_000, "--held-out", 24)
    done = run("absolute_zero_locomotion.py", "run", *tiny)
    assert done.returncode == 0, done.stderr
    assert "2 of 2" in done.stdout
    again = run("absolute_zero_locomotion.py", "run", *tiny)
    assert (again.returncode, again.stdout) == (0, "")
    assert run("absolute_zero_locomotion.py", "report", "--out", tmp_path).returncode == 0


@pytest.mark.parametrize("scale", list(absolute_zero.SCALES))
def test_every_arm_of_a_study_is_a_valid_run(scale: str, tmp_path: Path) -> None:
    arguments = absolute_zero.parse(["run", "--scale", scale, "--out", str(tmp_path)])
    for arm in absolute_zero.SCALES[scale].arms:
        options = resolve_selfplay(absolute_zero.options_of(arguments, arm, 3))
        options.validate()
        assert (options.seed, options.proposer) == (3, absolute_zero.ARMS[arm]["proposer"])


# ---- the reasoner


def reasoner_run(folder: Path, greedy: float, *, updates: int, executions: int, tokens: int) -> None:
    """A finished run of an arm as the study reads it."""
    folder.mkdir(parents=True)
    row = {"questions": 10, "greedy": greedy, "greedy low": greedy - 0.1, "greedy high": greedy + 0.1}
    row |= {"pass@1": greedy, "pass@1 low": 0.0, "pass@1 high": 1.0}
    (folder / "examination.json").write_text(json.dumps({task: {"2 lines": row} for task in reasoner.TASKS}))
    summary = {"updates": updates, "level": 2, "executions": executions, "tokens_trained": tokens}
    (folder / "summary.json").write_text(json.dumps(summary | {"seconds": {"total": 3.0}}))
    (folder / "config.yaml").write_text(f"updates: {updates}\n")
    lines = [
        {
            "env_steps": n,
            "train/deduction/written_level": (1 + n / 10) / 4,
            "train/deduction/written_accepted": 0.25,
            "eval/induction/2 lines/greedy": 0,
        }
        for n in range(1, 11)
    ]
    lines.insert(5, {"env_steps": 5.5, "train/deduction/written_level": 0.0, "train/deduction/written_accepted": 0.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_arm_is_made_longer_until_the_scarcer_of_two_counts_is_spent(tmp_path: Path) -> None:
    args = reasoner.parse(["run", "--scale", "cpu", "--out", str(tmp_path), "--updates", "1000"])
    assert reasoner.next_length(args, "full", 0) == 1000
    assert reasoner.next_length(args, "long", 0) == 4000
    assert reasoner.next_length(args, "no-gate", 0) == 400
    reasoner_run(tmp_path / "full" / "0", 0.5, updates=1000, executions=10_000, tokens=5_000)
    assert reasoner.next_length(args, "full", 0) is None
    # A third of the executions and half of the tokens with 400 updates: the tokens end it.
    reasoner_run(tmp_path / "only-deduction" / "0", 0.5, updates=400, executions=3_333, tokens=2_500)
    assert reasoner.next_length(args, "only-deduction", 0) == 800
    # Whole calls of 20 updates, and nothing for less than a hundredth more.
    reasoner_run(tmp_path / "no-gate" / "0", 0.5, updates=400, executions=4_100, tokens=1_000)
    assert reasoner.next_length(args, "no-gate", 0) == 960
    reasoner_run(tmp_path / "leak-05" / "0", 0.5, updates=980, executions=9_990, tokens=1_000)
    assert reasoner.next_length(args, "leak-05", 0) is None
    # A run that was cut off while it was made longer is not taken for a whole one.
    (tmp_path / "leak-05" / "0" / "config.yaml").write_text("updates: 1000\n")
    assert reasoner.spent_by(tmp_path / "leak-05" / "0") is None


def test_the_report_of_the_reasoner_gives_means_and_shares_of_the_budget(tmp_path: Path) -> None:
    for seed in (0, 1):
        reasoner_run(tmp_path / "full" / str(seed), 0.5 + 0.1 * seed, updates=10, executions=100, tokens=50)
        reasoner_run(tmp_path / "pure-rl" / str(seed), 0.25, updates=20, executions=100, tokens=25)
    search = tmp_path / "search" / "0"
    search.mkdir(parents=True)
    found = {"induction, random programs": {"2 lines": {"1": 0.0, "8": 0.25}}}
    (search / "examination.json").write_text(json.dumps(found))
    done = run("absolute_zero_reasoner.py", "report", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    arms = json.loads((tmp_path / "results.json").read_text())["arms"]
    assert arms["full"]["marks"]["induction"]["2 lines"]["greedy"] == pytest.approx(0.55)
    assert arms["pure-rl"]["share_of_budget"] == [1.0, 0.5]
    assert arms["pure-rl"]["written_lines"] == pytest.approx([1.15, 1.95])
    table = (tmp_path / "table.md").read_text()
    assert "| full | 0.550 [0.450, 0.650] | 0.550 [0.000, 1.000] |" in table
    assert "| pure-rl | 2 | 20 | 0.00M | 0.00M | 1.00, 0.50 | 2.0 | 1.15 to 1.95 |" in table
    assert "| induction, random programs | 2 lines | 1: 0.000, 8: 0.250 |" in table
    assert (tmp_path / "curves.png").stat().st_size < 200_000


@pytest.mark.parametrize("scale", list(reasoner.SCALES))
def test_every_arm_of_the_reasoner_is_a_valid_run(scale: str, tmp_path: Path) -> None:
    args = reasoner.parse(["run", "--scale", scale, "--out", str(tmp_path)])
    for arm in reasoner.ARMS:
        options = reasoner.options_of(args, arm, 3, reasoner.updates_of(args))
        options.validate()
        assert (options.seed, options.run) == (3, tmp_path / arm / "3")


def test_the_study_of_the_reasoner_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    for arguments, message in (
        (["--arms", "fool"], "no arm 'fool'"),
        (["--jobs", "0"], "--jobs"),
        (["--arms", "no-gate"], "arm full sets the budget of no-gate"),
    ):
        args = reasoner.parse(["run", "--scale", "smoke", "--out", str(tmp_path), *arguments])
        with pytest.raises(ConfigError, match=message):
            reasoner.run_missing(args)
    assert not list(tmp_path.iterdir())
    reasoner.check_settings(args)
    with pytest.raises(ConfigError, match="choose another --out"):
        reasoner.check_settings(reasoner.parse(["run", "--scale", "cpu", "--out", str(tmp_path)]))


@pytest.mark.slow
def test_the_study_of_the_reasoner_runs_what_is_missing(tmp_path: Path) -> None:
    tiny = ("--out", tmp_path, "--scale", "smoke", "--arms", "full,search,only-induction")
    done = run("absolute_zero_reasoner.py", "run", *tiny)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3
    again = run("absolute_zero_reasoner.py", "run", *tiny)
    assert (again.returncode, again.stdout) == (0, "")
    assert run("absolute_zero_reasoner.py", "report", "--out", tmp_path).returncode == 0
    share = json.loads((tmp_path / "results.json").read_text())["arms"]["only-induction"]["share_of_budget"]
    assert 0.5 < max(share) <= 1.2
