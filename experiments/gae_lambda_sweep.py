"""The grid of gamma and lambda of the GAE paper (arXiv 1506.02438, figures 2 and 3): docs/gae_study.md.

Command:   python experiments/gae_lambda_sweep.py --out runs/gae_cartpole
           python experiments/gae_lambda_sweep.py --task biped --out runs/gae_biped
           python experiments/gae_lambda_sweep.py --task quadruped --out runs/gae_quadruped
Hardware:  2 CPU cores. The paper's scale, for a GPU: --task biped --seeds 9 --iterations 500 --at-once 81, and
           --task quadruped --seeds 5 --iterations 1000 --lanes 100 --at-once 15
Time:      cart-pole: 13 minutes beside other work; the others: about half an hour; --minutes stops sooner
Expected:  cart-pole, gamma 0.99, after 20 iterations: 9604 with lambda 1, 9693 with 0.99, 7268 with 0.96, 1446 with 0

A *member* is one training run: a gamma, a lambda and a seed. gamma and lambda are traced hyperparameters, so many
members learn side by side in one compiled program. A member that is finished is a line of ``members.jsonl``; the script
can be interrupted, started again and given more seeds: only what is missing is run. At the end it writes ``table.md``,
``results.json``, ``curves.png`` and, if there is a grid, ``heat_map.png``.

Cart-pole is the paper's section 6.2.1: a linear policy, a value function with one hidden layer of 20 units, batches of
20 trajectories of at most 1000 steps. Any other task that ``azjax.make_env`` knows by name learns with the networks of
section 6.2.2 and its pairs of gamma and lambda.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gae_sweep_report
import jax.numpy as jnp
import numpy as np
import paper_trpo
from gae_sweep_report import Setting, Study

from azjax.config import ConfigError, require, require_number
from azjax.runs import machine
from azjax.runs.folder import write_json, write_text

LAMBDAS = (1.0, 0.99, 0.98, 0.96, 0.92, 0.84, 0.68, 0.36, 0.0)
# The paper's gammas can't be read off its figure; these are its lambdas, and 0.995 of its 3D tasks.
GAMMAS = (1.0, 0.995, 0.99, 0.98, 0.96, 0.92, 0.84, 0.68)
BIPED_PAIRS = tuple((0.995, lam) for lam in (0.92, 0.96, 0.98, 0.99, 1.0)) + tuple(
    (gamma, 0.96) for gamma in (0.96, 0.98, 0.99, 1.0)
)
DIAGNOSTICS = ("trajectory_return", "trajectory_length", "kl", "accepted", "nonfinite_lanes")


def default_study(task: str) -> Study:
    """The settings that the paper compares on a task."""
    if task == "cartpole":
        curves = tuple(Setting(0.99, lam) for lam in (None, *LAMBDAS))
        grid = tuple(Setting(gamma, lam) for gamma in GAMMAS for lam in (None, *LAMBDAS))
        return Study(curves, 50, tuple(s for s in grid if s not in curves), 20, seeds=21, at_once=42)
    # The paper's curves without a value function are left out: they need whole trajectories, of which a batch of some
    # lanes has few complete ones, and these are the short ones.
    pairs = ((0.995, 0.0), (0.995, 0.96), (0.995, 1.0)) if task == "quadruped" else BIPED_PAIRS
    return Study(tuple(Setting(*pair) for pair in pairs), 30, (), 15, seeds=4, at_once=12)


def main() -> None:
    """Runs the members that are missing, then writes table and pictures."""
    args = parse()
    try:
        sweep(args)
    except ConfigError as error:
        raise SystemExit(f"gae_lambda_sweep: {error}") from None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for members and results")
    parser.add_argument("--task", default="cartpole", help="cartpole, biped, quadruped or a name of azjax.make_env")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... of every setting")
    parser.add_argument("--iterations", type=int, help="updates of the members with curves")
    parser.add_argument("--grid-iterations", type=int, help="updates after which the grid is compared")
    parser.add_argument("--no-grid", action="store_true", help="curves only")
    parser.add_argument("--lanes", type=int, help="trajectories that begin together in a batch")
    parser.add_argument("--rollout-length", type=int, help="steps of each; the time limit of cart-pole")
    parser.add_argument("--max-value-change", type=float, help="epsilon of the value function's trust region")
    parser.add_argument("--at-once", type=int, help="members in one program")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further members after so long")
    return parser.parse_args()


def sweep(args: argparse.Namespace) -> None:
    study = chosen_study(args)
    machine.split_host(lambda devices: study.at_once % devices == 0)
    task = paper_trpo.default_task(args.task)
    changes = {name: getattr(args, name) for name in ("lanes", "rollout_length", "max_value_change")}
    task = dataclasses.replace(task, **{name: value for name, value in changes.items() if value is not None})
    require_number("--lanes", task.lanes, 1, 2**20)
    require_number("--rollout-length", task.rollout_length, 1, 2**20)
    task.config().validate()
    args.out.mkdir(parents=True, exist_ok=True)
    check_settings(args.out / "settings.json", {"task": dataclasses.asdict(task), "trpo": task.hyperparameters()})
    file = args.out / "members.jsonl"
    run_missing(file, task, study, stop=time.monotonic() + 60 * args.minutes)
    gae_sweep_report.write(args.out, task, study, read_members(file))


def chosen_study(args: argparse.Namespace) -> Study:
    study = default_study(args.task)
    changes = {name: getattr(args, name) for name in ("seeds", "iterations", "grid_iterations", "at_once")}
    study = dataclasses.replace(study, **{name: value for name, value in changes.items() if value is not None})
    require_number("--seeds", study.seeds, 1, 10_000)
    require_number("--iterations", study.iterations, 1, 100_000)
    require_number("--at-once", study.at_once, 1, 100_000)
    if args.no_grid or not study.grid:
        return dataclasses.replace(study, grid=(), grid_iterations=min(study.grid_iterations, study.iterations))
    require_number("--grid-iterations", study.grid_iterations, 1, study.iterations)
    return study


# ---- members


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Members of other settings can't be mixed with those of this call."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text())
        require(
            before == settings, f"{path.parent} holds members of other settings ({path.name}); choose another --out"
        )
    else:
        write_json(path, settings)


def read_members(file: Path) -> dict[tuple[Setting, int], dict[str, Any]]:
    """The longest run of each setting and seed."""
    members: dict[tuple[Setting, int], dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        record = json.loads(line)
        key = Setting(record["gamma"], record["lam"]), record["seed"]
        if key not in members or len(record["trajectory_return"]) > len(members[key]["trajectory_return"]):
            members[key] = record
    return members


def missing(study: Study, members: dict[tuple[Setting, int], dict[str, Any]]) -> Iterator[tuple[Setting, int, int]]:
    """``(setting, seed, iterations)`` seed by seed, so that a sweep that is cut short compares all settings."""
    wanted = [(s, study.iterations) for s in study.curves] + [(s, study.grid_iterations) for s in study.grid]
    for seed in range(study.seeds):
        for setting, iterations in wanted:
            found = members.get((setting, seed))
            if found is None or len(found["trajectory_return"]) <= iterations:
                yield setting, seed, iterations


def run_missing(file: Path, task: paper_trpo.Task, study: Study, *, stop: float) -> None:
    """Runs members in pieces, and appends each to the file as soon as it is over."""
    if file.exists():  # a line that an interrupt has cut goes
        text = file.read_text()
        write_text(file, text[: text.rfind("\n") + 1])
    todo = list(missing(study, read_members(file)))
    programs: dict[bool, paper_trpo.Members] = {}
    done, start = 0, time.monotonic()
    for with_value, iterations in sorted({(s.lam is not None, n) for s, _, n in todo}):
        group = [(s, seed) for s, seed, n in todo if (s.lam is not None, n) == (with_value, iterations)]
        if with_value not in programs:
            programs[with_value] = paper_trpo.compile_members(task, study.at_once, with_value=with_value)
        for first in range(0, len(group), study.at_once):
            if time.monotonic() > stop:
                print(f"time is over: {len(todo) - done} of {len(todo)} members are left; start again to go on")
                return
            piece = group[first : first + study.at_once]
            records = run_piece(programs[with_value], piece, iterations, study.at_once)
            with file.open("a") as lines:
                lines.writelines(json.dumps(record) + "\n" for record in records)
            done += len(piece)
            print(f"{done} of {len(todo)} members, {time.monotonic() - start:.0f} s", flush=True)


def run_piece(
    program: paper_trpo.Members, piece: list[tuple[Setting, int]], iterations: int, size: int
) -> list[dict[str, Any]]:
    """Some members side by side; the program has one size, so a short piece is filled up with its last member."""
    filled = piece + piece[-1:] * (size - len(piece))
    state = program.init(
        jnp.array([seed for _, seed in filled], jnp.int32),
        [setting.gamma for setting, _ in filled],
        [1.0 if setting.lam is None else setting.lam for setting, _ in filled],
    )
    history = []
    # The last batch only measures the policy after all updates.
    for _ in range(iterations + 1):
        state, info = program.step(state)
        history.append({name: np.asarray(info[name]) for name in DIAGNOSTICS})
    columns = {name: np.stack([record[name] for record in history]) for name in DIAGNOSTICS}
    return [
        {**setting._asdict(), "seed": seed}
        | {name: [float(f"{x:.6g}") for x in column[:, n]] for name, column in columns.items()}
        for n, (setting, seed) in enumerate(piece)
    ]


if __name__ == "__main__":
    main()
