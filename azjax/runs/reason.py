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

from azjax.counters import counter_to_int
from azjax.reasoning.devices import CompiledReasoner, compile_reasoner
from azjax.reasoning.domain import Domain
from azjax.reasoning.examination import Marks, Questions, drawn_questions, make_examiner, statistics, test_questions
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import TokenPolicy
from azjax.reasoning.reasoner import ReasonerState
from azjax.reasoning.splits import LARGEST_SPLIT, Split, make_split
from azjax.runs import machine
from azjax.runs.folder import RunFolder, read_metrics, write_json
from azjax.runs.plots import plot_success
from azjax.runs.policy import params_sha256
from azjax.runs.programs import updates_per_look
from azjax.runs.reason_model import save_model
from azjax.runs.reason_options import ReasonOptions, make_parts, resolve
from azjax.runs.resume import resume_as
from azjax.runs.run_options import to_yaml
from azjax.runs.starting import Done, Kind, Outcome, start
from azjax.runs.train import EVALUATION_SEED
from azjax.training import make_mesh
from azjax.xla import compiler_options

__all__ = ["ReasonResult", "resume", "train"]


class ReasonResult(NamedTuple):
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    policy: TokenPolicy
    params: Any


class ReasonPlan(NamedTuple):
    """A run before anything of it is compiled or written."""

    options: ReasonOptions  # with everything filled in
    domain: Domain
    policy: TokenPolicy
    program: CompiledReasoner
    split: Split | None

    @property
    def state(self) -> Any:
        """Shapes of the train state."""
        return self.program.state


def train(options: ReasonOptions) -> ReasonResult:
    """Trains a reasoner and leaves a folder with everything about the run.

    The folder holds ``config.yaml``, ``metrics.jsonl``, ``model.npz`` and ``model.json``, the same two files of the
    best evaluation in ``best/``, ``checkpoints/``, ``tensorboard/``, ``curves.png`` and ``summary.json``. Steps are
    updates.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    return result_of(start(KIND, options))


def resume(
    path: str | os.PathLike[str], *, steps: int | None = None, devices: int | None = None, quiet: bool = False
) -> ReasonResult:
    """Goes on with a run of the reasoner, whose steps are updates: see ``azjax.runs.resume.resume_as``."""
    return result_of(resume_as(KIND, path, steps=steps, devices=devices, quiet=quiet))


def prepare(options: ReasonOptions, devices: int) -> ReasonPlan:
    """Domain, model and training program of resolved options; nothing is compiled yet.

    Raises:
      ConfigError: if they don't fit together.
    """
    split = None
    if options.domain == "lists":
        split = make_split(LARGEST_SPLIT, share=options.hold_out)
    per_call = options.updates_per_call or updates_per_look(options)
    options = dataclasses.replace(options, devices=devices, updates_per_call=per_call)
    domain, policy, reasoner = make_parts(options, split)
    program = compile_reasoner(reasoner, make_mesh(devices, machine.AXIS), per_call)
    return ReasonPlan(options, domain, policy, program, split)


def describe(plan: ReasonPlan) -> str:
    """One line on what is about to run."""
    options = plan.options
    count = sum(x.size for x in jax.tree.leaves(plan.state.learner.params.network))
    return (
        f"reasoner on {options.domain}: {options.algorithm}, model of {count:,} parameters, {options.updates:,} "
        f"updates of {options.reasoner.batch} proposals and answers of each of {len(plan.domain.tasks)} task types on "
        f"{options.devices} device{'s' * (options.devices != 1)}"
    )


def build_job(plan: ReasonPlan, folder: RunFolder) -> tuple[ReasonJob, float]:
    """Compiles the programs; and how long that took."""
    start = time.monotonic()
    options, domain = plan.options, plan.domain
    key = jax.random.key(options.seed ^ EVALUATION_SEED)
    question_key, answer_key = jax.random.split(key)
    if isinstance(domain, ListDomain) and plan.split is not None:
        asked = test_questions(domain, plan.split, question_key, number=options.evaluation_questions)
    else:
        asked = drawn_questions(domain, question_key, number=options.evaluation_questions)
    shapes = (plan.state.learner.params.network, plan.state.level)
    network, level = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)  # on a single device
    soon = compiler_options(jax.devices()[0].platform, soon=True)
    with machine.compiling() as pool:
        step = pool.submit(plan.program.step.lower(plan.state).compile)  # type: ignore[attr-defined]
        compiling = []
        for task, items in enumerate(asked.items):
            examiner = make_examiner(domain, plan.policy, task, samples=options.evaluation_samples)
            lowered = jax.jit(examiner, compiler_options=soon).lower(network, answer_key, items, level)
            compiling.append(pool.submit(lowered.compile))
        examiners = [examiner.result() for examiner in compiling]
        stepped = step.result()
    job = ReasonJob(plan, folder, plan.program.init, stepped, examiners, asked, answer_key)
    return job, time.monotonic() - start


class ReasonJob:
    """The training of one reasoner, as the loop sees it; a step is an update."""

    def __init__(
        self,
        plan: ReasonPlan,
        folder: RunFolder,
        init: Callable[..., Any],
        step: Callable[..., Any],
        examiners: Sequence[Callable[..., Marks]],
        questions: Questions,
        answer_key: Any,
    ) -> None:
        options = plan.options
        self._options, self._tasks, self._folder = options, plan.domain.tasks, folder
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
        network, level = jax.device_get((state.learner.params.network, state.level))  # a single device answers
        return [
            examine(network, key, items, level)
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


def finish(plan: ReasonPlan, job: ReasonJob, outcome: Outcome) -> dict[str, Any]:
    """Draws the curves, without which a run can do; then the summary, which says that it is over."""
    state, marks, position, folder, warn = outcome
    options, clock = plan.options, position.clock
    clock.lap()
    summary = {
        "kind": options.kind,
        "domain": options.domain,
        "algorithm": options.algorithm,
        "seed": options.seed,
        "updates": options.updates,
        "level": int(state.level),
        "evaluation": job.table(marks),
        "best": {"updates": position.best_env_steps, "score": position.best_return},
        "tokens_decoded": counter_to_int(state.counts.decoded),
        "tokens_trained": counter_to_int(state.counts.trained),
        "executions": counter_to_int(state.counts.executions),
        "seconds": dataclasses.asdict(clock),
        "params_sha256": params_sha256(state.learner.params.network),
        "devices": machine.describe_devices() | {"used": options.devices},
        "versions": machine.versions(),
    }
    try:
        plot_success(folder.file("curves.png"), read_metrics(folder.file("metrics.jsonl")), plan.domain.tasks)
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


def summary_table(folder: RunFolder, summary: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the summary on the screen."""
    seconds = summary["seconds"]
    title = f"reasoner on {summary['domain']}, seed {summary['seed']}"
    return title, [
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


def result_of(done: Done) -> ReasonResult:
    """What a run gives to its caller."""
    return ReasonResult(done.folder, done.summary, done.plan.policy, done.state.learner.params.network)


KIND = Kind(
    options=ReasonOptions,
    resolve=resolve,
    prepare=prepare,
    describe=describe,
    build=build_job,
    finish=finish,
    table=summary_table,
)
