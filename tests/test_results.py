"""azjax.runs.results, groups and comparison: what run folders say, whoever wrote them, and the figures made of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_cli
import yaml
from run_folders import make_run

from azjax.config import ConfigError
from azjax.runs.comparison import Comparison, compare_folders, to_plain
from azjax.runs.groups import NEUTRAL, differing, group_runs, shown
from azjax.runs.options import TrainOptions
from azjax.runs.results import Run, find_runs, read_run
from azjax.statistics import interquartile_mean, probability_of_improvement_interval, stratified_bootstrap_interval

# ---- a sound run


def test_a_run_is_read_back(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [1.0, 3.0, 2.0], seed=7, every=2000, learning_rate=0.125, policy_hidden=(8, 4))
    run = read_run(folder)
    assert (run.env, run.backend, run.seed, run.finished, run.warnings) == ("ant", "spring", 7, True, ())
    assert run.options["learning_rate"] == 0.125
    assert run.options["policy_hidden"] == (8, 4)
    assert "ppo" not in run.options
    assert run.evaluation.env_steps.tolist() == [2000, 4000, 6000]
    assert run.evaluation.seconds.tolist() == [2.0, 4.0, 6.0]
    assert run.evaluation.values.tolist() == [1.0, 3.0, 2.0]
    assert run.training.env_steps.tolist() == [500.0 * n for n in range(1, 13)]
    assert run.training.values.tolist() == [-9.0] * 4 + [-7.0] * 4 + [-8.0] * 4
    assert run.kl.tolist() == [0.01] * 12
    assert run.value_loss.tolist() == [1.0] * 12
    assert (run.final_return, run.env_steps, run.seconds) == (2.0, 6000, 6.0)
    assert run.versions["jax"] == "0.10.1"
    assert run.devices["cpu"] == "Some CPU"


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> test_cli.Run:
    """The training run that the tests of the command line look at, too."""
    return test_cli.train_once(tmp_path_factory)


def test_a_real_run_is_read_back(real: test_cli.Run) -> None:
    run, summary, metrics = read_run(real.folder), real.json("summary.json"), real.metrics
    evaluations = [record for record in metrics if "eval/episodes" in record]
    assert run.evaluation.values.tolist() == [record["eval/episode_return_mean"] for record in evaluations]
    assert run.final_return == summary["evaluation"]["return_mean"] == run.evaluation.values[-1]
    assert (run.env_steps, run.seconds) == (summary["env_steps"], summary["seconds"]["training"])
    assert run.versions == summary["versions"]
    assert dict(run.devices) == summary["devices"]
    assert len(run.kl) == sum("train/episodes" in record for record in metrics)
    assert np.isfinite(run.kl).all()
    config = yaml.safe_load((real.folder / "config.yaml").read_text())
    assert set(run.options) == set(config) - {"ppo"} | set(config["ppo"])


def test_an_unfinished_run_is_what_it_wrote_so_far(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", [1.0, 5.0], finished=False))
    assert (run.finished, run.final_return, run.env_steps, run.seconds) == (False, 5.0, 2000, 2.0)
    assert (run.versions, run.devices, run.warnings) == ({}, {}, ())
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    run = read_run(tmp_path / "run")
    assert (run.final_return, run.env_steps, run.evaluation.values.size) == (None, 0, 0)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (warning,) = read_run(tmp_path / "run").warnings
    assert "measured nothing yet" in warning


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_last_line_that_is_cut_is_left_out_with_a_warning(tmp_path: Path, cut: int) -> None:
    folder = make_run(tmp_path / "run", [1.0, 5.0], finished=False)
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(content[:-cut])
    run = read_run(folder)
    # Without its line break alone, the line is whole.
    assert run.evaluation.values.tolist() == ([1.0, 5.0] if cut == 1 else [1.0])
    if cut > 1:
        (warning,) = run.warnings
        assert re.search(r"metrics\.jsonl: line 10, the last, is cut", warning)


def test_a_resumed_folder_reads_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for name in ("checkpoints", "tensorboard", "best"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("other: 1")
    assert find_runs([tmp_path]) == ([folder], [])
    assert read_run(folder).final_return == 100.0


def test_a_final_evaluation_in_which_all_broke_gives_no_return(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["evaluation"] = {"episodes": 0, "nonfinite_episodes": 2, "returns": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert read_run(folder).final_return is None


# ---- where runs are


def test_runs_are_found_in_folders_of_runs_once_and_in_order(tmp_path: Path) -> None:
    b, a = make_run(tmp_path / "b"), make_run(tmp_path / "a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "report.html").write_text("")
    (tmp_path / "link").symlink_to(b)
    assert find_runs([tmp_path]) == ([a, b], [])
    assert find_runs([b, tmp_path]) == ([b, a], [])
    assert find_runs([a, tmp_path / "report.html"]) == ([a], [str(tmp_path / "report.html")])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "does not exist"), ("empty", "is no run folder and holds none"), ("file", "no run folder")],
)
def test_a_path_without_runs_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"{name}.*{reason}"):
        find_runs([tmp_path / name])


# ---- a run from a stranger

DEEP = "[" * 100_000
METRICS: list[tuple[bytes, str]] = [
    (b"nonsense\n", "line 1: Expecting value"),
    (b"\xff\xfe\n", "line 1: it is not UTF-8"),
    (b"[]\n", "no JSON object"),
    (b"{}\n", "env_steps is missing"),
    (b'{"env_steps": 1}\n', "time/seconds is missing"),
    (b'{"env_steps": true, "time/seconds": 1}\n', "env_steps is missing, or no whole number"),
    (b'{"env_steps": 1.5, "time/seconds": 1}\n', "no whole number"),
    (b'{"env_steps": -1, "time/seconds": 1}\n', "env_steps"),
    (b'{"env_steps": 1' + b"0" * 30 + b', "time/seconds": 1}\n', "env_steps"),
    (b'{"env_steps": 1' + b"0" * 5000 + b', "time/seconds": 1}\n', "line 1"),
    (b'{"env_steps": 1, "time/seconds": NaN}\n', "NaN is no JSON"),
    (b'{"env_steps": 1, "time/seconds": 1e999}\n', "1e999 is no JSON"),
    (b'{"env_steps": 1, "time/seconds": "1"}\n', "time/seconds"),
    (b'{"env_steps": 1, "time/seconds": 1, "eval/episode_return_mean": -1e40}\n', "eval/episode_return_mean"),
    (b'{"env_steps": 1, "time/seconds": 1, "learner/kl": null}\n', "learner/kl"),
    (b'{"env_steps": 1, "time/seconds": 1, "eval/episode_return_mean": Infinity}\n', "Infinity is no JSON"),
    (b'{"env_steps": 1, "time/seconds": 1, "train/episode_return": [1]}\n', "train/episode_return"),
    (
        b'{"env_steps": 1, "time/seconds": 1}\n{"env_steps": 0, "time/seconds": 2}\n',
        "line 2: env_steps or time/seconds go",
    ),
    (b'{"env_steps": 1, "time/seconds": 1}\n\n{"env_st\n{"env_steps": 2, "time/seconds": 2}\n', "line 3"),
    (b'{"env_steps": 1, "x": ' + DEEP[:50_000].encode() + b"\n", "line 1: it is nested too deeply"),
    (b"x" * 70_000, "line 1 is longer than 65536 bytes"),
    (b"\n" * 10 + b" " * 70_000, "line 11 is longer"),
]
CONFIG: list[tuple[bytes, str]] = [
    (b"", "no mapping"),
    (b"- 1\n", "no mapping"),
    (b"{env: ant", "not valid YAML"),
    (b"\xff\xff", "does not hold the options"),
    (b"\x00", "not valid YAML"),
    (b"env: ant", "env or seed is missing"),
    (b"env: ant\nseed: one", "env or seed is missing"),
    (b"env: ant\nseed: true", "env or seed is missing"),
    (b"env: 3\nseed: 1", "env or seed is missing"),
    (b"env: ant\nseed: 1\n2: x", "names that are no text"),
    (b"env: ant\nseed: 1\nx: 2020-01-01", "wrong type or size: date"),
    (b"env: ant\nseed: 1\nx: 1" + b"0" * 40, "wrong type or size: int"),
    (b"env: ant\nseed: 1\nx: 1" + b"0" * 5000, "does not hold the options"),
    (b"env: ant\nseed: 1\nx: {y: {z: 1}}", "wrong type or size: dict"),
    (b"env: ant\nseed: 1\nx: [[1]]", "wrong type or size: list"),
    (b"env: ant\nseed: 1\nx: &a [1]\ny: *a", "aliases"),
    (b"env: ant\nseed: 1\nx: !!python/object/apply:os.system [touch hacked]", "not valid YAML"),
    (b"env: ant\nseed: 1\nx: " + DEEP[:20_000].encode(), "nested too deeply"),
    (b"env: ant\nseed: 1\nx: [" + b"1, " * 1000 + b"1]", "more than 256 entries"),
    (b"env: ant\nseed: 1\n" + b"".join(b"x%d: 1\n" % n for n in range(300)), "more than 256"),
    (b"#" * 70_000, "larger than 65536 bytes"),
]
SUMMARY: list[tuple[Any, str]] = [
    (b"", "not the summary"),
    (b"{", "not the summary"),
    (b"[1]", "no mapping"),
    (DEEP.encode(), "nested too deeply"),
    (b"\xff", "not UTF-8"),
    ({"evaluation": None}, "evaluation is no mapping"),
    ({"evaluation": {"return_mean": "high"}}, "missing in evaluation"),
    ({"evaluation": {"return_mean": True}}, "missing in evaluation"),
    ({"seconds": {}}, "missing in seconds"),
    ({"seconds": [1]}, "seconds is no mapping"),
    ({"env_steps": None}, "env_steps is missing"),
    ({"env_steps": -5}, "env_steps is missing"),
    ({"env_steps": 10**40}, "env_steps is missing"),
    ({"versions": {"jax": {"a": 1}}}, "wrong type"),
    ({"versions": {f"x{n}": "1" for n in range(300)}}, "more than 256"),
    ({"devices": ["cpu"]}, "devices is no mapping"),
    ({"devices": {"kind": [[1]]}}, "wrong type"),
    ({"env": "hopper"}, "another run's: its env is 'hopper'"),
    ({"seed": 5}, "another run's: its seed is 5"),
]


def refused(folder: Path, name: str, reason: str) -> None:
    """The message names the file, the reason and the mend, in one short line."""
    with pytest.raises(ConfigError) as error:
        read_run(folder)
    message = str(error.value)
    assert str(folder / name) in message
    assert reason in message
    assert "leave this run out, or take another copy of it" in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(("content", "reason"), METRICS, ids=[reason for _, reason in METRICS])
def test_malformed_metrics_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    (folder / "metrics.jsonl").write_bytes(content)
    refused(folder, "metrics.jsonl", reason)


@pytest.mark.parametrize(("content", "reason"), CONFIG, ids=[reason for _, reason in CONFIG])
def test_a_malformed_configuration_is_refused(
    tmp_path: Path, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (folder / "config.yaml").write_bytes(content)
    refused(folder, "config.yaml", reason)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(("content", "reason"), SUMMARY, ids=[reason for _, reason in SUMMARY])
def test_a_malformed_summary_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    folder = make_run(tmp_path / "run")
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / "summary.json").read_text()) | content).encode()
    (folder / "summary.json").write_bytes(content)
    refused(folder, "summary.json", reason)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    makers: list[Callable[[Path], object]] = [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")]
    for number, make in enumerate(makers):
        folder = make_run(tmp_path / f"run-{number}")
        (folder / name).unlink()
        make(folder / name)
        refused(folder, name, "is no file")
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    if name != "summary.json":
        refused(folder, name, "is missing")


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    monkeypatch.setattr("azjax.runs.results._LARGEST_METRICS", 1000)
    refused(folder, "metrics.jsonl", "larger than 1000 bytes")
    monkeypatch.setattr("azjax.runs.results._MOST_LINES", 5)
    monkeypatch.setattr("azjax.runs.results._LARGEST_METRICS", 1 << 20)
    refused(folder, "metrics.jsonl", "more than 5 lines")
    monkeypatch.setattr("azjax.runs.results._LARGEST_SUMMARY", 100)
    refused(folder, "summary.json", "larger than 100 bytes")


def test_text_can_steer_no_terminal(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "ru\x1b[2Jn\n", config={"env": "ant\x1b]0;title\x07", "note\u202e": "x" * 10_000})
    run = read_run(folder)
    texts = [run.name, *run.options, *(v for v in run.options.values() if isinstance(v, str))]
    assert all(text.isprintable() and len(text) <= 200 for text in texts)
    assert run.env == "ant\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}"


# ---- groups


def runs_of(*folders: Path) -> list[Run]:
    return [read_run(folder) for folder in folders]


def test_seeds_of_one_configuration_are_one_group(tmp_path: Path) -> None:
    runs = runs_of(
        make_run(tmp_path / "a", seed=2),
        make_run(tmp_path / "b", seed=1, quiet=True, cache=False, updates_per_call=1),
        make_run(tmp_path / "c", seed=1, learning_rate=0.5),
    )
    (task,) = group_runs(runs)
    assert task.name == "ant (spring)"
    assert [[run.name[-1] for run in group.runs] for group in task.groups] == [["b", "a"], ["c"]]
    assert [group.label for group in task.groups] == ["learning_rate=0.002", "learning_rate=0.5"]
    assert not NEUTRAL & set(task.groups[0].options)


def test_what_is_neutral_are_options(tmp_path: Path) -> None:
    assert NEUTRAL - {"schema"} <= set(TrainOptions.__dataclass_fields__)


def test_an_option_that_an_older_version_lacks_counts_as_its_default(tmp_path: Path) -> None:
    old, new, other = make_run(tmp_path / "a"), make_run(tmp_path / "b"), make_run(tmp_path / "c", stagger=False)
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["stagger"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (task,) = group_runs(runs_of(old, new, other))
    assert [group.label for group in task.groups] == ["stagger=yes", "stagger=no"]
    assert [len(group.runs) for group in task.groups] == [2, 1]


def test_one_configuration_is_called_by_its_algorithm(tmp_path: Path) -> None:
    (task,) = group_runs(runs_of(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)))
    assert [group.label for group in task.groups] == ["ppo"]


def test_algorithms_are_told_by_their_names(tmp_path: Path) -> None:
    """However many options differ between them; what differs within one of them is named."""
    ppo, trpo = make_run(tmp_path / "a"), make_run(tmp_path / "b", algorithm="trpo", lanes=2048)
    (task,) = group_runs(runs_of(ppo, trpo))
    assert [group.label for group in task.groups] == ["ppo", "trpo"]
    assert "max_kl" not in task.groups[0].options
    assert "clip" not in task.groups[1].options
    larger = make_run(tmp_path / "c", algorithm="trpo", lanes=2048, max_kl=0.5)
    (task,) = group_runs(runs_of(ppo, trpo, larger))
    assert [group.label for group in task.groups] == ["ppo", "trpo · max_kl=0.1", "trpo · max_kl=0.5"]
    many = {"gamma": 0.5, "lam": 0.5, "damping": 0.5, "cg_iterations": 5}
    (task,) = group_runs(runs_of(ppo, trpo, make_run(tmp_path / "d", algorithm="trpo", lanes=2048, **many)))
    labels = [group.label for group in task.groups]
    assert labels[0] == "ppo"
    assert labels[1].startswith("trpo · damping=0.1")
    assert labels[2] == "trpo · gamma=0.5 · lam=0.5 · damping=0.5 · 1 more"


def test_other_physics_is_another_task(tmp_path: Path) -> None:
    runs = runs_of(make_run(tmp_path / "a"), make_run(tmp_path / "b", backend="mjx"))
    assert [task.name for task in group_runs(runs)] == ["ant (spring)", "ant (mjx)"]


def test_labels_name_what_differs_without_what_follows_from_it(tmp_path: Path) -> None:
    """The length of the schedule follows from the steps."""
    (task,) = group_runs(runs_of(make_run(tmp_path / "a", steps=10_000), make_run(tmp_path / "b", steps=10**6)))
    assert {"steps", "schedule_updates"} <= set(differing([group.options for group in task.groups]))
    assert [group.label for group in task.groups] == ["steps=10,000", "steps=1,000,000"]
    (task,) = group_runs(runs_of(make_run(tmp_path / "c", reset_pool=64), make_run(tmp_path / "d", reset_pool=128)))
    assert [group.label for group in task.groups] == ["reset_pool=64", "reset_pool=128"]


def test_ablations_are_called_by_what_they_change(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"gamma": 0.5}, {"clip": 0.5}, {"lanes": 2048}, {"epochs": 9, "clip": 0.7}]
    runs = runs_of(*(make_run(tmp_path / str(n), **change) for n, change in enumerate(changes)))
    (task,) = group_runs(runs)
    labels = [group.label for group in task.groups]
    assert labels == ["base", "gamma=0.5", "clip=0.5", "lanes=2,048", "clip=0.7 · epochs=9"]


def test_labels_are_different_even_where_they_would_look_alike(tmp_path: Path) -> None:
    runs = runs_of(make_run(tmp_path / "a", gamma=0.97), make_run(tmp_path / "b", gamma=0.9700000001))
    (task,) = group_runs(runs)
    assert [group.label for group in task.groups] == ["gamma=0.97 (1)", "gamma=0.97 (2)"]
    many = {"gamma": 0.5, "lam": 0.5, "clip": 0.5, "epochs": 9, "lanes": 2048, "entropy_coefficient": 0.5}
    (task,) = group_runs(runs_of(make_run(tmp_path / "c"), make_run(tmp_path / "d", **many)))
    assert task.groups[0].label == "base"
    assert task.groups[1].label.endswith(" · 2 more")
    assert task.groups[1].label.count("=") == 4


def test_values_are_shown_as_they_are_given() -> None:
    values = [None, True, False, 3_000_000, 0.1, float("inf"), "tanh", (64, 64), ()]
    assert list(map(shown, values)) == ["none", "yes", "no", "3,000,000", "0.1", "inf", "tanh", "64 64", "none"]
    assert differing([{"a": 1, "b": True}, {"a": 1.0, "b": 1}]) == ["b"]
    assert differing([{"a": None}, {}]) == ["a"]


# ---- figures


@pytest.fixture
def two(tmp_path: Path) -> Comparison:
    """Two configurations with three and two seeds, and a run that is still going on."""
    for seed, returns in enumerate([(0.0, 50.0, 40.0), (0.0, 100.0, 80.0), (0.0, 30.0, 60.0)]):
        make_run(tmp_path / f"a{seed}", returns, seed=seed)
    for seed, returns in enumerate([(10.0, 20.0, 70.0), (0.0, 60.0, 100.0)]):
        make_run(tmp_path / f"b{seed}", returns, seed=seed, gamma=0.5)
    make_run(tmp_path / "b9", (500.0,), seed=9, gamma=0.5, finished=False)
    return compare_folders([tmp_path], [50.0, 90.0, 101.0])


def test_the_figures_by_hand(two: Comparison) -> None:
    (result,) = two.tasks
    a, b = result.figures
    assert (a.label, b.label, result.first) == ("gamma=0.97", "gamma=0.5", "gamma=0.97")
    assert (a.returns, b.returns) == ((40.0, 80.0, 60.0), (70.0, 100.0))
    assert (a.mean, a.std, b.mean) == (60.0, 20.0, 85.0)
    assert a.iqm.value == interquartile_mean([40.0, 80.0, 60.0])
    assert (a.iqm.low, a.iqm.high) == stratified_bootstrap_interval([[40.0, 80.0, 60.0]])
    assert a.improvement is None
    # 70 beats two of three, 100 all.
    assert b.improvement.value == pytest.approx(5 / 6)
    ends = probability_of_improvement_interval([[70.0, 100.0]], [[40.0, 80.0, 60.0]])
    assert (b.improvement.low, b.improvement.high) == ends
    assert a.drawdowns == (10.0, 20.0, 0.0)
    assert a.relative_drawdowns == (0.2, 0.2, 0.0)
    assert (a.spikes, b.spikes) == (0.0, 0.0)
    assert result.span == (1000.0, 3000.0)
    assert a.area == pytest.approx(np.mean([(25 + 45) / 2, (50 + 90) / 2, (15 + 45) / 2]))
    assert [tuple(c) for c in a.steps_to] == [(3, 3, 2000.0), (1, 3, None), (0, 3, None)]
    assert tuple(b.steps_to[0]) == (2, 2, pytest.approx((2600.0 + 1000 * 50 / 60 + 1000) / 2))
    assert [tuple(c) for c in a.seconds_to] == [(3, 3, 2.0), (1, 3, None), (0, 3, None)]


def test_an_unfinished_run_counts_only_if_none_is_finished(two: Comparison, tmp_path: Path) -> None:
    (warning,) = two.warnings
    assert re.search(r"b9 is left out of the figures: it is unfinished", warning)
    comparison = compare_folders([tmp_path / "b9"])
    (figures,) = comparison.tasks[0].figures
    assert (figures.returns, figures.finished) == ((500.0,), False)
    assert (figures.std, figures.iqm.low, figures.improvement) == (None, None, None)
    (warning,) = comparison.warnings
    assert "no run is finished" in warning


def test_two_runs_of_one_seed_are_told(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=3), make_run(tmp_path / "b", seed=3)
    (warning,) = compare_folders([tmp_path]).warnings
    assert "more than one run of seed 3" in warning


def test_spikes_are_found_in_a_run(tmp_path: Path) -> None:
    kl = [0.01] * 19 + [0.2]
    make_run(tmp_path / "a", [0.0] * 5, kl=kl)
    assert compare_folders([tmp_path]).tasks[0].figures[0].spikes == pytest.approx(1 / 10)


def test_thresholds_lie_between_the_lowest_and_the_highest_evaluation(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [-80.0, -33.0, 20.0])
    assert compare_folders([tmp_path]).tasks[0].thresholds == (-55.0, -30.0, -5.0, 10.0)
    make_run(tmp_path / "b", [7.0, 7.0], env="hopper")
    assert compare_folders([tmp_path / "b"]).tasks[0].thresholds == (7.0,)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"thresholds .* finite"):
            compare_folders([tmp_path], [wrong])


def test_all_tasks_together_are_normalised_by_the_evaluations_shown(tmp_path: Path) -> None:
    for env, scale in (("ant", 1.0), ("hopper", 10.0)):
        for seed, (low, high) in enumerate([(0.0, 50.0), (20.0, 100.0)]):
            make_run(tmp_path / f"{env}-{seed}", [scale * low, scale * high], env=env, seed=seed, gamma=0.9)
            make_run(tmp_path / f"{env}-{seed}-b", [scale * low, scale * high / 2], env=env, seed=seed, gamma=0.5)
    first, second = compare_folders([tmp_path]).aggregates
    assert (first.label, second.label) == ("gamma=0.9", "gamma=0.5")
    assert (first.runs, first.mean, second.mean) == (4, 0.75, 0.375)
    assert first.iqm.value == 0.75
    assert (first.iqm.low, first.iqm.high) == stratified_bootstrap_interval([[0.5, 1.0], [0.5, 1.0]])
    # 0.25 and 0.5 against 0.5 and 1: one tie of four.
    assert second.improvement.value == 0.125


def test_a_configuration_that_was_not_run_everywhere_is_not_aggregated(tmp_path: Path) -> None:
    make_run(tmp_path / "a", env="ant", gamma=0.9)
    make_run(tmp_path / "b", env="ant", gamma=0.5)
    make_run(tmp_path / "c", env="hopper", gamma=0.9)
    (aggregate,) = compare_folders([tmp_path]).aggregates
    assert aggregate.label == "gamma=0.9"
    make_run(tmp_path / "d", env="reacher", gamma=0.1)
    assert compare_folders([tmp_path]).aggregates == ()
    assert compare_folders([tmp_path / "a", tmp_path / "b"]).aggregates == ()


def test_runs_without_anything_can_be_compared_too(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [], finished=False)
    make_run(tmp_path / "b", [5.0], gamma=0.5)
    (result,) = compare_folders([tmp_path]).tasks
    assert result.figures[0].mean is None
    assert result.figures[1].mean == 5.0
    assert result.first == "gamma=0.5"
    assert (result.span, result.figures[1].area) == (None, None)


def test_the_numbers_are_plain_data(two: Comparison) -> None:
    plain = json.loads(json.dumps(to_plain(two), allow_nan=False))
    first, second = plain["tasks"][0]["configurations"]
    assert first["label"] == "gamma=0.97"
    assert first["steps_to"][0] == {"reached": 3, "runs": 3, "median": 2000.0}
    assert second["improvement"]["value"] == pytest.approx(5 / 6)
    assert plain["all_tasks"] == []
    assert len(plain["warnings"]) == 1
