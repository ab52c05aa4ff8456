"""Several processes, on one machine or many, that run one program together on JAX's distributed runtime.

Every process executes the same calls in the same order. What only one can know (a signal, that a checkpoint is due)
they agree on; only the first writes into the run's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from azjax.config import ConfigError, require, require_number

# A process that says nothing for so long is lost. JAX's default is 100.
_SECONDS_TO_MISS = 30


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which processes there are, and which of them this is."""

    coordinator: str | None = None
    """HOST:PORT of the first process, where all of them meet."""
    processes: int | None = None
    """Processes in all."""
    process: int | None = None
    """Number of this process, from 0 on."""
    distributed: bool = False
    """Find the processes out from SLURM, Open MPI, Kubernetes or a TPU pod."""

    @property
    def several(self) -> bool:
        """Whether there may be more than one process."""
        return self.distributed or self.coordinator is not None

    def validate(self) -> None:
        """Raises ``ConfigError`` for what makes no sense together."""
        own = (self.coordinator, self.processes, self.process)
        require(
            all(value is None for value in own) or all(value is not None for value in own),
            "coordinator, processes and process belong together: give all three, or --distributed where SLURM, Open "
            "MPI, Kubernetes or a TPU pod started the processes",
        )
        if self.coordinator is None or self.processes is None or self.process is None:
            return
        require(not self.distributed, "distributed finds the coordinator by itself; leave one of the two out")
        host, colon, port = self.coordinator.rpartition(":")
        require(
            bool(host and colon) and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16,
            f"coordinator is {self.coordinator!r}; it must be HOST:PORT, as in 10.0.0.1:1234",
        )
        require_number("processes", self.processes, 1, 1 << 16)
        require_number("process", self.process, 0, self.processes - 1)


@contextlib.contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Meets the other processes, and leaves them in order at the end, also after a signal; entered before JAX starts.

    Raises:
      ConfigError: if they can't be found.
    """
    if not hosts.several:
        yield
        return
    _join(hosts)
    try:
        yield
    except KeyboardInterrupt:
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()  # not after an error, of which the others may know nothing


def _join(hosts: Hosts) -> None:
    try:
        jax.distributed.initialize(
            hosts.coordinator, hosts.processes, hosts.process, heartbeat_timeout_seconds=_SECONDS_TO_MISS
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the processes did not meet: {reason}; start all of them with the same coordinator, or check that SLURM, "
            "Open MPI, Kubernetes or the TPU pod says who they are"
        ) from error


def is_first() -> bool:
    """Whether this process writes; it does if there are no others."""
    return jax.process_index() == 0


def first_to_know(own: Sequence[int]) -> list[int]:
    """The largest that any process has of each number; all must call it."""
    if jax.process_count() == 1:
        return list(own)
    from jax.experimental import multihost_utils

    return [int(value) for value in np.asarray(multihost_utils.process_allgather(np.array(own))).max(axis=0)]


def of_first(own: Sequence[int]) -> list[int]:
    """The first process's numbers; all must call it with equally many."""
    return first_to_know(own if is_first() else [-(1 << 30)] * len(own))


def whole(tree: Any) -> Any:
    """A pytree with the whole of every array, also what is on other processes' devices; all must call it."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(gather(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gather, tree)


@contextlib.contextmanager
def folder_to_write(path: Path) -> Iterator[Path]:
    """The folder for the first process, and for each of the others one that nobody will miss."""
    if is_first():
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="azjax-") as elsewhere:
            yield Path(elsewhere) / "run"
