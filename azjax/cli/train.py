"""``azjax train``."""

from __future__ import annotations

from collections.abc import Sequence

from azjax.cli.parsing import parse
from azjax.runs.options import TrainOptions, preset_options
from azjax.runs.train import train


def run(args: Sequence[str], prog: str) -> int:
    """Trains a policy."""
    train(read_options(args, prog))
    return 0


def read_options(args: Sequence[str], prog: str) -> TrainOptions:
    """Options from the preset of the chosen environment, overridden by flags.

    ``--help`` shows the preset's values as defaults of the environment that is named beside it.
    """
    help_flags = [a for a in args if a in ("-h", "--help")]
    chosen = parse(TrainOptions, [a for a in args if a not in help_flags], prog=prog)
    preset = preset_options(chosen.env, chosen.backend, chosen.algorithm)
    return parse(TrainOptions, args, prog=prog, default=preset)
