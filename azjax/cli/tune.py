"""``azjax tune``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from azjax.cli.algorithms import options_of_run
from azjax.cli.axes import take_axes, take_flags
from azjax.cli.train import CommandOptions, read_command
from azjax.config import require
from azjax.runs.options import TrainOptions
from azjax.runs.tune import Search, default_space, tune

HELP = """\
usage: azjax tune ENV [--OPTION RANGE ...] [--trials N] [--batch N] [--seeds N] [--axes FILE] [options of azjax train]

Searches for hyperparameters with optuna (TPE), a population for each batch of trials, and writes the best as a preset.

What is searched is written as for azjax sweep; default: learning rate (TRPO: max_kl), gamma and lam
  --learning-rate log:1e-4..1e-2 a range in the logarithm
  --lam 0.9..1                   a range
  --epochs 2,4,8                 a list; a static option like this one makes a program for each value

options of the search:
  --trials N     configurations to try (32)
  --batch N      trials that are trained together (8): the next ones are chosen when these have ended
  --seeds N      runs of each trial, whose mean return counts (1)
  --axes FILE    YAML with more options to search
  --chunk N      most agents of one program; default as many as fit into memory
  --run DIR      folder for the results; must be new or empty
All others are those of one run: azjax train ENV --help. azjax resume DIR goes on with a search that was interrupted.
Results: DIR/preset.yaml, for azjax train ENV --preset DIR/preset.yaml, and DIR/trials.csv."""


def run(args: Sequence[str], prog: str) -> int:
    """Searches for hyperparameters."""
    if not args or any(word in ("-h", "--help") for word in args):
        print(HELP)
        return 0 if args else 2
    search, given = read_search(args, prog)
    tune(search, given.run)
    return 0


def read_search(args: Sequence[str], prog: str) -> tuple[Search, CommandOptions]:
    """What the command line asks for, and the options of the command."""
    own, rest = take_flags(args, prog, ("--trials", "--batch", "--axes"))
    space, rest = take_axes(rest, own.pop("axes", None), prog)
    given = read_command(rest, prog)
    require(not given.hosts.several, "a search runs in one process; leave the coordinator out")
    require(not given.dry_run, "what a search tries depends on what it finds; leave --dry-run out")
    base = dataclasses.replace(options_of_run(given, TrainOptions), run=None)
    return Search(base, space or default_space(base), seeds=given.seeds, chunk=given.chunk, **own), given
