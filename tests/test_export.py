"""azjax.runs.export: files that act like the policy where there is no azjax, and for numpy where there is no jax."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cli
import toy_envs

import azjax
from azjax.cli import main
from azjax.config import ConfigError
from azjax.ppo import PPOConfig
from azjax.runs import export_act, export_policy, load_exported, load_policy
from azjax.runs.export import PLATFORMS, describe_policy, seen_entries
from azjax.runs.folder import first_free, new_files
from azjax.runs.policy import LoadedPolicy

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 2, 7, 64)


class Cheetah(toy_envs.Toy):
    """Sizes of halfcheetah, which the examples in the docs have."""

    observation_spec = toy_envs.float_spec(17)
    action_spec = azjax.Box(6)
    dt = 0.05


class Mixed(toy_envs.Toy):
    """Entries of every rank, an integer one that isn't normalised, and one that the policy may be blind to."""

    observation_spec = {  # noqa: RUF012
        "joints": toy_envs.float_spec(3),
        "image": jax.ShapeDtypeStruct((2, 2), jnp.uint8),
        "height": toy_envs.float_spec(),
        "privileged": toy_envs.float_spec(4),
    }
    action_spec = azjax.Box(2)


class Choice(toy_envs.Toy):
    observation_spec = toy_envs.float_spec(4)
    action_spec = azjax.Discrete(5)


VARIATIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "default": (Cheetah, {}),
    "normal": (Cheetah, {"distribution": "normal", "init_std": 1.5}),
    "state-dependent-std": (Cheetah, {"state_dependent_std": True}),
    "shared-torso": (Cheetah, {"shared_torso": True, "activation": "elu"}),
    "raw-observations": (Cheetah, {"normalize_observations": False, "activation": "gelu"}),
    "no-hidden-layers": (Cheetah, {"policy_hidden": ()}),
    "deep": (Cheetah, {"policy_hidden": (9, 8, 7), "activation": "silu"}),
    "dict": (Mixed, {"activation": "relu"}),
    "one-entry": (Mixed, {"policy_observation": "joints"}),
    "discrete": (Choice, {}),
    "discrete-shared": (Choice, {"shared_torso": True, "activation": "relu"}),
}


