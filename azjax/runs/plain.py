"""Dataclasses from plain data that a stranger may have written: every name known, every value of its type."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from azjax.config import ConfigError, nearest, require

T = TypeVar("T")
_MOST_ENTRIES = 64
_LARGEST_ENTRY = 1 << 20


def from_plain(cls: type[T], data: Any) -> T:
    """An instance of a dataclass from what YAML or JSON gave; nested dataclasses from nested objects.

    A whole number may stand for a float, a list for a tuple of whole numbers, text for a path. What is missing was
    written before the field existed and takes its default.

    Raises:
      ConfigError: for a name that is unknown, or a value of another type.
    """
    require(isinstance(data, dict), f"{reprlib.repr(data)} stands where options should be")
    hints = typing.get_type_hints(cls)
    for name in data:
        require(name in hints, f"unknown option {name!r}{nearest(str(name), sorted(hints))}")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if name not in data:
            continue
        if dataclasses.is_dataclass(hint):
            values[name] = from_plain(typing.cast(type, hint), data[name])
        else:
            values[name] = _value(name, data[name], hint)
    return cls(**values)


def check_types(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raises ``ConfigError`` for the first value that is not of its type.

    Raises:
      KeyError: if a value is missing.
    """
    for name, hint in types.items():
        _value(name, values[name], hint)


def _value(name: str, value: Any, hint: Any) -> Any:
    bounded = type(value) is not int or abs(value) < 1 << 63  # the integers of JSON and YAML have no bound
    for kind in _alternatives(hint):
        if kind is Path and isinstance(value, str) and "\0" not in value:
            return Path(value)
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            if len(value) <= _MOST_ENTRIES and all(type(n) is int and abs(n) <= _LARGEST_ENTRY for n in value):
                return tuple(value)
        elif bounded and (type(value) is kind or (kind is float and type(value) is int)):
            return value
    raise ConfigError(f"{name} is {reprlib.repr(value)}, which has the wrong type or size")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows; the choices of a ``Literal`` are left to ``validate``."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(kind for part in typing.get_args(hint) for kind in _alternatives(part))
    if typing.get_origin(hint) is Literal:
        return tuple({type(choice) for choice in typing.get_args(hint)})
    return (hint,)
