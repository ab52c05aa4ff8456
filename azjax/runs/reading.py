"""Files that a stranger may have written: plain files of bounded size, from which nothing is executed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from azjax.config import ConfigError

_COPY = "use another copy of it"


def check_file(path: Path, mend: str | None = None) -> None:
    """Raises ``ConfigError`` unless there is a plain file; a pipe or a device would never end."""
    if not os.path.isfile(path):
        reason = "is no file" if os.path.lexists(path) else "is missing"
        raise ConfigError(f"{path} {reason}; {mend or 'is this the folder of a run?'}")


def read_limited(path: Path, largest: int, mend: str | None = None) -> bytes:
    """The content of a plain file of at most so many bytes.

    Args:
      path: the file.
      largest: bytes that are still read.
      mend: what the message proposes; default another copy, or another folder if there is no file.

    Raises:
      ConfigError: if it is missing, something else than a file, larger, or can't be read.
    """
    check_file(path, mend)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; {mend or _COPY}") from error
    if len(content) > largest:
        raise ConfigError(f"{path} is larger than {largest} bytes; {mend or _COPY}")
    return content


def parse_json(content: bytes) -> Any:
    """JSON without NaN, infinities, and numbers that would become one.

    Raises:
      ValueError: if it is none, or nested too deeply.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            refuse(digits)
        return number

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse, parse_float=finite)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(content: bytes) -> Any:
    """YAML of plain data, without aliases, which make a small file mean a huge structure.

    Raises:
      ValueError: if it is none, or nested too deeply.
    """
    try:
        return yaml.load(content.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {getattr(error, 'problem', None) or 'it is no text'}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, largest: int) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ConfigError: if it can't be read (``read_limited``), or holds no JSON object.
    """
    try:
        data = parse_json(read_limited(path, largest))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}; {_COPY}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no JSON object; {_COPY}")
    return data


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise ValueError("it has aliases")
        return super().compose_node(parent, index)
