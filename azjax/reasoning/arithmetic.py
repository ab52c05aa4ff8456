"""A second, tiny domain: chains of modular arithmetic.

An expression takes a number x through 1 to 3 steps `+ c`, `- c` or `* c` modulo 11. Two tasks: `evaluate` (expression
and x are given, the result is asked) and `invert` (expression and result are given, any x that leads there is asked).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp

from azjax.config import require
from azjax.reasoning.domain import Proposals
from azjax.reasoning.hashing import hash_rows, new_rows
from azjax.rings import write_ring
from azjax.types import Array, Key

__all__ = ["ArithmeticDomain", "Expression", "evaluate"]

MODULUS: Final = 11
STEPS: Final = 3
_OPERATIONS: Final = 3
PAD, PROPOSE, SOLVE, EVALUATE, INVERT, ANSWER, END, FIRST_OPERATION = range(8)
FIRST_NUMBER: Final = FIRST_OPERATION + _OPERATIONS

OPERATION, CONSTANT, NUMBER, DONE = range(4)
"""What the grammar expects next: a step or `end`, its constant, x or the answer, nothing."""


class Expression(NamedTuple):
    """Expressions with one example each; steps that do not exist are zeros behind those that do."""

    operations: Array  # int32 [..., STEPS] 1 to 3 for + - *, 0 for none
    constants: Array  # int32 [..., STEPS]
    x: Array  # int32 [...]
    result: Array  # int32 [...]


class Written(NamedTuple):
    """The grammar's state: where a sequence stands, and what it says so far."""

    section: Array  # int32 []
    operations: Array  # int32 [STEPS]
    constants: Array  # int32 [STEPS]
    number: Array  # int32 [] x of a proposal, or the answer
    step: Array  # int32 [] steps written
    level: Array  # int32 [] steps allowed
    failed: Array  # bool []


class Memory(NamedTuple):
    """The newest expressions of a task."""

    items: Expression  # [C]
    key: Array  # uint32 [C, 2]
    size: Array  # int32 []
    next: Array  # int32 []


