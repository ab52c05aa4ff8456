"""What a trained reasoner is used for: to solve a task, to propose programs, to be examined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import ConfigError, require
from azjax.reasoning.buffers import Triplet
from azjax.reasoning.decoding import Answers, decode
from azjax.reasoning.domain import Proposals
from azjax.reasoning.examination import (
    Questions,
    drawn_questions,
    extrapolation_questions,
    make_examiner,
    statistics,
    test_questions,
    wide,
)
from azjax.reasoning.interpreter import trace
from azjax.reasoning.language import (
    KIND_NAMES,
    MAX_INPUTS,
    MAX_LINES,
    NONE,
    SIGNATURE_KINDS,
    SIGNATURES,
    Program,
    Value,
    as_int32,
    zero_program,
)
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.splits import LARGEST_SPLIT, Split, make_split
from azjax.reasoning.tasks import TASKS, Task
from azjax.reasoning.text import format_program, format_value, parse_program, parse_value, stack_values
from azjax.reasoning.wellformed import examine
from azjax.runs.reason_model import LoadedModel, load_model

__all__ = ["Solution", "TaskText", "examine_model", "list_questions", "propose", "read_task", "solve"]


class TaskText(NamedTuple):
    """A task for a solver."""

    kind: Task
    item: Triplet  # [1]
    known: int  # examples that can be checked


class Solution(NamedTuple):
    """An answer and what execution says of it."""

    answer: str
    right: bool
    tried: int  # answers that were looked at
    lines: list[str]  # program and trace


def read_task(program: str | None, inputs: str | None, output: str | None, pairs: Sequence[str]) -> TaskText:
    """A task from text: its kind follows from what is given.

    Args:
      program: with an input for deduction, with an output for abduction.
      inputs: one value, or two with a semicolon between.
      output: a value.
      pairs: of inputs and output, ``INPUT -> OUTPUT``, for induction.

    Raises:
      ConfigError: with the position of what is wrong, or if that is no task.
    """
    if pairs:
        require(program is None and inputs is None and output is None, "pairs are a task by themselves; leave the rest")
        return _read_pairs(pairs)
    require(program is not None, "no task is given; see --help for the three kinds")
    require((inputs is None) != (output is None), "give either the input (deduction) or the output (abduction)")
    parsed = as_int32(parse_program(str(program)))
    form = examine(parsed)
    require(
        bool(form.well_formed & ~form.banned),
        "program: it has no lines, an input or a result that nothing uses, or a banned function; such are never posed",
    )
    blank = stack_values([None] * MAX_INPUTS)
    if inputs is None:
        wanted = parse_value(str(output))
        return TaskText("abduction", _triplet(parsed, [blank], [wanted]), 1)
    given = _read_inputs(inputs)
    kinds, wanted_kinds = given.kind.tolist(), SIGNATURE_KINDS[int(parsed.signature)].tolist()
    require(kinds == wanted_kinds, f"input: it is {_kinds(kinds)}, but the program takes {_kinds(wanted_kinds)}")
    variables, valid = trace(parsed, as_int32(given))
    require(bool(valid), "input: the program leaves the bounds on it, so there is no output to deduce")
    last: Value = jax.tree.map(lambda x: x[MAX_INPUTS - 1 + int(form.length)], variables)
    return TaskText("deduction", _triplet(parsed, [given], [last]), 1)


def solve(model: LoadedModel, task: TaskText, *, attempts: int = 64, seed: int = 0) -> Solution:
    """The most probable answer; if execution refutes it, and more than one attempt is allowed, sampled ones.

    A deduction is not corrected this way, for checking it gives it away: its first answer stands.

    Args:
      model: the solver.
      task: what to solve.
      attempts: answers at most.
      seed: of the samples.
    """
    domain = _domain_for(model, task)
    index = TASKS.index(task.kind)
    level = jnp.asarray(domain.max_lines if task.kind != "induction" else model.level, jnp.int32)

    def answer(key: Any, copies: int, greedy: bool) -> Answers[Any]:
        prompt, expected = domain.pose(index, task.item, level)
        length = domain.answer_tokens(index)
        return decode(model.policy, model.params, domain, key, prompt, expected, length, copies=copies, greedy=greedy)

    first = jax.jit(lambda key: answer(key, 1, True))(jax.random.key(seed))
    states, rights = first.state, _check(domain, index, task, first.state)
    if task.kind != "deduction" and not rights[0] and attempts > 1:
        more = jax.jit(lambda key: answer(key, attempts - 1, False))(jax.random.key(seed))
        states = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first.state, more.state)
        rights = _check(domain, index, task, states)
    found = int(np.argmax(rights))
    chosen = jax.tree.map(lambda x: np.asarray(x)[found], states)
    text, lines = _shown(task, chosen)
    return Solution(text, bool(rights[found]), found + 1 if rights[found] else len(rights), lines)


def propose(model: LoadedModel, *, number: int, seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Programs that the model writes, verified, with an input and the output; and how many were refused.

    Args:
      model: the proposer, which sees the zero triplet as reference.
      number: of proposals.
      seed: of everything random.
    """
    domain = _lists(model)
    index = TASKS.index("abduction")

    def write(key: Any) -> Proposals:
        invite_key, decode_key, read_key = jax.random.split(key, 3)
        level = jnp.asarray(model.level, jnp.int32)
        prompt, expected, context = domain.invite(invite_key, domain.init(), index, number, level)
        length = domain.proposal_tokens(index)
        answers = decode(model.policy, model.params, domain, decode_key, prompt, expected, length)
        draft = domain.read(read_key, index, context, answers.state)
        return domain.verify([index], [draft], jnp.zeros((), jnp.int32))[0]

    proposals = jax.device_get(jax.jit(write)(jax.random.key(seed)))
    rows = []
    for n in np.flatnonzero(proposals.accepted).tolist():
        item = jax.tree.map(lambda x, n=n: x[n], proposals.item)
        given = jax.tree.map(lambda x: x[0], item.inputs)
        rows.append(
            {
                "program": format_program(item.program, " | "),
                "input": _inputs_text(given),
                "output": format_value(jax.tree.map(lambda x: x[0], item.outputs)),
                "lines": int(proposals.level[n]),
            }
        )
    return rows, number - len(rows)


