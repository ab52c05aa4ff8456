"""azjax tune: batches of trials as populations, a study that goes on, and a preset that train reads."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from azjax.cli import main
from azjax.cli.train import read_options
from azjax.cli.tune import read_search
from azjax.config import ConfigError
from azjax.envs import make_env
from azjax.runs import machine
from azjax.runs import tune as module
from azjax.runs.options import preset_options, preset_values, read_preset
from azjax.runs.population import member_bytes
from azjax.runs.signals import RunInterrupted
from azjax.runs.sweep import Choice, Range, member_options
from azjax.runs.sweeps import Sweep, lay_out
from azjax.runs.tune import Search, default_space, from_text, open_study, to_text

TINY = ["--steps", "2048", "--lanes", "16", "--rollout-length", "32", "--evaluations", "1", "--evaluation-episodes",
        "4", "--epochs", "1", "--minibatches", "1", "--no-tensorboard"]  # fmt: skip
TUNED = ["azjax:cartpole", "--learning-rate", "log:1e-3..1e-2", "--gamma", "0.9,0.99", "--trials", "3", "--batch", "2",
         *TINY]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search: three trials in two batches."""
    folder = tmp_path_factory.mktemp("tune") / "tune"
    assert main(["tune", *TUNED, "--run", str(folder)]) == 0
    return folder


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_leaves_its_trials_and_the_best_as_a_preset(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = trials_of(tuned)
    assert len(trials) == 3
    assert {trial["gamma"] for trial in trials} <= {"0.9", "0.99"}
    assert all(1e-3 <= float(trial["learning_rate"]) <= 1e-2 for trial in trials)
    summary = json.loads((tuned / "summary.json").read_text())
    best = max(trials, key=lambda trial: float(trial["return_mean"]))
    assert summary["best"]["return_mean"] == float(best["return_mean"])
    assert summary["trials"] == 3
    assert sorted(path.name for path in (tuned / "batches").iterdir()) == ["00", "01"]
    options = read_options(["azjax:cartpole", "--preset", str(tuned / "preset.yaml")], "azjax train")
    assert options.learner.learning_rate == float(best["learning_rate"])
    assert (options.lanes, options.learner.epochs, options.steps) == (16, 1, 2048)
    assert main(["resume", str(tuned)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_a_search_that_is_stopped_goes_on_with_the_same_trials(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stopped"
    run_batch = module._run_batch
    batches = []

    def interrupted(path: Path, *args: Any) -> Any:
        batches.append(path.name)
        if len(batches) == 2:
            raise RunInterrupted(signal.SIGTERM, "go on with: azjax resume batches/01")
        return run_batch(path, *args)

    monkeypatch.setattr(module, "_run_batch", interrupted)
    assert main(["tune", *TUNED, "--run", str(folder)]) == 128 + signal.SIGTERM
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"azjax tune: stopped by SIGTERM; go on from what was saved with: azjax resume {folder}"
    assert len(open_study(folder / "study.log", 0).trials) == 3  # one of them asked for, and not yet told
    monkeypatch.undo()
    assert main(["resume", str(folder)]) == 0
    assert len(trials_of(folder)) == 3
    assert trials_of(folder)[:2] == trials_of(tuned)[:2]  # the first batch is drawn from the seed
    assert all(math.isfinite(float(trial["return_mean"])) for trial in trials_of(folder))


def test_what_a_kill_leaves_of_the_journal_is_no_obstacle(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    open_study(log, 0).ask()
    assert [path.name for path in tmp_path.iterdir()] == ["study.log"]
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"op_code": 4, "half of a li')
    (tmp_path / "study.log.lock").touch()
    study = open_study(log, 0)
    assert len(study.trials) == 1
    assert log.read_bytes().startswith(whole)
    assert b"half of a li" not in log.read_bytes().removeprefix(whole)
    study.ask()
    assert len(open_study(log, 0).trials) == 2


def test_links_in_a_stranger_s_search_are_refused(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outside = tmp_path / "tune", tmp_path / "outside"
    shutil.copytree(tuned, folder)
    (folder / "summary.json").unlink()
    outside.mkdir()
    for place in ("study.log.lock", "batches/02", "batches/00/members/001/best/policy.npz.link"):
        (folder / place).symlink_to(outside)
        assert main(["resume", str(folder)]) == 2
        assert f"{folder / place} is a link, which azjax does not write through" in capsys.readouterr().err
        (folder / place).unlink()
    assert not any(outside.iterdir())
    assert not (folder / "summary.json").exists()


def test_a_trial_whose_member_broke_counts_as_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"return_mean": 1.0, "frozen": False}, {"return_mean": 3.0, "frozen": False},
            {"return_mean": 9.0, "frozen": True}, {"return_mean": 9.0, "frozen": False}]  # fmt: skip
    monkeypatch.setattr(module, "run_sweep", lambda *args: None)
    monkeypatch.setattr(module, "read_rows", lambda path: rows)
    search = Search(preset_options("azjax:cartpole"), {"gamma": "0.9,0.99"}, seeds=2)
    trials = [{"gamma": 2.0}, {"gamma": 0.9}, {"gamma": 0.99}]  # of which the first makes no sense
    assert module._run_batch(tmp_path / "batches" / "00", search, trials) == [None, 2.0, None]


def test_a_batch_that_does_not_fit_is_trained_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Sweep] = []
    monkeypatch.setattr(module, "run_sweep", lambda sweep, path: made.append(sweep))
    monkeypatch.setattr(module, "read_rows", lambda path: [{"return_mean": 1.0, "frozen": False}] * 6)
    base = preset_options("azjax:cartpole", lanes=16, rollout_length=16, minibatches=1)
    search = Search(base, {"gamma": "0.9,0.99"}, seeds=2)
    trials = [{"gamma": 0.9}, {"gamma": 0.99}, {"gamma": 0.95}]
    module._run_batch(tmp_path / "batches" / "00", search, trials)
    each = member_bytes(member_options(base, {}), make_env("azjax:cartpole"))
    monkeypatch.setattr(machine, "free_memory", lambda devices: each * 4.1 / 0.6)  # room for four of six
    assert [len(part.members) for part in lay_out(made[0]).parts] == [3, 3]


def test_a_search_is_written_and_read() -> None:
    search, _ = read_search(["hopper", "--trials=7", "--batch", "3", "--seeds", "2"], "azjax tune")
    assert search.space == default_space(search.base)
    assert search.axes()["lam"] == Range(0.9, 1.0)
    again = from_text(to_text(search), Path("tune.yaml"))
    assert (again.trials, again.batch, again.seeds, again.axes()) == (7, 3, 2, search.axes())
    assert isinstance(again.axes()["gamma"], Choice)
    assert "max_kl" in default_space(preset_options("hopper", algorithm="trpo"))
    for text in ("", "schema: 1", to_text(search).replace("trials: 7", "trials: x"), "schema: 2"):
        with pytest.raises(ConfigError, match=r"tune.yaml describes no search"):
            from_text(text, Path("tune.yaml"))


def test_a_preset_holds_what_differs_from_the_defaults(tmp_path: Path) -> None:
    options = preset_options("hopper")
    values = preset_values(options)
    assert values["normalize_returns"] is True
    assert "lam" not in values
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump({"hopper": values}))
    assert read_preset(path, "hopper", None, "ppo") == options
    for text, message in (
        ("ant: {}", "has presets for ant, not for hopper"),
        ("hopper: {lanez: 3}", "unknown option 'lanez'; did you mean 'lanes'?"),
        ("hopper: {lanes: x}", "lanes"),
        ("a: [", "is no file of presets"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_preset(path, "hopper", None, "ppo")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["hopper", "--trials", "5000", "--batch", "1000", "--seeds", "5"],
            "1000 trials x 5 seeds are 5000 members of a batch, more than 4096",
        ),
        (["hopper", "--chunk", "0"], "chunk is 0; it must lie between"),
        (["hopper", "--trials", "0"], "trials is 0; it must lie between"),
        (["hopper", "--gamma", "0.9..1.5"], "the member with gamma 1.5"),
        (["hopper", "--trials", "x"], "--trials is 'x'; it must be a whole number"),
        (["hopper", "--dry-run"], "leave --dry-run out"),
        (["hopper", "--coordinator", "a:1", "--processes", "2", "--process", "0"], "a search runs in one process"),
        (["hopper", "--axes", "none.yaml"], "none.yaml is missing"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
