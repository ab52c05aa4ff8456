"""azjax.runs.plain and the reading of config.yaml: what a stranger wrote has every value of its type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from azjax.config import ConfigError
from azjax.ppo import PPOConfig
from azjax.runs.options import TrainOptions, preset_options, resolve
from azjax.runs.run_options import parse_options, read_options, to_plain, to_yaml
from azjax.trpo import TRPOConfig


@pytest.mark.parametrize("env", ["ant", "hopper", "reacher", "inverted_pendulum", "swimmer"])
def test_options_come_back_from_their_file(tmp_path: Path, env: str) -> None:
    options = resolve(preset_options(env, run=Path("runs/x"), devices=2, value_clip=float("inf"), wandb="p"))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(options))
    assert read_options(path, TrainOptions) == options


def test_what_is_missing_takes_its_default() -> None:
    text = b"schema: 1\nenv: hopper\nppo: {gamma: 0.5}\n"
    assert parse_options(text, Path("config.yaml"), TrainOptions) == TrainOptions(
        env="hopper", learner=PPOConfig(gamma=0.5)
    )
    text = b"schema: 1\nalgorithm: trpo\ntrpo: {max_kl: 0.5}\n"
    trpo = TrainOptions(algorithm="trpo", learner=TRPOConfig(max_kl=0.5))
    assert parse_options(text, Path("config.yaml"), TrainOptions) == trpo


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        ("stepz", 5, "unknown option 'stepz'; did you mean 'steps'"),
        ("steps", "5", "steps is '5'"),
        ("steps", True, "steps is True"),
        ("steps", 5.0, "steps is 5.0"),
        ("steps", 10**30, "wrong type or size"),
        ("steps", None, "steps is None"),
        ("seed", [1], r"seed is \[1\]"),
        ("run", 5, "run is 5"),
        ("run", "a\0b", "run is"),
        ("devices", "two", "devices is 'two'"),
        ("quiet", "yes", "quiet is 'yes'"),
        ("vectorize", 3, "vectorize is 3"),
        ("checkpoint_seconds", "often", "checkpoint_seconds is 'often'"),
        ("ppo", None, "None stands where options should be"),
        ("ppo", {"gama": 0.9}, "unknown option 'gama'; did you mean 'gamma'"),
        ("ppo", {"policy_hidden": [64, 0.5]}, "policy_hidden is"),
        ("ppo", {"policy_hidden": [2] * 1000}, "policy_hidden is"),
        ("trpo", {"gamma": 0.9}, "unknown option 'trpo'"),
        ("learner", {"gamma": 0.9}, "unknown option 'learner'"),
        ("algorithm", "sac", "algorithm is 'sac'"),
        ("algorithm", ["ppo"], r"algorithm is \['ppo'\]"),
        ("algorithm", "trpo", "unknown option 'ppo'"),
        (3, 1, "unknown option 3"),
    ],
)
def test_a_wrong_value_is_named(name: Any, value: Any, fragment: str) -> None:
    text = yaml.safe_dump(to_plain(TrainOptions()) | {name: value})
    with pytest.raises(ConfigError, match=fragment):
        parse_options(text.encode(), Path("config.yaml"), TrainOptions)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "schema None"),
        (b"[1, 2]", "schema None"),
        (b"schema: 99\nenv: ant\n", "schema 99, this azjax reads 1"),
        (b"schema: 1\nenv: {a: 1}\n", "env is"),
        (b"schema: 1\nenv: !!python/object/apply:os.system ['touch executed']\n", "not valid YAML"),
        (b"schema: 1\n\tenv: ant\n", "not valid YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 10_000, "nested too deeply"),
        (b"#" * (1 << 21), "larger than"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nschema: 1\n", "aliases"),
    ],
    ids=range(10),
)
def test_a_configuration_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, fragment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=fragment):
        read_options(path, TrainOptions)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml is missing; is this the folder of a run"):
        read_options(tmp_path / "config.yaml", TrainOptions)


def test_the_file_is_plain_yaml() -> None:
    assert yaml.safe_load(to_yaml(TrainOptions()))["ppo"]["policy_hidden"] == [64, 64]
