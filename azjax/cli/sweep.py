"""``azjax sweep``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import yaml

from azjax.cli.train import CommandOptions, read_command, run_options, start_sweep
from azjax.config import ConfigError, require, require_number
from azjax.runs.options import TrainOptions
from azjax.runs.reading import parse_yaml, read_limited
from azjax.runs.sweep import Axes, Choice, Member, Range, read_axis, spread, sweepable

_LARGEST_AXES = 1 << 20
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
  --chunk N      most members of one program; default as many as fit into memory
  --dry-run      say what would run, and end
  --run DIR      folder for the results; must be new or empty
All others are those of one run: azjax train ENV --help.
Results: DIR/results.csv, DIR/summary.json, DIR/report.html, and in DIR/members a run folder of each member."""


@dataclasses.dataclass(frozen=True)
class SweepFlags:
    """What a sweep has beside the options of ``azjax train``."""

    samples: int = 1
    axes: Path | None = None


def run(args: Sequence[str], prog: str) -> int:
    """Trains many members."""
    if not args or any(word in ("-h", "--help") for word in args):
        print(HELP)
        return 0 if args else 2
    options, members, given = read_sweep(args, prog)
    return start_sweep(options, members, given, ["sweep", *args])


def read_sweep(args: Sequence[str], prog: str) -> tuple[TrainOptions, list[Member], CommandOptions]:
    """Options of all members, what each member changes, and the options of the command.

    Raises:
      ConfigError: for what can't be understood, or if nothing varies.
    """
    own, rest = _own_flags(args, prog)
    lists, rest = _several_values(rest, prog)
    given = read_command(rest, prog)
    options = run_options(given)
    require_number("seeds", given.seeds, 1, 4096)
    axes = _axes(options, lists, own.axes)
    require(bool(axes) or given.seeds > 1, f"nothing varies: give an option several values, or --seeds; see {prog} -h")
    return options, spread(options, axes, samples=own.samples, seeds=given.seeds), given


def _own_flags(args: Sequence[str], prog: str) -> tuple[SweepFlags, list[str]]:
    """The sweep's own options, and the rest of the command line."""
    values: dict[str, object] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag in ("--samples", "--axes"):
            text = text if equals else next(words, "")
            require(bool(text), f"{flag} needs a value; see {prog} --help")
            values[name] = Path(text) if flag == "--axes" else _whole(flag, text)
        else:
            rest.append(word)
    return SweepFlags(**values), rest  # type: ignore[arg-type]


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; it must be a whole number") from None


def _several_values(args: Sequence[str], prog: str) -> tuple[dict[str, str], list[str]]:
    """Options with several values, and the rest of the command line."""
    found: dict[str, str] = {}
    rest: list[str] = []
    skip = False
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        if skip:
            skip = False
            continue
        flag, equals, text = word.partition("=")
        flag = flag.replace("_", "-")
        text = text if equals else following
        several = "," in text or ".." in text or text.startswith("log:")
        if flag.startswith("--") and several:
            name = flag.removeprefix("--").replace("-", "_")
            require(name not in found, f"{flag} is given twice; see {prog} --help")
            found[name], skip = text, not equals
        else:
            rest.append(word)
    return found, rest


def _axes(options: TrainOptions, lists: dict[str, str], file: Path | None) -> Axes:
    axes: dict[str, Choice | Range] = {name: read_axis(options, name, text) for name, text in lists.items()}
    if file is None:
        return axes
    mend = f"see azjax sweep --help for its form; options: {', '.join(sweepable(options)[:4])}, ..."
    try:
        data = parse_yaml(read_limited(file, _LARGEST_AXES, "name a YAML file"))
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} is no YAML of axes: {error}; {mend}") from error
    require(isinstance(data, dict) and len(data) > 0, f"{file} holds no options with values; {mend}")
    for name, spec in data.items():
        require(name not in axes, f"{name} varies on the command line and in {file}; leave one out")
        axes[str(name)] = read_axis(options, str(name), spec)
    return axes
