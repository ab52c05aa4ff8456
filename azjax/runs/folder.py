"""A run's folder: where each file lies, and writes that leave a whole file or none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

    @classmethod
    def new(cls, path: Path, *, chosen: bool) -> RunFolder:
        """The folder of a new run: ``path`` if it was chosen for it, else that or the next ``numbered`` one."""
        return cls(path) if chosen else cls.numbered(path)

    @classmethod
    def existing(cls, path: Path, *, nested: bool = False) -> RunFolder:
        """The folder of a run that was started before, which may have been a stranger's: it must hold no links.

        Args:
          path: the folder.
          nested: whether it holds folders of runs, which must hold none either.

        Raises:
          ConfigError: if it is no folder, can't be read or written, or holds a link.
        """
        require(os.path.isdir(path), f"{path} is not a run folder; azjax train makes one")
        require(os.access(path, os.R_OK | os.W_OK), f"run folder {path} can't be written; copy it to where it can")
        places = [path]
        while places:
            for child in places.pop().iterdir():
                link = child.is_symlink()
                require(not link, f"{child} is a link, which azjax does not write through; move it elsewhere")
                if nested and child.name != "wandb" and child.is_dir():  # Weights & Biases makes links of its own
                    places.append(child)
        folder = cls.__new__(cls)
        folder.path = path
        return folder

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keeps other processes from training into the same folder; the operating system ends it with the process.

        Raises:
          ConfigError: if another process holds it.
        """
        lock = os.open(self.path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(lock, self.path)
            yield
        finally:
            os.close(lock)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"run {path} is being trained by another process; wait for it to end") from error


def check_free(path: Path) -> None:
    """Raises ``ConfigError`` unless there is nothing at ``path``, or an empty folder."""
    try:
        require(not path.exists() or path.is_dir(), f"run folder {path} is a file; choose another --run")
        occupied = path.exists() and any(path.iterdir())
    except OSError as error:
        raise ConfigError(f"run folder {path} can't be used: {error.strerror}; choose another --run") from error
    require(
        not occupied, f"run folder {path} is not empty; choose another --run, or go on with it: azjax resume {path}"
    )


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

    They must not be there when the block begins.

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of ``path`` at the end, so that a reader sees the old content or the new.

    Nothing is left of it if writing fails. It is new, so that no link can lead elsewhere.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(data: Any) -> str:
    """Indented JSON."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, indented, as one piece."""
    write_text(path, to_json(data))


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, written as it comes; lines that can't be written are kept.

    Args:
      path: the file; made if it is not there.
      records: lines that count; what comes after them, whole or not, is cut off.
      warn: takes a line if the file can't be written (once), or has fewer whole lines than ``records``.
    """

    def __init__(self, path: Path, records: int = 0, warn: Callable[[str], None] = lambda text: None) -> None:
        self._path = path
        self._warn = warn
        self._warned = False
        self._lock = threading.Lock()  # a checkpoint is written in another thread and synchronises the file
        self._waiting: list[bytes] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self.records, self._end = self._keep(records)
        os.ftruncate(self._file, self._end)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; a line is whole in the file before the next begins."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self.records += 1
        try:
            with self._lock:
                self._waiting.append(line)
                self._flush()
        except OSError as error:
            if not self._warned:
                self._warn(f"{self._path} can't be written ({error.strerror}); its lines are kept in memory meanwhile")
            self._warned = True

    def sync(self) -> None:
        """Has every record on the disk.

        Raises:
          OSError: if that can't be done.
        """
        with self._lock:
            self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        """Tries once more to write what is waiting, and closes the file."""
        with contextlib.suppress(OSError), self._lock:
            self._flush()
        os.close(self._file)

    def _flush(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                if os.pwrite(self._file, line, self._end) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)  # no half line stays
                raise
            self._end += len(line)
            del self._waiting[0]

    def _keep(self, records: int) -> tuple[int, int]:
        """Lines, at most so many, that are whole, and the bytes they take."""
        with open(self._file, "rb", closefd=False) as file:
            lengths = [len(line) for _, line in zip(range(records), file, strict=False) if line.endswith(b"\n")]
        if len(lengths) < records:
            self._warn(f"{self._path} has {len(lengths)} of the {records} lines that were written; the rest is lost")
        return len(lengths), sum(lengths)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
