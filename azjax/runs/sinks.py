"""Where metrics go beside ``metrics.jsonl``: TensorBoard and Weights & Biases, each behind a queue and a thread.

The training loop puts records into the queues and never waits. A sink that fails is reported once and dropped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from azjax.config import require
from azjax.runs.folder import write_text
from azjax.runs.reading import read_limited

_SECONDS_TO_CLOSE = 30.0
_SECONDS_TO_FLUSH = 5.0


class Sink(Protocol):
    """Takes records of metrics; used by one thread only, the one that made it."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a line of ``metrics.jsonl``."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class TensorBoardSink:
    """Event files for TensorBoard, each metric against environment steps.

    Args:
      folder: of the event files.
      purge: environment steps from which on earlier event files don't count: that part is trained again.
    """

    def __init__(self, folder: Path, purge: int | None) -> None:
        # Imported late and in the sink's thread: it takes long. The library's own queue would hide errors.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if purge is not None:
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(self._event(wall_time=time.time(), step=purge, session_log=log))
        self._flushed = time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a line of ``metrics.jsonl``."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers(record)]
        event = self._event(wall_time=time.time(), step=record["env_steps"], summary=self._summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _SECONDS_TO_FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases; whether it is online is up to wandb's own settings (``WANDB_MODE``).

    Args:
      folder: for wandb's files and for the run's id, by which a resumed run goes on in the same place.
      project: name of the project.
      name: of the run.
      config: options of the run as plain data.
    """

    def __init__(self, folder: Path, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(exist_ok=True)
        identity = folder / "run_id"
        if not os.path.lexists(identity):
            write_text(identity, secrets.token_hex(8))
        name_of_run = read_limited(identity, 64).decode("ascii", "replace")
        require(re.fullmatch("[0-9a-f]{16}", name_of_run) is not None, f"{identity} holds no run id; remove it")
        self._run = wandb.init(
            project=project,
            name=name,
            id=name_of_run,
            dir=str(folder),
            resume="allow",
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a line of ``metrics.jsonl``."""
        self._run.log({"env_steps": record["env_steps"], **dict(numbers(record))})

    def close(self) -> None:
        """Writes what is left."""
        self._run.finish()


def numbers(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The metrics of a record, without the count that they are drawn against."""
    return [(k, v) for k, v in record.items() if k != "env_steps" and isinstance(v, int | float)]


class Sinks:
    """All sinks of a run.

    Args:
      makers: what makes each sink, by name; called in the sink's own thread.
      warn: takes a line on a sink that failed; called from the thread that uses this object.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Sink]], warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._workers = [_Worker(name, make) for name, make in makers.items()]

    def write(self, record: Mapping[str, Any]) -> None:
        """Hands a record to every sink that works, without waiting."""
        for worker in self._workers:
            worker.records.put(record)
        self._report()

    def close(self) -> None:
        """Waits for the sinks, each for at most 30 s."""
        for worker in self._workers:
            worker.records.put(None)
        for worker in self._workers:
            worker.thread.join(_SECONDS_TO_CLOSE)
            if worker.thread.is_alive():
                self._warn(f"{worker.name} did not finish within {_SECONDS_TO_CLOSE:.0f} s and was left behind")
        self._report()

    def _report(self) -> None:
        for worker in [w for w in self._workers if w.error is not None]:
            reason = " ".join(f"{type(worker.error).__name__}: {worker.error}".split())[:300]
            self._warn(f"metrics no longer go to {worker.name} ({reason}); metrics.jsonl has them all")
            self._workers.remove(worker)


class _Worker:
    """The thread of one sink."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self.name = name
        self.records: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, args=(make,), name=name, daemon=True)
        self.thread.start()

    def _work(self, make: Callable[[], Sink]) -> None:
        sink: Sink | None = None
        try:
            sink = make()
            while (record := self.records.get()) is not None:
                sink.write(record)
            sink.close()
        except BaseException as error:  # whatever a sink does, training goes on
            self.error = error
            with contextlib.suppress(Exception):
                if sink is not None:
                    sink.close()


def check_wandb() -> None:
    """Raises ``ConfigError`` if wandb isn't installed."""
    require(
        importlib.util.find_spec("wandb") is not None,
        'metrics can\'t go to wandb: the package is not installed; pip install "azjax[wandb]", or leave --wandb out',
    )


def sink_makers(
    folder: Path, *, tensorboard: bool, wandb_project: str | None, config: Mapping[str, Any], purge: int | None
) -> dict[str, Callable[[], Sink]]:
    """What makes the sinks that a run wants.

    Args:
      folder: the run's.
      tensorboard: whether to write event files.
      wandb_project: project of Weights & Biases, or ``None``.
      config: options of the run as plain data.
      purge: of a run that goes on, the environment steps from which on what TensorBoard has is trained again.
    """
    makers: dict[str, Callable[[], Sink]] = {}
    if tensorboard:
        makers["TensorBoard"] = lambda: TensorBoardSink(folder / "tensorboard", purge)
    if wandb_project is not None:
        project = wandb_project
        makers["Weights & Biases"] = lambda: WandbSink(
            folder / "wandb", project, os.path.basename(folder.absolute()), config
        )
    return makers
