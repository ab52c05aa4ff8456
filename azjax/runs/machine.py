"""What must be settled before JAX starts: host devices, compilation cache; and a description of the machine."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "azjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "chex",
    "brax",
    "mujoco",
    "mujoco-mjx",
    "playground",
    "orbax-checkpoint",
    "numpy",
)
AXIS = "lanes"  # the name of the device axis in all programs that the command line runs
_SMALLEST_CACHED = 1 << 16  # bytes
_SOURCES = (".py", ".yaml", ".html", ".js")


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_host(fits: Callable[[int], bool], wanted: int | None = None) -> None:
    """Makes the CPU appear as several XLA devices, one per core: XLA's CPU backend keeps one core busy per device.

    Takes the largest count, not above the cores, that ``fits``. Leaves alone what the user set, and a JAX that has
    started already.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = available_cores()
    # More devices than cores would only slow each other down; who asks for them is told how many there are.
    count = min(wanted, cores) if wanted else next((n for n in range(cores, 0, -1) if fits(n)), 1)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def ask_for_determinism() -> None:
    """Asks XLA for GPU kernels that give the same bits in every run; without effect once JAX has started."""
    flag = "--xla_gpu_deterministic_ops=true"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def cache_folder() -> Path:
    """Where compiled programs are kept: one folder per kind of CPU, since their machine code is not portable."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "azjax" / f"xla-{_cpu_digest()}"


def use_cache() -> Path | None:
    """Turns JAX's persistent compilation cache on, unless the user chose a folder or switched it off.

    Returns:
      The folder in use, or ``None`` if none can be written.
    """
    # The small programs that JAX compiles on the way would be loaded outside quiet_loading on the next start.
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", _SMALLEST_CACHED)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return folder


def use_no_cache() -> None:
    """Turns JAX's persistent compilation cache off, also where the environment's variables turn it on."""
    jax.config.update("jax_compilation_cache_dir", None)


@contextlib.contextmanager
def rare_collection() -> Iterator[None]:
    """Lets Python's garbage collector hardly ever run: it takes two fifths of the time of tracing."""
    threshold = gc.get_threshold()
    if threshold[0]:  # 0 means never
        gc.set_threshold(2_000_000, *threshold[1:])
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Drops XLA's complaint that a cached CPU program was tuned with features that are no real CPU features.

    XLA writes it, a page long for each program, straight to the file descriptor; it means nothing here, because the
    cache has a folder for each kind of CPU. Everything else that is written meanwhile is passed on.
    """
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            rest = [line for line in caught if b"cpu_aot_loader" not in line]
            with contextlib.suppress(OSError):
                os.write(2, b"".join(rest))


@contextlib.contextmanager
def compiling() -> Iterator[ThreadPoolExecutor]:
    """Threads to compile programs in, quietly; an error, or a signal, does not wait for what XLA is busy with."""
    pool = ThreadPoolExecutor()
    try:
        with quiet_loading(), rare_collection():
            yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def source_digest() -> str:
    """A digest of azjax's own files, which tells revisions of one version apart."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(package.rglob("*")):
        if path.suffix in _SOURCES:
            digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "azjax-source": source_digest()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that can still be had on these devices together; ``None`` where nothing says so.

    Of the devices of other processes as much is expected as of this one's.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    if own and len(own) < len(devices):
        free = free_memory(own)
        return None if free is None else free * len(devices) // len(own)
    if devices[0].platform == "cpu":
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return None
    statistics = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in s for s in statistics):
        return None
    return sum(int(s["bytes_limit"]) - int(s.get("bytes_in_use", 0)) for s in statistics)


def describe_devices() -> dict[str, Any]:
    """Platform, kind and number of JAX's devices, and the CPU's name."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": available_cores(),
    }


def _cpu_field(name: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""


def _cpu_digest() -> str:
    text = f"{platform.machine()} {_cpu_field('model name')} {_cpu_field('flags')}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
