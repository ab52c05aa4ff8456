"""What a search finds without a model: programs that fit the pairs that are shown, inputs that lead to an output."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from azjax.config import require
from azjax.reasoning.buffers import Triplet
from azjax.reasoning.inputs import random_inputs
from azjax.reasoning.interpreter import execute
from azjax.reasoning.language import Program, as_int32, equal
from azjax.types import Array, Key

__all__ = ["Candidates", "search_inputs", "search_programs", "solved_after"]


class Candidates(NamedTuple):
    """What a search would find of `P` candidates for each of `N` questions, in the order in which it tries them."""

    fits: np.ndarray  # bool [N, P] which it takes for an answer
    right: np.ndarray  # bool [N, P] which are one


def search_programs(items: Triplet, programs: Program, *, shown: int, chunk: int = 256) -> Candidates:
    """Tries programs on questions of induction: it stops at one that gives the outputs of the shown examples.

    That is right if it gives the hidden ones as well.

    Args:
      items: questions `[N]`.
      programs: `[P]`.
      shown: examples that are shown, static; a candidate costs so many executions.
      chunk: programs that are run at a time, static: memory grows with it.

    Raises:
      ConfigError: if there is no example that is shown, or none that is hidden.
    """
    examples = items.outputs.kind.shape[1]
    require(0 < shown < examples, f"shown is {shown} of {examples} examples; at least one is, and one is not")
    number = len(programs.signature)
    parts = -(-number // chunk)
    padded = jax.tree.map(lambda x: np.resize(x, (parts, chunk, *x.shape[1:])), programs)

    def one(program: Program) -> tuple[Array, Array]:
        given, valid = execute(_program_axes(program), jax.tree.map(lambda x: x[:, None], as_int32(items.inputs)))
        same = valid & equal(given, jax.tree.map(lambda x: x[:, None], as_int32(items.outputs)))
        return same[..., :shown].all(-1), same[..., shown:].all(-1)

    fits, right = jax.jit(lambda several: jax.lax.map(one, several))(as_int32(padded))
    fits, right = (np.moveaxis(np.asarray(x), 0, 1).reshape(x.shape[1], -1)[:, :number] for x in (fits, right))
    return Candidates(fits, right)


def search_inputs(key: Key, items: Triplet, *, number: int) -> Candidates:
    """Tries random inputs on questions of abduction: it stops at one that gives the output, which is then right.

    Args:
      key: consumed.
      items: questions `[N]`; the first example of each counts.
      number: inputs for each of them, static; a candidate costs an execution.
    """

    def found(key: Key) -> Array:
        program = as_int32(items.program)
        output, valid = execute(
            jax.tree.map(lambda x: x[:, None], program), random_inputs(key, program.signature, number)
        )
        return valid & equal(output, jax.tree.map(lambda x: x[:, :1], as_int32(items.outputs)))

    hits = np.asarray(jax.jit(found)(key))
    return Candidates(hits, hits)


def solved_after(candidates: Candidates, tries: int) -> np.ndarray:
    """Which questions `[N]` are solved: of the first so many candidates the first that fits is right."""
    fits, right = (x[:, :tries] for x in candidates)
    first = fits.argmax(axis=1)  # 0 where none fits
    rows = np.arange(len(fits))
    return fits[rows, first] & right[rows, first]


def _program_axes(program: Program) -> Program:
    """Programs `[C]` beside questions and examples: `[1, C, 1]`."""
    return jax.tree.map(lambda x: x[None, :, None], program)  # type: ignore[no-any-return]
