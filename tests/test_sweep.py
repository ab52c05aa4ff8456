"""Sweeps: what an axis is, which members it spans, and the real command from beginning to end."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from azjax.cli import main
from azjax.cli.sweep import read_sweep
from azjax.config import ConfigError
from azjax.runs import load_policy
from azjax.runs.options import TrainOptions, preset_options
from azjax.runs.parts import rungs, survivors
from azjax.runs.population import PopulationJob, best_evaluation, member_records
from azjax.runs.results import find_runs
from azjax.runs.run_options import read_options
from azjax.runs.sweep import Choice, Group, Range, group_members, member_options, parts_of, read_axis, spread
from azjax.runs.sweep_results import rank, to_csv
from azjax.runs.sweeps import Sweep, from_text, to_text

CARTPOLE = preset_options("azjax:cartpole")


# ---------------------------------------------------------------------------------------------------------------------
# Axes and members
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "axis"),
    [
        ("gamma", "0.9,0.99", Choice((0.9, 0.99))),
        ("gamma", "1", Choice((1.0,))),
        ("epochs", "1,2", Choice((1, 2))),
        ("schedule", "constant,linear", Choice(("constant", "linear"))),
        ("stagger", "true,false", Choice((True, False))),
        ("lam", "0.9..1", Range(0.9, 1.0)),
        ("learning_rate", "log:1e-4..1e-2", Range(1e-4, 1e-2, log=True)),
        ("lam", [0.5, 1], Choice((0.5, 1.0))),
        ("learning_rate", {"log": [1e-4, 1e-2]}, Range(1e-4, 1e-2, log=True)),
        ("lam", {"uniform": [0, 1]}, Range(0.0, 1.0)),
        ("policy_hidden", [[64, 64], [8]], Choice(((64, 64), (8,)))),
        ("lanes", "64,128", Choice((64, 128))),
        ("reset_pool", "64,128", Choice((64, 128))),
    ],
)
def test_an_axis_is_a_list_or_a_range(name: str, spec: Any, axis: Choice | Range) -> None:
    assert read_axis(CARTPOLE, name, spec) == axis


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("gama", "0.9,0.99", "gama can't be swept over; did you mean 'gamma'?"),
        ("seed", "1,2", "seed can't be swept over"),
        ("gamma", "0.9,x", "gamma has the value 'x'; it must be a number"),
        ("epochs", "1,2.5", "epochs has the value '2.5'; it must be a whole number"),
        ("gamma", "0.9,0.9", "gamma has a value twice"),
        ("gamma", "1..0.9", "the lower end comes first"),
        ("gamma", "0.9..", "'' where a number should be"),
        ("epochs", "1..4", "takes no real numbers"),
        ("learning_rate", "log:0..1", "start above 0"),
        ("gamma", "log:0.9,1", "a range is low..high or log:low..high"),
        ("gamma", {"normal": [0, 1]}, "a range is {uniform"),
        ("gamma", {"uniform": 5}, "a range is {uniform"),
        ("gamma", {"uniform": ["a", 1]}, "'a' where a number should be"),
        ("gamma", {"uniform": [0, float("inf")]}, "'inf' where a number should be"),
        ("policy_hidden", [[64, [64]], [3]], "it must be whole numbers"),
        ("policy_hidden", [[64, -3]], "it must be whole numbers"),
        ("gamma", 0.9, "give a list of values"),
        ("gamma", [True], "not of its type"),
        ("policy_hidden", "64,64", "lists of layers go into a file"),
    ],
)
def test_what_is_no_axis_is_said_in_a_line(name: str, spec: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_axis(CARTPOLE, name, spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_members_are_all_combinations_with_all_seeds() -> None:
    axes = {"gamma": Choice((0.9, 0.99)), "epochs": Choice((1, 2))}
    options = preset_options("azjax:cartpole", seed=5)
    assert spread(options, axes, seeds=2) == [
        {"gamma": gamma, "epochs": epochs, "seed": seed}
        for gamma in (0.9, 0.99)
        for epochs in (1, 2)
        for seed in (5, 6)
    ]
    assert spread(options, {}, seeds=3) == [{"seed": 5}, {"seed": 6}, {"seed": 7}]


@given(low=st.floats(1e-6, 1.0), factor=st.floats(1.5, 1e4), seed=st.integers(0, 2**31), log=st.booleans())
def test_draws_lie_in_their_range_and_are_the_seeds_own(low: float, factor: float, seed: int, log: bool) -> None:
    axes = {"learning_rate": Range(low, low * factor, log), "gamma": Choice((0.9, 0.99))}
    options = preset_options("azjax:cartpole", seed=seed)
    members = spread(options, axes, samples=4, seeds=2)
    assert members == spread(options, axes, samples=4, seeds=2)
    drawn = [own["learning_rate"] for own in members]
    assert all(low * 0.999 <= value <= low * factor * 1.001 for value in drawn)  # type: ignore[operator]
    assert len(set(drawn)) == 8  # every configuration its own, its seeds the same


def test_a_logarithmic_range_is_uniform_in_the_logarithm() -> None:
    drawn = [Range(1e-4, 1.0, log=True).draw(np.random.default_rng(n)) for n in range(400)]
    assert np.mean([math.log10(value) for value in drawn]) == pytest.approx(-2.0, abs=0.2)


def test_too_much_or_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="no option has a range"):
        spread(CARTPOLE, {"gamma": Choice((0.9, 1.0))}, samples=2)
    with pytest.raises(ConfigError, match="are more than 4096"):
        spread(CARTPOLE, {"gamma": Choice((0.9, 1.0))}, seeds=4000)
    with pytest.raises(ConfigError, match=r"the member with gamma 1.5, seed 0: gamma is 1.5; it must lie between"):
        member_options(CARTPOLE, {"gamma": 1.5, "seed": 0})


def test_members_that_differ_in_what_is_static_have_programs_of_their_own() -> None:
    axes = {"gamma": Choice((0.9, 0.99)), "epochs": Choice((1, 2))}
    members = [member_options(CARTPOLE, own) for own in spread(CARTPOLE, axes, seeds=2)]
    groups = group_members(members)
    assert [group.members for group in groups] == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert [group.options.learner.epochs for group in groups] == [1, 2]  # type: ignore[attr-defined]


def test_the_seeds_of_a_configuration_that_may_stop_stay_together() -> None:
    group = Group(CARTPOLE, tuple(range(12)))
    assert list(parts_of(group, 7, 3)) == [tuple(range(6)), tuple(range(6, 12))]
    assert [len(part) for part in parts_of(group, 2, 3)] == [3] * 4


@given(st.integers(1, 50), st.integers(1, 50))
def test_parts_are_of_at_most_two_sizes(count: int, chunk: int) -> None:
    parts = list(parts_of(Group(CARTPOLE, tuple(range(count))), chunk))
    assert [i for part in parts for i in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= chunk
    assert len(parts) == -(-count // max(sizes)) == len(set(range(0, count, max(sizes))))
    assert len(set(sizes)) <= 2


def test_a_sweep_is_written_and_read() -> None:
    sweep = Sweep(CARTPOLE, ({"policy_hidden": (8, 8), "seed": 0}, {"policy_hidden": (4,), "seed": 0}), None, (2,), 1)
    assert from_text(to_text(sweep), Path("sweep.yaml")) == sweep
    for text in ("", "[]", "schema: 9", "schema: 1\nmembers: 3\nchunks: [1]",
                 "schema: 1\nmembers: []\nchunks: [x]", "a: [",
                 to_text(sweep).replace("env:", "evn:")):  # fmt: skip
        with pytest.raises(ConfigError, match=r"sweep.yaml describes no sweep"):
            from_text(text, Path("sweep.yaml"))


def test_configurations_are_ranked_by_their_interquartile_mean() -> None:
    rows = [
        {"member": n, "gamma": gamma, "return_mean": value, "frozen": False, "stopped_early": value > 9.0}
        for n, (gamma, value) in enumerate([(0.9, 1.0), (0.9, 3.0), (0.99, 4.0), (0.99, 6.0), (1.0, 10.0)])
    ]
    best, worst, stopped = rank(rows, ["gamma"])
    assert (stopped["values"], stopped["stopped_early"]) == ({"gamma": 1.0}, True)  # it had fewer steps than the others
    assert best["values"] == {"gamma": 0.99}
    assert best["return_iqm"] == best["return_mean"] == 5.0
    assert (best["members"], worst["members"], worst["seeds"]) == ([2, 3], [0, 1], 2)
    assert to_csv([{"a": 1, "b": None}]) == "a,b\n1,\n"


def test_lines_of_a_part_are_taken_apart() -> None:
    records = [
        {"members": [{"env_steps": 1}, {"env_steps": 1, "eval/episode_return_mean": 3.0}]},
        {"members": [None, {"env_steps": 2, "eval/episode_return_mean": 3.0}]},
    ]
    assert member_records(records, 0) == [{"env_steps": 1}]
    assert best_evaluation(member_records(records, 0)) is None
    assert best_evaluation(member_records(records, 1)) == (1, 3.0)


def test_the_better_half_of_the_configurations_survives() -> None:
    configurations = [0, 0, 1, 1, 2, 2]
    returns = {0: 1.0, 1: 3.0, 2: 9.0, 3: 9.0, 4: 5.0}  # the last one's is not known
    assert survivors(range(6), configurations, returns) == [0, 1, 2, 3]
    assert survivors([0, 1, 2, 3], configurations, returns) == [2, 3]
    assert survivors([2, 3], configurations, returns) == [2, 3]


@given(st.integers(1, 10_000), st.integers(1, 50), st.integers(0, 12))
def test_rungs_are_whole_calls_and_end_with_the_run(calls: int, per_call: int, halvings: int) -> None:
    ends = rungs(calls * per_call, per_call, halvings)
    assert ends[-1] == calls * per_call
    assert ends == sorted(set(ends))
    assert all(end % per_call == 0 for end in ends)
    assert len(ends) <= halvings + 1


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

TINY = ["--steps", "4096", "--lanes", "16", "--rollout-length", "32", "--evaluations", "2", "--evaluation-episodes",
        "4", "--epochs", "1", "--minibatches", "1", "--no-tensorboard"]  # fmt: skip
SWEPT = ["azjax:cartpole", "--gamma", "0.9,0.99", "--learning-rate", "log:1e-3..1e-2", "--seeds", "2", *TINY]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep: two configurations, two seeds, in two parts."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    assert main(["sweep", *SWEPT, "--chunk", "2", "--run", str(folder)]) == 0
    return folder


def test_a_sweep_leaves_a_table_and_a_ranking(swept: Path) -> None:
    with (swept / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["gamma"] for row in rows] == ["0.9", "0.9", "0.99", "0.99"]
    assert rows[0]["learning_rate"] == rows[1]["learning_rate"] != rows[2]["learning_rate"]
    assert {row["env_steps"] for row in rows} == {"4096"}
    table = pyarrow.parquet.read_table(swept / "results.parquet").to_pylist()
    assert [row["return_mean"] for row in table] == [float(row["return_mean"]) for row in rows]
    summary = json.loads((swept / "summary.json").read_text())
    assert summary["members"] == 4
    assert summary["frozen"] == 0
    assert len(summary["configurations"]) == 2
    assert summary["best_member"]["return_mean"] == max(row["return_mean"] for row in table)
    page = (swept / "report.html").read_text()
    assert "gamma=0.9" in page
    assert "data:image/png;base64," in page
    assert (swept / "marginals.png").stat().st_size > 5000


def test_a_member_is_a_run_like_any_other(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    member = swept / "members" / "002"
    options = read_options(member / "config.yaml", TrainOptions)
    assert (options.seed, options.learner.gamma) == (0, 0.99)
    assert (
        load_policy(member).description["params_sha256"]
        == json.loads((member / "summary.json").read_text())["params_sha256"]
    )
    assert [path.name for path in find_runs([swept])[0]] == ["000", "001", "002", "003"]
    assert main(["compare", str(swept)]) == 0
    assert "gamma=0.99" in capsys.readouterr().out
    assert main(["evaluate", str(swept)]) == 2
    assert f"is a sweep of many runs; name one of them, as in {swept / 'members' / '000'}" in capsys.readouterr().err


def test_a_member_is_close_to_the_run_of_its_seed(swept: Path, tmp_path: Path) -> None:
    configuration = json.loads((swept / "summary.json").read_text())["configurations"][0]
    gamma, rate = (str(configuration["values"][name]) for name in ("gamma", "learning_rate"))
    first = configuration["members"][0]
    folder = tmp_path / "alone"
    own = ["azjax:cartpole", "--gamma", gamma, "--learning-rate", rate, *TINY, "--devices", "1"]
    assert main(["train", *own, "--run", str(folder)]) == 0

    def first_line(run: Path) -> dict[str, Any]:
        record = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        return {name: value for name, value in record.items() if not name.startswith("time/")}

    alone, together = first_line(folder), first_line(swept / "members" / f"{first:03d}")
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name


def test_a_member_goes_on_by_itself(swept: Path, tmp_path: Path) -> None:
    member = tmp_path / "member"
    shutil.copytree(swept / "members" / "001", member)
    assert main(["resume", str(member), "--steps", "8192", "--devices", "1"]) == 0
    assert json.loads((member / "summary.json").read_text())["env_steps"] == 8192
    steps = [json.loads(line)["env_steps"] for line in (member / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert max(steps) == 8192


def test_a_sweep_that_is_stopped_goes_on_where_it_was(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stopped"
    calls = []
    step = PopulationJob.step

    def interrupted(self: PopulationJob, state: Any) -> Any:
        calls.append(self)
        if len(calls) == 3:  # in the second part, each of which takes two calls
            signal.raise_signal(signal.SIGTERM)
        return step(self, state)

    monkeypatch.setattr(PopulationJob, "step", interrupted)
    arguments = ["--chunk", "2", "--updates-per-call", "4", "--run", str(folder)]
    code = main(["sweep", *SWEPT, *arguments])
    assert code == 143
    assert f"azjax resume {folder}" in capsys.readouterr().err
    assert (folder / "members" / "001" / "summary.json").exists()
    assert not (folder / "members" / "002" / "summary.json").exists()
    before = (folder / "members" / "001" / "summary.json").read_bytes()
    monkeypatch.undo()
    assert main(["resume", str(folder)]) == 0
    assert (folder / "members" / "001" / "summary.json").read_bytes() == before
    assert rows_of(folder) == rows_of(swept)  # bit for bit
    assert main(["resume", str(folder)]) == 2
    assert "is finished" in capsys.readouterr().err


HALVED = ["azjax:cartpole", "--gamma", "0.5,0.9,0.99", "--seeds", "2", *TINY, "--updates-per-call", "2",
          "--halvings", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep in which one configuration of three stopped halfway."""
    folder = tmp_path_factory.mktemp("halved") / "sweep"
    assert main(["sweep", *HALVED, "--run", str(folder)]) == 0
    return folder


