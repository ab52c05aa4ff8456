"""Execution of programs, batched and without branches.

Every line computes what each function would give and selects. All intermediate quantities are separate arrays of the
batch's shape, one for each item of a list, so that the batch is what SIMD units and accelerators work on. Programs and
inputs broadcast against each other: programs `[P, 1]` with inputs `[I]` run each on each, and what depends on the
program alone is computed once for all inputs.

Nothing here trusts its arguments. A function that does not exist, a variable of another kind, an index out of bounds,
the minimum of an empty list, an integer beyond the bounds: each makes the execution invalid, and an invalid execution
has no output.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.reasoning.language import (
    INT,
    LAMBDA_ID,
    LAMBDA_KIND,
    LARGEST,
    LIST,
    MAX_INPUTS,
    MAX_LENGTH,
    MAX_LINES,
    NONE,
    OP_ARGUMENTS,
    OP_ID,
    OP_LAMBDAS,
    OP_RESULT,
    OPERATIONS,
    SIGNATURE_KINDS,
    SLOTS,
    Program,
    Value,
    as_int32,
)
from azjax.types import Array

__all__ = ["execute", "trace"]

Items = list[Array]  # MAX_LENGTH arrays [...]

# Sorting network for 5 (Knuth, The Art of Computer Programming 3, section 5.3.4): 9 comparators.
_NETWORK = ((0, 1), (3, 4), (2, 4), (2, 3), (1, 4), (0, 3), (0, 2), (1, 3), (1, 2))

# A unary lambda is floor((square x^2 + factor x + shift) / divisor), and for |y| <= LARGEST
# floor(y / d) = floor((2y + 1) / 2d), where an error of rounding in 1 / 2d cannot reach the next integer.
_SHIFT_BITS = 16
_UNARY = {
    "+1": (0, 1, 1, 1),
    "-1": (0, 1, -1, 1),
    "*2": (0, 2, 0, 1),
    "/2": (0, 1, 0, 2),
    "*(-1)": (0, -1, 0, 1),
    "**2": (1, 0, 0, 1),
    "*3": (0, 3, 0, 1),
    "/3": (0, 1, 0, 3),
    "*4": (0, 4, 0, 1),
    "/4": (0, 1, 0, 4),
}


def _coefficients() -> np.ndarray:
    table = np.zeros((len(LAMBDA_KIND), 4), np.int32)
    table[:, 3] = (1 << _SHIFT_BITS) // 2
    for name, (square, factor, shift, divisor) in _UNARY.items():
        table[LAMBDA_ID[name]] = (square, factor, shift, round((1 << _SHIFT_BITS) / (2 * divisor)))
    return table


_COEFFICIENTS = _coefficients()


class _Variable(NamedTuple):
    kind: Array  # [...]
    length: Array
    items: Items


class _Packed(NamedTuple):
    """A variable as two words.

    XLA computes each array that a line leaves behind in a kernel of its own, all of the line once more: with an array
    for each item, the kind and the length, the interpreter ran at an eighth of its speed.
    """

    low: Array  # the first four items, a byte each
    high: Array  # the last item, length, kind


_LENGTH_BIT, _KIND_BIT = 8, 12


class _Line(NamedTuple):
    """A line and what follows from it alone, whatever the inputs."""

    operation: Array
    function: Array
    first: Array
    second: Array
    active: Array
    sound: Array  # operation and lambda exist and belong together
    takes_number: Array
    result: Array
    coefficients: Items


def execute(program: Program, inputs: Value, counter: Array | int = 0) -> tuple[Value, Array]:
    """Runs programs on inputs.

    Args:
      program: `[...]`.
      inputs: `[..., MAX_INPUTS]`; the leading axes broadcast with the program's.
      counter: `[...]`, which run this is. Only the banned operation `Random` reads it.

    Returns:
      The outputs `[...]`, and whether each execution was valid, bool `[...]`; the output of an invalid one is nothing.

    Examples:
      >>> from azjax.reasoning.text import parse_program
      >>> from azjax.reasoning.language import value
      >>> program = parse_program("x0 = INPUT list | x2 = Map (*2) x0 | x3 = Sum x2")
      >>> inputs = jax.tree.map(lambda *x: jnp.stack(x), value([1, 2, 3]), value(None))
      >>> output, valid = execute(program, inputs)
      >>> int(output.items[0]), bool(valid)
      (12, True)
    """
    variables, valid = _run(program, inputs, counter)
    output = _last(program, variables)
    return _stacked(jax.tree.map(lambda x: jnp.where(valid, x, 0), output)), valid


def trace(program: Program, inputs: Value, counter: Array | int = 0) -> tuple[Value, Array]:
    """Runs programs and keeps every variable.

    Args:
      program: `[...]`.
      inputs: `[..., MAX_INPUTS]`.
      counter: `[...]`.

    Returns:
      The variables `[..., SLOTS]`, inputs first, then the results of the lines (nothing where there is no line or where
      a line failed), and whether the execution was valid, bool `[...]`.
    """
    variables, valid = _run(program, inputs, counter)
    stacked = _stacked(variables)
    return Value(*(jnp.moveaxis(x, 0, valid.ndim) for x in stacked)), valid


def _run(program: Program, inputs: Value, counter: Array | int) -> tuple[_Packed, Array]:
    """Every variable, along a leading axis, and whether the execution was valid."""
    program, inputs = as_int32(program), as_int32(inputs)
    shape = jnp.broadcast_shapes(program.signature.shape, inputs.kind.shape[:-1], jnp.shape(counter))
    wanted = jnp.take(jnp.asarray(SIGNATURE_KINDS), program.signature, axis=0, mode="clip")
    valid = jnp.broadcast_to((program.signature >= 0) & (program.signature < len(SIGNATURE_KINDS)), shape)
    variables = _Packed(*(jnp.zeros((SLOTS, *shape), jnp.int32) for _ in _Packed._fields))
    for n in range(MAX_INPUTS):
        kind, length, items = inputs.kind[..., n], inputs.length[..., n], inputs.items[..., n, :]
        variable = _Variable(kind, length, [items[..., i] for i in range(MAX_LENGTH)])
        good = (variable.kind == wanted[..., n]) & _in_bounds(variable)
        valid &= good
        variables = _store(variables, n, _pack(variable, good))

    lines = _decode(jnp.moveaxis(program.lines, -2, 0))

    # Nothing but the variables is carried: each array that a step leaves behind is compiled, and computed, as a line of
    # its own.
    def step(n: Array, variables: _Packed) -> _Packed:
        line = jax.tree.map(lambda x: x[n], lines)
        return _store(variables, MAX_INPUTS + n, _pack(*_apply(line, variables, counter)))

    variables = jax.lax.fori_loop(0, MAX_LINES, step, variables)
    for n in range(MAX_LINES):
        active = lines.active[n]
        valid &= ~active | (_kind(variables)[MAX_INPUTS + n] != NONE)
        if n:
            # A line behind a gap is refused: the gap would be in front of the program's end.
            valid &= ~active | lines.active[n - 1]
    return variables, valid


def _last(program: Program, variables: _Packed) -> _Packed:
    """The result of the last line, or the first input of a program without lines."""
    output: _Packed = jax.tree.map(lambda rows: rows[0], variables)
    for n in range(MAX_LINES):
        active = program.lines[..., n, 0] != 0
        output = jax.tree.map(lambda rows, x, a=active, n=n: jnp.where(a, rows[MAX_INPUTS + n], x), variables, output)
    return output


def _store(variables: _Packed, n: Array | int, variable: _Packed) -> _Packed:
    return jax.tree.map(lambda rows, x: rows.at[n].set(jnp.broadcast_to(x, rows.shape[1:])), variables, variable)  # type: ignore[no-any-return]


def _pack(variable: _Variable, good: Array) -> _Packed:
    """A variable as two words, nothing if it is not good."""
    *low, last = [x & 0xFF for x in variable.items]
    words = _Packed(
        sum(x << (8 * j) for j, x in enumerate(low)),  # type: ignore[arg-type]
        last | variable.length << _LENGTH_BIT | variable.kind << _KIND_BIT,
    )
    return jax.tree.map(lambda x: jnp.where(good, x, 0), words)  # type: ignore[no-any-return]


def _unpack(packed: _Packed) -> _Variable:
    words = [packed.low] * 4 + [packed.high]
    items = [(word << (24 - 8 * (j % 4))) >> 24 for j, word in enumerate(words)]  # arithmetic: keeps the sign
    return _Variable(_kind(packed), (packed.high >> _LENGTH_BIT) & 0xF, items)


def _kind(packed: _Packed) -> Array:
    return packed.high >> _KIND_BIT


def _decode(fields: Array) -> _Line:
    operation, function, first, second = (fields[..., n] for n in range(4))
    known = (operation >= 0) & (operation <= len(OPERATIONS)) & (function >= 0) & (function < len(LAMBDA_KIND))
    needs = jnp.take(jnp.asarray(OP_LAMBDAS), operation, mode="clip")
    kind = jnp.take(jnp.asarray(LAMBDA_KIND), function, mode="clip")
    table = jnp.take(jnp.asarray(_COEFFICIENTS), function, axis=0, mode="clip")
    return _Line(
        operation=operation,
        function=function,
        first=first,
        second=second,
        active=operation != 0,
        sound=known & (needs == kind),
        takes_number=jnp.take(jnp.asarray(OP_ARGUMENTS[:, 0] == INT), operation, mode="clip"),
        result=jnp.take(jnp.asarray(OP_RESULT), operation, mode="clip"),
        coefficients=[table[..., n] for n in range(4)],
    )


def _apply(line: _Line, variables: _Packed, counter: Array | int) -> tuple[_Variable, Array]:
    """The result of a line, and whether there is one."""
    is_op = {name: line.operation == number for name, number in OP_ID.items()}
    xs = _pick(variables, jnp.where(line.takes_number, line.second, line.first))
    ys = _pick(variables, line.second)
    number = _pick(variables, line.first)
    good = line.sound & (xs.kind == LIST)
    good &= ~line.takes_number | (number.kind == INT)
    good &= ~is_op["ZipWith"] | (ys.kind == LIST)

    integer, defined = _integer_result(line, is_op, xs, number.items[0], counter)
    length, items = _list_result(line, is_op, xs, ys, number.items[0])
    is_int = line.result == INT
    length = jnp.where(is_int, 1, length)
    items = [jnp.where(is_int, integer if j == 0 else 0, item) for j, item in enumerate(items)]
    items = [jnp.where(j < length, item, 0) for j, item in enumerate(items)]
    result = _Variable(line.result, length, items)
    return result, good & (~is_int | defined) & _in_bounds(result)


def _integer_result(
    line: _Line, is_op: dict[str, Array], xs: _Variable, number: Array, counter: Array | int
) -> tuple[Array, Array]:
    """What the functions with an integer result give, and whether it is defined."""
    index = jnp.where(is_op["Head"], 0, jnp.where(is_op["Last"], xs.length - 1, number))
    indexed = is_op["Head"] | is_op["Last"] | is_op["Access"]
    minimum, maximum = xs.items[0], xs.items[0]
    for j in range(1, MAX_LENGTH):
        minimum = jnp.where(j < xs.length, jnp.minimum(minimum, xs.items[j]), minimum)
        maximum = jnp.where(j < xs.length, jnp.maximum(maximum, xs.items[j]), maximum)
    count = sum((_keeps(line.function, x) & (j < xs.length)).astype(jnp.int32) for j, x in enumerate(xs.items))
    # Consecutive runs differ, whatever the rest of the program makes of it.
    random = jnp.asarray(counter, jnp.int32) % (2 * LARGEST + 1) - LARGEST
    result = sum(xs.items[1:], xs.items[0])  # Sum; items behind the last are 0
    for name, candidate in (
        ("Minimum", minimum),
        ("Maximum", maximum),
        ("Count", count),
        ("Random", random),
        ("Overflow", jnp.int32(LARGEST + 1)),
    ):
        result = jnp.where(is_op[name], candidate, result)
    result = jnp.where(indexed, _at(xs.items, index), result)
    needs_items = is_op["Minimum"] | is_op["Maximum"]
    defined = (~indexed | (index >= 0) & (index < xs.length)) & (~needs_items | (xs.length > 0))
    return result, defined


def _list_result(
    line: _Line, is_op: dict[str, Array], xs: _Variable, ys: _Variable, number: Array
) -> tuple[Array, Items]:
    """Length and items of what the functions with a list as result give; items behind the last are arbitrary."""
    # Python's slices: xs[:n] and xs[n:], where a negative n counts from the end.
    cut = jnp.clip(jnp.where(number < 0, number + xs.length, number), 0, xs.length)
    kept, filtered = _filtered(line.function, xs)
    binary = [_combine(line.function, x, y) for x, y in zip(xs.items, ys.items, strict=True)]
    length = xs.length
    for name, candidate in (
        ("Take", cut),
        ("Drop", xs.length - cut),
        ("Filter", kept),
        ("ZipWith", jnp.minimum(xs.length, ys.length)),
    ):
        length = jnp.where(is_op[name], candidate, length)
    items = _mapped(line.coefficients, xs.items)
    for name, candidates in (
        ("Take", xs.items),
        ("Drop", [_at(xs.items[j:], cut) for j in range(MAX_LENGTH)]),
        ("Reverse", [_at(xs.items[: MAX_LENGTH - j], xs.length - 1 - j) for j in range(MAX_LENGTH)]),
        ("Sort", _sorted(xs)),
        ("Filter", filtered),
        ("ZipWith", binary),
        ("Scanl1", _scanned(line.function, xs.items)),
    ):
        items = [jnp.where(is_op[name], c, item) for c, item in zip(candidates, items, strict=True)]
    return length, items


def _mapped(coefficients: Items, items: Items) -> Items:
    square, factor, shift, reciprocal = coefficients
    mapped = []
    for x in items:
        y = (square * x + factor) * x + shift
        mapped.append(((2 * y + 1) * reciprocal) >> _SHIFT_BITS)
    return mapped


def _keeps(function: Array, x: Array) -> Array:
    """The predicates."""
    odd = (x & 1) == 1
    result = jnp.where(function == LAMBDA_ID["odd"], odd, ~odd)
    result = jnp.where(function == LAMBDA_ID[">0"], x > 0, result)
    return jnp.where(function == LAMBDA_ID["<0"], x < 0, result)


def _combine(function: Array, x: Array, y: Array) -> Array:
    """The binary lambdas."""
    result = x + y
    for name, candidate in (("-", x - y), ("*", x * y), ("min", jnp.minimum(x, y)), ("max", jnp.maximum(x, y))):
        result = jnp.where(function == LAMBDA_ID[name], candidate, result)
    return result


def _scanned(function: Array, items: Items) -> Items:
    scanned = [items[0]]
    for x in items[1:]:
        scanned.append(_combine(function, scanned[-1], x))
    return scanned


def _filtered(function: Array, xs: _Variable) -> tuple[Array, Items]:
    """Number and items of what a predicate keeps, in order."""
    count = jnp.zeros_like(xs.length)
    out = [jnp.zeros_like(x) for x in xs.items]
    for i, x in enumerate(xs.items):
        keeps = _keeps(function, x) & (i < xs.length)
        out = [jnp.where(keeps & (count == j), x, o) if j <= i else o for j, o in enumerate(out)]
        count = count + keeps
    return count, out


def _sorted(xs: _Variable) -> Items:
    items = [jnp.where(j < xs.length, x, LARGEST + 1) for j, x in enumerate(xs.items)]
    for a, b in _NETWORK:
        items[a], items[b] = jnp.minimum(items[a], items[b]), jnp.maximum(items[a], items[b])
    return items


def _at(items: Items, index: Array) -> Array:
    """`items[index]`, or the first where there is none."""
    result = items[0]
    for j, x in enumerate(items[1:], 1):
        result = jnp.where(index == j, x, result)
    return result


def _pick(variables: _Packed, index: Array) -> _Variable:
    """The variable with that number, nothing where there is none."""
    chosen = _Packed(*(jnp.zeros((), jnp.int32) for _ in _Packed._fields))
    for n in range(SLOTS):
        chosen = jax.tree.map(lambda rows, x, n=n: jnp.where(index == n, rows[n], x), variables, chosen)
    return _unpack(chosen)


def _in_bounds(variable: _Variable) -> Array:
    """Length and items are what the language has, and items behind the last are 0."""
    length = jnp.where(variable.kind == NONE, 0, MAX_LENGTH)
    good = (variable.length >= 0) & (variable.length <= length) & ((variable.kind != INT) | (variable.length == 1))
    for j, x in enumerate(variable.items):
        good &= jnp.where(j < variable.length, jnp.abs(x) <= LARGEST, x == 0)
    return good


def _stacked(packed: _Packed) -> Value:
    variable = _unpack(packed)
    return Value(variable.kind, variable.length, jnp.stack(variable.items, axis=-1))
