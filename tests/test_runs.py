"""azjax.runs: options, folder, policy files, plots, console, machine, and the loop of training."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle  # noqa: TID251 - to make the files that must be refused
import re
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
import yaml
from rich.console import Console

import azjax
from azjax.config import ConfigError
from azjax.envs.lanes import group_size
from azjax.evaluation import Episodes
from azjax.ppo import PPOConfig
from azjax.runs import console as console_module
from azjax.runs import folder as folder_module
from azjax.runs import load_policy, machine, programs, save_policy
from azjax.runs import train as train_function
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile, RunFolder, check_output, read_metrics, replacing, write_json, write_text
from azjax.runs.options import TrainOptions, resolve
from azjax.runs.plots import plot_curves, series
from azjax.runs.policy import named_arrays, params_sha256
from azjax.runs.run_options import to_plain
from azjax.runs.starting import default_folder

train_module = sys.modules["azjax.runs.train"]  # the package's attribute of that name is the function
replay_module = sys.modules["azjax.runs.replay"]
INFINITY = float("inf")


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def options_of(**changes: Any) -> TrainOptions:
    """Small options, valid as they stand."""
    learner = {field.name for field in dataclasses.fields(PPOConfig)}
    ppo = PPOConfig(minibatches=4)
    ppo = dataclasses.replace(ppo, **{k: v for k, v in changes.items() if k in learner})
    rest = {k: v for k, v in changes.items() if k not in learner}
    return TrainOptions(**({"env": "ant", "lanes": 64, "rollout_length": 8, "steps": 10_000} | rest), learner=ppo)


@pytest.mark.parametrize(
    ("steps", "lanes", "length", "repeat", "updates"),
    [
        (1, 64, 8, 1, 1),
        (512, 64, 8, 1, 1),
        (513, 64, 8, 1, 2),
        (1024, 64, 8, 1, 2),
        (1024, 64, 8, 4, 1),
        (2049, 64, 8, 4, 2),
        (10**15, 1, 1, 1, 10**15),
    ],
)
def test_training_stops_at_the_first_update_that_reaches_the_request(
    steps: int, lanes: int, length: int, repeat: int, updates: int
) -> None:
    options = TrainOptions(steps=steps, lanes=lanes, rollout_length=length, action_repeat=repeat)
    per_update = options.env_steps_per_update
    assert (per_update, options.updates) == (lanes * length * repeat, updates)
    assert (updates - 1) * per_update < steps <= updates * per_update


def test_the_defaults_are_valid() -> None:
    resolve(TrainOptions()).validate()
    options_of().validate()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("steps", "lanes", "rollout_length", "action_repeat") for value in (0, -1, 2**60)],
        *[(name, value) for name in ("episode_length", "evaluations", "devices") for value in (0, -5, 2**40)],
        *[(name, value) for name in ("evaluation_episodes", "reset_pool", "updates_per_call") for value in (0, 2**40)],
        ("seed", -1),
        ("seed", 2**32),
        ("episode_length", 2**26),
        ("algorithm", "sac"),
        ("vectorize", "pmap"),
        ("env", "aant"),
        ("backend", "bullet"),
        ("backend", ""),
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("learning_rate", float("nan")),
        ("learning_rate", INFINITY),
        ("learning_rate", -1e-3),
        ("lam", -0.1),
        ("clip", 0.0),
        ("value_clip", float("nan")),
        ("max_grad_norm", 0.0),
        ("reward_scale", -1.0),
        ("epochs", 0),
        ("minibatches", 0),
        ("init_std", 0.0),
        ("policy_hidden", (64, 0)),
        ("schedule", "exponential"),
        ("schedule_updates", -1),
        ("activation", "sine"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(options_of(**{name: value})).validate()
    message = str(caught.value)
    assert str(value) in message
    assert name in message or name in ("env", "backend")
    assert "\n" not in message


def test_an_update_too_long_for_32_bits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"4294967296.*2\^31"):
        options_of(lanes=2**20, rollout_length=2**12).validate()


@pytest.mark.parametrize("per_call", [1, 2, 4, 5, 10, 20])
def test_updates_per_call_may_be_any_divisor(per_call: int) -> None:
    options_of(updates_per_call=per_call).validate()


@pytest.mark.parametrize("per_call", [3, 7, 40])
def test_updates_per_call_must_divide_the_updates(per_call: int) -> None:
    with pytest.raises(ConfigError, match=rf"updates_per_call={per_call} .*20 updates.*10000 steps.*512 steps each"):
        options_of(updates_per_call=per_call).validate()


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 6, 7, 8, 12, 64])
def test_the_number_of_lanes_that_a_message_suggests_works(devices: int) -> None:
    for lanes in (1, 8, 60, 64, 100, 512, 1000):
        options = options_of(lanes=lanes, minibatches=1)
        if options.fits(devices):
            assert (lanes // group_size(lanes)) % devices == 0
            continue
        with pytest.raises(ConfigError) as caught:
            options.check_devices(devices)
        assert str(lanes) in str(caught.value)
        step = int(re.search(r"a multiple of (\d+) lanes", str(caught.value)).group(1))
        for times in (1, 2, 3, 5, 8):
            options_of(lanes=step * times, minibatches=1).check_devices(devices)


def test_minibatches_must_divide_the_decisions_of_a_device() -> None:
    options_of(minibatches=8).check_devices(2)
    with pytest.raises(ConfigError, match=r"64 lanes x 8 decisions on 2 devices.*512 equal minibatches"):
        options_of(minibatches=512).check_devices(2)
    options_of(minibatches=512).check_devices(1)
    with pytest.raises(ConfigError, match=r"on 1 device .*7 equal minibatches"):
        options_of(minibatches=7).check_devices(1)
    with pytest.raises(ConfigError, match="divided among 3 devices"):
        options_of(devices=3).validate()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_length_of_a_schedule_is_filled_in(schedule: str) -> None:
    options = options_of(schedule=schedule)
    assert resolve(options).learner.schedule_updates == options.updates == 20
    resolve(options).validate()
    assert resolve(options_of(schedule=schedule, schedule_updates=7)).learner.schedule_updates == 7
    # Counts that make no sense are reported as such, not as a division by zero.
    for wrong in ({"lanes": 0}, {"rollout_length": -1}, {"steps": -3}, {"action_repeat": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            resolve(options_of(schedule=schedule, **wrong)).validate()


@pytest.mark.parametrize("schedule", ["constant", "adaptive-kl"])
def test_other_schedules_need_no_length(schedule: str) -> None:
    assert resolve(options_of(schedule=schedule)).learner.schedule_updates == 0


def test_the_backend_is_filled_in() -> None:
    assert resolve(TrainOptions(env="ant")).backend == "spring"
    assert resolve(TrainOptions(env="swimmer")).backend == "generalized"
    assert resolve(TrainOptions(env="ant", backend="mjx")).backend == "mjx"


def test_options_as_plain_data_are_yaml_safe() -> None:
    options = resolve(options_of(run=Path("runs") / "x", policy_hidden=(3, 4), value_clip=INFINITY))
    text = yaml.safe_dump(to_plain(options), sort_keys=False)
    assert "!!" not in text
    loaded = yaml.safe_load(text)
    assert loaded["run"] == str(Path("runs") / "x")
    assert loaded["ppo"]["policy_hidden"] == [3, 4]
    assert loaded["ppo"]["value_clip"] == INFINITY
    assert set(loaded) == {"schema", "ppo"} | {field.name for field in dataclasses.fields(TrainOptions)} - {"learner"}
    assert set(loaded["ppo"]) == {field.name for field in dataclasses.fields(PPOConfig)}


# ---------------------------------------------------------------------------------------------------------------------
# Folder
# ---------------------------------------------------------------------------------------------------------------------


def test_a_new_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.path.is_dir()
    assert folder.file("x.json") == tmp_path / "a" / "b" / "x.json"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).path == tmp_path


@pytest.mark.parametrize("occupant", ["policy.npz", ".hidden", "folder/"])
def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path, occupant: str) -> None:
    target = tmp_path / occupant
    target.mkdir() if occupant.endswith("/") else target.touch()
    with pytest.raises(ConfigError, match=r"is not empty; choose another --run"):
        RunFolder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = [RunFolder.numbered(tmp_path / "runs" / "ant").path.name for _ in range(3)]
    assert paths == ["ant", "ant-2", "ant-3"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be"):
        RunFolder.numbered(tmp_path / "file" / "ant")


def test_a_file_in_place_of_the_folder_or_above_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(ConfigError, match=r"file is a file; choose another --run"):
        RunFolder(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"can't be made: .*; choose another --run"):
        RunFolder(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize("path", ["/proc/nowhere/run", "/dev/null/run", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="choose another --run"):
        RunFolder(Path(path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="can't be written; choose another --run"):
        RunFolder(tmp_path)


def test_an_output_must_be_new_and_writable(tmp_path: Path) -> None:
    check_output(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").touch()
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nowhere")
    for name in ("old.json", "dangling.json"):
        with pytest.raises(ConfigError, match=rf"{name} exists already; choose another --output"):
            check_output(tmp_path / name)
    with pytest.raises(ConfigError, match=r"folder .*missing does not exist; .*--output"):
        check_output(tmp_path / "missing" / "new.json")
    with pytest.raises(ConfigError, match=r"folder .*old.json does not exist; .*--output"):
        check_output(tmp_path / "old.json" / "new.json")
    for impossible in (Path("/proc/new.json"), tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"can't be written: .*; choose another --output"):
            check_output(impossible)


def test_a_write_leaves_the_whole_file_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    write_text(path, "ünïcode\n")
    assert path.read_text(encoding="utf-8") == "ünïcode\n"
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]


def test_metrics_are_whole_lines_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"env_steps": 2**40, "x": 0.1}, {"env_steps": 2**40 + 1}]
    file = MetricsFile(path)
    for n, record in enumerate(records, 1):
        file.write(record)
        assert read_metrics(path) == records[:n]
        assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        file.write({"env_steps": 1, "x": INFINITY})
    file.close()
    assert read_metrics(path) == records


def test_metrics_go_on_after_the_lines_that_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_steps": 1}\n{"env_steps": 2}\n{"env_steps": 3}\n{"env_st')
    file = MetricsFile(path, records=2, warn=pytest.fail)
    file.write({"env_steps": 9})
    file.close()
    assert read_metrics(path) == [{"env_steps": 1}, {"env_steps": 2}, {"env_steps": 9}]
    assert file.records == 3
    warnings: list[str] = []
    file = MetricsFile(path, records=5, warn=warnings.append)
    file.close()
    assert file.records == 3
    assert "has 3 of the 5 lines" in warnings[0]


def test_lines_that_cannot_be_written_wait_and_are_whole_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    file = MetricsFile(path, warn=warnings.append)
    file.write({"env_steps": 1})
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(folder_module.os, "pwrite", lambda fd, data, at: real(fd, data[:5], at))  # the disk fills up
        file.write({"env_steps": 2})
        file.write({"env_steps": 3})
        assert path.read_text() == '{"env_steps": 1}\n'  # no half line
        with pytest.raises(OSError, match="No space left"):
            file.sync()
    assert len(warnings) == 1
    file.sync()
    file.close()
    assert [r["env_steps"] for r in read_metrics(path)] == [1, 2, 3]


def test_two_threads_may_use_the_metrics(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", warn=pytest.fail)
    stop = threading.Event()

    def synchronise() -> None:
        while not stop.is_set():
            file.sync()

    thread = threading.Thread(target=synchronise)
    thread.start()
    for n in range(500):
        file.write({"env_steps": n})
    stop.set()
    thread.join()
    file.close()
    assert [r["env_steps"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(500))


def test_a_failed_write_leaves_no_part_behind(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("old")

    def fail(path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail(tmp_path / "data.json")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("data.json", "old")]


def test_a_run_folder_is_claimed_by_one(tmp_path: Path) -> None:
    first, second = RunFolder.existing(tmp_path), RunFolder.existing(tmp_path)
    with first.claimed(), pytest.raises(ConfigError, match="is being trained by another process"), second.claimed():
        pass
    with second.claimed():
        assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Policy files
# ---------------------------------------------------------------------------------------------------------------------

SETTINGS = {"episode_length": 20, "action_repeat": 2, "randomize": False}


@functools.cache
def pendulum() -> azjax.Environment:
    return azjax.make_env("inverted_pendulum", "spring", episode_length=20)


def random_params(config: PPOConfig) -> Any:
    """Parameters of which every leaf, statistics included, differs from its initial value."""
    env = pendulum()
    learner = azjax.ppo(config)
    shapes = jax.eval_shape(
        lambda key: learner.init(key, env.observation_spec, env.action_spec).params, jax.random.key(0)
    )
    generator = np.random.default_rng(7)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            # Positive, as sums of squares are.
            return jnp.asarray(generator.uniform(0.1, 1.0, leaf.shape), leaf.dtype)
        return jnp.asarray(generator.integers(1, 1000, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


VARIATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "shared torso": {"shared_torso": True},
    "state-dependent std": {"state_dependent_std": True},
    "normal": {"distribution": "normal"},
    "normal, shared, state-dependent": {
        "distribution": "normal",
        "shared_torso": True,
        "state_dependent_std": True,
    },
    "normalized returns": {"normalize_returns": True},
    "raw observations": {"normalize_observations": False},
    "hidden layers": {"policy_hidden": (5, 3, 2), "value_hidden": (7,)},
    "no hidden layers": {"policy_hidden": (), "value_hidden": ()},
    "init_std": {"init_std": 0.05},
    "activation": {"activation": "silu"},
    "infinite and finite": {"value_clip": 0.2, "max_grad_norm": INFINITY, "stop_at_kl": True},
    "schedule": {"schedule": "cosine", "schedule_updates": 100, "advantage_normalization": "minibatch"},
}


@pytest.mark.parametrize("changes", VARIATIONS.values(), ids=VARIATIONS.keys())
def test_a_policy_acts_the_same_bit_for_bit_after_a_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = PPOConfig(**({"policy_hidden": (8, 8), "value_hidden": (8,)} | changes))
    params = random_params(config)
    digest = save_policy(tmp_path, params, pendulum(), config=config, settings=SETTINGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "policy.npz"]
    loaded = load_policy(tmp_path)
    assert digest == params_sha256(params) == params_sha256(loaded.params)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(loaded.params), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert (loaded.env.name, loaded.env.backend) == ("inverted_pendulum", "spring")
    assert (loaded.env.episode_length, loaded.action_repeat) == (20, 2)

    def actions(act: Any, params: Any) -> Any:
        observations = jax.random.normal(jax.random.key(1), (16, 4))
        keys = jax.random.split(jax.random.key(2), 16)

        @jax.jit
        def both(params: Any) -> Any:
            return [
                jax.vmap(lambda o, k, d=d: act(params, o, (), k, deterministic=d)[0])(observations, keys)
                for d in (False, True)
            ]

        return both(params)

    sampled, mode = actions(azjax.ppo(config).act, params)
    for before, after in zip((sampled, mode), actions(loaded.act, loaded.params), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(sampled, mode)


@pytest.mark.parametrize("randomize", [False, True])
def test_a_policy_remembers_what_it_was_trained_on(tmp_path: Path, randomize: bool) -> None:
    settings = {"episode_length": 33, "action_repeat": 3, "randomize": randomize}
    config = PPOConfig(policy_hidden=(2,), value_hidden=(2,), max_grad_norm=INFINITY)
    save_policy(tmp_path, random_params(config), pendulum(), config=config, settings=settings)
    loaded = load_policy(str(tmp_path))
    assert (loaded.env.episode_length, loaded.action_repeat) == (33, 3)
    assert bool(jax.tree.leaves(loaded.env.sample_params(jax.random.key(0)))) == randomize
    description = json.loads((tmp_path / "policy.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    # JSON has no infinity.
    assert description["ppo"].pop("value_clip") is None
    assert description["ppo"].pop("max_grad_norm") is None
    assert loaded.config == config
    assert set(description["ppo"]) == set(vars(config)) - {"value_clip", "max_grad_norm"}


def test_the_digest_covers_names_types_shapes_and_bytes() -> None:
    def digest(tree: Any) -> str:
        return params_sha256(tree)

    base = {"a": np.arange(6, dtype=np.float32)}
    others = [
        {"b": np.arange(6, dtype=np.float32)},
        {"a": np.arange(6, dtype=np.int32)},
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"a": np.arange(1, 7, dtype=np.float32)},
        {"a": np.arange(6, dtype=np.float32), "b": np.zeros(0, np.float32)},
    ]
    assert len({digest(tree) for tree in [base, *others]}) == 6
    assert digest(base) == digest({"a": np.arange(6).astype(">f4")}) == digest({"a": jnp.arange(6, dtype=jnp.float32)})
    assert digest({"a": np.asfortranarray(np.ones((2, 3)))}) == digest({"a": np.ones((2, 3))})


def test_the_digest_can_be_recomputed_from_the_file_alone(tmp_path: Path) -> None:
    config = PPOConfig(policy_hidden=(4,), value_hidden=(4,))
    digest = save_policy(tmp_path, random_params(config), pendulum(), config=config, settings=SETTINGS)
    recomputed = hashlib.sha256()
    with np.load(tmp_path / "policy.npz", allow_pickle=False) as archive:
        for name in archive.files:
            recomputed.update(f"{name} {archive[name].dtype.str} {archive[name].shape}\n".encode())
            recomputed.update(archive[name].tobytes())
    assert digest == recomputed.hexdigest() == json.loads((tmp_path / "policy.json").read_text())["params_sha256"]


def test_parameters_have_readable_names() -> None:
    names = list(named_arrays(random_params(PPOConfig(policy_hidden=(4,), value_hidden=(4,)))))
    assert "network/weights/params/policy_head/kernel" in names
    assert any(name.startswith("statistics/") for name in names)
    assert len(set(names)) == len(names)


# --- damaged policies: refused in one line, and nothing in them is executed


@pytest.fixture(scope="module")
def sound_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    config = PPOConfig(policy_hidden=(4,), value_hidden=(4,))
    save_policy(folder, random_params(config), pendulum(), config=config, settings=SETTINGS)
    return folder


@pytest.fixture
def policy(sound_policy: Path, tmp_path: Path) -> Path:
    """A copy of a sound policy, to be damaged."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("policy.json", "policy.npz"):
        (folder / name).write_bytes((sound_policy / name).read_bytes())
    return folder


