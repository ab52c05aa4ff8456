"""azjax.cli: the real command from end to end, and what it says to wrong input."""

from __future__ import annotations

import ast
import collections
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import yaml

import azjax
from azjax.cli import main
from azjax.cli import selfplay as selfplay_command
from azjax.cli import train as training_command
from azjax.cli.compare import CompareOptions
from azjax.cli.doctor import DoctorOptions
from azjax.cli.envs import EnvsOptions
from azjax.cli.evaluate import EvaluateOptions
from azjax.cli.export import ExportOptions
from azjax.cli.main import COMMANDS
from azjax.cli.parsing import flags_of
from azjax.cli.report import ReportOptions
from azjax.cli.resume import ResumeOptions
from azjax.cli.train import read_options
from azjax.envs import SUPPORTED
from azjax.runs import machine
from azjax.runs.folder import read_metrics
from azjax.runs.options import TrainOptions, preset_options, resolve
from azjax.runs.policy import load_policy
from azjax.runs.render import RenderOptions
from azjax.runs.run_options import to_plain
from azjax.runs.train import EVALUATION_SEED

train_module = sys.modules["azjax.runs.train"]
episodes_module = sys.modules["azjax.runs.episodes"]
export_module = sys.modules["azjax.runs.export"]
render_module = sys.modules["azjax.runs.render"]
train_command = sys.modules["azjax.cli.train"]

FILES = [
    "best", "checkpoints", "config.yaml", "curves.png", "metrics.jsonl", "policy.json", "policy.npz", "replay.html",
    "summary.json", "tensorboard",
]  # fmt: skip
OPTIONS: dict[str, type] = {
    "train": training_command.FLAGS["ppo"],
    "train --algorithm trpo": training_command.FLAGS["trpo"],
    "selfplay": selfplay_command.FLAGS["ppo"],
    "selfplay --algorithm trpo": selfplay_command.FLAGS["trpo"],
    "resume": ResumeOptions,
    "evaluate": EvaluateOptions,
    "compare": CompareOptions,
    "report": ReportOptions,
    "render": RenderOptions,
    "export": ExportOptions,
    "envs": EnvsOptions,
    "doctor": DoctorOptions,
}


# ---------------------------------------------------------------------------------------------------------------------
# The real command
# ---------------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    code: int
    out: str
    err: str


def without_alarms(text: str) -> str:
    """XLA's remark on a compilation of more than two minutes is the machine's fault, not the program's."""
    alarm = r"(?m)^E\d+ .* slow_operation_alarm\.cc:\d+\] .*\n\s*\*{9,}\n\[Compiling module .*\n\*{9,}\n"
    return re.sub(alarm, "", text)


