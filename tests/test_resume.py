"""azjax.runs.train: what a resumed run takes over, and what it says about differences."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from azjax.config import ConfigError
from azjax.ppo import PPOConfig
from azjax.runs import machine, resume
from azjax.runs.checkpoints import Restored
from azjax.runs.folder import RunFolder
from azjax.runs.options import TrainOptions, resolve

module = sys.modules["azjax.runs.train"]  # the package's attribute of that name is the function


def options_of(**changes: Any) -> TrainOptions:
    """20 updates of 512 environment steps, as they were used."""
    ppo = PPOConfig(schedule=changes.pop("schedule", "constant"))
    own = {"steps": 10_000, "lanes": 64, "rollout_length": 8, "devices": 2, "updates_per_call": 4, **changes}
    return resolve(TrainOptions(**own, ppo=ppo))


def restored(**changes: Any) -> Restored:
    return Restored(None, {"env_steps": 5120, "versions": machine.versions(), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "per_call"), [(20_480, 4), (10_752, 1), (11_264, 2), (12_288, 4), (5_120, 2)])
def test_calls_of_a_longer_run_end_where_those_of_the_shorter_one_did(steps: int, per_call: int) -> None:
    longer = module.lengthened(options_of(), steps)
    assert longer.updates_per_call == per_call
    assert longer.updates % per_call == 0
    assert 4 % per_call == 0  # so every checkpoint of the shorter run is the end of a call
    longer.validate()


@pytest.mark.parametrize(("schedule", "updates"), [("linear", 40), ("cosine", 40), ("constant", 0), ("adaptive-kl", 0)])
def test_a_schedule_is_stretched_over_a_longer_run(schedule: str, updates: int) -> None:
    assert module.lengthened(options_of(schedule=schedule), 20_480).ppo.schedule_updates == updates


def test_a_schedule_of_the_users_own_length_stays() -> None:
    options = options_of(schedule="linear")
    options = dataclasses.replace(options, ppo=dataclasses.replace(options.ppo, schedule_updates=7))
    assert module.lengthened(options, 20_480).ppo.schedule_updates == 7


def test_nothing_is_said_where_nothing_differs() -> None:
    options = options_of()
    assert module.what_differs(options, options, restored()) == ["going on after 5,120 environment steps"]


def test_differences_are_said() -> None:
    before = options_of(schedule="linear", run=Path("runs/x"))
    after = dataclasses.replace(module.lengthened(before, 20_480), devices=1)
    _, devices, schedule, versions = module.what_differs(
        before, after, restored(versions=machine.versions() | {"jax": "0.1"})
    )
    assert devices == "1 devices instead of 2: bits may differ from those of one run"
    assert schedule == "the schedule of the learning rate is stretched to 40 updates"
    assert versions.startswith("bits may differ, since versions do: jax 0.1 -> ")
    assert module.what_differs(before, before, None) == ["runs/x has no checkpoint; training starts anew"]


@pytest.mark.parametrize("position", [None, [], {"update": "3"}, {"update": 3, "clock": {"training": "long"}}])
def test_a_position_that_makes_no_sense_is_refused(tmp_path: Path, position: Any) -> None:
    with pytest.raises(ConfigError, match="don't describe a run"):
        module.read_position(restored(position=position), RunFolder.existing(tmp_path))


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml is missing"):
        resume(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        resume(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
