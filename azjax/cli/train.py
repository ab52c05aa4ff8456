"""``azjax train``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from azjax.cli.parsing import flags_of, parse
from azjax.cli.together import together
from azjax.config import ConfigError, require, require_number
from azjax.ppo import PPOConfig
from azjax.runs.hosts import Hosts
from azjax.runs.options import TrainOptions, preset_options, read_preset
from azjax.runs.sweep import Member, spread
from azjax.runs.sweeps import Sweep, preview, run_sweep
from azjax.runs.train import train
from azjax.trpo import TRPOConfig


@dataclasses.dataclass(frozen=True)
class CommandOptions(TrainOptions):
    """What the command takes beside the options of a run."""

    preset: Path | None = None
    """File with the settings to start from, as `azjax tune` writes it. Default: azjax's own for the environment."""
    seeds: int = 1
    """Train so many agents at once, with the seeds from --seed on; `azjax sweep` varies other options, too."""
    chunk: int | None = None
    """Most agents of one program, with --seeds. Default: as many as fit into memory."""
    dry_run: bool = False
    """Say what would run, on which devices and with how much memory, and end."""
    coordinator: str | None = None
    """HOST:PORT where the processes of one run on several machines meet; with --processes and --process."""
    processes: int | None = None
    """Processes of the run; each is started with the same options but --process."""
    process: int | None = None
    """Number of this process, from 0 on."""
    distributed: bool = False
    """Find the other processes out from SLURM, Open MPI, Kubernetes or a TPU pod."""

    @property
    def hosts(self) -> Hosts:
        """The processes of the run."""
        return Hosts(self.coordinator, self.processes, self.process, self.distributed)


@dataclasses.dataclass(frozen=True)
class PPOTrainOptions(CommandOptions):
    """Options of one training run with PPO; `--algorithm trpo --help` shows those of TRPO."""

    learner: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """Hyperparameters of PPO."""


@dataclasses.dataclass(frozen=True)
class TRPOTrainOptions(CommandOptions):
    """Options of one training run with TRPO."""

    learner: TRPOConfig = dataclasses.field(default_factory=TRPOConfig)
    """Hyperparameters of TRPO."""


FLAGS: dict[str, type[CommandOptions]] = {"ppo": PPOTrainOptions, "trpo": TRPOTrainOptions}


def run(args: Sequence[str], prog: str) -> int:
    """Trains a policy, or several at once."""
    given = read_command(args, prog)
    options = run_options(given)
    require_number("seeds", given.seeds, 1, 4096)
    if given.seeds > 1 or given.dry_run:
        members = spread(options, {}, seeds=given.seeds)
        return start_sweep(options, members, given, ["train", *args])
    require(given.chunk is None, "chunk is the most agents of one program, but there is one; give --seeds, too")
    return together(given.hosts, ["train", *args], lambda: train(options))


def start_sweep(
    options: TrainOptions, members: Sequence[Member], given: CommandOptions, command: Sequence[str], halvings: int = 0
) -> int:
    """Trains the members of a sweep, or says what it would be."""
    sweep = Sweep(dataclasses.replace(options, run=None), tuple(members), given.chunk, halvings=halvings)
    if given.dry_run:
        print("\n".join(preview(sweep)))
        return 0
    return together(given.hosts, command, lambda: run_sweep(sweep, options.run))


def read_options(args: Sequence[str], prog: str) -> TrainOptions:
    """The options of a run on the command line; see ``read_command``."""
    return run_options(read_command(args, prog))


def run_options(given: CommandOptions) -> TrainOptions:
    """The options of a run among those of the command."""
    return TrainOptions(**{field.name: getattr(given, field.name) for field in dataclasses.fields(TrainOptions)})


def read_command(args: Sequence[str], prog: str) -> CommandOptions:
    """Options from the preset of the chosen environment and algorithm, overridden by flags.

    ``--help`` shows the preset's values as defaults of the environment that is named beside it.
    """
    algorithm = chosen_algorithm(args)
    flags = FLAGS.get(algorithm, PPOTrainOptions)
    check_owner(args, algorithm, FLAGS, flags, prog)
    help_flags = [a for a in args if a in ("-h", "--help")]
    chosen = parse(flags, [a for a in args if a not in help_flags], prog=prog)
    if chosen.preset is None:
        preset = preset_options(chosen.env, chosen.backend, chosen.algorithm)
    else:
        preset = read_preset(chosen.preset, chosen.env, chosen.backend, chosen.algorithm)
    return parse(flags, args, prog=prog, default=flags(**vars(preset)))


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