def examine_model(
    folder: Path, *, questions: int, samples: int, seed: int = 0, extrapolation: bool = True
) -> dict[str, Any]:
    """pass@k of a run's model by task type and group of questions.

    Args:
      folder: of the run.
      questions: of each group and task type.
      samples: sampled answers to each question.
      seed: of questions and answers.
      extrapolation: ask for programs with four lines and with two inputs, too.
    """
    model = load_model(folder)
    *question_keys, answer_key = jax.random.split(jax.random.key(seed), 3)
    ks = [k for k in (1, 8, 64) if k <= samples]
    if model.options.domain != "lists":
        domain = model.options.make_domain()
        parts: list[tuple[Any, Questions, int]] = [
            (domain, drawn_questions(domain, question_keys[0], number=questions), model.level)
        ]
    else:
        domain = _lists(model)
        split = make_split(LARGEST_SPLIT, share=model.hold_out)
        several = list_questions(domain, split, question_keys, number=questions, extrapolation=extrapolation)
        parts = [(*part, level) for part, level in zip(several, (model.level, MAX_LINES), strict=False)]
    table: dict[str, Any] = {}
    for n, (domain, asked, level) in enumerate(parts):
        for task, name in enumerate(domain.tasks):
            key = jax.random.fold_in(answer_key, n * len(domain.tasks) + task)
            examiner = jax.jit(make_examiner(domain, model.policy, task, samples=samples))
            marks = jax.device_get(examiner(model.params, key, asked.items[task], jnp.asarray(level, jnp.int32)))
            table.setdefault(name, {}).update(statistics(marks, asked.group, asked.names, ks))
    return table


def list_questions(
    domain: ListDomain, split: Split, keys: Sequence[Any], *, number: int, extrapolation: bool
) -> list[tuple[ListDomain, Questions]]:
    """What an examination asks, with the domain that is as wide as the questions: of the split, and beyond it.

    Args:
      domain: of the model.
      split: what is held out.
      keys: consumed, for the one and the other.
      number: questions of each group and task type.
      extrapolation: ask beyond it, too.
    """
    parts = [(domain, test_questions(domain, split, keys[0], number=number))]
    if extrapolation:
        beyond = extrapolation_questions(domain, split, keys[1], number=number)
        parts.append((wide(domain, lines=MAX_LINES, two_inputs=True), beyond))
    return parts


def _lists(model: LoadedModel) -> ListDomain:
    domain = model.options.make_domain()
    if not isinstance(domain, ListDomain):
        raise ConfigError(f"the model is for {model.options.domain}; tasks as text are list programs")
    return domain


