"""One measurement in one process: ``python -m benchmarks.cases NAME '{"option": value}'`` prints a JSON line.

A case is a function of keyword arguments that returns plain numbers. ``devices`` is settled before JAX starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.process import peak_memory, since_process_start
from benchmarks.timing import compile_timed, time_chain

AXIS = "lanes"


def _mesh_program(step: Callable[[Any], Any], state: Any, devices: int) -> tuple[Any, Any]:
    """``step`` on batch-last state divided among the devices, donated; and the state where it belongs."""
    from jax.sharding import NamedSharding

    import azjax
    from azjax.training import lane_specs, resize_empty
    from azjax.xla import compiler_options

    options = compiler_options(jax.devices()[0].platform)
    if devices == 1:
        return jax.jit(step, donate_argnums=0, compiler_options=options), state

    lanes = jax.tree.leaves(state)[-1].shape[-1]

    def on_device(state: Any) -> Any:
        return resize_empty(step(resize_empty(state, lanes // devices)), lanes)

    mesh = azjax.make_mesh(devices, AXIS)
    specs = lane_specs(state, AXIS)
    program = jax.shard_map(on_device, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)
    state = jax.device_put(state, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    return jax.jit(program, donate_argnums=0, compiler_options=options), state


def vectorization(name: str) -> Any:
    """``minor`` as the command line uses it here, ``whole``: the same without blocks, or ``vmap``."""
    import azjax
    from azjax.envs.lanes import choose_vectorize

    return azjax.minor_vmap if name == "whole" else choose_vectorize(name)


def physics(
    env: str = "ant",
    backend: str | None = None,
    lanes: int = 1024,
    devices: int = 2,
    vectorize: str = "minor",
    steps: int = 16,
    policy: bool = False,
    repeats: int = 15,
) -> dict[str, Any]:
    """Environment steps/s with random actions, or with those of an untrained policy; nothing is reset or learned."""
    import azjax
    from azjax.envs.lanes import batch_first, reset_lanes, to_environment

    environment = azjax.make_env(env, backend)
    mapped = vectorization(vectorize)
    states = jax.jit(lambda key: reset_lanes(environment, mapped, jax.random.split(key, lanes)))(jax.random.key(0))
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), lanes)).T
    learner = azjax.ppo()
    params = learner.init(jax.random.key(2), environment.observation_spec, environment.action_spec).params
    size = environment.action_spec.size

    def choose(states: Any, keys: Any) -> Any:
        if not policy:
            return jax.vmap(lambda key: jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0))(keys)
        observation = batch_first(states.observation)
        return jax.vmap(lambda o, k: learner.act(params, o, (), k)[0])(observation, keys)

    def step(carry: Any) -> Any:
        def once(carry: Any, t: Any) -> Any:
            states, raw = carry
            keys = jax.vmap(lambda k: jax.random.fold_in(k, t))(jax.random.wrap_key_data(raw.T))
            return (mapped(environment.step)(states, to_environment(environment, choose(states, keys))), raw), None

        return jax.lax.scan(once, carry, jnp.arange(steps))[0]

    program, carry = _mesh_program(step, (states, keys), devices)
    compiled, seconds = compile_timed(program, carry)
    return {
        **time_chain(compiled, carry, work=lanes * steps, repeats=repeats),
        **seconds,
        "unit": "environment steps/s",
    }


def training(
    env: str = "ant",
    backend: str | None = None,
    devices: int = 2,
    vectorize: str = "minor",
    updates: int = 1,
    repeats: int = 15,
    **options: Any,
) -> dict[str, Any]:
    """Environment steps/s of the whole training program with the environment's preset, ``options`` changed."""
    import azjax
    from azjax.algorithms import make_learner
    from azjax.runs import programs
    from azjax.runs.options import preset_options, resolve

    settings = resolve(preset_options(env, backend, vectorize=vectorize, **options))
    learner = make_learner(settings.learner, axis_name=AXIS)
    trainer = programs.trainer_of(settings, azjax.make_env(env, backend), learner)
    program = azjax.compile(trainer, azjax.make_mesh(devices, AXIS), updates)
    compiled, seconds = compile_timed(program.step, program.state)
    state = program.init(jax.random.key(0))
    work = trainer.env_steps_per_update * updates
    timed = time_chain(lambda s: compiled(s)[0], state, work=work, repeats=repeats)
    return {**timed, **seconds, "unit": "environment steps/s"}


