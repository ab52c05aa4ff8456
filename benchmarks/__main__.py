"""The driver: lists of cases, each run in a process of its own, one after the other, in rounds.

Command:   python -m benchmarks SUITE [--out FILE] [--rounds N] [--only WORD ...] [--quick]
Output:    one JSON file a suite: machine, versions, and every case with its settings and what each round measured.

Rounds go through the whole list again and again, so that a machine that changes its speed meanwhile touches all
cases alike; docs/performance.md cites medians over the rounds, and only ratios within one file mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.suites import SUITES, Case

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1800  # seconds of a case; LAPACK can hang (azjax/batching/linear_algebra.py)


def main() -> None:
    """Runs a suite and writes its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--out", type=Path, help="result file; default benchmarks/results/SUITE.json")
    parser.add_argument("--rounds", type=int, default=3, help="how often the whole list is run")
    parser.add_argument("--only", nargs="*", default=[], help="run the cases whose label holds all these words")
    parser.add_argument("--quick", action="store_true", help="one round with two repeats a case, to see that it works")
    args = parser.parse_args()
    cases = [case for case in SUITES[args.suite]() if all(word in case.label for word in args.only)]
    if not cases:
        parser.error(f"no case of {args.suite} holds {' '.join(args.only)}")
    out = args.out or ROOT / "benchmarks" / "results" / f"{args.suite}.json"
    rounds: list[list[dict[str, Any]]] = [[] for _ in cases]
    about = {k: v for k, v in run(Case("", "describe", {})).items() if k in ("machine", "versions")}
    out.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1 if args.quick else args.rounds):
        for case, measured in zip(cases, rounds, strict=True):
            start = time.monotonic()
            measured.append(run(case, quick=args.quick))
            shown = measured[-1].get("error") or figure(measured[-1][case.figure])
            print(f"round {number + 1}  {case.label:<60} {shown}  ({time.monotonic() - start:.0f} s)", flush=True)
            record = {
                "suite": args.suite,
                "command": f"python -m benchmarks {' '.join(sys.argv[1:])}",
                "date": time.strftime("%Y-%m-%d"),
                **about,
                "cases": [summary(c, m) for c, m in zip(cases, rounds, strict=True) if m],
            }
            out.write_text(
                json.dumps(record, indent=1) + "\n"
            )  # after each case: an interrupted session keeps what it has
    print(table(record))
    print(f"wrote {out}")


def run(case: Case, *, quick: bool = False) -> dict[str, Any]:
    """One measurement; a case that fails says so and lets the others go on."""
    options = case.options | ({"repeats": 2} if quick and case.module == "benchmarks.cases" else {})
    unwanted = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted} | {"PYTHONPATH": str(ROOT)}
    python = sys.executable if case.venv is None else python_of(case.venv)
    try:
        done = subprocess.run(
            [python, "-m", case.module, case.name, json.dumps(options)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {LONGEST} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def python_of(venv: str) -> str:
    """The interpreter of a peer's virtual environment, which is made at its first use."""
    folder = ROOT / "benchmarks" / "venvs" / venv
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making the virtual environment of {venv} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        requirements = ROOT / "benchmarks" / "peers" / f"{venv}.txt"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        (folder / "complete").touch()
    return str(python)


def figure(value: float | None) -> str:
    """A number with three digits, or what stands in for one."""
    if value is None:
        return "not reached"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def summary(case: Case, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the figure that matters, its spread, and every round."""
    values = [m[case.figure] for m in measured if "error" not in m and m[case.figure] is not None]
    return {
        "label": case.label,
        "case": case.name,
        "options": case.options,
        "figure": case.figure,
        "median": statistics.median(values) if values else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "rounds": measured,
    }


def table(record: dict[str, Any]) -> str:
    """The medians as Markdown."""
    lines = ["| case | median | lowest to highest | figure |", "| --- | --- | --- | --- |"]
    for case in record["cases"]:
        if case["median"] is None:
            lines.append(f"| {case['label']} | {case['rounds'][-1].get('error', figure(None))} | | |")
            continue
        low, median, high = (figure(case[k]) for k in ("min", "median", "max"))
        lines.append(f"| {case['label']} | {median} | {low} to {high} | {case['figure']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
