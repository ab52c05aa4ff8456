"""The loop on the host: call the training program, look at its metrics, evaluate and save now and then."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from azjax.config import require_number
from azjax.runs import hosts
from azjax.runs.checkpoints import Checkpoints
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile
from azjax.runs.machine import versions
from azjax.runs.signals import StopRequest
from azjax.runs.sinks import Sinks

T = TypeVar("T")


class Job(Protocol):
    """One kind of run, as the loop sees it: compiled programs, and what there is to say of their results.

    A record is a line of ``metrics.jsonl``: plain data with ``env_steps``, what has been done so far; a training record
    has ``time/env_steps_per_second``, too.
    """

    updates: int  # of the whole run
    updates_per_call: int  # divides them
    evaluations: int  # spread over the run
    checkpoint_seconds: float  # between two checkpoints
    config: str  # text of ``config.yaml``, kept in every checkpoint

    def init(self) -> Any:
        """The state to start from; waits for nothing."""
        ...

    def step(self, state: Any) -> tuple[Any, Any]:
        """State and metrics after ``updates_per_call`` updates; the state's buffers are donated."""
        ...

    def evaluate(self, state: Any, call: int) -> Any:
        """The evaluation after so many calls of ``step``; the same one whenever it is asked for."""
        ...

    def env_steps(self, state: Any) -> int:
        """Environment steps behind a state."""
        ...

    def training_record(self, metrics: Any, seconds: float) -> dict[str, Any]:
        """What a call has to say; ``seconds`` of training since the start of the run."""
        ...

    def evaluation_record(self, state: Any, result: Any, seconds: float) -> dict[str, Any]:
        """What an evaluation has to say."""
        ...

    def progress(self, record: dict[str, Any]) -> str | None:
        """A few words on how well it goes, from a training record; ``None`` if it says nothing of that."""
        ...

    def line(self, record: dict[str, Any]) -> str:
        """An evaluation in a line."""
        ...

    def score(self, record: dict[str, Any]) -> float | None:
        """By what evaluations are compared; more is better."""
        ...

    def keep(self, state: Any, better: bool) -> None:
        """Writes what is to be used of the state (a policy); ``better``: the evaluation was the best so far.

        Raises:
          OSError: if that can't be done.
        """
        ...


@dataclasses.dataclass
class Clock:
    """Seconds that a run has taken, over all processes that worked on it; it runs from its creation on."""

    compilation: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    total: float = 0.0

    def __post_init__(self) -> None:
        self._mark = time.monotonic()
        self._zero = self._mark - self.total

    def count_from(self, start: float) -> None:
        """Counts this process's seconds from an earlier moment (of ``time.monotonic``)."""
        self._zero = start - self.total

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self.total = now - self._zero
        return seconds


@dataclasses.dataclass
class Position:
    """Where a run stands: what a checkpoint keeps beside the train state."""

    update: int = 0
    owes_evaluation: bool = False  # one is due after this update and has not been made
    evaluated_at: int = 0  # update of the last evaluation
    records: int = 0  # lines of metrics.jsonl
    best_env_steps: int | None = None  # of the best evaluation so far
    best_return: float | None = None  # its score
    clock: Clock = dataclasses.field(default_factory=Clock)

    def validate(self) -> None:
        """Raises ``ConfigError`` for numbers that no run can have reached."""
        for name in ("update", "evaluated_at", "records"):
            require_number(name, getattr(self, name), 0)
        for name, seconds in dataclasses.asdict(self.clock).items():
            require_number(name, seconds, 0.0)


class Outputs(NamedTuple):
    """Where the loop's results go."""

    metrics: MetricsFile
    sinks: Sinks
    checkpoints: Checkpoints
    console: RunConsole


def evaluation_due(before: int, after: int, updates: int, evaluations: int) -> bool:
    """Whether one of the evaluations, spread evenly over the updates, falls on a call; the last one always does.

    Args:
      before: updates done before the call.
      after: updates done after it.
      updates: of the whole run.
      evaluations: of the whole run; at most one a call.
    """
    return after * evaluations // updates > before * evaluations // updates


