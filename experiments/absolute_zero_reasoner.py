"""What does self-play from zero data teach a small model, and which part matters? Arms: docs/reasoning.md.

Command:   python experiments/absolute_zero_reasoner.py run --scale cpu --jobs 2 --out runs/reasoner
           python experiments/absolute_zero_reasoner.py report --out runs/reasoner
Hardware:  2 CPU cores, a run on each (--jobs 2); --scale gpu is for one accelerator (--jobs 1)
Time:      until --minutes are over; what is missing is run at the next start, a run that was cut off goes on
Expected:  not known before the runs; the plan below was written down before them

The plan. The model has 0.4 million parameters (``tiny``), the language list programs of one or two lines with one list
as input. A fifth of the meanings that take two lines is held out and can't be proposed. Every run ends with an
examination: questions on all meanings of one line with fresh inputs, on held-out meanings of two lines, and beyond
training on programs with four lines and with two inputs; for each task type and group the greedy answer and pass@1, 8
and 64, with exact 95 % intervals over questions. Runs of one seed are asked the same, other seeds other questions.

Budgets. ``full`` makes a fixed number of updates; what it has spent then is the budget of all other arms of its seed:
executions of a program on an input, and tokens trained on, both counted exactly. Each of them runs first for a part of
that, and is then made longer until the scarcer of the two is spent to within a call of the training program; the report
gives both as shares of the budget. Nothing depends on the machine's speed. ``long`` is ``full`` with four times as
many updates, and not compared. The learning rate is constant, for a run that is made longer has no known end.

Arms: ``full``, with all remedies for random weights. ``random-grammar``: nothing is proposed by the model.
``no-references``: K = 0. Three other rewards for the proposer: 1 - p without and with the reference code's penalty, and
min(p, 1 - p). Baselines: the six cells, one for all, and one for each question; that needs attempts which teach, and
one for all needs a joint step, so these three have both. ``no-gate`` and ``leak-05``, ``leak-20``: all, or so many
per cent, of the refused proposals enter. Three arms of a single task type. ``no-rewards``: answers known from
verification are imitated, and no reward teaches. ``no-imitation``: rewards alone teach, the other remedies stay.
``pure-rl``: no remedy at all. ``supervised``, an upper bound: imitation alone, on programs drawn uniformly from all
meanings that may be trained on; as the solver's own answers count as trained on, though nothing is learned from them,
it imitates somewhat less than the budget says.

Aims for ``long``: greedy induction of one line 0.9, of held-out two lines 0.5; deduction and abduction of one and two
lines 0.7; and written proposals that grow longer. The claim that is tested: ``full`` beats ``random-grammar`` and
``no-rewards`` in greedy answers on held-out two lines, with intervals that don't overlap. The paper found +1.4 points
for the first; nothing, or the opposite, is reported as it is.

Searches are asked the same questions. Induction: programs from the grammar at random (of a pool, each question from
another place on), and all programs in enumeration order, until one gives the shown outputs; it is judged by the hidden
ones. Abduction: random inputs. They are given after so many candidates as the model has answers (1, 8, 64) and after
many more; the report says how many executions a question could have had from what ``full`` spent in training.

A run is an ordinary run folder ``OUT/ARM/SEED`` with ``examination.json``. ``report`` writes ``table.md``,
``results.json`` and ``curves.png``. ``--scale smoke`` runs through all of this with tiny numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import study
import yaml
from absolute_zero_reasoner_report import BUDGET, LONG, SEARCH, finished, read_json, report, shares

from azjax.config import ConfigError, require, require_number
from azjax.reasoning.enumeration import enumerate_programs
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.search import search_inputs, search_programs, solved_after
from azjax.reasoning.splits import LARGEST_SPLIT, make_split
from azjax.reasoning.tasks import TASKS
from azjax.runs import machine
from azjax.runs.folder import write_json
from azjax.runs.reason import resume, train
from azjax.runs.reason_options import ReasonOptions
from azjax.runs.reason_use import examine_model, list_questions
from azjax.runs.signals import RunInterrupted

NO_REWARDS = {"train_proposer": False, "wrong": 1.0, "malformed": 1.0}
NO_IMITATION = {"imitate_updates": 0, "imitation_batch": 0, "hindsight": False}
ATTEMPTS = {"learn_from_attempts": True, "steps": "joint"}
ARMS: dict[str, dict[str, Any]] = {
    BUDGET: {},
    "random-grammar": {"uniform_share": 1.0},
    "no-rewards": NO_REWARDS,
    "supervised": NO_REWARDS | {"uniform_share": 1.0, "first_level": 0, "hindsight": False, "draw_from": "meanings"},
    "pure-rl": NO_IMITATION | {"uniform_share": 0.0, "first_level": 0},
    "no-imitation": NO_IMITATION,
    "no-references": {"references": 0},
    "score-1-p": {"score": "absolute-zero"},
    "score-1-p-code": {"score": "absolute-zero-code"},
    "score-min": {"score": "min"},
    "baseline-cells": ATTEMPTS,
    "baseline-global": ATTEMPTS | {"baseline": "global"},
    "baseline-question": ATTEMPTS | {"baseline": "question"},
    "no-gate": {"leak": 1.0},
    "leak-20": {"leak": 0.2},
    "leak-05": {"leak": 0.05},
    "only-deduction": {"only": "deduction"},
    "only-abduction": {"only": "abduction"},
    "only-induction": {"only": "induction"},
    LONG: {},
    SEARCH: {},
}
LONGER = 4
FIRST_PART = 0.4
TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    updates: int  # of the arm that sets the budget
    updates_per_call: int
    seeds: int
    questions: int
    samples: int
    candidates: int  # of the random search
    changes: dict[str, Any]


SCALES = {
    "smoke": Scale(8, 2, 1, 4, 2, 256, {
        "size": "micro", "max_lines": 1, "batch": 4, "imitation_batch": 4, "capacity": 64,
        "evaluation_questions": 4, "evaluation_samples": 2,
    }),
    "cpu": Scale(1200, 20, 3, 128, 64, 16384, {"size": "tiny", "max_lines": 2}),
    "gpu": Scale(10_000, 50, 5, 512, 64, 65536, {
        "size": "small", "max_lines": 3, "batch": 256, "imitation_batch": 768, "attempts": 8,
    }),
}  # fmt: skip


def main() -> None:
    """Runs what is missing, one run, or writes the report."""
    args = parse()
    try:
        if args.one is not None:
            run_one(args, *args.one.rsplit("/", 1))
        else:
            run_missing(args) if args.command == "run" else report(args.out, tuple(ARMS))
    except (ConfigError, RunInterrupted) as error:
        raise SystemExit(f"absolute_zero_reasoner: {error}") from None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = study.parser(__doc__, SCALES, "cpu")
    parser.add_argument("--updates", type=int, help=f"updates of arm {BUDGET}, which sets the budget")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, among which the cores are divided")
    parser.add_argument("--one", metavar="ARM/SEED", help="make this run in this process: run starts such processes")
    return parser.parse_args(arguments)


# ---- runs


def options_of(args: argparse.Namespace, arm: str, seed: int, updates: int) -> ReasonOptions:
    """The options of a run, all of which but seed, length and what the arm changes are those of the scale."""
    scale, base = SCALES[args.scale], ReasonOptions()
    changes = scale.changes | ARMS[arm]
    own = {name: changes.pop(name) for name in list(changes) if hasattr(base.reasoner, name)}
    return dataclasses.replace(
        base,
        **changes,
        reasoner=dataclasses.replace(base.reasoner, **own),
        updates=updates,
        updates_per_call=scale.updates_per_call,
        devices=1,
        seed=seed,
        run=args.out / arm / str(seed),
        tensorboard=False,
        quiet=True,
    )


def updates_of(args: argparse.Namespace) -> int:
    """Updates of the arm that sets the budget: whole calls."""
    scale = SCALES[args.scale]
    per_call = scale.updates_per_call
    return per_call * max(1, (args.updates or scale.updates) // per_call)


def run_missing(args: argparse.Namespace) -> None:
    """Makes the missing runs, each in a process of its own; when time is over, those that run save and stop."""
    begun = time.monotonic()
    require_number("--jobs", args.jobs, 1, 1000)
    require_number("--updates", updates_of(args), 1, 2**31 - 1)
    todo = study.missing(args, ARMS, tuple(ARMS), SCALES[args.scale].seeds, finished)
    for arm, seed in todo:
        known = arm == BUDGET or not budgeted(arm) or finished(args.out / BUDGET / str(seed))
        require(known or (BUDGET, seed) in todo, f"arm {BUDGET} sets the budget of {arm}; name it in --arms, too")
    check_settings(args)
    total, running, failed = len(todo), {}, []
    try:
        while (todo or running) and time.monotonic() - begun < 60 * args.minutes:
            for slot in set(range(args.jobs)) - set(running):
                if (chosen := next_to_start(args, todo)) is not None:
                    todo.remove(chosen)
                    running[slot] = (*chosen, start_process(args, *chosen, slot))
            for slot, (arm, seed, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    failed += [f"{arm}/{seed}"] * (process.returncode != 0)
                    said = said_of(args, arm, seed, process.returncode)
                    print(f"{time.monotonic() - begun:.0f} s: {arm}, seed {seed}: {said}", flush=True)
            if todo and not running and next_to_start(args, todo) is None:
                break  # what sets their budget has failed
            time.sleep(0.2)
    finally:
        for *_, process in running.values():
            process.terminate()  # it saves its state first
        for *_, process in running.values():
            process.wait()
    require(not failed, f"{', '.join(failed)} failed: see the .log files in {args.out}")
    left = len(todo) + len(running)
    if left:
        print(f"time is over: {left} of {total} runs are left; start again to go on")


def check_settings(args: argparse.Namespace) -> None:
    """Raises ``ConfigError`` if the folder's runs have another budget."""
    path, now = args.out / "settings.json", {"scale": args.scale, "updates": updates_of(args)}
    if path.exists():
        then = json.loads(path.read_text())
        require(then == now, f"the runs in {args.out} are of {then}, these would be of {now}; choose another --out")
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(path, now)


