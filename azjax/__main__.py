"""``python -m azjax``."""

from azjax.cli import entry

entry()
