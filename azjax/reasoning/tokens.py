"""The vocabulary, and programs and values as tokens of fixed number.

A program is its signature, its lines without the variables that they define, and `end`; a list is its items in
brackets. Shorter ones are filled up with `PAD`, which is 0.
"""

from __future__ import annotations

from typing import Final

import jax.numpy as jnp
import numpy as np

from azjax.reasoning.language import (
    KIND_NAMES,
    LAMBDAS,
    LARGEST,
    LIST,
    MAX_INPUTS,
    MAX_LENGTH,
    MAX_LINES,
    NONE,
    OP_ARGUMENTS,
    OP_LAMBDAS,
    OPERATIONS,
    SIGNATURES,
    SLOTS,
    Program,
    Value,
)
from azjax.types import Array

__all__ = ["VOCABULARY", "detokenize", "longest_program", "pack_segments", "program_tokens", "value_tokens"]

_SPECIAL = (
    "pad", "propose", "solve", "deduction", "abduction", "induction", "reference", "program", "input", "output",
    "answer", "end", "[", "]",
)  # fmt: skip
(
    PAD, PROPOSE, SOLVE, DEDUCTION, ABDUCTION, INDUCTION, REFERENCE, PROGRAM, INPUT, OUTPUT, ANSWER, END, OPEN, CLOSE,
) = range(len(_SPECIAL))  # fmt: skip

VOCABULARY: tuple[str, ...] = (
    *_SPECIAL,
    *(f"<{','.join(KIND_NAMES[k] for k in signature)}>" for signature in SIGNATURES),
    *(operation.name for operation in OPERATIONS),
    *(f"({function.name})" for function in LAMBDAS),
    *(f"x{n}" for n in range(SLOTS)),
    *(str(n) for n in range(-LARGEST, LARGEST + 1)),
)
"""What each token stands for; in the order of the blocks below."""

FIRST_SIGNATURE: Final = len(_SPECIAL)
FIRST_OPERATION: Final = FIRST_SIGNATURE + len(SIGNATURES)
FIRST_LAMBDA: Final = FIRST_OPERATION + len(OPERATIONS)
FIRST_VARIABLE: Final = FIRST_LAMBDA + len(LAMBDAS)
FIRST_INTEGER: Final = FIRST_VARIABLE + SLOTS
ZERO: Final = FIRST_INTEGER + LARGEST
"""The token of the integer 0; that of n is ZERO + n."""

LINE_TOKENS: Final = 4


def longest_program(lines: int) -> int:
    """Tokens of the longest program of so many lines: signature, lines, `end`."""
    return 1 + lines * LINE_TOKENS + 1


PROGRAM_TOKENS: Final = longest_program(MAX_LINES)
VALUE_TOKENS: Final = MAX_LENGTH + 2
INPUT_TOKENS: Final = MAX_INPUTS * VALUE_TOKENS


def program_tokens(program: Program) -> Array:
    """Programs as tokens, int32 `[..., PROGRAM_TOKENS]`, `PAD` at the end.

    Args:
      program: `[...]`.
    """
    lines = program.lines.astype(jnp.int32)
    op, function, first, second = (lines[..., n] for n in range(4))
    arity = jnp.take(jnp.asarray((OP_ARGUMENTS != NONE).sum(1)), op, mode="clip")
    fields = [
        jnp.where(op > 0, FIRST_OPERATION + op - 1, PAD),
        jnp.where(jnp.take(jnp.asarray(OP_LAMBDAS > 0), op, mode="clip"), FIRST_LAMBDA + function - 1, PAD),
        jnp.where(arity > 0, FIRST_VARIABLE + first, PAD),
        jnp.where(arity > 1, FIRST_VARIABLE + second, PAD),
    ]
    body = jnp.stack(fields, axis=-1).reshape(*op.shape[:-1], MAX_LINES * LINE_TOKENS)
    signature = FIRST_SIGNATURE + program.signature.astype(jnp.int32)[..., None]
    return pack_segments([signature, body, jnp.full_like(signature, END)], PROGRAM_TOKENS)


def value_tokens(values: Value) -> Array:
    """Values as tokens, int32 `[..., VALUE_TOKENS]`, `PAD` at the end; nothing has no tokens.

    Args:
      values: `[...]`.
    """
    kind = values.kind[..., None]
    present = jnp.arange(MAX_LENGTH) < values.length[..., None]
    items = jnp.where(present, ZERO + values.items.astype(jnp.int32), PAD)
    opened = jnp.where(kind == LIST, OPEN, PAD)
    return pack_segments([opened, items, jnp.where(kind == LIST, CLOSE, PAD)], VALUE_TOKENS)


def pack_segments(segments: list[Array], width: int, *, right: bool = False) -> Array:
    """Joins segments of tokens and moves `PAD` to one end.

    Args:
      segments: each int32 `[..., length]`.
      width: of the result; static. Tokens beyond it are lost, so it should be the largest possible number.
      right: put the tokens at the right end, so that what follows them has a fixed position.

    Returns:
      int32 `[..., width]`.

    Examples:
      >>> pack_segments([jnp.array([5, 0]), jnp.array([0, 7])], 3).tolist()
      [5, 7, 0]
      >>> pack_segments([jnp.array([5, 0]), jnp.array([0, 7])], 3, right=True).tolist()
      [0, 5, 7]
    """
    shape = jnp.broadcast_shapes(*(s.shape[:-1] for s in segments))
    joined = jnp.concatenate([jnp.broadcast_to(s, (*shape, s.shape[-1])) for s in segments], axis=-1)
    present = joined != PAD
    position = jnp.cumsum(present, axis=-1) - 1
    if right:
        position = position + width - present.sum(-1, keepdims=True)
    # A token belongs to one place: a sum over a one-hot matrix is a scatter that runs well everywhere.
    place = (position[..., None] == jnp.arange(width)) & present[..., None]
    return jnp.sum(jnp.where(place, joined[..., None], 0), axis=-2)


def detokenize(tokens: Array) -> str:
    """One sequence of tokens as words, `PAD` left out.

    Args:
      tokens: `[length]`, concrete.
    """
    return " ".join(VOCABULARY[token] for token in np.asarray(tokens).tolist() if token != PAD)
