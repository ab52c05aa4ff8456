"""``azjax resume``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from azjax.cli.parsing import parse
from azjax.config import require_number
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


def run(args: Sequence[str], prog: str) -> int:
    """Goes on with a run."""
    options = parse(ResumeOptions, args, prog=prog)
    for name in ("steps", "devices"):
        if getattr(options, name) is not None:
            require_number(name, getattr(options, name), 1, 2**53 if name == "steps" else 2**30)
    resume_of(options.run)(options.run, steps=options.steps, devices=options.devices, quiet=options.quiet)
    return 0