def azjax_command(*args: str, cache: Path, cwd: Path, **changes: str) -> Result:
    """Runs ``python -m azjax`` in a process of its own, which chooses its devices itself."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "FORCE_COLOR")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache), "PYTHONUTF8": "1"}
    env.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    done = subprocess.run(
        [sys.executable, "-m", "azjax", *args],
        cwd=cwd,
        env=env | changes,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Result(done.returncode, done.stdout, without_alarms(done.stderr))


_FINISHED: list[Run] = []


class Run(NamedTuple):
    """A finished run of the real command."""

    folder: Path
    cache: Path
    args: list[str]
    result: Result

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text(encoding="utf-8"), parse_constant=pytest.fail)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def options(self) -> TrainOptions:
        return resolve(read_options(self.args, "azjax train"))

    def again(self, name: str, seed: int) -> Run:
        """The same command with another folder and seed."""
        args = [*self.args[:-4], "--run", str(self.folder.with_name(name)), "--seed", str(seed)]
        return start(args, self.folder.with_name(name), self.cache)


def start(args: list[str], folder: Path, cache: Path) -> Run:
    return Run(folder, cache, args, azjax_command("train", *args, cache=cache, cwd=folder.parent))


def train_once(factory: pytest.TempPathFactory) -> Run:
    """One short training run, shared by all tests; other files of tests call it, too."""
    if not _FINISHED:
        _FINISHED.append(train_for_tests(factory))
    return _FINISHED[0]


def train_for_tests(factory: pytest.TempPathFactory) -> Run:
    # Brackets mean something to the library that prints the summary, spaces to shells, and depth to narrow tables.
    folder = factory.mktemp("a folder [bold] with a name that is longer than a line of the summary can be") / "run"
    flags = {
        "backend": "spring",
        "algorithm": "ppo",
        "steps": "4700",
        "lanes": "64",
        "rollout-length": "8",
        "action-repeat": "1",
        "episode-length": "100",
        "evaluations": "2",
        "evaluation-episodes": "7",
        "minibatches": "4",
        "learning-rate": "1e-5",  # the policy stays bad, so that returns differ
    }
    args = ["inverted_pendulum", "--policy-hidden", "32", "32"]
    args += [word for name, value in flags.items() for word in (f"--{name}", value)]
    return start([*args, "--run", str(folder), "--seed", "3"], folder, factory.mktemp("cache"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_once(tmp_path_factory)


def test_training_succeeds_and_says_nothing_on_stderr(run: Run) -> None:
    assert run.result.err == ""
    assert run.result.code == 0
    assert sorted(path.name for path in run.folder.iterdir()) == FILES


def test_training_shows_progress_and_a_summary(run: Run) -> None:
    out = run.result.out
    assert "\x1b" not in out
    options = run.options
    total = options.updates * options.env_steps_per_update
    assert f"{total:,} of {total:,} environment steps" in out
    assert "steps/s" in out
    assert "episode return" in out
    assert " s left" in out
    assert "evaluation return" in out
    for name in ("policy.npz", "curves.png", "replay.html", "metrics.jsonl", "summary.json"):
        assert str(run.folder / name) in out, "paths in the summary are whole"
    assert f"azjax evaluate {run.folder}" in out


def test_metrics_are_json_lines(run: Run) -> None:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert all(type(record["env_steps"]) is int for record in records)
    training = [r["env_steps"] for r in records if "train/episodes" in r]
    evaluations = [r["env_steps"] for r in records if "eval/episodes" in r]
    assert len(training) + len(evaluations) == len(records)
    for steps in (training, evaluations):
        assert steps == sorted(set(steps))
        assert all(n % run.options.env_steps_per_update == 0 for n in steps)
    assert [r["env_steps"] for r in records] == sorted(r["env_steps"] for r in records)
    assert len(evaluations) == 2
    assert evaluations[-1] == training[-1]
    seconds = [r["time/seconds"] for r in records]
    assert seconds == sorted(seconds)
    for record in records:
        assert all(type(value) in (int, float) for value in record.values())
        assert all("/" in key for key in record if key != "env_steps")


def test_the_numbers_of_the_metrics_fit_together(run: Run) -> None:
    for record in run.metrics:
        if "eval/episodes" in record:
            low, high = record["eval/episode_return_min"], record["eval/episode_return_max"]
            assert low <= record["eval/episode_return_iqm_low"] <= record["eval/episode_return_iqm_high"] <= high
            assert low <= record["eval/episode_return_mean"] <= high
            # One point a step: the pendulum's return is its length.
            assert record["eval/episode_return_mean"] == pytest.approx(record["eval/episode_length_mean"])
            assert record["eval/episodes"] == 7
            continue
        assert record["train/reward_mean"] == pytest.approx(1.0)
        assert record["train/nonfinite_lanes"] == 0
        if record["train/episodes"]:
            assert record["train/episode_return"] == pytest.approx(record["train/episode_length"])
            assert 1.0 <= record["train/episode_return_min"] <= record["train/episode_return_max"] <= 100.0
        assert 0.0 <= record["learner/clip_fraction"] <= 1.0
        assert record["learner/skipped"] == 0.0
    assert any(record.get("train/episodes") for record in run.metrics)


def test_the_summary_is_exact(run: Run) -> None:
    summary, options = run.json("summary.json"), run.options
    assert options.steps <= summary["env_steps"] < options.steps + options.env_steps_per_update
    assert summary["env_steps"] == run.metrics[-1]["env_steps"] == summary["updates"] * options.env_steps_per_update
    assert (summary["env"], summary["backend"], summary["algorithm"], summary["seed"]) == (
        "inverted_pendulum",
        "spring",
        "ppo",
        3,
    )
    dt = azjax.make_env("inverted_pendulum", options.backend).dt
    assert summary["simulated_seconds"] == pytest.approx(summary["env_steps"] * dt)
    seconds = summary["seconds"]
    assert set(seconds) == {"compilation", "training", "evaluation", "total"}
    assert all(value > 0.0 for value in seconds.values())
    assert seconds["compilation"] + seconds["training"] + seconds["evaluation"] <= seconds["total"]
    assert summary["env_steps_per_second"] == pytest.approx(summary["env_steps"] / seconds["training"])
    assert run.metrics[-1]["time/seconds"] <= seconds["training"] + 1e-3
    evaluation, last = summary["evaluation"], run.metrics[-1]
    assert len(evaluation["returns"]) == evaluation["episodes"] == 7
    assert evaluation["return_mean"] == pytest.approx(np.mean(evaluation["returns"]))
    for name in ("mean", "std", "median", "iqm", "iqm_low", "iqm_high", "min", "max"):
        assert evaluation[f"return_{name}"] == last[f"eval/episode_return_{name}"]
    assert summary["versions"]["jax"] == importlib.metadata.version("jax")


def test_the_cpu_is_split_into_as_many_devices_as_cores_and_lanes_allow(run: Run) -> None:
    devices = run.json("summary.json")["devices"]
    assert devices["platform"] == "cpu"
    assert devices["cores"] == machine.available_cores()
    assert devices["count"] == max(n for n in range(1, machine.available_cores() + 1) if run.options.fits(n))


def test_the_folder_has_all_options_as_they_were_used(run: Run) -> None:
    """What was left to be chosen is filled in, so that the file alone says how to start the run again."""
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["devices"] == run.json("summary.json")["devices"]["used"]
    assert config["updates_per_call"] * sum("train/episodes" in r for r in run.metrics) == run.options.updates
    assert config["reset_pool"] == 32
    assert Path(config["run"]) == run.folder
    assert [name for name, value in config.items() if value is None] == ["wandb"]


def test_the_saved_policy_is_the_one_that_was_evaluated_last(run: Run) -> None:
    """Read back from its files and given the keys of the last evaluation, it plays the same episodes."""
    policy, config = load_policy(run.folder), yaml.safe_load((run.folder / "config.yaml").read_text())
    calls = run.options.updates // config["updates_per_call"]
    evaluate = azjax.make_evaluator(policy.env, policy.act, lanes=7)
    key = jax.random.fold_in(jax.random.key(3 ^ EVALUATION_SEED), calls)
    played = azjax.compile_evaluator(evaluate)(policy.params, key)
    returns = run.json("summary.json")["evaluation"]["returns"]
    np.testing.assert_allclose(np.asarray(played.episode_return), returns, rtol=1e-4)
    assert len(set(returns)) > 1


def test_options_work_together_on_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    """None of these is in the run that the other tests share; and a sign that can't be printed must not end a run."""
    flags = "--steps 512 --lanes 32 --rollout-length 8 --minibatches 2 --evaluations 1 --evaluation-episodes 4"
    flags += " --episode-length 20 --randomize --action-repeat 2 --schedule adaptive-kl --stop-at-kl --shared-torso"
    flags += " --vectorize vmap --no-stagger --no-cache --devices 1 --deterministic --advantage-normalization minibatch"
    args = ["train", "inverted_pendulum", *flags.split(), "--run", str(tmp_path / "run")]
    ascii_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    result = azjax_command(*args, cache=tmp_path / "cache", cwd=tmp_path, **ascii_only)
    assert (result.code, result.err) == (0, "")
    assert "evaluation return" in result.out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["devices"], config["randomize"], config["vectorize"]) == (1, True, "vmap")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["env_steps"] == 512
    assert not list((tmp_path / "cache").rglob("*-cache"))


