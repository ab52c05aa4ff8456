"""Where commands that measure something put what they found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from azjax.runs.console import RunConsole
from azjax.runs.folder import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """Options of all of them."""

    output: Path | None = None
    """File for the results as JSON, in full; must not exist yet."""
    json: bool = False
    """Print the results as JSON instead of a table."""


def give(results: dict[str, Any], options: ResultOptions, title: str, rows: list[tuple[str, str]]) -> None:
    """Writes the results into the file and prints them, as the options say.

    Args:
      results: plain data.
      options: of the command; the file doesn't exist yet.
      title: of the table.
      rows: of the table: names and values.
    """
    if options.output is not None:
        write_json(options.output, results)
    if options.json:
        print(json.dumps(results))
    else:
        RunConsole(0).summary(title, rows)