def evaluate(expression: Expression, x: Array) -> Array:
    """What expressions `[...]` make of numbers that broadcast with them."""
    for n in range(STEPS):
        op, c = expression.operations[..., n], expression.constants[..., n]
        x = jnp.select([op == 1, op == 2, op == 3], [x + c, x - c, x * c], x) % MODULUS
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class ArithmeticDomain:
    """Modular arithmetic as a domain."""

    references: int = 1
    """Earlier expressions that a proposer sees."""
    capacity: int = 256
    """Expressions that the memory of each task holds."""

    tasks = ("evaluate", "invert")
    levels = STEPS
    vocabulary = FIRST_NUMBER + MODULUS

    def __post_init__(self) -> None:
        """Raises ``ConfigError`` for numbers that make no sense."""
        require(self.references >= 0, f"references is {self.references}; it can't be negative")
        require(self.capacity >= 1, f"capacity is {self.capacity}; a memory holds at least 1 expression")

    def proposal_tokens(self, task: int) -> int:
        """Steps, `end` and x."""
        return 2 * STEPS + 2

    def answer_tokens(self, task: int) -> int:
        """A number."""
        return 1

    def allowed(self, state: Written) -> Array:
        """Which tokens may follow."""
        section = jnp.where(state.failed, DONE, state.section)
        token = jnp.arange(self.vocabulary)
        is_number = token >= FIRST_NUMBER
        is_operation = (token >= FIRST_OPERATION) & ~is_number & (state.step < state.level)
        return jnp.select(
            [section == OPERATION, section == DONE],
            [is_operation | (token == END) & (state.step > 0), token == PAD],
            is_number,
        )

    def advance(self, state: Written, token: Array) -> Written:
        """The state after one more token."""
        legal = self.allowed(state)[token]
        section, here = state.section, jnp.arange(STEPS) == state.step
        ends = token == END
        following = jnp.select(
            [section == OPERATION, section == CONSTANT], [jnp.where(ends, NUMBER, CONSTANT), OPERATION], DONE
        )
        after = Written(
            following.astype(jnp.int32),
            jnp.where(here & (section == OPERATION) & ~ends, token - FIRST_OPERATION + 1, state.operations),
            jnp.where(here & (section == CONSTANT), token - FIRST_NUMBER, state.constants),
            jnp.where(section == NUMBER, token - FIRST_NUMBER, state.number),
            state.step + (section == CONSTANT),
            state.level,
            state.failed,
        )
        after = jax.tree.map(lambda new, old: jnp.where(legal, new, old), after, state)
        return after._replace(failed=state.failed | ~legal)

    def init(self) -> tuple[Memory, ...]:
        """Memories that hold the empty expression."""
        zeros = jnp.zeros(self.capacity, jnp.int32)
        steps = jnp.zeros((self.capacity, STEPS), jnp.int32)
        items = Expression(steps, steps, zeros, zeros)
        one = jnp.ones((), jnp.int32)
        return (Memory(items, _keys(items), one, one % self.capacity),) * len(self.tasks)

    def invite(
        self, key: Key, memory: tuple[Memory, ...], task: int, number: int, level: Array
    ) -> tuple[Array, Written, tuple[()]]:
        """Prompts with earlier expressions and their results."""
        drawn = _take(memory[task], jax.random.randint(key, (number * self.references,), 0, memory[task].size))
        shown = jnp.concatenate([_steps(drawn), _number(drawn.x), _number(drawn.result)], axis=1)
        prompt = _prompt(PROPOSE, task, shown.reshape(number, self.references * shown.shape[1]))
        return prompt, self._expect(number, OPERATION, level), ()

    def read(self, key: Key, task: int, context: tuple[()], state: Written) -> Written:
        """The grammar's state is all that was said."""
        return state

    def draw(self, key: Key, tasks: Sequence[int], number: int, level: Array) -> tuple[Written, ...]:
        """Each token uniform among those allowed, in chains of lengths up to one that is uniform."""
        level_key, token_key = jax.random.split(key)
        # `end` is one among four tokens that may follow: without a bound of their own few chains would be short.
        levels = jax.random.randint(level_key, (len(tasks) * number,), 1, level + 1)

        def step(state: Written, key: Key) -> tuple[Written, None]:
            legal = jax.vmap(self.allowed)(state)
            token = jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf)).astype(jnp.int32)
            return jax.vmap(self.advance)(state, token), None

        start = self._expect(len(tasks) * number, OPERATION, levels)
        written = jax.lax.scan(step, start, jax.random.split(token_key, self.proposal_tokens(0)))[0]
        return tuple(jax.tree.map(lambda x, n=n: x[n * number : (n + 1) * number], written) for n in range(len(tasks)))

    def verify(self, tasks: Sequence[int], drafts: Sequence[Written], step: Array) -> tuple[Proposals, ...]:
        """Accepts complete expressions that are neither constant nor the identity."""
        return tuple(map(self._verified, drafts))

    def _verified(self, drafts: Written) -> Proposals:
        formatted = (drafts.section == DONE) & ~drafts.failed
        expression = Expression(drafts.operations, drafts.constants, drafts.number, drafts.number)
        x = jnp.arange(MODULUS)
        table = evaluate(jax.tree.map(lambda leaf: leaf[:, None], expression), x)
        informative = (table != table[:, :1]).any(-1) & (table != x).any(-1)
        item = expression._replace(result=evaluate(expression, expression.x))
        return Proposals(item, formatted, formatted, formatted & informative, hash_rows(table), drafts.step)

    def remember(
        self, memory: tuple[Memory, ...], task: int, proposals: Proposals, step: Array
    ) -> tuple[tuple[Memory, ...], Array]:
        """Adds new expressions over the oldest; the batch may not exceed the capacity."""
        old, key = memory[task], _keys(proposals.item)
        number = len(key)
        require(number <= self.capacity, f"{number} expressions do not fit in a memory of {self.capacity}")
        added = new_rows(key, old.key, old.size, proposals.accepted)
        (items, keys), size, position = write_ring(
            (old.items, old.key), (proposals.item, key), added, size=old.size, position=old.next
        )
        new = Memory(items, keys, size, position)
        return (*memory[:task], new, *memory[task + 1 :]), added

    def recall(self, key: Key, memory: tuple[Memory, ...], task: int, number: int) -> Expression:
        """Expressions drawn uniformly."""
        return _take(memory[task], jax.random.randint(key, (number,), 0, memory[task].size))

    def pose(self, task: int, item: Expression, level: Array) -> tuple[Array, Written]:
        """The expression, and x or the result."""
        given = item.x if self.tasks[task] == "evaluate" else item.result
        prompt = _prompt(SOLVE, task, jnp.concatenate([_steps(item), _number(given)], axis=1))
        return prompt, self._expect(len(prompt), NUMBER, level)

    def check(self, task: int, item: Expression, state: Written) -> tuple[Array, Array]:
        """Whether the number is the result, or leads to it."""
        formatted = (state.section == DONE) & ~state.failed
        reached = state.number if self.tasks[task] == "evaluate" else evaluate(item, state.number)
        return formatted, formatted & (reached == item.result)

    def solution(self, task: int, item: Expression) -> Array:
        """The result, or x."""
        return _number(item.result if self.tasks[task] == "evaluate" else item.x)

    def executions(self, task: int, *, proposals: int, answers: int, relabelled: int) -> int:
        """A proposal is evaluated on every number and once more; an answer only if it is an x."""
        again = 0 if self.tasks[task] == "evaluate" else answers + relabelled
        return proposals * (MODULUS + 1) + again

    def relabel(self, task: int, item: Expression, state: Written) -> tuple[Expression, Array]:
        """A wrong x is a right one for the result that it does lead to; a wrong result is right for nothing."""
        formatted = (state.section == DONE) & ~state.failed
        if self.tasks[task] == "evaluate":
            return item, jnp.zeros_like(formatted)
        return item._replace(x=state.number, result=evaluate(item, state.number)), formatted

    def _expect(self, number: int, section: int, level: Array) -> Written:  # level [] or [number]
        zero, steps = jnp.zeros(number, jnp.int32), jnp.zeros((number, STEPS), jnp.int32)
        return Written(zero + section, steps, steps, zero, zero, zero + level, jnp.zeros(number, bool))


def _prompt(role: int, task: int, body: Array) -> Array:
    """Role, task, what is given, `answer`; `PAD` on the left is not needed inside, for nothing attends to it."""
    head = jnp.broadcast_to(jnp.array([role, EVALUATE + task]), (len(body), 2))
    return jnp.concatenate([head, body, jnp.full((len(body), 1), ANSWER)], axis=1).astype(jnp.int32)


def _steps(item: Expression) -> Array:
    """Steps as tokens, int32 `[B, 2 * STEPS]`."""
    present = item.operations > 0
    pairs = jnp.stack([FIRST_OPERATION + item.operations - 1, FIRST_NUMBER + item.constants], axis=-1)
    return jnp.where(present[..., None], pairs, PAD).reshape(len(present), 2 * STEPS)


def _number(x: Array) -> Array:
    return (FIRST_NUMBER + x)[:, None]


def _take(memory: Memory, index: Array) -> Expression:
    return jax.tree.map(lambda rows: rows[index], memory.items)  # type: ignore[no-any-return]


def _keys(items: Expression) -> Array:
    return hash_rows(jnp.concatenate([items.operations, items.constants, items.x[:, None]], axis=1))