def next_to_start(args: argparse.Namespace, todo: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    """The first run whose budget is known."""
    ready = (one for one in todo if not budgeted(one[0]) or finished(args.out / BUDGET / str(one[1])))
    return next(ready, None)


def budgeted(arm: str) -> bool:
    """Whether an arm spends what another one has spent."""
    return arm not in (BUDGET, LONG, SEARCH)


def start_process(args: argparse.Namespace, arm: str, seed: int, slot: int) -> subprocess.Popen[bytes]:
    """A process for one run, on its share of the cores."""
    command = [sys.executable, __file__, "run", "--out", str(args.out), "--scale", args.scale]
    command += ["--updates", str(updates_of(args)), "--one", f"{arm}/{seed}"]
    log = args.out / arm / f"{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    share = sorted(cores)[slot % max(1, len(cores)) :: args.jobs]
    try:
        if share:  # a child inherits it
            os.sched_setaffinity(0, share)
        with log.open("ab") as file:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    finally:
        if share:
            os.sched_setaffinity(0, cores)


def said_of(args: argparse.Namespace, arm: str, seed: int, code: int) -> str:
    if code or arm == SEARCH:
        return "failed" if code else "done"
    table = read_json(args.out / arm / str(seed) / "examination.json")
    right = [" ".join([task, *(f"{row['greedy']:.2f}" for row in groups.values())]) for task, groups in table.items()]
    return f"right at the first answer, {' and '.join(next(iter(table.values())))}: {', '.join(right)}"


def run_one(args: argparse.Namespace, arm: str, number: str) -> None:
    """Trains until the budget is spent, and examines."""
    seed, folder, scale = int(number), args.out / arm / number, SCALES[args.scale]
    if args.scale == "smoke":  # it compiles far more than it runs
        jax.config.update("jax_disable_most_optimizations", True)
    if arm == SEARCH:
        machine.use_cache()
        folder.mkdir(exist_ok=True)
        with machine.quiet_loading():
            write_json(folder / "examination.json", searched(args, seed))
        return
    while (updates := next_length(args, arm, seed)) is not None:
        if not (folder / "config.yaml").exists():
            train(options_of(args, arm, seed, updates))
        elif spent_by(folder) is None:
            resume(folder, quiet=True)
        else:
            resume(folder, steps=updates, quiet=True)
    with machine.quiet_loading():
        table = examine_model(folder, questions=scale.questions, samples=scale.samples, seed=seed)
    write_json(folder / "examination.json", table)


def spent_by(folder: Path) -> dict[str, int] | None:
    """What a run has spent that is through with its updates; ``None`` for one that is not."""
    if not (folder / "summary.json").exists():
        return None
    summary = read_json(folder / "summary.json")
    if summary["updates"] != yaml.safe_load((folder / "config.yaml").read_text())["updates"]:
        return None
    return {name: summary[name] for name in ("updates", "executions", "tokens_trained")}


def next_length(args: argparse.Namespace, arm: str, seed: int) -> int | None:
    """Updates that a run must make next, counted from its start; ``None`` if it has spent its budget."""
    updates, per_call = updates_of(args), SCALES[args.scale].updates_per_call
    spent = spent_by(args.out / arm / str(seed))
    if not budgeted(arm):
        whole = updates * (LONGER if arm == LONG else 1)
        return whole if spent is None else None
    if spent is None:
        return per_call * max(1, round(FIRST_PART * updates / per_call))
    share = max(shares(spent, read_json(args.out / BUDGET / str(seed) / "summary.json")))
    longer = per_call * int(spent["updates"] / share / per_call)
    return longer if longer > spent["updates"] * (1 + TOLERANCE) else None


# ---- search


def searched(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """By search, group and number of candidates: the share of questions solved."""
    scale = SCALES[args.scale]
    options = options_of(args, BUDGET, seed, scale.updates_per_call)
    domain, split = options.make_domain(), make_split(LARGEST_SPLIT, share=options.hold_out)
    assert isinstance(domain, ListDomain)
    # The keys of ``examine_model``: the models of this seed are asked the same.
    *keys, _ = jax.random.split(jax.random.key(seed), 3)
    ((_, asked),) = list_questions(domain, split, keys, number=scale.questions, extrapolation=False)
    induction, abduction = (asked.items[TASKS.index(task)] for task in ("induction", "abduction"))
    draw_key, place_key, input_key = jax.random.split(keys[0], 3)
    level = jnp.asarray(domain.max_lines, jnp.int32)
    (draft,) = jax.jit(lambda key: domain.draw(key, [0], scale.candidates, level))(draw_key)
    every = [enumerate_programs(lines) for lines in range(1, domain.max_lines + 1)]
    enumerated = jax.tree.map(lambda *x: np.concatenate(x), *every)
    pool = search_programs(induction, jax.device_get(draft.program), shown=domain.shown)
    first = np.asarray(jax.random.randint(place_key, (len(pool.fits), 1), 0, scale.candidates))
    place = (first + np.arange(scale.candidates)) % scale.candidates
    found = {
        "induction, random programs": type(pool)(*(np.take_along_axis(x, place, axis=1) for x in pool)),
        "induction, all programs in order": search_programs(induction, enumerated, shown=domain.shown),
        "abduction, random inputs": search_inputs(input_key, abduction, number=scale.candidates),
    }
    group = np.asarray(asked.group)
    result: dict[str, Any] = {}
    for name, candidates in found.items():
        most = candidates.fits.shape[1]
        for n, label in enumerate(asked.names):
            tries = [k for k in (1, 8, 64, 512, 4096) if k < most] + [most]
            share = {str(k): float(solved_after(candidates, k)[group == n].mean()) for k in tries}
            result.setdefault(name, {})[label] = share
    return result


if __name__ == "__main__":
    main()
