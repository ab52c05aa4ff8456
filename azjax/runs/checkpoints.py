"""Checkpoints of a run: the whole training state, written by orbax beside training.

``checkpoints/UPDATE/`` is orbax's: one array for each leaf of the train state. ``checkpoints/UPDATE.json`` is written
last and describes it: what the leaves are, what the run had reached, its configuration, and a SHA-256 digest of every
file. A checkpoint without its description does not count, so one that was cut off by a kill is never taken for whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from azjax.config import ConfigError, require
from azjax.runs import hosts
from azjax.runs.arrays import describe_arrays, host_arrays, place_arrays, state_bytes, wanted_arrays
from azjax.runs.folder import write_json
from azjax.runs.reading import read_json

SCHEMA = 1
_LARGEST_RECORD = 1 << 24
_RECORD = re.compile(r"(\d{1,18})\.json")
_OURS = re.compile(r"(\d{1,18})(\.orbax-checkpoint-tmp.*)?")
# What orbax adds to the arrays themselves, with room to spare.
_OVERHEAD = 1 << 20
_PARAMETERS = "learner/params/"


class Restored(NamedTuple):
    """What a checkpoint gave back."""

    state: Any
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder.

    Nothing that is there is removed before a newer checkpoint is whole.

    Args:
      folder: the folder of checkpoints, made at the first save.
      keep: how many of the latest are kept, and beside them the one with the best evaluation; at least 1.
      warn: takes a line on a checkpoint that could not be written or read; called from the caller's thread.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._warn = warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._restored: int | None = None
        self._returns: dict[int, float] = {}  # evaluation returns, of the writer alone

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self.wait()
        self._writer.shutdown()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, update: int, state: Any, record: Mapping[str, Any], before: Callable[[], None]) -> None:
        """Copies the state and starts to write it; waits for the checkpoint before if that is still being written.

        Args:
          update: updates done; the checkpoint's name. Of the one that was restored only the description is renewed.
          state: the train state; its buffers may be donated as soon as this returns.
          record: plain data to keep with it.
          before: called in the writing thread; the checkpoint is given up if it raises ``OSError``.
        """
        self.wait()
        renewed = update == self._restored
        # Other processes have parts of the arrays, and don't know what this one restored.
        arrays = {} if renewed and jax.process_count() == 1 else host_arrays(state)
        if not hosts.is_first():
            return
        if renewed:
            self._writing = self._writer.submit(self._renew, update, dict(record), before)
        else:
            self._writing = self._writer.submit(self._write, update, arrays, dict(record), before)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, and warns if it failed."""
        if self._writing is None:
            return
        error = self._writing.exception()
        self._writing = None
        if error is not None:
            reason = " ".join(str(error).split())[:300]
            self._warn(f"a checkpoint could not be written ({reason}); training goes on, earlier ones are untouched")

    def updates(self) -> list[int]:
        """The updates after which there is a checkpoint, in order.

        Raises:
          ConfigError: if the folder can't be read.
        """
        try:
            names = [_RECORD.fullmatch(name) for name in os.listdir(self._folder)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self._folder} can't be read: {error.strerror}; try again") from error
        return sorted(int(match[1]) for match in names if match)

    def restore(self, shapes: Any) -> Restored | None:
        """The latest checkpoint that is whole; warns of each later one that is not.

        Args:
          shapes: what the train state must look like, and where its leaves belong (``CompiledTrainer.state``).

        Returns:
          State and record; ``None`` if there is no checkpoint.

        Raises:
          ConfigError: if all are damaged, if one can't be read, belongs to another training program, or was written by
            a newer version.
        """
        found = self.updates()[::-1]
        for update, earlier in zip(found, [*found[1:], None], strict=False):
            try:
                restored = self._read(update, shapes)
            except _DamagedError as error:
                damage = f"checkpoint {update} of {self._folder.parent} is damaged ({error})"
                require(earlier is not None, f"{damage}, and there is no earlier one; start another run")
                self._warn(f"{damage}; checkpoint {earlier} is used instead")
            else:
                self._restored = update
                return restored
        return None

    def _write(
        self, update: int, arrays: dict[str, np.ndarray], record: dict[str, Any], before: Callable[[], None]
    ) -> None:
        before()
        self._folder.mkdir(exist_ok=True)
        if shutil.disk_usage(self._folder).free < sum(array.nbytes for array in arrays.values()) + _OVERHEAD:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # orbax would leave a trace of its threads
        self._remove(update)  # one of a future that is being trained again
        path = self._folder / str(update)
        try:
            with _orbax() as checkpointer:
                checkpointer.save(path.absolute(), arrays, force=True)
            content = {"state": describe_arrays(arrays), "files": file_digests(path)}
            write_json(self._record_file(update), sealed({"update": update, **record, **content}))
        except BaseException:
            self._remove(update)
            raise
        self._forget(update, record["evaluation_return"])

    def _renew(self, update: int, record: dict[str, Any], before: Callable[[], None]) -> None:
        """Writes another description of the checkpoint that was restored, whose state is the same."""
        before()
        content = {name: self._record(update)[name] for name in ("state", "files")}
        write_json(self._record_file(update), sealed({"update": update, **record, **content}))
        self._returns[update] = _number(record["evaluation_return"])

    def _forget(self, update: int, evaluation_return: float | None) -> None:
        """Once ``update`` is whole: removes later ones, those neither latest nor best, and what kills left."""
        self._returns[update] = _number(evaluation_return)
        found = self.updates()
        past = [n for n in found if n <= update]
        best = max(past, key=lambda n: (self._evaluation_return(n), n))
        for n in found:
            if n not in past[-self._keep :] and n != best:
                self._remove(n)
        whole = self.updates()
        for path in self._folder.iterdir():
            match = _OURS.fullmatch(path.name)
            if match and not (match[2] is None and int(match[1]) in whole) and _is_folder(path):
                shutil.rmtree(path, ignore_errors=True)

    def _evaluation_return(self, update: int) -> float:
        if update not in self._returns:
            value = None
            with contextlib.suppress(ConfigError, _DamagedError):
                value = self._record(update).get("evaluation_return")
            self._returns[update] = _number(value)
        return self._returns[update]

    def _record(self, update: int) -> dict[str, Any]:
        path = self._record_file(update)
        try:
            seal = read_json(path, _LARGEST_RECORD)
        except ConfigError as error:
            raise _DamagedError(f"its description can't be read: {error}") from error
        require(
            seal.get("schema") == SCHEMA,
            f"{path} has schema {seal.get('schema')!r}, this azjax reads {SCHEMA}; "
            "resume the run with the version that wrote it",
        )
        record = seal.get("record")
        _whole(isinstance(record, dict) and sealed(record) == seal, "its description is not what was written")
        return record  # type: ignore[return-value]

    def _record_file(self, update: int) -> Path:
        return self._folder / f"{update}.json"

    def _remove(self, update: int) -> None:
        # The description goes first: what is left of the rest then counts for nothing.
        self._record_file(update).unlink(missing_ok=True)
        shutil.rmtree(self._folder / str(update), ignore_errors=True)

    def _read(self, update: int, shapes: Any) -> Restored:
        path = self._folder / str(update)
        record = self._record(update)
        files = record.get("files")
        _whole(isinstance(files, dict) and record.get("update") == update, "its description is incomplete")
        wanted = wanted_arrays(shapes)
        try:
            size = _plain_size(path)
            most = 2 * state_bytes(shapes) + _OVERHEAD
            _whole(size <= most, f"it takes {size} bytes, which is more than a state can")
            _whole(file_digests(path) == files, "its files are not those that were written")
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}; try again") from error
        self._check_fit(update, record.get("state"), describe_arrays(wanted))
        try:
            arrays = _load(path, wanted)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, _DamagedError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{path} is whole, but orbax can't read it: {reason}; resume the run with the versions that wrote it"
            ) from error
        for name, array in arrays.items():
            finite = not name.startswith(_PARAMETERS) or array.dtype.kind != "f" or bool(np.isfinite(array).all())
            _whole(finite, f"{name} is not finite")
        return Restored(place_arrays(arrays, shapes), record)

    def _check_fit(self, update: int, found: Any, wanted: dict[str, list[Any]]) -> None:
        """Raises ``ConfigError`` unless the checkpoint holds exactly the leaves that the training program has."""
        _whole(isinstance(found, dict), "its description is incomplete")
        where = f"checkpoint {update} of {self._folder.parent} belongs to another training program:"
        for name in [*wanted, *found]:
            has, needs = found.get(name), wanted.get(name)
            require(
                has == needs,
                f"{where} {name[:200]} is {_shown(has)} there and {_shown(needs)} here; "
                "resume the run with the versions and the configuration that wrote it",
            )


