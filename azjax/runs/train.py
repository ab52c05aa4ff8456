"""One training run from options to files: what ``azjax train`` does, callable from a notebook or a script."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml

from azjax.config import require
from azjax.counters import counter_to_int
from azjax.envs import Environment, make_env
from azjax.envs.lanes import choose_vectorize, default_pool
from azjax.evaluation import Episodes, compile_evaluator, make_evaluator, summarize
from azjax.ppo import ppo
from azjax.runs import machine
from azjax.runs.console import RunConsole
from azjax.runs.folder import MetricsFile, RunFolder, check_free, read_metrics, write_json, write_text
from azjax.runs.options import TrainOptions, resolve, to_plain
from azjax.runs.plots import plot_curves
from azjax.runs.policy import params_sha256, save_policy
from azjax.runs.replay import write_replay
from azjax.training import Metrics, Trainer, TrainState, compile, make_mesh, make_trainer
from azjax.types import Learner

# The evaluation's seed is the run's with these bits flipped, so that it shares no key with training.
_EVALUATION_SEED = 0x5EED_0000
_SECONDS_PER_LOOK = 1.0


class RunResult(NamedTuple):
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    learner: Learner
    params: Any
    env: Environment


class Programs(NamedTuple):
    """What a run executes, compiled."""

    init: Callable[[Any], TrainState]
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Any], Episodes]
    updates_per_call: int
    seconds: float


def train(options: TrainOptions) -> RunResult:
    """Trains a policy and leaves a folder with everything about the run.

    The folder holds ``config.yaml``, ``metrics.jsonl``, ``policy.npz`` and ``policy.json``, ``curves.png``,
    ``replay.html`` and ``summary.json``.

    Raises:
      ConfigError: for options that can't work, before anything is compiled or written.
    """
    started = time.monotonic()
    options = resolve(options)
    options.validate()
    if options.run is not None:
        check_free(options.run)
    if options.deterministic:
        machine.ask_for_determinism()
    machine.split_host(options.fits, options.devices)
    devices = choose_devices(options)
    if options.cache:
        machine.use_cache()
    else:
        machine.use_no_cache()
    with machine.rare_collection():
        env = make_env(options.env, options.backend, episode_length=options.episode_length, randomize=options.randomize)
    options = as_used(options, devices)
    check_memory(options, env)
    learner = ppo(options.ppo, axis_name=machine.AXIS)
    # Whether the learner fits the environment (names of observations) must be known before anything is written.
    jax.eval_shape(lambda key: learner.init(key, env.observation_spec, env.action_spec), jax.random.key(0))
    folder = RunFolder.numbered(default_folder(options)) if options.run is None else RunFolder(options.run)
    options = dataclasses.replace(options, run=folder.path)
    write_text(folder.file("config.yaml"), yaml.safe_dump(to_plain(options), sort_keys=False))
    with RunConsole(options.updates * options.env_steps_per_update, quiet=options.quiet) as console:
        console.say(describe(options))
        with console.waiting("compiling"), machine.quiet_loading(), machine.rare_collection():
            programs = build(options, env, learner)
        save = functools.partial(
            save_policy, folder.path, env=env, config=options.ppo, settings=policy_settings(options)
        )
        state, episodes, clock = run_updates(options, programs, folder, console, save)
        summary = finish(options, env, state, episodes, clock, programs, folder, started)
        console.summary(*summary_table(folder, summary))
    return RunResult(folder.path, summary, learner, state.learner.params, env)


def default_folder(options: TrainOptions) -> Path:
    """``runs/ENV-ALGORITHM-SEED-TIME`` below the current folder."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{options.env.replace(':', '-')}-{options.algorithm}-{options.seed}-{stamp}"


def choose_devices(options: TrainOptions) -> int:
    """The number of devices to use: those asked for, or as many as lanes and minibatches can be divided among."""
    available = jax.device_count()
    if options.devices is not None:
        require(
            options.devices <= available,
            f"{options.devices} devices asked for, but JAX sees {available} ({jax.devices()[0].platform}); "
            "ask for no more than that, or leave it out",
        )
        return options.devices
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


