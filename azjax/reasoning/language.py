"""The list-processing language: types, functions, lambdas, and how programs and values are laid out as arrays.

A subset of DeepCoder's language. A program has one or two inputs and 1 to 4 lines; each line applies one function to
earlier variables and names the result, once (static single assignment). Integers lie in [-50, 50] and lists hold at
most 5 of them; a program that leaves these bounds anywhere has no output. `docs/reasoning.md` has the tables.

Inputs are `x0` and `x1`, the results of lines `x2` to `x5`, whatever the number of inputs. The output is the result of
the last line. Zeros everywhere are the program of 0 lines on one list, whose output is its input: the reserved
reference from which the buffers start.

References:
  Balog, Gaunt, Brockschmidt, Nowozin, Tarlow, "DeepCoder: Learning to Write Programs", ICLR 2017, arXiv 1611.01989,
  appendix F. Shi et al., "ExeDec", ICLR 2024, arXiv 2307.13883, section 5.1, for the larger form of this subset.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from azjax.types import Array

__all__ = [
    "INT",
    "LAMBDAS",
    "LARGEST",
    "LIST",
    "MAX_INPUTS",
    "MAX_LENGTH",
    "MAX_LINES",
    "NONE",
    "OPERATIONS",
    "SIGNATURES",
    "SLOTS",
    "Lambda",
    "Operation",
    "Program",
    "Value",
    "empty_values",
    "equal",
    "is_value",
    "value",
    "zero_program",
]

LARGEST = 50
"""Integers lie in [-LARGEST, LARGEST]."""
MAX_LENGTH = 5
MAX_LINES = 4
MAX_INPUTS = 2
SLOTS = MAX_INPUTS + MAX_LINES
"""Number of variables: `x0` and `x1` are inputs, the others lines."""

T = TypeVar("T")

NONE, INT, LIST = 0, 1, 2
"""Kinds of a variable: it does not exist, an integer, a list of integers."""
KIND_NAMES = ("none", "int", "list")

UNARY, PREDICATE, BINARY = 1, 2, 3
"""Kinds of lambda; 0 stands for none."""


class Operation(NamedTuple):
    """A function of the language."""

    name: str
    arguments: tuple[int, ...]  # kinds of its variables, in order
    result: int  # kind
    lambdas: int = 0  # kind of the lambda in front of the variables; 0 for a first-order function
    banned: bool = False  # a positive control of verification: well-typed, yet no program may hold it


class Lambda(NamedTuple):
    """A constant function that a higher-order function takes."""

    name: str
    kind: int


OPERATIONS: tuple[Operation, ...] = (
    Operation("Head", (LIST,), INT),
    Operation("Last", (LIST,), INT),
    Operation("Take", (INT, LIST), LIST),
    Operation("Drop", (INT, LIST), LIST),
    Operation("Access", (INT, LIST), INT),
    Operation("Minimum", (LIST,), INT),
    Operation("Maximum", (LIST,), INT),
    Operation("Reverse", (LIST,), LIST),
    Operation("Sort", (LIST,), LIST),
    Operation("Sum", (LIST,), INT),
    Operation("Map", (LIST,), LIST, UNARY),
    Operation("Filter", (LIST,), LIST, PREDICATE),
    Operation("Count", (LIST,), INT, PREDICATE),
    Operation("ZipWith", (LIST, LIST), LIST, BINARY),
    Operation("Scanl1", (LIST,), LIST, BINARY),
    Operation("Random", (LIST,), INT, banned=True),
    Operation("Overflow", (LIST,), INT, banned=True),
)
"""A line holds a function's index here plus 1; 0 is no line."""

LAMBDAS: tuple[Lambda, ...] = (
    *(Lambda(n, UNARY) for n in ("+1", "-1", "*2", "/2", "*(-1)", "**2", "*3", "/3", "*4", "/4")),
    *(Lambda(n, PREDICATE) for n in (">0", "<0", "even", "odd")),
    *(Lambda(n, BINARY) for n in ("+", "-", "*", "min", "max")),
)
"""A line holds a lambda's index here plus 1; 0 is none."""

