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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from azjax.config import ConfigError, require
from azjax.runs.folder import write_json
from azjax.runs.reading import read_json
from azjax.training import TrainState

SCHEMA = 1
_LARGEST_RECORD = 1 << 24
_NAME = re.compile(r"(\d{1,18})\.json")
# What orbax adds to the arrays themselves, with room to spare.
_OVERHEAD = 1 << 20
_PARAMETERS = "learner/params/"


class Restored(NamedTuple):
    """What a checkpoint gave back."""

    state: TrainState
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder.

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

    def save(self, update: int, state: TrainState, record: Mapping[str, Any], before: Callable[[], None]) -> None:
        """Copies the state and starts to write it; waits for the checkpoint before if that is still being written.

        Args:
          update: updates done; the checkpoint's name.
          state: the train state; its buffers may be donated as soon as this returns.
          record: plain data to keep with it.
          before: called in the writing thread; the checkpoint is given up if it raises ``OSError``.
        """
        self.wait()
        arrays = host_arrays(state)
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
        """The updates after which there is a checkpoint, in order."""
        with contextlib.suppress(OSError):
            names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
            return sorted(int(match[1]) for match in names if match)
        return []

    def restore(self, shapes: TrainState) -> Restored | None:
        """The latest checkpoint that is whole; warns of each later one that is not.

        Args:
          shapes: what the train state must look like, and where its leaves belong (``CompiledTrainer.state``).

        Raises:
          ConfigError: if a whole checkpoint belongs to another training program, or was written by a newer version.
        """
        found = self.updates()[::-1]
        for update, earlier in zip(found, [*found[1:], None], strict=False):
            try:
                return self._read(update, shapes)
            except _DamagedError as error:
                instead = "training starts anew" if earlier is None else f"checkpoint {earlier} is used"
                self._warn(f"checkpoint {update} of {self._folder.parent} is damaged ({error}); {instead} instead")
        return None

    def discard_after(self, update: int) -> None:
        """Removes later checkpoints, whose future is trained again, and what a kill left of unfinished ones."""
        for later in [n for n in self.updates() if n > update]:
            self._remove(later)
        whole = {str(n) for n in self.updates()}
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.is_dir() and not path.is_symlink() and path.name not in whole:
                    shutil.rmtree(path, ignore_errors=True)

    def _write(
        self, update: int, arrays: dict[str, np.ndarray], record: dict[str, Any], before: Callable[[], None]
    ) -> None:
        before()
        self._folder.mkdir(exist_ok=True)
        if shutil.disk_usage(self._folder).free < sum(array.nbytes for array in arrays.values()) + _OVERHEAD:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # orbax would leave a trace of its threads
        self._remove(update)
        path = self._folder / str(update)
        try:
            with _orbax() as checkpointer:
                checkpointer.save(path.absolute(), arrays, force=True)
            write_json(
                self._record_file(update),
                sealed({"update": update, **record, "state": _describe(arrays), "files": file_digests(path)}),
            )
        except BaseException:
            for part in self._folder.glob(f"{update}.*"):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._forget()

    def _forget(self) -> None:
        """Removes checkpoints that are neither among the latest nor the best."""
        found = self.updates()
        returns = {update: self._evaluation_return(update) for update in found}
        best = max(found, key=lambda update: (returns[update], update))
        for update in found[: -self._keep]:
            if update != best:
                self._remove(update)

    def _evaluation_return(self, update: int) -> float:
        with contextlib.suppress(ConfigError, _DamagedError):
            value = self._record(update).get("evaluation_return")
            if isinstance(value, float):
                return value
        return -float("inf")

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

    def _read(self, update: int, shapes: TrainState) -> Restored:
        path = self._folder / str(update)
        record = self._record(update)
        files = record.get("files")
        _whole(isinstance(files, dict) and record.get("update") == update, "its description is incomplete")
        wanted = _wanted(shapes)
        size = sum(np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64)) for kind, shape in wanted.values())
        _whole(_folder_size(path) <= 2 * size + _OVERHEAD, f"its files are larger than a state of {size} bytes can be")
        try:
            _whole(file_digests(path) == files, "its files are not those that were written")
            self._check_fit(update, record.get("state"), wanted)
            arrays = _load(path, wanted)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError | _DamagedError):
                raise
            raise _DamagedError(" ".join(str(error).split())[:200]) from error
        for name, array in arrays.items():
            finite = not name.startswith(_PARAMETERS) or array.dtype.kind != "f" or bool(np.isfinite(array).all())
            _whole(finite, f"{name} is not finite")
        return Restored(_place(arrays, shapes), record)

    def _check_fit(self, update: int, found: Any, wanted: dict[str, tuple[str, list[int]]]) -> None:
        """Raises ``ConfigError`` unless the checkpoint holds exactly the leaves that the training program has."""
        _whole(isinstance(found, dict), "its description is incomplete")
        mend = "resume the run with the versions and the configuration that wrote it"
        where = f"checkpoint {update} of {self._folder.parent} belongs to another training program:"
        for name in [*wanted, *found]:
            has, needs = found.get(name), list(wanted[name]) if name in wanted else None
            require(
                has == needs,
                f"{where} {name} is {_shown(has)} there and {_shown(needs)} here; {mend}",
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


def state_bytes(shapes: TrainState) -> int:
    """Bytes of the arrays of one checkpoint."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def host_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """The leaves of a state by name, copied to the host; empty ones, which orbax refuses, are left out.

    Random keys come as the words they consist of.
    """
    arrays = {}
    for name, leaf in _named(state):
        if leaf.size:
            # The copy is the point: the buffer behind a view is overwritten by the next update.
            arrays[name] = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, copy=True)
    return arrays


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its schema and the digest of its JSON."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return {"schema": SCHEMA, "record": record, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def file_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 digest of every file below a folder, by its path in it."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _describe(arrays: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def _wanted(shapes: TrainState) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every array of a checkpoint of such a state."""
    leaves = {name: leaf for name, leaf in _named(shapes) if leaf.size}
    plain = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()
    }
    return {name: (str(leaf.dtype), list(leaf.shape)) for name, leaf in plain.items()}


