"""azjax.runs.loop and azjax.runs.records: what the host does between two calls, with programs that only count."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import azjax
from azjax.counters import counter_from_int
from azjax.evaluation import Episodes
from azjax.runs import records, summary
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile, read_metrics
from azjax.runs.loop import Clock, Loop, Outputs, Position, evaluation_due
from azjax.runs.options import TrainOptions
from azjax.runs.plain import from_plain
from azjax.runs.programs import Programs
from azjax.runs.signals import StopRequest
from azjax.runs.sinks import Sinks
from azjax.runs.train import TrainingJob

INFINITY = float("inf")


def options_of(**changes: Any) -> TrainOptions:
    """20 updates of 512 environment steps."""
    return TrainOptions(**{"steps": 10_000, "lanes": 64, "rollout_length": 8, "quiet": True, **changes})


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 7, 12, 100])
@pytest.mark.parametrize("evaluations", [1, 2, 3, 5, 12, 1000])
@pytest.mark.parametrize("per_call", [1, 4])
def test_evaluations_are_spread_evenly_and_the_last_call_is_one(calls: int, evaluations: int, per_call: int) -> None:
    due = [
        n
        for n in range(1, calls + 1)
        if evaluation_due((n - 1) * per_call, n * per_call, calls * per_call, evaluations)
    ]
    assert len(due) == min(calls, evaluations)
    assert due[-1] == calls
    gaps = np.diff([0, *due])
    assert gaps.max() - gaps.min() <= 1


def make_metrics(updates: int, env_steps: int, **changes: Any) -> Any:
    """Metrics of a call, stacked over its updates; ``changes`` of the totals of episodes and of the rest."""
    totals = {
        "ended": np.array([0, 3] + [0] * (updates - 2), np.int32)[:updates],
        "return_sum": np.array([0.0, 12.0] + [0.0] * (updates - 2), np.float32)[:updates],
        "return_min": np.array([INFINITY, -1.0] + [INFINITY] * (updates - 2), np.float32)[:updates],
        "return_max": np.array([-INFINITY, 9.0] + [-INFINITY] * (updates - 2), np.float32)[:updates],
        "length_sum": np.array([0.0, 60.0] + [0.0] * (updates - 2), np.float32)[:updates],
    }
    rest = {
        "reward_mean": np.linspace(1.0, 2.0, updates, dtype=np.float32),
        "nonfinite_lanes": np.full(updates, 2, np.int32),
        "reset_reuse": np.full(updates, 3, np.int32),
        "learner": {"kl": np.linspace(0.1, 0.3, updates, dtype=np.float32)},
    }
    totals |= {k: v for k, v in changes.items() if k in totals}
    rest |= {k: v for k, v in changes.items() if k in rest}
    counter = counter_from_int(env_steps)
    stacked = jax.tree.map(lambda x: np.array([0] * (updates - 1) + [x], np.uint32), counter)
    return azjax.Metrics(env_steps=stacked, episodes=azjax.EpisodeTotals(**totals), **rest)


def test_a_line_of_metrics_sums_over_the_updates_of_a_call() -> None:
    record = records.training_record(make_metrics(3, 2**33 + 5), options_of(), 2.0)
    assert record["env_steps"] == 2**33 + 5
    assert type(record["env_steps"]) is int
    assert record["train/episodes"] == 3
    assert record["train/episode_return"] == pytest.approx(4.0)
    assert record["train/episode_return_min"] == -1.0
    assert record["train/episode_return_max"] == 9.0
    assert record["train/episode_length"] == pytest.approx(20.0)
    assert record["train/reward_mean"] == pytest.approx(1.5)
    assert record["train/nonfinite_lanes"] == 6
    assert record["train/reset_reuse"] == 9
    assert record["learner/kl"] == pytest.approx(0.2)
    assert record["time/seconds"] == 2.0
    assert record["time/env_steps_per_second"] == pytest.approx((2**33 + 5) / 2.0)
    json.dumps(record, allow_nan=False)


def test_a_line_of_metrics_leaves_out_what_is_missing() -> None:
    none = {
        "ended": np.zeros(2, np.int32),
        "return_sum": np.zeros(2, np.float32),
        "return_min": np.full(2, INFINITY, np.float32),
        "return_max": np.full(2, -INFINITY, np.float32),
        "length_sum": np.zeros(2, np.float32),
    }
    record = records.training_record(
        make_metrics(2, 64, **none, learner={"kl": np.array([np.nan, 0.1]), "entropy": np.array([1.0, 3.0])}),
        options_of(),
        0.0,
    )
    assert record["train/episodes"] == 0
    assert not [key for key in record if key.startswith(("train/episode_return", "train/episode_length"))]
    assert "learner/kl" not in record
    assert record["learner/entropy"] == pytest.approx(2.0)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_rewards_are_reported_per_environment_step() -> None:
    record = records.training_record(make_metrics(2, 64), options_of(action_repeat=4), 1.0)
    assert record["train/reward_mean"] == pytest.approx(1.5 / 4)


def make_episodes(returns: list[float]) -> Episodes:
    """Sound episodes of these returns."""
    count = len(returns)
    ended, broken = np.ones(count, bool), np.zeros(count, bool)
    return Episodes(np.array(returns, np.float32), np.full(count, 20), ended, broken, None)


class FakePrograms:
    """Programs that only count: the learner's parameters are the number of updates."""

    def __init__(self, options: TrainOptions, per_call: int) -> None:
        self.per_call = per_call
        self.per_update = options.env_steps_per_update
        self.init_keys: list[Any] = []
        self.evaluated: list[tuple[int, tuple[int, ...]]] = []
        self.before_call: Callable[[int], None] = lambda updates: None
        self.return_of: Callable[[int], float] = float

    def programs(self) -> Programs:
        return Programs(self.init, self.step, self.evaluate, self.per_call, 0.0)

    def state(self, updates: int) -> Any:
        return SimpleNamespace(
            learner=SimpleNamespace(params=updates), env_steps=counter_from_int(updates * self.per_update)
        )

    def init(self, key: Any) -> Any:
        self.init_keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return self.state(0)

    def step(self, state: Any) -> Any:
        self.before_call(state.learner.params)
        updates = state.learner.params + self.per_call
        return self.state(updates), make_metrics(self.per_call, updates * self.per_update)

    def evaluate(self, params: int, key: Any) -> Episodes:
        self.evaluated.append((params, tuple(np.asarray(jax.random.key_data(key)).tolist())))
        value = self.return_of(params)
        return make_episodes([value, value + 2.0])


