"""``azjax train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from azjax.cli import algorithms
from azjax.cli.algorithms import flags_by_algorithm, options_of_run
from azjax.cli.together import together
from azjax.config import require, require_number
from azjax.runs.hosts import Hosts
from azjax.runs.options import TrainOptions, preset_options, read_preset
from azjax.runs.sweep import Member, spread
from azjax.runs.sweeps import Sweep, preview, run_sweep
from azjax.runs.train import train


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


FLAGS = flags_by_algorithm(CommandOptions, "one training run")


def run(args: Sequence[str], prog: str) -> int:
    """Trains a policy, or several at once."""
    given = read_command(args, prog)
    options = options_of_run(given, TrainOptions)
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
    return options_of_run(read_command(args, prog), TrainOptions)


def read_command(args: Sequence[str], prog: str) -> CommandOptions:
    """The options of the command: a preset, overridden by flags."""
    return algorithms.read_options(FLAGS, _preset, args, prog)


def _preset(named: CommandOptions) -> TrainOptions:
    """The preset that the command line names, or azjax's own for the environment and the algorithm that it names."""
    if named.preset is None:
        return preset_options(named.env, named.backend, named.algorithm)
    return read_preset(named.preset, named.env, named.backend, named.algorithm)
