"""The three kinds of task: prompts as tokens, where their answers begin, and what an answer is worth.

========== ============================ ===================================================
task       given                        an answer is right if
========== ============================ ===================================================
deduction  program, input               it equals the output
abduction  program, output              it is an input for which the program gives the output
induction  pairs of input and output    it is a program that gives the hidden outputs, too
========== ============================ ===================================================

Answers are values and programs that the grammar automaton read, compared here by executing the language: no text is
evaluated, nothing of an answer takes part in its own judgement, and whatever fails on the way is wrong.

Every part of a prompt has places of its own, as many as its longest form takes, filled up with `PAD`, to which nothing
attends. So items of an input and of its output that belong together are always equally far apart, and the answer
begins at the same place in every lane. Packed prompts, in which distances depend on lengths, were far harder to learn.

References:
  Zhao et al., 2025, Absolute Zero: Reinforced Self-play Reasoning with Zero Data, arXiv 2505.03335, sections 3.2, 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import jax
import jax.numpy as jnp

from azjax.config import require
from azjax.reasoning.buffers import Triplet
from azjax.reasoning.grammar import (
    GrammarState,
    expect_inputs,
    expect_program,
    expect_proposal,
    expect_value,
    succeeded,
)
from azjax.reasoning.interpreter import execute
from azjax.reasoning.language import MAX_INPUTS, MAX_LINES, SIGNATURES, Program, Value, as_int32, equal
from azjax.reasoning.tokens import (
    ABDUCTION,
    ANSWER,
    DEDUCTION,
    FIRST_SIGNATURE,
    INDUCTION,
    INPUT,
    OUTPUT,
    PROGRAM,
    PROPOSE,
    REFERENCE,
    SOLVE,
    VALUE_TOKENS,
    longest_program,
    program_tokens,
    value_tokens,
)
from azjax.reasoning.wellformed import examine, output_kind
from azjax.types import Array

__all__ = [
    "TASKS",
    "Task",
    "check_abduction",
    "check_deduction",
    "check_induction",
    "expect_answer",
    "expect_task",
    "hidden_matches",
    "judge",
    "prompt_tokens",
    "proposer_prompt",
    "proposer_reward",
    "solver_prompt",
    "solver_reward",
]

Task = Literal["deduction", "abduction", "induction"]
TASKS: Final[tuple[Task, ...]] = ("deduction", "abduction", "induction")
_TOKEN: Final = {"deduction": DEDUCTION, "abduction": ABDUCTION, "induction": INDUCTION}


def solver_prompt(
    task: Task, triplet: Triplet, *, shown: int = 5, inputs: int = MAX_INPUTS, lines: int = MAX_LINES
) -> Array:
    """What a solver is given, int32 `[..., prompt_tokens("solve", task, ...)]`.

    Deduction and abduction show the first example of the triplet. Induction shows the signature and the first ``shown``
    examples; the others stay hidden.

    Args:
      task: which; static.
      triplet: `[...]`.
      shown: number of examples that induction shows, static.
      inputs: the most that any of the programs has, static: fewer make a narrower prompt.
      lines: the most that any of the programs has, static.
    """
    shape = triplet.program.signature.shape
    parts = [_constant(shape, SOLVE), _constant(shape, _TOKEN[task])]
    if task == "induction":
        parts.append(FIRST_SIGNATURE + triplet.program.signature.astype(jnp.int32)[..., None])
        for n in range(shown):
            parts += [*_input(triplet, n, inputs), *_output(triplet, n)]
    else:
        parts += _program(triplet, lines)
        parts += _input(triplet, 0, inputs) if task == "deduction" else _output(triplet, 0)
    return jnp.concatenate([*parts, _constant(shape, ANSWER)], axis=-1)


def proposer_prompt(task: Task, references: Triplet, *, inputs: int = MAX_INPUTS, lines: int = MAX_LINES) -> Array:
    """What a proposer is given, int32 `[..., prompt_tokens("propose", task, K)]`.

    Deduction and abduction show K references, (program, input, output) each, to propose something different from;
    induction shows the program for which inputs are proposed, and K is 1.

    Args:
      task: which; static.
      references: `[..., K]`; the first example of each is shown. K may be 0 for deduction and abduction.
      inputs: the most that any of the programs has, static.
      lines: the most that any of the programs has, static.
    """
    *shape, number = references.program.signature.shape
    parts = [_constant(shape, PROPOSE), _constant(shape, _TOKEN[task])]
    for n in range(number):
        one: Triplet = jax.tree.map(lambda x, n=n: jnp.take(x, n, axis=len(shape)), references)
        if task == "induction":
            parts += _program(one, lines)
        else:
            parts += [_constant(shape, REFERENCE), *_program(one, lines), *_input(one, 0, inputs), *_output(one, 0)]
    return jnp.concatenate([*parts, _constant(shape, ANSWER)], axis=-1)


def prompt_tokens(
    role: Literal["propose", "solve"],
    task: Task,
    number: int = 1,
    *,
    inputs: int = MAX_INPUTS,
    lines: int = MAX_LINES,
) -> int:
    """The width of a prompt: the longest there is.

    Args:
      role: who is prompted.
      task: which task.
      number: references of a proposer (1 for induction), or examples that an induction solver is shown.
      inputs: the most that a program has.
      lines: the most that a program has.
    """
    ends = 3  # role, task, `answer`
    program, given = longest_program(lines), inputs * VALUE_TOKENS
    example = 1 + given + 1 + VALUE_TOKENS
    if role == "propose":
        each = 1 + program if task == "induction" else 2 + program + example
        return ends + number * each
    if task == "induction":
        return ends + 1 + number * example
    return ends + 1 + program + 1 + (given if task == "deduction" else VALUE_TOKENS)


def expect_task(
    task: Task,
    triplet: Triplet,
    *,
    max_lines: Array | int = MAX_LINES,
    examples: int = 10,
    signatures: int = len(SIGNATURES),
) -> GrammarState:
    """What a proposer may write, for one triplet without leading axes; `vmap` it.

    Args:
      task: deduction and abduction: a program and an input; induction: so many inputs for the triplet's program.
      triplet: read for induction only.
      max_lines: longest program.
      examples: number of inputs, static.
      signatures: the first so many may be proposed, static.
    """
    if task == "induction":
        return expect_inputs(triplet.program.signature, examples)
    return expect_proposal(max_lines, signatures)


def expect_answer(task: Task, triplet: Triplet, *, max_lines: Array | int = MAX_LINES) -> GrammarState:
    """What a solver may write, for one triplet without leading axes; `vmap` it.

    A value of the output's kind, an input of the program's signature, or a program of that signature.
    """
    program = triplet.program
    if task == "deduction":
        return expect_value(output_kind(program))
    return expect_inputs(program.signature) if task == "abduction" else expect_program(program.signature, max_lines)


def judge(task: Task, triplet: Triplet, answer: GrammarState, *, shown: int = 5) -> tuple[Array, Array]:
    """Whether answers are complete and of the right form, and whether they are right, both bool `[...]`.

    Args:
      task: which; static.
      triplet: `[...]`, the task.
      answer: `[...]`, the state that `expect_answer` gave, once the answer's tokens were read.
      shown: number of examples that induction showed, static.

    Returns:
      `formatted` and `correct`; what is not formatted is not correct.
    """
    formatted = succeeded(answer)
    inputs = jax.tree.map(lambda x: jnp.take(x, 0, axis=formatted.ndim), answer.inputs)
    if task == "deduction":
        correct = check_deduction(triplet, jax.tree.map(lambda x: jnp.take(x, 0, axis=formatted.ndim), inputs))
    elif task == "abduction":
        correct = check_abduction(triplet, inputs)
    else:
        correct = check_induction(triplet, answer.program, shown=shown)
    return formatted, formatted & correct


def check_deduction(triplet: Triplet, answer: Value) -> Array:
    """Whether values `[...]` are the output of the first example, bool `[...]`."""
    return equal(as_int32(answer), _first(triplet, triplet.outputs))


def check_abduction(triplet: Triplet, answer: Value) -> Array:
    """Whether the program gives the output of the first example for the inputs `[..., MAX_INPUTS]`, bool `[...]`.

    Any such input is right, not only the one that the proposer had in mind.
    """
    output, valid = execute(as_int32(triplet.program), as_int32(answer))
    return valid & equal(output, _first(triplet, triplet.outputs))


def check_induction(triplet: Triplet, answer: Program, *, shown: int = 5) -> Array:
    """Whether programs `[...]` are well-formed and give every hidden output, bool `[...]`.

    Raises:
      ConfigError: if no example is hidden, for then every program would be right.
    """
    return hidden_matches(triplet, answer, shown=shown).all(-1)


def hidden_matches(triplet: Triplet, answer: Program, *, shown: int = 5) -> Array:
    """Which of the hidden outputs well-formed programs `[...]` give, bool `[..., E - shown]`; for partial credit.

    Raises:
      ConfigError: if no example is hidden.
    """
    ndim = triplet.program.signature.ndim
    examples = triplet.outputs.kind.shape[-1]
    require(0 <= shown < examples, f"shown is {shown} of {examples} examples; at least one must stay hidden")
    inputs, outputs = (
        jax.tree.map(lambda x: jax.lax.slice_in_dim(x, shown, None, axis=ndim), as_int32(part))
        for part in (triplet.inputs, triplet.outputs)
    )
    form = examine(answer)
    given, valid = execute(jax.tree.map(lambda x: jnp.expand_dims(x, ndim), as_int32(answer)), inputs)
    return (form.well_formed & ~form.banned)[..., None] & valid & equal(given, outputs)


def solver_reward(formatted: Array, correct: Array, *, wrong: float = -0.5, malformed: float = -1.0) -> Array:
    r"""1 for a right answer, less for a wrong one, least for one that is none: float32 `[...]`.

    With the defaults that is equation 6 of the paper. Under the grammar mask nothing is malformed.
    """
    return jnp.where(formatted, jnp.where(correct, 1.0, wrong), malformed).astype(jnp.float32)


def proposer_reward(accepted: Array, score: Array, *, refused: float = -1.0) -> Array:
    """What a proposal is worth: its score if it passed every gate, `refused` otherwise; float32 `[...]`.

    Args:
      accepted: bool `[...]`, of `verify` and of whatever other gates there are.
      score: `[...]`, a function of the share of right answers among a fixed number of attempts.
      refused: what a proposal gets that failed.
    """
    return jnp.where(accepted, score, refused).astype(jnp.float32)


def _constant(shape: Sequence[int], token: int) -> Array:
    return jnp.full((*shape, 1), token, jnp.int32)


def _program(triplet: Triplet, lines: int) -> list[Array]:
    tokens = program_tokens(triplet.program)[..., : longest_program(lines)]
    return [_constant(triplet.program.signature.shape, PROGRAM), tokens]


def _input(triplet: Triplet, n: int, inputs: int) -> list[Array]:
    shape = triplet.program.signature.shape
    tokens = value_tokens(jax.tree.map(lambda x: jnp.take(x, n, axis=len(shape)), triplet.inputs))
    return [_constant(shape, INPUT), tokens[..., :inputs, :].reshape(*shape, inputs * VALUE_TOKENS)]


def _output(triplet: Triplet, n: int) -> list[Array]:
    shape = triplet.program.signature.shape
    tokens = value_tokens(jax.tree.map(lambda x: jnp.take(x, n, axis=len(shape)), triplet.outputs))
    return [_constant(shape, OUTPUT), tokens]


def _first(triplet: Triplet, part: Value) -> Value:
    axis = triplet.program.signature.ndim
    return as_int32(jax.tree.map(lambda x: jnp.take(x, 0, axis=axis), part))