class _DamagedError(ValueError):
    """A checkpoint that is not whole."""


def _whole(condition: bool, reason: str) -> None:
    if not condition:
        raise _DamagedError(reason)


def _shown(leaf: Any) -> str:
    if leaf is None:
        return "missing"
    kind, shape = leaf if isinstance(leaf, list) and len(leaf) == 2 else (leaf, "")
    return f"{kind}{shape}"[:80]


def _number(value: Any) -> float:
    return value if isinstance(value, float) else -float("inf")


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its schema and the digest of its JSON."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return {"schema": SCHEMA, "record": record, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def file_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 digest of every file below a folder, by its path in it."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _plain_size(folder: Path) -> int:
    """Bytes of the files below a folder, in which there must be nothing but files and folders.

    A link would lead orbax out of the run's folder, and a pipe would never end.
    """
    _whole(folder.exists(), "its files are missing")
    size = 0
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        _whole(stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode), f"{path.name} is no plain file")
        size += status.st_size
    return size


def _orbax() -> Any:
    # Imported late: only a run that writes or reads a checkpoint needs it.
    import orbax.checkpoint

    # Each process by itself: every one has all arrays, and writes into a folder of its own.
    own = jax.process_index()
    options = orbax.checkpoint.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    return orbax.checkpoint.StandardCheckpointer(multiprocessing_options=options)