def refused(folder: Path, *fragments: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(folder)
    message = " ".join(str(caught.value).split())
    for fragment in fragments:
        assert fragment in message


def test_the_sound_policy_loads(policy: Path) -> None:
    load_policy(policy)


@pytest.mark.parametrize("name", ["policy.json", "policy.npz"])
def test_a_missing_file_is_named(policy: Path, name: str) -> None:
    (policy / name).unlink()
    refused(policy, name, "missing", "folder of a run")
    (policy / name).mkdir()
    refused(policy, name, "missing")


@pytest.mark.parametrize("path", ["nowhere", "", "x" * 300])
def test_a_folder_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused(Path(path), path or "policy.json")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "not valid JSON"),
        (b'{"schema": 1, "ppo"', "not valid JSON"),
        (bytes(range(256)), "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "schema None"),
        (b'{"schema": 1, "ppo": [1]}', "does not describe a policy"),
        (b" " * (2 << 20), "larger than"),
    ],
    ids=["empty", "cut", "bytes", "utf-16", "deep", "long", "list", "null", "no fields", "no dict", "large"],
)
def test_a_description_that_is_no_json_object_is_refused(policy: Path, content: bytes, fragment: str) -> None:
    (policy / "policy.json").write_bytes(content)
    refused(policy, "policy.json", fragment)


