"""A self-play run from options to files: what ``azjax selfplay`` does, callable from a notebook or a script."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from azjax.algorithms import make_learner
from azjax.counters import counter_to_int
from azjax.envs.lanes import choose_vectorize
from azjax.evaluation import Episodes, compile_evaluator, make_evaluator
from azjax.runs import machine
from azjax.runs.folder import RunFolder
from azjax.runs.programs import check_memory, updates_per_look
from azjax.runs.records import first_episodes
from azjax.runs.resume import resume_as
from azjax.runs.run_options import to_yaml
from azjax.runs.selfplay_options import SelfPlayOptions, resolve_selfplay
from azjax.runs.selfplay_records import held_out_line, held_out_record, selfplay_record, successes_of
from azjax.runs.selfplay_summary import finish, summary_table
from azjax.runs.starting import Kind, start
from azjax.runs.train import EVALUATION_SEED, RunResult, result_of, save_policies
from azjax.selfplay.bodies import make_task_env, task_family, wider_family
from azjax.selfplay.heldout import HeldOut, held_out_grid, repeat_tasks
from azjax.selfplay.proposers.choices import make_proposer
from azjax.selfplay.tasks import TaskEnvironment
from azjax.selfplay.trainer import SelfPlayMetrics, SelfPlayState, make_selfplay
from azjax.training import CompiledTrainer, compile, make_mesh
from azjax.types import Learner


class SelfPlayPlan(NamedTuple):
    """A run before anything of it is compiled or written."""

    options: SelfPlayOptions  # with everything filled in
    env: TaskEnvironment
    learner: Learner
    held_out: HeldOut
    mesh: Mesh
    compiled: CompiledTrainer
    seconds: float  # spent on tracing so far

    @property
    def state(self) -> Any:
        """Shapes of the train state."""
        return self.compiled.state


class SelfPlayPrograms(NamedTuple):
    """What a run executes, compiled."""

    init: Callable[[Any], SelfPlayState]
    step: Callable[[SelfPlayState], tuple[SelfPlayState, SelfPlayMetrics]]
    evaluate: Callable[..., Episodes]  # of parameters, key, first episode and the one recorded
    seconds: float


def selfplay(options: SelfPlayOptions) -> RunResult:
    """Trains a solver and a proposer of tasks, and leaves a folder with everything about the run.

    The folder holds what that of a training run does, and ``tasks.npz``, ``heldout.npz`` and ``selfplay.html``.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
      RunInterrupted: if a signal stopped it; ``resume`` goes on.
    """
    return result_of(start(KIND, options))


def resume(
    path: str | os.PathLike[str], *, steps: int | None = None, devices: int | None = None, quiet: bool = False
) -> RunResult:
    """Goes on with a self-play run: see ``azjax.runs.resume.resume_as``."""
    return result_of(resume_as(KIND, path, steps=steps, devices=devices, quiet=quiet))


def prepare(options: SelfPlayOptions, devices: int) -> SelfPlayPlan:
    """Body, proposer, learner and the traced program of resolved options; nothing is compiled yet.

    Raises:
      ConfigError: if something doesn't fit together, or not into memory.
    """
    began = time.monotonic()
    with machine.rare_collection():
        own = None if options.env == "pointmass" else options.backend
        env = make_task_env(options.env, options.types, backend=own)
        options = dataclasses.replace(
            options, devices=devices, updates_per_call=options.updates_per_call or updates_per_look(options)
        )
        check_memory(options, env, "use fewer proposals or attempts")
        learner = make_learner(options.learner, axis_name=machine.AXIS)
        trainer = make_selfplay(
            env,
            learner,
            make_proposer(options.proposer, env.family, options.proposer_settings, axis_name=machine.AXIS),
            options.config,
            action_repeat=options.action_repeat,
            axis_name=machine.AXIS,
            vectorize=choose_vectorize(options.vectorize),
        )
        family = task_family(options.env, options.types)
        held_out = held_out_grid(family, wider_family(family), options.evaluation_tasks)
        mesh = make_mesh(devices, machine.AXIS)
        program = compile(trainer, mesh, options.updates_per_call or 1)
    return SelfPlayPlan(options, env, learner, held_out, mesh, program, time.monotonic() - began)


def build(plan: SelfPlayPlan) -> SelfPlayPrograms:
    """Compiles the programs side by side."""
    began = time.monotonic()
    options, program = plan.options, plan.compiled
    evaluate = make_evaluator(
        plan.env,
        plan.learner.act,
        lanes=-(-options.evaluation_tasks * options.evaluation_episodes // plan.mesh.size),
        action_repeat=options.action_repeat,
        record=plan.env.poses,
        outcome=plan.env.outcome,
        episode_params=repeat_tasks(plan.held_out, options.evaluation_episodes),
        axis_name=machine.AXIS,
        vectorize=choose_vectorize(options.vectorize),
    )
    key = jax.random.key(options.seed)
    first = np.int32(0)
    with machine.compiling() as pool:
        step = pool.submit(program.step.lower(program.state).compile)
        init = pool.submit(program.init.lower(key).compile)
        evaluation = compile_evaluator(evaluate, plan.mesh).lower(program.state.learner.params, key, first, first)
        init.result()
        programs = SelfPlayPrograms(init.result(), step.result(), pool.submit(evaluation.compile).result(), 0.0)
    return programs._replace(seconds=plan.seconds + time.monotonic() - began)


def build_job(plan: SelfPlayPlan, folder: RunFolder) -> tuple[SelfPlayJob, float]:
    """Compiles the programs; how long that and tracing took."""
    programs, options = build(plan), plan.options
    settings = {"episode_length": options.episode_length, "action_repeat": options.action_repeat, "randomize": False}

    def save(params: Any, better: bool) -> None:
        save_policies(folder, plan.env, params, options.learner, settings, better)

    return SelfPlayJob(plan, programs, save), programs.seconds


def describe(plan: SelfPlayPlan) -> str:
    """One line on what is about to run."""
    options = plan.options
    platform, devices = jax.devices()[0].platform, options.devices or 1
    return (
        f"self-play on {options.env} ({options.backend}), tasks {', '.join(options.types)}: {options.proposer} "
        f"proposer, solver {options.algorithm}; {options.proposals} proposals x {options.attempts} attempts on "
        f"{devices} {platform} device{'s' * (devices > 1)}, {options.updates} updates of "
        f"{options.env_steps_per_update:,} environment steps"
    )


class SelfPlayJob:
    """Self-play, as the loop sees it."""

    def __init__(self, plan: SelfPlayPlan, programs: SelfPlayPrograms, save: Callable[[Any, bool], object]) -> None:
        options = plan.options
        self.plan, self._programs, self._save = plan, programs, save
        self.updates, self.updates_per_call = options.updates, options.updates_per_call or 1
        self.evaluations, self.checkpoint_seconds = options.evaluations, options.checkpoint_seconds
        self.config = to_yaml(options)

    def init(self) -> SelfPlayState:
        """The state of the run's seed."""
        return self._programs.init(jax.random.key(self.plan.options.seed))

    def step(self, state: SelfPlayState) -> tuple[SelfPlayState, SelfPlayMetrics]:
        """A call of the training program."""
        return self._programs.step(state)

    def evaluate(self, state: SelfPlayState, call: int) -> Episodes:
        """Full episodes of the deterministic policy at the held-out tasks; the same ones in every run."""
        return self.play(state, 0)

    def play(self, state: SelfPlayState, recorded: int) -> Episodes:
        """The episodes of an evaluation, with the frames of one of them."""
        options = self.plan.options
        key = jax.random.key(EVALUATION_SEED)
        episodes = self._programs.evaluate(state.learner.params, key, np.int32(0), np.int32(recorded))
        return first_episodes(episodes, options.evaluation_tasks * options.evaluation_episodes)

    def env_steps(self, state: SelfPlayState) -> int:
        """Environment steps behind a state, those of verification included."""
        return counter_to_int(state.env_steps)

    def training_record(self, metrics: SelfPlayMetrics, seconds: float) -> dict[str, Any]:
        """The line of a call."""
        return selfplay_record(metrics, self.plan.options, seconds)

    def evaluation_record(self, state: SelfPlayState, result: Episodes, seconds: float) -> dict[str, Any]:
        """The line of an evaluation."""
        success = successes_of(result, self.plan.options.evaluation_tasks)
        return held_out_record(state, result, success, self.plan.held_out, self.plan.env.family, seconds)

    def progress(self, record: dict[str, Any]) -> str | None:
        """How many attempts at proposed tasks succeed."""
        return f"success at proposed tasks {record['selfplay/success']:.2f}"

    def line(self, record: dict[str, Any]) -> str:
        """An evaluation in a line."""
        return held_out_line(record)

    def score(self, record: dict[str, Any]) -> float | None:
        """Mean success at the held-out tasks inside of the training range."""
        return record["heldout/success"]  # type: ignore[no-any-return]

    def keep(self, state: SelfPlayState, better: bool) -> None:
        """Saves the policy."""
        self._save(state.learner.params, better)


KIND = Kind(
    options=SelfPlayOptions,
    resolve=resolve_selfplay,
    prepare=prepare,
    describe=describe,
    build=build_job,
    finish=finish,
    table=summary_table,
)