class Loop:
    """One process's share of a run.

    Args:
      job: what to run.
      position: where to go on; changed as the run proceeds.
      outputs: where results go.
    """

    def __init__(self, job: Job, position: Position, outputs: Outputs) -> None:
        self._job = job
        self._position = position
        self._out = outputs
        self._progress = "no episode has ended yet"
        self._result: Any = None  # of the evaluation at this point of the run
        self._saved_at = time.monotonic()
        self._versions = versions()
        # Python handles signals between two steps of the main thread, so that one must not be inside XLA for long.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="device")

    def run(self, state: Any, stop: StopRequest) -> tuple[Any, Any]:
        """Trains to the end, or to the end of the call during which a stop is requested; then the state is saved.

        Args:
          state: where to go on; ``None`` starts anew. Its buffers are donated.
          stop: looked at between two calls.

        Returns:
          The state, and the result of the evaluation after the last update; ``None`` if it was stopped before.
        """
        position, updates = self._position, self._job.updates
        waiting: Any = None
        try:
            if state is None:
                state = self._wait(self._job.init)
            position.clock.lap()
            shortened = position.update == updates and position.evaluated_at != updates
            if position.owes_evaluation or shortened:
                self._save(state, self._evaluate(state))
            stopped, _ = self._agree(stop)
            while position.update < updates and not stopped:
                state, waiting = self._call(state, waiting)
                stopped, checkpoint_due = self._agree(stop)
                stopping = stopped and position.update < updates
                if position.owes_evaluation or stopping or checkpoint_due:
                    self._look(waiting)
                    waiting = None
                    evaluated = position.owes_evaluation and not stopping
                    self._save(state, self._evaluate(state) if evaluated else None)
            if position.update < updates:
                return state, None
            return state, self._play(state) if self._result is None else self._result
        finally:
            self._worker.shutdown(wait=False)

    def _call(self, state: Any, waiting: Any) -> tuple[Any, Any]:
        """One call of the program; the host looks at the metrics of the call before while the device is busy."""
        call = self._worker.submit(lambda: jax.block_until_ready(self._job.step(state)))
        if waiting is not None:
            self._look(waiting)
        result = call.result()
        self._result = None
        position, before = self._position, self._position.update
        position.clock.training += position.clock.lap()
        position.update += self._job.updates_per_call
        position.owes_evaluation = evaluation_due(before, position.update, self._job.updates, self._job.evaluations)
        return result

    def _wait(self, work: Callable[[], T]) -> T:
        """The result of a program, waited for where signals are heard."""
        return self._worker.submit(lambda: jax.block_until_ready(work())).result()

    def _write(self, record: dict[str, Any]) -> None:
        self._out.metrics.write(record)
        self._out.sinks.write(record)

    def _look(self, metrics: Any) -> None:
        record = self._job.training_record(jax.device_get(metrics), self._position.clock.training)
        self._write(record)
        self._progress = self._job.progress(record) or self._progress
        self._out.console.progress(record["env_steps"], record["time/env_steps_per_second"], self._progress)

    def _play(self, state: Any) -> Any:
        return self._wait(lambda: self._job.evaluate(state, self._position.update // self._job.updates_per_call))

    def _evaluate(self, state: Any) -> float | None:
        """Plays, records, and keeps the policy; the evaluation's score."""
        position = self._position
        self._result = self._play(state)
        record = self._job.evaluation_record(state, self._result, position.clock.training)
        self._write(record)
        score = self._job.score(record)
        better = score is not None and (position.best_return is None or score > position.best_return)
        try:
            self._job.keep(state, better)
            if better:
                position.best_env_steps, position.best_return = record["env_steps"], score
        except OSError as error:
            self._out.console.warn(f"the policy could not be written ({error.strerror or error}); training goes on")
        position.owes_evaluation, position.evaluated_at = False, position.update
        position.clock.evaluation += position.clock.lap()
        self._out.console.say(f"{record['env_steps']:>12,} {self._out.console.unit}: {self._job.line(record)}")
        return score

    def _agree(self, stop: StopRequest) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether a checkpoint is due: the same in every process."""
        number, due = hosts.first_to_know([stop.signal or 0, hosts.is_first() and self._checkpoint_due()])
        if number and not stop.signal:
            stop.signal = signal.Signals(number)
        return bool(number), bool(due)

    def _checkpoint_due(self) -> bool:
        late = time.monotonic() - self._saved_at >= self._job.checkpoint_seconds
        return late and not self._out.checkpoints.busy

    def _save(self, state: Any, evaluation_return: float | None) -> None:
        position = self._position
        position.records = self._out.metrics.records
        position.clock.lap()
        record = {
            "env_steps": self._job.env_steps(state),
            "evaluation_return": evaluation_return,
            "position": dataclasses.asdict(position),
            "config": self._job.config,
            "versions": self._versions,
        }
        self._out.checkpoints.save(position.update, state, record, self._out.metrics.sync)
        self._saved_at = time.monotonic()
        position.clock.lap()  # the time it took is neither training nor evaluation
