"""Several real processes on this machine: they train one run, stop together, and say it when one is lost."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from azjax.cli import main
from azjax.config import ConfigError
from azjax.runs import hosts
from azjax.runs.hosts import Hosts

TRAIN = ["azjax:cartpole", "--lanes", "128", "--rollout-length", "16", "--minibatches", "1", "--epochs", "1",
         "--evaluations", "4", "--evaluation-episodes", "8", "--updates-per-call", "4", "--no-tensorboard"]  # fmt: skip


class Processes:
    """Processes of one command."""

    def __init__(self, folder: Path, count: int, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Compiled as this process compiles: other optimisations round differently.
        changes = {"JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environment = os.environ | changes | {"XDG_CACHE_HOME": str(folder / "cache")}
        self.outputs = [folder / f"{words[0]}-{port}-{i}.txt" for i in range(count)]
        self.all = []
        for i, output in enumerate(self.outputs):
            own = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process", str(i)]
            command = [sys.executable, "-m", "azjax", *words, *own]
            with output.open("w") as file:
                self.all.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))

    def wait(self, seconds: float = 240.0) -> list[int]:
        """The exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.all]
        finally:
            for process in self.all:
                process.kill()

    def text(self, index: int) -> str:
        """What a process has said."""
        return self.outputs[index].read_text()


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.json"))


def params(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "policy.npz") as arrays:
        return dict(arrays)


def assert_same_run(one: Path, other: Path, tolerance: float = 2e-3) -> None:
    """Equal to rounding, which the order of a sum over more than two devices may change."""
    ours, theirs = params(one), params(other)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    steps = [[json.loads(line)["env_steps"] for line in (run / "metrics.jsonl").open()] for run in (one, other)]
    assert steps[0] == steps[1]


