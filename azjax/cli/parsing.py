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

from azjax.config import ConfigError, nearest

T = TypeVar("T")
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
_FRAME = re.compile(r"\x1b\[[0-9;]*m|[╭╮╰╯│]")
_RULE = re.compile(r"[-─]{3,}")
# What tyro and Python say, and what the user should hear.
_PLAINLY = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 is \2; it must be a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 is \2; it must be a number"),
    (r"Error parsing (\S+): no type matching {None}\|INT .*? from \[(.*?)\].*",
     r"\1 is \2; it must be None or a whole number"),
    (r"Error parsing (\S+): no type matching {None}\|FLOAT .*? from \[(.*?)\].*",
     r"\1 is \2; it must be None or a number"),
    (r"Error parsing (\S+): no type matching {None}\|(\S+) .*? from \[(.*?)\].*", r"\1 is \3; it must be None or \2"),
    (r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]",
     r"\1 is \2; it must be whole numbers with spaces between"),
    (r"invalid choice (.*) for argument '(\S+)'. Expected one of \((.*?),?\) ?\.", r"\2 is \1; it must be one of \3"),
    (r"Missing value for argument '(?:-\w/)?(--\S+)'.*", r"\1 needs a value"),
)  # fmt: skip


def parse(cls: type[T], args: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """An instance of the dataclass from flags.

    Args:
      cls: a dataclass; its field docstrings are the help texts.
      args: the command line behind the command.
      prog: what to call it in the help text.
      default: values of the flags that aren't given; default the fields' own.

    Raises:
      ConfigError: for a flag that doesn't exist, a value that doesn't fit, or none where at least one is required.
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
        # A misspelt flag takes the value meant for it from what follows; it is the better thing to complain about.
        unknown = [word for word in args if _is_flag(word) and _flag(word) not in flags_of(cls)]
        message = _unknown(cls, unknown[0], prog) if unknown else _one_line(errors.getvalue(), args, prog)
        raise ConfigError(message) from None
    if unknown:
        raise ConfigError(_unknown(cls, unknown[0], prog))
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        # For the parser several may be none.
        if _takes_several(cls, field) and not getattr(value, field.name):
            raise ConfigError(f"{field.name} are missing: give at least one; see {prog} --help")
    return value  # type: ignore[no-any-return]


def _is_flag(word: str) -> bool:
    return word.startswith("--") and word not in ("--", "--help")


def _flag(word: str) -> str:
    """The flag in ``--some_flag=value``, spelt as the help text does."""
    return word.partition("=")[0].replace("_", "-")


def _unknown(cls: type, word: str, prog: str) -> str:
    if not word.startswith("-"):
        several = [field.name for field in dataclasses.fields(cls) if _takes_several(cls, field)]
        hint = f"put it beside the other {several[0]}; " if several else ""
        return f"unexpected argument {word!r}; {hint}see {prog} --help"
    hint = nearest(_flag(word), sorted(flags_of(cls)))
    return f"unknown option {word}{hint or f'; see {prog} --help'}"


def flags_of(cls: type) -> set[str]:
    """The flags of a dataclass, those of nested dataclasses included; what is given by position has none."""
    flags = set()
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if _is_required(field) or tyro.conf.Positional in typing.get_args(hints[field.name]):
            continue
        nested = field.default_factory
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            nested = hints[field.name]
            if typing.get_origin(nested) is typing.Annotated:
                nested = nested.__origin__
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            flags |= flags_of(nested)
        else:
            flags.add("--" + field.name.replace("_", "-"))
            if isinstance(field.default, bool):
                flags.add("--no-" + field.name.replace("_", "-"))
    return flags


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _takes_several(cls: type, field: dataclasses.Field[Any]) -> bool:
    """Whether a field takes all the values given by position."""
    return _is_required(field) and typing.get_origin(typing.get_type_hints(cls)[field.name]) is tuple


def _one_line(box: str, args: Sequence[str], prog: str) -> str:
    """The message inside the box that tyro prints, without its title, frame and help text."""
    message: list[str] = []
    for line in [_FRAME.sub("", line).strip() for line in box.splitlines()][1:]:
        if not _RULE.fullmatch(line):
            message.append(line)
        elif message:
            break
    text = " ".join(" ".join(message).split())
    for word in args:  # a value that the box broke across lines is put together again
        text = re.sub("'" + r"\s?".join(map(re.escape, word)) + "'", repr(word).replace("\\", r"\\"), text)
    for pattern, plain in _PLAINLY:
        text = re.sub(pattern, plain, text)
    if "[FLOAT [FLOAT" in box:  # the usage, which is all that tells them from whole numbers
        text = text.replace("whole numbers with", "numbers with")
    return f"{text.removesuffix('.') or 'this command line can not be read'}; see {prog} --help"
