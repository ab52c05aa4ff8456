"""What keeps frozen physics code working on current JAX: patches that last only while that code is being traced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_LOCK = threading.RLock()
# Levels below the world: humanoid has 5 and compiles well, pusher has 7 and does not (docs/versions.md).
SHALLOW = 6


class _NumpyWithOldClip:
    """``jax.numpy`` whose ``clip`` still takes ``a_min`` and ``a_max``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    @staticmethod
    def clip(x: jax.Array, a_min: Any = None, a_max: Any = None) -> jax.Array:
        """``jnp.clip`` by its old argument names."""
        return jnp.clip(x, a_min, a_max)


@contextlib.contextmanager
def old_clip_in_fluid() -> Iterator[None]:
    """Lets ``brax.fluid`` of 0.14.2 be traced: it calls ``jnp.clip(a_min=)``, an argument that jax 0.10 removed."""
    from brax import fluid

    with _patched(fluid, "jp", lambda _: _NumpyWithOldClip()):
        yield


@contextlib.contextmanager
def barriers_in_mjx() -> Iterator[None]:
    """Keeps XLA's CPU backend from fusing the levels of a deep kinematic tree into one another again and again.

    MJX emits a block of operations per level. On jax 0.10 their repeated fusion makes a deep model compile for minutes
    and run hundreds of times slower; a barrier behind each level stops it. Without effect where MJX has changed.
    """
    from mujoco.mjx._src import scan

    def with_barriers(body_tree: Callable[..., Any]) -> Callable[..., Any]:
        def patched(m: Any, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def level(*values: Any) -> Any:
                return jax.tree.map(jax.lax.optimization_barrier, f(*values))

            return body_tree(m, level, *args, **kwargs)

        return patched

    if not callable(getattr(scan, "body_tree", None)):
        yield
        return
    with _patched(scan, "body_tree", with_barriers):
        yield


def barriers_if_deep(parents: Any) -> contextlib.AbstractContextManager[None]:
    """``barriers_in_mjx`` for a tree, given by each body's parent, that is too deep to do without."""
    return barriers_in_mjx() if tree_depth(parents) > SHALLOW else contextlib.nullcontext()


@contextlib.contextmanager
def results_of(module: Any, name: str) -> Iterator[list[Any]]:
    """Collects what a function of a module returns while its callers are being traced.

    For values that a frozen pipeline computes and keeps to itself.
    """
    results: list[Any] = []

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            results.append(original(*args, **kwargs))
            return results[-1]

        return recorded

    with _patched(module, name, recording):
        yield results


def tree_depth(parents: Any) -> int:
    """Levels of a tree given by each body's parent, the root being its own."""
    depth = [0]
    for parent in list(parents)[1:]:
        depth.append(depth[int(parent)] + 1)
    return max(depth)


@contextlib.contextmanager
def _patched(module: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    with _LOCK:
        original = getattr(module, name)
        setattr(module, name, change(original))
        try:
            yield
        finally:
            setattr(module, name, original)
