"""azjax/presets: tuned settings that are readable, complete and runnable."""

from __future__ import annotations

import dataclasses
import importlib.resources
import typing
from typing import Any

import pytest
import yaml

from azjax.algorithms import ALGORITHMS
from azjax.config import ConfigError
from azjax.envs import SUPPORTED
from azjax.envs.registry import backends_of
from azjax.runs.options import TrainOptions, load_preset, preset_options, resolve
from azjax.runs.run_options import AlgorithmName, to_plain, with_changes

TASKS = ("inverted_pendulum", "reacher", "hopper", "walker2d", "halfcheetah", "ant")


def read_presets(algorithm: str) -> dict[str, dict[str, Any]]:
    text = (importlib.resources.files("azjax") / "presets" / f"{algorithm}.yaml").read_text()
    presets = yaml.safe_load(text)
    assert isinstance(presets, dict)
    return presets


PRESETS = [(a, name, values) for a in ALGORITHMS for name, values in read_presets(a).items()]
NAMES = [f"{algorithm}-{name}" for algorithm, name, _ in PRESETS]


def allowed_types(cls: type, name: str) -> tuple[type, ...]:
    """What a YAML value of this field may be."""
    hint = typing.get_type_hints(cls)[name]
    parts = typing.get_args(hint) if typing.get_origin(hint) not in (None, tuple) else (hint,)
    found: list[type] = []
    for part in parts:
        if isinstance(part, str):  # a choice of a Literal
            found.append(str)
        elif typing.get_origin(part) is tuple:
            found.append(list)
        else:
            found.append(part)
    return tuple(found)


@pytest.mark.parametrize(("algorithm", "name", "values"), PRESETS, ids=NAMES)
def test_a_preset_names_an_environment_and_fields_that_exist(algorithm: str, name: str, values: dict[str, Any]) -> None:
    env, _, backend = name.partition("/")
    backends = backends_of(env)
    assert not backend or backend in backends
    config = ALGORITHMS[algorithm].config
    classes: dict[str, type] = {field.name: config for field in dataclasses.fields(config)}
    classes |= {field.name: TrainOptions for field in dataclasses.fields(TrainOptions)}
    for forbidden in ("env", "run", "seed", "learner", "algorithm", "quiet"):
        classes.pop(forbidden, None)
    assert set(values) <= set(classes)
    for field, value in values.items():
        types = allowed_types(classes[field], field)
        # 1e-3 without a point is a string to YAML, and true is an integer to Python.
        assert type(value) in types or (type(value) is int and float in types), f"{field}: {value!r} is no {types}"


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("algorithm", "name", "values"), PRESETS, ids=NAMES)
def test_a_preset_runs_on_one_device_and_on_two(
    algorithm: str, name: str, values: dict[str, Any], devices: int
) -> None:
    env, _, backend = name.partition("/")
    options = resolve(preset_options(env, backend or None, algorithm))
    options.validate()
    options.check_devices(devices)
    resolve(dataclasses.replace(options, devices=devices)).validate()
    for field, value in values.items():
        holder = options.learner if hasattr(options.learner, field) else options
        assert getattr(holder, field) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_of_the_results_have_a_preset(task: str, algorithm: AlgorithmName) -> None:
    assert load_preset(task, algorithm=algorithm)


def test_the_default_task_has_a_preset() -> None:
    assert load_preset(TrainOptions().env)


def test_an_environment_without_a_preset_gets_the_defaults() -> None:
    assert load_preset("swimmer") == {}
    assert preset_options("swimmer") == TrainOptions(env="swimmer")


def test_a_preset_for_a_backend_goes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {"ant": {"steps": 1}, "ant/mjx": {"steps": 2}, "hopper/mjx": {"steps": 3}}
    monkeypatch.setattr(yaml, "safe_load", lambda text: presets)
    assert load_preset("ant") == load_preset("ant", "spring") == {"steps": 1}
    assert load_preset("ant", "mjx") == {"steps": 2}
    assert load_preset("hopper") == {}
    assert load_preset("hopper", "mjx") == {"steps": 3}


def test_an_unknown_algorithm_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'sac'.*ppo"):
        load_preset("ant", algorithm="sac")
    with pytest.raises(ConfigError, match=r"'sac'.*ppo"):
        preset_options("ant", algorithm="sac")  # type: ignore[arg-type]


def test_keywords_change_fields_of_the_run_and_of_the_learner() -> None:
    preset = preset_options("hopper")
    options = preset_options("hopper", steps=17, gamma=0.5, policy_hidden=[3, 4])
    assert (options.steps, options.learner.gamma, options.learner.policy_hidden) == (17, 0.5, (3, 4))
    back = {"steps": preset.steps, "gamma": preset.learner.gamma, "policy_hidden": preset.learner.policy_hidden}
    assert with_changes(options, back) == preset


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("gama", "gamma"), ("learning-rate", "learning_rate"), ("step", "steps"), ("lane", "lanes"), ("learner", None)],
)
def test_an_unknown_option_is_named_with_the_nearest(name: str, suggestion: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        with_changes(TrainOptions(), {name: 1})
    assert repr(name) in str(caught.value)
    if suggestion:
        assert f"did you mean {suggestion!r}" in str(caught.value)


@pytest.mark.parametrize("env", sorted(SUPPORTED))
def test_options_survive_yaml(env: str) -> None:
    options = resolve(preset_options(env))
    plain = to_plain(options)
    loaded = yaml.safe_load(yaml.safe_dump(plain))
    assert loaded == plain
    of_run = {name: value for name, value in loaded.items() if name not in ("schema", "ppo")}
    assert with_changes(TrainOptions(), of_run | loaded["ppo"]) == options
