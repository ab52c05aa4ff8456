"""A run's folder: where each file lies, and writes that leave a whole file or none."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from azjax.config import ConfigError, require


class RunFolder:
    """The folder of one training run.

    Args:
      path: created, with the folders above it, unless it is there and empty.

    Raises:
      ConfigError: if it is a file, holds something, or can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run folder {path} can't be made: {error.strerror}; choose another --run") from error
        require(os.access(path, os.W_OK), f"run folder {path} can't be written; choose another --run")

    @classmethod
    def numbered(cls, path: Path) -> RunFolder:
        """A folder that no other run has: ``path``, or with -2, -3, ... behind it where others were first."""
        candidate, number = path, 1
        while candidate.parent.is_dir() or number == 1:
            try:
                candidate.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}-{number}")
            except OSError:
                break  # the constructor says what is wrong
        return cls(candidate)

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name


def check_free(path: Path) -> None:
    """Raises ``ConfigError`` unless there is nothing at ``path``, or an empty folder."""
    try:
        require(not path.exists() or path.is_dir(), f"run folder {path} is a file; choose another --run")
        occupied = path.exists() and any(path.iterdir())
    except OSError as error:
        raise ConfigError(f"run folder {path} can't be used: {error.strerror}; choose another --run") from error
    require(not occupied, f"run folder {path} is not empty; choose another --run or remove it")


def check_output(path: Path) -> None:
    """Raises ``ConfigError`` unless a new file can be written at ``path``."""
    require(not os.path.lexists(path), f"{path} exists already; choose another --output")
    require(os.path.isdir(path.parent), f"folder {path.parent} does not exist; make it, or choose another --output")
    try:
        path.touch(exist_ok=False)
        path.unlink()
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}; choose another --output") from error


@contextlib.contextmanager
def new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """New files that appear together at the end of the block: all of them or, after an error in it, none.

    Yields:
      Where the block is to write each of them: beside its place, with its suffix.

    Raises:
      ConfigError: if one exists already or can't be written.
    """
    for path in paths:
        check_output(path)
    parts = tuple(path.with_name(f".part-{os.getpid()}-{n}{path.suffix}") for n, path in enumerate(paths))
    placed: list[Path] = []
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            require(not os.path.lexists(path), f"{path} exists already; choose another --output")
            part.rename(path)
            placed.append(path)
    except BaseException as error:
        for path in placed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise ConfigError(f"{paths[0]} can't be written: {reason}; choose another --output") from error
        raise
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def first_free(path: Path) -> Path:
    """``path``, or with -2, -3, ... behind its stem where others were first."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, indented, as one piece."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, written as it comes."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; a line is complete on disk before the next begins."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
