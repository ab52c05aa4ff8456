"""``azjax report``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from azjax.cli.compare import warn
from azjax.cli.parsing import parse
from azjax.config import require
from azjax.runs.comparison import compare_folders
from azjax.runs.folder import check_output
from azjax.runs.report import write_report


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Options of a report."""

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]
    """Run folders, or folders that hold some; others are compared to the first configuration."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """File for the page; must not exist yet."""
    thresholds: tuple[float, ...] = ()
    """Returns to time the way to. Default: some between the lowest and the highest evaluation of each environment."""


def run(args: Sequence[str], prog: str) -> int:
    """Writes a report."""
    options = parse(ReportOptions, args, prog=prog)
    require(options.output.suffix in (".html", ".htm"), f"output is {options.output}; a report ends in .html")
    check_output(options.output)
    comparison = compare_folders(options.runs, options.thresholds)
    write_report(options.output, comparison)
    warn(comparison, prog)
    size = options.output.stat().st_size
    count = len(comparison.runs)
    print(f"{options.output}: {count} run{'s' * (count != 1)}, {size / 1e6:.1f} MB; open it in a browser")
    return 0
