"""All programs of a length, on the host: exact test sets, and what a search baseline goes through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from azjax.config import require
from azjax.reasoning.language import (
    LAMBDA_KIND,
    MAX_INPUTS,
    MAX_LINES,
    OP_ARGUMENTS,
    OP_LAMBDAS,
    OP_RESULT,
    PROPOSABLE,
    SIGNATURE_KINDS,
    SIGNATURES,
    Program,
)

__all__ = ["enumerate_programs"]


def enumerate_programs(lines: int, signature: int = 0) -> Program:
    """Every program with so many lines and these inputs that is well-typed and has no dead code.

    Without dead code means that each input and each result but the last is used. With one list there are 35, 1,197 and
    61,939 programs of 1, 2 and 3 lines.

    Args:
      lines: 1 to ``MAX_LINES``; with 4 lines millions of programs take minutes and gigabytes.
      signature: index into ``SIGNATURES``.

    Returns:
      The programs `[N]`, of int8 numpy arrays, in a fixed order.

    Raises:
      ConfigError: if there are no such lengths or signatures.

    Examples:
      >>> enumerate_programs(1).signature.shape
      (35,)
    """
    require(1 <= lines <= MAX_LINES, f"lines is {lines}; a program has 1 to {MAX_LINES}")
    require(0 <= signature < len(SIGNATURES), f"signature is {signature}; there are {len(SIGNATURES)}, from 0")
    kinds = [int(k) for k in SIGNATURE_KINDS[signature]]
    unused = frozenset(n for n, kind in enumerate(kinds) if kind)
    rows = list(_complete([], kinds, unused, lines))
    padded = np.zeros((len(rows), MAX_LINES, 4), np.int8)
    padded[:, :lines] = np.array(rows, np.int8).reshape(-1, lines, 4)
    return Program(np.full(len(rows), signature, np.int8), padded)  # type: ignore[arg-type]


def _complete(
    prefix: list[tuple[int, ...]], kinds: list[int], unused: frozenset[int], remaining: int
) -> Iterator[list[tuple[int, ...]]]:
    if remaining == 0:
        if unused == {MAX_INPUTS + len(prefix) - 1}:
            yield prefix
        return
    if len(unused) > remaining + 1:  # a line uses two variables and makes one
        return
    for line in _lines(kinds):
        arity = int((OP_ARGUMENTS[line[0]] > 0).sum())
        left = unused - set(line[2 : 2 + arity]) | {len(kinds)}
        yield from _complete([*prefix, line], [*kinds, int(OP_RESULT[line[0]])], left, remaining - 1)


def _lines(kinds: list[int]) -> Iterator[tuple[int, ...]]:
    """Every line that is well-typed over these variables."""
    of_kind = {kind: [n for n, k in enumerate(kinds) if k == kind] for kind in (1, 2)}
    for op in range(1, PROPOSABLE + 1):
        first, second = (int(k) for k in OP_ARGUMENTS[op])
        for function in np.flatnonzero(OP_LAMBDAS[op] == LAMBDA_KIND).tolist():
            for a in of_kind[first]:
                for b in of_kind[second] if second else [0]:
                    yield op, function, a, b