def test_the_digest_is_that_of_the_policy(run: Run) -> None:
    digest = hashlib.sha256()
    with np.load(run.folder / "policy.npz", allow_pickle=False) as archive:
        for name in archive.files:
            digest.update(f"{name} {archive[name].dtype.str} {archive[name].shape}\n".encode())
            digest.update(archive[name].tobytes())
    assert run.json("summary.json")["params_sha256"] == run.json("policy.json")["params_sha256"] == digest.hexdigest()


def test_the_policy_describes_itself(run: Run) -> None:
    policy = load_policy(run.folder)
    assert (policy.env.name, policy.env.backend, policy.env.episode_length) == ("inverted_pendulum", "spring", 100)
    description = run.json("policy.json")
    assert description["action"] == {"kind": "Box", "size": 1}
    assert description["ppo"]["policy_hidden"] == [32, 32]
    assert description["ppo"]["schedule_updates"] == run.options.learner.schedule_updates


def test_the_configuration_holds_flags_and_preset(run: Run) -> None:
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    chosen = {"devices", "updates_per_call", "reset_pool"}
    assert {k: v for k, v in config.items() if k not in chosen} == {
        k: v for k, v in to_plain(run.options).items() if k not in chosen
    }
    given = {"env": "inverted_pendulum", "backend": "spring", "steps": 4700, "lanes": 64, "seed": 3}
    assert {name: config[name] for name in given} == given
    assert config["run"] == str(run.folder)
    assert config["ppo"]["policy_hidden"] == [32, 32]
    assert config["ppo"]["learning_rate"] == 1e-5
    preset = preset_options("inverted_pendulum")
    assert config["ppo"]["gamma"] == preset.learner.gamma
    assert config["ppo"]["schedule"] == preset.learner.schedule


