"""Takes a job from a position to its end: what every kind of run has around its loop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax

from azjax.runs import hosts
from azjax.runs.checkpoints import Checkpoints, Restored
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile, RunFolder
from azjax.runs.loop import Job, Loop, Outputs, Position
from azjax.runs.reading import parse_yaml
from azjax.runs.signals import Interrupts, RunInterrupted, StopRequest
from azjax.runs.sinks import Sinks, sink_makers

T = TypeVar("T")


class SinkOptions(Protocol):
    """Where metrics go beside ``metrics.jsonl``."""

    @property
    def tensorboard(self) -> bool:
        """Whether to write event files."""
        ...

    @property
    def wandb(self) -> str | None:
        """Project of Weights & Biases."""
        ...


def compiled(build: Callable[[], T], folder: Path, console: RunConsole) -> T:
    """The programs of a run, compiled while the console shows it.

    Args:
      build: compiles them.
      folder: what ``azjax resume`` is given to go on.
      console: shows that it takes time.

    Raises:
      RunInterrupted: if a signal came meanwhile.
    """
    console.say(f"results in {folder}")
    mend = f"it was compiling, and what was trained before is saved; go on with: azjax resume {folder}"
    with Interrupts(mend, later=jax.process_count() > 1), console.waiting("compiling"):
        return build()


def conduct(
    job: Job,
    folder: RunFolder,
    found: Restored | None,
    position: Position,
    checkpoints: Checkpoints,
    console: RunConsole,
    sinks: SinkOptions,
    resumed: Path | None = None,
) -> tuple[Any, Any]:
    """Runs a job's loop with its metrics, sinks and checkpoints, which are whole and closed when it returns.

    Args:
      job: what to run.
      folder: the run's.
      found: the checkpoint to go on from.
      position: where it stands; changed as the run proceeds.
      checkpoints: the run's; closed.
      console: shows progress.
      sinks: where metrics go.
      resumed: what to give ``azjax resume`` to go on, if not ``folder``.

    Returns:
      The last state and the result of its evaluation.

    Raises:
      RunInterrupted: if a signal stopped it, or came at its end inside ``Interrupts``; the state is saved.
    """
    metrics = folder.file("metrics.jsonl")
    env_steps = 0 if found is None else found.record["env_steps"]
    makers = sink_makers(
        folder.path,
        tensorboard=sinks.tensorboard,
        wandb_project=sinks.wandb,
        config=parse_yaml(job.config.encode()),
        purge=env_steps + 1 if metrics.exists() else None,
    )
    makers = makers if hosts.is_first() else {}
    if position.update < job.updates:
        retire_summary(folder, env_steps)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(
            StopRequest(lambda text: console.say(text, always=True), deaf=1.0 if jax.process_count() > 1 else 0.0)
        )
        sink_threads = Sinks(makers, console.warn)
        stack.callback(sink_threads.close)
        metrics_file = MetricsFile(metrics, position.records, console.warn)
        stack.callback(metrics_file.close)
        stack.callback(checkpoints.close)  # first of all: it has the metrics written to the disk
        outputs = Outputs(metrics_file, sink_threads, checkpoints, console)
        state, result = Loop(job, position, outputs).run(None if found is None else found.state, stop)
    if result is None:
        raise RunInterrupted(stop.signal or signal.SIGINT, _how_to_go_on(job, checkpoints, resumed or folder.path))
    stop.hand_on()
    return state, result


def _how_to_go_on(job: Job, checkpoints: Checkpoints, folder: Path) -> str:
    if not hosts.is_first():
        return "the first process says how to go on"
    saved = checkpoints.updates()[-1:]
    where = f"after update {saved[0]} of {job.updates}" if saved else "from the start"
    return f"go on {where} with: azjax resume {folder}"


def retire_summary(folder: RunFolder, env_steps: int) -> None:
    """Renames the summary of a finished run that is about to become longer, so that it is not taken for the whole."""
    summary = folder.file("summary.json")
    if summary.exists():
        summary.rename(folder.file(f"summary-{env_steps}.json"))