MISSING = object()


@pytest.mark.parametrize(
    ("field", "value", "fragment"),
    [
        ("schema", 99, "schema 99"),
        ("schema", MISSING, "schema None"),
        ("env", "aant", "did you mean 'ant'"),
        ("env", ["ant"], "wrong type"),
        ("env", MISSING, "'env' is missing"),
        ("env", "../../etc/passwd", "unknown environment"),
        ("backend", "bullet", "bullet"),
        ("backend", None, "wrong type"),
        ("algorithm", "sac", "sac"),
        ("episode_length", "abc", "wrong type"),
        ("episode_length", 1.5, "wrong type"),
        ("episode_length", True, "wrong type"),
        ("episode_length", float("nan"), "NaN is no JSON"),
        ("episode_length", INFINITY, "Infinity is no JSON"),
        ("episode_length", 0, "episode_length is 0"),
        ("episode_length", 10**30, "wrong type"),
        ("action_repeat", 0, "action_repeat is 0"),
        ("action_repeat", -1, "action_repeat is -1"),
        ("action_repeat", "2", "wrong type"),
        ("action_repeat", MISSING, "'action_repeat' is missing"),
        ("randomize", "no", "wrong type"),
        ("params_sha256", 5, "wrong type"),
        ("params_sha256", MISSING, "'params_sha256' is missing"),
        ("params_sha256", "0" * 64, "digest"),
        ("ppo.unknown_field", 1, "unknown_field"),
        ("ppo.gamma", "0.9", "wrong type"),
        ("ppo.gamma", None, "gamma is inf"),
        ("ppo.gamma", 2, "gamma is 2"),
        ("ppo.gamma", float("nan"), "NaN is no JSON"),
        ("ppo.epochs", 4.5, "wrong type"),
        ("ppo.epochs", True, "wrong type"),
        ("ppo.policy_hidden", 5, "wrong type"),
        ("ppo.policy_hidden", [64.5], "wrong type"),
        ("ppo.policy_hidden", ["a"], "wrong type"),
        ("ppo.policy_hidden", [[64]], "wrong type"),
        ("ppo.policy_hidden", [0], "at least 1 unit"),
        ("ppo.policy_hidden", [2] * 10_000, "wrong type"),
        ("ppo.policy_hidden", [5], "float32[4, 1]"),
        ("ppo.policy_hidden", [10**20], "wrong type"),
        ("ppo.policy_hidden", [2**40, 2**40], "wrong type"),
        ("ppo.value_clip", 10**400, "wrong type"),
        ("ppo.max_grad_norm", 10**400, "wrong type"),
        ("action", {"kind": "Discrete", "size": 1}, "action is"),
        ("observation", {"": [[5], "float32"]}, "observation is"),
        ("ppo.policy_hidden", [4, 4], "policy_torso/Dense_1"),
        ("ppo.activation", "sine", "sine"),
        ("ppo.activation", ["tanh"], "wrong type"),
        ("ppo.shared_torso", "yes", "wrong type"),
        ("ppo.shared_torso", True, "lacks the array"),
        ("ppo.policy_observation", 5, "wrong type"),
        ("ppo.policy_observation", "state", "'state'"),
        ("ppo.distribution", "cauchy", "cauchy"),
    ],
)
def test_a_description_with_a_wrong_value_is_refused(policy: Path, field: str, value: Any, fragment: str) -> None:
    path = policy / "policy.json"
    data = json.loads(path.read_text())
    *parents, name = field.split(".")
    holder = data[parents[0]] if parents else data
    if value is MISSING:
        del holder[name]
    else:
        holder[name] = value
    path.write_text(json.dumps(data))
    refused(policy, fragment)