def check_memory(options: TrainOptions, env: Environment) -> None:
    """Raises ``ConfigError`` if one rollout alone is larger than the memory that is free."""
    free = machine.free_memory(jax.devices()[: options.devices])
    observation = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(env.observation_spec))
    numbers = 2 * (observation + env.action_spec.size) + 5  # observation and successor, action and raw action, scalars
    need = 4 * options.lanes * options.rollout_length * numbers
    require(
        free is None or need <= free,
        f"a rollout of {options.lanes} lanes x {options.rollout_length} decisions takes {need / 2**30:.1f} GiB or "
        f"more, and {(free or 0) / 2**30:.1f} GiB of memory are free; use fewer lanes or a shorter rollout-length",
    )


def describe(options: TrainOptions) -> str:
    """One line on what is about to run."""
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


def build(options: TrainOptions, env: Environment, learner: Learner) -> Programs:
    """Traces the programs one after the other and compiles them side by side; the options are those ``as_used``."""
    start = time.monotonic()
    devices, per_call = options.devices or 1, options.updates_per_call or 1
    trainer = trainer_of(options, env, learner)
    mesh = make_mesh(devices, machine.AXIS)
    compiled = compile(trainer, mesh, per_call)
    evaluate = make_evaluator(
        env,
        learner.act,
        lanes=-(-options.evaluation_episodes // devices),
        action_repeat=options.action_repeat,
        record=getattr(env, "poses", None) if has_scene(env) else None,
        axis_name=machine.AXIS,
        vectorize=choose_vectorize(options.vectorize),
    )
    key = jax.random.key(options.seed)
    with ThreadPoolExecutor() as pool:
        step = pool.submit(compiled.step.lower(compiled.state).compile)
        init = pool.submit(compiled.init.lower(key).compile)
        evaluation = compile_evaluator(evaluate, mesh).lower(compiled.state.learner.params, key)
        init.result()  # of three programs compiled at once, the memory at the peak is a third more
        result = Programs(init.result(), step.result(), evaluation.compile(), per_call, 0.0)
    return result._replace(seconds=time.monotonic() - start)


def has_scene(env: Environment) -> bool:
    """Whether a replay of this environment can be drawn."""
    scene = getattr(env, "scene", None)
    return callable(scene) and scene() is not None


def updates_per_look(options: TrainOptions) -> int:
    """Updates per call: few enough for about a second each on a CPU, and for every evaluation to come in its turn."""
    guess = 20_000.0 if jax.devices()[0].platform == "cpu" else 500_000.0
    most = max(1, int(_SECONDS_PER_LOOK * guess / options.env_steps_per_update))
    most = min(most, max(1, options.updates // options.evaluations))
    return max(n for n in range(1, most + 1) if options.updates % n == 0)


class Clock:
    """Seconds of training and of evaluation, apart."""

    def __init__(self) -> None:
        self.training = 0.0
        self.evaluation = 0.0
        self._mark = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds


def run_updates(
    options: TrainOptions, programs: Programs, folder: RunFolder, console: RunConsole, save: Callable[[Any], object]
) -> tuple[TrainState, Episodes, Clock]:
    """The loop on the host: call, look at the metrics of the call before, evaluate and save now and then."""
    state = jax.block_until_ready(programs.init(jax.random.key(options.seed)))
    evaluation_key = jax.random.key(options.seed ^ _EVALUATION_SEED)
    calls = options.updates // programs.updates_per_call
    due = evaluation_calls(calls, options.evaluations)
    metrics_file = MetricsFile(folder.file("metrics.jsonl"))
    clock = Clock()
    recent: float | None = None
    episodes: Episodes | None = None
    waiting: Metrics | None = None

    def look(metrics: Metrics, seconds: float) -> None:
        nonlocal recent
        record = training_record(jax.device_get(metrics), options, seconds)
        metrics_file.write(record)
        recent = record.get("train/episode_return", recent)
        console.progress(record["env_steps"], record["time/env_steps_per_second"], recent)

    try:
        for call in range(1, calls + 1):
            state, metrics = programs.step(state)
            if waiting is not None:
                look(waiting, clock.training)
            # The host wrote about the call before while the device was busy with this one.
            jax.block_until_ready(metrics.reward_mean)
            clock.training += clock.lap()
            waiting = metrics
            if call in due:
                look(metrics, clock.training)
                waiting = None
                episodes = jax.block_until_ready(
                    programs.evaluate(state.learner.params, jax.random.fold_in(evaluation_key, call))
                )
                episodes = first_episodes(episodes, options.evaluation_episodes)
                record = evaluation_record(state, episodes, clock.training)
                metrics_file.write(record)
                save(state.learner.params)
                clock.evaluation += clock.lap()
                console.say(f"{record['env_steps']:>12,} environment steps: {evaluation_line(record)}")
    finally:
        metrics_file.close()
    require(episodes is not None, "a run needs at least one update and one evaluation")
    return state, episodes, clock  # type: ignore[return-value]


def policy_settings(options: TrainOptions) -> dict[str, Any]:
    """What a policy file says about the run beside the learner's configuration."""
    return {
        "episode_length": options.episode_length,
        "action_repeat": options.action_repeat,
        "randomize": options.randomize,
    }


def first_episodes(episodes: Episodes, count: int) -> Episodes:
    """As many episodes as were asked for: devices play equally many, so there may be some more."""
    kept: Episodes = jax.tree.map(lambda x: np.asarray(x)[:count], episodes._replace(frames=None))
    return kept._replace(frames=episodes.frames)


def evaluation_calls(calls: int, evaluations: int) -> set[int]:
    """The calls after which to evaluate: spread evenly, the last one included."""
    count = min(evaluations, calls)
    return {-(-calls * i // count) for i in range(1, count + 1)}


def training_record(metrics: Metrics, options: TrainOptions, seconds: float) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` for one call; what no episode ended for is left out."""
    env_steps = counter_to_int(jax.tree.map(lambda x: x[-1], metrics.env_steps))
    totals = metrics.episodes
    count = int(totals.ended.sum())
    record: dict[str, Any] = {
        "env_steps": env_steps,
        "time/seconds": round(seconds, 4),
        "time/env_steps_per_second": env_steps / max(seconds, 1e-9),
        "train/episodes": count,
        "train/reward_mean": float(metrics.reward_mean.mean()) / options.action_repeat,
        "train/nonfinite_lanes": int(metrics.nonfinite_lanes.sum()),
        "train/reset_reuse": int(metrics.reset_reuse.sum()),
    }
    if count:
        record |= {
            "train/episode_return": float(totals.return_sum.sum()) / count,
            "train/episode_return_min": float(totals.return_min.min()),
            "train/episode_return_max": float(totals.return_max.max()),
            "train/episode_length": float(totals.length_sum.sum()) / count,
        }
    record |= {f"learner/{name}": float(np.mean(value)) for name, value in metrics.learner.items()}
    return {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}


def evaluation_record(state: TrainState, episodes: Episodes, seconds: float) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` for one evaluation."""
    statistics = evaluation_statistics(episodes)
    return {
        "env_steps": counter_to_int(state.env_steps),
        "time/seconds": round(seconds, 4),
        "eval/episodes": statistics["episodes"],
        "eval/nonfinite_episodes": statistics["nonfinite_episodes"],
        **{f"eval/episode_{k}": v for k, v in statistics.items() if k.startswith(("return_", "length_"))},
    }


def evaluation_statistics(episodes: Episodes) -> dict[str, Any]:
    """Statistics of the episodes; only their numbers if the physics broke in all of them, which must not end a run."""
    broken = np.asarray(episodes.nonfinite) | ~np.isfinite(episodes.episode_return)
    if broken.all():
        return {"episodes": 0, "nonfinite_episodes": int(broken.sum()), "returns": []}
    return summarize(episodes)


def evaluation_line(record: dict[str, Any]) -> str:
    """What the console says of an evaluation."""
    if not record["eval/episodes"]:
        return "the physics broke in every evaluation episode"
    return (
        f"evaluation return {record['eval/episode_return_mean']:.1f} ± {record['eval/episode_return_std']:.1f}, "
        f"length {record['eval/episode_length_mean']:.0f}"
    )


def finish(
    options: TrainOptions,
    env: Environment,
    state: TrainState,
    episodes: Episodes,
    clock: Clock,
    programs: Programs,
    folder: RunFolder,
    started: float,
) -> dict[str, Any]:
    """Writes the summary, then picture and replay; the policy is there since the last evaluation."""
    env_steps = counter_to_int(state.env_steps)
    summary = {
        "env": options.env,
        "backend": options.backend,
        "algorithm": options.algorithm,
        "seed": options.seed,
        "env_steps": env_steps,
        "updates": options.updates,
        "evaluation": evaluation_statistics(episodes),
        "env_steps_per_second": env_steps / clock.training,
        "seconds": {
            "compilation": programs.seconds,
            "training": clock.training,
            "evaluation": clock.evaluation,
            "total": time.monotonic() - started,
        },
        "params_sha256": params_sha256(state.learner.params),
        "replay": episodes.frames is not None,
        "devices": machine.describe_devices() | {"used": options.devices},
        "versions": machine.versions(),
    }
    write_json(folder.file("summary.json"), summary)
    title = f"{options.env} ({options.backend}), {options.algorithm}, seed {options.seed}"
    plot_curves(folder.file("curves.png"), read_metrics(folder.file("metrics.jsonl")), title=title)
    if episodes.frames is not None:
        save_replay(folder.file("replay.html"), env, episodes, options.action_repeat, title)
    return summary


def save_replay(path: Path, env: Any, episodes: Episodes, action_repeat: int, title: str) -> None:
    """Writes the first evaluation episode as a page, up to where its poses break if they do."""
    frames: Any = episodes.frames
    positions, rotations = (np.asarray(x) for x in frames.recorded)
    decisions = -(-int(episodes.length[0]) // action_repeat)
    last = decisions + 1
    finite = np.isfinite(positions[:last]).all(axis=(1, 2)) & np.isfinite(rotations[:last]).all(axis=(1, 2))
    if not finite.all():
        last = max(1, int(finite.argmin()))
    scene = env.scene()
    write_replay(
        path,
        dataclasses.replace(scene, dt=scene.dt * action_repeat),
        positions[:last],
        rotations[:last],
        title=title,
        rewards=np.asarray(frames.reward)[:last],
        terminated=bool(episodes.terminated[0]),
    )


def return_rows(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows about the last evaluation."""
    if not evaluation["episodes"]:
        return [("episode return", "unknown: the physics broke in every evaluation episode")]
    e = evaluation
    return [
        (
            "episode return",
            f"{e['return_mean']:.1f} ± {e['return_std']:.1f} (mean ± std of {e['episodes']} deterministic episodes)",
        ),
        (
            "",
            f"IQM {e['return_iqm']:.1f}, 95 % interval {e['return_iqm_low']:.1f} to {e['return_iqm_high']:.1f}; "
            f"length {e['length_mean']:.0f}",
        ),
    ]


def summary_table(folder: RunFolder, summary: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Title and rows of the summary on the screen."""
    evaluation, seconds = summary["evaluation"], summary["seconds"]
    rows = [
        *return_rows(evaluation),
        ("trained", f"{summary['env_steps']:,} environment steps in {seconds['training']:.1f} s "
         f"({summary['env_steps_per_second']:,.0f} steps/s)"),
        ("time", f"{seconds['total']:.1f} s: {seconds['compilation']:.1f} compilation, {seconds['training']:.1f} "
         f"training, {seconds['evaluation']:.1f} evaluation"),
        ("policy", str(folder.file("policy.npz"))),
        ("learning curve", str(folder.file("curves.png"))),
    ]  # fmt: skip
    if summary["replay"]:
        rows.append(("3D replay", f"{folder.file('replay.html')} (open it in a browser)"))
    rows += [
        ("metrics", str(folder.file("metrics.jsonl"))),
        ("summary", str(folder.file("summary.json"))),
        ("evaluate again", f"azjax evaluate {folder.path}"),
    ]
    return f"{summary['algorithm']} on {summary['env']} ({summary['backend']}), seed {summary['seed']}", rows
