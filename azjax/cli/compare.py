"""``azjax compare``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from azjax.cli.parsing import parse
from azjax.runs.comparison import Comparison, compare_folders, to_plain
from azjax.runs.tables import Table, aggregate_table, option_table, task_tables


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison."""

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]
    """Run folders, or folders that hold some; others are compared to the first configuration."""
    thresholds: tuple[float, ...] = ()
    """Returns to time the way to. Default: some between the lowest and the highest evaluation of each environment."""
    json: bool = False
    """Print JSON instead of tables."""


def run(args: Sequence[str], prog: str) -> int:
    """Compares runs in the terminal."""
    options = parse(CompareOptions, args, prog=prog)
    comparison = compare_folders(options.runs, options.thresholds)
    if options.json:
        print(json.dumps(to_plain(comparison), allow_nan=False))
        return 0
    console = Console(highlight=False)
    for number, result in enumerate(comparison.tasks):
        console.print(Text(f"\n{result.task.name}", "bold"))
        for table in task_tables(result):
            show(console, table, explain=number == 0)
        if len(result.figures) > 1:
            show(console, option_table(result), explain=False)
    if comparison.aggregates:
        show(console, aggregate_table(comparison), explain=True)
    warn(comparison, prog)
    return 0


def warn(comparison: Comparison, prog: str) -> None:
    """What a reader should know of the runs, one line each, on stderr."""
    texts = list(comparison.warnings)
    if comparison.passed_over:
        texts.append(f"passed over, being no folders: {', '.join(comparison.passed_over)}")
    for text in texts:
        print(f"{prog}: warning: {text}", file=sys.stderr)


def show(console: Console, table: Table, *, explain: bool) -> None:
    """A table with its title, and its note where asked for; text from run folders is text, whatever it looks like."""
    drawn = RichTable(box=None, padding=(0, 2, 0, 0))
    for n, column in enumerate(table.columns):
        drawn.add_column(Text(column), no_wrap=True, justify="right" if n else "left")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    # A narrow terminal wraps lines, which is better than to lose their ends.
    needed = Measurement.get(console, console.options.update(width=10_000), drawn).maximum
    console.width = max(console.width, needed)
    console.print(Text(f"\n{table.title}", "underline"))
    console.print(drawn)
    if explain:
        console.print(Text(table.note, "dim"))
