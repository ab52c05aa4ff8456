"""``azjax selfplay`` and what the other commands make of its runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from azjax.cli import main
from azjax.cli.selfplay import read_options
from azjax.config import ConfigError
from azjax.runs.folder import read_metrics
from azjax.runs.policy import load_policy
from azjax.runs.replay import read_replay
from azjax.runs.selfplay_options import SelfPlayOptions, resolve_selfplay, selfplay_preset
from azjax.runs.selfplay_pictures import read_tasks
from azjax.runs.selfplay_records import held_out_figures, held_out_intervals
from azjax.selfplay import held_out_grid, task_family, wider_family
from azjax.selfplay.bodies import BODIES

SELFPLAY = """
selfplay pointmass --tasks command --proposals 4 --attempts 4 --verification-steps 3 --steps 3000 --devices 1
--evaluations 2 --evaluation-tasks 40 --evaluation-episodes 2 --policy-hidden 8 --value-hidden 8 --minibatches 2
--epochs 1 --no-cache --quiet --proposer learned --updates-per-call 1
""".split()  # noqa: SIM905 - easier to read, and to type into a shell
FILES = {
    "best", "checkpoints", "config.yaml", "curves.png", "heldout.npz", "metrics.jsonl", "policy.json", "policy.npz",
    "selfplay.html", "summary.json", "tasks.npz", "tensorboard",
}  # fmt: skip
PER_UPDATE, VERIFYING = 4 * 4 * 50, 3 * 4 * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four updates."""
    folder = tmp_path_factory.mktemp("selfplay") / "run"
    assert main([*SELFPLAY, "--run", str(folder)]) == 0
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def assert_same_end(one: Path, other: Path) -> None:
    assert summary_of(one)["params_sha256"] == summary_of(other)["params_sha256"]
    with np.load(one / "tasks.npz") as ours, np.load(other / "tasks.npz") as theirs:
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_folder_holds_what_a_run_leaves(run: Path) -> None:
    found = {path.name for path in run.iterdir()}
    assert found >= FILES
    assert {name for name in found - FILES if not name.startswith("replay-")} == set()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["kind"], config["tasks"], config["proposer"]) == ("selfplay", "command", "learned")
    assert config["ppo"]["policy_hidden"] == [8]


def test_environment_steps_are_counted_with_verification_and_without(run: Path) -> None:
    trained = [line for line in read_metrics(run / "metrics.jsonl") if "train/episodes" in line]
    assert [line["selfplay/training_steps"] for line in trained] == [PER_UPDATE * n for n in (1, 2, 3, 4)]
    assert [line["selfplay/verification_steps"] for line in trained] == [VERIFYING * n for n in (1, 2, 3, 4)]
    assert [line["env_steps"] for line in trained] == [(PER_UPDATE + VERIFYING) * n for n in (1, 2, 3, 4)]
    summary = summary_of(run)
    assert summary["env_steps"] == 4 * (PER_UPDATE + VERIFYING)
    assert summary["training_steps"] + summary["verification_steps"] == summary["env_steps"]


def test_evaluations_tell_of_the_held_out_tasks_inside_and_outside(run: Path) -> None:
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "heldout/success" in line]
    assert [line["env_steps"] // (PER_UPDATE + VERIFYING) for line in lines] == [2, 4]
    names = {"success", "coverage", "cvar10", "success_command"}
    names |= {f"outside_{name}" for name in ("success", "coverage", "cvar10")}
    for line in lines:
        assert {key.removeprefix("heldout/") for key in line if key.startswith("heldout/")} == names
        assert all(0.0 <= line[f"heldout/{name}"] <= 1.0 for name in names)
        assert 0.0 < line["selfplay/entropy_command"] <= 1.0
    record = read_tasks(run, task_family("pointmass", ("command",)))
    assert record.success.shape == (40, 2)
    assert record.success[record.inside].mean() == pytest.approx(lines[-1]["heldout/success"])
    assert record.maps["proposed"].sum() == 4 * 4
    assert summary_of(run)["heldout"]["success"] == lines[-1]["heldout/success"]


def test_a_run_cut_off_ends_bit_for_bit_as_if_nothing_had_happened(run: Path) -> None:
    """As it is after a kill behind its second checkpoint but before the end."""
    cut = run.parent / "cut"
    shutil.copytree(run, cut)
    (cut / "summary.json").unlink()
    for path in (cut / "checkpoints").glob("4*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["resume", str(cut), "--quiet"]) == 0
    assert_same_end(cut, run)


@pytest.mark.slow
def test_a_run_made_longer_is_bit_for_bit_one_that_was_so_from_the_start(run: Path) -> None:
    longer, straight = run.parent / "longer", run.parent / "straight"
    shutil.copytree(run, longer)
    assert main(["resume", str(longer), "--steps", "6000", "--quiet"]) == 0
    options = [*SELFPLAY, "--evaluations", "4", "--run", str(straight)]
    options[options.index("3000")] = "6000"
    assert main(options) == 0
    assert_same_end(longer, straight)


def test_a_finished_run_is_not_gone_on_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(run)]) == 2
    assert "is finished (3,344 environment steps); --steps makes it longer" in capsys.readouterr().err


