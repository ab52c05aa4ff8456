"""What can be said about a program without running it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from azjax.reasoning.language import (
    LAMBDA_KIND,
    MAX_INPUTS,
    MAX_LINES,
    NONE,
    OP_ARGUMENTS,
    OP_LAMBDAS,
    OP_RESULT,
    OPERATIONS,
    PROPOSABLE,
    SIGNATURE_KINDS,
    SLOTS,
    Program,
)
from azjax.types import Array

__all__ = ["Form", "examine", "output_kind"]


class Form(NamedTuple):
    """The static side of programs `[...]`."""

    well_formed: Array  # bool [...] see `examine`
    banned: Array  # bool [...] holds an operation that no program may hold, or one that does not exist
    kinds: Array  # int32 [..., SLOTS] of the variables, NONE where there is none
    length: Array  # int32 [...] number of lines


def examine(program: Program) -> Form:
    """Whether programs are well-formed, and what they consist of.

    Well-formed means: the signature exists; 1 to ``MAX_LINES`` lines without a gap; every function has a lambda of its
    kind and variables that are defined above, of the right kinds; fields without a use are 0; every input and every
    result but the last is used. The reserved program of 0 lines is not well-formed: it can be no proposal.

    Args:
      program: `[...]`, any integers.
    """
    signature = program.signature.astype(jnp.int32)
    lines = program.lines.astype(jnp.int32)
    good = (signature >= 0) & (signature < len(SIGNATURE_KINDS))
    inputs = jnp.take(jnp.asarray(SIGNATURE_KINDS), signature, axis=0, mode="clip")
    active = lines[..., 0] != 0
    kinds = [inputs[..., n] for n in range(MAX_INPUTS)]
    used = [kind == NONE for kind in kinds]
    for n in range(MAX_LINES):
        op, function, first, second = (lines[..., n, field] for field in range(4))
        known = (op > 0) & (op <= len(OPERATIONS)) & (function >= 0) & (function < len(LAMBDA_KIND))
        lambdas = jnp.take(jnp.asarray(OP_LAMBDAS), op, mode="clip") == jnp.take(
            jnp.asarray(LAMBDA_KIND), function, mode="clip"
        )
        wanted = jnp.take(jnp.asarray(OP_ARGUMENTS), op, axis=0, mode="clip")
        typed = known & lambdas & _is_kind(kinds, first, wanted[..., 0]) & _is_kind(kinds, second, wanted[..., 1])
        empty = (lines[..., n, :] == 0).all(-1)
        good &= jnp.where(active[..., n], typed, empty)
        if n:
            good &= ~active[..., n] | active[..., n - 1]
        for slot in range(len(kinds)):
            takes = (wanted[..., 0] != NONE) & (first == slot) | (wanted[..., 1] != NONE) & (second == slot)
            used[slot] |= active[..., n] & takes
        is_last = active[..., n] & (~active[..., n + 1] if n + 1 < MAX_LINES else True)
        kinds.append(jnp.where(active[..., n] & known, jnp.take(jnp.asarray(OP_RESULT), op, mode="clip"), NONE))
        used.append(is_last | ~active[..., n])
    good &= active[..., 0]
    for slot in range(SLOTS):
        good &= used[slot]
    banned = (lines[..., 0] < 0) | (lines[..., 0] > PROPOSABLE)
    return Form(good, banned.any(-1), jnp.stack(kinds, axis=-1), active.sum(-1))


def output_kind(program: Program) -> Array:
    """Kind of the output, int32 `[...]`: that of the last line's result, or of the input if there is no line."""
    form = examine(program)
    slot = jnp.where(form.length > 0, MAX_INPUTS - 1 + form.length, 0)
    return jnp.take_along_axis(form.kinds, slot[..., None], axis=-1)[..., 0]


def _is_kind(kinds: list[Array], index: Array, wanted: Array) -> Array:
    """Whether the variable with that index has the kind; where none is wanted, whether the field is 0."""
    found = jnp.zeros_like(index, dtype=bool)
    for slot, kind in enumerate(kinds):
        found |= (index == slot) & (kind == wanted)
    return jnp.where(wanted == NONE, index == 0, found)
