"""``azjax resume``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from azjax.cli.parsing import parse
from azjax.cli.together import together
from azjax.config import require_number
from azjax.runs.hosts import Hosts
from azjax.runs.kinds import resume_of


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Options of going on with a run."""

    run: Path
    """Folder of a run that was interrupted, or that is to become longer."""
    steps: int | None = None
    """Environment steps of the whole run. Default: as before."""
    devices: int | None = None
    """Devices to use. Default: as many as before; with another number bits may differ."""
    quiet: bool = False
    """Print only the summary."""
    coordinator: str | None = None
    """HOST:PORT where the processes of the run meet, as for `azjax train`."""
    processes: int | None = None
    """Processes of the run; as many as before, or others."""
    process: int | None = None
    """Number of this process, from 0 on."""
    distributed: bool = False
    """Find the other processes out from SLURM, Open MPI, Kubernetes or a TPU pod."""


def run(args: Sequence[str], prog: str) -> int:
    """Goes on with a run."""
    options = parse(ResumeOptions, args, prog=prog)
    for name in ("steps", "devices"):
        if getattr(options, name) is not None:
            require_number(name, getattr(options, name), 1, 2**53 if name == "steps" else 2**30)
    resume = resume_of(options.run)
    hosts = Hosts(options.coordinator, options.processes, options.process, options.distributed)
    return together(
        hosts,
        ["resume", *args],
        lambda: resume(options.run, steps=options.steps, devices=options.devices, quiet=options.quiet),
    )