def _load(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """The arrays, after a look at what is stored: orbax cuts or pads an array of another shape without a word."""
    with _orbax() as checkpointer:
        stored = checkpointer.metadata(path.absolute()).item_metadata.tree
        for name, leaf in wanted.items():
            entry = stored[name]
            chunk = entry.storage.chunk_shape if entry.storage else entry.shape
            fits = tuple(entry.shape) == leaf.shape and np.dtype(entry.dtype) == leaf.dtype
            fits = fits and all(c <= max(n, 1) for c, n in zip(chunk, leaf.shape, strict=True))
            _whole(fits, f"{name} is stored as {entry.dtype}{list(entry.shape)}")
        target = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
        arrays: dict[str, np.ndarray] = checkpointer.restore(path.absolute(), target)
    return arrays


def check_space(folder: Path, shapes: Any, count: int) -> None:
    """Raises ``ConfigError`` if the disk has no room for so many more checkpoints.

    Args:
      folder: the run's folder; it need not be there.
      shapes: of the train state.
      count: of checkpoints.
    """
    there = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return
    if usage.total == 0:  # no disk; what is wrong with the folder is said when it is made
        return
    need = count * (state_bytes(shapes) + _OVERHEAD)
    require(
        usage.free >= need,
        f"run folder {folder}: {usage.free / 2**20:.0f} MiB of disk are free, but {count} checkpoints take "
        f"{need / 2**20:.0f} MiB; free some, choose another --run, or train less at once",
    )