class FakeCheckpoints:
    """Remembers what was saved; one is being written for ever if ``busy``."""

    def __init__(self) -> None:
        self.busy = False
        self.saved: list[tuple[int, Any, dict[str, Any]]] = []

    def save(self, update: int, state: Any, record: dict[str, Any], before: Callable[[], None]) -> None:
        before()
        self.saved.append((update, state, json.loads(json.dumps(record, allow_nan=False))))


class Trained(NamedTuple):
    """What a loop left."""

    state: Any
    episodes: Episodes | None
    position: Position
    records: list[dict[str, Any]]
    policies: list[tuple[int, bool]]
    checkpoints: FakeCheckpoints


def train(
    folder: Path,
    options: TrainOptions,
    fake: FakePrograms,
    position: Position | None = None,
    stop: StopRequest | None = None,
    save: Callable[[Any, bool], None] | None = None,
) -> Trained:
    """Runs a loop from a position to its end."""
    folder.mkdir(exist_ok=True)
    position = position or Position()
    policies: list[tuple[int, bool]] = []
    checkpoints = FakeCheckpoints()
    metrics = MetricsFile(folder / "metrics.jsonl", position.records)
    with RunConsole(options.steps, quiet=True) as console:
        outputs = Outputs(metrics, Sinks({}, console.warn), checkpoints, console)  # type: ignore[arg-type]
        job = TrainingJob(options, fake.programs(), save or (lambda *args: policies.append(args)))
        start = fake.state(position.update) if position.update else None
        state, episodes = Loop(job, position, outputs).run(start, stop or StopRequest(lambda text: None))
    metrics.close()
    return Trained(state, episodes, position, read_metrics(folder / "metrics.jsonl"), policies, checkpoints)


