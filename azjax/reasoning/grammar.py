"""A grammar automaton: which tokens may follow, and what has been written so far.

`advance` is a pure function from a state and a token to the next state, `allowed` one from a state to a mask over the
vocabulary; both work on a single state and are meant for `vmap` and `lax.scan`. The state holds the program and the
values written so far, so whoever has decoded a sequence has parsed it.

Under the mask a sequence always ends, in a well-formed program (typed, without dead code, every input used) or in
values within bounds: a function or variable is only allowed if the lines that remain suffice to use all that is not
used yet. A token outside the mask makes the state `failed`, for good: the format error of unmasked decoding. Banned
operations are never allowed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.reasoning.language import (
    INT,
    LAMBDA_KIND,
    LIST,
    MAX_INPUTS,
    MAX_LENGTH,
    MAX_LINES,
    NONE,
    OP_ARGUMENTS,
    OP_LAMBDAS,
    OP_RESULT,
    OPERATIONS,
    PROPOSABLE,
    SIGNATURE_KINDS,
    SIGNATURES,
    SLOTS,
    Program,
    Value,
    empty_values,
    zero_program,
)
from azjax.reasoning.tokens import (
    CLOSE,
    END,
    FIRST_INTEGER,
    FIRST_LAMBDA,
    FIRST_OPERATION,
    FIRST_SIGNATURE,
    FIRST_VARIABLE,
    INPUT_TOKENS,
    OPEN,
    PAD,
    PROGRAM_TOKENS,
    VOCABULARY,
    ZERO,
)
from azjax.types import Array, Key

__all__ = [
    "GrammarState",
    "advance",
    "allowed",
    "expect_inputs",
    "expect_program",
    "expect_proposal",
    "expect_value",
    "read",
    "sample_tokens",
    "succeeded",
]

SIGNATURE, OPERATION, LAMBDA, FIRST, SECOND, VALUE, ITEM, DONE = range(8)
"""What is expected next: a signature, a function or `end`, a lambda, a variable, the second one, a value, an item or
the closing bracket, nothing."""

PROPOSAL_TOKENS: Final = PROGRAM_TOKENS + INPUT_TOKENS
"""The longest proposal: a program and one input. Answers: `PROGRAM_TOKENS - 1`, `INPUT_TOKENS`, `VALUE_TOKENS`."""


def _log_weights() -> np.ndarray:
    weights = np.ones(len(VOCABULARY), np.float32)
    lambdas = np.array([max(int((LAMBDA_KIND[1:] == kind).sum()), 1) for kind in OP_LAMBDAS[1:]])
    weights[FIRST_OPERATION : FIRST_OPERATION + len(lambdas)] = lambdas
    return np.log(weights)


_LOG_WEIGHTS = _log_weights()
_INTEGERS_USED = (OP_ARGUMENTS == INT).sum(1)
_LISTS_USED = (OP_ARGUMENTS == LIST).sum(1)


class GrammarState(NamedTuple):
    """Where a sequence stands. `E` is the number of examples that it can hold."""

    section: Array  # int32 [] what is expected next
    program: Program  # written so far
    inputs: Value  # [E, MAX_INPUTS] written so far; a lone value is inputs[0, 0]
    kinds: Array  # int32 [MAX_INPUTS] what the values of an example must be
    variables: Array  # int32 [SLOTS] kinds of the variables so far
    unused: Array  # bool [SLOTS] variables that no line has used yet
    line: Array  # int32 [] lines written
    max_lines: Array  # int32 []
    signatures: Array  # int32 [] the first so many may be chosen
    examples: Array  # int32 [] how many inputs follow the program
    example: Array  # int32 [] which is being written
    slot: Array  # int32 [] which of its values
    failed: Array  # bool [] a token came that was not allowed


def _state(
    section: int,
    kinds: Array,
    examples: Array | int,
    capacity: int,
    max_lines: Array | int = MAX_LINES,
    signatures: int = len(SIGNATURES),
) -> GrammarState:
    zero = jnp.zeros((), jnp.int32)
    variables = jnp.zeros(SLOTS, jnp.int32).at[:MAX_INPUTS].set(kinds)
    return GrammarState(
        section=zero + section,
        program=zero_program(),
        inputs=empty_values((capacity, MAX_INPUTS)),
        kinds=jnp.asarray(kinds, jnp.int32),
        variables=variables,
        unused=variables != NONE,
        line=zero,
        max_lines=zero + max_lines,
        signatures=zero + signatures,
        examples=zero + examples,
        example=zero,
        slot=zero,
        failed=jnp.zeros((), bool),
    )


def expect_proposal(max_lines: Array | int = MAX_LINES, signatures: int = len(SIGNATURES)) -> GrammarState:
    """One of the first ``signatures``, a program of 1 to ``max_lines`` lines and one input: what a proposer writes."""
    return _state(SIGNATURE, jnp.zeros(MAX_INPUTS, jnp.int32), 1, 1, max_lines, signatures)


def expect_program(signature: Array | int, max_lines: Array | int = MAX_LINES) -> GrammarState:
    """A program of 1 to ``max_lines`` lines for inputs that are given: the answer to an induction task."""
    signature = jnp.asarray(signature, jnp.int32)
    state = _state(OPERATION, jnp.take(jnp.asarray(SIGNATURE_KINDS), signature, axis=0, mode="clip"), 0, 1, max_lines)
    return state._replace(program=state.program._replace(signature=signature))


def expect_inputs(signature: Array | int, examples: int = 1) -> GrammarState:
    """So many inputs: the answer to an abduction task, or what is proposed for induction. ``examples`` is static."""
    kinds = jnp.take(jnp.asarray(SIGNATURE_KINDS), jnp.asarray(signature), axis=0, mode="clip")
    return _state(VALUE, kinds, examples, examples)


def expect_value(kind: Array | int) -> GrammarState:
    """One value: the answer to a deduction task."""
    return _state(VALUE, jnp.zeros(MAX_INPUTS, jnp.int32).at[0].set(kind), 1, 1)


def succeeded(state: GrammarState) -> Array:
    """Whether the sequence is complete and every token of it was allowed, bool []."""
    return (state.section == DONE) & ~state.failed


def allowed(state: GrammarState) -> Array:
    """Which tokens may follow, bool `[len(VOCABULARY)]`; never none: after the end, and after a failure, `PAD`."""
    section = jnp.where(state.failed, DONE, state.section)
    special = jnp.zeros(FIRST_SIGNATURE, bool).at[PAD].set(section == DONE)
    integers_unused, lists_unused = _pending(state)
    complete = (state.line >= 1) & (integers_unused + lists_unused == 1)
    special = special.at[END].set((section == OPERATION) & complete)
    kind = state.kinds[state.slot]
    special = special.at[OPEN].set((section == VALUE) & (kind == LIST))
    special = special.at[CLOSE].set(section == ITEM)
    number = (section == VALUE) & (kind == INT)
    number |= (section == ITEM) & (state.inputs.length[state.example, state.slot] < MAX_LENGTH)
    op = state.program.lines[state.line, 0]
    blocks = [
        special,
        (section == SIGNATURE) & _signatures(state),
        (section == OPERATION) & _operations(state),
        (section == LAMBDA) & jnp.asarray(LAMBDA_KIND[1:] == np.arange(4)[:, None])[jnp.asarray(OP_LAMBDAS)[op]],
        ((section == FIRST) | (section == SECOND)) & _variables(state, op, section),
        jnp.broadcast_to(number, (len(VOCABULARY) - FIRST_INTEGER,)),
    ]
    return jnp.concatenate(blocks)


def _pending(state: GrammarState) -> tuple[Array, Array]:
    """Numbers of integers and of lists that no line has used."""
    return tuple(jnp.sum(state.unused & (state.variables == kind)) for kind in (INT, LIST))  # type: ignore[return-value]


def _lines_needed(integers: Array, lists: Array) -> Array:
    """The fewest lines after which a single variable is unused.

    A line uses two at most and makes one. An integer is used together with a list only; where all lists are used
    already, one that was used is taken, and the result is one more variable.
    """
    return jnp.where(integers + lists <= 1, 0, jnp.where(lists == 0, integers, integers + lists - 1))


def _signatures(state: GrammarState) -> Array:
    needed = _lines_needed(jnp.asarray((SIGNATURE_KINDS == INT).sum(1)), jnp.asarray((SIGNATURE_KINDS == LIST).sum(1)))
    return (needed <= state.max_lines) & (np.arange(len(SIGNATURES)) < state.signatures)


def _fits(state: GrammarState, op: Array | np.ndarray, integers: Array, lists: Array) -> Array:
    """Whether the lines behind this one can use what it leaves."""
    result = jnp.asarray(OP_RESULT)[op]
    needed = _lines_needed(integers + (result == INT), lists + (result == LIST))
    return needed < state.max_lines - state.line


def _operations(state: GrammarState) -> Array:
    """Functions that exist for the variables and leave no more behind than the lines that remain can use."""
    op = np.arange(1, len(OPERATIONS) + 1)
    integers, lists = _pending(state)
    has_integer, has_list = (jnp.any(state.variables == kind) for kind in (INT, LIST))
    typed = (has_integer | (_INTEGERS_USED[op] == 0)) & has_list & (op <= PROPOSABLE)
    left = jnp.maximum(integers - _INTEGERS_USED[op], 0), jnp.maximum(lists - _LISTS_USED[op], 0)
    return typed & (state.line < state.max_lines) & _fits(state, op, *left)


def _variables(state: GrammarState, op: Array, section: Array) -> Array:
    """Variables of the right kind with which the line can still leave what the others can use."""
    first, second = jnp.asarray(OP_ARGUMENTS)[op]
    kind = jnp.where(section == FIRST, first, second)
    follows = jnp.where(section == FIRST, second, NONE)  # a variable that the line takes after this one
    slots = jnp.arange(SLOTS)
    # Row v: what is unused once v is taken, and the best second variable after it.
    unused = state.unused & (slots != slots[:, None])
    integers, lists = (jnp.sum(unused & (state.variables == k), axis=1) for k in (INT, LIST))
    integers = jnp.maximum(integers - (follows == INT), 0)
    lists = jnp.maximum(lists - (follows == LIST), 0)
    return (state.variables == kind) & _fits(state, op, integers, lists)


def advance(state: GrammarState, token: Array) -> GrammarState:
    """The state after one more token, int32 []; a token that is not allowed fails it and changes nothing else."""
    legal = allowed(state)[token]
    after = state
    for write in (_write_signature, _write_line, _write_value):
        after = write(after, state.section, token)
    after = jax.tree.map(lambda new, old: jnp.where(legal, new, old), after, state)
    return after._replace(failed=state.failed | ~legal)


def _write_signature(state: GrammarState, section: Array, token: Array) -> GrammarState:
    here = section == SIGNATURE
    signature = jnp.where(here, token - FIRST_SIGNATURE, state.program.signature)
    kinds = jnp.where(here, jnp.take(jnp.asarray(SIGNATURE_KINDS), signature, axis=0, mode="clip"), state.kinds)
    variables = jnp.where(here, state.variables.at[:MAX_INPUTS].set(kinds), state.variables)
    return state._replace(
        section=jnp.where(here, OPERATION, state.section),
        program=state.program._replace(signature=signature),
        kinds=kinds,
        variables=variables,
        unused=jnp.where(here, variables != NONE, state.unused),
    )


def _write_line(state: GrammarState, section: Array, token: Array) -> GrammarState:
    field = section - OPERATION
    inside = (field >= 0) & (field < 4)
    ends = (section == OPERATION) & (token == END)
    number = jnp.stack(
        [token - FIRST_OPERATION + 1, token - FIRST_LAMBDA + 1, token - FIRST_VARIABLE, token - FIRST_VARIABLE]
    )
    here = inside & ~ends & (jnp.arange(MAX_LINES)[:, None] == state.line) & (jnp.arange(4) == field)
    lines = jnp.where(here, number, state.program.lines)
    op = jnp.sum(jnp.where(jnp.arange(MAX_LINES) == state.line, lines[:, 0], 0))
    has_lambda, has_second = jnp.asarray(OP_LAMBDAS > 0)[op], jnp.asarray(OP_ARGUMENTS[:, 1] != NONE)[op]
    finished = (section == SECOND) | (section == FIRST) & ~has_second
    slots = jnp.arange(SLOTS)
    used = ((section == FIRST) | (section == SECOND)) & (slots == token - FIRST_VARIABLE)
    made = finished & (slots == MAX_INPUTS + state.line)
    following = jnp.select(
        [ends, finished, section == OPERATION, section == LAMBDA],
        [jnp.where(state.examples > 0, VALUE, DONE), OPERATION, jnp.where(has_lambda, LAMBDA, FIRST), FIRST],
        SECOND,
    )
    return state._replace(
        section=jnp.where(inside, following, state.section),
        program=state.program._replace(lines=lines),
        variables=jnp.where(made, jnp.asarray(OP_RESULT)[op], state.variables),
        unused=(state.unused & ~used) | made,
        line=state.line + finished,
    )


def _write_value(state: GrammarState, section: Array, token: Array) -> GrammarState:
    inside = (section == VALUE) | (section == ITEM)
    capacity, slots = state.inputs.kind.shape
    here = inside & (jnp.arange(capacity)[:, None] == state.example) & (jnp.arange(slots) == state.slot)
    kind = state.kinds[state.slot]
    adds = here & (token != OPEN) & (token != CLOSE)
    place = adds[..., None] & (jnp.arange(MAX_LENGTH) == state.inputs.length[..., None])
    inputs = Value(
        kind=jnp.where(here, kind, state.inputs.kind),
        length=state.inputs.length + adds,
        items=jnp.where(place, token - ZERO, state.inputs.items),
    )
    finished = inside & ((token == CLOSE) | (section == VALUE) & (kind == INT))
    last = (state.slot == MAX_INPUTS - 1) | (state.kinds[-1] == NONE)
    example = state.example + (finished & last)
    following = jnp.where(finished, jnp.where(example >= state.examples, DONE, VALUE), ITEM)
    return state._replace(
        section=jnp.where(inside, following, state.section),
        inputs=inputs,
        example=jnp.minimum(example, capacity - 1),
        slot=jnp.where(finished, jnp.where(last, 0, state.slot + 1), state.slot),
    )


def read(state: GrammarState, tokens: Array) -> GrammarState:
    """The state after a sequence of tokens, int32 `[length]`: parsing, and whether each was allowed."""
    return jax.lax.scan(lambda state, token: (advance(state, token), None), state, tokens)[0]


def sample_tokens(key: Key, state: GrammarState, length: int) -> tuple[GrammarState, Array]:
    """Each token uniform among those allowed, but functions as often as they have lambdas: the random proposer.

    So all programs of one line are equally frequent. With functions alike, each lambda of `Map` would come up a tenth
    as often as `Sum`.

    Args:
      key: consumed.
      state: where to start.
      length: how many tokens, static; `PROPOSAL_TOKENS` suffices for every proposal.

    Returns:
      The last state, and the tokens, int32 `[length]`.
    """

    def step(state: GrammarState, key: Key) -> tuple[GrammarState, Array]:
        token = jax.random.categorical(key, jnp.where(allowed(state), _LOG_WEIGHTS, -jnp.inf)).astype(jnp.int32)
        return advance(state, token), token

    return jax.lax.scan(step, state, jax.random.split(key, length))
