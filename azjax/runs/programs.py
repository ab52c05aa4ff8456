"""The programs of a run, from its options: environment and learner, traced, then compiled side by side."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from azjax.algorithms import make_learner
from azjax.config import require
from azjax.envs import Environment, make_env
from azjax.envs.lanes import choose_vectorize, default_pool
from azjax.evaluation import Episodes, compile_evaluator, make_evaluator
from azjax.runs import machine
from azjax.runs.options import TrainOptions
from azjax.runs.replay import has_scene
from azjax.runs.run_options import RunOptions
from azjax.training import CompiledTrainer, Metrics, Trainer, TrainState, compile, make_mesh, make_trainer
from azjax.types import Learner


class Programs(NamedTuple):
    """What a run executes, compiled."""

    init: Callable[[Any], TrainState]
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Any], Episodes]
    updates_per_call: int
    seconds: float


class Plan(NamedTuple):
    """A run before anything of it is compiled or written."""

    options: TrainOptions  # those ``as_used``
    env: Environment
    learner: Learner
    mesh: Mesh
    compiled: CompiledTrainer
    seconds: float  # spent on tracing so far

    @property
    def state(self) -> Any:
        """Shapes of the train state."""
        return self.compiled.state


def choose_devices(options: RunOptions) -> int:
    """The number of devices to use: those asked for, or as many as lanes and minibatches can be divided among."""
    available = jax.device_count()
    if options.devices is not None:
        require(
            jax.process_count() == 1 or options.devices == available,
            f"{options.devices} devices asked for, but the processes have {available}, and each must take part; leave "
            "it out",
        )
        require(
            options.devices <= available,
            f"{options.devices} devices asked for, but JAX sees {available} ({jax.devices()[0].platform}); "
            "ask for no more than that, or leave it out",
        )
        return options.devices
    if jax.process_count() > 1:  # a process without a device in the mesh could not take part
        options.check_devices(available)
        return available
    for count in range(available, 1, -1):
        if options.fits(count):
            return count
    options.check_devices(1)
    return 1


def as_used(options: TrainOptions, devices: int) -> TrainOptions:
    """The options with everything filled in that was left to be chosen, so that the same run can be started again."""
    return dataclasses.replace(
        options,
        devices=devices,
        updates_per_call=options.updates_per_call or updates_per_look(options),
        reset_pool=options.reset_pool or default_pool(options.lanes, options.env_steps_per_update),
    )


class RolloutSize(Protocol):
    """How large a rollout is."""

    @property
    def lanes(self) -> int:
        """On all devices together."""
        ...

    @property
    def rollout_length(self) -> int:
        """Decisions of each of them."""
        ...

    @property
    def devices(self) -> int | None:
        """That share the lanes."""
        ...


def check_memory(
    options: RolloutSize, env: Environment, mend: str = "use fewer lanes or a shorter rollout-length"
) -> None:
    """Raises ``ConfigError`` if one rollout alone is larger than the memory that is free."""
    free = machine.free_memory(jax.devices()[: options.devices])
    observation = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(env.observation_spec))
    numbers = 2 * (observation + env.action_spec.size) + 5  # observation and successor, action and raw action, scalars
    need = 4 * options.lanes * options.rollout_length * numbers
    require(
        free is None or need <= free,
        f"a rollout of {options.lanes} lanes x {options.rollout_length} decisions takes {need / 2**30:.1f} GiB or "
        f"more, and {(free or 0) / 2**30:.1f} GiB of memory are free; {mend}",
    )


def describe(plan: Plan) -> str:
    """One line on what is about to run."""
    options = plan.options
    platform, devices = jax.devices()[0].platform, options.devices or 1
    return (
        f"{options.algorithm} on {options.env} ({options.backend}): {options.lanes} lanes on {devices} {platform} "
        f"device{'s' * (devices > 1)}, {options.updates} updates of {options.env_steps_per_update:,} environment steps"
    )


def trainer_of(options: TrainOptions, env: Environment, learner: Learner) -> Trainer:
    """The training program of the options, on the device axis of the command line."""
    return make_trainer(
        env,
        learner,
        lanes=options.lanes,
        rollout_length=options.rollout_length,
        action_repeat=options.action_repeat,
        reset_pool=options.reset_pool,
        stagger=options.stagger,
        axis_name=machine.AXIS,
        vectorize=choose_vectorize(options.vectorize),
    )


def plan(options: TrainOptions, devices: int) -> Plan:
    """Environment, learner and traced training program of resolved options; nothing is compiled yet.

    Raises:
      ConfigError: if something doesn't fit together, or not into memory.
    """
    start = time.monotonic()
    with machine.rare_collection():
        env = make_env(options.env, options.backend, episode_length=options.episode_length, randomize=options.randomize)
        options = as_used(options, devices)
        check_memory(options, env)
        learner = make_learner(options.learner, axis_name=machine.AXIS)
        mesh = make_mesh(devices, machine.AXIS)
        compiled = compile(trainer_of(options, env, learner), mesh, options.updates_per_call or 1)
    return Plan(options, env, learner, mesh, compiled, time.monotonic() - start)


def build(plan: Plan) -> Programs:
    """Compiles the programs side by side."""
    start = time.monotonic()
    options, compiled = plan.options, plan.compiled
    evaluate = make_evaluator(
        plan.env,
        plan.learner.act,
        lanes=-(-options.evaluation_episodes // plan.mesh.size),
        action_repeat=options.action_repeat,
        record=getattr(plan.env, "poses", None) if has_scene(plan.env) else None,
        axis_name=machine.AXIS,
        vectorize=choose_vectorize(options.vectorize),
    )
    key = jax.random.key(options.seed)
    with machine.quiet_loading(), machine.rare_collection(), ThreadPoolExecutor() as pool:
        step = pool.submit(compiled.step.lower(compiled.state).compile)
        init = pool.submit(compiled.init.lower(key).compile)
        evaluation = compile_evaluator(evaluate, plan.mesh).lower(compiled.state.learner.params, key)
        init.result()  # of three programs compiled at once, the memory at the peak is a third more
        result = Programs(init.result(), step.result(), evaluation.compile(), options.updates_per_call or 1, 0.0)
    return result._replace(seconds=plan.seconds + time.monotonic() - start)


def updates_per_look(options: RunOptions) -> int:
    """Updates per call: few enough for about a second each, and for every evaluation to come in its turn."""
    most = min(options.most_updates_per_call, max(1, options.updates // options.evaluations))
    return max(n for n in range(1, most + 1) if options.updates % n == 0)