class Executed:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


KERNEL = "network/weights/params/policy_head/kernel"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of an array of that shape, without the array."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def rewrite(policy: Path, **changes: bytes | None) -> None:
    """Replaces (or, with ``None``, leaves out) the kernel, or adds entries."""
    path = policy / "policy.npz"
    with np.load(path) as archive:
        entries: dict[str, bytes | None] = {name: npy(archive[name]) for name in archive.files}
    entries |= {KERNEL if name == "kernel" else name: content for name, content in changes.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if content is not None:
                archive.writestr(name + ".npy", content)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, f"lacks the array '{KERNEL}'"),
        (npy(np.zeros((1, 4), np.float32)), "float32[1, 4], the network needs float32[4, 1]"),
        (npy(np.zeros((4, 1), np.float64)), "float64[4, 1], the network needs float32[4, 1]"),
        (npy(np.full((4, 1), np.nan, np.float32)), "not finite"),
        (npy(np.full((4, 1), np.inf, np.float32)), "not finite"),
        (npy(np.full((4, 1), 0.25, np.float32)), "digest"),
        (npy(np.zeros((4, 1), np.float32))[:-3], "can't be read"),
        (b"no array", KERNEL),
        (b"", KERNEL),
        (b"\x93NUMPY\x01\x00\x14\x00__import__('os')   \n", "can't be read"),
        (npy_header((4, 1)), "can't be read"),
        (npy_header((10**15,)), "can't be read"),
        (npy_header((-1,)), "can't be read"),
    ],
)
def test_an_array_that_is_not_what_it_should_be_is_refused(policy: Path, content: bytes | None, fragment: str) -> None:
    rewrite(policy, kernel=content)
    refused(policy, "policy.npz", fragment)


