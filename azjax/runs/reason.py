"""A run of the reasoner from options to files, and going on with it: what ``azjax reason train`` does."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from azjax.config import ConfigError, require
from azjax.counters import counter_to_int
from azjax.reasoning.domain import Domain
from azjax.reasoning.examination import Marks, Questions, drawn_questions, make_examiner, statistics, test_questions
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import TokenPolicy
from azjax.reasoning.reasoner import Reasoner, ReasonerState
from azjax.reasoning.splits import LARGEST_SPLIT, Split, make_split
from azjax.runs import machine
from azjax.runs.checkpoints import Checkpoints, Restored, check_space
from azjax.runs.conduct import compiled, conduct
from azjax.runs.console import RunConsole
from azjax.runs.folder import RunFolder, check_free, read_metrics, write_json, write_text
from azjax.runs.loop import Clock, Position
from azjax.runs.plots import plot_success
from azjax.runs.policy import params_sha256
from azjax.runs.reason_model import save_model
from azjax.runs.reason_options import (
    ReasonOptions,
    differing,
    fits,
    make_parts,
    parse_options,
    read_options,
    resolve,
    to_yaml,
)
from azjax.runs.resume import read_position
from azjax.runs.sinks import check_wandb

__all__ = ["ReasonResult", "resume", "train"]

UNIT = "updates"


class ReasonResult(NamedTuple):
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    policy: TokenPolicy
    params: Any


class _Prepared(NamedTuple):
    """A run before anything of it is compiled or written."""

    options: ReasonOptions
    domain: Domain
    policy: TokenPolicy
    reasoner: Reasoner
    split: Split | None
    state: Any  # shapes


def train(options: ReasonOptions) -> ReasonResult:
    """Trains a reasoner and leaves a folder with everything about the run.

    The folder holds ``config.yaml``, ``metrics.jsonl``, ``model.npz`` and ``model.json``, the same two files of the
    best evaluation in ``best/``, ``checkpoints/``, ``tensorboard/``, ``curves.png`` and ``summary.json``. Steps are
    updates.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    clock = Clock()
    options = resolve(options)
    options.validate()
    if options.run is not None:
        check_free(options.run)
    prepared = _prepare(options)
    path = options.run or Path("runs") / f"reason-{options.domain}-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_space(path, prepared.state, options.keep_checkpoints + 2)
    folder = RunFolder.numbered(path) if options.run is None else RunFolder(path)
    prepared = prepared._replace(options=dataclasses.replace(prepared.options, run=folder.path))
    try:
        write_text(folder.file("config.yaml"), to_yaml(prepared.options))
    except OSError as error:
        raise ConfigError(f"run folder {folder.path} can't be written: {error.strerror}; choose another") from error
    with folder.claimed(), RunConsole(options.updates, quiet=options.quiet, unit=UNIT) as console:
        checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
        return _run(prepared, folder, None, Position(clock=clock), checkpoints, console)


