"""azjax.runs.resume: what a resumed run takes over, and what it says about differences."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from azjax.config import ConfigError
from azjax.ppo import PPOConfig
from azjax.runs import machine, resume
from azjax.runs.checkpoints import Checkpoints, Restored
from azjax.runs.conduct import retire_summary
from azjax.runs.folder import MetricsFile, RunFolder, write_text
from azjax.runs.loop import Position
from azjax.runs.options import TrainOptions, resolve
from azjax.runs.run_options import to_yaml
from azjax.runs.starting import Kind
from azjax.trpo import TRPOConfig

module = sys.modules["azjax.runs.resume"]  # the package's attribute of that name is the function


def options_of(**changes: Any) -> TrainOptions:
    """20 updates of 512 environment steps, as they were used."""
    ppo = PPOConfig(schedule=changes.pop("schedule", "constant"))
    own = {"steps": 10_000, "lanes": 64, "rollout_length": 8, "devices": 2, "updates_per_call": 4, **changes}
    return resolve(TrainOptions(**own, learner=ppo))


def restored(**changes: Any) -> Restored:
    return Restored(None, {"env_steps": 5120, "versions": machine.versions(), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "per_call"), [(20_480, 4), (10_752, 1), (11_264, 2), (12_288, 8), (15_360, 2)])
def test_calls_of_a_longer_run_end_where_its_checkpoints_were_made(steps: int, per_call: int) -> None:
    saved = [8, 16, 20] if per_call != 8 else [8, 16]
    longer = module.lengthened(options_of(evaluations=1), steps, saved)
    assert longer.updates_per_call == per_call
    assert all((longer.updates - update) % per_call == 0 for update in saved)
    longer.validate()


@pytest.mark.parametrize(("schedule", "updates"), [("linear", 40), ("cosine", 40), ("constant", 0), ("adaptive-kl", 0)])
def test_a_schedule_is_stretched_over_a_longer_run(schedule: str, updates: int) -> None:
    assert module.lengthened(options_of(schedule=schedule), 20_480, [20]).learner.schedule_updates == updates


def test_a_schedule_of_the_users_own_length_stays() -> None:
    options = options_of(schedule="linear")
    options = dataclasses.replace(options, learner=dataclasses.replace(options.learner, schedule_updates=7))
    assert module.lengthened(options, 20_480, [20]).learner.schedule_updates == 7


def test_nothing_is_said_where_nothing_differs() -> None:
    options = options_of()
    assert module.what_differs(options, options, restored()) == ["going on after 5,120 environment steps"]


def test_differences_are_said() -> None:
    before = options_of(schedule="linear", run=Path("runs/x"))
    after = dataclasses.replace(module.lengthened(before, 20_480, [20]), devices=1)
    _, devices, schedule, versions = module.what_differs(
        before, after, restored(versions=machine.versions() | {"jax": "0.1"})
    )
    assert devices == "on 1 devices instead of 2: bits may differ from those of one run"
    assert schedule == "the schedule of the learning rate is stretched to 40 updates"
    assert versions.startswith("bits may differ, since versions do: jax 0.1 -> ")
    assert module.what_differs(before, before, None) == ["runs/x has no checkpoint; training starts anew"]


@pytest.mark.parametrize(
    "changes",
    [
        {"position": None},
        {"position": []},
        {"position": {"update": "3"}},
        {"position": {"update": -3}},
        {"position": {"update": 4}},
        {"position": {"update": 3, "records": -1}},
        {"position": {"update": 3, "clock": {"training": "long"}}},
        {"position": {"update": 3, "clock": {"training": -1.0}}},
        {"env_steps": "many"},
    ],
    ids=str,
)
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = restored(**{"update": 3, "position": {"update": 3}, **changes})
    with pytest.raises(ConfigError, match="don't describe a run"):
        module.read_position(found, RunFolder.existing(tmp_path))


def goes_on(folder: Path, before: TrainOptions, found: Restored | None, update: int = 8) -> None:
    module.check_goes_on(RunFolder.existing(folder), before, before, found, Position(update=update))


def test_an_edited_configuration_is_named(tmp_path: Path) -> None:
    then = options_of()
    found = restored(config=to_yaml(then))
    goes_on(tmp_path, dataclasses.replace(then, tensorboard=False, quiet=True, steps=20_480), found)
    edited = dataclasses.replace(then, action_repeat=2, learner=dataclasses.replace(then.learner, gamma=0.5))
    with pytest.raises(ConfigError, match=r"config\.yaml was changed .*: action_repeat 1 -> 2, gamma 0\.99 -> 0\.5"):
        goes_on(tmp_path, edited, found)
    with pytest.raises(ConfigError, match="updates_per_call=5 does not divide the 12 updates that are left"):
        goes_on(tmp_path, dataclasses.replace(then, updates_per_call=5), found)
    with pytest.raises(ConfigError, match="has trained 12,288 already"):
        goes_on(tmp_path, then, found, update=24)


def test_results_without_a_checkpoint_are_not_trained_over(tmp_path: Path) -> None:
    goes_on(tmp_path, options_of(), None)
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1, "eval/episodes": 4}\n')
    goes_on(tmp_path, options_of(), None)  # killed before the first checkpoint was whole
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1, "eval/episodes": 4}\n' * 2)
    with pytest.raises(ConfigError, match="has results, but no checkpoint"):
        goes_on(tmp_path, options_of(), None)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="has results, but no checkpoint"):
        goes_on(tmp_path, options_of(), None)


def test_a_folder_with_a_link_in_it_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="checkpoints is a link"):
        resume(tmp_path / "run")
    (tmp_path / "victim").write_text("precious")
    for write in (lambda path: write_text(path, "new"), lambda path: MetricsFile(path)):
        (tmp_path / "file").symlink_to(tmp_path / "victim")
        with contextlib.suppress(OSError):
            write(tmp_path / "file")
        assert (tmp_path / "victim").read_text() == "precious"
        (tmp_path / "file").unlink()


def test_the_summary_of_a_run_that_becomes_longer_is_kept_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    retire_summary(RunFolder.existing(tmp_path), 4096)
    retire_summary(RunFolder.existing(tmp_path), 8192)
    assert [path.name for path in tmp_path.iterdir()] == ["summary-4096.json"]


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml is missing"):
        resume(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        resume(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


class Prepared(NamedTuple):
    """What a kind prepares."""

    options: TrainOptions
    state: Any


def test_the_checkpoint_that_is_gone_on_from_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that is owed saves the restored state again, over the only copy there is."""
    options, state = options_of(run=tmp_path), {"x": jnp.arange(3.0)}
    write_text(tmp_path / "config.yaml", to_yaml(options))
    record = {"env_steps": 4096, "position": {"update": 8}, "config": to_yaml(options), "versions": machine.versions()}
    with Checkpoints(tmp_path / "checkpoints", 2, pytest.fail) as store:
        store.save(8, state, {**record, "evaluation_return": None}, lambda: None)

    def carry_out(kind: Kind, plan: Prepared, folder: RunFolder, found: Restored, *rest: Any) -> Any:
        _, checkpoints, _ = rest
        with checkpoints:
            checkpoints.save(8, found.state, {**record, "evaluation_return": 1.0}, lambda: None)
        return checkpoints.updates()

    monkeypatch.setattr(module, "carry_out", carry_out)
    monkeypatch.setattr(Checkpoints, "_write", lambda *args: pytest.fail("the arrays were written again"))
    nothing: Any = None
    kind = Kind(TrainOptions, resolve, lambda own, _: Prepared(own, state), *[nothing] * 4)
    assert module.resume_as(kind, tmp_path, steps=None, devices=2, quiet=True) == [8]


def test_a_configuration_of_before_there_were_devices_is_no_difference() -> None:
    before = dataclasses.replace(options_of(run=Path("runs/x")), devices=None)
    assert len(module.what_differs(before, dataclasses.replace(before, devices=1), restored())) == 1


def test_another_algorithm_is_a_difference() -> None:
    changes = module.differing_options(options_of(), TrainOptions(algorithm="trpo", learner=TRPOConfig()))
    assert "algorithm ppo -> trpo" in changes
