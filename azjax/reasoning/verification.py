"""The gates that a proposal passes before it is learned from.

Three verdicts, after the three steps of the Absolute Zero Reasoner (Zhao et al., 2025, arXiv 2505.03335, section
3.3.3), each of which must be positively shown; what cannot be shown is refused:

* *integrity*: the program is well-formed, the input is one of its signature, and the program yields an output;
* *safety*: no banned operation, and every intermediate result is within bounds;
* *determinism*: two runs agree in every variable. They are two lanes of one execution with different run counters, so
  neither compiler nor cache can make one of them out of the other.

Two operations exist for this module's sake. `Random` reads the run counter and is what determinism must catch;
`Overflow` returns an integer beyond the bounds and is what safety must catch. Both are well-typed.

*Novelty* is apart, for it compares programs with what they are good for: outputs on fixed probes make a semantic hash,
by which programs with the same meaning are known; constants, identities and programs that fail on most probes are
refused.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.reasoning.hashing import hash_rows
from azjax.reasoning.interpreter import execute, trace
from azjax.reasoning.language import (
    LARGEST,
    LIST,
    MAX_INPUTS,
    MAX_LENGTH,
    NONE,
    SIGNATURES,
    Program,
    Value,
    as_int32,
    equal,
)
from azjax.reasoning.text import stack_values
from azjax.reasoning.wellformed import examine
from azjax.types import Array

__all__ = ["PROBES", "Meaning", "Verdict", "probe", "verify"]

PROBES: Final = 32
"""Number of fixed inputs of each signature by which meanings are told apart."""


class Verdict(NamedTuple):
    """What verification found about proposals `[...]`."""

    accepted: Array  # bool [...] all three below
    integrity: Array  # bool [...]
    safety: Array  # bool [...]
    determinism: Array  # bool [...]
    output: Value  # [...] nothing where not accepted


class Meaning(NamedTuple):
    """What programs `[...]` do on the probes of their signature."""

    hash: Array  # uint32 [..., 2] of the outputs; equal for programs with equal meaning
    valid: Array  # int32 [...] number of probes with an output
    constant: Array  # bool [...] all outputs are the same (or there is none)
    identity: Array  # bool [...] all outputs are one of the inputs (or there is none)
    informative: Array  # bool [...] enough valid probes, neither constant nor identity


def verify(program: Program, inputs: Value, counter: Array | int) -> Verdict:
    """Passes proposals through the three gates.

    Args:
      program: `[...]`, any integers.
      inputs: `[..., MAX_INPUTS]`, any integers; leading axes as those of the program.
      counter: [], a number that grows from call to call. It must be an argument of the compiled program, not a constant
        in it.

    Returns:
      Verdicts `[...]`.

    Examples:
      >>> from azjax.reasoning.text import parse_program
      >>> inputs = stack_values([[3, 1, 2], None])
      >>> verdict = jax.jit(verify)(parse_program("x0 = INPUT list | x2 = Sort x0"), inputs, 0)
      >>> bool(verdict.accepted), verdict.output.items.tolist()
      (True, [1, 2, 3, 0, 0])
      >>> bool(jax.jit(verify)(parse_program("x0 = INPUT list | x2 = Random x0"), inputs, 0).determinism)
      False
    """
    program, inputs = as_int32(program), as_int32(inputs)
    form = examine(program)
    counters = jnp.asarray(counter, jnp.int32) + jnp.arange(2)
    variables, valid = jax.vmap(lambda run: trace(program, inputs, run))(counters)
    first, second = (jax.tree.map(lambda x, n=n: x[n], variables) for n in range(2))
    same = equal(first, second) | (first.kind == NONE) & (second.kind == NONE)
    output = jax.tree.map(lambda x: _taken(x, MAX_INPUTS - 1 + form.length, first.kind.ndim - 1), first)
    integrity = form.well_formed & (output.kind != NONE)
    safety = valid[0] & valid[1] & ~form.banned
    # An execution that broke off agrees with nothing: what was not observed twice is not deterministic.
    determinism = same.all(-1) & valid[0] & valid[1]
    accepted = integrity & safety & determinism
    return Verdict(accepted, integrity, safety, determinism, _kept(accepted, output))


def probe(program: Program, *, min_valid: int = PROBES // 2) -> Meaning:
    """Runs programs on the fixed probes of their signature.

    Args:
      program: `[...]`.
      min_valid: how many probes must have an output for the program to be informative; static.

    Returns:
      Meanings `[...]`. The hash has 64 bits; that an execution failed counts as an output like any other.
    """
    program = as_int32(program)
    probes = jax.tree.map(lambda x: jnp.take(jnp.asarray(x), program.signature, axis=0, mode="clip"), _PROBES)
    output, valid = execute(
        jax.tree.map(lambda x, axes=program.signature.ndim: jnp.expand_dims(x, axes), program), probes
    )
    number = valid.sum(-1)
    first = jax.tree.map(lambda x: _taken(x, jnp.argmax(valid, axis=-1), valid.ndim - 1), output)
    like_first = equal(output, jax.tree.map(lambda x: jnp.expand_dims(x, valid.ndim - 1), first))
    constant = (like_first | ~valid).all(-1)
    like_input = equal(jax.tree.map(lambda x: jnp.expand_dims(x, valid.ndim), output), probes)
    identity = (like_input | ~valid[..., None]).all(-2).any(-1)
    informative = (number >= min_valid) & ~constant & ~identity
    return Meaning(_hash(program.signature, output), number, constant, identity, informative)


def _hash(signature: Array, output: Value) -> Array:
    items = output.items.reshape(*output.kind.shape[:-1], -1)
    return hash_rows(jnp.concatenate([signature[..., None], output.kind, output.length, items], axis=-1))


def _taken(x: Array, index: Array, axis: int) -> Array:
    """`x[..., index, ...]` with an index for each element of the axes before."""
    index = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
    return jnp.squeeze(jnp.take_along_axis(x, index, axis=axis), axis)


def _kept(accepted: Array, output: Value) -> Value:
    return Value(
        jnp.where(accepted, output.kind, 0),
        jnp.where(accepted, output.length, 0),
        jnp.where(accepted[..., None], output.items, 0),
    )


def _probes() -> Value:
    """Fixed inputs, `[signatures, PROBES, MAX_INPUTS]`.

    Half of the lists have items up to 12 in magnitude, for which `Map (*4)` stays within bounds, a quarter up to 5, a
    quarter any; lengths 2 to 5 are equally frequent, beside one empty list and one of a single item.
    """
    generator = np.random.default_rng(0)
    magnitudes = (5, 12, 12, LARGEST)

    def draw(kind: int, n: int, magnitude: int) -> list[int] | int | None:
        if kind == NONE:
            return None
        if kind == LIST:
            length = n if n < 2 else 2 + n % (MAX_LENGTH - 1)
            return [int(x) for x in generator.integers(-magnitude, magnitude + 1, length)]
        return int(generator.integers(-1, MAX_LENGTH)) if n % 4 else int(generator.integers(-magnitude, magnitude + 1))

    rows = []
    for signature in SIGNATURES:
        kinds = (*signature, NONE)[:2]
        # Lengths go through 4 values and magnitudes through 4: the offset lets every pair occur.
        rows.append(
            [stack_values([draw(kind, n, magnitudes[(n + n // 4) % 4]) for kind in kinds]) for n in range(PROBES)]
        )
    stacked = [jax.tree.map(lambda *x: np.stack(x), *row) for row in rows]
    return jax.tree.map(lambda *x: np.stack(x), *stacked)  # type: ignore[no-any-return]


_PROBES = _probes()
