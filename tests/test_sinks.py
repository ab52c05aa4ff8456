"""azjax.runs.sinks: metrics in TensorBoard and Weights & Biases, which never hold up a run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azjax.config import ConfigError
from azjax.runs import sinks as module
from azjax.runs.sinks import Sinks, check_wandb, numbers, sink_makers

LINES: list[dict[str, Any]] = [
    {"env_steps": 2**33, "train/episode_return": 1.5, "time/seconds": 2, "note": "text"},
    {"env_steps": 2**33 + 512, "eval/episode_return_mean": -3.0},
]


class Memory:
    """Keeps what it gets; fails at the record or the end that it is told to."""

    def __init__(
        self, fail_at: int | None = None, wait: threading.Event | None = None, fail_close: bool = False
    ) -> None:
        self.lines: list[Any] = []
        self.closed = False
        self.fail_at = fail_at
        self.wait = wait
        self.fail_close = fail_close

    def write(self, record: Any) -> None:
        if self.wait is not None:
            self.wait.wait(30)
        if len(self.lines) == self.fail_at:
            raise OSError(28, "No space left on device")
        self.lines.append(record)

    def close(self) -> None:
        self.closed = True
        if self.fail_close:
            raise RuntimeError("offline")


def test_every_sink_gets_every_record_in_order() -> None:
    memories = [Memory(), Memory()]
    warnings: list[str] = []
    sinks = Sinks({str(n): lambda m=m: m for n, m in enumerate(memories)}, warnings.append)  # type: ignore[misc]
    records = [{"env_steps": n} for n in range(100)]
    for record in records:
        sinks.write(record)
    sinks.close()
    assert all(memory.lines == records and memory.closed for memory in memories)
    assert warnings == []


@pytest.mark.parametrize("failing", ["maker", "write", "close"])
def test_a_sink_that_fails_is_reported_once_and_dropped(failing: str) -> None:
    good, bad = Memory(), Memory(fail_at=1 if failing == "write" else None, fail_close=failing == "close")

    def make_bad() -> Memory:
        if failing == "maker":
            raise RuntimeError("no\nnetwork")
        return bad

    warnings: list[str] = []
    sinks = Sinks({"good": lambda: good, "bad": make_bad}, warnings.append)
    for n in range(20):
        sinks.write({"env_steps": n})
        time.sleep(0.005)
    sinks.close()
    assert len(good.lines) == 20
    (warning,) = warnings
    assert "no longer go to bad" in warning
    assert "\n" not in warning


def test_a_sink_that_hangs_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_TO_CLOSE", 0.1)
    event = threading.Event()
    stuck, warnings = Memory(wait=event), []
    sinks = Sinks({"stuck": lambda: stuck}, warnings.append)
    start = time.monotonic()
    for n in range(1000):
        sinks.write({"env_steps": n})
    sinks.close()
    assert time.monotonic() - start < 10
    assert warnings == ["stuck did not finish within 0 s and was left behind"]
    event.set()


def test_numbers_are_what_can_be_drawn() -> None:
    assert numbers(LINES[0]) == [("train/episode_return", 1.5), ("time/seconds", 2)]


def write_all(makers: Any, lines: list[dict[str, Any]]) -> None:
    sinks = Sinks(makers, pytest.fail)
    for line in lines:
        sinks.write(line)
    sinks.close()


def events(folder: Path) -> Iterator[Any]:
    """The events in a folder of event files: length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_gets_event_files(tmp_path: Path) -> None:
    write_all(sink_makers(tmp_path, tensorboard=True, wandb_project=None, config={}, purge=None), LINES)
    found = {v.tag: (e.step, v.simple_value) for e in events(tmp_path / "tensorboard") for v in e.summary.value}
    assert found == {
        "train/episode_return": (2**33, 1.5),
        "time/seconds": (2**33, 2.0),
        "eval/episode_return_mean": (2**33 + 512, -3.0),
    }


def test_a_resumed_run_tells_tensorboard_from_where_on(tmp_path: Path) -> None:
    write_all(sink_makers(tmp_path, tensorboard=True, wandb_project=None, config={}, purge=513), [])
    assert [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")] == [513]


def test_nothing_is_made_that_nobody_wants(tmp_path: Path) -> None:
    assert sink_makers(tmp_path, tensorboard=False, wandb_project=None, config={}, purge=None) == {}


def test_without_wandb_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "azjax\[wandb\]"'):
        check_wandb()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_works_offline_and_goes_on_in_the_same_run(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from azjax.runs.sinks import Sinks, sink_makers

def fail(text):
    sys.exit(text)

sinks = Sinks(sink_makers(Path("run"), tensorboard=False, wandb_project="p", config={"a": 1}, purge=None), fail)
sinks.write({"env_steps": int(sys.argv[1]), "eval/episode_return_mean": 2.0})
sinks.close()
"""
    (tmp_path / "run").mkdir()
    for steps in ("512", "1024"):
        done = subprocess.run(
            [sys.executable, "-c", script, steps],
            cwd=tmp_path,
            env={"PATH": "", "HOME": str(tmp_path), "WANDB_MODE": "offline", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    identity = (tmp_path / "run" / "wandb" / "run_id").read_text()
    runs = list((tmp_path / "run" / "wandb" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all(path.name.endswith(identity) for path in runs)