def resume(
    path: str | os.PathLike[str], *, steps: int | None = None, devices: int | None = None, quiet: bool = False
) -> ReasonResult:
    """Goes on with a run that was interrupted, from its latest checkpoint, or makes a finished one longer.

    Args:
      path: the run's folder.
      steps: updates of the whole run, if other than before.
      devices: must be left out, or 1: the command uses a single device.
      quiet: print only the summary.

    Raises:
      ConfigError: if the folder holds no run, or one that this can't go on with.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    start = time.monotonic()
    require(devices in (None, 1), f"devices is {devices}; a run of the reasoner uses a single one")
    folder = RunFolder.existing(Path(path))
    before = read_options(folder.file("config.yaml"))
    options = dataclasses.replace(before, run=folder.path, quiet=quiet)
    with folder.claimed(), RunConsole(0, quiet=quiet, unit=UNIT) as console:
        checkpoints = Checkpoints(folder.file("checkpoints"), options.keep_checkpoints, console.warn)
        saved = checkpoints.updates()
        require(
            steps is not None or saved[-1:] != [options.updates] or not folder.file("summary.json").exists(),
            f"run {folder.path} is finished ({options.updates:,} updates); --steps makes it longer",
        )
        if steps is not None:
            options = _lengthened(options, steps, saved)
        options.validate()
        prepared = _prepare(options)
        found = checkpoints.restore(prepared.state)
        position = Position() if found is None else read_position(found, folder)
        if found is not None:
            then = parse_options(str(found.record.get("config")).encode(), folder.path)
            changed = differing(then, before)
            require(
                not changed,
                f"{folder.file('config.yaml')} was changed since the checkpoint: {', '.join(changed)}; change it back, "
                "or start another run",
            )
            require(
                position.update <= options.updates,
                f"steps is {options.updates}, but run {folder.path} has done {position.update} updates already; ask "
                "for more, or start another run",
            )
            console.say(f"going on after {position.update:,} updates")
        if options != before:
            write_text(folder.file("config.yaml"), to_yaml(prepared.options))
        position.clock.count_from(start)
        console.total_steps = options.updates
        return _run(prepared, folder, found, position, checkpoints, console)


def _lengthened(options: ReasonOptions, updates: int, saved: Sequence[int]) -> ReasonOptions:
    """Another number of updates, in calls that end where every checkpoint was made."""
    common = math.gcd(updates, *saved)
    most = options.updates_per_call or 1
    per_call = max(n for n in range(1, most + 1) if common % n == 0)
    longer = dataclasses.replace(options, updates=updates, updates_per_call=per_call)
    return dataclasses.replace(longer, learner=options.learner.lengthened(fits(longer), fits(options)))


def _prepare(options: ReasonOptions) -> _Prepared:
    if options.wandb is not None:
        check_wandb()
    if options.cache:
        machine.use_cache()
    else:
        machine.use_no_cache()
    split = None
    if options.domain == "lists":
        split = make_split(LARGEST_SPLIT, share=options.hold_out)
    domain, policy, reasoner = make_parts(options, split)
    if options.updates_per_call is None:
        options = dataclasses.replace(options, updates_per_call=_updates_per_call(options))
    state = jax.eval_shape(reasoner.init, jax.random.key(0))
    return _Prepared(options, domain, policy, reasoner, split, state)


def _updates_per_call(options: ReasonOptions) -> int:
    """Few enough for every evaluation to come in its turn, and for some seconds each."""
    most = min(20, max(1, options.updates // options.evaluations))
    return max(n for n in range(1, most + 1) if options.updates % n == 0)


def _run(
    prepared: _Prepared,
    folder: RunFolder,
    found: Restored | None,
    position: Position,
    checkpoints: Checkpoints,
    console: RunConsole,
) -> ReasonResult:
    options = prepared.options
    console.say(_describe(prepared))
    job, seconds = compiled(lambda: _build(prepared, folder), folder.path, console)
    position.clock.compilation += seconds
    state, marks = conduct(job, folder, found, position, checkpoints, console, options)
    job.keep(state, False)
    summary = _finish(prepared, state, job.table(marks), position, folder, console.warn)
    console.summary(f"reasoner on {options.domain}, seed {options.seed}", _rows(folder, summary))
    return ReasonResult(folder.path, summary, prepared.policy, state.learner.params.network)


def _describe(prepared: _Prepared) -> str:
    options = prepared.options
    count = sum(x.size for x in jax.tree.leaves(prepared.state.learner.params.network))
    return (
        f"reasoner on {options.domain}: {options.algorithm}, model of {count:,} parameters, {options.updates:,} "
        f"updates of {options.reasoner.batch} proposals and answers of each of {len(prepared.domain.tasks)} task types"
    )


def _build(prepared: _Prepared, folder: RunFolder) -> tuple[_ReasonJob, float]:
    """Compiles the programs; and how long that took."""
    start = time.monotonic()
    options, domain = prepared.options, prepared.domain
    per_call = options.updates_per_call or 1

    def step(state: ReasonerState) -> Any:
        return jax.lax.scan(lambda s, _: prepared.reasoner.step(s), state, length=per_call)

    init = jax.jit(prepared.reasoner.init)
    with machine.quiet_loading(), machine.rare_collection():
        stepped = jax.jit(step, donate_argnums=0).lower(prepared.state).compile()
    key = jax.random.key(options.seed ^ 0x5EED_0000)
    question_key, answer_key = jax.random.split(key)
    if isinstance(domain, ListDomain) and prepared.split is not None:
        asked = test_questions(domain, prepared.split, question_key, number=options.evaluation_questions)
    else:
        asked = drawn_questions(domain, question_key, number=options.evaluation_questions)
    examiners = [
        jax.jit(make_examiner(domain, prepared.policy, task, samples=options.evaluation_samples))
        .lower(prepared.state.learner.params.network, answer_key, items, prepared.state.level)
        .compile()
        for task, items in enumerate(asked.items)
    ]
    job = _ReasonJob(prepared, folder, init, stepped, examiners, asked, answer_key)
    return job, time.monotonic() - start


class _ReasonJob:
    """The training of one reasoner, as the loop sees it; a step is an update."""

    def __init__(
        self,
        prepared: _Prepared,
        folder: RunFolder,
        init: Callable[..., Any],
        step: Callable[..., Any],
        examiners: Sequence[Callable[..., Marks]],
        questions: Questions,
        answer_key: Any,
    ) -> None:
        options = prepared.options
        self._options, self._tasks, self._folder = options, prepared.domain.tasks, folder
        self._init, self._step, self._examiners = init, step, examiners
        self._questions, self._answer_key = questions, answer_key
        self.updates, self.updates_per_call = options.updates, options.updates_per_call or 1
        self.evaluations, self.checkpoint_seconds = options.evaluations, options.checkpoint_seconds
        self.config = to_yaml(options)

    def init(self) -> ReasonerState:
        """The state of the run's seed."""
        state: ReasonerState = self._init(jax.random.key(self._options.seed))
        return state

    def step(self, state: ReasonerState) -> tuple[ReasonerState, Any]:
        """A call of the training program."""
        state, info = self._step(state)
        # The state is given away to the next call; its counts are read after that.
        return state, (info, jax.tree.map(lambda x: x.copy(), (state.updates, state.counts)))

    def evaluate(self, state: ReasonerState, call: int) -> list[Marks]:
        """Answers to the questions of each task type."""
        keys = jax.random.split(jax.random.fold_in(self._answer_key, call), len(self._examiners))
        network = state.learner.params.network
        return [
            examine(network, key, items, state.level)
            for examine, key, items in zip(self._examiners, keys, self._questions.items, strict=True)
        ]

    def env_steps(self, state: ReasonerState) -> int:
        """Updates behind a state."""
        return int(state.updates)

    def training_record(self, metrics: Any, seconds: float) -> dict[str, Any]:
        """The line of a call."""
        info, (updates, counts) = metrics
        means = {f"train/{name}": float(np.mean(x)) for name, x in info.items()}
        return {
            "env_steps": int(updates),
            "time/seconds": round(seconds, 4),
            "time/env_steps_per_second": int(updates) / max(seconds, 1e-9),
            "count/tokens_decoded": counter_to_int(counts.decoded),
            "count/tokens_trained": counter_to_int(counts.trained),
            "count/executions": counter_to_int(counts.executions),
            **{name: x for name, x in means.items() if math.isfinite(x)},
        }

    def evaluation_record(self, state: ReasonerState, result: Any, seconds: float) -> dict[str, Any]:
        """The line of an evaluation."""
        record: dict[str, Any] = {"env_steps": int(state.updates), "time/seconds": round(seconds, 4)}
        for task, groups in self.table(result).items():
            for group, row in groups.items():
                kept = {name: x for name, x in row.items() if not name.endswith((" low", " high", "questions"))}
                record |= {f"eval/{task}/{group}/{name}": x for name, x in kept.items()}
        return record

    def table(self, result: Sequence[Marks]) -> dict[str, Any]:
        """pass@k by task type and group of questions."""
        ks = sorted({1, min(8, self._options.evaluation_samples), self._options.evaluation_samples})
        return {
            task: statistics(jax.device_get(marks), self._questions.group, self._questions.names, ks)
            for task, marks in zip(self._tasks, result, strict=True)
        }

    def progress(self, record: dict[str, Any]) -> str | None:
        """The solver's success."""
        played = [task for task in self._tasks if f"train/{task}/solved" in record]
        solved = ", ".join(f"{task} {record[f'train/{task}/solved']:.2f}" for task in played)
        return f"level {record['train/level']:.0f}, solved {solved}"

    def line(self, record: dict[str, Any]) -> str:
        """An evaluation in a line."""
        parts = []
        for task in self._tasks:
            found = [x for name, x in record.items() if name.startswith(f"eval/{task}/") and name.endswith("/greedy")]
            parts.append(f"{task} {' '.join(f'{x:.2f}' for x in found)}")
        return f"right at the first answer, {' and '.join(self._questions.names)}: {', '.join(parts)}"

    def score(self, record: dict[str, Any]) -> float | None:
        """Mean share of right first answers."""
        return float(np.mean([x for name, x in record.items() if name.endswith("/greedy")]))

    def keep(self, state: ReasonerState, better: bool) -> None:
        """Saves the model."""
        folders = [self._folder.path] + [self._folder.file("best")] * better
        for folder in folders:
            folder.mkdir(exist_ok=True)
            save_model(
                folder,
                state.learner.params.network,
                self._options,
                level=int(state.level),
                hold_out=self._options.hold_out,
            )