def population(
    env: str = "ant", members: int = 8, devices: int = 2, columns: int = 1, repeats: int = 9, **options: Any
) -> dict[str, Any]:
    """Environment steps/s of all members of a population in one program, ``columns`` of the devices along lanes.

    One member with all devices along its lanes is what a run alone does; P of them, one after the other, are as fast.
    """
    import azjax
    from azjax.algorithms import make_learner
    from azjax.population import compile_population, make_population, make_population_mesh
    from azjax.runs import programs
    from azjax.runs.options import preset_options, resolve
    from azjax.runs.population import starting_points

    settings = resolve(preset_options(env, **options))
    learner = make_learner(settings.learner, axis_name=AXIS)
    trainer = programs.trainer_of(settings, azjax.make_env(env), learner)
    each = [dataclasses.replace(settings, seed=seed) for seed in range(members)]
    program = compile_population(
        make_population(trainer), members, make_population_mesh((devices // columns, columns), AXIS)
    )
    compiled, seconds = compile_timed(program.step, program.state)
    state = program.init(*starting_points(each))
    work = trainer.env_steps_per_update * members
    timed = time_chain(lambda s: compiled(s)[0], state, work=work, repeats=repeats)
    return {**timed, **seconds, "unit": "environment steps/s of all members"}


def selfplay(
    env: str = "ant", devices: int = 2, plain: bool = False, updates: int = 1, repeats: int = 9, **options: Any
) -> dict[str, Any]:
    """Training steps/s of the self-play program of the body's preset, verification's steps not counted.

    Args:
      env: the body.
      devices: to use.
      plain: plain training at uniform tasks instead, with as many lanes and as long rollouts.
      updates: in a call.
      repeats: of the call.
      **options: changes of the preset.
    """
    import azjax
    from azjax.algorithms import make_learner
    from azjax.runs.selfplay_options import resolve_selfplay, selfplay_preset
    from azjax.selfplay import make_selfplay, make_task_env
    from azjax.selfplay.proposers import make_proposer

    settings = resolve_selfplay(selfplay_preset(env, **options))
    tasks = make_task_env(env, settings.types)
    learner = make_learner(settings.learner, axis_name=AXIS)
    common: dict[str, Any] = {"action_repeat": settings.action_repeat, "axis_name": AXIS}
    trainer: Any
    if plain:
        trainer = azjax.make_trainer(
            tasks, learner, lanes=settings.lanes, rollout_length=settings.rollout_length, **common
        )
    else:
        proposer = make_proposer(settings.proposer, tasks.family, settings.proposer_settings, axis_name=AXIS)
        trainer = make_selfplay(tasks, learner, proposer, settings.config, **common)
    program = azjax.compile(trainer, azjax.make_mesh(devices, AXIS), updates)
    compiled, seconds = compile_timed(program.step, program.state)
    work = settings.env_steps_per_update * updates
    timed = time_chain(lambda s: compiled(s)[0], program.init(jax.random.key(0)), work=work, repeats=repeats)
    return {**timed, **seconds, "unit": "training steps/s"}


def update(
    env: str = "ant", devices: int = 2, repeats: int = 15, trpo: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Decisions/s of the learner alone (estimate and fit) on a made-up rollout of the preset's shape.

    PPO with the preset's hyperparameters, or TRPO with those of ``trpo`` and the same networks and normalisation.
    """
    from jax.sharding import PartitionSpec

    import azjax
    from azjax.on_policy import OnPolicyConfig
    from azjax.runs.options import preset_options, resolve
    from azjax.xla import compiler_options

    settings = resolve(preset_options(env, **options))
    environment = azjax.make_env(env)
    if trpo is None:
        learner = azjax.ppo(settings.learner, axis_name=AXIS)
    else:
        common = {f.name: getattr(settings.learner, f.name) for f in dataclasses.fields(OnPolicyConfig)}
        learner = azjax.trpo(azjax.TRPOConfig(**common | trpo), axis_name=AXIS)
    shape = (settings.rollout_length, settings.lanes)
    state = learner.init(jax.random.key(0), environment.observation_spec, environment.action_spec)
    size = environment.observation_spec.shape[0]
    observation = jax.random.normal(jax.random.key(1), (*shape, size))
    action, _, info = jax.jit(lambda o: learner.act(state.params, o, (), jax.random.key(2)))(observation)
    none = jnp.zeros(shape, bool)
    rollout = azjax.Rollout(observation, (), action, info, observation[..., 0], none, none, observation + 0.01)

    def step(carry: Any) -> Any:
        state, rollout, key = carry
        key, key_fit = jax.random.split(key)
        state, _ = learner.fit(state, learner.estimate(state, rollout), key_fit)
        return state, rollout, key

    whole, lanes = PartitionSpec(), PartitionSpec(None, AXIS)
    specs = (whole, lanes, whole)
    program = jax.shard_map(
        step, mesh=azjax.make_mesh(devices, AXIS), in_specs=(specs,), out_specs=specs, check_vma=False
    )
    carry = (state, rollout, jax.random.key(3))
    jitted = jax.jit(program, compiler_options=compiler_options(jax.devices()[0].platform))
    compiled, seconds = compile_timed(jitted, carry)
    carry = compiled(carry)
    work = settings.lanes * settings.rollout_length
    return {**time_chain(compiled, carry, work=work, repeats=repeats), **seconds, "unit": "decisions/s"}


def resets(
    env: str = "ant", backend: str | None = None, lanes: int = 1024, steps: int = 16, repeats: int = 15
) -> dict[str, Any]:
    """What one fresh initial state costs, in environment steps of one lane; both on one device."""
    import azjax
    from azjax.envs.lanes import reset_lanes
    from azjax.xla import compiler_options

    environment = azjax.make_env(env, backend)
    stepping = physics(env, backend, lanes, 1, "minor", steps, repeats=repeats)

    def step(carry: Any) -> Any:
        def once(carry: Any, t: Any) -> Any:
            key, total = carry
            states = reset_lanes(
                environment, vectorization("minor"), jax.random.split(jax.random.fold_in(key, t), lanes)
            )
            # Everything is used, so that nothing is left out.
            return (key, total + sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(states))), None

        return jax.lax.scan(once, carry, jnp.arange(steps))[0]

    jitted = jax.jit(step, compiler_options=compiler_options(jax.devices()[0].platform))
    compiled, _ = compile_timed(jitted, (jax.random.key(0), jnp.zeros(())))
    resetting = time_chain(compiled, (jax.random.key(0), jnp.zeros(())), work=lanes * steps, repeats=repeats)
    ratio = stepping["rate"] / resetting["rate"]
    return {
        "steps_per_reset": ratio,
        "pool_share_of_rollout": ratio / 32,
        "reset_rate": resetting["rate"],
        "step_rate": stepping["rate"],
    }


def gae(form: str = "scan", length: int = 128, lanes: int = 4096, repeats: int = 25) -> dict[str, Any]:
    """Elements/s of generalized advantage estimation; ``floor`` reads and writes the same arrays and does no more."""
    import azjax

    keys = jax.random.split(jax.random.key(0), 4)
    rewards, values, following = (jax.random.normal(k, (length, lanes)) for k in keys[:3])
    ends = jax.random.bernoulli(keys[3], 0.01, (length, lanes))

    def floor(rewards: Any, values: Any, following: Any, ends: Any, cut: Any, **_: Any) -> Any:
        advantages = rewards + jnp.where(ends, 0.0, following) - values * cut
        return advantages, advantages + values

    forms = {"scan": azjax.gae, "associative": azjax.gae_associative, "floor": floor}

    def step(carry: Any) -> Any:
        rewards, *_ = carry
        advantages, returns = forms[form](rewards, values, following, ends, ~ends, gamma=0.99, lam=0.95)
        return advantages, returns

    compiled, seconds = compile_timed(jax.jit(step), (rewards, rewards))
    timed = time_chain(compiled, (rewards, rewards), work=length * lanes, repeats=repeats)
    moved = length * lanes * (5 * 4 + 2)  # three arrays and two flags in, two arrays out
    return {**timed, **seconds, "unit": "elements/s", "bytes_per_second": timed["rate"] / (length * lanes) * moved}


def startup_once(env: str = "ant", **options: Any) -> dict[str, Any]:
    """Seconds from process start to the end of the first update, the way ``azjax train`` gets there."""
    from azjax.runs import machine, programs
    from azjax.runs.options import preset_options, resolve

    settings = dataclasses.replace(resolve(preset_options(env, **options)), updates_per_call=1)
    machine.split_host(settings.fits)
    machine.use_cache()
    devices = programs.choose_devices(settings)
    imported = since_process_start()
    compiled = programs.build(programs.plan(settings, devices))
    jax.block_until_ready(compiled.step(compiled.init(jax.random.key(0))))
    return {"seconds": since_process_start(), "imports": imported, "tracing_and_compilation": compiled.seconds}


def startup(env: str = "ant", **options: Any) -> dict[str, Any]:
    """The same with an empty and then with a filled compilation cache, a process each."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        command = [sys.executable, "-m", "benchmarks.cases", "startup_once", json.dumps({"env": env, **options})]
        cold, warm = (
            json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        )
    return {"cold_seconds": cold["seconds"], "warm_seconds": warm["seconds"], "cold": cold, "warm": warm}


def threshold(env: str = "ant", value: float = 2000.0, seed: int = 0, limit_seconds: float = 600.0) -> dict[str, Any]:
    """Seconds from process start until ``azjax train``, without compiled programs on disk, evaluates to ``value``."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "azjax", "train", env, "--seed", str(seed), "--run", str(run), "--quiet"]
        command += ["--evaluations", "20"]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        start, found = time.perf_counter(), None
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while found is None and process.poll() is None and time.perf_counter() - start < limit_seconds:
                time.sleep(0.05)
                found = _first_at(run / "metrics.jsonl", value)
            seconds = time.perf_counter() - start
            process.kill()
        found = found or _first_at(run / "metrics.jsonl", value)
    return {"seconds_to_threshold": seconds if found else None, "steps_to_threshold": found}


def _first_at(path: Path, value: float) -> int | None:
    """Environment steps of the first evaluation that reached the value."""
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        if record.get("eval/episode_return_mean", float("-inf")) >= value:
            return int(record["env_steps"])
    return None


def reasoning(
    part: str = "execute", programs: int = 2048, inputs: int = 32, devices: int = 2, repeats: int = 15
) -> dict[str, Any]:
    """Executions, verifications, probes or decoded tokens/s of azjax/reasoning, or executions/s of plain Python.

    Programs are drawn evenly from all of three lines on one list; each is run on each of the inputs. Inputs are lists
    of 0 to 5 items up to 10 in magnitude. `decode` writes random proposals under the grammar mask. With two devices
    programs are divided among them.
    """
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from azjax import reasoning as room
    from azjax.reasoning.grammar import PROPOSAL_TOKENS
    from azjax.reasoning.text import stack_values

    everything = room.enumerate_programs(3)
    index = np.linspace(0, len(everything.lines) - 1, programs).astype(int)
    chosen = jax.tree.map(lambda x: x[index].astype(np.int32), everything)
    rng = np.random.default_rng(0)
    lists = [rng.integers(-10, 11, n % 6).tolist() for n in range(inputs)]
    if part == "python":
        return _plain_executions(chosen.lines.tolist(), lists, repeats)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(stack_values([x, None]) for x in lists))

    def execute(carry: Any) -> Any:
        programs, counter = carry
        output, valid = room.execute(jax.tree.map(lambda x: x[:, None], programs), stacked, counter)
        return programs, counter + 1 + _checksum(output, valid)

    def verify(carry: Any) -> Any:
        programs, counter = carry
        number = programs.signature.shape[0]
        given = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), stacked)
        each = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (number, inputs, *x.shape[1:])), programs)
        return programs, counter + 1 + _checksum(room.verify(each, given, counter))

    def probe(carry: Any) -> Any:
        programs, counter = carry
        return programs, counter + 1 + _checksum(room.probe(programs))

    def decode(carry: Any) -> Any:
        programs, counter = carry
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), counter), programs.signature.shape[0])
        _, tokens = jax.vmap(lambda key: room.sample_tokens(key, room.expect_proposal(), PROPOSAL_TOKENS))(keys)
        return programs, counter + 1 + _checksum(tokens)

    parts = {"execute": (execute, inputs), "verify": (verify, inputs), "probe": (probe, 1), "decode": (decode, 1)}
    function, each = parts[part]
    mesh = jax.make_mesh((devices,), (AXIS,))
    specs = (PartitionSpec(AXIS), PartitionSpec())

    def step(carry: Any) -> Any:
        programs, counter = function(carry)
        return programs, jax.lax.pmax(counter, AXIS)

    program = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False))
    carry = (jax.device_put(chosen, NamedSharding(mesh, specs[0])), jnp.int32(0))
    compiled, seconds = compile_timed(program, carry)
    work = programs * (PROPOSAL_TOKENS if part == "decode" else each)
    unit = {"decode": "tokens/s", "probe": "programs/s"}.get(part, "program-input executions/s")
    return {**time_chain(compiled, compiled(carry), work=work, repeats=repeats), **seconds, "unit": unit}


def reasoner(
    size: str = "micro", max_lines: int = 1, devices: int = 2, batch: int = 16, updates: int = 5, repeats: int = 9
) -> dict[str, Any]:
    """Updates/s of the whole loop as ``azjax reason train`` runs it, with its tokens/s and executions/s.

    Args:
      size: of the model.
      max_lines: of the longest program.
      devices: among which the batch is divided.
      batch: of each task type, on all devices together.
      updates: in a call.
      repeats: of the call.
    """
    import azjax
    from azjax.algorithms import make_learner
    from azjax.counters import counter_to_int
    from azjax.reasoning.devices import compile_reasoner
    from azjax.reasoning.reasoner import make_reasoner
    from azjax.runs.reason_options import ReasonOptions

    options = ReasonOptions(size=size, max_lines=max_lines)
    domain = options.make_domain(capacity=options.capacity // devices)
    policy = options.make_policy(domain.vocabulary)
    config = dataclasses.replace(
        options.reasoner, batch=batch // devices, imitation_batch=3 * batch // devices, first_level=max_lines
    )
    learner = make_learner(options.learner, network=policy, axis_name=AXIS)
    whole = make_reasoner(domain, policy, config, learner=learner)
    program = compile_reasoner(whole, azjax.make_mesh(devices, AXIS), updates)
    compiled, seconds = compile_timed(program.step, program.state)
    spent = []

    def step(state: Any) -> Any:
        state, _ = compiled(state)
        spent.append([counter_to_int(jax.device_get(count)) for count in state.counts])
        return state

    timed = time_chain(step, program.init(jax.random.key(0)), work=updates, repeats=repeats)
    names = ("tokens_decoded", "tokens_trained", "executions")
    each = {
        name: (b - a) / (repeats * updates) for name, a, b in zip(names, spent[-1 - repeats], spent[-1], strict=True)
    }
    rates = {f"{name}_per_second": timed["rate"] * amount for name, amount in each.items()}
    return {**timed, **rates, **seconds, "unit": "updates/s"}


def _checksum(*trees: Any) -> Any:
    """0, which the compiler does not know: so nothing that it depends on is left out."""
    total = sum(jnp.sum(x.astype(jnp.int32)) for x in jax.tree.leaves(trees))
    return (total == jnp.iinfo(jnp.int32).min).astype(jnp.int32)


def _plain_executions(lines: list[Any], lists: list[list[int]], repeats: int) -> dict[str, Any]:
    """Executions/s of the plain Python interpreter, on one core."""
    from benchmarks.plain_interpreter import run

    def step(count: int) -> int:
        return count + sum(run(program, [xs]) is not None for program in lines for xs in lists)

    timed = time_chain(step, 0, work=len(lines) * len(lists), repeats=repeats)
    return {**timed, "unit": "program-input executions/s"}


def describe() -> dict[str, Any]:
    """Machine and versions, asked in a process of its own so that the driver holds no device."""
    from azjax.runs import machine

    return {"machine": machine.describe_devices(), "versions": machine.versions()}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "physics": physics,
    "training": training,
    "population": population,
    "selfplay": selfplay,
    "update": update,
    "resets": resets,
    "gae": gae,
    "startup": startup,
    "startup_once": startup_once,
    "threshold": threshold,
    "reasoning": reasoning,
    "reasoner": reasoner,
    "describe": describe,
}


def main(name: str, options: str = "{}") -> None:
    """Runs a case and prints what it measured."""
    settings: dict[str, Any] = json.loads(options)
    if jax.config.jax_platforms in (None, "", "cpu") and "devices" in settings:
        jax.config.update("jax_num_cpu_devices", settings["devices"])
    measured = CASES[name](**settings)
    print(
        json.dumps({**measured, "peak_mib": round(peak_memory()), "process_seconds": round(since_process_start(), 2)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
