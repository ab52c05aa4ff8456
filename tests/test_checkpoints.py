"""azjax.runs.checkpoints: what is saved comes back bit for bit, and what is not whole is noticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Program

import azjax
from azjax.config import ConfigError
from azjax.runs import checkpoints as module
from azjax.runs.arrays import host_arrays, state_bytes
from azjax.runs.checkpoints import Checkpoints, check_space, file_digests, sealed


@pytest.fixture(scope="session")
def trained(brax_program: Program) -> Any:
    """A state of a randomised Brax environment with random keys, counters, empty and integer leaves."""
    state, _ = brax_program.compiled.step(brax_program.compiled.init(jax.random.key(7)))
    return state


@pytest.fixture(scope="session")
def shapes(brax_program: Program) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), brax_program.compiled.state
    )


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def nothing() -> None:
    pass


def save(folder: Path, state: Any, *updates: int, keep: int = 10, returns: dict[int, float] | None = None) -> Warnings:
    warnings = Warnings()
    with Checkpoints(folder, keep, warnings) as store:
        for update in updates:
            value = (returns or {}).get(update)
            store.save(update, state, {"env_steps": 64 * update, "evaluation_return": value}, nothing)
    return warnings


def restore(folder: Path, shapes: Any) -> tuple[Any, Warnings]:
    warnings = Warnings()
    with Checkpoints(folder, 10, warnings) as store:
        return store.restore(shapes), warnings


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, trained: Any) -> Path:
    """A run folder with the checkpoints 2 and 5."""
    folder = tmp_path_factory.mktemp("pristine") / "checkpoints"
    assert save(folder, trained, 2, 5) == []
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def equal(a: Any, b: Any) -> bool:
    ours, theirs = host_arrays(a), host_arrays(b)
    return list(ours) == list(theirs) and all(
        ours[k].dtype == theirs[k].dtype and ours[k].tobytes() == theirs[k].tobytes() for k in ours
    )


def test_a_state_comes_back_bit_for_bit_and_trains_on_alike(
    folder: Path, trained: Any, shapes: Any, brax_program: Program
) -> None:
    found, warnings = restore(folder, shapes)
    assert warnings == []
    assert found.record["env_steps"] == 64 * 5
    assert jax.tree.structure(found.state) == jax.tree.structure(trained)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found.state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), trained
    )
    assert equal(found.state, trained)
    copy = jax.tree.map(jnp.copy, trained)
    for _ in range(2):
        copy, ours = brax_program.compiled.step(copy)
        again, theirs = brax_program.compiled.step(found.state)
        found = found._replace(state=again)
        np.testing.assert_array_equal(ours.reward_mean, theirs.reward_mean)
    assert equal(copy, found.state)


def test_a_state_may_be_donated_while_it_is_written(tmp_path: Path, brax_program: Program, shapes: Any) -> None:
    state = brax_program.compiled.init(jax.random.key(1))
    before = host_arrays(state)
    with Checkpoints(tmp_path / "c", 2, pytest.fail) as store:
        store.save(1, state, {"evaluation_return": None}, nothing)
        brax_program.compiled.step(state)  # overwrites its buffers
    found, _ = restore(tmp_path / "c", shapes)
    after = host_arrays(found.state)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_a_checkpoint_may_go_to_another_number_of_devices(
    tmp_path: Path, require_devices: Callable[[int], None]
) -> None:
    require_devices(4)
    env = azjax.make_env("inverted_pendulum", episode_length=20)
    config = azjax.PPOConfig(epochs=1, minibatches=1, policy_hidden=(8,), value_hidden=(8,))
    learner = azjax.ppo(config, axis_name="lanes")
    trainer = azjax.make_trainer(env, learner, lanes=64, rollout_length=4, axis_name="lanes")
    two, four = (azjax.compile(trainer, azjax.make_mesh(n, "lanes")) for n in (2, 4))
    state = two.init(jax.random.key(0))
    save(tmp_path / "c", state, 1)
    found, warnings = restore(tmp_path / "c", four.state)
    assert warnings == []
    assert equal(found.state, state)
    spread = found.state.lanes.env.observation
    assert len(spread.sharding.device_set) == 4
    assert spread.addressable_shards[0].data.shape[-1] == 16
    for leaf, wanted in zip(jax.tree.leaves(found.state), jax.tree.leaves(four.state), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_the_latest_and_the_best_are_kept(tmp_path: Path, trained: Any) -> None:
    returns = {1: 5.0, 2: 9.0, 3: 8.0, 5: -1.0}
    assert save(tmp_path / "c", trained, 1, 2, 3, 4, 5, 6, keep=2, returns=returns) == []
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "2.json", "5", "5.json", "6", "6.json"]
    save(tmp_path / "c", trained, 7, keep=1, returns={7: 10.0})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["7", "7.json"]


def test_where_nothing_was_evaluated_only_the_latest_are_kept(tmp_path: Path, trained: Any) -> None:
    save(tmp_path / "c", trained, 8, 9, 10, 11, keep=2)
    with Checkpoints(tmp_path / "c", 2, pytest.fail) as store:
        assert store.updates() == [10, 11]


def test_a_checkpoint_of_the_same_update_is_replaced(folder: Path, trained: Any, shapes: Any) -> None:
    other = trained.replace(key=jax.random.key(99))
    assert save(folder, other, 5) == []
    found, _ = restore(folder, shapes)
    assert equal(found.state, other)


def test_later_checkpoints_and_what_a_kill_left_go_once_a_newer_one_is_whole(folder: Path, trained: Any) -> None:
    (folder / "9.orbax-checkpoint-tmp-123").mkdir()
    shutil.copytree(folder / "5", folder / "7")  # whole, but without a description
    (folder / "backup").mkdir()
    (folder / "elsewhere").symlink_to(folder / "backup")
    (folder / "notes.txt").write_text("the user's")
    before = sorted(path.name for path in folder.iterdir())
    with Checkpoints(folder, 2, pytest.fail) as store:
        assert store.updates() == [2, 5]
        assert sorted(path.name for path in folder.iterdir()) == before
        store.save(3, trained, {"evaluation_return": None}, nothing)
        store.wait()
        assert store.updates() == [2, 3]
    ours = ["2", "2.json", "3", "3.json"]
    assert sorted(path.name for path in folder.iterdir()) == [*ours, "backup", "elsewhere", "notes.txt"]


def test_saving_the_restored_checkpoint_again_renews_its_description_only(
    folder: Path, trained: Any, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "_write", lambda *args: pytest.fail("the arrays were written again"))
    with Checkpoints(folder, 2, pytest.fail) as store:
        assert store.restore(shapes) is not None
        store.save(5, trained, {"env_steps": 1, "evaluation_return": 3.0}, nothing)
    found, warnings = restore(folder, shapes)
    assert (found.record["env_steps"], found.record["evaluation_return"], warnings) == (1, 3.0, [])
    assert equal(found.state, trained)


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    folder: Path, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(5, "Input/output error")

    for name in ("os.listdir", "file_digests"):
        with monkeypatch.context() as patch:
            target = module.os if name == "os.listdir" else module
            patch.setattr(target, name.rpartition(".")[2], fail)
            with pytest.raises(ConfigError, match="can't be read: Input/output error"):
                restore(folder, shapes)
    assert restore(folder, shapes)[0].record["env_steps"] == 64 * 5


def test_what_a_newer_orbax_may_not_read_is_no_damage(
    folder: Path, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("unknown format")

    monkeypatch.setattr(module, "_load", fail)
    with pytest.raises(ConfigError, match="is whole, but orbax can't read it: unknown format"):
        restore(folder, shapes)


def test_no_folder_no_checkpoint(tmp_path: Path, shapes: Any) -> None:
    assert restore(tmp_path / "none", shapes) == (None, [])


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2] if content else b"x")
    elif how == "flipped":
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["removed", "truncated", "flipped", "emptied"])
def test_whatever_file_is_damaged_the_checkpoint_before_is_used(
    folder: Path, shapes: Any, trained: Any, how: str
) -> None:
    files = data_files(folder / "5")
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        damage(path, how)
        if path.exists() and path.read_bytes() == content:
            continue  # an empty file that was emptied
        found, warnings = restore(folder, shapes)
        assert found.record["env_steps"] == 64 * 2, path
        assert equal(found.state, trained)
        assert len(warnings) == 1
        assert "checkpoint 5" in warnings[0]
        assert "checkpoint 2 is used instead" in warnings[0]
        path.write_bytes(content)
    found, warnings = restore(folder, shapes)
    assert (found.record["env_steps"], warnings) == (64 * 5, [])


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
def test_a_damaged_description_is_noticed(folder: Path, shapes: Any, how: str) -> None:
    damage(folder / "5.json", how)
    found, warnings = restore(folder, shapes)
    assert found.record["env_steps"] == 64 * 2
    assert ["checkpoint 5" in text and "checkpoint 2" in text for text in warnings] == [True]


def test_a_file_too_many_is_noticed(folder: Path, shapes: Any) -> None:
    (folder / "5" / "state").write_text("?")
    found, warnings = restore(folder, shapes)
    assert found.record["env_steps"] == 64 * 2
    assert len(warnings) == 1


def test_if_all_are_damaged_nothing_is_trained_over_them(folder: Path, shapes: Any) -> None:
    for name in ("2.json", "5.json"):
        damage(folder / name, "truncated")
    with pytest.raises(ConfigError, match=r"checkpoint 2 .* is damaged .*, and there is no earlier one"):
        restore(folder, shapes)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "2.json", "5", "5.json"]


def rewrite(folder: Path, number: int, **changes: Any) -> None:
    """Changes the description as somebody would who knows how to seal it."""
    path = folder / f"{number}.json"
    record = json.loads(path.read_text())["record"] | changes
    path.write_text(json.dumps(sealed(record)))


@pytest.mark.parametrize(
    "changes",
    [{"files": None}, {"files": []}, {"files": {}}, {"update": 6}, {"state": None}, {"state": [1]}],
    ids=str,
)
def test_a_sealed_description_that_makes_no_sense_is_damage(folder: Path, shapes: Any, changes: dict[str, Any]) -> None:
    rewrite(folder, 5, **changes)
    found, warnings = restore(folder, shapes)
    assert found.record["env_steps"] == 64 * 2
    assert len(warnings) == 1


HOSTILE = ["[" * 100_000, "[1]", '{"schema": 1, "record": {"x": 1e999}}', '{"schema": ' + "9" * 5000 + "}", "null"]


@pytest.mark.parametrize("content", HOSTILE, ids=len)
def test_hostile_json_is_refused(folder: Path, shapes: Any, content: str) -> None:
    for name in ("2.json", "5.json"):
        (folder / name).write_text(content)
    with pytest.raises(ConfigError, match="there is no earlier one"):
        restore(folder, shapes)


def test_a_huge_description_is_not_read(folder: Path, shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_RECORD", 1000)
    with pytest.raises(ConfigError, match="larger than 1000 bytes"):
        restore(folder, shapes)


def test_a_newer_schema_is_an_error_that_says_so(folder: Path, shapes: Any) -> None:
    seal = json.loads((folder / "5.json").read_text())
    (folder / "5.json").write_text(json.dumps(seal | {"schema": 99}))
    with pytest.raises(ConfigError, match="schema 99, this azjax reads 1"):
        restore(folder, shapes)


def test_another_training_program_is_an_error_that_names_the_leaf(folder: Path, brax_program: Program) -> None:
    learner = azjax.ppo(azjax.PPOConfig(epochs=1, minibatches=2, policy_hidden=(9,), value_hidden=(8,)))
    other = azjax.compile(azjax.make_trainer(brax_program.env, learner, lanes=32, rollout_length=8))
    with pytest.raises(ConfigError, match=r"5 .*policy_head.* is float32\[8, 1\] there and float32\[9, 1\] here"):
        restore(folder, other.state)
    other = azjax.compile(azjax.make_trainer(azjax.make_env("reacher"), learner, lanes=32, rollout_length=8))
    with pytest.raises(ConfigError, match="belongs to another training program"):
        restore(folder, other.state)


def test_parameters_that_are_not_finite_are_refused(folder: Path, trained: Any, shapes: Any) -> None:
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), trained.learner.params)
    save(folder, trained.replace(learner=trained.learner.replace(params=params)), 6)
    found, warnings = restore(folder, shapes)
    assert found.record["env_steps"] == 64 * 5
    assert "not finite" in warnings[0]


def test_arrays_of_another_shape_than_described_are_refused(folder: Path, trained: Any, shapes: Any) -> None:
    arrays = host_arrays(trained)
    honest = json.loads((folder / "5.json").read_text())["record"]["state"]
    name = next(name for name in arrays if name.endswith("kernel"))
    for wrong in (np.zeros((500, 600), np.float32), arrays[name].astype(np.float64), arrays[name][:1]):
        shutil.rmtree(folder / "5")
        with module._orbax() as checkpointer:
            checkpointer.save((folder / "5").absolute(), {**arrays, name: wrong})
        rewrite(folder, 5, files=file_digests(folder / "5"), state=honest)
        found, warnings = restore(folder, shapes)
        assert found.record["env_steps"] == 64 * 2
        assert len(warnings) == 1


def test_a_folder_larger_than_its_arrays_is_not_read(
    folder: Path, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "5" / "bomb").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    found, warnings = restore(folder, shapes)
    assert found.record["env_steps"] == 64 * 2
    assert "more than a state can" in warnings[0]


def test_links_out_of_the_folder_are_not_followed(folder: Path, shapes: Any, tmp_path: Path) -> None:
    victim = next(path for path in data_files(folder / "5") if path.stat().st_size > 1000)
    shutil.move(victim, tmp_path / "elsewhere")
    digest = file_digests(folder / "5")
    victim.symlink_to(tmp_path / "elsewhere")
    rewrite(folder, 5, files=file_digests(folder / "5"))  # as somebody would who wants it to be followed
    assert digest != file_digests(folder / "5")
    found, warnings = restore(folder, shapes)
    assert found.record["env_steps"] == 64 * 2
    assert "no plain file" in warnings[0]
    victim.unlink()
    os.mkfifo(victim)
    assert restore(folder, shapes)[0].record["env_steps"] == 64 * 2


# ---------------------------------------------------------------------------------------------------------------------
# Disks
# ---------------------------------------------------------------------------------------------------------------------


def test_a_failed_write_is_a_warning_and_leaves_the_others(
    folder: Path, trained: Any, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_json", "_orbax"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            (warning,) = save(folder, trained, 8)
        assert "No space left on device" in warning
        assert "training goes on" in warning
        assert sorted(path.name for path in folder.iterdir()) == ["2", "2.json", "5", "5.json"]
    warnings = Warnings()
    with Checkpoints(folder, 10, warnings) as store:
        store.save(8, trained, {"evaluation_return": None}, fail)
    assert len(warnings) == 1
    assert restore(folder, shapes)[0].record["env_steps"] == 64 * 5


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, shapes: Any, monkeypatch: Any) -> None:
    need = 4 * (state_bytes(shapes) + (1 << 20))
    for free in (need, need - 1):
        monkeypatch.setattr(
            module.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free, total=1 << 40)
        )
        if free == need:
            check_space(tmp_path / "new" / "run", shapes, 4)
        else:
            with pytest.raises(ConfigError, match=r"4 checkpoints take \d+ MiB"):
                check_space(tmp_path / "new" / "run", shapes, 4)
    assert list(tmp_path.iterdir()) == []