def _finish(
    prepared: _Prepared,
    state: ReasonerState,
    table: dict[str, Any],
    position: Position,
    folder: RunFolder,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    options, clock = prepared.options, position.clock
    clock.lap()
    summary = {
        "kind": "reason",
        "domain": options.domain,
        "algorithm": options.algorithm,
        "seed": options.seed,
        "updates": options.updates,
        "level": int(state.level),
        "evaluation": table,
        "best": {"updates": position.best_env_steps, "score": position.best_return},
        "tokens_decoded": counter_to_int(state.counts.decoded),
        "tokens_trained": counter_to_int(state.counts.trained),
        "executions": counter_to_int(state.counts.executions),
        "seconds": dataclasses.asdict(clock),
        "params_sha256": params_sha256(state.learner.params.network),
        "devices": machine.describe_devices() | {"used": 1},
        "versions": machine.versions(),
    }
    try:
        plot_success(folder.file("curves.png"), read_metrics(folder.file("metrics.jsonl")), prepared.domain.tasks)
    except (OSError, ValueError, KeyError) as error:
        warn(f"curves could not be made: {error}")
    write_json(folder.file("summary.json"), summary)
    return summary


def table_rows(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of a table of pass@k."""
    rows = []
    for task, groups in table.items():
        for group, row in groups.items():
            ks = [name for name in row if name.startswith("pass@") and not name.endswith((" low", " high"))]
            shown = [f"{name} {row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]" for name in
                     ("greedy", *ks)]  # fmt: skip
            rows.append((f"{task}, {group}", f"{', '.join(shown)} ({row['questions']} questions)"))
    return rows


def _rows(folder: RunFolder, summary: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = summary["seconds"]
    return [
        *table_rows(summary["evaluation"]),
        ("spent", f"{summary['tokens_decoded']:,} tokens written, {summary['tokens_trained']:,} trained on, "
         f"{summary['executions']:,} executions"),
        ("time", f"{seconds['total']:.1f} s: {seconds['compilation']:.1f} compilation, {seconds['training']:.1f} "
         f"training, {seconds['evaluation']:.1f} evaluation"),
        ("model", str(folder.file("model.npz"))),
        ("learning curve", str(folder.file("curves.png"))),
        ("metrics", str(folder.file("metrics.jsonl"))),
        ("summary", str(folder.file("summary.json"))),
        ("examine again", f"azjax reason evaluate {folder.path}"),
    ]  # fmt: skip