def rows_of(run: Path) -> list[dict[str, str]]:
    """The table without what depends on the time."""
    with (run / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_the_worse_half_stops_using_steps(halved: Path) -> None:
    rows = rows_of(halved)
    assert sorted(row["env_steps"] for row in rows) == ["2048"] * 2 + ["4096"] * 4
    assert {row["stopped_early"] for row in rows if row["env_steps"] == "2048"} == {"True"}
    assert {row["stopped_early"] for row in rows if row["env_steps"] == "4096"} == {"False"}
    lines = [json.loads(line) for line in (halved / "parts" / "00" / "metrics.jsonl").open()]
    stopped = next(n for n, row in enumerate(rows) if row["stopped_early"] == "True")
    assert lines[0]["members"][stopped] is not None
    assert lines[-1]["members"][stopped] is None
    assert lines[-1]["population/alive"] == 4


@pytest.mark.slow
def test_a_stop_after_a_rung_changes_nothing(halved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, calls, step = tmp_path / "stopped", [], PopulationJob.step

    def interrupted(self: PopulationJob, state: Any) -> Any:
        calls.append(self)
        if len(calls) == 3:  # the first of the second rung
            signal.raise_signal(signal.SIGTERM)
        return step(self, state)

    monkeypatch.setattr(PopulationJob, "step", interrupted)
    assert main(["sweep", *HALVED, "--run", str(folder)]) == 143
    monkeypatch.undo()
    assert main(["resume", str(folder)]) == 0
    assert rows_of(folder) == rows_of(halved)


def test_several_seeds_are_a_sweep_of_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "azjax:cartpole", *TINY, "--seeds", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 members in one program" in out
    assert "2 members x 16 lanes, 8 updates of 512 environment steps each" in out
    assert "MiB" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["azjax:cartpole"], "nothing varies: give an option several values, or --seeds"),
        (["azjax:cartpole", "--gama", "0.9,1"], "gama can't be swept over; did you mean 'gamma'?"),
        (["azjax:cartpole", "--gamma", "0.9,1.5"], "the member with gamma 1.5, seed 0: gamma is 1.5"),
        (["azjax:cartpole", "--gamma", "0.9,1", "--gamma", "0.5,1"], "--gamma is given twice"),
        (["azjax:cartpole", "--seeds", "x"], "--seeds is 'x'; it must be a whole number"),
        (["azjax:cartpole", "--seeds"], "--seeds needs a value"),
        (["nope", "--seeds", "2"], "nope"),
        (["azjax:cartpole", "--seeds", "2", "--chunk", "0"], "chunk is 0; it must lie between"),
        (["azjax:cartpole", "--axes", "missing.yaml"], "missing.yaml is missing; name a YAML file"),
        (["azjax:cartpole", "--seeds", "2", "--devices", "512"], "512 devices asked for"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_file_has_axes_that_the_command_line_can_not_spell(tmp_path: Path) -> None:
    file = tmp_path / "axes.yaml"
    file.write_text(yaml.safe_dump({"policy_hidden": [[8], [16, 16]], "lam": {"uniform": [0.9, 1.0]}}))
    options, members, command, halvings = read_sweep(
        ["azjax:cartpole", "--gamma=0.9,1", "--axes", str(file), "--samples=3"], "azjax sweep"
    )
    assert options.env == "azjax:cartpole"
    assert len(members) == 2 * 2 * 3
    assert members[0].keys() == {"gamma", "policy_hidden", "lam", "seed"}
    assert not command.dry_run
    assert halvings == 0
    for text, message in (
        ("gamma: [", "is no YAML of axes"),
        ("- 1", "holds no options"),
        ("gamma: [0.1]", "leave one"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_sweep(["azjax:cartpole", "--gamma=0.9,1", "--axes", str(file)], "azjax sweep")
