"""List programs as a domain: deduction, abduction and induction over the language of `azjax.reasoning.language`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import require
from azjax.reasoning import grammar
from azjax.reasoning.buffers import (
    Triplet,
    TripletBuffer,
    init_buffer,
    push,
    sample_newest,
    sample_recent,
    sample_uniform,
)
from azjax.reasoning.domain import Proposals
from azjax.reasoning.grammar import GrammarState, expect_proposal, sample_tokens, succeeded
from azjax.reasoning.hashing import same_hash
from azjax.reasoning.inputs import random_inputs
from azjax.reasoning.interpreter import execute
from azjax.reasoning.language import MAX_LINES, SIGNATURES, Program, Value, as_int32
from azjax.reasoning.tasks import TASKS, expect_answer, expect_task, judge, proposer_prompt, solver_prompt
from azjax.reasoning.tokens import (
    VALUE_TOKENS,
    VOCABULARY,
    longest_program,
    pack_segments,
    program_tokens,
    value_tokens,
)
from azjax.reasoning.verification import PROBES, Verdict, probe, verify
from azjax.reasoning.wellformed import examine
from azjax.types import Array, Key

__all__ = ["ListDomain"]

T = TypeVar("T")
_SPARE = 3
"""Inputs of a draft for each that is wanted."""


class Draft(NamedTuple):
    """`B` programs with more inputs than are wanted; the first ones on which a program has an output are kept."""

    program: Program  # [B]
    inputs: Value  # [B, C, MAX_INPUTS]
    required: Array  # int32 [B] how many were proposed, the first ones: with each of them the program needs an output
    formatted: Array  # bool [B]


@dataclasses.dataclass(frozen=True, eq=False)
class ListDomain:
    """The three tasks over list programs.

    Deduction and abduction proposers see K references and write a program with one input; induction proposers see a
    program and write inputs. Memory is one ring buffer for each task.
    """

    references: int = 6
    """K, past triplets that a proposer sees; 0 for none."""
    examples: int = 10
    """Examples of an induction task."""
    shown: int = 5
    """How many of them its solver sees; the others decide."""
    written: int = 2
    """How many of them its proposer writes; the others are drawn among inputs on which the program has an output."""
    capacity: int = 16384
    """Triplets that each buffer holds."""
    per_class: int | None = 8
    """Triplets with the same meaning that a buffer holds at most; None: any number."""
    novelty: bool = True
    """Refuse constants, identities and programs that fail on most probes."""
    held_out: Array | None = None
    """Meanings that may not be proposed, uint32 `[H, 2]`: those of the test set."""
    recency: bool = False
    """Draw past triplets, as references and to solve again, with a weight that grows from the oldest to the newest."""
    two_inputs: bool = True
    """Let programs have two inputs; otherwise a single list, for which prompts are a third narrower."""
    max_lines: int = MAX_LINES
    """Lines of the longest program."""
    pool: Program | None = None
    """What is drawn without being written is drawn from these `[P]`, uniformly among those of up to the level's lines,
    instead of from the grammar; the shorter ones come first."""

    tasks = TASKS
    vocabulary = len(VOCABULARY)
    allowed = staticmethod(grammar.allowed)
    advance = staticmethod(grammar.advance)

    def __post_init__(self) -> None:
        """Raises ``ConfigError`` for numbers that make no sense."""
        require(self.references >= 0, f"references is {self.references}; it can't be negative")
        require(
            0 <= self.shown < self.examples,
            f"shown is {self.shown} of {self.examples} examples; at least one must stay hidden",
        )
        require(
            1 <= self.written <= self.examples,
            f"written is {self.written}; an induction proposer writes 1 to {self.examples} inputs",
        )
        require(1 <= self.max_lines <= MAX_LINES, f"max_lines is {self.max_lines}; a program has 1 to {MAX_LINES}")

    @property
    def levels(self) -> int:
        """The level is the number of lines."""
        return self.max_lines

    def proposal_tokens(self, task: int) -> int:
        """Tokens of the longest proposal."""
        given = self._inputs * VALUE_TOKENS
        return self.written * given if TASKS[task] == "induction" else longest_program(self.max_lines) + given

    def answer_tokens(self, task: int) -> int:
        """Tokens of the longest answer."""
        return (VALUE_TOKENS, self._inputs * VALUE_TOKENS, longest_program(self.max_lines) - 1)[task]

    def init(self) -> tuple[TripletBuffer, ...]:
        """Buffers that hold the zero triplet."""
        return tuple(init_buffer(self.capacity, self._examples(task)) for task in range(len(TASKS)))

    def invite(
        self, key: Key, memory: tuple[TripletBuffer, ...], task: int, number: int, level: Array
    ) -> tuple[Array, GrammarState, Triplet]:
        """Prompts with references; the context is the triplets whose programs induction gets inputs for."""
        induction = TASKS[task] == "induction"
        k = 1 if induction else self.references
        if induction:
            # A program of either of the other tasks: the two buffers have the same layout.
            *keys, choice_key = jax.random.split(key, 3)
            both = [self._sample(k, memory[n], number) for n, k in enumerate(keys)]
            first = jax.random.bernoulli(choice_key, 0.5, (number,))
            drawn = jax.tree.map(lambda a, b: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b), *both)
            # Where induction is played alone those hold nothing but the zero triplet: it takes programs of its own.
            own = self._sample(jax.random.fold_in(choice_key, 1), memory[task], number)
            own = Triplet(own.program, *jax.tree.map(lambda x: x[:, :1], own[1:]))
            alone = (memory[0].size <= 1) & (memory[1].size <= 1)
            drawn = jax.tree.map(lambda a, b: jnp.where(alone, a, b), own, drawn)
        else:
            drawn = self._sample(key, memory[task], number * k)
        references: Triplet = jax.tree.map(lambda x: x.reshape(number, k, *x.shape[1:]), drawn)
        context = drawn if induction else _nothing(number)

        def expected(one: Triplet) -> GrammarState:
            return expect_task(TASKS[task], one, max_lines=level, examples=self.written, signatures=self._signatures)

        state = jax.vmap(expected)(context)
        prompt = proposer_prompt(TASKS[task], references, inputs=self._inputs, lines=self.max_lines)
        return prompt, state, context

    def read(self, key: Key, task: int, context: Triplet, state: GrammarState) -> Draft:
        """What was written; an induction task's other inputs are drawn here."""
        program = context.program if TASKS[task] == "induction" else state.program
        required = self.written if TASKS[task] == "induction" else 1
        drawn = random_inputs(key, program.signature, self._candidates(task) - required)
        inputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), as_int32(state.inputs), drawn)
        formatted = succeeded(state)
        return Draft(as_int32(program), inputs, jnp.full(formatted.shape, required), formatted)

    def draw(self, key: Key, tasks: Sequence[int], number: int, level: Array) -> tuple[Draft, ...]:
        """Programs written by the grammar alone, of lengths up to one that is uniform; and random inputs."""
        program_key, input_key = jax.random.split(key)
        total = len(tasks) * number
        program, formatted = self._drawn(program_key, total, level)
        most = max(self._candidates(task) for task in tasks)
        inputs = random_inputs(input_key, program.signature, most)
        all_drafts = Draft(program, inputs, jnp.zeros(total, jnp.int32), formatted)
        drafts = zip(tasks, _split(all_drafts, [number] * len(tasks)), strict=True)
        return tuple(draft._replace(inputs=_first(draft.inputs, self._candidates(task))) for task, draft in drafts)

    def _drawn(self, key: Key, number: int, level: Array) -> tuple[Program, Array]:
        """Programs, and which of them are complete."""
        if self.pool is not None:
            pool = as_int32(self.pool)
            short = (pool.lines[:, :, 0] > 0).sum(-1) <= level
            index = jax.random.randint(key, (number,), 0, short.sum())
            return jax.tree.map(lambda x: x[index], pool), jnp.ones(number, bool)
        level_key, program_key = jax.random.split(key)
        # Few programs end early by themselves: `end` is one among many tokens that may follow.
        levels = jax.random.randint(level_key, (number,), 1, level + 1)
        length = longest_program(self.max_lines) + self._inputs * VALUE_TOKENS
        state, _ = jax.vmap(lambda k, n: sample_tokens(k, expect_proposal(n, self._signatures), length))(
            jax.random.split(program_key, number), levels
        )
        return state.program, succeeded(state)

    def verify(self, tasks: Sequence[int], drafts: Sequence[Draft], step: Array) -> tuple[Proposals, ...]:
        """The gates of `azjax.reasoning.verification`, for each program on each of its inputs."""
        # All programs on all inputs are executed together, for the interpreter takes long to compile.
        numbers = [len(draft.formatted) for draft in drafts]
        rows = [_with_inputs(draft.program, draft.inputs) for draft in drafts]
        verdict = verify(*_joined(rows), step * 2)  # two runs a call
        verdicts = _split(verdict, [len(program.signature) for program, _ in rows])
        examined = self._examined(_joined([draft.program for draft in drafts]))
        return tuple(
            self._proposals(task, draft, jax.tree.map(lambda x, n=n: x.reshape(n, -1, *x.shape[1:]), one), *each)
            for task, draft, n, one, each in zip(
                tasks, drafts, numbers, verdicts, _split(examined, numbers), strict=True
            )
        )

    def _proposals(
        self, task: int, draft: Draft, verdict: Verdict, informative: Array, admissible: Array, meaning: Array
    ) -> Proposals:
        """The first inputs of each draft on which its program has an output; verdicts `[B, C]`."""
        order = jnp.argsort(~verdict.accepted, axis=1, stable=True)[:, : self._examples(task)]
        accepted, inputs, outputs = jax.tree.map(
            lambda x: jax.vmap(lambda row, chosen: row[chosen])(x, order),
            (verdict.accepted, draft.inputs, verdict.output),
        )
        written = jnp.arange(self._candidates(task)) < draft.required[:, None]
        admissible &= draft.formatted
        passed = accepted.all(-1) & (verdict.accepted | ~written).all(-1) & informative & admissible
        item = Triplet(draft.program, inputs, outputs)
        return Proposals(item, draft.formatted, admissible, passed, meaning, examine(draft.program).length)

    def remember(
        self, memory: tuple[TripletBuffer, ...], task: int, proposals: Proposals, step: Array
    ) -> tuple[tuple[TripletBuffer, ...], Array]:
        """Pushes to the task's buffer."""
        buffer, added = push(
            memory[task], proposals.item, proposals.meaning, proposals.accepted, step, per_class=self.per_class
        )
        return (*memory[:task], buffer, *memory[task + 1 :]), added

    def recall(self, key: Key, memory: tuple[TripletBuffer, ...], task: int, number: int) -> Triplet:
        """The newest triplets, topped up; with ``recency`` drawn as references are."""
        return (sample_recent if self.recency else sample_newest)(key, memory[task], number)

    def pose(self, task: int, item: Triplet, level: Array) -> tuple[Array, GrammarState]:
        """Prompts of `solver_prompt`."""
        state = jax.vmap(lambda t: expect_answer(TASKS[task], t, max_lines=level))(item)
        widths = {"inputs": self._inputs, "lines": self.max_lines}
        return solver_prompt(TASKS[task], item, shown=self.shown, **widths), state

    def check(self, task: int, item: Triplet, state: GrammarState) -> tuple[Array, Array]:
        """Verdicts of `judge`."""
        return judge(TASKS[task], item, state, shown=self.shown)

    def solution(self, task: int, item: Triplet) -> Array:
        """The first example's output, its input, or the program."""
        if TASKS[task] == "induction":
            return program_tokens(item.program)[:, 1 : longest_program(self.max_lines)]
        if TASKS[task] == "deduction":
            return value_tokens(_example(item.outputs))
        tokens = value_tokens(_example(item.inputs))
        return pack_segments([tokens[:, n] for n in range(self._inputs)], self._inputs * VALUE_TOKENS)

    def relabel(self, task: int, item: Triplet, state: GrammarState) -> tuple[Triplet, Array]:
        """Abduction: the output that the input found gives. Induction: the outputs of the program found."""
        formatted = succeeded(state)
        if TASKS[task] == "deduction":
            return item, jnp.zeros_like(formatted)
        if TASKS[task] == "abduction":
            output, valid = execute(item.program, _example(state.inputs))
            outputs = jax.tree.map(lambda x: x[:, None], output)
            return Triplet(item.program, state.inputs, outputs), formatted & valid
        outputs, valid = execute(_for_each(state.program), item.inputs)
        informative, admissible, _ = self._examined(state.program)
        return Triplet(state.program, item.inputs, outputs), formatted & valid.all(-1) & informative & admissible

    def executions(self, task: int, *, proposals: int, answers: int, relabelled: int) -> int:
        """Runs of a program on an input: two for each input of a proposal, and those on probes."""
        examples = self._examples(task)
        checked = {"deduction": 0, "abduction": 1, "induction": examples - self.shown}[TASKS[task]]
        again = {"deduction": 0, "abduction": 1, "induction": examples + PROBES}[TASKS[task]]
        return proposals * (2 * self._candidates(task) + PROBES) + answers * checked + relabelled * again

    @property
    def _inputs(self) -> int:
        """The most inputs that a program has."""
        return 2 if self.two_inputs else 1

    @property
    def _signatures(self) -> int:
        """The first so many may be proposed: the very first is a single list."""
        return len(SIGNATURES) if self.two_inputs else 1

    def _sample(self, key: Key, buffer: TripletBuffer, number: int) -> Triplet:
        return (sample_recent if self.recency else sample_uniform)(key, buffer, number)

    def _examples(self, task: int) -> int:
        return self.examples if TASKS[task] == "induction" else 1

    def _candidates(self, task: int) -> int:
        """Inputs that a draft comes with: many programs fail on many inputs."""
        return _SPARE * self._examples(task)

    def _examined(self, program: Program) -> tuple[Array, Array, Array]:
        """Which programs are worth learning from, whatever their inputs; which are not held out; and their meanings."""
        meaning = probe(program)
        informative = meaning.informative if self.novelty else jnp.ones_like(meaning.informative)
        free = jnp.ones_like(informative)
        if self.held_out is not None:
            free = ~same_hash(meaning.hash, jnp.asarray(self.held_out, jnp.uint32)).any(-1)
        return informative, free, meaning.hash


