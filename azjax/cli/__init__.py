"""The command line: parsing only; the work is done by the rooms it calls."""

from azjax.cli.main import entry, main

__all__ = ["entry", "main"]
