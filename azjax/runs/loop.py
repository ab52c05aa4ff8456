"""The loop on the host: call the training program, look at its metrics, evaluate and save now and then."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax

from azjax.config import require_number
from azjax.counters import counter_to_int
from azjax.evaluation import Episodes
from azjax.runs.checkpoints import Checkpoints
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile
from azjax.runs.machine import versions
from azjax.runs.options import TrainOptions, to_yaml
from azjax.runs.programs import Programs
from azjax.runs.records import evaluation_line, evaluation_record, first_episodes, training_record
from azjax.runs.signals import StopRequest
from azjax.runs.sinks import Sinks
from azjax.training import Metrics, TrainState

T = TypeVar("T")
# The evaluation's seed is the run's with these bits flipped, so that it shares no key with training.
EVALUATION_SEED = 0x5EED_0000


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
    best_return: float | None = None  # its mean
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
    save_policy: Callable[[Any, bool], object]  # parameters, and whether they are the best so far


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
      options: those ``as_used``.
      programs: compiled.
      position: where to go on; changed as the run proceeds.
      outputs: where results go.
    """

    def __init__(self, options: TrainOptions, programs: Programs, position: Position, outputs: Outputs) -> None:
        self._options = options
        self._programs = programs
        self._position = position
        self._out = outputs
        self._recent: float | None = None
        self._episodes: Episodes | None = None  # those played at this point of the run
        self._saved_at = time.monotonic()
        self._versions = versions()
        # Python handles signals between two steps of the main thread, so that one must not be inside XLA for long.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="device")

    def run(self, state: TrainState | None, stop: StopRequest) -> tuple[TrainState, Episodes | None]:
        """Trains to the end, or to the end of the call during which a stop is requested; then the state is saved.

        Args:
          state: where to go on; ``None`` starts anew. Its buffers are donated.
          stop: looked at between two calls.

        Returns:
          The state, and the episodes of the evaluation after the last update; ``None`` if it was stopped before.
        """
        position, updates = self._position, self._options.updates
        waiting: Metrics | None = None
        try:
            if state is None:
                state = self._wait(lambda: self._programs.init(jax.random.key(self._options.seed)))
            position.clock.lap()
            shortened = position.update == updates and position.evaluated_at != updates
            if position.owes_evaluation or shortened:
                self._save(state, self._evaluate(state))
            while position.update < updates and not stop.signal:
                state, waiting = self._call(state, waiting)
                stopping = bool(stop.signal) and position.update < updates
                if position.owes_evaluation or stopping or self._checkpoint_due():
                    self._look(waiting)
                    waiting = None
                    evaluated = position.owes_evaluation and not stopping
                    self._save(state, self._evaluate(state) if evaluated else None)
            if position.update < updates:
                return state, None
            return state, self._episodes or self._play(state)
        finally:
            self._worker.shutdown(wait=False)

    def _call(self, state: TrainState, waiting: Metrics | None) -> tuple[TrainState, Metrics]:
        """One call of the program; the host looks at the metrics of the call before while the device is busy."""
        call = self._worker.submit(lambda: jax.block_until_ready(self._programs.step(state)))
        if waiting is not None:
            self._look(waiting)
        result = call.result()
        self._episodes = None
        position, before = self._position, self._position.update
        position.clock.training += position.clock.lap()
        position.update += self._programs.updates_per_call
        position.owes_evaluation = evaluation_due(
            before, position.update, self._options.updates, self._options.evaluations
        )
        return result

    def _wait(self, work: Callable[[], T]) -> T:
        """The result of a program, waited for where signals are heard."""
        return self._worker.submit(lambda: jax.block_until_ready(work())).result()

    def _write(self, record: dict[str, Any]) -> None:
        self._out.metrics.write(record)
        self._out.sinks.write(record)

    def _look(self, metrics: Metrics) -> None:
        record = training_record(jax.device_get(metrics), self._options, self._position.clock.training)
        self._write(record)
        self._recent = record.get("train/episode_return", self._recent)
        self._out.console.progress(record["env_steps"], record["time/env_steps_per_second"], self._recent)

    def _play(self, state: TrainState) -> Episodes:
        """The episodes that belong to this point of the run; always the same ones."""
        call = self._position.update // self._programs.updates_per_call
        key = jax.random.fold_in(jax.random.key(self._options.seed ^ EVALUATION_SEED), call)
        episodes = self._wait(lambda: self._programs.evaluate(state.learner.params, key))
        return first_episodes(episodes, self._options.evaluation_episodes)

    def _evaluate(self, state: TrainState) -> float | None:
        """Plays, records, and keeps the policy; the mean return, unless the physics broke in every episode."""
        position = self._position
        self._episodes = self._play(state)
        record = evaluation_record(state, self._episodes, position.clock.training)
        self._write(record)
        mean: float | None = record.get("eval/episode_return_mean")
        better = mean is not None and (position.best_return is None or mean > position.best_return)
        try:
            self._out.save_policy(state.learner.params, better)
            if better:
                position.best_env_steps, position.best_return = record["env_steps"], mean
        except OSError as error:
            self._out.console.warn(f"the policy could not be written ({error.strerror or error}); training goes on")
        position.owes_evaluation, position.evaluated_at = False, position.update
        position.clock.evaluation += position.clock.lap()
        self._out.console.say(f"{record['env_steps']:>12,} environment steps: {evaluation_line(record)}")
        return mean

    def _checkpoint_due(self) -> bool:
        late = time.monotonic() - self._saved_at >= self._options.checkpoint_seconds
        return late and not self._out.checkpoints.busy

    def _save(self, state: TrainState, evaluation_return: float | None) -> None:
        position = self._position
        position.records = self._out.metrics.records
        position.clock.lap()
        record = {
            "env_steps": counter_to_int(state.env_steps),
            "evaluation_return": evaluation_return,
            "position": dataclasses.asdict(position),
            "config": to_yaml(self._options),
            "versions": self._versions,
        }
        self._out.checkpoints.save(position.update, state, record, self._out.metrics.sync)
        self._saved_at = time.monotonic()
        position.clock.lap()  # the time it took is neither training nor evaluation
