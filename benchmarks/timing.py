"""Timing of compiled programs, and what a process can say about itself."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def since_process_start() -> float:
    """Seconds since the operating system started this process, imports included."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def peak_memory() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """A jitted function compiled for these arguments, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}


def time_chain(
    step: Callable[[Any], Any], state: Any, *, work: float, repeats: int, warm_up: int = 2
) -> dict[str, Any]:
    """Calls ``state = step(state)`` again and again; the state may be donated.

    Returns:
      ``rate`` (median of ``work`` per second), its smallest and largest value, the seconds of each call, and the CPU
      cores that this process kept busy meanwhile.
    """
    for _ in range(warm_up):
        state = jax.block_until_ready(step(state))
    seconds, cpu = [], time.process_time()
    begin = time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        seconds.append(time.perf_counter() - start)
    cores = (time.process_time() - cpu) / (time.perf_counter() - begin)
    return {
        "rate": work / statistics.median(seconds),
        "rate_min": work / max(seconds),
        "rate_max": work / min(seconds),
        "seconds": [round(s, 6) for s in seconds],
        "cores_busy": round(cores, 2),
    }