def _domain_for(model: LoadedModel, task: TaskText) -> ListDomain:
    """Prompts as wide as the task; all examples of an induction task but the last are shown."""
    domain = wide(_lists(model), lines=MAX_LINES if task.kind != "induction" else model.options.max_lines)
    domain = dataclasses.replace(domain, two_inputs=int(task.item.program.signature[0]) > 0)
    if task.kind == "induction":
        domain = dataclasses.replace(domain, examples=task.known + 1, shown=min(task.known, model.options.shown))
    return domain


def _check(domain: ListDomain, index: int, task: TaskText, states: Any) -> np.ndarray:
    if task.kind == "induction":  # all that is given is checked, what was shown as well
        domain = wide(domain, lines=MAX_LINES, two_inputs=True)
        domain = dataclasses.replace(domain, examples=task.known, shown=0)
    number = len(states.section)
    item = jax.tree.map(lambda x: jnp.repeat(x, number, axis=0), task.item)
    return np.asarray(jax.jit(lambda i, s: domain.check(index, i, s))(item, states)[1])


def _shown(task: TaskText, state: Any) -> tuple[str, list[str]]:
    """The answer, and the program with its trace on the inputs that belong to it."""
    item = jax.tree.map(lambda x: np.asarray(x)[0], task.item)
    first = jax.tree.map(lambda x: x[0], item.inputs)
    written = jax.tree.map(lambda x: x[0], state.inputs)
    if task.kind == "deduction":
        return format_value(jax.tree.map(lambda x: x[0], written)), _traced(item.program, first)
    if task.kind == "abduction":
        return _inputs_text(written), _traced(item.program, written)
    return format_program(state.program, " | "), _traced(state.program, first)


def _traced(program: Program, inputs: Value) -> list[str]:
    """A line of text for each variable, with its value."""
    variables, _ = trace(as_int32(program), as_int32(inputs))
    rows = format_program(program).splitlines()
    width = max(map(len, rows))
    shown = []
    for row in rows:
        slot = int(row.split()[0][1:])
        shown.append(f"{row:<{width}}   {format_value(jax.tree.map(lambda x, n=slot: np.asarray(x)[n], variables))}")
    return shown


def _read_pairs(pairs: Sequence[str]) -> TaskText:
    require(len(pairs) >= 2, f"{len(pairs)} pair is given; give two or more, of which the last ones check the answer")
    require(len(pairs) <= 48, f"{len(pairs)} pairs are given; 48 are enough")
    inputs, outputs = [], []
    for n, pair in enumerate(pairs, 1):
        left, arrow, right = pair.partition("->")
        require(bool(arrow), f"pair {n}: {pair!r} has no ->; write INPUT -> OUTPUT, such as '[1 2] -> 3'")
        inputs.append(_read_inputs(left, f"pair {n}: "))
        outputs.append(_at(f"pair {n}: ", right))
    kinds = {tuple(k for k in given.kind.tolist() if k != NONE) for given in inputs}
    require(len(kinds) == 1, "the pairs' inputs are of different kinds")
    (signature,) = kinds
    require(signature in SIGNATURES, f"inputs are {_kinds(list(signature))}; no program takes that")
    program = zero_program()._replace(signature=jnp.asarray(SIGNATURES.index(signature), jnp.int32))
    return TaskText("induction", _triplet(program, inputs, outputs), len(pairs))


def _read_inputs(text: str, where: str = "input: ") -> Value:
    parts = text.split(";")
    require(
        1 <= len(parts) <= MAX_INPUTS, f"{where}{text!r} has {len(parts)} values; a program has 1 or 2, with ; between"
    )
    values = [_at(where, part) for part in parts]
    missing = [stack_values([None])] * (MAX_INPUTS - len(values))
    rows = [*(jax.tree.map(lambda x: np.asarray(x)[None], v) for v in values), *missing]
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)  # type: ignore[no-any-return]


def _at(where: str, text: str) -> Value:
    try:
        return parse_value(text.strip())
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def _triplet(program: Program, inputs: Sequence[Value], outputs: Sequence[Value]) -> Triplet:
    rows = [jax.tree.map(lambda *x: np.stack(x), *part) for part in (inputs, outputs)]
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32)[None], Triplet(program, *rows))  # type: ignore[no-any-return]


def _inputs_text(values: Value) -> str:
    each = [jax.tree.map(lambda x, n=n: np.asarray(x)[n], values) for n in range(MAX_INPUTS)]
    return " ; ".join(format_value(v) for v in each if int(v.kind) != NONE)


def _kinds(kinds: Sequence[int]) -> str:
    return " and ".join(KIND_NAMES[k] for k in kinds if k != NONE) or "nothing"
