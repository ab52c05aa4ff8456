"""Rules for element-wise, structural, reducing and contracting primitives."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from azjax.batching.interpreter import Batch, Value, batched, rule, settle
from azjax.batching.jaxprs import Equation

ELEMENTWISE_DOT = 1 << 16
"""Two batched operands: products of more multiply-adds per lane are left to `jax.vmap`."""
ELEMENTWISE_DOT_SHARED = 1 << 8
"""One batched operand: larger matrices are multiplied as such, with the batch as a free dimension."""
SHORT_CONTRACTION = 8
"""Contractions up to this length are unrolled into multiply-adds, which fuse with what follows.

A longer one is unrolled only if the product has more entries than terms each (a reduction would run up to ten times
slower on a CPU); a longer one with few entries is a reduction, because XLA:CPU would recompute the unrolled sum for
every element that uses it.
"""
LONGEST_UNROLLED = 128
"""A longer contraction that would be unrolled is left to `jax.vmap`."""
COSTLY_PRODUCT = 1 << 10
"""Unrolled products of more multiply-adds are written to memory at once, so that nothing recomputes them."""


# fmt: off
ELEMENTWISE = (
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clz", "complex", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh",
    "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "polygamma", "population_count", "pow",
    "random_gamma_grad", "real", "reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square",
    "sub", "tan", "tanh", "xor", "zeta",
)
# fmt: on


@rule(*ELEMENTWISE)
def elementwise(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Same shapes on all sides, up to scalars next to arrays."""
    shape = eqn.out_avals[0].shape
    arrays = [_aligned(value, aval.shape, shape, batch) for value, aval in zip(inputs, eqn.in_avals, strict=True)]
    return batched(*eqn.bind(*arrays))


def _aligned(value: Value, own: Sequence[int], shape: Sequence[int], batch: Batch) -> Any:
    """The operand as `[*shape, B]`, or as a scalar if it is the same scalar for all lanes."""
    if tuple(own) == tuple(shape):
        if not value.batched and not shape:
            return value.array
        return batch.full(value, shape)
    if not own and not value.batched:
        return value.array
    dims = tuple(range(len(shape) - len(own), len(shape))) + ((len(shape),) if value.batched else ())
    return lax.broadcast_in_dim(value.array, (*shape, batch.size), dims)


