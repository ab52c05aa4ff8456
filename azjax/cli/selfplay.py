"""``azjax selfplay``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from azjax.cli.parsing import parse
from azjax.cli.train import check_owner, chosen_algorithm
from azjax.ppo import PPOConfig
from azjax.runs.selfplay import selfplay
from azjax.runs.selfplay_options import SelfPlayOptions, selfplay_preset
from azjax.trpo import TRPOConfig


@dataclasses.dataclass(frozen=True)
class PPOSelfPlayOptions(SelfPlayOptions):
    """Options of self-play with a solver that learns by PPO; `--algorithm trpo --help` shows those of TRPO."""

    learner: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """Hyperparameters of PPO."""


@dataclasses.dataclass(frozen=True)
class TRPOSelfPlayOptions(SelfPlayOptions):
    """Options of self-play with a solver that learns by TRPO."""

    learner: TRPOConfig = dataclasses.field(default_factory=TRPOConfig)
    """Hyperparameters of TRPO."""


FLAGS: dict[str, type[SelfPlayOptions]] = {"ppo": PPOSelfPlayOptions, "trpo": TRPOSelfPlayOptions}


def run(args: Sequence[str], prog: str) -> int:
    """Trains a solver and a proposer of tasks."""
    selfplay(read_options(args, prog))
    return 0


def read_options(args: Sequence[str], prog: str) -> SelfPlayOptions:
    """Options from the preset of the chosen body and algorithm, overridden by flags."""
    algorithm = chosen_algorithm(args)
    flags = FLAGS.get(algorithm, PPOSelfPlayOptions)
    check_owner(args, algorithm, FLAGS, flags, prog)
    help_flags = [a for a in args if a in ("-h", "--help")]
    chosen = parse(flags, [a for a in args if a not in help_flags], prog=prog)
    preset = selfplay_preset(chosen.env, chosen.algorithm)
    return SelfPlayOptions(**vars(parse(flags, args, prog=prog, default=flags(**vars(preset)))))