def _folder_size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _orbax() -> Any:
    # Imported late: only a run that writes or reads a checkpoint needs it.
    import orbax.checkpoint

    return orbax.checkpoint.StandardCheckpointer()


def _load(path: Path, wanted: Mapping[str, tuple[str, list[int]]]) -> dict[str, np.ndarray]:
    """The arrays, after a look at what is stored: orbax cuts or pads an array of another shape without a word."""
    with _orbax() as checkpointer:
        stored = checkpointer.metadata(path.absolute()).item_metadata.tree
        for name, (kind, shape) in wanted.items():
            entry = stored[name]
            chunk = entry.storage.chunk_shape if entry.storage else entry.shape
            fits = list(entry.shape) == shape and str(np.dtype(entry.dtype)) == kind
            fits = fits and all(c <= max(n, 1) for c, n in zip(chunk, shape, strict=True))
            _whole(fits, f"{name} is stored as {entry.dtype}{list(entry.shape)}")
        target = {name: np.zeros(shape, kind) for name, (kind, shape) in wanted.items()}
        arrays: dict[str, np.ndarray] = checkpointer.restore(path.absolute(), target)
    return arrays


def _place(arrays: Mapping[str, np.ndarray], shapes: TrainState) -> TrainState:
    """A state on its devices; every leaf in buffers of its own, since they will be donated."""
    leaves = []
    for name, leaf in _named(shapes):
        if _is_key(leaf):
            value: Any = jax.random.wrap_key_data(jax.numpy.asarray(arrays[name]))
        else:
            value = arrays[name] if leaf.size else np.zeros(leaf.shape, leaf.dtype)
        leaves.append(jax.device_put(value, leaf.sharding, may_alias=False))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def check_space(folder: Path, shapes: TrainState, keep: int) -> None:
    """Raises ``ConfigError`` if the disk has no room for the checkpoints that a run keeps.

    Args:
      folder: the run's folder; it need not be there.
      shapes: of the train state.
      keep: how many of the latest are kept.
    """
    there = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return
    if usage.total == 0:  # no disk; what is wrong with the folder is said when it is made
        return
    count = keep + 2  # the best, and one that is being written
    need = count * (state_bytes(shapes) + _OVERHEAD)
    require(
        usage.free >= need,
        f"run folder {folder}: {usage.free / 2**20:.0f} MiB of disk are free, but {count} checkpoints take "
        f"{need / 2**20:.0f} MiB; free some, choose another --run, or use fewer --lanes",
    )
