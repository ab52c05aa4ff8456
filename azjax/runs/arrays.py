"""Train states as named arrays on the host, and back to their devices."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from azjax.runs import hosts


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their paths, in the pytree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def state_bytes(shapes: Any) -> int:
    """Bytes of the arrays of one checkpoint."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def host_arrays(state: Any) -> dict[str, np.ndarray]:
    """The leaves of a state by name, copied to the host; empty ones, which orbax refuses, are left out.

    Random keys come as the words they consist of.
    """
    plain = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)
    # The copy is the point: the buffer behind a view is overwritten by the next update.
    return {name: np.array(leaf, copy=True) for name, leaf in named_leaves(hosts.whole(plain)) if leaf.size}


def describe_arrays(arrays: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Type and shape of each array as plain data."""
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def wanted_arrays(shapes: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What ``host_arrays`` gives for a state of these shapes."""
    leaves = {name: leaf for name, leaf in named_leaves(shapes) if leaf.size}
    return {name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()}


def place_arrays(arrays: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """A state on its devices; every leaf in buffers of its own, since they will be donated."""
    leaves = []
    for name, leaf in named_leaves(shapes):
        value = arrays[name] if leaf.size else np.zeros(leaf.shape, leaf.dtype)
        if not leaf.sharding.is_fully_addressable:  # each process places its part
            placed = jax.make_array_from_callback(value.shape, leaf.sharding, functools.partial(_part, value))
            leaves.append(jax.jit(jax.random.wrap_key_data)(placed) if _is_key(leaf) else placed)
        elif _is_key(leaf):
            leaves.append(jax.device_put(jax.random.wrap_key_data(jax.numpy.asarray(value)), leaf.sharding))
        else:
            leaves.append(jax.device_put(value, leaf.sharding, may_alias=False))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _part(value: np.ndarray, at: Any) -> np.ndarray:
    return value[at].copy()


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))
