"""``azjax selfplay``."""

from __future__ import annotations

from collections.abc import Sequence

from azjax.cli import algorithms
from azjax.cli.algorithms import flags_by_algorithm
from azjax.runs.selfplay import selfplay
from azjax.runs.selfplay_options import SelfPlayOptions, selfplay_preset

FLAGS = flags_by_algorithm(SelfPlayOptions, "self-play with a solver that learns")


def run(args: Sequence[str], prog: str) -> int:
    """Trains a solver and a proposer of tasks."""
    selfplay(read_options(args, prog))
    return 0


def read_options(args: Sequence[str], prog: str) -> SelfPlayOptions:
    """The options of a run: the preset of the body and the algorithm, overridden by flags."""
    options = algorithms.read_options(FLAGS, lambda named: selfplay_preset(named.env, named.algorithm), args, prog)
    return algorithms.options_of_run(options, SelfPlayOptions)
