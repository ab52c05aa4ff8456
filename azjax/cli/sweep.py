"""``azjax sweep``."""

from __future__ import annotations

from collections.abc import Sequence

from azjax.cli.algorithms import options_of_run
from azjax.cli.axes import take_axes, take_flags
from azjax.cli.train import CommandOptions, read_command, start_sweep
from azjax.config import require, require_number
from azjax.runs.options import TrainOptions
from azjax.runs.sweep import Member, read_axis, spread

HELP = """\
usage: azjax sweep ENV [--OPTION VALUES ...] [--samples N] [--seeds N] [--axes FILE] [options of azjax train]

Trains every combination of the options that have several values, with several seeds each: all members that differ in
seed and traced hyperparameters (learning rate, gamma, lam, clip, max_kl, ...) in one program, others in a program for
each set of lanes, layers, epochs, ...

An option of azjax train gets several values as
  --gamma 0.97,0.99              a list
  --lam 0.9..1                   a range, drawn from uniformly
  --learning-rate log:1e-4..1e-2 a range, drawn from uniformly in its logarithm

options of the sweep:
  --samples N    draws from the ranges for each combination of the lists (1)
  --seeds N      runs of each configuration, with the seeds from --seed on (1)
  --axes FILE    YAML with more options to vary: gamma: [0.97, 0.99], lam: {uniform: [0.9, 1]},
                 learning_rate: {log: [1e-4, 1e-2]}, policy_hidden: [[64, 64], [128, 128]]
  --halvings N   after 1/2^N, ..., 1/4, 1/2 of the steps the worse half of the configurations of a program stops (0)
  --chunk N      most members of one program; default as many as fit into memory
  --dry-run      say what would run, and end
  --run DIR      folder for the results; must be new or empty
All others are those of one run: azjax train ENV --help.
Results: DIR/results.csv, DIR/summary.json, DIR/report.html, and in DIR/members a run folder of each member."""


def run(args: Sequence[str], prog: str) -> int:
    """Trains many members."""
    if not args or any(word in ("-h", "--help") for word in args):
        print(HELP)
        return 0 if args else 2
    options, members, given, halvings = read_sweep(args, prog)
    return start_sweep(options, members, given, ["sweep", *args], halvings)


def read_sweep(args: Sequence[str], prog: str) -> tuple[TrainOptions, list[Member], CommandOptions, int]:
    """Options of all members, what each member changes, the options of the command, and the number of halvings.

    Raises:
      ConfigError: for what can't be understood, or if nothing varies.
    """
    own, rest = take_flags(args, prog, ("--samples", "--axes", "--halvings"))
    varied, rest = take_axes(rest, own.get("axes"), prog)
    given = read_command(rest, prog)
    options = options_of_run(given, TrainOptions)
    require_number("seeds", given.seeds, 1, 4096)
    axes = {name: read_axis(options, name, spec) for name, spec in varied.items()}
    require(bool(axes) or given.seeds > 1, f"nothing varies: give an option several values, or --seeds; see {prog} -h")
    members = spread(options, axes, samples=own.get("samples", 1), seeds=given.seeds)
    return options, members, given, own.get("halvings", 0)
