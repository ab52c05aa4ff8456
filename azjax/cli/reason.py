"""``azjax reason``: trains, examines and uses a reasoner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from azjax.cli import algorithms
from azjax.cli.algorithms import flags_by_algorithm
from azjax.cli.parsing import parse
from azjax.cli.results import ResultOptions, give
from azjax.config import ConfigError, nearest, require_number
from azjax.runs import machine
from azjax.runs.console import RunConsole
from azjax.runs.folder import check_output, write_json
from azjax.runs.reason import table_rows, train
from azjax.runs.reason_model import load_model
from azjax.runs.reason_options import LEARNERS, ReasonOptions
from azjax.runs.reason_use import examine_model, propose, read_task, solve

_ACTIONS = {
    "train": "train a reasoner from zero data",
    "evaluate": "pass@k of a trained reasoner on held-out programs",
    "solve": "have a trained reasoner solve a task that is given as text",
    "propose": "have a trained reasoner write programs, verified, with their outputs",
}


FLAGS = flags_by_algorithm(
    ReasonOptions, "a run of the reasoner (REINFORCE is PPO with one epoch and one minibatch)", LEARNERS
)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(ResultOptions):
    """Options of an examination."""

    run: Path
    """Folder of a run of the reasoner."""
    questions: int = 128
    """Questions of each length and task type."""
    samples: int = 64
    """Sampled answers to each question, beside the most probable one; pass@k is given for k of 1, 8 and 64."""
    seed: int = 0
    """Seed of questions and answers."""
    extrapolation: bool = True
    """Ask for programs with four lines and with two inputs, too."""


@dataclasses.dataclass(frozen=True)
class SolveOptions:
    """A task. Deduction: a program and an input. Abduction: a program and an output. Induction: pairs."""

    run: Path
    """Folder of a run of the reasoner."""
    pairs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pairs such as '[3 1] -> [1 3]', for which to find a program; the model is shown the first ones."""
    program: str | None = None
    """Such as 'x0 = INPUT list | x2 = Map (*2) x0'."""
    input: str | None = None
    """Such as '[1 2 3]', or two inputs with a semicolon between; the output is asked."""
    output: str | None = None
    """Such as '[2 4 6]'; an input that leads to it is asked."""
    attempts: int = 64
    """Answers at most, the most probable one first; those that execution refutes are passed over."""
    seed: int = 0
    """Seed of the sampled answers."""


@dataclasses.dataclass(frozen=True)
class ProposeOptions:
    """Options of proposing."""

    run: Path
    """Folder of a run of the reasoner."""
    number: int = 16
    """Proposals; those that don't pass the gates are left out."""
    seed: int = 0
    """Seed of everything random."""
    output: Path | None = None
    """File for the programs as JSON; must not exist yet."""


def run(args: Sequence[str], prog: str) -> int:
    """Runs one of the four actions."""
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, _ACTIONS))
        print(f"usage: {prog} ACTION [options]\n\nactions:")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in _ACTIONS.items()))
        print(f"\n{prog} ACTION --help shows the options of an action.")
        return 0 if args else 2
    action, rest = args[0], args[1:]
    if action not in _ACTIONS:
        raise ConfigError(
            f"unknown action {action!r}{nearest(action, list(_ACTIONS))} (there are: {', '.join(_ACTIONS)})"
        )
    return {"train": _train, "evaluate": _evaluate, "solve": _solve, "propose": _propose}[action](
        rest, f"{prog} {action}"
    )


def _train(args: Sequence[str], prog: str) -> int:
    def default_of(named: ReasonOptions) -> ReasonOptions:
        return ReasonOptions(algorithm=named.algorithm, learner=LEARNERS[named.algorithm]())

    train(algorithms.options_of_run(algorithms.read_options(FLAGS, default_of, args, prog), ReasonOptions))
    return 0


def _evaluate(args: Sequence[str], prog: str) -> int:
    options = parse(EvaluateOptions, args, prog=prog)
    require_number("questions", options.questions, 1, 2**16)
    require_number("samples", options.samples, 1, 2**16)
    require_number("seed", options.seed, 0, 2**32 - 1)
    if options.output is not None:
        check_output(options.output)
    machine.use_cache()
    table = examine_model(
        options.run,
        questions=options.questions,
        samples=options.samples,
        seed=options.seed,
        extrapolation=options.extrapolation,
    )
    give(table, options, f"{options.run}: pass@k [exact 95 % interval]", table_rows(table))
    return 0


def _solve(args: Sequence[str], prog: str) -> int:
    options = parse(SolveOptions, args, prog=prog)
    require_number("attempts", options.attempts, 1, 2**16)
    require_number("seed", options.seed, 0, 2**32 - 1)
    task = read_task(options.program, options.input, options.output, options.pairs)
    machine.use_cache()
    solution = solve(load_model(options.run), task, attempts=options.attempts, seed=options.seed)
    verdict = "right" if solution.right else "wrong"
    tried = f"{solution.tried} answer{'s' * (solution.tried > 1)}"
    rows = [("task", task.kind), ("answer", solution.answer), ("verdict", f"{verdict} by execution, after {tried}")]
    RunConsole(0).summary(str(options.run), rows)
    print("\n" + "\n".join(solution.lines))
    return 0


def _propose(args: Sequence[str], prog: str) -> int:
    options = parse(ProposeOptions, args, prog=prog)
    require_number("number", options.number, 1, 2**14)
    require_number("seed", options.seed, 0, 2**32 - 1)
    if options.output is not None:
        check_output(options.output)
    machine.use_cache()
    proposals, refused = propose(load_model(options.run), number=options.number, seed=options.seed)
    for row in proposals:
        print(f"{row['program']}\n    {row['input']} -> {row['output']}")
    print(f"{len(proposals)} of {options.number} proposals passed the gates, {refused} did not")
    if options.output is not None:
        write_json(options.output, {"proposals": proposals, "refused": refused})
    return 0