@functools.cache
def policy_of(name: str) -> LoadedPolicy:
    """A policy of which every number, statistics included, differs from its initial value."""
    kind, changes = VARIATIONS[name]
    env = kind()
    config = PPOConfig(**({"policy_hidden": (16, 16), "value_hidden": (13,)} | changes))
    learner = azjax.ppo(config)
    shapes = jax.eval_shape(
        lambda key: learner.init(key, env.observation_spec, env.action_spec).params, jax.random.key(0)
    )
    generator = np.random.default_rng(len(name))

    def draw(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(generator.integers(1, 1000, leaf.shape), leaf.dtype)
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if "variance" in parts:
            return jnp.asarray(generator.uniform(0.1, 4.0, leaf.shape), leaf.dtype)
        # Large means, so that leaving out their residuals would show; but not for a network that sees them raw.
        mean = 100.0 if config.normalize_observations else 1.0
        scale = mean if "mean" in parts else 1e-4 if "mean_residual" in parts else 0.25
        return jnp.asarray(scale * generator.standard_normal(leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return LoadedPolicy(learner.act, params, env, 2, {"algorithm": "ppo", "params_sha256": "0" * 64}, config)


@functools.cache
def observations(name: str) -> Any:
    """64 observations of which most lie within the clip of the normaliser and some don't."""
    generator = np.random.default_rng(0)
    spec, mean = policy_of(name).env.observation_spec, policy_of(name).params.statistics.mean

    def draw(leaf: Any, mean: Any) -> np.ndarray:
        shape = (BATCHES[-1], *leaf.shape)
        if mean is None:
            return generator.integers(0, 3, shape).astype(leaf.dtype)
        spread = generator.choice([1.0, 20.0], shape, p=[0.9, 0.1])
        return (np.asarray(mean) + spread * generator.standard_normal(shape)).astype(leaf.dtype)

    return {key: draw(spec[key], mean[key]) for key in spec} if isinstance(spec, dict) else draw(spec, mean)


def expected(policy: LoadedPolicy, observation: Any) -> np.ndarray:
    """What the policy does in azjax, as the environment receives it."""
    keys = jax.random.split(jax.random.key(0), jax.tree.leaves(observation)[0].shape[0])
    action = jax.vmap(lambda o, k: policy.act(policy.params, o, (), k, deterministic=True)[0])(observation, keys)
    return np.asarray(jnp.clip(action, -1, 1) if isinstance(policy.env.action_spec, azjax.Box) else action)


# ---------------------------------------------------------------------------------------------------------------------
# The files, where azjax is missing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variations exported, each with observations and the actions that belong to them."""
    folder = tmp_path_factory.mktemp("exported")
    for name in VARIATIONS:
        policy = policy_of(name)
        export_policy(policy, folder / f"{name}.stablehlo")
        observation = observations(name)
        action = expected(policy, observation)
        seen = seen_entries(observation, policy.config.policy_observation)
        entries = seen if isinstance(seen, dict) else {"array": seen}
        for batch in BATCHES:
            rows = {key: x[:batch] for key, x in entries.items()}
            np.savez(folder / f"{name}-{batch}.case", action=action[:batch], **rows)
    return folder


CASES = """
import glob
def cases():
    for path in sorted(glob.glob("*.case.npz")):
        stem = path.rsplit("-", 1)[0]
        with np.load(path) as archive:
            case = dict(archive)
        action = case.pop("action")
        yield stem, case["array"] if "array" in case else case, action
"""


def run_python(program: str, folder: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_with_jax_alone_gets_the_same_actions(folder: Path) -> None:
    out = run_python(
        CASES
        + """
import sys
import jax
import numpy as np
from jax import export
count = 0
for stem, observation, action in cases():
    with open(stem + ".stablehlo", "rb") as file:
        policy = export.deserialize(bytearray(file.read()))
    result = np.asarray(policy.call(observation))
    assert result.dtype == (np.int32 if "discrete" in stem else np.float32), stem
    assert result.shape == action.shape, stem
    np.testing.assert_allclose(result, action, rtol=0, atol=1e-5, err_msg=stem)
    count += 1
assert not {"azjax", "flax", "brax", "optax", "mujoco"} & set(sys.modules)
print(count)
""",
        folder,
    )
    assert int(out) == len(VARIATIONS) * len(BATCHES)


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "export.md").read_text()
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def numpy_block() -> str:
    (block,) = [block for block in blocks("python") if "jax" not in block]
    return block


NO_JAX = "import sys\nsys.modules.update(dict.fromkeys(['jax', 'jaxlib', 'azjax', 'flax', 'brax']))\n"


def test_the_numpy_code_in_the_docs_gets_the_same_actions_where_jax_cannot_be_imported(folder: Path) -> None:
    out = run_python(
        f"{NO_JAX}{CASES}__name__ = 'imported'\n{numpy_block()}"
        + """
try:
    import jax
except ImportError:
    pass
else:
    raise SystemExit("jax was imported")
count, largest = 0, 0.0
for stem, observation, action in cases():
    result = load_policy(stem)(observation)
    assert result.shape == action.shape, stem
    error = np.abs(result - action).max()
    assert error <= 1e-5, (stem, error)
    count, largest = count + 1, max(largest, error)
print(count)
""",
        folder,
    )
    assert int(out) == len(VARIATIONS) * len(BATCHES)


def test_the_code_in_the_docs_runs_as_it_stands(folder: Path, tmp_path: Path) -> None:
    for suffix in ("stablehlo", "npz", "json"):
        (tmp_path / f"policy.{suffix}").write_bytes((folder / f"default.{suffix}").read_bytes())
    for block in blocks("python"):
        run_python(block if "jax" in block else NO_JAX + block, tmp_path)
    assert len(blocks("python")) == 2


def test_actions_are_not_trivial(folder: Path) -> None:
    """The comparisons above would say nothing of actions that are all at a bound, or all alike."""
    for name in VARIATIONS:
        with np.load(folder / f"{name}-64.case.npz") as archive:
            action = archive["action"]
        if action.dtype == np.int32:
            assert len(np.unique(action)) > 1
        else:
            assert (np.abs(action) <= 1).all()
            assert (np.abs(action) < 0.999).mean() > 0.2
            assert action.std(axis=0).min() > 0.05
    with np.load(folder / "normal-64.case.npz") as archive:
        assert (np.abs(archive["action"]) == 1).any(), "the clip is at work"


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "normal", "discrete", "one-entry"])
def test_a_stochastic_policy_samples_as_the_learner_does_with_the_same_key(name: str) -> None:
    policy = policy_of(name)
    spec, action_spec = policy.env.observation_spec, policy.env.action_spec
    exported = export_act(
        policy.act,
        policy.params,
        spec,
        action_spec,
        entry=policy.config.policy_observation,
        stochastic=True,
        platforms=["cpu"],
    )
    observation = observations(name)
    seen = seen_entries(observation, policy.config.policy_observation)
    results = []
    for seed in (0, 1):
        key = jax.random.key(seed, impl="threefry2x32")
        result = np.asarray(exported.call(seen, np.asarray(jax.random.key_data(key))))
        action = policy.act(policy.params, observation, (), key)[0]
        if isinstance(action_spec, azjax.Box):
            action = jnp.clip(action, -1, 1)
        np.testing.assert_allclose(result, action, rtol=0, atol=1e-5)
        results.append(result)
    assert (results[0] != results[1]).any()
    assert (results[0] != expected(policy, observation)).any()


def test_the_deviation_in_the_description_is_that_of_the_samples() -> None:
    for name in ("normal", "state-dependent-std"):
        policy = policy_of(name)
        facts, arrays = describe_policy(policy)
        log_std = facts["distribution"]["log_std"]
        observation = observations(name)[:1]
        if "array" in log_std:
            stated = arrays[log_std["array"]]
        else:
            x = np.clip((observation - arrays["mean"]) / arrays["std"], -10, 10)
            for layer in facts["network"]["hidden"]:
                x = np.tanh(x @ arrays[layer["kernel"]] + arrays[layer["bias"]])
            stated = (x @ arrays[log_std["kernel"]] + arrays[log_std["bias"]])[0]
        keys = jax.random.split(jax.random.key(0), 4000)
        raw = jax.vmap(lambda k: policy.act(policy.params, observation[0], (), k)[2].raw_action)(keys)  # noqa: B023
        np.testing.assert_allclose(np.std(raw, axis=0), np.exp(np.clip(stated, *log_std["clip"])), rtol=0.08)


# ---------------------------------------------------------------------------------------------------------------------
# The description
# ---------------------------------------------------------------------------------------------------------------------


def described(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(), parse_constant=pytest.fail)


def test_the_description_says_what_the_arrays_are(folder: Path) -> None:
    facts = described(folder, "default")
    layer = {"kernel": "output/kernel", "bias": "output/bias", "size": 6}
    assert facts["observation"] == {
        "kind": "array",
        "clip": 10.0,
        "entries": [{"name": "", "shape": [17], "dtype": "float32", "size": 17, "mean": "mean", "std": "std"}],
    }
    assert facts["network"]["activation"] == "tanh"
    assert [hidden["size"] for hidden in facts["network"]["hidden"]] == [16, 16]
    assert facts["network"]["output"] == layer
    assert facts["distribution"] == {
        "kind": "tanh-normal",
        "output": "loc",
        "deterministic_action": "tanh",
        "log_std": {"clip": [-5.0, 2.0], "array": "log_std"},
    }
    assert facts["action"] == {"kind": "Box", "size": 6, "low": -1.0, "high": 1.0}
    assert facts["program"] == {
        "calling_convention_version": facts["program"]["calling_convention_version"],
        "platforms": list(PLATFORMS),
        "stochastic": False,
        "arguments": {"observation": {"shape": ["batch", 17], "dtype": "float32"}},
        "result": {"shape": ["batch", 6], "dtype": "float32"},
    }
    assert (facts["env"], facts["backend"], facts["seconds_per_action"]) == ("cheetah", "toy", 0.1)
    assert facts["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("name", VARIATIONS)
def test_files_and_arrays_are_those_that_the_description_names(folder: Path, name: str) -> None:
    facts = described(folder, name)
    assert sorted(facts["files"]) == [f"{name}.npz", f"{name}.stablehlo"]
    for file, entry in facts["files"].items():
        data = (folder / file).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        found = {key: {"shape": list(x.shape), "dtype": str(x.dtype)} for key, x in archive.items()}
    assert found == facts["arrays"]
    assert not any("value" in key for key in found)


def test_entries_of_a_dict_come_in_the_order_of_the_network_and_only_floats_are_normalised(folder: Path) -> None:
    facts = described(folder, "dict")
    entries = {entry["name"]: entry for entry in facts["observation"]["entries"]}
    assert list(entries) == ["height", "image", "joints", "privileged"]
    assert facts["observation"]["kind"] == "dict"
    assert entries["image"]["mean"] is entries["image"]["std"] is None
    assert entries["height"] == {
        "name": "height", "shape": [], "dtype": "float32", "size": 1, "mean": "mean/height", "std": "std/height"
    }  # fmt: skip
    assert facts["arrays"]["hidden_0/kernel"]["shape"] == [sum(entry["size"] for entry in entries.values()), 16]


def test_what_the_policy_does_not_see_is_no_input(folder: Path) -> None:
    facts = described(folder, "one-entry")
    assert facts["program"]["arguments"] == {"observation": {"joints": {"shape": ["batch", 3], "dtype": "float32"}}}
    assert [entry["name"] for entry in facts["observation"]["entries"]] == ["joints"]
    assert set(facts["arrays"]) >= {"mean/joints", "std/joints"}
    assert not any("privileged" in name for name in facts["arrays"])


def test_the_value_function_stays_at_home(folder: Path) -> None:
    assert policy_of("default").config.value_hidden == (13,)
    assert "x13x" not in load_exported(folder / "default.stablehlo").mlir_module()


@pytest.mark.parametrize(
    ("name", "kind", "mode"), [("normal", "normal", "clip"), ("discrete", "categorical", "argmax")]
)
def test_other_distributions_are_described(folder: Path, name: str, kind: str, mode: str) -> None:
    distribution = described(folder, name)["distribution"]
    assert (distribution["kind"], distribution["deterministic_action"]) == (kind, mode)
    assert ("log_std" in distribution) == (kind == "normal")


def test_the_docs_explain_every_key_of_the_description(folder: Path) -> None:
    documented = "\n".join(
        line.split("|")[1] for line in (ROOT / "docs" / "export.md").read_text().splitlines() if line.startswith("| `")
    )
    named = {word.partition(".")[0] for word in re.findall(r"`([^`]+)`", documented)}
    assert set(described(folder, "default")) - {"schema"} <= named


# ---------------------------------------------------------------------------------------------------------------------
# Writing and reading
# ---------------------------------------------------------------------------------------------------------------------


def test_platforms_are_those_asked_for(tmp_path: Path) -> None:
    policy = policy_of("no-hidden-layers")
    program = export_policy(policy, tmp_path / "one.stablehlo", platforms=["rocm"]).program
    assert load_exported(program).platforms == ("rocm",)
    assert load_exported(export_policy(policy, tmp_path / "all.stablehlo").program).platforms == PLATFORMS
    for platforms, fragment in (
        ([], "platforms is empty"),
        (["cpu", "gpu"], "'gpu'"),
        (["cpu", "cpu"], "once"),
    ):
        with pytest.raises(ConfigError, match=fragment):
            export_policy(policy, tmp_path / "wrong.stablehlo", platforms=platforms)
        with pytest.raises(ConfigError, match=fragment):
            export_act(
                policy.act, policy.params, policy.env.observation_spec, policy.env.action_spec, platforms=platforms
            )
    assert not list(tmp_path.glob("wrong*"))


@pytest.mark.parametrize("suffix", ["stablehlo", "npz", "json"])
def test_nothing_is_overwritten(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"policy.{suffix}").write_text("mine")
    with pytest.raises(ConfigError, match=rf"policy\.{suffix} exists already"):
        export_policy(policy_of("default"), tmp_path / "policy.stablehlo")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_policy_without_a_folder_needs_an_output() -> None:
    with pytest.raises(ConfigError, match="needs an output"):
        export_policy(policy_of("default"))


def test_files_appear_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]

    def write(stop: BaseException | None = None) -> None:
        with new_files(*paths) as places:
            for place in places:
                assert place.parent == tmp_path
                assert place.suffix == ".txt"
                place.write_text("content")
            assert not any(path.exists() for path in paths)
            if stop is not None:
                raise stop

    for error, raised in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("bug"), ValueError),
        (OSError(28, "No space left on device"), ConfigError),
    ):
        with pytest.raises(raised):
            write(error)
        assert list(tmp_path.iterdir()) == []

    rename = Path.rename

    def fail_at_last(self: Path, target: Path) -> Any:
        if target == paths[-1]:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_at_last)
        with pytest.raises(ConfigError, match=r"a\.txt can't be written: Input/output error"):
            write()
    assert list(tmp_path.iterdir()) == []
    write()
    assert sorted(tmp_path.iterdir()) == paths
    with pytest.raises(ConfigError, match=r"a\.txt exists already"):
        write()
    assert sorted(tmp_path.iterdir()) == paths


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"

    def write() -> None:
        with new_files(first, second) as places:
            for place in places:
                place.write_text("ours")
            second.write_text("theirs")

    with pytest.raises(ConfigError, match=r"b\.txt exists already"):
        write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b.txt": "theirs"}