@pytest.mark.parametrize(("per_call", "evaluations"), [(1, 1), (2, 3), (4, 5), (5, 50), (20, 1)])
def test_the_loop_writes_every_call_and_evaluates_what_it_trained(
    tmp_path: Path, per_call: int, evaluations: int
) -> None:
    options = options_of(evaluations=evaluations, seed=3)
    fake = FakePrograms(options, per_call)
    done = train(tmp_path, options, fake)
    assert done.state.learner.params == done.position.update == options.updates == 20
    ends = range(per_call, 21, per_call)
    due = [end for end in ends if evaluation_due(end - per_call, end, 20, evaluations)]
    assert [params for params, _ in fake.evaluated] == due
    assert done.policies == [(update, True) for update in due]  # each better than the one before
    assert [update for update, _, _ in done.checkpoints.saved] == due
    expected = []
    for end in ends:
        expected.append((end * 512, "train/episodes"))
        if end in due:
            expected.append((end * 512, "eval/episode_return_mean"))
    assert [(r["env_steps"], key) for (_, key), r in zip(expected, done.records, strict=True) if key in r] == expected
    assert done.records[-1]["eval/episode_return_mean"] == 21.0
    assert done.episodes is not None
    np.testing.assert_array_equal(done.episodes.episode_return, [20, 22])
    seconds = [r["time/seconds"] for r in done.records]
    assert seconds == sorted(seconds)


def test_an_evaluation_has_as_many_episodes_as_were_asked_for(tmp_path: Path) -> None:
    options = options_of(evaluation_episodes=1)
    done = train(tmp_path, options, FakePrograms(options, 20))  # whose devices play two
    assert done.episodes is not None
    np.testing.assert_array_equal(done.episodes.episode_return, [20.0])
    assert done.records[-1]["eval/episodes"] == 1
    frames: Any = object()
    assert records.first_episodes(done.episodes._replace(frames=frames), 1).frames is frames


def test_every_evaluation_has_a_key_of_its_own_that_training_does_not_use(tmp_path: Path) -> None:
    keys = []
    for seed in (0, 1):
        options = options_of(evaluations=20, seed=seed)
        fake = FakePrograms(options, 1)
        train(tmp_path / str(seed), options, fake)
        keys += fake.init_keys + [key for _, key in fake.evaluated]
    assert len(set(keys)) == len(keys) == 2 * 21


def test_only_a_better_evaluation_is_the_best(tmp_path: Path) -> None:
    options = options_of(evaluations=4)
    fake = FakePrograms(options, 5)
    fake.return_of = {5: 3.0, 10: 9.0, 15: -1.0, 20: 9.0}.__getitem__
    done = train(tmp_path, options, fake)
    assert done.policies == [(5, True), (10, True), (15, False), (20, False)]
    assert (done.position.best_env_steps, done.position.best_return) == (10 * 512, 10.0)
    assert [record["evaluation_return"] for _, _, record in done.checkpoints.saved] == [4.0, 10.0, 0.0, 10.0]


def stop_during(fake: FakePrograms, stop: StopRequest, call_after: int) -> None:
    """Requests a stop while the call that follows so many updates is running."""

    def before(updates: int) -> None:
        if updates == call_after:
            stop.signal = signal.SIGTERM

    fake.before_call = before


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.mark.parametrize("call_after", [0, 4, 8, 12, 16])
def test_a_stop_is_obeyed_after_the_call_and_another_process_ends_as_one_would(tmp_path: Path, call_after: int) -> None:
    options = options_of(evaluations=2)
    whole = train(tmp_path / "whole", options, FakePrograms(options, 4))
    stop = StopRequest(lambda text: None)
    fake = FakePrograms(options, 4)
    stop_during(fake, stop, call_after)
    part = train(tmp_path / "part", options, fake, stop=stop)
    if call_after == 16:  # the last call: there is nothing left to stop
        assert part.episodes is not None
        assert without_times(part.records) == without_times(whole.records)
        return
    update, state, record = part.checkpoints.saved[-1]
    assert part.episodes is None
    assert update == state.learner.params == part.position.update == call_after // 4 * 4 + 4
    position = from_plain(Position, record["position"])
    assert position.records == len(part.records)
    assert position.owes_evaluation == (update == 12)  # due, and left to the next process
    again = FakePrograms(options, 4)
    rest = train(tmp_path / "part", options, again, position)
    assert without_times(rest.records) == without_times(whole.records)
    np.testing.assert_array_equal(rest.episodes.episode_return, whole.episodes.episode_return)  # type: ignore[union-attr]
    assert (rest.position.best_env_steps, rest.position.best_return) == (20 * 512, 21.0)


