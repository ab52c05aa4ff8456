"""`minor_vmap(f)` against `jax.vmap(f, in_axes=-1, out_axes=-1)`, rule by rule, composed, and on physics."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from azjax.batching import interpreter, jaxprs, list_fallbacks, minor_vmap
from azjax.batching.jaxprs import UnknownForm

shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
arrays_of_rank = lambda low, high=3: st.lists(st.integers(1, 4), min_size=low, max_size=high).map(tuple)  # noqa: E731
batches = st.sampled_from([1, 3, 5])
few = functools.partial(settings, deadline=None, derandomize=True, print_blob=True)


vmap_last = functools.partial(jax.vmap, in_axes=-1, out_axes=-1)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(shape, low, high, seed=0):
    return np.random.default_rng(seed).integers(low, high, size=shape).astype(np.int32)


def assert_same(actual, expected, rtol=1e-5, atol=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        place = jax.tree_util.keystr(path)
        assert (left.dtype, left.shape) == (right.dtype, right.shape), place
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        if jnp.issubdtype(left.dtype, jnp.inexact):
            np.testing.assert_allclose(left, right, rtol=rtol, atol=atol, err_msg=place)
        else:
            np.testing.assert_array_equal(left, right, err_msg=place)


def check(function, *arguments, fallbacks=None, **tolerances):
    """Compares with `jax.vmap` under jit; `fallbacks`, if given, is the expected number of them."""
    noted = []
    actual = jax.jit(minor_vmap(function, fallbacks=noted))(*arguments)
    expected = jax.jit(vmap_last(function))(*arguments)
    assert_same(actual, expected, **tolerances)
    if fallbacks is not None:
        assert len(noted) == fallbacks, noted
    return actual


def primitives(function, *arguments):
    """Names and parameters of all equations, nested ones included."""
    found = []

    def walk(jaxpr):
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            found.append((eqn.primitive.name, eqn))
            for value in eqn.params.values():
                for inner in jaxprs._jaxprs(value):
                    walk(inner)

    walk(jax.make_jaxpr(function)(*arguments))
    return found


# Rules, one by one.


@few(max_examples=6)
@given(shapes, batches)
def test_elementwise_unary(shape, batch):
    def function(x):
        small = jnp.tanh(x) * 0.9
        floats = [
            jnp.sin(x), jnp.cos(x), jnp.exp(x), jnp.log1p(jnp.abs(x)), jnp.sqrt(jnp.abs(x) + 1),
            lax.rsqrt(x * x + 1), jnp.sign(x),
            jnp.floor(x), jnp.round(x), jnp.arccos(small), jnp.arctanh(small), jax.nn.sigmoid(x),
            lax.integer_pow(x, 3), lax.erf(x),
            lax.cbrt(x), jnp.square(x), -x, lax.reduce_precision(x, 8, 10), lax.lgamma(jnp.abs(x) + 1),
        ]  # fmt: skip
        others = [jnp.isfinite(x), x.astype(jnp.int32), ~(x > 0), lax.bitcast_convert_type(x, jnp.int32)]
        return floats, others, lax.population_count(x.astype(jnp.int32)), lax.complex(x, small).imag

    check(function, normal((*shape, batch)), fallbacks=0, rtol=1e-4)


@few(max_examples=6)
@given(shapes, batches, st.integers(0, 3))
def test_elementwise_binary_batched_and_shared(shape, batch, case):
    other = normal(shape, 1) if case < 2 else np.float32(0.7)
    x = normal((*shape, batch))

    def operations(x, y):
        i, j = (x * 5).astype(jnp.int32), (y * 5).astype(jnp.int32)
        return [
            x + y, y - x, x * y, x / (y * y + 1), jnp.maximum(x, y), jnp.minimum(y, x), jnp.arctan2(x, y),
            jnp.abs(x) ** y, x < y, y >= x,
            i & j, i | j, i ^ j, i // (jnp.abs(j) + 1), i % 3, i << 2, lax.rem(x, y * y + 1), x == y, x != y,
            jnp.nextafter(x, y),
        ]  # fmt: skip

    if case in (0, 2):
        check(lambda x: operations(x, jnp.asarray(other)), x, fallbacks=0)
    else:
        check(operations, x, normal((*shape, batch), 1), fallbacks=0)


@few(max_examples=8)
@given(shapes, batches, st.booleans(), st.booleans(), st.booleans())
def test_select_and_clamp(shape, batch, scalar, share_predicate, share_case):
    own = () if scalar else shape
    predicate, case = integers((*own, batch), 0, 2) > 0, normal((*shape, batch), 2)
    x, low = normal((*shape, batch)), normal((*own, batch), 3)

    def function(x, p, y, low):
        p = jnp.asarray(predicate[..., 0]) if share_predicate else p
        y = jnp.asarray(case[..., 0]) if share_case else y
        low = jnp.asarray(low)
        chosen = lax.select_n(p, x, y), lax.select_n(jnp.broadcast_to(p, shape).astype(jnp.int32), x, y, x)
        return (
            chosen,
            lax.clamp(low, x, low + 1),
            lax.clamp(-0.5, x, 0.5),
            lax.clamp(low, jnp.ones(shape), low + 1),
            jnp.clip(x, 0.1),
        )

    check(function, x, predicate, case, low, fallbacks=0)


@few(max_examples=8)
@given(arrays_of_rank(1), batches, st.data())
def test_structural(shape, batch, data):
    rank = len(shape)
    axis = data.draw(st.integers(0, rank - 1))
    permutation = data.draw(st.permutations(range(rank)))
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    steps = [data.draw(st.integers(1, 2)) for _ in shape]
    padding = [data.draw(st.tuples(st.integers(0, 2), st.integers(-1, 2), st.integers(0, 1))) for _ in shape]
    shared = jnp.asarray(normal(shape, 4))

    def function(x):
        flat = x.reshape(-1)
        return {
            "broadcast": lax.broadcast_in_dim(x, (2, *shape), tuple(range(1, rank + 1))),
            "expand": x[..., None, :] + x[..., :, None],
            "transpose": x.transpose(permutation),
            "slice": lax.slice(x, start, stop, steps),
            "concatenate": jnp.concatenate([x, shared, x + 1], axis),
            "stack": jnp.stack([x, shared], axis),
            "pad": lax.pad(x, jnp.float32(2.5), padding),
            "reverse": jnp.flip(x, axis),
            "tile": jnp.tile(x, (2,) * rank),
            "split": jnp.split(flat, [1], 0),
            "squeeze": lax.squeeze(x[None, ..., None], (0, rank + 1)),
            "iota": x + lax.broadcasted_iota(jnp.float32, shape, axis),
            "roll": jnp.roll(x, 1, axis),
            "constant": jnp.ones(3),
            "dtype": x.astype(jnp.bfloat16),
        }

    check(function, normal((*shape, batch)), fallbacks=0)


def test_pad_with_a_batched_value_falls_back():
    check(lambda x, v: lax.pad(x, v, [(1, 2, 1)]), normal((4, 3)), normal((3,)), fallbacks=1)


@few(max_examples=8)
@given(arrays_of_rank(1), batches, st.data())
def test_reductions_and_cumulative(shape, batch, data):
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    axis = data.draw(st.sampled_from(axes))
    backwards = data.draw(st.booleans())

    def function(x):
        i = (x * 4).astype(jnp.int32)
        reductions = [
            x.sum(axes),
            x.prod(axes),
            x.max(axes),
            x.min(axes),
            (x > 0).all(axes),
            (x > 0).any(axes),
            lax.reduce_xor(i, axes),
        ]
        positions = [x.argmax(axis), x.argmin(axis)]
        cumulative = [
            f(x, axis, backwards) for f in (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp)
        ]
        return (
            reductions,
            positions,
            cumulative,
            jnp.sort(x, axis),
            jnp.argsort(x, axis),
            x.mean(),
            x.std(),
            jnp.linalg.norm(x, axis=axis),
        )

    check(function, normal((*shape, batch)), fallbacks=0)


@few(max_examples=20)
@given(st.data(), batches)
def test_dot_general(data, batch):
    sizes = st.integers(1, 3)
    parallel, left_free, right_free = (data.draw(st.lists(sizes, max_size=2)) for _ in range(3))
    contracted = data.draw(st.lists(st.sampled_from([0, 1, 3, 20, 40]), max_size=2))
    left, right = [*parallel, *left_free, *contracted], [*parallel, *right_free, *contracted]
    orders = [data.draw(st.permutations(range(len(shape)))) for shape in (left, right)]
    shared = data.draw(st.sampled_from([None, 0, 1]))

    def dims(kinds, order):
        return tuple(order.index(dim) for dim in kinds)

    count = len(contracted)
    numbers = tuple(
        zip(
            *(
                (dims(range(len(shape) - count, len(shape)), order), dims(range(len(parallel)), order))
                for shape, order in zip((left, right), orders, strict=True)
            ),
            strict=True,
        )
    )
    operands = [
        normal((*(shape[dim] for dim in order), batch), seed)
        for seed, (shape, order) in enumerate(zip((left, right), orders, strict=True))
    ]

    def function(a, b):
        a = jnp.asarray(operands[0][..., 0]) if shared == 0 else a
        b = jnp.asarray(operands[1][..., 0]) if shared == 1 else b
        return lax.dot_general(a, b, numbers)

    check(function, *operands, fallbacks=0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "block", "blocks"),
    [(12, 4, 3), (12, 5, 3), (12, 12, 1), (12, 100, 1), (13, 4, 1), (14, 8, 2), (12, None, 1)],
)
def test_blocks_change_nothing_but_the_loop(size, block, blocks):
    def function(x, key, n):
        empty = x[:0]  # MJX has such arrays in its states
        return {"a": x * jax.random.uniform(key, (2,)), "b": [x.sum(), jax.random.fold_in(key, n)], "c": empty}

    keys = jax.random.split(jax.random.key(0), size)
    arguments = normal((3, 2, size)), keys, np.arange(size, dtype=np.int32)
    mapped_empty = jax.jit(minor_vmap(lambda x: x + 1, block=block))(np.zeros((0, 2, size), np.float32))
    assert mapped_empty.shape == (0, 2, size)
    mapped = minor_vmap(function, block=block)
    assert_same(jax.jit(mapped)(*arguments), jax.jit(vmap_last(function))(*arguments), rtol=1e-6, atol=1e-6)
    outer = [eqn for eqn in jax.make_jaxpr(mapped)(*arguments).eqns if eqn.primitive.name == "scan"]
    assert [eqn.params["length"] for eqn in outer] == ([blocks] if blocks > 1 else [])


@pytest.mark.parametrize("index", [1, slice(1, 3), np.array([0, 2]), -1])
def test_a_function_applied_at_an_index_is_applied(index):
    """`.at[].apply` is a plain scatter whose updates count for nothing."""
    check(lambda x: x.at[index].apply(jnp.sin), normal((4, 3)), fallbacks=1)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("length", [3, 40])
def test_products_of_other_types(dtype, length):
    left, right = (jnp.asarray(x > 0 if dtype is bool else x, dtype) for x in normal((2, 2, length, 5)))
    check(lambda a, b: a @ b.T, left, right, rtol=1e-2, atol=1e-2)


@few(max_examples=12)
@given(st.sampled_from([1, 2, 3, 5, 12, 18]), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_factorisations(size, left_side, lower, transpose_a, unit_diagonal):
    shape = (2, size, size, 3)
    scale = np.float32(1 if size <= 5 else size**-0.5)  # larger random triangles are close to singular
    triangle = scale * normal(shape) + 2 * np.eye(size, dtype=np.float32)[..., None]
    right = normal((2, size, 2, 3), 1)
    options = {"lower": lower, "transpose_a": transpose_a, "unit_diagonal": unit_diagonal, "left_side": left_side}

    def function(triangle, right):
        matrix = jnp.einsum("pij,pkj->pik", triangle, triangle)
        right = right if left_side else right.swapaxes(1, 2)
        return lax.linalg.cholesky(matrix), lax.linalg.triangular_solve(triangle, right, **options)

    check(function, triangle, right, fallbacks=0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [4, 18])  # unrolled, and as a loop
def test_factorisations_fail_and_differentiate_like_jax(size):
    a = normal((size, size, 5)) * np.float32(1 if size <= 5 else size**-0.5)
    a = np.einsum("ijb,kjb->ikb", a, a) + np.eye(size, dtype=np.float32)[..., None]
    broken = a.copy()
    broken[1, 1, 2] = -1.0
    broken[3, 3, 4] = -9.0
    check(jnp.linalg.cholesky, broken, fallbacks=0)

    def loss(mapper, a, b):
        solve = lambda a, b: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b)  # noqa: E731
        return (mapper(solve)(a, b) ** 2).sum()

    b = normal((size, 5), 1)
    assert_same(
        *(jax.jit(jax.grad(functools.partial(loss, m), (0, 1)))(a, b) for m in (minor_vmap, vmap_last)), rtol=1e-3
    )


def test_larger_factorisations_stay_out_of_lapack_which_can_hang():
    def solve(a, b):
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b)

    a, b = np.eye(23, dtype=np.float32)[..., None].repeat(4, -1), normal((23, 4))
    for function in (solve, functools.partial(jax.scipy.linalg.solve, assume_a="pos")):
        texts = [jax.jit(mapped(function)).lower(a, b).as_text() for mapped in (minor_vmap, vmap_last)]
        assert ["lapack" in text for text in texts] == [False, True]


@pytest.mark.parametrize("size", [5, 18])
def test_linear_solves_and_their_derivatives_are_those_of_jax(size):
    def solve(a, b):
        return jax.scipy.linalg.solve(a @ a.T + jnp.eye(size), b, assume_a="pos")

    a, b = normal((size, size, 3)), normal((size, 3), 1)
    check(solve, a, b, fallbacks=0, rtol=1e-4, atol=1e-5)
    gradients = (jax.grad(lambda a, b, m=m: (m(solve)(a, b) ** 2).sum(), (0, 1))(a, b) for m in (minor_vmap, vmap_last))
    assert_same(*gradients, rtol=1e-3, atol=1e-4)


def test_large_products():
    a, w = normal((40, 50, 3)), jnp.asarray(normal((50, 60), 1))
    check(lambda a: a @ w, a, fallbacks=0, atol=1e-3)
    check(lambda a: w.T @ a.T, a, fallbacks=0, atol=1e-3)
    check(lambda a: a @ a.T, a, fallbacks=1, atol=1e-3)
    check(lambda a: a.reshape(-1) @ a.reshape(-1), a, fallbacks=0, rtol=1e-3)
    check(lambda a: a[:12].T @ a[:12], a, fallbacks=0, atol=1e-3)
    check(lambda a: (4 * a[:3]).astype(jnp.int8) @ (4 * a[:3]).astype(jnp.int8).T, a, fallbacks=0)
    check(
        lambda a: jnp.matmul(a.astype(jnp.bfloat16)[:3], w.astype(jnp.bfloat16), preferred_element_type=jnp.float32),
        a,
        atol=1e-2,
    )


INDEX_CASES = {
    "integer": lambda x, at: at(x, 2),
    "negative": lambda x, at: at(x, -1),
    "column": lambda x, at: at(x, (slice(None), 1)),
    "rows": lambda x, at: at(x, np.array([3, 0, 1])),
    "repeated": lambda x, at: at(x, np.array([1, 1, 1, 0])),
    "strided": lambda x, at: at(x, np.array([0, 2])),
    "backwards": lambda x, at: at(x, np.array([3, 2, 1])),
    "pairs": lambda x, at: at(x, (np.array([0, 2, 3]), np.array([1, 0, 2]))),
    "grid": lambda x, at: at(x, (np.array([[0], [2]]), np.array([[1, 2]]))),
    "columns": lambda x, at: at(x, (slice(None), np.array([2, 0]))),
    "outer dims": lambda x, at: at(x, (np.array([0, 1]), slice(None), np.array([1, 0]))),
    "slices": lambda x, at: at(x, (slice(1, 4, 2), slice(0, 2))),
    "computed": lambda x, at: at(x, (jnp.arange(3) * 3 + 1) % 4),
    "sorted": lambda x, at: at(x, jnp.argsort(jnp.array([3, 1, 2, 0]))),
}


@pytest.mark.parametrize("name", INDEX_CASES)
def test_static_indexing(name):
    """Known indices become slices: no gather, no scatter, no fallback."""
    case, x = INDEX_CASES[name], normal((4, 3, 2, 3))

    def function(x):
        read = case(x, lambda x, i: x[i])
        new = jnp.arange(read.size, dtype=x.dtype).reshape(read.shape) * x[0, 0, 0]
        added = case(x, lambda x, i: x.at[i].add(new))
        onto_zero = case(jnp.zeros_like(x), lambda z, i: z.at[i].add(new))
        written = case(x, lambda x, i: x.at[i].set(3.0))
        others = [case(x, lambda x, i, f=f: getattr(x.at[i], f)(new)) for f in ("multiply", "min", "max")]
        return read, added, onto_zero, written, others

    check(function, x, fallbacks=0)
    names = {name for name, _ in primitives(minor_vmap(function), x)}
    assert not {name for name in names if "gather" in name or "scatter" in name}


@pytest.mark.parametrize("mode", ["clip", "fill", "promise_in_bounds", "drop"])
def test_out_of_bounds_indices(mode):
    indices = np.array([1, 2]) if mode == "promise_in_bounds" else np.array([1, 7, -9, 3])

    def function(x):
        read = x[:1] if mode == "drop" else x.at[indices].get(mode=mode)
        write = mode if mode != "fill" else None
        return read, x.at[indices].add(1.0, mode=write), x.at[indices].set(2.0, mode=write)

    check(function, normal((4, 2, 3)), fallbacks=0)


def test_many_scattered_indices_stay_one_gather():
    order = np.random.default_rng(0).permutation(300)
    check(lambda x: (x[order], x.at[order[:200]].add(x[:200])), normal((300, 2)), fallbacks=0)


def test_gather_with_batching_dimensions():
    index = jnp.array([2, 0, 1])
    pick = jax.vmap(lambda row, i: row[i])
    put = jax.vmap(lambda row, i: row.at[i].set(0.0))
    check(lambda x: (pick(x, index), put(x, index)), normal((3, 4, 2)), fallbacks=0)


@pytest.mark.parametrize("kind", ["known", "shared", "batched"])
def test_dynamic_indexing(kind):
    x, start = normal((5, 4, 3)), integers((3,), -1, 6)

    def function(x, i, shared):
        i = {"known": jnp.int32(2), "shared": shared, "batched": i}[kind]
        return [
            lax.dynamic_slice(x, (i, 1), (2, 2)),
            lax.dynamic_slice(x, (i, i), (4, 1)),
            lax.dynamic_slice(jnp.arange(40.0), (i,), (3,)),
            lax.dynamic_update_slice(x, x[:2, :2] * 2, (i, 1)),
            x[i],
            x[jnp.stack([i, i])],
            x.at[i].add(1.0),
            x.at[i, jnp.array([0, 2])].set(0.0),
            lax.dynamic_index_in_dim(jnp.arange(12.0).reshape(6, 2), i),
        ]

    def outer(mapper):
        return jax.jit(lambda x, i, shared: mapper(lambda x, i: function(x, i, shared))(x, i))

    ours = outer(minor_vmap)(x, start, jnp.int32(3))
    assert_same(ours, outer(vmap_last)(x, start, jnp.int32(3)))
    if kind != "batched":
        assert list_fallbacks(lambda x, i: function(x, i, jnp.int32(3)), x, start) == []


def test_folded_constants_equal_jax():
    """Chains of constant equations give the same numbers as JAX."""

    def function(x):
        i, m = jnp.arange(6), jnp.arange(12).reshape(3, 4)
        constants = [
            i + 1, i * -2, i - 7, i // 4, i % 4, -i, abs(3 - i), i & 3, i | 8, i ^ 5, ~i, i << 1, i > 2, i == 3,
            jnp.where(i < 3, i, -i),
            jnp.clip(i, 1, 4), i.astype(jnp.float32), (i * 1.7).astype(jnp.int32), m.T, m[1], m[:, ::2],
            jnp.flip(m, 1), m.sum(0), m.max(1),
            m.min(), (m > 3).any(0), (m > 3).all(1), m.prod(1), jnp.cumsum(i), jnp.sort(-i), jnp.argmax(i),
            jnp.concatenate([i, i + 1]),
            jnp.stack([i, i]), jnp.tile(i, 2), jnp.repeat(i, 2), jnp.pad(i, 1), jnp.tril(m),
            jnp.take(m, jnp.array([2, 0]), 1),
            jnp.eye(3), jnp.broadcast_to(i, (2, 6)), i.reshape(2, 3), m[jnp.array([0, 2]), jnp.array([1, 3])],
            jnp.triu_indices(3),
            lax.dynamic_slice(i, (4,), (3,)), jnp.split(i, 2), m.at[1, 2].set(7), jnp.searchsorted(i, 3),
            i.astype(jnp.uint8) - 3,
            jnp.nonzero(i > 2, size=3), jnp.unique(i % 2, size=2), jnp.float32(2) ** 3, jnp.sin(i),
            jnp.bfloat16(1.5) * 3,
        ]  # fmt: skip
        return jax.tree.map(lambda c: c + (0 * x).astype(c.dtype) if c.dtype != bool else c & (x == x), constants)

    check(function, normal((2,)), fallbacks=0)


# Control flow.


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    shared_rows = jnp.asarray(normal((4, 2), 1))

    def function(x, rows):
        def step(carry, inputs):
            state, counter, late, fixed = carry
            row, shared = inputs
            state = jnp.tanh(state * counter + row + shared)
            return (state, counter + 1, late + state.sum(), fixed), (state, counter, shared * counter, fixed, late)

        start = (x, 1, jnp.float32(0), jnp.ones(2))
        return lax.scan(step, start, (rows, shared_rows), reverse=reverse, unroll=2)

    arguments = normal((2, 3)), normal((4, 2, 3), 2)
    check(function, *arguments, fallbacks=0)
    (scan,) = (eqn for name, eqn in primitives(minor_vmap(function), *arguments) if name == "scan")
    assert [var.aval.shape for var in scan.outvars[:3]] == [(2, 3), (), (3,)]  # the counter stays a scalar


def test_nested_scan_without_inputs():
    def inner(c, _):
        return c * 1.1 + 0.1, c.sum()

    def function(x):
        def step(c, i):
            c, sums = lax.scan(inner, c, None, length=3)
            return c + i, sums.mean()

        return lax.scan(step, x, jnp.arange(4.0))

    check(function, normal((2, 3)), fallbacks=0)


def test_while_with_shared_predicate_stays_plain():
    def function(x):
        return lax.fori_loop(0, jnp.int32(5), lambda i, c: (c[0] * 0.5 + i, c[1] + i), (x, 0))

    x = normal((2, 3))
    check(function, x, fallbacks=0)
    check(
        lambda x, n: lax.while_loop(lambda c: c[1] < 4, lambda c: (c[0] + n, c[1] + 1), (x, 0)),
        x,
        normal((3,)),
        fallbacks=0,
    )
    (loop,) = (eqn for name, eqn in primitives(minor_vmap(lambda x: lax.while_loop(
        lambda c: c[1] < 4, lambda c: (c[0] * 2, c[1] + 1), (x, 0))), x) if name == "while")  # fmt: skip
    assert "reduce_or" not in str(loop.params["cond_jaxpr"])
    assert [var.aval.shape for var in loop.outvars] == [(2, 3), ()]


def test_while_with_predicate_per_lane():
    def function(x, limit):
        def body(carry):
            state, count, key = carry
            key, sub = jax.random.split(key)
            return state * 1.5 + jax.random.uniform(sub, (2,)), count + 1, key

        return lax.while_loop(lambda c: c[0].sum() < limit, body, (x, 0, jax.random.key(1)))

    check(function, np.abs(normal((2, 4))), np.array([1.0, 50.0, 0.0, 9.0], np.float32))
    check(
        lambda x: lax.while_loop(lambda c: c < x, lambda c: c + 1, 0.0),
        np.array([1.0, 7.0, -2.0], np.float32),
        fallbacks=0,
    )


def test_cond_and_switch():
    branches = [
        lambda x, y: (x + y, jnp.ones(2)),
        lambda x, y: (x * 2, jnp.zeros(2)),
        lambda x, y: (x, y * jnp.ones(2)),
    ]
    x, y = normal((2, 4)), normal((4,), 1)
    index = np.array([0, 2, 1, 5], np.int32)
    check(lambda x, y, i: lax.switch(i, branches, x, y), x, y, index, fallbacks=0)
    check(lambda x, y: lax.switch(1, branches, x, y), x, y, fallbacks=0)
    check(lambda x, y: lax.cond(y > 0, lambda: x, lambda: jnp.ones(2)), x, y, fallbacks=0)

    @jax.jit
    def shared(x, y, i):
        return minor_vmap(lambda x, y: lax.switch(i, branches, x, y))(x, y)

    for i in range(3):
        expected = vmap_last(branches[i])(x, y)
        assert_same(shared(x, y, i), expected)
    names = [name for name, _ in primitives(shared, x, y, 1)]
    assert "cond" in names


def test_platform_dependent():
    def function(x):
        return lax.platform_dependent(x, tpu=lambda x: x + 5, cuda=lambda x: x + 7, default=lambda x: x * 3)

    def diagonal(x):
        return jnp.diagonal(x) + jnp.trace(x)

    check(function, normal((2, 3)), fallbacks=0)
    check(diagonal, normal((3, 3, 2)), fallbacks=0)


# Arrays kept as components.


def chain(data, x, y, size):
    """A random program on vectors `[size, k]` that are stacked from components."""
    k = data.draw(st.integers(2, 4), label="components")
    steps = data.draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), label="steps")
    shared = data.draw(st.booleans(), label="used twice")

    def function(x, y):
        value = jnp.stack([x[:, i] * (i + 1.0) for i in range(k)], axis=-1)
        other = y[:, :k]
        for name in steps:
            if value.ndim == 2 and value.shape == other.shape:
                value = STEPS[name](value, other)
        return (value, jnp.sin(value).sum(), value * 2.0) if shared else value

    return function


STEPS = {
    "add": lambda v, o: v + o,
    "scalar": lambda v, o: 2.0 - v,
    "column": lambda v, o: v * o[:, :1],
    "row": lambda v, o: v * o[:1],
    "constant": lambda v, o: v + np.arange(v.size, dtype=np.float32).reshape(v.shape),
    "select": lambda v, o: jnp.where(v > o, v, 0.5),
    "clamp": lambda v, o: lax.clamp(-1.0, v, 1.0),
    "cross": lambda v, o: jnp.stack([v[:, 1] * o[:, 0] - v[:, 0] * o[:, 1]] * v.shape[1], -1),
    "transpose": lambda v, o: (v.T * o.T).T,
    "expand": lambda v, o: (v[None, :, :, None] + 1.0)[0, :, :, 0],
    "reshape": lambda v, o: jnp.sin(v.reshape(1, v.shape[0], 1, v.shape[1])).reshape(v.shape),
    "flatten": lambda v, o: jnp.sin(v.reshape(-1)).reshape(v.shape),
    "broadcast": lambda v, o: jnp.broadcast_to(v[:, None], (v.shape[0], 3, v.shape[1]))[:, 1],
    "slice": lambda v, o: jnp.concatenate([v[:, 1:], v[:, :1]], -1),
    "stride": lambda v, o: jnp.concatenate([v[:, ::2], v[:, 1::2]], -1),
    "rows": lambda v, o: jnp.concatenate([v[1:], v[:1]], 0),
    "normalise": lambda v, o: v / (1.0 + jnp.abs(v).sum(-1, keepdims=True)),
    "largest": lambda v, o: v - v.max(-1, keepdims=True),
    "all": lambda v, o: jnp.where((v < 3.0).all(-1, keepdims=True), v, o),
    "total": lambda v, o: v + v.sum(),
    "columns": lambda v, o: v + v.mean(0),
    "scan": lambda v, o: lax.scan(lambda c, _: (c * 0.5 + v, None), v, None, 2)[0],
    "jit": lambda v, o: jax.jit(lambda a, b: a * b + a)(v, o),
}


@few(max_examples=60)
@given(st.data(), st.integers(1, 3), batches)
def test_components(data, size, batch):
    x, y = normal((size, 4, batch)), normal((size, 4, batch), 1)
    check(chain(data, x, y, size), x, y)


def test_components_allow_empty_slices_and_differentiate_like_jax_at_ties():
    x = np.ones((3, 5), np.float32)
    check(lambda x: jnp.stack([x[0], x[1], x[2]])[0:0], x)
    check(lambda x: lax.slice(jnp.stack([x[0], x[1]]), (1,), (1,)), x)
    for reduce in (jnp.max, jnp.min, jnp.prod, jnp.sum):
        total = lambda mapped: lambda x: jnp.sin(mapped(lambda x: reduce(jnp.stack([x[0], x[1], x[2]])))(x)).sum()  # noqa: B023, E731
        assert_same(*(jax.grad(total(mapped))(x) for mapped in (minor_vmap, vmap_last)))


def rotated(v, w):
    """A cross product, and arithmetic after it."""
    x, y, z = (v[..., i] for i in range(3))
    a, b, c = (w[..., i] for i in range(3))
    cross = jnp.stack([y * c - z * b, z * a - x * c, x * b - y * a], axis=-1)
    return v + 2.0 * cross * w[..., :1]


def test_components_are_joined_last_if_used_once():
    v, w = normal((5, 3, 8)), normal((5, 3, 8), 1)
    names = [name for name, _ in primitives(minor_vmap(rotated), v, w)]
    assert names.count("concatenate") == 1
    assert names[-1] == "concatenate"
    shared = [name for name, _ in primitives(minor_vmap(lambda v, w: (rotated(v, w), rotated(v, w).sum(0))), v, w)]
    assert shared.count("concatenate") == 2

    def twice(v, w):
        r = rotated(v, w)
        return jnp.sin(r), jnp.cos(r)

    names = [name for name, _ in primitives(minor_vmap(twice), v, w)]
    assert names.count("concatenate") == 1
    assert set(names[-2:]) == {"sin", "cos"}
    check(twice, v, w)


# Elementary functions.


def test_atan2_special_values_are_those_of_the_standard():
    values = np.array([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32)
    y, x = (side.reshape(-1) for side in np.meshgrid(values, values))
    actual, expected = np.asarray(jax.jit(minor_vmap(jnp.arctan2))(y, x)), np.arctan2(y, x)
    np.testing.assert_allclose(actual, expected, rtol=5e-7, atol=1e-38)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[number]), np.signbit(expected[number]))


@few(max_examples=20)
@given(st.integers(0, 1000), st.floats(-20, 20))
def test_atan2_is_accurate_to_a_few_units_in_the_last_place(seed, exponent):
    y, x = normal(500, seed) * np.float32(2.0**exponent), normal(500, seed + 1)
    exact = np.arctan2(y.astype(np.float64), x.astype(np.float64))
    error = np.abs(np.asarray(jax.jit(minor_vmap(jnp.arctan2))(y, x)) - exact)
    assert (error <= 4 * np.spacing(np.abs(exact).astype(np.float32))).all()


def test_atan2_differentiates_like_jax():
    y, x = normal((3, 4)), normal((3, 4), 1)
    total = lambda mapped: lambda y, x: (mapped(jnp.arctan2)(y, x) ** 2).sum()  # noqa: E731
    actual, expected = (jax.grad(total(mapped), (0, 1))(y, x) for mapped in (minor_vmap, vmap_last))
    assert_same(actual, expected)


def test_jit_remat_and_barrier():
    @jax.jit
    def inner(x, i):
        return x[i] * 2

    def function(x):
        hidden = jax.checkpoint(lambda x, y: jnp.sin(x) * jnp.cos(y))(x, jnp.ones(3))
        return inner(hidden, jnp.array([2, 0])), lax.optimization_barrier((x, jnp.ones(2)))

    x = normal((3, 4))
    check(function, x, fallbacks=0)
    loss = lambda mapper: lambda x: mapper(function)(x)[0].sum()  # noqa: E731
    assert_same(jax.grad(loss(minor_vmap))(x), jax.grad(loss(vmap_last))(x))
    assert any("remat" in name or "checkpoint" in name for name, _ in primitives(minor_vmap(function), x))
    check(jax.grad(lambda x: function(x)[0].sum()), x)


def test_random_numbers_are_those_of_vmap():
    def function(key):
        first, second, third = jax.random.split(key, 3)
        folded = jax.random.fold_in(first, 7)
        values = [
            jax.random.uniform(first, (2, 3)), jax.random.normal(second), jax.random.randint(third, (3,), 0, 10),
            jax.random.bits(folded),
            jax.random.permutation(first, 5), jax.random.categorical(second, jnp.zeros(4)),
            jax.random.bernoulli(third),
        ]  # fmt: skip
        return values, folded

    check(function, jax.random.split(jax.random.key(0), 3))
    check(function, jax.random.split(jax.random.PRNGKey(1), 3).T)
    keys = jax.random.split(jax.random.key(2), (2, 3))
    check(lambda k: (k[1], jax.vmap(jax.random.normal)(k), jnp.flip(k)), keys)


# Custom derivatives.


@jax.custom_jvp
def odd_derivative(x, scale):
    return x * scale


@odd_derivative.defjvp
def _(primals, tangents):
    (x, scale), (dx, dscale) = primals, tangents
    return x * scale, 10 * dx * scale + dscale * jnp.sin(x)


@jax.custom_vjp
def odd_gradient(x, scale, steps):
    return x * scale + 0.0 * steps


odd_gradient.defvjp(
    lambda x, scale, steps: (odd_gradient(x, scale, steps), (x, scale)),
    lambda saved, g: (7 * g * saved[1], g * jnp.cos(saved[0]), None),
)


@pytest.mark.parametrize(
    "function", [odd_derivative, lambda x, s: odd_gradient(x, s, jnp.int32(3))], ids=["jvp", "vjp"]
)
@pytest.mark.parametrize("scale_is", ["batched", "shared", "constant"])
def test_custom_derivatives_are_kept(function, scale_is):
    x, scales = normal((2, 3)), normal((2, 3), 1)

    def loss(mapper, x, scales, shared):
        if scale_is == "batched":
            return (mapper(function)(x, scales) ** 2).sum()
        scale = shared if scale_is == "shared" else jnp.full(2, 1.5)
        return (mapper(lambda x: function(x, scale))(x) ** 2).sum()

    shared = jnp.asarray(scales[:, 0])
    ours, theirs = (
        jax.jit(jax.grad(functools.partial(loss, mapper), argnums=(0, 1, 2)))(x, scales, shared)
        for mapper in (minor_vmap, vmap_last)
    )
    assert_same(ours, theirs)


def test_custom_jvp_forward_mode_inside_loops():
    def function(x, n):
        return lax.fori_loop(0, 3, lambda i, c: jax.nn.relu(odd_derivative(c, x)) + jax.nn.silu(c) + n, x)

    x, n = normal((2, 3)), np.array([1, 2, 3], np.int32)
    forward = lambda mapper: jax.jvp(lambda x: mapper(function)(x, n), (x,), (np.ones_like(x),))  # noqa: E731
    backward = lambda mapper: jax.grad(lambda x: mapper(function)(x, n).sum())(x)  # noqa: E731
    assert_same(forward(minor_vmap), forward(vmap_last))
    assert_same(backward(minor_vmap), backward(vmap_last))
    check(jax.grad(lambda x: function(x, 1.0).sum()), x)


# Composition.


def mixed(state, gain):
    """A bit of everything, differentiable."""

    def step(carry, i):
        position, velocity = carry
        force = -gain * position[jnp.array([1, 2, 0])] + jnp.dot(position, velocity)
        force = jnp.where(position > 0, force, jnp.zeros(3).at[jnp.array([0, 1])].add(force[1:]))
        velocity = velocity + 0.1 * force * jnp.cos(i)
        return (position + 0.1 * velocity, jnp.clip(velocity, -2, 2)), velocity.sum()

    (position, velocity), sums = lax.scan(step, state, jnp.arange(4.0))
    return {"position": position, "velocity": velocity, "sums": sums}


MIXED_ARGUMENTS = (normal((3, 4)), normal((3, 4), 1)), normal((4,), 2)


def test_composes_with_jit_grad_vmap_and_scan():
    check(mixed, *MIXED_ARGUMENTS, fallbacks=0)
    assert_same(minor_vmap(mixed)(*MIXED_ARGUMENTS), vmap_last(mixed)(*MIXED_ARGUMENTS))  # eager

    def loss(mapper, state, gain):
        return sum(leaf.sum() for leaf in jax.tree.leaves(mapper(mixed)(state, gain)))

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(loss, m), (0, 1)))(*MIXED_ARGUMENTS) for m in (minor_vmap, vmap_last)
    )
    assert_same(ours, theirs)
    stacked = jax.tree.map(lambda x: np.stack([x, x + 0.3]), MIXED_ARGUMENTS)
    assert_same(jax.jit(jax.vmap(minor_vmap(mixed)))(*stacked), jax.jit(jax.vmap(vmap_last(mixed)))(*stacked))
    twice = jax.tree.map(lambda x: np.stack([x, x + 0.3, x], -1), MIXED_ARGUMENTS)
    assert_same(jax.jit(minor_vmap(minor_vmap(mixed)))(*twice), jax.jit(vmap_last(vmap_last(mixed)))(*twice))

    @functools.partial(jax.jit, static_argnums=0)
    def repeated(mapper, state, gain):
        def step(state, _):
            out = mapper(mixed)(state, gain)
            return (out["position"], out["velocity"]), out["sums"]

        return lax.scan(step, state, None, length=3)

    assert_same(repeated(minor_vmap, *MIXED_ARGUMENTS), repeated(vmap_last, *MIXED_ARGUMENTS))


def test_network_parameters_are_shared():
    weights = [jnp.asarray(normal((6, 32))), jnp.asarray(normal((32, 2), 1))]
    x = normal((6, 5), 2)

    def loss(mapper, weights):
        return jnp.square(mapper(lambda x: jnp.tanh(x @ weights[0]) @ weights[1])(x)).sum()

    assert_same(
        jax.jit(jax.grad(functools.partial(loss, minor_vmap)))(weights),
        jax.jit(jax.grad(functools.partial(loss, vmap_last)))(weights), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_inside_shard_map():
    devices = np.array(jax.devices())
    mesh = Mesh(devices, ("lanes",))
    lanes = 2 * len(devices)
    x, limit = normal((3, lanes)), np.abs(normal((lanes,), 1))

    def function(x, limit):
        total, history = lax.scan(lambda c, i: (c + x * i, c), jnp.zeros(3) + 0 * x, jnp.arange(3.0))
        grown, count = lax.while_loop(
            lambda c: c[0].sum() < limit, lambda c: (c[0] + 0.5, c[1] + 1), (jnp.abs(x), 0 * limit)
        )
        index = jnp.array([2, 0])
        return (
            total[index],
            history,
            grown,
            count,
            lax.cond(limit > 0.5, lambda: x, lambda: 2 * x),
            jax.nn.relu(x) @ jnp.ones((3, 2)),
        )

    spec = PartitionSpec(None, "lanes"), PartitionSpec("lanes")
    outs = (spec[0], PartitionSpec(None, None, "lanes"), spec[0], spec[1], spec[0], spec[0])
    sharded = jax.jit(jax.shard_map(minor_vmap(function), mesh=mesh, in_specs=spec, out_specs=outs))
    expected = vmap_last(function)(x, limit)
    assert_same(sharded(x, limit), expected)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), spec[0]), out_specs=PartitionSpec())
    def gradient(weights, x):
        loss = lambda w: jnp.square(minor_vmap(lambda x: jnp.tanh(x @ w))(x)).sum()  # noqa: E731
        return lax.psum(
            jax.grad(loss)(lax.pcast(weights, "lanes", to="varying") if hasattr(lax, "pcast") else weights), "lanes"
        )

    weights = jnp.asarray(normal((3, 3), 3))
    plain = jax.grad(lambda w: jnp.square(jnp.tanh(x.T @ w)).sum())(weights)
    assert_same(jax.jit(gradient)(weights, x), plain)


def test_function_is_traced_once():
    calls = []

    def function(x):
        calls.append(x.shape)
        return lax.fori_loop(0, 3, lambda i, c: c + i, x)

    jax.jit(minor_vmap(function))(normal((2, 3)))
    assert calls == [(2,)]


def test_empty_batch_and_empty_arrays():
    check(lambda x: jnp.sin(x).sum(), normal((3, 0)))
    check(
        lambda x: (x @ x.T, x.sum(), x[:, :0], jnp.concatenate([x, x], 1), x.at[0].add(1.0)),
        normal((2, 0, 3)),
        fallbacks=0,
    )


def test_pytrees_and_untouched_outputs():
    def function(tree, pair):
        return {
            "sum": tree["a"] + pair[0],
            "same": tree,
            "none": None,
            "number": 3.0,
            "count": 2,
            "constant": np.arange(3),
        }

    check(function, {"a": normal((2, 3)), "b": integers((3,), 0, 5)}, (normal((3,)), None))
    check(lambda x: x.sum(), np.ones((2, 3)))


# Errors and fallbacks.


def test_errors_are_clear():
    double = minor_vmap(lambda *xs: xs)
    with pytest.raises(ValueError, match="without array arguments"):
        double()
    with pytest.raises(ValueError, match="without array arguments"):
        double({})
    with pytest.raises(ValueError, match=r"argument 1\['a'\] is a scalar"):
        double(np.ones(3), {"a": 2.0})
    with pytest.raises(ValueError, match=r"last axes differ in size: 3 \(argument 0\), 4 \(argument 1\[1\]\)"):
        double(np.ones((2, 3)), (np.ones(3), np.ones(4)))


def test_fallbacks_are_listed():
    x = normal((4, 4, 3))
    listed = list_fallbacks(lambda x: (lax.top_k(x, 2), jnp.sin(x)), x)
    assert len(listed) == 1
    assert listed[0].startswith("top_k(f32[4,4]")
    check(lambda x: (lax.top_k(x, 2), jnp.linalg.qr(x), jnp.fft.fft(x)), x, atol=1e-4)


def test_unknown_programs_fall_back_with_one_warning(monkeypatch):
    monkeypatch.delitem(interpreter.RULES, "custom_jvp_call")
    with pytest.warns(UserWarning, match="leaves `custom_jvp_call` to jax.vmap") as record:
        check(lambda x: jax.nn.relu(x) + jax.nn.relu(-2 * x), normal((2, 3)), fallbacks=2)
    assert len(record) == 1


def test_a_linear_solve_is_left_without_warning():
    a, b = normal((9, 9, 3)) + 9 * np.eye(9, dtype=np.float32)[..., None], normal((9, 3), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(jnp.linalg.solve, a, b, atol=1e-4)


@pytest.mark.parametrize("form", ["scan_form", "while_form", "cond_form", "gather_form"])
def test_unknown_forms_fall_back_with_a_warning(form, monkeypatch):
    def refuse(*_):
        raise UnknownForm("renamed")

    def function(x, i):
        total, _ = lax.scan(lambda c, y: (c + y, None), x[0], x)
        looped = lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, jnp.abs(x))
        return total, looped, lax.cond(i > 1, lambda: x, lambda: -x), x[jnp.array([2, 0])]

    for module in ("jaxprs", "indexing"):
        target = __import__(f"azjax.batching.{module}", fromlist=["_"])
        if hasattr(target, form):
            monkeypatch.setattr(target, form, refuse)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        check(function, normal((3, 2, 4)), integers((4,), 0, 4), fallbacks=1)
    assert [str(w.message) for w in record if "minor_vmap" in str(w.message)] == [
        f"minor_vmap leaves `{form.removesuffix('_form')}` to jax.vmap: renamed"
    ]


# Physics.

ENVIRONMENTS = ["ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum"]
ENVIRONMENTS += ["inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d"]


def compare_steps(name, backend, lanes=4, steps=24, every=8, tolerance=1e-5, compare_reset=False):
    """Steps with `jax.vmap`; every few states, one step with `minor_vmap` from the same state must agree, leaf by leaf.

    Returns the environment and the last state, lanes first.
    """
    envs = pytest.importorskip("brax.envs")
    to_minor = functools.partial(jax.tree.map, lambda x: np.moveaxis(np.asarray(x), 0, -1))
    to_major = functools.partial(jax.tree.map, lambda x: np.moveaxis(np.asarray(x), -1, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = envs.get_environment(name, backend=backend)
        keys = jax.random.split(jax.random.PRNGKey(0), lanes)
        first = jax.jit(minor_vmap(env.reset))(keys.T)
        differences = []
        if compare_reset:
            differences.append(relative_difference(first, to_minor(jax.jit(jax.vmap(env.reset))(keys))))
        theirs, ours, state = jax.jit(jax.vmap(env.step)), jax.jit(minor_vmap(env.step)), to_major(first)
        actions = np.random.default_rng(0).uniform(-1, 1, (steps, lanes, env.action_size)).astype(np.float32)
        for i, action in enumerate(actions):
            following = theirs(state, action)
            if i % every == 0 or i == steps - 1:
                differences.append(relative_difference(ours(to_minor(state), action.T), to_minor(following)))
            state = following
    assert max(differences) < tolerance, differences
    return env, state


def relative_difference(actual, expected):
    """Largest difference of any leaf, relative to the largest entry of that leaf (at least 1)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    worst = 0.0
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        if left.size:
            worst = max(worst, np.abs(left - right).max() / max(1.0, np.abs(right).max()))
    return worst


def test_ant_spring_with_contacts():
    env, state = compare_steps("ant", "spring")
    contact = pytest.importorskip("brax.contact")
    assert (jax.vmap(lambda x: contact.get(env.sys, x).dist)(state.pipeline_state.x) < 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["spring", "positional", "generalized", "mjx"])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_matrix(name, backend):
    compare_steps(name, backend, tolerance=1e-4, compare_reset=True)
