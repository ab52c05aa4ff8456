"""Programs and values as text, and back.

.. code-block:: text

    x0 = INPUT list
    x2 = Map (*2) x0
    x3 = Sum x2

Lines are divided by a line break or `|`. Parsing takes exactly what printing writes, up to spaces; it evaluates
nothing: no text becomes anything but integers within bounds.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import jax
import numpy as np

from azjax.config import ConfigError, nearest
from azjax.reasoning.language import (
    INT,
    KIND_NAMES,
    LAMBDAS,
    LARGEST,
    LIST,
    MAX_INPUTS,
    MAX_LENGTH,
    MAX_LINES,
    NONE,
    OP_ID,
    OPERATIONS,
    SIGNATURES,
    Program,
    Value,
    value,
)

__all__ = ["format_program", "format_value", "parse_program", "parse_value"]

LONGEST = 1000
"""Characters of a text that is parsed: far more than any program has."""
Word = tuple[str, int, int]  # text, line and column, both counted from 1


def format_program(program: Program, separator: str = "\n") -> str:
    """One program as text.

    Args:
      program: without leading axes; concrete.
      separator: what stands between lines; `" | "` gives a single line.

    Returns:
      The text, which :func:`parse_program` takes back to the same program.

    Raises:
      IndexError: if an identifier does not exist.
    """
    signature = SIGNATURES[int(program.signature)]
    rows = [f"x{n} = INPUT {KIND_NAMES[kind]}" for n, kind in enumerate(signature)]
    for n, (op, function, *arguments) in enumerate(np.asarray(program.lines).tolist()):
        if op:
            operation = OPERATIONS[op - 1]
            words = [operation.name] + ([f"({LAMBDAS[function - 1].name})"] if operation.lambdas else [])
            words += [f"x{a}" for a in arguments[: len(operation.arguments)]]
            rows.append(f"x{MAX_INPUTS + n} = {' '.join(words)}")
    return separator.join(rows)


def format_value(values: Value) -> str:
    """One value as text: `7`, `[1 -2 3]`, or `nothing`."""
    kind, length = int(values.kind), int(values.length)
    items = np.asarray(values.items).tolist()
    return {NONE: "nothing", INT: str(items[0])}.get(kind, f"[{' '.join(map(str, items[:length]))}]")


def parse_program(text: str) -> Program:
    """One program from text.

    Names, types and order of definition are checked; dead code and banned operations are verification's business.

    Args:
      text: as :func:`format_program` writes it.

    Returns:
      The program, of numpy arrays.

    Raises:
      ConfigError: with line and column of what is wrong, and what was expected.

    Examples:
      >>> format_program(parse_program("x0 = INPUT list | x2 = Filter (even) x0"), " | ")
      'x0 = INPUT list | x2 = Filter (even) x0'
    """
    _limit(text)
    rows = [
        [(m.group(), n, m.start() + 1) for m in re.finditer(r"\S+", row)]
        for n, row in enumerate(re.split(r"[\n|]", text), 1)
    ]
    rows = [row for row in rows if row]
    declared = [row for row in rows if len(row) > 2 and row[2][0] == "INPUT"]
    kinds = [_declaration(n, row) for n, row in enumerate(declared)]
    if tuple(kinds) not in SIGNATURES:
        shown = ", ".join(" and ".join(KIND_NAMES[k] for k in s) for s in SIGNATURES)
        raise ConfigError(f"a program begins with its inputs, such as x0 = INPUT list; they may be: {shown}")
    if rows[: len(declared)] != declared:
        _wrong(declared[-1][0], "inputs come before the lines")
    body = rows[len(declared) :]
    if len(body) > MAX_LINES:
        _wrong(body[MAX_LINES][0], f"a program has at most {MAX_LINES} lines")
    variables = {f"x{n}": (n, kind) for n, kind in enumerate(kinds)}
    lines = np.zeros((MAX_LINES, 4), np.int32)
    for n, row in enumerate(body):
        lines[n], kind = _line(row, f"x{MAX_INPUTS + n}", variables)
        variables[f"x{MAX_INPUTS + n}"] = (MAX_INPUTS + n, kind)
    return Program(np.int32(SIGNATURES.index(tuple(kinds))), lines)  # type: ignore[arg-type]


def parse_value(text: str) -> Value:
    """One value from text: an integer, or a list in brackets with spaces or commas between its items.

    Args:
      text: such as `7`, `[1 -2 3]`, `[1, -2, 3]` or `[]`.

    Returns:
      The value, of numpy arrays.

    Raises:
      ConfigError: if it is anything else, too long, or out of bounds.

    Examples:
      >>> format_value(parse_value("[1, -2,3]")), format_value(parse_value(" 7"))
      ('[1 -2 3]', '7')
    """
    _limit(text)
    integer = r"-?[0-9]{1,9}"
    inner = rf"(?:{integer}(?:(?:\s*,\s*|\s+){integer})*)?"
    if not re.fullmatch(rf"\s*(?:{integer}|\[\s*{inner}\s*\])\s*", text):
        raise ConfigError(f"{text!r} is no value; write an integer such as 7 or a list such as [1 -2 3]")
    items = [int(word) for word in re.findall(integer, text)]
    if len(items) > MAX_LENGTH:
        raise ConfigError(f"{text!r} has {len(items)} items; a list holds at most {MAX_LENGTH}")
    for item in items:
        if abs(item) > LARGEST:
            raise ConfigError(f"{item} in {text!r} is out of bounds; integers lie between {-LARGEST} and {LARGEST}")
    return value(items if "[" in text else items[0])


def _limit(text: str) -> None:
    if len(text) > LONGEST:
        raise ConfigError(f"a text of {len(text)} characters is too long; the limit is {LONGEST}")


def _wrong(word: Word, message: str) -> NoReturn:
    raise ConfigError(f"line {word[1]}, column {word[2]}: {word[0]!r}: {message}")


def _declaration(n: int, row: list[Word]) -> int:
    if [w for w, *_ in row[:2]] != [f"x{n}", "="] or len(row) != 4:
        _wrong(row[0], f"expected x{n} = INPUT list or x{n} = INPUT int")
    if row[3][0] not in KIND_NAMES[INT:]:
        _wrong(row[3], "an input is list or int")
    return KIND_NAMES.index(row[3][0])


def _line(row: list[Word], name: str, variables: dict[str, tuple[int, int]]) -> tuple[np.ndarray, int]:
    """The four fields of a line and the kind of its result."""
    if row[0][0] != name:
        _wrong(row[0], f"this line defines {name}")
    if len(row) < 3 or row[1][0] != "=":
        _wrong(row[min(1, len(row) - 1)], f"expected {name} = and a function")
    word = row[2]
    if word[0] not in OP_ID:
        _wrong(word, f"no such function{nearest(word[0], list(OP_ID))}")
    operation = OPERATIONS[OP_ID[word[0]] - 1]
    rest, function = row[3:], 0
    expected = len(operation.arguments) + bool(operation.lambdas)
    if len(rest) != expected:
        _wrong(word, f"takes {expected} argument(s), got {len(rest)}")
    if operation.lambdas:
        known = {f"({f.name})": n for n, f in enumerate(LAMBDAS, 1) if f.kind == operation.lambdas}
        if rest[0][0] not in known:
            _wrong(rest[0], f"{operation.name} takes one of {' '.join(known)}")
        function, rest = known[rest[0][0]], rest[1:]
    arguments = [_argument(w, kind, variables) for w, kind in zip(rest, operation.arguments, strict=True)]
    fields: list[Any] = [OP_ID[operation.name], function, *arguments, *[0] * (2 - len(arguments))]
    return np.array(fields, np.int32), operation.result


def _argument(word: Word, kind: int, variables: dict[str, tuple[int, int]]) -> int:
    if word[0] not in variables:
        _wrong(word, f"no such variable here; there are {', '.join(variables)}")
    slot, actual = variables[word[0]]
    if actual != kind:
        article = {INT: "an int", LIST: "a list"}
        _wrong(word, f"is {article[actual]}; {article[kind]} is needed here")
    return slot


def stack_values(contents: list[Any]) -> Value:
    """Values from Python along a new leading axis, of numpy arrays.

    Examples:
      >>> stack_values([[1, 2], None]).kind.tolist()
      [2, 0]
    """
    return jax.tree.map(lambda *x: np.stack(x), *(value(c) for c in contents))  # type: ignore[no-any-return]
