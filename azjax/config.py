"""Hyperparameters as frozen dataclasses in which each field says whether it is traced or static.

A *traced* field is a float that becomes an array inside the program: changing it recompiles nothing, and ``vmap`` over
it is a population. A *static* field is a shape, a count or a choice that the compiled program is built around.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

C = TypeVar("C")


class ConfigError(ValueError):
    """What a caller asked for makes no sense; the message is one line that names value, reason and mend."""


def traced(default: float) -> Any:
    """A float that the compiled program takes as an input."""
    return dataclasses.field(default=default, metadata={"traced": True})


def static(default: Any) -> Any:
    """A value that the compiled program is specialised to."""
    return dataclasses.field(default=default, metadata={"traced": False})


def traced_names(config: Any) -> tuple[str, ...]:
    """The names of the traced fields of a configuration (an instance or its class)."""
    return tuple(f.name for f in dataclasses.fields(config) if f.metadata.get("traced", False))


def register_config(cls: type[C]) -> type[C]:
    """Registers a frozen dataclass as a pytree whose leaves are its traced fields."""
    names = traced_names(cls)
    rest = tuple(f.name for f in dataclasses.fields(cls) if f.name not in names)  # type: ignore[arg-type]
    jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=rest)
    return cls


def as_arrays(config: C) -> C:
    """The same configuration with every traced field as a float32 array."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)


def require(condition: bool, message: str) -> None:
    """Raises ``ConfigError(message)`` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raises ``ConfigError`` unless ``low <= value <= high`` (NaN fails), with a message that names field and value."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must lie between {low} and {high}")


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.65)
    return f"; did you mean {match[0]!r}?" if match else ""