def test_the_curves_are_a_picture(run: Run) -> None:
    content = (run.folder / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 800 <= width <= 2000
    assert 300 <= height <= 1000
    assert len(content) > 10_000


def test_the_replay_needs_no_network(run: Run) -> None:
    page = (run.folder / "replay.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"""\b(?:https?|wss?):[^\s"'<>)]*""", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^\s"'>]""", page)
    assert not re.search(r"@import|url\((?!['\"]?(?:data:|#))|\bimport\s*\(|XMLHttpRequest|\bfetch\s*\(", page)
    assert "default-src 'none'" in page
    assert len(page) < 1_000_000


def cached_programs(run: Run) -> collections.Counter[str]:
    """How many compiled programs of each name the cache holds."""
    return collections.Counter(path.name.rsplit("-", 2)[0] for path in run.cache.rglob("*-cache"))


def test_the_same_command_gives_the_same_bits_from_the_cache_and_another_seed_others(run: Run) -> None:
    programs = cached_programs(run)
    same = run.again("same", 3)
    assert (same.result.code, same.result.err) == (0, "")
    assert same.json("summary.json")["params_sha256"] == run.json("summary.json")["params_sha256"]
    assert same.json("summary.json")["evaluation"] == run.json("summary.json")["evaluation"]
    with_time = ("time/seconds", "time/env_steps_per_second")
    assert [{k: v for k, v in r.items() if k not in with_time} for r in same.metrics] == [
        {k: v for k, v in r.items() if k not in with_time} for r in run.metrics
    ]
    other = run.again("other", 4)
    assert (other.result.code, other.result.err) == (0, "")
    assert other.json("summary.json")["params_sha256"] != run.json("summary.json")["params_sha256"]
    # What is compiled in less than a second isn't kept; what was kept isn't compiled again.
    again = cached_programs(run)
    assert all(again[name] == count for name, count in programs.items())
    # Large programs only: the others would be loaded where XLA's complaint about loading is seen.
    assert all(path.stat().st_size >= 1 << 16 for path in run.cache.rglob("*-cache"))


class Evaluation(NamedTuple):
    result: Result
    output: Path


@pytest.fixture(scope="session")
def evaluation(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    output = tmp_path_factory.mktemp("evaluation") / "result.json"
    args = ("evaluate", str(run.folder), "--episodes", "5", "--json", "--output", str(output))
    return Evaluation(azjax_command(*args, cache=run.cache, cwd=output.parent), output)


def test_evaluation_prints_json_only(evaluation: Evaluation) -> None:
    assert (evaluation.result.code, evaluation.result.err) == (0, "")
    statistics = json.loads(evaluation.result.out, parse_constant=pytest.fail)
    assert json.loads(evaluation.output.read_text()) == statistics
    assert [path.name for path in evaluation.output.parent.iterdir()] == ["result.json"]


def test_evaluation_agrees_with_training(run: Run, evaluation: Evaluation) -> None:
    statistics = json.loads(evaluation.result.out)
    assert (statistics["env"], statistics["backend"]) == ("inverted_pendulum", "spring")
    assert statistics["deterministic"] is True
    assert statistics["seed"] == 0
    assert statistics["episodes"] == len(statistics["returns"]) == 5
    assert statistics["nonfinite_episodes"] == 0
    assert statistics["return_mean"] == pytest.approx(np.mean(statistics["returns"]))
    trained = run.json("summary.json")["evaluation"]
    assert set(trained) <= set(statistics)
    spread = trained["return_max"] - trained["return_min"] + 10.0
    assert trained["return_min"] - spread <= statistics["return_mean"] <= trained["return_max"] + spread
    assert statistics["returns"] != trained["returns"][:5], "other initial states than in training"


def test_stochastic_evaluation_differs_and_prints_a_table(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    output = tmp_path / "stochastic.json"
    args = ("evaluate", str(run.folder), "--episodes", "5", "--stochastic", "--output", str(output))
    result = azjax_command(*args, cache=run.cache, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    statistics = json.loads(output.read_text())
    assert statistics["deterministic"] is False
    assert len(statistics["returns"]) == 5
    assert statistics["returns"] != json.loads(evaluation.result.out)["returns"]
    assert str(run.folder) in result.out
    assert "5 stochastic, seed 0" in result.out
    assert f"{statistics['return_mean']:.2f}" in result.out


def test_evaluation_refuses_to_overwrite(run: Run, evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    before = evaluation.output.read_bytes()
    assert main(["evaluate", str(run.folder), "--output", str(evaluation.output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert evaluation.output.read_bytes() == before


def test_evaluation_with_another_seed_differs(run: Run, evaluation: Evaluation, tmp_path: Path) -> None:
    args = ("evaluate", str(run.folder), "--episodes", "5", "--seed", "7", "--json")
    result = azjax_command(*args, cache=run.cache, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    statistics = json.loads(result.out)
    assert (statistics["episodes"], statistics["seed"]) == (5, 7)
    assert statistics["returns"] != json.loads(evaluation.result.out)["returns"]


# ---------------------------------------------------------------------------------------------------------------------
# The small commands
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps a command that runs in this process from changing how JAX is set up."""
    for name in ("split_host", "use_cache", "use_no_cache", "ask_for_determinism"):
        monkeypatch.setattr(machine, name, lambda *args: None)


def test_the_module_and_the_script_are_the_same_command(tmp_path: Path) -> None:
    result = azjax_command("--version", cache=tmp_path, cwd=tmp_path)
    assert result == (0, f"azjax {azjax.__version__}\n", "")
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text())["project"]
    assert project["scripts"] == {"azjax": "azjax.cli:entry"}
    assert project["version"] == azjax.__version__
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    captured = capsys.readouterr()
    assert all(re.search(rf"(?m)^ +{command} ", captured.out) for command in COMMANDS)
    assert captured.err == ""


def test_no_command_is_wrong_but_helpful(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def helps(cls: type) -> Iterator[tuple[str, str]]:
    """Each option of a dataclass with its docstring, those of nested dataclasses included."""
    documented: dict[str, str] = {}
    for base in (c for c in reversed(cls.__mro__) if dataclasses.is_dataclass(c)):
        if base.__name__ not in vars(sys.modules[base.__module__]):  # made by flags_by_algorithm: no source
            continue
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                documented[field.target.id] = text.value.value  # type: ignore[union-attr]
    for field in dataclasses.fields(cls):
        assert documented.get(field.name), f"{cls.__name__}.{field.name} has no help text"
        if dataclasses.is_dataclass(field.default_factory):
            yield from helps(field.default_factory)  # type: ignore[arg-type]
        else:
            yield field.name, documented[field.name]


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_with_help_and_default(
    command: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), flag])
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"azjax {command.split()[0]}" in captured.out
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", captured.out).split())
    flags = flags_of(OPTIONS[command])
    for name, help_text in helps(OPTIONS[command]):
        described = " ".join(help_text.split())
        assert re.search(re.escape(described) + r" \((?:default: [^)]*|required)\)", text), name
        flag_name = "--" + name.replace("_", "-")
        if flag_name in flags:
            assert re.search(rf"{flag_name}\b", text)


def test_help_shows_the_preset_of_the_environment_beside_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("azjax.runs.options.load_preset", lambda *args: {"steps": 12345, "gamma": 0.875})
    for args in (["ant", "--help"], ["--help", "ant"], ["--seed", "1", "ant", "-h"]):
        with pytest.raises(SystemExit):
            main(["train", *args])
        out = capsys.readouterr().out
        assert "(default: 12345)" in out
        assert "(default: 0.875)" in out


def test_flags_override_the_preset_wherever_the_environment_stands() -> None:
    for args in (["hopper", "--gamma", "0.5", "--lanes=64"], ["--gamma=0.5", "--lanes", "64", "hopper"]):
        options = read_options(args, "azjax train")
        assert options == preset_options("hopper", gamma=0.5, lanes=64)
    assert read_options([], "azjax train") == preset_options("ant")
    assert read_options(["ant", "--no-stagger", "--randomize"], "p") == preset_options(
        "ant", stagger=False, randomize=True
    )
    assert read_options(["ant", "--policy-hidden", "3", "4"], "p").learner.policy_hidden == (3, 4)
    assert read_options(["ant", "--value_clip", "inf"], "p").learner.value_clip == float("inf")


def test_envs_lists_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert list(facts) == list(SUPPORTED)
    assert all(fact["backends"] == list(SUPPORTED[name]) for name, fact in facts.items())
    ant = facts["ant"]
    assert (ant["observation_size"], ant["action_size"], ant["seconds_per_step"]) == (27, 8, 0.05)
    assert {name for name, fact in facts.items() if fact["preset"]} >= {"ant", "hopper", "inverted_pendulum"}
    monkeypatch.setattr(sys.modules["azjax.cli.envs"], "describe", facts.__getitem__)
    assert main(["envs"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    header, *rows, last = captured.out.splitlines()
    assert header.split() == ["environment", "observation", "action", "s/step", "backends", "preset"]
    assert [row.split()[0] for row in rows] == list(SUPPORTED)
    assert last.endswith("azjax envs --suite playground")
    assert rows[list(SUPPORTED).index("swimmer")].split() == ["swimmer", "8", "2", "0.04", "generalized"]


def test_doctor_describes_the_machine(tmp_path: Path) -> None:
    result = azjax_command("doctor", "--quick", cache=tmp_path / "cache", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    for word in ("python", "jax", "jaxlib", "brax", "mujoco-mjx", "platform", "CPU", "precision"):
        assert re.search(rf"(?m)^{word} ", result.out), word
    assert f"cpu: {machine.available_cores()} x" in result.out
    assert str(tmp_path / "cache") in result.out
    assert "training step" not in result.out


def test_doctor_without_a_cache_or_with_the_users_settings(tmp_path: Path) -> None:
    settings = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    settings["MPLCONFIGDIR"] = str(tmp_path)  # which isn't what this is about
    result = azjax_command("doctor", "--quick", cache=Path("/proc/nowhere"), cwd=tmp_path, **settings)
    assert (result.code, result.err) == (0, "")
    assert "off: no folder can be written" in result.out
    assert "(highest)" in result.out
    assert "cpu: 3 x" in result.out


def test_doctor_finds_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, quiet_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor = sys.modules["azjax.cli.doctor"]
    monkeypatch.setattr(doctor, "check_training", lambda: False)
    assert main(["doctor"]) == 1
    assert main(["doctor", "--quick"]) == 0
    monkeypatch.setattr(doctor, "check_precision", lambda: False)
    assert main(["doctor", "--quick"]) == 1

    def no_devices() -> dict[str, Any]:
        raise RuntimeError("Unable to initialize backend\nand more lines")

    monkeypatch.setattr(machine, "describe_devices", no_devices)
    capsys.readouterr()
    assert main(["doctor"]) == 1
    assert "broken: Unable to initialize backend" in capsys.readouterr().out


@pytest.mark.slow
def test_doctor_trains_a_step(tmp_path: Path) -> None:
    result = azjax_command("doctor", cache=tmp_path / "cache", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert re.search(r"training step +works \(\d+ environment steps", result.out)


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: TrainOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "train", interrupted)
    assert main(["train", "ant"]) == 130
    assert capsys.readouterr().err == "azjax train: interrupted\n"


# ---------------------------------------------------------------------------------------------------------------------
# Wrong input
# ---------------------------------------------------------------------------------------------------------------------

LONG = "x" * 300
LISTED = ", ".join(COMMANDS)
# The command line, then what the one line on stderr must contain: the value that is wrong, and a hint.
WRONG: list[tuple[str, list[str]]] = [
    ("tarin ant", ["'tarin'", "did you mean 'train'", LISTED]),
    ("evaluat runs/x", ["'evaluat'", "did you mean 'evaluate'"]),
    ("--verbose", ["'--verbose'", LISTED]),
    ("ant", ["'ant'", LISTED]),
    ("''", ["''", LISTED]),
    # environments
    ("train aant", ["'aant'", "did you mean 'ant'", "halfcheetah"]),
    ("train half-cheetah", ["'half-cheetah'", "did you mean 'halfcheetah'"]),
    ("train Hopper", ["'Hopper'", "did you mean 'hopper'"]),
    ("train ''", ["''", "there are: ant"]),
    ("train swimmer --backend spring", ["'swimmer'", "'spring'", "it has: generalized"]),
    ("train ant --backend mjxx", ["'mjxx'", "did you mean 'mjx'", "positional"]),
    ("train ant --backend ''", ["''", "it has: spring"]),
    ("train aant --help", ["'aant'", "did you mean 'ant'"]),
    ("train ant hopper", ["'hopper'", "azjax train --help"]),
    # flags
    ("train ant --stepz 5", ["--stepz", "did you mean '--steps'"]),
    ("train ant --learning_rates=3", ["--learning_rates", "did you mean '--learning-rate'"]),
    ("train ant --ppo.gamma 0.5", ["--ppo.gamma", "did you mean '--gamma'"]),
    ("train ant --max-kl 0.01", ["--max-kl", "an option of trpo, not of ppo"]),
    ("train ant --algorithm trpo --clip 0.1", ["--clip", "an option of ppo, not of trpo"]),
    ("train ant --algorithm=trpo --max-kl 0", ["max_kl", "0"]),
    ("train ant --algorithm trpoo", ["'trpoo'", "ppo", "trpo"]),
    ("train ant --no-cahce", ["--no-cahce", "did you mean '--no-cache'"]),
    ("train ant -x", ["-x", "azjax train --help"]),
    ("train ant --steps", ["--steps", "needs a value"]),
    ("train ant --run", ["--run", "needs a value"]),
    ("train ant --stepz 5 --steps", ["--stepz", "did you mean '--steps'"]),
    ("envs --jsn", ["--jsn", "did you mean '--json'"]),
    ("envs ant", ["'ant'", "azjax envs --help"]),
    ("doctor --quik", ["--quik", "did you mean '--quick'"]),
    # types
    ("train ant --steps ten", ["--steps", "'ten'", "whole number"]),
    ("train ant --steps 1e6", ["--steps", "'1e6'", "whole number"]),
    ("train ant --lanes 64.5", ["--lanes", "'64.5'", "whole number"]),
    ("train ant --gamma high", ["--gamma", "'high'", "a number"]),
    ("train ant --devices many", ["--devices", "'many'", "must be"]),
    ("train ant --policy-hidden 64 x", ["--policy-hidden", "'x'", "whole numbers"]),
    ("train ant --policy-hidden 64,64", ["--policy-hidden", "'64,64'", "spaces between"]),
    ("train ant --randomize maybe", ["'maybe'", "azjax train --help"]),
    ("train ant --schedule linea", ["--schedule", "'linea'", "'linear'"]),
    ("train ant --activation sine", ["--activation", "'sine'", "'tanh'"]),
    ("train ant --algorithm sac", ["--algorithm", "'sac'", "'ppo'"]),
    # counts
    ("train ant --steps 0", ["steps is 0", "between 1 and"]),
    ("train ant --steps -5", ["steps is -5", "between 1 and"]),
    ("train ant --lanes 0", ["lanes is 0", "between 1 and"]),
    ("train ant --lanes -8", ["lanes is -8", "between 1 and"]),
    ("train ant --rollout-length 0", ["rollout_length is 0", "between 1 and"]),
    ("train ant --action-repeat 0", ["action_repeat is 0", "between 1 and"]),
    ("train ant --episode-length 0", ["episode_length is 0", "between 1 and"]),
    ("train ant --episode-length 2000000000", ["episode_length is 2000000000", "between 1 and"]),
    ("train ant --evaluations 0", ["evaluations is 0", "between 1 and"]),
    ("train ant --evaluation-episodes 0", ["evaluation_episodes is 0", "between 1 and"]),
    ("train ant --evaluation-episodes 99999999999", ["evaluation_episodes is 99999999999", "between 1 and"]),
    ("train ant --seed -1", ["seed is -1", "between 0 and"]),
    ("train ant --seed 4294967296", ["seed is 4294967296", "between 0 and 4294967295"]),
    ("train ant --reset-pool 0", ["reset_pool is 0", "between 1 and"]),
    ("train ant --policy-hidden 64 0", ["policy_hidden", "(64, 0)", "at least 1"]),
    ("train ant --epochs 0", ["epochs is 0", "between 1 and"]),
    ("train ant --minibatches 0", ["minibatches is 0", "between 1 and"]),
    ("train ant --lanes 1000000 --rollout-length 1000000", ["1000000000000", "must stay below 2^31"]),
    # hyperparameters
    ("train ant --gamma 1.5", ["gamma is 1.5", "between 0.0 and 1.0"]),
    ("train ant --gamma nan", ["gamma is nan", "between 0.0 and 1.0"]),
    ("train ant --lam -0.1", ["lam is -0.1", "between 0.0 and 1.0"]),
    ("train ant --learning-rate inf", ["learning_rate is inf", "between 0.0 and"]),
    ("train ant --learning-rate nan", ["learning_rate is nan", "between 0.0 and"]),
    ("train ant --learning-rate -1e-3", ["learning_rate is -0.001", "between 0.0 and"]),
    ("train ant --clip 0", ["clip is 0.0", "between"]),
    ("train ant --value-clip nan", ["value_clip is nan", "between"]),
    ("train ant --target-kl 0", ["target_kl is 0.0", "between"]),
    ("train ant --init-std 0", ["init_std is 0.0", "between"]),
    ("train inverted_pendulum --policy-observation state", ["'state'", "no named entries"]),
    # arithmetic
    ("train ant --lanes 100 --devices 3", ["100 lanes", "3 devices", "multiple of 96 lanes"]),
    ("train ant --lanes 512 --devices 64", ["512 lanes", "64 devices", "multiple of 2048 lanes"]),
    ("train ant --minibatches 7", ["7 equal minibatches", "change lanes, rollout-length or minibatches"]),
    ("train ant --lanes 64 --rollout-length 1 --minibatches 128", ["128 equal minibatches", "change lanes"]),
    ("train swimmer --lanes 64 --rollout-length 8 --steps 10000 --updates-per-call 7", ["call=7", "20 updates"]),
    ("train ant --updates-per-call 0", ["updates_per_call is 0", "between 1 and"]),
    ("train ant --devices 0", ["devices is 0", "between 1 and"]),
    ("train ant --lanes 32000 --devices 500", ["500 devices", "JAX sees"]),
    # run folders
    ("train inverted_pendulum --run occupied", ["occupied", "not empty", "choose another --run"]),
    ("train inverted_pendulum --run occupied/file", ["occupied/file", "is a file", "choose another --run"]),
    ("train inverted_pendulum --run occupied/file/run", ["occupied/file/run", "can't be made", "choose another --run"]),
    ("train inverted_pendulum --run /proc/x/run", ["/proc/x/run", "can't be made", "choose another --run"]),
    (f"train inverted_pendulum --run {LONG}", [LONG, "choose another --run"]),
    # evaluation
    ("resume", ["PATH", "azjax resume --help"]),
    ("resume missing", ["missing", "not a run folder", "azjax train"]),
    ("resume occupied/file", ["occupied/file", "not a run folder"]),
    ("resume empty", ["empty/config.yaml", "missing", "folder of a run"]),
    ("resume damaged", ["damaged/config.yaml", "not valid YAML", "another copy"]),
    ("resume foreign", ["foreign/config.yaml", "schema 99", "the version that wrote it"]),
    ("resume edited", ["edited/config.yaml", "'gama'", "did you mean 'gamma'"]),
    ("resume typed", ["typed/config.yaml", "steps is 'many'", "wrong type"]),
    ("resume started --steps 0", ["steps is 0", "between 1 and"]),
    ("resume started --steps -5", ["steps is -5", "between 1 and"]),
    ("resume started --steps few", ["--steps", "'few'"]),
    ("resume started --steps nan", ["--steps", "'nan'"]),
    ("resume started --devices 0", ["devices is 0", "between 1 and"]),
    ("resume started --devices 3", ["100 lanes", "3 devices"]),
    ("resume started --stepz 5", ["--stepz", "did you mean '--steps'"]),
    ("resume started occupied", ["'occupied'", "azjax resume --help"]),
    ("train ant --checkpoint-seconds -1", ["checkpoint_seconds is -1", "between 0"]),
    ("train ant --checkpoint-seconds nan", ["checkpoint_seconds is nan", "between 0"]),
    ("train ant --keep-checkpoints 0", ["keep_checkpoints is 0", "between 1 and"]),
    ("train ant --wandb", ["--wandb", "needs a value"]),
    ("train ant --wandb ''", ["wandb is ''", "name a project"]),
    ("evaluate", ["PATH", "azjax evaluate --help"]),
    ("evaluate missing", ["missing", "not a run folder"]),
    ("evaluate occupied/file", ["occupied/file", "not a run folder"]),
    ("evaluate empty", ["empty/policy.json", "missing", "folder of a run"]),
    ("evaluate occupied", ["occupied/policy.json", "missing", "folder of a run"]),
    (f"evaluate {LONG}", [LONG, "not a run folder"]),
    ("evaluate damaged", ["damaged/policy.json", "not valid JSON", "another copy"]),
    ("evaluate foreign", ["foreign/policy.json", "schema 99", "the version that wrote it"]),
    ("evaluate empty --episodes 0", ["episodes is 0", "between 1 and"]),
    ("evaluate empty --episodes 99999999999", ["episodes is 99999999999", "between 1 and"]),
    ("evaluate empty --episodes few", ["--episodes", "'few'", "whole number"]),
    ("evaluate empty --seed -1", ["seed is -1", "between 0 and"]),
    ("evaluate empty missing", ["'missing'", "azjax evaluate --help"]),
    ("evaluate --epsiodes 3 empty", ["--epsiodes", "did you mean '--episodes'"]),
    ("evaluate empty --output missing/x.json", ["missing", "does not exist", "--output"]),
    ("evaluate empty --output occupied/file", ["occupied/file", "exists already", "another --output"]),
    ("evaluate empty --output occupied", ["occupied", "exists already", "another --output"]),
    ("evaluate empty --output /proc/x.json", ["/proc/x.json", "can't be written", "another --output"]),
    (f"evaluate empty --output {LONG}", [LONG, "can't be written", "another --output"]),
    # reports
    ("report", ["runs are missing", "at least one", "azjax report --help"]),
    ("compare", ["runs are missing", "at least one", "azjax compare --help"]),
    ("report missing", ["missing", "does not exist", "azjax train"]),
    ("compare torn missing", ["missing", "does not exist", "azjax train"]),
    ("report empty", ["empty", "holds none", "give a run folder"]),
    ("compare occupied", ["occupied", "holds none", "give a run folder"]),
    ("report occupied/file", ["occupied/file", "no run folder", "azjax train"]),
    ("report torn", ["torn/metrics.jsonl", "line 2", "env_steps is missing", "another copy"]),
    ("compare torn --json", ["torn/metrics.jsonl", "line 2", "env_steps is missing", "another copy"]),
    ("report .", ["damaged/config.yaml", "not valid YAML", "another copy"]),
    ("report torn --output occupied/page.html", ["occupied/page.html", "exists already", "another --output"]),
    ("report torn --output x.pdf", ["output is x.pdf", "ends in .html"]),
    ("report torn -o missing/x.html", ["missing", "does not exist", "--output"]),
    ("report torn -o", ["--output needs a value", "azjax report --help"]),
    ("report torn -o x.html empty", ["'empty'", "beside the other runs", "azjax report --help"]),
    ("report torn -x", ["-x", "azjax report --help"]),
    ("report --ouptut x.html torn", ["--ouptut", "did you mean '--output'"]),
    ("report torn --thresholds high", ["--thresholds is 'high'; it must be numbers with", "azjax report --help"]),
    ("compare torn --thresholds nan", ["thresholds", "nan", "finite"]),
    (f"report {LONG}", ["does not exist"]),
    # rendering
    ("render", ["PATH", "azjax render --help"]),
    ("render missing", ["missing", "not a run folder"]),
    ("render occupied/file", ["occupied/file", "not a run folder"]),
    ("render empty", ["empty/policy.json", "missing", "folder of a run"]),
    ("render missing -o x.html", ["missing", "not a run folder"]),
    ("render empty -o x.avi", ["x.avi", ".html, .gif or .mp4"]),
    ("render empty -o html", ["output is html", ".html, .gif or .mp4"]),
    ("render empty -o occupied", ["output is occupied", ".html, .gif or .mp4"]),
    ("render empty -o occupied/page.html", ["occupied/page.html", "exists already", "another --output"]),
    ("render empty -o missing/x.gif", ["folder missing", "does not exist", "another --output"]),
    ("render empty -o /proc/x.gif", ["/proc/x.gif", "can't be written", "another --output"]),
    ("render empty -o", ["--output", "needs a value"]),
    ("render empty --episodes 0", ["episodes is 0", "between 1 and"]),
    ("render empty --episodes -3", ["episodes is -3", "between 1 and"]),
    ("render empty --seed 4294967296", ["seed is 4294967296", "between 0 and"]),
    ("render empty --select mean", ["--select", "'mean'", "'median'"]),
    ("render empty --seconds 0", ["seconds is 0.0", "between"]),
    ("render empty --seconds nan", ["seconds is nan", "between"]),
    ("render empty --camera track", ["camera is track", ".html has controls for that"]),
    ("render empty --width 640", ["width is 640", ".html has controls for that"]),
    ("render empty --fps 30 -o x.html", ["fps is 30.0", ".html has controls for that"]),
    ("render empty -o x.mp4 --width 641", ["width is 641", "even", "640 or 642"]),
    ("render empty -o x.mp4 --height 33", ["height is 33", "even", "32 or 34"]),
    ("render empty -o x.gif --width 0", ["width is 0", "between 16 and 4096"]),
    ("render empty -o x.gif --height 100000", ["height is 100000", "between 16 and 4096"]),
    ("render empty -o x.gif --fps 60", ["fps is 60.0", "and 50.0"]),
    ("render empty -o x.mp4 --fps 0", ["fps is 0.0", "between"]),
    ("render empty -o x.mp4 --speed 0", ["speed is 0.0", "between"]),
    ("render empty -o x.mp4 --speed fast", ["--speed", "'fast'"]),
    ("render empty --colour red", ["--colour"]),
    # export
    ("export", ["PATH", "azjax export --help"]),
    ("export missing", ["missing", "not a run folder"]),
    ("export empty", ["empty/policy.json", "missing", "folder of a run"]),
    ("export damaged", ["damaged/policy.json", "not valid JSON", "another copy"]),
    ("export empty -o policy.onnx", ["policy.onnx", "must end in .stablehlo"]),
    ("export empty -o occupied/page.stablehlo", ["occupied/page.json", "exists already", "another --output"]),
    ("export empty -o missing/x.stablehlo", ["folder missing", "does not exist", "another --output"]),
    ("export empty -o", ["--output", "needs a value"]),
    ("export empty --platforms gpu", ["'gpu'", "'cuda'"]),
    ("export empty --platforms", ["platforms is empty", "cpu, cuda"]),
    ("export empty --platforms cpu cpu", ["cpu cpu", "once"]),
    ("export empty --stochastc", ["--stochastc", "did you mean '--stochastic'"]),
]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with some things in it that are no run, or no run any more."""
    folder = tmp_path / "workplace"
    for name in ("empty", "occupied", "damaged", "foreign", "edited", "typed", "started", "torn"):
        (folder / name).mkdir(parents=True)
    for name in ("file", "page.html", "page.json"):
        (folder / "occupied" / name).write_text("content")
    (folder / "damaged" / "policy.json").write_text('{"schema": 1, "ppo": {')
    (folder / "foreign" / "policy.json").write_text('{"schema": 99, "ppo": {}}')
    for name, config in (
        ("damaged", "schema: [1"),
        ("foreign", "schema: 99\nenv: ant\n"),
        ("edited", "schema: 1\nenv: ant\nppo: {gama: 0.9}\n"),
        ("typed", "schema: 1\nenv: ant\nsteps: many\n"),
        ("started", "schema: 1\nenv: ant\nlanes: 100\nsteps: 100000\nupdates_per_call: 1\n"),
    ):
        (folder / name / "config.yaml").write_text(config)
    (folder / "torn" / "config.yaml").write_text("env: ant\nseed: 0\n")
    (folder / "torn" / "metrics.jsonl").write_text('{"env_steps": 5, "time/seconds": 1.0}\n{"env_s": 3}\n')
    monkeypatch.chdir(folder)
    return folder


def words(command_line: str) -> list[str]:
    return ["" if word == "''" else word for word in command_line.split()]


def complains(result: Result, fragments: list[str]) -> None:
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert re.match(r"azjax( \w+)?: error: \S", lines[0])
    assert "Traceback" not in result.err
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.mark.parametrize(("command_line", "fragments"), WRONG, ids=[line[:60] for line, _ in WRONG])
def test_wrong_input_is_one_line_and_leaves_nothing_behind(
    command_line: str,
    fragments: list[str],
    workplace: Path,
    quiet_machine: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train_module, "build", lambda *args: pytest.fail("it compiled"))
    monkeypatch.setattr(episodes_module, "compile_evaluator", lambda *args: pytest.fail("it compiled"))
    monkeypatch.setattr(export_module, "export_act", lambda *args, **rest: pytest.fail("it lowered"))
    monkeypatch.setattr(render_module, "find_driver", lambda: "egl")
    before = contents(workplace)
    code = main(words(command_line))
    captured = capsys.readouterr()
    complains(Result(code, captured.out, captured.err), fragments)
    assert contents(workplace) == before


@pytest.mark.parametrize(
    ("command_line", "fragments"),
    [
        ("train aant", ["'aant'", "did you mean 'ant'"]),
        ("train inverted_pendulum --steps ten", ["'ten'", "whole number"]),
        ("train inverted_pendulum --run occupied", ["occupied", "not empty", "choose another --run"]),
        ("train inverted_pendulum --lanes 32000 --devices 500", ["500 devices", "JAX sees"]),
        ("train inverted_pendulum --action-repeat 1 --lanes 500000 --rollout-length 2000", ["GiB", "fewer lanes"]),
        ("evaluate missing", ["missing", "not a run folder"]),
    ],
)
def test_wrong_input_of_the_real_command(command_line: str, fragments: list[str], workplace: Path) -> None:
    before = contents(workplace)
    # An encoding and a width in which the messages of the argument parser look different.
    settings = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    result = azjax_command(*words(command_line), cache=workplace.parent / "cache", cwd=workplace, **settings)
    complains(result, fragments)
    assert contents(workplace) == before


def test_wrong_input_on_a_colour_terminal_has_no_escape_codes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for command_line, fragments in (("train --steps ten", ["'ten'"]), ("train --schedule x", ["'x'", "'linear'"])):
        code = main(words(command_line))
        captured = capsys.readouterr()
        assert "\x1b" not in captured.err
        complains(Result(code, captured.out, captured.err), fragments)


def test_a_message_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: TrainOptions) -> None:
        raise azjax.config.ConfigError("first\n  second\r\nthird")

    monkeypatch.setattr(train_command, "train", fail)
    assert main(["train", "ant"]) == 2
    assert capsys.readouterr().err == "azjax train: error: first second third\n"


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (RuntimeError("Unable to initialize backend 'cuda': no driver\nmore"), ["can't use its devices", "doctor"]),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), ["out of memory", "fewer --lanes"]),
        (MemoryError(), ["out of memory", "fewer --lanes"]),
    ],
)
def test_what_the_machine_cannot_do_is_one_line_and_exit_code_1(
    error: Exception, fragments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: TrainOptions) -> None:
        raise error

    monkeypatch.setattr(train_command, "train", fail)
    assert main(["train", "ant"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(fragment in message for fragment in fragments)


def test_a_bug_is_not_hidden_as_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: TrainOptions) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(train_command, "train", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["train", "ant"])
