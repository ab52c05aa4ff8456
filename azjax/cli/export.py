"""``azjax export``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from azjax.cli.parsing import parse
from azjax.runs.console import RunConsole
from azjax.runs.export import PLATFORMS, Platform, export_policy


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    run: Path
    """Folder of a finished run."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """New file NAME.stablehlo; NAME.npz and NAME.json go beside it. Default: exported.stablehlo in the run's folder."""
    stochastic: bool = False
    """Sample actions, from a key that the program then takes, instead of the deterministic ones."""
    platforms: tuple[Platform, ...] = PLATFORMS
    """Where the program is to run."""


def run(args: Sequence[str], prog: str) -> int:
    """Exports a policy."""
    options = parse(ExportOptions, args, prog=prog)
    files = export_policy(options.run, options.output, stochastic=options.stochastic, platforms=options.platforms)
    RunConsole(0).summary(
        f"{options.run}, for {', '.join(options.platforms)}",
        [
            ("program", str(files.program)),
            ("weights", str(files.weights)),
            ("description", str(files.description)),
            ("how to run it", "docs/export.md"),
        ],
    )
    return 0