def _nothing(number: int) -> Triplet:
    """Triplets that nothing reads."""
    return jax.tree.map(lambda x: jnp.zeros((number, *x.shape[1:]), jnp.int32), init_buffer(1).triplets)  # type: ignore[no-any-return]


def _example(values: Value) -> Value:
    return jax.tree.map(lambda x: x[:, 0], values)  # type: ignore[no-any-return]


def _first(inputs: Value, number: int) -> Value:
    return jax.tree.map(lambda x: x[:, :number], inputs)  # type: ignore[no-any-return]


def _joined(parts: Sequence[T]) -> T:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)  # type: ignore[no-any-return]


def _split(tree: T, numbers: Sequence[int]) -> list[T]:
    """The inverse of joining parts of such lengths."""
    ends = np.cumsum(numbers).tolist()
    parts = zip([0, *ends], ends, strict=False)
    return [jax.tree.map(lambda x, a=a, b=b: x[a:b], tree) for a, b in parts]


def _with_inputs(program: Program, inputs: Value) -> tuple[Program, Value]:
    """Programs `[B]`, each once for each of its inputs `[B, C, ...]`: `[B * C]` both."""
    candidates = inputs.kind.shape[1]
    flat: Value = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
    return jax.tree.map(lambda x: jnp.repeat(x, candidates, axis=0), program), flat


def _for_each(program: Program) -> Program:
    return jax.tree.map(lambda x: x[:, None], program)  # type: ignore[no-any-return]
