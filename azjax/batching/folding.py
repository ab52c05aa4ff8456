"""Evaluation of equations whose operands are all known while tracing, in numpy where its result is exactly XLA's.

Indices reach gather and scatter through chains of small integer equations (`lt`, `add`, `select_n`, `broadcast_in_dim`,
...). Folding them in numpy keeps tracing fast; some others are evaluated eagerly by JAX if their results are integers
(they may be indices); the rest is left to XLA.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from azjax.batching.jaxprs import Equation, UnknownForm, gather_form
from azjax.batching.windows import window_positions


def fold(eqn: Equation, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The results of `eqn` on constant operands, or None to leave it to XLA."""
    if any(jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended) for aval in eqn.out_avals):
        return None
    function = _TABLE.get(eqn.name)
    if function is not None:
        try:
            with np.errstate(all="ignore"):
                results = function(eqn.params, *arrays)
        except UnknownForm:
            results = None
        if results is not None:
            results = results if isinstance(results, list) else [results]
            pairs = zip(results, eqn.out_avals, strict=True)
            return [np.asarray(result, dtype=aval.dtype).reshape(aval.shape) for result, aval in pairs]
    return _fold_eagerly(eqn, arrays)


def _fold_eagerly(eqn: Equation, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    integers = all(np.dtype(aval.dtype).kind in "biu" for aval in eqn.out_avals)
    if not integers or eqn.name not in _EAGER:
        return None
    with jax.ensure_compile_time_eval():
        # numpy would wait for a result with Python's lock held. A program that is running meanwhile may need that lock
        # (the first one that calls LAPACK does), and the result may be waiting for that program.
        return [np.asarray(result) for result in jax.block_until_ready(eqn.call(*arrays))]


# fmt: off
_EAGER = frozenset({
    "sort", "argmax", "argmin", "div", "rem", "pow", "integer_pow", "sign", "shift_left", "shift_right_logical",
    "shift_right_arithmetic", "population_count", "clz", "reduce_xor", "cumsum", "cumprod", "cummax", "cummin",
    "dynamic_update_slice", "scatter", "scatter_add", "dot_general", "floor", "ceil", "round", "is_finite",
    "select_n", "while", "scan",
})
# fmt: on


def _broadcast_in_dim(params: Any, array: np.ndarray, *_: Any) -> np.ndarray:
    shape = params["shape"]
    expanded = [1] * len(shape)
    for size, dim in zip(array.shape, params["broadcast_dimensions"], strict=True):
        expanded[dim] = size
    return np.broadcast_to(array.reshape(expanded), shape)


def _slice(params: Any, array: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * array.ndim
    return array[
        tuple(slice(*bounds) for bounds in zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    ]


def _dynamic_slice(params: Any, array: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    sizes = params["slice_sizes"]
    first = clamped_starts(array.shape, sizes, starts)
    return array[tuple(slice(a, a + size) for a, size in zip(first, sizes, strict=True))]


def clamped_starts(shape: Sequence[int], sizes: Sequence[int], starts: Sequence[Any]) -> list[int]:
    """Start indices of a dynamic slice, moved inside the array as XLA does."""
    return [
        int(np.clip(int(start), 0, extent - size)) for start, extent, size in zip(starts, shape, sizes, strict=True)
    ]


def _select_n(_: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray | None:
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else None


def _iota(params: Any) -> np.ndarray:
    shape, dimension = params["shape"], params["dimension"]
    expanded = [1] * len(shape)
    expanded[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension]).reshape(expanded), shape)


def _convert(params: Any, array: np.ndarray) -> np.ndarray | None:
    target = np.dtype(params["new_dtype"])
    if array.dtype.kind not in "biu" and target.kind in "iu":
        return None  # float to integer: out-of-range values differ
    return array.astype(target)


def _gather(params: Any, array: np.ndarray, indices: np.ndarray) -> np.ndarray | None:
    positions = window_positions(array.shape, indices, params["slice_sizes"], gather_form(params))
    return None if (positions < 0).any() else array.reshape(-1)[positions]


def _split(params: Any, array: np.ndarray) -> list[np.ndarray]:
    return np.split(array, np.cumsum(params["sizes"])[:-1], axis=params["axis"])


def _reduce(function: Callable[..., np.ndarray], exact: str = "biu") -> Callable[..., np.ndarray | None]:
    def apply(params: Any, array: np.ndarray) -> np.ndarray | None:
        if array.dtype.kind not in exact:
            return None  # the order of floating-point sums is XLA's business
        return function(array, axis=tuple(params["axes"]))

    return apply


def _unary(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda params, x: function(x)


def _binary(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda params, x, y: function(x, y)


_TABLE: dict[str, Callable[..., Any]] = {
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "max": _binary(np.maximum),
    "min": _binary(np.minimum),
    "and": _binary(np.bitwise_and),
    "or": _binary(np.bitwise_or),
    "xor": _binary(np.bitwise_xor),
    "eq": _binary(np.equal),
    "ne": _binary(np.not_equal),
    "lt": _binary(np.less),
    "le": _binary(np.less_equal),
    "gt": _binary(np.greater),
    "ge": _binary(np.greater_equal),
    "neg": _unary(np.negative),
    "not": _unary(np.invert),
    "abs": _unary(np.abs),
    "copy": _unary(np.asarray),
    "copy_p": _unary(np.asarray),
    "select_n": _select_n,
    "clamp": lambda params, low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": lambda params, x, *_: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: x.reshape([n for i, n in enumerate(x.shape) if i not in params["dimensions"]]),
    "expand_dims": lambda params, x: np.expand_dims(x, tuple(params["dimensions"])),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": lambda params, *xs: np.concatenate(xs, axis=params["dimension"]),
    "stack": lambda params, *xs: np.stack(xs, axis=params["axis"]),
    "tile": lambda params, x: np.tile(x, params["reps"]),
    "rev": lambda params, x: np.flip(x, tuple(params["dimensions"])),
    "iota": _iota,
    "gather": _gather,
    "reduce_sum": _reduce(np.sum),
    "reduce_prod": _reduce(np.prod),
    "reduce_max": _reduce(np.max, "biuf"),
    "reduce_min": _reduce(np.min, "biuf"),
    "reduce_and": _reduce(np.bitwise_and.reduce),
    "reduce_or": _reduce(np.bitwise_or.reduce),
}
