"""Options with several values on a command line, for the commands that vary some."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azjax.config import ConfigError, require
from azjax.runs.reading import parse_yaml, read_limited

_LARGEST_AXES = 1 << 20
_TEXT = frozenset({"run", "wandb", "preset", "coordinator"})  # whose values may look like lists and ranges


def take_flags(args: Sequence[str], prog: str, flags: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of a command's own flags, whole numbers (``--axes``: a path), and the rest of the command line."""
    values: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag, equals, text = word.partition("=")
        if flag not in flags:
            rest.append(word)
            continue
        text = text if equals else next(words, "")
        require(bool(text), f"{flag} needs a value; see {prog} --help")
        values[flag.removeprefix("--")] = Path(text) if flag == "--axes" else _whole(flag, text)
    return values, rest


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; it must be a whole number") from None


def take_axes(args: Sequence[str], file: Path | None, prog: str) -> tuple[dict[str, Any], list[str]]:
    """The options with several values, those in a YAML file among them, and the rest of the command line.

    Returns:
      What ``azjax.runs.sweep.read_axis`` reads, by the options' names, and the words that are left.
    """
    axes: dict[str, Any] = {}
    rest: list[str] = []
    skip = False
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        if skip:
            skip = False
            continue
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        text = text if equals else following
        several = "," in text or ".." in text or text.startswith("log:")
        if flag.startswith("--") and several and name not in _TEXT:
            require(name not in axes, f"{flag} is given twice; see {prog} --help")
            axes[name], skip = text, not equals
        else:
            rest.append(word)
    for name, spec in ({} if file is None else read_axes(file, prog)).items():
        require(name not in axes, f"{name} varies on the command line and in {file}; leave one out")
        axes[name] = spec
    return axes, rest


def read_axes(file: Path, prog: str) -> dict[str, Any]:
    """The options in a YAML file of axes."""
    mend = f"see {prog} --help for its form"
    content = read_limited(file, _LARGEST_AXES, "name a YAML file")
    try:
        data = parse_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{file} is no YAML of axes: {error}; {mend}") from error
    require(isinstance(data, dict) and len(data) > 0, f"{file} holds no options with values; {mend}")
    return {str(name): spec for name, spec in data.items()}