SIGNATURES: tuple[tuple[int, ...], ...] = ((LIST,), (LIST, LIST), (LIST, INT))
"""Kinds of the inputs. Without a list no function applies, and the order of a list and an integer makes no program."""

OP_ID = {operation.name: n for n, operation in enumerate(OPERATIONS, 1)}
LAMBDA_ID = {function.name: n for n, function in enumerate(LAMBDAS, 1)}
PROPOSABLE = sum(not operation.banned for operation in OPERATIONS)
"""The first so many operations may be proposed; the banned ones follow."""


def _padded(rows: list[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array([row + (NONE,) * (width - len(row)) for row in rows], np.int32)


# Tables by identifier; row 0 is what no line, no lambda is.
OP_ARGUMENTS = _padded([(), *(o.arguments for o in OPERATIONS)], 2)
OP_RESULT = np.array([NONE, *(o.result for o in OPERATIONS)], np.int32)
OP_LAMBDAS = np.array([0, *(o.lambdas for o in OPERATIONS)], np.int32)
LAMBDA_KIND = np.array([0, *(f.kind for f in LAMBDAS)], np.int32)
SIGNATURE_KINDS = _padded(list(SIGNATURES), MAX_INPUTS)


class Program(NamedTuple):
    """Programs as integers; any leading axes.

    A line is (operation, lambda, first variable, second variable). What a line has no use for is 0, so that equal
    programs are equal arrays; lines that do not exist are zeros behind those that do.
    """

    signature: Array  # [...] index into SIGNATURES
    lines: Array  # [..., MAX_LINES, 4]


class Value(NamedTuple):
    """Integers, lists, or nothing; any leading axes. Items behind the last are 0, so equal values are equal arrays."""

    kind: Array  # [...] NONE, INT or LIST
    length: Array  # [...] number of items: 1 for an integer
    items: Array  # [..., MAX_LENGTH]


def zero_program(shape: tuple[int, ...] = ()) -> Program:
    """The reserved program of 0 lines: one list, returned as it came."""
    return Program(jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, MAX_LINES, 4), jnp.int32))


def empty_values(shape: tuple[int, ...] = ()) -> Value:
    """Values that are nothing."""
    return Value(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, MAX_LENGTH), jnp.int32))


def value(content: int | list[int] | tuple[int, ...] | None) -> Value:
    """One value from Python; bounds are not checked here, :func:`is_value` does.

    Args:
      content: an integer, a list of at most ``MAX_LENGTH``, or None for nothing.

    Returns:
      A value without leading axes, of numpy arrays.

    Raises:
      ValueError: if the list is too long to be laid out.

    Examples:
      >>> value([3, -1]).items.tolist(), int(value([3, -1]).length), value(7).items.tolist()
      ([3, -1, 0, 0, 0], 2, [7, 0, 0, 0, 0])
    """
    items = [] if content is None else [content] if isinstance(content, int) else list(content)
    if len(items) > MAX_LENGTH:
        raise ValueError(f"a list holds at most {MAX_LENGTH} items, got {len(items)}")
    kind = NONE if content is None else INT if isinstance(content, int) else LIST
    padded = items + [0] * (MAX_LENGTH - len(items))
    return Value(np.int32(kind), np.int32(len(items)), np.array(padded, np.int32))  # type: ignore[arg-type]


def is_value(values: Value) -> Array:
    """Whether each is an integer or a list within bounds and laid out as promised, bool [...]."""
    position = jnp.arange(MAX_LENGTH)
    beyond = position >= values.length[..., None]
    items = jnp.where(beyond, values.items == 0, (values.items >= -LARGEST) & (values.items <= LARGEST))
    list_length = (values.kind == LIST) & (values.length >= 0) & (values.length <= MAX_LENGTH)
    return ((values.kind == INT) & (values.length == 1) | list_length) & items.all(-1)


def equal(a: Value, b: Value) -> Array:
    """Whether two values are the same, bool [...]; nothing is equal to nothing else, nor to itself."""
    same = (a.kind == b.kind) & (a.length == b.length) & (a.items == b.items).all(-1)
    return same & (a.kind != NONE)


def as_int32(tree: T) -> T:
    """Leaves as int32: buffers hold int8."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), tree)  # type: ignore[no-any-return]
