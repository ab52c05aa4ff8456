"""How training scales with devices: what an update reduces, a cost model made of it, and a check on this machine.

Command:   python experiments/scaling_model.py --out runs/scaling
Hardware:  any; the check uses the devices that JAX sees, on a CPU one for each core
Time:      about 5 minutes on 2 cores
Expected:  the tables of docs/scaling.md

Reductions are counted in the traced program, not guessed. The model of an update on D devices, each with the same
number of lanes (weak scaling), is

    T(D) = T(1) + n (a log2 D) + 2 (D - 1) / D * b / B

with n reductions of b bytes in all, a latency of a per step of a tree, and a bandwidth of B per device (a ring's cost).
The efficiency is T(1) / T(D). On this machine a and B are measured with reductions alone, T(1) and T(D) with training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import azjax
from azjax.algorithms import make_learner
from azjax.runs import machine
from azjax.runs.folder import check_free, write_json, write_text
from azjax.runs.options import TrainOptions, preset_options, resolve
from azjax.runs.programs import trainer_of

CASES = (("ant", "ppo"), ("ant", "trpo"), ("humanoid", "ppo"))
# Latency of one step and bandwidth per device, as vendors state them or studies measured them; assumptions, not
# measurements of azjax.
NETWORKS = {
    "NVLink, one host (5 us, 200 GB/s)": (5e-6, 200e9),
    "InfiniBand, several hosts (10 us, 25 GB/s)": (10e-6, 25e9),
    "Ethernet (50 us, 3 GB/s)": (50e-6, 3e9),
}
COUNTS = (2, 8, 64, 256, 1024)
FAST = 0.01  # seconds: an update of an accelerator, assumed; the measured ones are those of a CPU's core
REDUCING = ("psum", "psum2", "psum_invariant", "pmin", "pmax", "all_gather", "all_reduce")


class Reductions(NamedTuple):
    """What the devices exchange in an update."""

    count: int
    bytes: int  # of the arrays reduced, on each device


def reductions(jaxpr: Any, times: int = 1) -> Reductions:
    """Counts the reductions of a program; a loop of unknown length counts once for each of its iterations at most.

    ``while`` loops here are conjugate gradients and line searches, whose bound the caller's configuration has; they are
    counted with their usual length, 10.
    """
    count = size = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in REDUCING:
            count += times
            size += times * sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
            continue
        factor = equation.params["length"] if name == "scan" else 10 if name == "while" else 1
        for inner in inner_jaxprs(equation.params):
            found = reductions(inner, times * factor)
            count, size = count + found.count, size + found.bytes
    return Reductions(count, size)


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def update_of(options: TrainOptions, devices: int) -> tuple[azjax.CompiledTrainer, azjax.Trainer]:
    """The program of one update on so many devices."""
    env = azjax.make_env(options.env, options.backend)
    learner = make_learner(options.learner, axis_name=machine.AXIS)
    trainer = trainer_of(options, env, learner)
    return azjax.compile(trainer, azjax.make_mesh(devices, machine.AXIS)), trainer


def count_reductions(options: TrainOptions) -> Reductions:
    """What an update of these options exchanges."""
    compiled, _ = update_of(options, 1)
    return reductions(compiled.step.trace(compiled.state).jaxpr.jaxpr)


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """The median time of a call."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure_network(devices: int) -> tuple[float, float]:
    """Latency and bandwidth of reductions alone, from chains of small and of large ones."""
    mesh = azjax.make_mesh(devices, machine.AXIS)
    spec = jax.sharding.PartitionSpec()

    def chain(size: int, length: int) -> float:
        def body(x: Any) -> Any:
            return jax.lax.scan(lambda c, _: (jax.lax.psum(c, machine.AXIS) * (1.0 / devices), None), x, None, length)[
                0
            ]

        program = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        x = jnp.ones(size)
        return seconds_of(lambda: program(x), 7) / length

    small, large = chain(16, 400), chain(1 << 20, 20)
    latency = small / math.log2(devices)
    return latency, 2 * (devices - 1) / devices * 4 * (1 << 20) / max(large - small, 1e-9)