def test_the_other_commands_take_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_policy(run)
    assert (policy.env.name, policy.env.episode_length) == ("tasks:pointmass/command", 50)
    assert main(["compare", str(run)]) == 0
    assert "tasks:pointmass" in capsys.readouterr().out
    page = run.parent / "page.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3  # curves, held-out tasks, one plane
    assert "Task space of" in text
    assert "http://" not in (run / "selfplay.html").read_text()


def test_evaluate_tells_of_success_with_intervals(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--tasks", "40", "--episodes", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["tasks"], found["episodes_per_task"]) == (160, 40, 4)
    assert set(found["heldout"]) == set(summary_of(run)["heldout"])
    for figure in found["heldout"].values():
        assert 0.0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1.0
    assert main(["evaluate", str(run), "--tasks", "40", "--episodes", "3"]) == 2
    assert "episodes is 3; half of those at each task choose the worst tasks" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--tasks", "3"]) == 2
    assert "tasks is 3; it must lie between 4" in capsys.readouterr().err


def test_render_shows_what_was_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run.parent / "rendered.html"
    assert main(["render", str(run), "--episodes", "2", "-o", str(page)]) == 0
    shown = read_replay(page.read_text())
    assert shown["links"] == ["ball", "task"]
    assert {geom["link"] for geom in shown["geoms"]} == {-1, 0, 1}


def test_figures_and_intervals_of_held_out_tasks_by_hand() -> None:
    """Half of the tasks always succeed: their mean's interval is the binomial one; of equal tasks it has no width."""
    family = task_family("pointmass", ("goal", "command"))
    held_out = held_out_grid(family, wider_family(family), 800)
    success = np.zeros((800, 4), bool)
    success[::2] = True
    success[~held_out.inside] = True
    figures = held_out_figures(success, held_out, family)
    assert figures == pytest.approx(
        {"success": 0.5, "coverage": 0.5, "cvar10": 0.0, "success_goal": 0.5, "success_command": 0.5}
        | {f"outside_{name}": 1.0 for name in ("success", "coverage", "cvar10")}
    )
    intervals = held_out_intervals(success, held_out, family)
    assert {name: figure for name, (figure, _, _) in intervals.items()} == figures
    _, low, high = intervals["success"]
    assert (low, high) == pytest.approx([0.5 - 1.96 * 0.5 / 600**0.5, 0.5 + 1.96 * 0.5 / 600**0.5], abs=0.01)
    assert intervals["outside_success"] == (1.0, 1.0, 1.0)


def test_a_strangers_maps_are_not_drawn_and_end_no_report(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with (copy / "tasks.npz").open("wb") as file:
        np.savez(file, proposed=np.zeros((1, 1, 3, 3)))
    with pytest.raises(ConfigError, match="does not hold the maps of these tasks"):
        read_tasks(copy, task_family("pointmass", ("command",)))
    assert main(["report", str(copy), "--output", str(tmp_path / "page.html")]) == 0
    assert "The task space can&#x27;t be shown" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("pointmas", "did you mean 'pointmass'"),
        ("ant --backend foo", "has no backend 'foo'"),
        ("pointmass --backend spring", "the point mass has no backend"),
        ("pointmass --tasks goal,commnd", "did you mean 'command'"),
        ("pointmass --tasks ,", "name some of goal, command, disturbance"),
        ("pointmass --tasks goal,goal", "name each once"),
        ("pointmass --proposer learnt", "--proposer is 'learnt'"),
        ("pointmass --attempts 1", "attempts is 1"),
        ("pointmass --proposals 0", "proposals is 0"),
        ("pointmass --proposer uniform --uniform-share 0.5", "'uniform' has no use for it"),
        ("pointmass --evaluation-episodes 3", "use an even number"),
        ("pointmass --proposals 63 --devices 2", "63 proposals can't be divided among 2 devices"),
        ("pointmass --minibatches 7", "can't be cut into 7 equal minibatches"),
        ("pointmass --max-kl 0.1", "--max-kl is an option of trpo"),
        ("pointmass --updates-per-call 7", "does not divide"),
        ("pointmass --verify-every 0", "verify_every is 0"),
        ("pointmass --algorithm foo", "--algorithm is 'foo'"),
        ("pointmass --foo 1", "unknown option --foo"),
    ],
)
def test_wrong_input_is_one_line(
    args: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["selfplay", *args.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("azjax selfplay: error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["ppo", "trpo"])
@pytest.mark.parametrize("body", list(BODIES))
def test_every_body_has_a_preset_that_fits_one_and_two_devices(body: str, algorithm: str) -> None:
    options = resolve_selfplay(read_options([body, "--algorithm", algorithm], "azjax selfplay"))
    options.validate()
    assert options.fits(1)
    assert options.fits(2)
    assert options.algorithm == algorithm


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("steps", [1, 30_720, 33_792, 33_793, 100_000, 1_000_000])
def test_training_stops_at_the_first_update_that_reaches_the_steps(steps: int, every: int) -> None:
    options = selfplay_preset("pointmass", steps=steps, verify_every=every)
    assert options.env_steps_per_update == 30_720
    assert options.steps_after(options.updates) >= steps > options.steps_after(options.updates - 1)


def test_a_widening_schedule_is_as_long_as_half_of_the_run() -> None:
    options = resolve_selfplay(selfplay_preset("pointmass", proposer="widening", steps=1_000_000))
    assert options.widening_updates == options.updates // 2
    assert resolve_selfplay(SelfPlayOptions(env="pointmass")).widening_updates is None
