"""The benchmarks run: nothing here looks at a time."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from azjax.envs.registry import backends_of  # noqa: E402
from azjax.runs.options import preset_options, resolve  # noqa: E402
from azjax.runs.selfplay_options import resolve_selfplay, selfplay_preset  # noqa: E402
from benchmarks import cases  # noqa: E402
from benchmarks.peers import cases as peers  # noqa: E402
from benchmarks.suites import SUITES  # noqa: E402

MODULES = {"benchmarks.cases": cases, "benchmarks.peers.cases": peers}


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_case_of_a_suite_can_be_called(suite: str) -> None:
    listed = SUITES[suite]()
    labels = [case.label for case in listed]
    assert len(set(labels)) == len(labels) > 0
    for case in listed:
        function = MODULES[case.module].CASES[case.name]
        signature = inspect.signature(function)
        signature.bind(**case.options)
        env = case.options.get("env", "ant")
        extra = {k: v for k, v in case.options.items() if k not in signature.parameters}
        if case.name == "selfplay":
            resolve_selfplay(selfplay_preset(env, **extra)).validate()
        else:
            assert case.options.get("backend") in (None, *backends_of(env))
            resolve(preset_options(env, **extra)).validate()
        assert case.venv is None or (ROOT / "benchmarks" / "peers" / f"{case.venv}.txt").exists()
        json.dumps(case.options)


def test_the_driver_measures_and_writes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "gae.json"
    command = [sys.executable, "-m", "benchmarks", "gae", "--quick", "--only", "16 x 1024", "--out", str(out)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["versions"]["jax"]
    assert record["machine"]["platform"] == "cpu"
    assert [case["label"] for case in record["cases"]] == [
        f"{form} 16 x 1024" for form in ("scan", "associative", "floor")
    ]
    for case in record["cases"]:
        assert case["median"] == case["rounds"][0]["rate"] > 0
        assert len(case["rounds"][0]["seconds"]) == 2
        assert case["rounds"][0]["peak_mib"] > 0


def test_a_case_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import __main__ as driver
    from benchmarks.suites import Case

    assert "error" in driver.run(Case("broken", "gae", {"form": "nonsense", "length": 2, "lanes": 2}))
    row = driver.summary(Case("broken", "gae", {}), [{"error": "KeyError: 'nonsense'"}])
    assert row["median"] is None
    assert "KeyError: 'nonsense'" in driver.table({"cases": [row]})