def predict(alone: float, exchanged: Reductions, devices: int, latency: float, bandwidth: float) -> float:
    """The seconds of an update on so many devices."""
    ring = 2 * (devices - 1) / devices * exchanged.bytes / bandwidth
    return alone + exchanged.count * latency * math.log2(devices) + ring


def efficiencies(alone: float, exchanged: Reductions) -> dict[str, dict[int, float]]:
    """By network and number of devices."""
    return {name: {n: alone / predict(alone, exchanged, n, *own) for n in COUNTS} for name, own in NETWORKS.items()}


def training_seconds(options: TrainOptions, devices: int, lanes_each: int) -> float:
    """The median time of an update with so many lanes on each device."""
    compiled, _ = update_of(with_lanes(options, devices * lanes_each), devices)
    state = compiled.init(jax.random.key(0))
    times = []
    for n in range(9):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled.step(state))
        if n >= 2:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def with_lanes(options: TrainOptions, lanes: int) -> TrainOptions:
    """The options with another number of lanes."""
    return resolve(preset_options(options.env, options.backend, options.algorithm, lanes=lanes))


def main() -> None:
    """Counts, measures, predicts and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; new or empty")
    parser.add_argument("--lanes", type=int, default=512, help="lanes of each device")
    args = parser.parse_args()
    check_free(args.out)
    machine.split_host(lambda count: True)
    available = jax.device_count()
    network = measure_network(available) if available > 1 else None
    cases = []
    for env, algorithm in CASES:
        options = with_lanes(preset_options(env, None, algorithm), args.lanes)
        exchanged = count_reductions(options)
        alone = training_seconds(options, 1, args.lanes)
        entry: dict[str, Any] = {
            "env": env, "algorithm": algorithm, "lanes_per_device": args.lanes,
            "env_steps_per_update_per_device": options.env_steps_per_update, **exchanged._asdict(),
            "seconds_alone": alone,
        }  # fmt: skip
        if network is not None:
            entry["seconds_together"] = training_seconds(options, available, args.lanes)
            entry["seconds_predicted"] = predict(alone, exchanged, available, *network)
        entry["efficiency"] = efficiencies(alone, exchanged)
        entry["efficiency_of_fast_devices"] = efficiencies(FAST, exchanged)
        cases.append(entry)
        print(json.dumps(entry), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"devices": available, "network": network, "cases": cases, "machine": machine.describe_devices(),
              "versions": machine.versions()}  # fmt: skip
    write_json(args.out / "scaling.json", result)
    write_text(args.out / "scaling.md", tables(result))
    print(f"wrote {args.out}/scaling.json and scaling.md")


def tables(result: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    lines = ["| update of | environment steps a device | reductions | KiB reduced | seconds on one device |"]
    lines[0] += f" on {result['devices']} | predicted | efficiency |"
    lines.append("|" + " --- |" * 8)
    for case in result["cases"]:
        together, predicted = case.get("seconds_together"), case.get("seconds_predicted")
        measured = ["–"] * 3 if together is None else [
            f"{together:.3f}", f"{predicted:.3f}", f"{100 * case['seconds_alone'] / together:.0f} %",
        ]  # fmt: skip
        lines.append(
            f"| {case['algorithm']} on {case['env']} | {case['env_steps_per_update_per_device']:,} | {case['count']} | "
            f"{case['bytes'] / 1024:,.0f} | {case['seconds_alone']:.3f} | {' | '.join(measured)} |"
        )
    for key, what in (("efficiency", "as measured"), ("efficiency_of_fast_devices", f"{1000 * FAST:.0f} ms")):
        for name in NETWORKS:
            head = f"update on one device {what}; {name}"
            lines += [
                "",
                f"| {head} | {' | '.join(f'{n} devices' for n in COUNTS)} |",
                "|" + " --- |" * (len(COUNTS) + 1),
            ]
            for case in result["cases"]:
                row = [f"{100 * case[key][name][n]:.0f} %" for n in COUNTS]
                lines.append(f"| {case['algorithm']} on {case['env']} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