def test_what_was_written_after_the_checkpoint_is_written_again(tmp_path: Path) -> None:
    options = options_of(evaluations=2)
    whole = train(tmp_path / "whole", options, FakePrograms(options, 2))
    killed = train(tmp_path / "killed", options, FakePrograms(options, 2))
    _, _, record = killed.checkpoints.saved[0]
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 10')  # the kill came in the middle of a line
    rest = train(tmp_path / "killed", options, FakePrograms(options, 2), from_plain(Position, record["position"]))
    assert without_times(rest.records) == without_times(whole.records)


def test_a_run_killed_after_its_last_checkpoint_plays_its_last_episodes_again(tmp_path: Path) -> None:
    options = options_of(evaluations=2)
    whole = train(tmp_path, options, FakePrograms(options, 5))
    _, _, record = whole.checkpoints.saved[-1]
    fake = FakePrograms(options, 5)
    again = train(tmp_path, options, fake, from_plain(Position, record["position"]))
    np.testing.assert_array_equal(again.episodes.episode_return, whole.episodes.episode_return)  # type: ignore[union-attr]
    assert again.records == whole.records
    assert again.checkpoints.saved == again.policies == []


def test_a_run_made_shorter_is_evaluated_where_it_ends(tmp_path: Path) -> None:
    options = options_of(steps=12 * 512, evaluations=1)
    fake = FakePrograms(options, 4)
    done = train(tmp_path, options, fake, Position(update=12, evaluated_at=8))
    assert done.policies == [(12, True)]
    assert done.records[-1]["eval/episode_return_mean"] == 13.0
    assert [update for update, _, _ in done.checkpoints.saved] == [12]


def test_checkpoints_come_between_evaluations_where_time_has_passed(tmp_path: Path) -> None:
    options = options_of(evaluations=1, checkpoint_seconds=0.0)
    done = train(tmp_path, options, FakePrograms(options, 5))
    assert [update for update, _, _ in done.checkpoints.saved] == [5, 10, 15, 20]
    for update, _, record in done.checkpoints.saved:
        assert record["env_steps"] == update * 512
        assert record["position"]["records"] == update // 5 + (update == 20)
    rare = train(tmp_path / "rare", options_of(evaluations=1, checkpoint_seconds=3600.0), FakePrograms(options, 5))
    assert [update for update, _, _ in rare.checkpoints.saved] == [20]


def test_a_policy_that_cannot_be_written_does_not_end_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(params: Any, best: bool) -> None:
        raise OSError(28, "No space left on device")

    options = options_of(evaluations=2)
    done = train(tmp_path, options, FakePrograms(options, 10), save=fail)
    assert done.position.update == 20
    assert capsys.readouterr().err.count("No space left on device") == 2


def test_an_error_in_a_program_is_raised_and_leaves_whole_lines(tmp_path: Path) -> None:
    options = options_of(evaluations=4)
    fake = FakePrograms(options, 1)

    def fail(updates: int) -> None:
        if updates == 8:
            raise RuntimeError("RESOURCE_EXHAUSTED")

    fake.before_call = fail
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        train(tmp_path, options, fake)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert len([line for line in lines if "train/episodes" in line]) >= 6


def test_the_clock_goes_on_where_it_was() -> None:
    clock = Clock(training=3.0, total=100.0)
    clock.lap()
    assert 100.0 <= clock.total < 110.0
    clock.count_from(clock._mark - 50.0)
    assert clock.lap() >= 0.0
    assert clock.total >= 150.0


def test_an_evaluation_in_which_everything_broke_does_not_end_a_run() -> None:
    broken = make_episodes([1.0, 2.0])._replace(nonfinite=np.ones(2, bool))
    statistics = records.evaluation_statistics(broken)
    assert statistics == {"episodes": 0, "nonfinite_episodes": 2, "returns": []}
    record = records.evaluation_record(64, broken, 1.0)
    assert (record["eval/episodes"], record["eval/nonfinite_episodes"]) == (0, 2)
    assert "broke in every evaluation episode" in records.evaluation_line(record)
    ((name, text),) = summary.return_rows(statistics)
    assert (name, "unknown" in text) == ("episode return", True)


def test_progress_is_the_return_of_the_episodes_that_ended() -> None:
    options = options_of()
    job = TrainingJob(options, FakePrograms(options, 1).programs(), lambda *args: None)
    assert job.progress({"train/episode_return": 2.54}) == "episode return 2.5"
    assert job.progress({"train/episodes": 0}) is None
