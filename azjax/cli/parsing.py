"""Command-line flags from dataclasses, with every mistake told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from azjax.config import ConfigError
from azjax.envs.registry import nearest

T = TypeVar("T")
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
_BOX = re.compile(r"[╭╮╰╯│]")
_RULE = re.compile(r"─{3,}")


def parse(cls: type[T], args: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """An instance of the dataclass from flags.

    Args:
      cls: a dataclass; its field docstrings are the help texts.
      args: the command line behind the command.
      prog: what to call it in the help text.
      default: values of the flags that aren't given; default the fields' own.

    Raises:
      ConfigError: for a flag that doesn't exist, or a value that doesn't fit.
      SystemExit: with code 0 after ``--help``.
    """
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            value, unknown = tyro.cli(
                tyro.conf.configure(*_MARKERS)(cls), prog=prog, args=list(args), return_unknown_args=True, **options
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(errors.getvalue())) from None
    if unknown:
        raise ConfigError(_unknown(cls, unknown[0], prog))
    return value  # type: ignore[no-any-return]


def _unknown(cls: type, word: str, prog: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; see {prog} --help"
    hint = nearest(word.partition("=")[0], sorted(flags_of(cls)))
    return f"unknown option {word}{hint or f'; see {prog} --help'}"


def flags_of(cls: type) -> set[str]:
    """The flags of a dataclass, those of nested dataclasses included; what is given by position has none."""
    flags = set()
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required or tyro.conf.Positional in typing.get_args(hints[field.name]):
            continue
        nested = field.default_factory
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            flags |= flags_of(nested)
        else:
            flags.add("--" + field.name.replace("_", "-"))
    return flags


def _one_line(box: str) -> str:
    """The message inside the box that tyro prints, without its frame and its help text."""
    lines = [_BOX.sub("", line).strip() for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if _RULE.search(line):
            break
        message.append(line)
    text = " ".join(" ".join(message).split())
    return text or "this command line can't be read; see --help"


