"""``azjax reason``: runs, model files, and tasks given as text."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from azjax.cli import main
from azjax.config import ConfigError
from azjax.ppo import PPOConfig
from azjax.reasoning.config import ReasonerConfig
from azjax.reasoning.text import format_value
from azjax.runs.reason_model import load_model, save_model
from azjax.runs.reason_options import DomainOptions, ReasonOptions, resolve
from azjax.runs.reason_use import propose, read_task, solve
from azjax.runs.resume import differing_options
from azjax.runs.run_options import parse_options, to_yaml
from azjax.trpo import TRPOConfig

SMALL = [
    *("--domain", "arithmetic", "--size", "micro", "--updates", "4", "--updates-per-call", "2", "--evaluations", "2"),
    *("--evaluation-questions", "6", "--evaluation-samples", "3", "--batch", "4", "--attempts", "2"),
    *("--imitation-batch", "4", "--capacity", "32", "--no-tensorboard", "--no-cache"),
]
MAP = "x0 = INPUT list | x2 = Map (*2) x0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, made by the command."""
    folder = tmp_path_factory.mktemp("reason") / "run"
    assert main(["reason", "train", "--run", str(folder), *SMALL]) == 0
    return folder


def test_a_run_leaves_a_folder_with_everything_about_it(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "model.npz", "model.json", "best", "checkpoints", "curves.png", "summary.json",
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["updates"] == 4
    assert summary["executions"] == 4 * (2 * 4 * 12 + 4 * 3 + 4)
    row = summary["evaluation"]["invert"]["level 2"]
    assert row["questions"] == 6
    assert row["pass@1 low"] <= row["pass@1"] <= row["pass@1 high"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["env_steps"] for r in records] == [2, 2, 4, 4]
    assert records[2]["count/tokens_decoded"] > records[0]["count/tokens_decoded"] > 0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_model(run).policy.width == 64


@pytest.mark.slow
def test_a_finished_run_is_made_longer_and_goes_on_from_its_state(run, tmp_path):
    other = tmp_path / "longer"
    assert main(["reason", "train", "--run", str(other), *SMALL, "--updates", "2", "--evaluations", "1"]) == 0
    assert main(["resume", str(other), "--steps", "4"]) == 0
    assert (other / "summary-2.json").exists()
    # Evaluations change nothing, so the end is that of the run that was never interrupted, bit for bit.
    digests = [json.loads((f / "summary.json").read_text())["params_sha256"] for f in (run, other)]
    assert digests[0] == digests[1]


def test_what_other_commands_say_of_it(run, tmp_path, capsys):
    assert main(["resume", str(run)]) == 2
    assert "is finished (4 updates)" in capsys.readouterr().err
    # Half of a batch of 4 is drawn: four devices can't share that.
    assert json.loads((run / "summary.json").read_text())["devices"]["used"] == min(2, jax.device_count())
    if jax.device_count() > 1:
        before = (run / "config.yaml").read_bytes()
        assert main(["resume", str(run), "--steps", "8", "--devices", "1"]) == 2
        assert "has a state of 2 devices, and 1 would go on with it" in capsys.readouterr().err
        assert (run / "config.yaml").read_bytes() == before
    output = tmp_path / "marks.json"
    assert main(["reason", "evaluate", str(run), "--questions", "5", "--samples", "2", "--output", str(output)]) == 0
    assert "evaluate, level 1" in capsys.readouterr().out
    assert set(json.loads(output.read_text())) == {"evaluate", "invert"}
    assert main(["reason", "solve", str(run), "--program", MAP, "--input", "[1]"]) == 2
    assert "the model is for arithmetic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solv"], "unknown action 'solv'; did you mean 'solve'?"),
        (["train", "--size", "big"], "no model size 'big'"),
        (["train", "--domain", "sums"], "--domain is 'sums'; it must be one of 'lists', 'arithmetic'"),
        (["train", "--updates", "7", "--updates-per-call", "2"], "does not divide the 7 updates"),
        (["train", "--shown", "6"], "shown is 6 of 6 examples"),
        (["train", "--devices", "3"], "batch is 16, which 3 devices can't divide"),
        (["train", "--devices", "16"], "the drawn part of a batch is 8, which 16 devices can't divide"),
        (["train", "--only", "deducing"], "only is 'deducing'; it must be empty or one of deduction"),
        (["train", "--draw-from", "meanings", "--max-lines", "4"], "known for list programs of up to 3 lines"),
        (["train", "--advantages", "gae"], "value_head=True"),
        (["train", "--algorithm", "trpo", "--value-head"], "whose trust region a shared head would leave"),
        (["train", "--batch", "9", "--capacity", "8"], "batch is 9, but the memory holds 8"),
        (["solve", "nowhere", "--program", MAP], "give either the input (deduction) or the output (abduction)"),
        (["solve", "nowhere", "--program", MAP, "--input", "[1]"], "nowhere is not a run folder"),
        (["propose", "nowhere", "--number", "0"], "number"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reason", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (("x0 = INPUT list | x2 = Mpa (*2) x0", "[1]", None, ()), "line 2, column 7: 'Mpa': no such function"),
        (("x0 = INPUT list | x2 = Random x0", "[1]", None, ()), "a banned function"),
        (("x0 = INPUT list", "[1]", None, ()), "it has no lines"),
        ((MAP, "3", None, ()), "it is int, but the program takes list"),
        ((MAP, "[30]", None, ()), "leaves the bounds"),
        ((MAP, "[1] ; 2 ; 3", None, ()), "has 3 values"),
        ((None, None, None, ("[1] -> 1",)), "1 pair is given"),
        ((None, None, None, ("[1] -> 1", "[2] 2")), "pair 2: '[2] 2' has no ->"),
        ((None, None, None, ("[1] -> 1", "[2] -> 99")), "pair 2: 99 in '99' is out of bounds"),
        ((None, None, None, ("[1] -> 1", "2 -> 2")), "of different kinds"),
        ((None, None, None, ("1 -> 1", "2 -> 2")), "no program takes that"),
    ],
)
def test_what_is_no_task_is_refused_with_its_position(task, message):
    with pytest.raises(ConfigError) as error:
        read_task(*task)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of an untrained model, and its parameters."""
    folder = tmp_path_factory.mktemp("model")
    options = DomainOptions(size="micro", max_lines=1)
    params = options.make_policy(options.make_domain().vocabulary).init(jax.random.key(0))
    save_model(folder, params, options, level=1, hold_out=0.2)
    return folder, params


def test_a_model_is_read_as_it_was_written(saved):
    folder, params = saved
    model = load_model(folder)
    assert (model.level, model.hold_out, model.options.max_lines) == (1, 0.2, 1)
    jax.tree.map(np.testing.assert_array_equal, model.params, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "huge"}, "no model size 'huge'"),
        ({"level": 9}, "level"),
        ({"max_lines": "1"}, "max_lines is '1'"),
        ({"schema": 2}, "has schema 2"),
        ({"params_sha256": "0"}, "its digest is not that in model.json"),
        ({"size": "tiny"}, "the network needs"),
        ({"surprise": 1}, "unknown option 'surprise'"),
    ],
)
def test_damaged_models_are_refused(saved, tmp_path, change, message):
    description = json.loads((saved[0] / "model.json").read_text()) | change
    (tmp_path / "model.json").write_text(json.dumps(description))
    (tmp_path / "model.npz").write_bytes((saved[0] / "model.npz").read_bytes())
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path)


def test_a_pickle_is_no_model(saved, tmp_path):
    (tmp_path / "model.json").write_text((saved[0] / "model.json").read_text())
    np.savez(tmp_path / "model.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigError, match="can't be read"):
        load_model(tmp_path)


@pytest.mark.slow
def test_answers_are_judged_by_execution(saved):
    model = load_model(saved[0])
    deduction = solve(model, read_task(MAP, "[1 -2]", None, ()))
    assert not deduction.right
    assert [line.split("   ")[-1].strip() for line in deduction.lines] == ["[1 -2]", "[2 -4]"]
    abduction = solve(model, read_task("x0 = INPUT list | x2 = Count (odd) x0", None, "1", ()), attempts=200)
    assert abduction.right
    assert abduction.lines[-1].endswith(" 1")
    pairs = ("[3 1] -> 3", "[4 7] -> 4", "[2 2 9] -> 2", "[-1] -> -1", "[7 8 9] -> 7")
    induction = solve(model, read_task(None, None, None, pairs), attempts=400)
    assert induction.right
    assert induction.answer == "x0 = INPUT list | x2 = Head x0"


@pytest.mark.slow
def test_proposals_are_verified_and_come_with_their_outputs(saved):
    rows, refused = propose(load_model(saved[0]), number=32)
    assert len(rows) + refused == 32
    assert rows
    for row in rows:
        task = read_task(row["program"], row["input"], None, ())
        assert row["lines"] == 1
        assert format_value(jax.tree.map(lambda x: np.asarray(x)[0, 0], task.item.outputs)) == row["output"]


def test_options_survive_a_file_and_changes_are_told(tmp_path):
    options = ReasonOptions(algorithm="trpo", learner=TRPOConfig(normalize_observations=False), run=tmp_path)
    assert parse_options(to_yaml(options).encode(), tmp_path, ReasonOptions) == options
    other = ReasonOptions(seed=3, updates=7)
    assert differing_options(ReasonOptions(), other) == ["seed 0 -> 3"]
    assert differing_options(ReasonOptions(), options)[0] == "algorithm ppo -> trpo"
    with pytest.raises(ConfigError, match="its kind is 'train', not 'reason'"):
        parse_options(b"schema: 1\nenv: ant\n", tmp_path, ReasonOptions)


def test_a_schedule_falls_over_all_steps_of_the_run():
    falling = PPOConfig(normalize_observations=False, schedule="cosine")
    options = ReasonOptions(updates=100, learner=falling, reasoner=ReasonerConfig(steps="task"))
    assert resolve(options).learner.schedule_updates == 300  # a step for each of three task types
    assert resolve(dataclasses.replace(options, reasoner=ReasonerConfig())).learner.schedule_updates == 100