def test_the_first_free_name_has_a_number(tmp_path: Path) -> None:
    assert first_free(tmp_path / "render.html") == tmp_path / "render.html"
    for name in ("render.html", "render-2.html"):
        (tmp_path / name).touch()
    assert first_free(tmp_path / "render.html") == tmp_path / "render-3.html"


def test_a_program_is_read_back_and_checked(folder: Path, tmp_path: Path) -> None:
    policy = policy_of("default")
    observation = observations("default")[:3]
    np.testing.assert_allclose(
        load_exported(str(folder / "default.stablehlo")).call(observation), expected(policy, observation), atol=1e-5
    )
    data = (folder / "default.stablehlo").read_bytes()
    alone = tmp_path / "alone.stablehlo"
    alone.write_bytes(data)
    assert load_exported(alone).platforms == PLATFORMS  # the description may be missing

    with pytest.raises(ConfigError, match="is missing; azjax export makes one"):
        load_exported(tmp_path / "missing.stablehlo")
    for damaged in (b"", b"content", data[: len(data) // 2]):
        alone.write_bytes(damaged)
        with pytest.raises(ConfigError, match="can't be read as an exported policy"):
            load_exported(alone)
    described = tmp_path / "default.stablehlo"
    described.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "default.json").write_bytes((folder / "default.json").read_bytes())
    with pytest.raises(ConfigError, match="not the file that its description names"):
        load_exported(described)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> test_cli.Run:
    return test_cli.train_once(tmp_path_factory)


def test_the_command_exports_what_a_run_learned(
    run: test_cli.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "policy.stablehlo"
    assert main(["export", str(run.folder), "-o", str(output), "--platforms", "cpu", "cuda"]) == 0
    out = capsys.readouterr().out
    for suffix in (".stablehlo", ".npz", ".json"):
        assert str(output.with_suffix(suffix)) in out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz", ".stablehlo"]
    policy = load_policy(run.folder)
    observation = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    np.testing.assert_allclose(load_exported(output).call(observation), expected(policy, observation), atol=1e-5)
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["params_sha256"] == run.json("summary.json")["params_sha256"]
    assert (facts["env"], facts["backend"]) == ("inverted_pendulum", "spring")
    assert facts["program"]["platforms"] == ["cpu", "cuda"]
    assert sorted(path.name for path in run.folder.iterdir()) == test_cli.FILES


def test_by_default_the_files_go_into_the_folder_beside_those_of_the_policy(run: test_cli.Run, tmp_path: Path) -> None:
    for name in ("policy.json", "policy.npz"):  # such as the folder of a run's best policy
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    files = export_policy(tmp_path, platforms=["cpu"])
    assert [path.name for path in files] == ["exported.stablehlo", "exported.npz", "exported.json"]
    with pytest.raises(ConfigError, match=r"exported\.stablehlo exists already"):
        export_policy(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.npz exists already"):
        export_policy(tmp_path, tmp_path / "policy.stablehlo")


def test_the_policy_of_a_learner_with_a_network_of_its_own_can_be_exported() -> None:
    @dataclasses.dataclass(frozen=True)
    class Linear:
        def init(self, key: Any, observation_spec: Any, action_spec: Any) -> Any:
            return {"matrix": 0.1 * jax.random.normal(key, (3, 2))}

        def apply(self, params: Any, observation: Any) -> Any:
            return azjax.Normal(observation @ params["matrix"], jnp.zeros(2)), None

    learner = azjax.ppo(PPOConfig(), network=Linear())
    spec = toy_envs.float_spec(3)
    params = learner.init(jax.random.key(1), spec, azjax.Box(2)).params
    exported = export_act(learner.act, params, spec, azjax.Box(2), platforms=["cpu"])
    observation = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(exported.call(observation), observation @ params.network["matrix"], atol=1e-6)