@rule("bitcast_convert_type")
def bitcast(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Same width on both sides, else a dimension appears or goes."""
    if eqn.in_avals[0].shape != eqn.out_avals[0].shape:
        return None
    return batched(*eqn.bind(inputs[0].array))


@rule("select_n")
def select_n(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The predicate may be a scalar next to arrays."""
    shape = eqn.out_avals[0].shape
    which = _aligned(inputs[0], eqn.in_avals[0].shape, shape, batch)
    return batched(*eqn.bind(which, *(batch.full(case, shape) for case in inputs[1:])))


@rule("clamp")
def clamp(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The bounds may be scalars next to an array."""
    shape = eqn.out_avals[0].shape
    low, x, high = (_aligned(value, aval.shape, shape, batch) for value, aval in zip(inputs, eqn.in_avals, strict=True))
    return batched(*eqn.bind(low, batch.full(inputs[1], shape) if np.ndim(x) == 0 else x, high))


@rule("optimization_barrier", "stop_gradient", "device_put", "psum", "pmax", "pmin", "psum_invariant")
def each(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """One result per operand, whatever its shape."""
    if any(isinstance(axis, int) for axis in eqn.params.get("axes", ())):
        return None
    results = eqn.bind(*(value.array for value in inputs))
    return [Value(result, value.batched) for result, value in zip(results, inputs, strict=True)]


@rule("pvary", "pcast", "rev", "squeeze", "expand_dims", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
@rule(
    "reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"
)
def leading(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Parameters that name dimensions counted from the front need no change."""
    return batched(*eqn.bind(inputs[0].array))


@rule("broadcast_in_dim")
def broadcast_in_dim(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The batch is one more dimension."""
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    return batched(lax.broadcast_in_dim(inputs[0].array, (*shape, batch.size), (*map(int, dims), len(shape))))


@rule("reshape")
def reshape(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The batch is one more dimension."""
    if eqn.params["dimensions"] is not None:
        return None
    return batched(lax.reshape(inputs[0].array, (*eqn.params["new_sizes"], batch.size)))


@rule("transpose")
def transpose(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The batch stays last."""
    permutation = eqn.params["permutation"]
    return batched(eqn.bind(inputs[0].array, permutation=(*permutation, len(permutation)))[0])


@rule("slice")
def slice_(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The whole batch."""
    params = eqn.params
    strides = params["strides"]
    return batched(
        *eqn.bind(
            inputs[0].array,
            start_indices=(*params["start_indices"], 0),
            limit_indices=(*params["limit_indices"], batch.size),
            strides=None if strides is None else (*strides, 1),
        )
    )


@rule("concatenate", "stack")
def concatenate(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """All operands must be batched."""
    return batched(
        *eqn.bind(*(batch.full(value, aval.shape) for value, aval in zip(inputs, eqn.in_avals, strict=True)))
    )


@rule("unstack")
def unstack(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Along a dimension counted from the front."""
    return batched(*eqn.bind(inputs[0].array)) if eqn.params["axis"] >= 0 else None


@rule("split")
def split(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Along a dimension counted from the front."""
    return batched(*eqn.bind(inputs[0].array))


@rule("tile")
def tile(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The batch once."""
    return batched(*eqn.bind(inputs[0].array, reps=(*eqn.params["reps"], 1)))


@rule("pad")
def pad(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """The padding value must be shared by all lanes."""
    if inputs[1].batched:
        return None
    array = batch.full(inputs[0], eqn.in_avals[0].shape)
    return batched(*eqn.bind(array, inputs[1].array, padding_config=(*eqn.params["padding_config"], (0, 0, 0))))


@rule("sort")
def sort(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Along a dimension counted from the front; all operands must be batched."""
    shape = eqn.in_avals[0].shape
    return batched(*eqn.bind(*(batch.full(value, shape) for value in inputs)))


@rule("dot_general")
def dot_general(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Small products as multiply-adds; a product with a shared operand as one matrix multiplication."""
    (contracted, parallel), shapes = eqn.params["dimension_numbers"], [aval.shape for aval in eqn.in_avals]
    free = [
        [d for d in range(len(shape)) if d not in contracted[side] and d not in parallel[side]]
        for side, shape in enumerate(shapes)
    ]
    length = int(np.prod([shapes[0][d] for d in contracted[0]], dtype=np.int64))
    work = length * int(np.prod(eqn.out_avals[0].shape, dtype=np.int64))
    if work == 0:
        zero = np.zeros((), eqn.out_avals[0].dtype)
        return batched(lax.broadcast(zero, (*eqn.out_avals[0].shape, batch.size)))
    both = inputs[0].batched and inputs[1].batched
    matrix = work // int(np.prod([shapes[0][d] for d in parallel[0]], dtype=np.int64))
    wide = matrix // length > length
    if not both and matrix > ELEMENTWISE_DOT_SHARED:
        return _shared_product(eqn, inputs, free)
    if work > ELEMENTWISE_DOT or (wide and length > LONGEST_UNROLLED):
        return None

    result_type = eqn.out_avals[0].dtype
    if result_type == np.bool_:
        return None
    # Half-precision products are added up in float32, as a matrix unit does.
    half = result_type.itemsize == 2 and jnp.issubdtype(result_type, jnp.floating)
    dtype = np.dtype(np.float32) if half else result_type
    left, right = (_spread(inputs[side], shapes[side], side, parallel, free, contracted) for side in (0, 1))
    left, right = left.astype(dtype), right.astype(dtype)
    if length > SHORT_CONTRACTION and not wide:
        return batched(jnp.sum(left * right, axis=-2, dtype=dtype).astype(result_type))
    terms = ([lax.index_in_dim(side, k, -2, keepdims=False) for side in (left, right)] for k in range(length))
    product = functools.reduce(lax.add, (_broadcast_product(*term) for term in terms))
    product = product.astype(result_type)
    return batched(settle(product) if matrix > COSTLY_PRODUCT else product)


def _spread(value: Value, shape: Sequence[int], side: int, parallel: Any, free: Any, contracted: Any) -> Any:
    """An operand as `[*parallel, *left free or 1s, *right free or 1s, contracted, B or 1]`."""
    order = [*parallel[side], *free[side], *contracted[side]]
    array = value.array if value.batched else lax.expand_dims(jnp.asarray(value.array), (len(shape),))
    array = lax.transpose(array, (*order, len(shape)))
    own, ones = [shape[d] for d in free[side]], [1] * len(free[1 - side])
    placed = [*own, *ones] if side == 0 else [*ones, *own]
    return array.reshape(*(shape[d] for d in parallel[side]), *placed, -1, array.shape[-1])


def _broadcast_product(left: Any, right: Any) -> Any:
    """`left * right` without the detours of `jax.numpy`, which took a fifth of the time of tracing."""
    shape = np.broadcast_shapes(left.shape, right.shape)
    return lax.mul(
        *(lax.broadcast_in_dim(x, shape, range(len(shape))) if x.shape != shape else x for x in (left, right))
    )


def _shared_product(eqn: Equation, inputs: Sequence[Value], free: list[list[int]]) -> list[Value]:
    """One operand is the same for all lanes: a matrix multiplication in which the batch is a free dimension."""
    (contracted, parallel) = eqn.params["dimension_numbers"]
    left, right = inputs
    if right.batched:
        return batched(*eqn.bind(left.array, right.array))
    swapped = eqn.bind(
        right.array, left.array, dimension_numbers=((contracted[1], contracted[0]), (parallel[1], parallel[0]))
    )[0]  # [parallel, free of right, free of left, B]
    start, middle = len(parallel[0]), len(parallel[0]) + len(free[1])
    end = middle + len(free[0])
    order = (*range(start), *range(middle, end), *range(start, middle), end)
    return batched(lax.transpose(swapped, order))
