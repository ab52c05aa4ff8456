"""Timing of compiled programs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


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