def test_an_array_rewritten_unchanged_is_taken(policy: Path) -> None:
    rewrite(policy)
    load_policy(policy)


def test_a_pickle_inside_is_refused_and_not_executed(policy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    pickled = np.empty((4, 1), object)
    pickled[:] = Executed(trace)
    buffer = io.BytesIO()
    np.save(buffer, pickled, allow_pickle=True)
    path = policy / "policy.npz"
    content = path.read_bytes()
    for damaged in (buffer.getvalue(), pickle.dumps(Executed(trace))):
        path.write_bytes(content)
        rewrite(policy, kernel=damaged)
        refused(policy, "policy.npz")
        assert not trace.exists()
    path.write_bytes(pickle.dumps(Executed(trace)))
    refused(policy, "policy.npz", "can't be read")
    assert not trace.exists()


def test_the_pickles_of_these_tests_do_execute_elsewhere(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Executed(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").exists()


DIRECTORY_ENTRY = b"PK\x01\x02"


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    """The archive with some bytes of its first directory entry changed."""
    start = content.find(DIRECTORY_ENTRY) + offset
    return content[:start] + value + content[start + len(value) :]


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda content: b"", "can't be read"),
        (lambda content: b"hello", "can't be read"),
        (lambda content: content[: len(content) // 2], "can't be read"),
        (lambda content: content[:-1], "can't be read"),
        (lambda content: content.replace(b"\x93NUMPY", b"\x93NUMPU", 1), ""),
        (lambda content: patched(content, 24, struct.pack("<I", 0xF000_0000)), "unpacks to"),
        (lambda content: patched(content, 10, struct.pack("<H", 99)), "can't be read"),
        (lambda content: patched(content, 8, b"\x01"), "can't be read"),
        (lambda content: patched(content, 42, struct.pack("<I", 0x7FFF_FFFF)), "can't be read"),
    ],
    ids=["empty", "text", "half", "last byte", "magic", "huge", "unknown compression", "encrypted", "wild offset"],
)
def test_a_damaged_archive_is_refused(policy: Path, damage: Any, fragment: str) -> None:
    path = policy / "policy.npz"
    path.write_bytes(damage(path.read_bytes()))
    refused(policy, "policy.npz", fragment)


def test_every_single_flipped_bit_is_noticed_or_harmless(policy: Path) -> None:
    path = policy / "policy.npz"
    content = path.read_bytes()
    digest = json.loads((policy / "policy.json").read_text())["params_sha256"]
    generator = np.random.default_rng(0)
    for position in generator.choice(len(content), 12, replace=False):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            loaded = load_policy(policy)
        except ConfigError:
            continue
        assert params_sha256(loaded.params) == digest


# ---------------------------------------------------------------------------------------------------------------------
# Plots
# ---------------------------------------------------------------------------------------------------------------------

RECORDS = [
    {"env_steps": 100, "time/seconds": 1.0, "train/episode_return": 5.0},
    {"env_steps": 200, "time/seconds": 2.0},
    {"env_steps": 200, "time/seconds": 2.0, "eval/episode_return_mean": 7.0, "eval/episode_return_std": 1.0},
]


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content[-12:] == b"\x00\x00\x00\x00IEND\xaeB`\x82"
    return struct.unpack(">II", content[16:24])


def test_series_takes_the_records_that_have_the_key() -> None:
    assert series(RECORDS, "train/episode_return") == ([100], [1.0], [5.0])
    assert series(RECORDS, "eval/episode_return_std") == ([200], [2.0], [1.0])
    assert series(RECORDS, "nothing") == ([], [], [])


@pytest.mark.parametrize(
    "records", [RECORDS, RECORDS[:2], RECORDS[2:], []], ids=["both", "training", "evaluation", "none"]
)
def test_curves_are_a_picture_whatever_there_is_to_draw(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = tmp_path / "curves.png"
    plot_curves(path, records, title="50 % of $x_1 & <y>")
    width, height = png_size(path)
    assert 800 <= width <= 2000
    assert 300 <= height <= 1000


def test_plotting_leaves_the_users_matplotlib_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from azjax.runs.plots import plot_curves;"
        "plot_curves(Path(sys.argv[1]), [], title='t');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Console
# ---------------------------------------------------------------------------------------------------------------------

ROWS = [("policy", "runs/[/bold]x/:smile:/policy.npz"), ("", "second line"), ("return", "1.0 ± 2.0")]


def test_off_a_terminal_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    with RunConsole(1000) as console:
        console.say("hello [red] :smile: 123")
        with console.waiting("compiling"):
            pass
        console.progress(500, 100.0, "no episode has ended yet")
        console.progress(600, 100.0, "episode return 1.25")  # too soon after the last line
        console.progress(1000, 200.0, "episode return 2.5")  # the end is always shown
        console.summary("title [bold] :smile:", ROWS)
    out = capsys.readouterr().out
    lines = [line.rstrip() for line in out.splitlines()]
    assert "\x1b" not in out
    assert "\r" not in out
    assert lines[0] == "hello [red] :smile: 123"
    assert lines[1] == "compiling ..."
    assert re.fullmatch(r"compiling: \d+\.\d s", lines[2])
    first, last = (" ".join(line.split()) for line in lines[3:5])
    assert first == "500 of 1,000 environment steps 100 steps/s no episode has ended yet 5 s left"
    assert last == "1,000 of 1,000 environment steps 200 steps/s episode return 2.5 0 s left"
    assert "title [bold] :smile:" in out
    for _, value in ROWS:
        assert value in out


def test_quiet_prints_only_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with RunConsole(1000, quiet=True) as console:
        console.say("hello")
        with console.waiting("compiling"):
            pass
        console.progress(1000, 100.0, "good")
        assert capsys.readouterr().out == ""
        console.summary("title", ROWS)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "title"
    assert len(lines) == 1 + len(ROWS)


def test_output_that_nobody_reads_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(os.devnull, "w") as nowhere, open(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        with RunConsole(1000) as console:
            console.say("a line")
            console.warn("another")
            console.progress(1000, 5.0, "no episode has ended yet")
            console.summary("title", [("a", "b")])
        monkeypatch.undo()
        os.dup2(nowhere.fileno(), stream.fileno())  # for what is left in the buffer


def test_a_path_in_the_summary_stays_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/" + "/".join(["folder"] * 40) + "/policy.npz"
    with RunConsole(1) as console:
        console.summary("title", [("policy", path)])
    assert path in capsys.readouterr().out


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a run console writes when it believes in a terminal."""
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    wide = functools.partial(Console, force_terminal=True, width=120)
    monkeypatch.setattr(console_module, "Console", lambda **settings: wide(**(settings | {"file": screen})))
    return screen


def test_on_a_terminal_there_is_a_live_bar(terminal: io.StringIO) -> None:
    with RunConsole(1000) as console:
        with console.waiting("compiling"):
            pass
        console.progress(250, 1234.0, "no episode has ended yet")
        console.progress(500, 2345.0, "episode return 12.25")
        console.say("above the bar [red]")
        console.progress(1000, 2345.0, "episode return 13.0")
        console.summary("title", ROWS)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "\x1b[" in terminal.getvalue()
    assert "━" in text
    assert "1,000 / 1,000 environment steps" in text
    assert "2,345 steps/s" in text
    assert "episode return 13.0" in text
    assert "above the bar [red]" in text
    assert "left" in text
    assert text.index("episode return 13.0") < text.index("title")
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize("quiet", [False, True])
def test_items_are_passed_on_while_their_number_is_shown(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "_PLAIN_INTERVAL", 0.0)
    with RunConsole(0, quiet=quiet) as console:
        assert list(console.each("drawing [red]", iter("abc"), 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == ([] if quiet else [f"drawing [red]: {n} of 3" for n in range(3)])
    assert quiet or re.fullmatch(r"drawing \[red\]: 0\.\d s", lines[-1])


def test_the_bar_follows_what_there_is_to_do(terminal: io.StringIO) -> None:
    with RunConsole(1000) as console:
        console.progress(500, 100.0, "")
        console.total_steps = 750  # some members have stopped
        console.progress(750, 100.0, "")
    assert "750 / 750" in terminal.getvalue()


def test_on_a_terminal_items_move_a_bar(terminal: io.StringIO) -> None:
    with RunConsole(0) as console:
        assert list(console.each("drawing [red]", iter(range(4)), 4)) == [0, 1, 2, 3]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "drawing [red]" in text
    assert "100 %" in text
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1


def test_an_error_gives_the_terminal_back(terminal: io.StringIO) -> None:
    def fail() -> None:
        with RunConsole(1000) as console:
            console.progress(250, 1.0, "no episode has ended yet")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(KeyboardInterrupt), RunConsole(1000) as console, console.waiting("compiling"):
        raise KeyboardInterrupt
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Machine
# ---------------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for the module jax: remembers what is configured."""

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.settings: dict[str, Any] = {}
        self.error = error
        self.config = self

    def update(self, name: str, value: Any) -> None:
        if self.error is not None:
            raise self.error("started already")
        self.settings[name] = value


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``azjax.runs.machine`` configures, without it being done; nothing comes from this process's environment."""
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    recorder = Recorder()
    monkeypatch.setattr(machine, "jax", recorder)
    return recorder.settings


@pytest.mark.parametrize(
    ("cores", "lanes", "minibatches", "devices"),
    [(1, 512, 8, 1), (2, 512, 8, 2), (3, 512, 8, 2), (12, 512, 8, 8), (16, 512, 8, 16), (8, 96, 1, 6), (4, 7, 1, 1)],
)
def test_the_host_is_split_into_the_largest_number_of_cores_that_fits(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cores: int, lanes: int, minibatches: int, devices: int
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    options = options_of(lanes=lanes, minibatches=minibatches)
    machine.split_host(options.fits)
    assert settings == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize(("wanted", "devices"), [(1, 1), (5, 5), (6, 6), (500, 6)])
def test_a_wanted_number_of_devices_is_what_the_host_is_split_into_up_to_its_cores(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, wanted: int, devices: int
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 6)
    machine.split_host(lambda n: False, wanted)
    assert settings == {"jax_num_cpu_devices": devices}


def test_nothing_fits_then_one_device(settings: dict[str, Any]) -> None:
    machine.split_host(lambda n: False)
    assert settings == {"jax_num_cpu_devices": 1}


def test_the_users_xla_flags_are_respected(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_force_host_platform_device_count=3")
    machine.split_host(lambda n: True)
    machine.split_host(lambda n: True, 2)
    assert settings == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    machine.split_host(lambda n: True, 2)
    assert settings == {"jax_num_cpu_devices": 2}


def test_a_jax_that_has_started_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(machine, "jax", Recorder(RuntimeError))
    machine.split_host(lambda n: True)


def test_determinism_is_asked_for_beside_the_users_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    machine.ask_for_determinism()
    machine.ask_for_determinism()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
    monkeypatch.delenv("XLA_FLAGS")
    machine.ask_for_determinism()
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"


def test_the_cache_lies_in_the_users_cache_folder(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    folder = machine.use_cache()
    assert folder is not None
    assert folder.is_dir()
    assert folder.parent == tmp_path / "home" / ".cache" / "azjax"
    assert settings["jax_compilation_cache_dir"] == str(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert machine.use_cache() == tmp_path / "elsewhere" / "azjax" / folder.name


def test_each_kind_of_cpu_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()
    for fields in ({"model name": "A", "flags": "sse"}, {"model name": "B", "flags": "sse"}, {"model name": "A"}):
        monkeypatch.setattr(machine, "_cpu_field", lambda name, fields=fields: fields.get(name, ""))
        assert machine.cache_folder() == machine.cache_folder()
        folders.add(machine.cache_folder())
    assert len(folders) == 3


def test_the_users_cache_folder_is_respected(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert machine.use_cache() == tmp_path / "mine"
    assert "jax_compilation_cache_dir" not in settings
    machine.use_no_cache()
    assert settings["jax_compilation_cache_dir"] is None


@pytest.mark.parametrize("broken", ["/proc/nowhere", "/dev/null"])
def test_without_a_writable_home_there_is_no_cache(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", broken)
    assert machine.use_cache() is None
    assert "jax_compilation_cache_dir" not in settings


def test_without_a_home_or_with_a_read_only_cache_there_is_none(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert machine.use_cache() is None
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert machine.use_cache() is None
    assert "jax_compilation_cache_dir" not in settings


COMPLAINT = b"E1122 16:09:29.108195 18681 cpu_aot_loader.cc:195] Loading XLA:CPU AOT result. Target machine feature\n"


def test_only_the_complaint_about_cached_programs_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with machine.quiet_loading():
        os.write(2, b"first\n" + COMPLAINT + b"second\n" + COMPLAINT)
        os.write(1, COMPLAINT)
        os.write(2, b"without an end of line")
        assert capfd.readouterr() == (COMPLAINT.decode(), "")
    assert capfd.readouterr().err == "first\nsecond\nwithout an end of line"
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_nothing_is_written_where_nothing_was_said(capfd: pytest.CaptureFixture[str]) -> None:
    with machine.quiet_loading():
        os.write(2, COMPLAINT * 50)
    assert capfd.readouterr().err == ""


def test_long_output_is_passed_on_whole(capfd: pytest.CaptureFixture[str]) -> None:
    with machine.quiet_loading():
        os.write(2, b"line\n" * 50_000)
    assert capfd.readouterr().err == "line\n" * 50_000


def test_an_error_inside_is_raised_and_stderr_restored(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.listdir("/proc/self/fd")

    def fail() -> None:
        with machine.quiet_loading():
            os.write(2, b"said before\n" + COMPLAINT)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    os.write(2, b"said after\n")
    assert capfd.readouterr().err == "said before\nsaid after\n"
    assert len(os.listdir("/proc/self/fd")) == len(before), "no file descriptor is leaked"


def test_quiet_loading_works_without_a_stderr(tmp_path: Path) -> None:
    code = "import os, sys; from azjax.runs import machine; os.close(2)\nwith machine.quiet_loading(): print('ran')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "ran\n"


def test_the_machine_is_described_in_plain_data() -> None:
    devices, versions = machine.describe_devices(), machine.versions()
    assert json.loads(json.dumps(devices)) == devices
    assert devices["count"] == jax.device_count()
    assert devices["cores"] >= 1
    assert devices["cpu"]
    assert versions["jax"] == jax.__version__
    assert {"python", "jaxlib", "brax", "mujoco", "mujoco-mjx"} <= set(versions)


# ---------------------------------------------------------------------------------------------------------------------
# Programs, summary, options
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 512, 10_000, 65_536, 1_000_000, 512 * 97, 512 * 60 * 7])
@pytest.mark.parametrize("evaluations", [1, 5, 12])
def test_updates_between_two_looks_divide_the_updates(steps: int, evaluations: int) -> None:
    options = options_of(steps=steps, evaluations=evaluations)
    per_look = programs.updates_per_look(options)
    assert options.updates % per_look == 0
    assert per_look >= 1
    assert options.updates // per_look >= min(evaluations, options.updates)
    dataclasses.replace(options, updates_per_call=per_look).validate()


def test_a_look_takes_about_a_second_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.jax, "devices", lambda: [SimpleNamespace(platform="cpu")])
    small, large = options_of(steps=512 * 2**12, evaluations=1), options_of(steps=2**30, lanes=2**16, evaluations=1)
    assert 2 <= programs.updates_per_look(small) <= 64
    assert programs.updates_per_look(large) == 1


def test_an_environment_that_cannot_be_drawn_has_no_replay() -> None:
    assert not replay_module.has_scene(azjax.make_env(toy_envs.BareBrax()))
    assert replay_module.has_scene(azjax.make_env("inverted_pendulum"))


def test_a_replay_ends_where_its_poses_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = azjax.make_env("inverted_pendulum")
    positions = np.zeros((11, 2, 3), np.float32)
    rotations = np.broadcast_to(np.float32([1, 0, 0, 0]), (11, 2, 4)).copy()
    rotations[6] = np.nan
    frames = SimpleNamespace(recorded=(positions, rotations), reward=np.zeros(11, np.float32))
    none = np.zeros(1, bool)
    episodes = Episodes(np.float32([1.0]), np.int32([10]), none, none, frames)
    written: dict[str, Any] = {}

    def write(path: Path, scene: Any, positions: Any, rotations: Any, **rest: Any) -> None:
        written.update(positions=positions, rotations=rotations, **rest)

    monkeypatch.setattr(replay_module, "write_replay", write)
    replay_module.save_replay(tmp_path / "replay.html", env, episodes, 1, "title")
    assert len(written["positions"]) == len(written["rotations"]) == len(written["rewards"]) == 6


def test_more_than_fits_into_memory_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    env = azjax.make_env("inverted_pendulum")
    options = options_of(lanes=2**20, rollout_length=2**10, env="inverted_pendulum")
    monkeypatch.setattr(machine, "free_memory", lambda devices: 60 * 2**30 - 1)
    with pytest.raises(ConfigError, match=r"1048576 lanes x 1024 decisions takes 60.0 GiB or more, and 60.0 GiB"):
        programs.check_memory(options, env)  # 2 x (4 + 1) + 5 numbers of 4 bytes
    monkeypatch.setattr(machine, "free_memory", lambda devices: None)
    programs.check_memory(options, env)


def test_free_memory_is_a_plausible_number() -> None:
    free = machine.free_memory(jax.devices())
    assert free is not None
    assert 2**24 < free < 2**50


def test_the_source_has_a_digest_that_a_changed_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.versions()["azjax-source"] == machine.source_digest()
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "runs" / "machine.py"))
    (tmp_path / "a.py").write_text("1")
    first = machine.source_digest()
    (tmp_path / "notes.txt").write_text("not code")
    assert machine.source_digest() == first
    (tmp_path / "a.py").write_text("2")
    assert machine.source_digest() != first


def test_the_default_folder_says_what_ran() -> None:
    path = default_folder(TrainOptions(env="azjax:biped", seed=3).name)
    assert re.fullmatch(r"runs/azjax-biped-ppo-3-\d{8}-\d{6}", str(path))


def test_devices_are_chosen_among_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.jax, "device_count", lambda: 6)
    assert programs.choose_devices(options_of(lanes=64, minibatches=1)) == 4
    assert programs.choose_devices(options_of(lanes=96, minibatches=1)) == 6
    assert programs.choose_devices(options_of(lanes=64, minibatches=512)) == 1
    assert programs.choose_devices(options_of(devices=2)) == 2
    with pytest.raises(ConfigError, match="8 devices asked for, but JAX sees 6"):
        programs.choose_devices(options_of(devices=8))
    with pytest.raises(ConfigError, match="7 equal minibatches"):
        programs.choose_devices(options_of(minibatches=7))


def test_wrong_options_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("split_host", "use_cache", "use_no_cache"):
        monkeypatch.setattr(machine, name, lambda *args: None)
    monkeypatch.setattr(train_module, "build", lambda *args: pytest.fail("compiled"))
    for wrong in (
        {"policy_observation": "state", "env": "inverted_pendulum"},
        {"devices": 1000, "lanes": 32_000, "env": "inverted_pendulum"},
        {"minibatches": 7},
        {"gamma": 2.0},
    ):
        with pytest.raises(ConfigError):
            train_function(options_of(run=tmp_path / "run", **wrong))
        assert list(tmp_path.iterdir()) == []
