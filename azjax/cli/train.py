"""``azjax train``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from azjax.cli.parsing import flags_of, parse
from azjax.config import ConfigError
from azjax.ppo import PPOConfig
from azjax.runs.options import TrainOptions, preset_options
from azjax.runs.train import train
from azjax.trpo import TRPOConfig


@dataclasses.dataclass(frozen=True)
class PPOTrainOptions(TrainOptions):
    """Options of one training run with PPO; `--algorithm trpo --help` shows those of TRPO."""

    learner: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """Hyperparameters of PPO."""


@dataclasses.dataclass(frozen=True)
class TRPOTrainOptions(TrainOptions):
    """Options of one training run with TRPO."""

    learner: TRPOConfig = dataclasses.field(default_factory=TRPOConfig)
    """Hyperparameters of TRPO."""


FLAGS: dict[str, type[TrainOptions]] = {"ppo": PPOTrainOptions, "trpo": TRPOTrainOptions}


def run(args: Sequence[str], prog: str) -> int:
    """Trains a policy."""
    train(read_options(args, prog))
    return 0


def read_options(args: Sequence[str], prog: str) -> TrainOptions:
    """Options from the preset of the chosen environment and algorithm, overridden by flags.

    ``--help`` shows the preset's values as defaults of the environment that is named beside it.
    """
    algorithm = chosen_algorithm(args)
    flags = FLAGS.get(algorithm, PPOTrainOptions)
    check_owner(args, algorithm, FLAGS, flags, prog)
    help_flags = [a for a in args if a in ("-h", "--help")]
    chosen = parse(flags, [a for a in args if a not in help_flags], prog=prog)
    preset = preset_options(chosen.env, chosen.backend, chosen.algorithm)
    return TrainOptions(**vars(parse(flags, args, prog=prog, default=flags(**vars(preset)))))


def chosen_algorithm(args: Sequence[str]) -> str:
    """What the command line names as the algorithm: it decides which flags there are."""
    chosen = "ppo"
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if flag == "--algorithm":
            chosen = value if equals else following
    return chosen


def check_owner(args: Sequence[str], algorithm: str, of_algorithms: Mapping[str, type], flags: type, prog: str) -> None:
    """Raises ``ConfigError`` for a flag that only another algorithm has.

    Args:
      args: the command line.
      algorithm: that it names.
      of_algorithms: the flags of every algorithm.
      flags: those of this one.
      prog: the command.
    """
    for word in args:
        flag = word.partition("=")[0].replace("_", "-")
        owners = [name for name, other in of_algorithms.items() if flag in flags_of(other)]
        if owners and flag not in flags_of(flags):
            raise ConfigError(f"{flag} is an option of {owners[0]}, not of {algorithm}; see {prog} --help")
