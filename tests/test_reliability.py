"""Real runs that are killed, stopped and starved lose nothing that was saved, and end as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import TRAIN, Azjax, committed, kill_until_done, lines_of

from azjax.cli import main
from azjax.runs import load_policy
from azjax.runs.folder import RunFolder

PACKAGE = Path(sys.modules["azjax"].__file__ or "").parent


@pytest.fixture(scope="module")
def azjax(tmp_path_factory: pytest.TempPathFactory) -> Azjax:
    return Azjax(tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def reference(azjax: Azjax) -> Path:
    """The run that nothing happened to."""
    run = azjax.cwd / "reference"
    code, _, err = azjax.run("train", *TRAIN, "--run", str(run))
    assert (code, err) == (0, "")
    return run


def digest(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["params_sha256"]


def finish(azjax: Azjax, run: Path, reference: Path) -> None:
    """Resumes to the end, which must be that of the reference."""
    code, out, err = azjax.run("resume", str(run))
    assert (code, err) == (0, ""), out
    assert digest(run) == digest(reference)
    assert lines_of(run) == lines_of(reference)
    policy = load_policy(run)
    assert policy.description["params_sha256"] == digest(reference)


def test_a_run_leaves_checkpoints_and_the_best_policy(reference: Path) -> None:
    found = committed(reference)
    assert max(found) == 120
    assert len(found) in (2, 3)  # the latest two, and the best if it is none of them
    summary = json.loads((reference / "summary.json").read_text())
    best = load_policy(reference / "best")
    returns = {
        r["env_steps"]: r["eval/episode_return_mean"]
        for r in map(json.loads, (reference / "metrics.jsonl").read_text().splitlines())
        if "eval/episode_return_mean" in r
    }
    assert summary["best"] == {
        "env_steps": max(returns, key=lambda n: returns[n]), "return_mean": max(returns.values())
    }  # fmt: skip
    assert best.description["env"] == "azjax:cartpole"
    assert list((reference / "tensorboard").iterdir())


def test_killed_runs_end_as_if_nothing_had_happened(azjax: Azjax, reference: Path) -> None:
    run = azjax.cwd / "killed"
    moments = kill_until_done(azjax, run, random.Random(1), lines_of(reference), kills=2)
    assert len(moments) == 2
    finish(azjax, run, reference)


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    while not list((run / "checkpoints").glob("*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def stop(azjax: Azjax, run: Path, number: signal.Signals, code: int) -> list[int]:
    """Trains until there are checkpoints, sends a signal, and returns the checkpoints that are left."""
    process = azjax.start("train", *TRAIN, "--run", str(run))
    wait_for_checkpoints(run, process, 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert len(err.splitlines()) == 1
    assert "finishing the current call" in out
    found = committed(run)
    last = max(found)
    assert f"go on after update {last} of 120 with: azjax resume {run}" in err
    assert found[last]["position"]["records"] == len(lines_of(run))
    return sorted(found)


def wait_for_checkpoints(run: Path, process: subprocess.Popen[str], count: int) -> None:
    while len(list((run / "checkpoints").glob("*.json"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_run_that_a_scheduler_stops_goes_on(azjax: Azjax, reference: Path) -> None:
    run = azjax.cwd / "terminated"
    stop(azjax, run, signal.SIGTERM, 143)
    finish(azjax, run, reference)


def test_a_second_interrupt_stops_at_once(azjax: Azjax) -> None:
    """Even in the middle of a long call, whose end Python waits for before it hands signals to a thread inside it."""
    long = dict(zip(TRAIN[1::2], TRAIN[2::2], strict=True)) | {"--steps": "6144000", "--updates-per-call": "12000"}
    flags = [word for pair in (long | {"--evaluations": "1"}).items() for word in pair]
    process = azjax.start("train", TRAIN[0], *flags, "--run", str(azjax.cwd / "interrupted twice"))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("compiling: "):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert "finishing the current call" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode == 130
    assert err.splitlines() == ["azjax train: interrupted"]


def test_after_an_interrupt_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    azjax: Azjax, reference: Path
) -> None:
    run = azjax.cwd / "interrupted and damaged"
    *_, before, last = stop(azjax, run, signal.SIGINT, 130)
    victim = max((run / "checkpoints" / str(last)).rglob("*"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-100])
    code, out, err = azjax.run("resume", str(run))
    assert code == 0, out + err
    assert len(err.splitlines()) == 1
    assert f"checkpoint {last} of {run} is damaged" in err
    assert f"checkpoint {before} is used instead" in err
    assert digest(run) == digest(reference)
    assert lines_of(run) == lines_of(reference)


def test_a_finished_run_can_be_made_longer_on_another_number_of_devices(azjax: Azjax, reference: Path) -> None:
    run = azjax.cwd / "longer"
    shutil.copytree(reference, run)
    code, out, err = azjax.run("resume", str(run), "--steps", "71680", "--devices", "1")
    assert (code, err) == (0, "")
    assert "going on after 61,440 environment steps" in out
    assert "on 1 devices instead of 2: bits may differ" in out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["env_steps"], summary["devices"]["used"]) == (71680, 1)
    assert lines_of(run)[: len(lines_of(reference))] == lines_of(reference)
    assert json.loads(lines_of(run)[-1])["env_steps"] == 71680


def test_a_finished_run_is_left_alone(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    assert main(["resume", str(reference)]) == 2
    assert "is finished (61,440 environment steps); --steps makes it longer" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


def test_two_processes_do_not_train_into_one_folder(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder.existing(reference).claimed():
        assert main(["resume", str(reference)]) == 2
    assert "being trained by another process" in capsys.readouterr().err


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own; skips where none can be mounted."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "azjax", path], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_small_disk_is_refused_before_anything_is_written(azjax: Azjax) -> None:
    with small_disk(azjax.cwd / "tiny", "2m") as disk:
        code, out, err = azjax.run("train", *TRAIN, "--run", str(disk / "run"))
        assert (code, out) == (2, "")
        assert "MiB of disk are free" in err
        assert len(err.splitlines()) == 1
        assert list(disk.iterdir()) == []


def test_a_read_only_disk_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["azjax.runs.train"], "build", lambda *args: pytest.fail("it compiled"))
    with small_disk(tmp_path / "disk", "64m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert main(["train", *TRAIN, "--run", str(disk / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line
    assert "another --run" in line


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(azjax: Azjax, reference: Path) -> None:
    with small_disk(azjax.cwd / "full", "24m") as disk:
        run = disk / "run"
        process = azjax.start("train", *TRAIN, "--run", str(run))
        wait_for_checkpoint(run, process)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 16))
        full = committed(run)
        out, err = process.communicate(timeout=120)
        assert process.returncode in (0, 1), out + err
        assert "No space left on device" in err
        assert "training goes on" in err
        # Tensorstore may print a traceback of its own where the first failed write has closed orbax's event loop.
        assert str(PACKAGE) not in err, err
        assert max(committed(run)) >= max(full)
        (disk / "filler").unlink()
        code, out, err = azjax.run("resume", str(run))
        assert code == 0, out + err
        assert digest(run) == digest(reference)
        assert lines_of(run) == lines_of(reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_many_kills(azjax: Azjax, reference: Path, seed: int) -> None:
    run = azjax.cwd / f"killed with seed {seed}"
    moments = kill_until_done(azjax, run, random.Random(seed), lines_of(reference), kills=5)
    print(f"seed {seed}: killed after update {', '.join(moments)}")
    finish(azjax, run, reference)