def test_two_processes_train_stop_together_and_go_on_as_one_would(tmp_path: Path, require_devices: Any) -> None:
    require_devices(2)
    alone, run = tmp_path / "alone", tmp_path / "run"
    size = ["--steps", str(2048 * 100), "--checkpoint-seconds", "0.05", "--updates-per-call", "1"]
    assert main(["train", *TRAIN, *size, "--devices", "2", "--run", str(alone)]) == 0

    together = Processes(tmp_path, 2, "train", *TRAIN, *size, "--run", str(run))
    wait_for(lambda: checkpoints(run))
    together.all[1].send_signal(signal.SIGTERM)  # the second one is told, and the first one has to hear of it
    assert together.wait() == [143, 143], together.text(0) + together.text(1)
    assert f"azjax resume {run}" in together.text(0)
    again = Processes(tmp_path, 2, "resume", str(run))
    assert again.wait() == [0, 0], again.text(0) + again.text(1)
    assert "going on after" in again.text(0)
    assert "environment steps" not in again.text(1)  # only the first one speaks
    assert_same_run(run, alone, tolerance=0.0)
    assert {path.name for path in run.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_four_processes_of_which_one_is_lost(tmp_path: Path, require_devices: Any) -> None:
    require_devices(4)
    run = tmp_path / "run"
    size = ["--steps", str(2048 * 2000), "--checkpoint-seconds", "1"]
    together = Processes(tmp_path, 4, "train", *TRAIN, *size, "--run", str(run))
    wait_for(lambda: checkpoints(run))
    kill_child(together.all[2])
    codes = together.wait(200)
    assert codes == [1, 1, 1, 1]
    for index in range(4):
        assert together.text(index).rstrip().splitlines()[-1].startswith("azjax train: error: a process of the run was")
    reached = int(checkpoints(run)[-1].stem)
    shorter = str(2048 * (reached + 40))
    again = Processes(tmp_path, 4, "resume", str(run), "--steps", shorter)
    assert again.wait() == [0] * 4, again.text(0)
    assert json.loads((run / "summary.json").read_text())["env_steps"] >= 2048 * (reached + 40)
    assert main(["evaluate", str(run), "--episodes", "4"]) == 0


@pytest.mark.slow
def test_four_processes_train_what_one_would(tmp_path: Path, require_devices: Any) -> None:
    require_devices(4)
    alone, run = tmp_path / "alone", tmp_path / "run"
    size = ["--steps", str(2048 * 16)]
    assert main(["train", *TRAIN, *size, "--devices", "4", "--run", str(alone)]) == 0
    together = Processes(tmp_path, 4, "train", *TRAIN, *size, "--run", str(run))
    assert together.wait() == [0] * 4, together.text(0)
    assert_same_run(run, alone)


@pytest.mark.slow
def test_two_processes_train_a_sweep(tmp_path: Path, require_devices: Any) -> None:
    require_devices(2)
    alone, run = tmp_path / "alone", tmp_path / "run"
    words = [*TRAIN, "--steps", str(2048 * 16), "--gamma", "0.9,0.99", "--seeds", "2"]
    assert main(["sweep", *words, "--devices", "2", "--run", str(alone)]) == 0
    together = Processes(tmp_path, 2, "sweep", *words, "--run", str(run))
    assert together.wait() == [0, 0], together.text(0) + together.text(1)
    for member in ("000", "001", "002", "003"):
        assert_same_run(run / "members" / member, alone / "members" / member)
    assert "2 along members" in together.text(0)


@pytest.mark.slow
def test_a_sweep_of_two_processes_of_which_one_is_lost_goes_on(tmp_path: Path, require_devices: Any) -> None:
    require_devices(2)
    run = tmp_path / "run"
    size = ["--steps", str(2048 * 120), "--checkpoint-seconds", "0.2", "--chunk", "2"]
    words = ["sweep", *TRAIN, *size, "--gamma", "0.9,0.99", "--seeds", "2", "--run", str(run)]
    together = Processes(tmp_path, 2, *words)
    wait_for(lambda: checkpoints(run / "parts" / "01"), 240.0)  # the first part is finished, the second is not
    kill_child(together.all[1])
    assert together.wait(200) == [1, 1], together.text(0) + together.text(1)
    for index in range(2):
        assert together.text(index).rstrip().splitlines()[-1].startswith("azjax sweep: error: a process of the run was")
    finished = run / "members" / "001" / "summary.json"
    before = finished.read_bytes()
    assert not (run / "members" / "002" / "summary.json").exists()
    assert not (run / "results.csv").exists()
    again = Processes(tmp_path, 2, "resume", str(run))
    assert again.wait() == [0, 0], again.text(0) + again.text(1)
    assert "going on after update" in again.text(0)
    assert finished.read_bytes() == before
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["gamma"], row["seed"]) for row in rows] == [("0.9", "0"), ("0.9", "1"), ("0.99", "0"), ("0.99", "1")]
    assert {row["env_steps"] for row in rows} == {str(2048 * 120)}


def kill_child(parent: subprocess.Popen[bytes]) -> None:
    """Kills the process that a parent watches."""
    children = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Hosts("10.0.0.1:1234"), "belong together"),
        (Hosts(processes=2, process=0), "belong together"),
        (Hosts("10.0.0.1", 2, 0), "coordinator is '10.0.0.1'; it must be HOST:PORT"),
        (Hosts("10.0.0.1:x", 2, 0), "it must be HOST:PORT"),
        (Hosts("10.0.0.1:70000", 2, 0), "it must be HOST:PORT"),
        (Hosts("10.0.0.1:1234", 2, 2), "process is 2; it must lie between 0 and 1"),
        (Hosts("10.0.0.1:1234", 0, 0), "processes is 0"),
        (Hosts("10.0.0.1:1234", 2, 0, distributed=True), "leave one of the two out"),
    ],
)
def test_processes_that_can_not_meet_are_refused(given: Hosts, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given.validate()
    assert message in str(caught.value)


def test_a_command_that_nothing_says_the_processes_of_ends_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "azjax", "train", *TRAIN, "--distributed"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "the processes did not meet" in line
    assert not any(tmp_path.iterdir())


def test_one_process_is_the_first_and_agrees_with_itself() -> None:
    Hosts().validate()
    assert not Hosts().several
    assert hosts.is_first()
    assert hosts.first_to_know([3, 0]) == [3, 0]
    tree = {"a": np.ones(2)}
    assert hosts.whole(tree) is tree
    with hosts.joined(Hosts()), hosts.folder_to_write(Path("run")) as place:
        assert place == Path("run")
