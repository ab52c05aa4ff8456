"""Real ``azjax`` processes that are killed, stopped and starved, and what must hold afterwards.

``tests/test_reliability.py`` runs a few of them always and many with ``-m slow``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from azjax.runs import load_policy
from azjax.runs.checkpoints import Checkpoints, file_digests

# Every call of the program makes a checkpoint, so that kills come often while one is being written.
# Cart-pole, since steps of a physics engine that XLA hardly optimised would take most of the time.
TRAIN = """
azjax:cartpole --steps 61440 --lanes 64 --rollout-length 8 --action-repeat 1 --episode-length 50 --evaluations 3
--evaluation-episodes 4 --minibatches 4 --epochs 1 --updates-per-call 2 --checkpoint-seconds 0 --devices 2
""".split()  # noqa: SIM905 - easier to read, and to type into a shell


class Azjax(NamedTuple):
    """Where the processes run, and the cache that they share."""

    cwd: Path
    cache: Path

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A process that is on its way."""
        keep = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR")
        env = {k: v for k, v in os.environ.items() if k not in keep}
        env |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(self.cache), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "azjax", *args],
            cwd=self.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str) -> tuple[int, str, str]:
        """A process to its end: code, output, errors."""
        process = self.start(*args)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def committed(run: Path) -> dict[int, dict[str, Any]]:
    """The whole checkpoints of a run and their descriptions; fails if one that counts is not whole."""
    folder = run / "checkpoints"
    store = Checkpoints(folder, 1, print)
    found = {update: json.loads((folder / f"{update}.json").read_text())["record"] for update in store.updates()}
    for update, record in found.items():
        assert file_digests(folder / str(update)) == record["files"], f"checkpoint {update} of {run} is not whole"
    return found


def lines_of(run: Path) -> list[str]:
    """The lines of a run's metrics without the times, which differ from run to run."""
    path = run / "metrics.jsonl"
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )
    return [json.dumps({k: v for k, v in json.loads(line).items() if not k.startswith("time/")}) for line in whole]


def check_nothing_lost(run: Path, before: dict[int, dict[str, Any]], reference: list[str]) -> dict[int, dict[str, Any]]:
    """What must hold after a kill; returns the checkpoints that are there."""
    now = committed(run)
    if before:
        assert max(now) >= max(before), f"checkpoint {max(before)} was there before the kill, now {sorted(now)}"
    if now:
        records = now[max(now)]["position"]["records"]
        assert lines_of(run)[:records] == reference[:records]
    if (run / "policy.json").exists():
        load_policy(run)
    return now


def kill_until_done(azjax: Azjax, run: Path, generator: random.Random, reference: list[str], kills: int) -> list[str]:
    """Trains in a folder, killed so many times at random moments, then to the end; where each kill came."""
    moments: list[str] = []
    before: dict[int, dict[str, Any]] = {}
    while len(moments) < kills:
        started = (run / "config.yaml").exists()
        process = azjax.start(*(["resume", str(run)] if started else ["train", *TRAIN, "--run", str(run)]))
        if generator.random() < 0.75:  # while it trains, however fast that is; else while it imports, traces, loads
            first = len(lines_of(run))
            last = generator.randint(first + 1, first + max(1, (len(reference) - first) // 2))
            while process.poll() is None and len(lines_of(run)) < last:
                time.sleep(0.002)
            time.sleep(generator.uniform(0.0, 0.02))
        else:
            time.sleep(generator.uniform(0.0, 2.0))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
        before = check_nothing_lost(run, before, reference)
        unfinished = len(list((run / "checkpoints").glob("*tmp*"))) if run.exists() else 0
        moments.append(f"{max(before, default=0)}{' while a checkpoint was written' if unfinished else ''}")
    return moments
