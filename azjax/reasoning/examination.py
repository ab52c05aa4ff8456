"""What a solver can do: pass@k on questions that it could not have trained on.

Questions are programs with fresh inputs: every meaning of one line, held-out meanings of two and three lines, and, as
extrapolation, programs with four lines and with two inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import require, require_number
from azjax.reasoning.buffers import Triplet
from azjax.reasoning.decoding import decode
from azjax.reasoning.domain import Domain
from azjax.reasoning.hashing import same_hash
from azjax.reasoning.inputs import random_inputs
from azjax.reasoning.language import MAX_LINES, Program, as_int32
from azjax.reasoning.lists import Draft, ListDomain
from azjax.reasoning.model import TokenPolicy
from azjax.reasoning.passk import clopper_pearson, pass_at_k
from azjax.reasoning.splits import LARGEST_SPLIT, Split
from azjax.reasoning.tasks import TASKS
from azjax.reasoning.verification import probe
from azjax.reasoning.wellformed import examine
from azjax.types import Array, Key, Params

__all__ = [
    "EXTRAPOLATION",
    "Marks",
    "Questions",
    "drawn_questions",
    "extrapolation_questions",
    "make_examiner",
    "statistics",
    "test_questions",
    "wide",
]

EXTRAPOLATION: Final = ("4 lines", "2 inputs")
_SPARE: Final = 4


class Questions(NamedTuple):
    """Tasks of each type, with what they belong to."""

    items: tuple[Any, ...]  # by task type, [N]
    group: Array  # int32 [N] index into names
    names: tuple[str, ...]


class Marks(NamedTuple):
    """Answers to `N` questions of one task type."""

    greedy: Array  # bool [N] whether the most probable answer is right
    sampled: Array  # bool [N, samples] whether each sampled one is


def wide(domain: ListDomain, *, lines: int, two_inputs: bool = False) -> ListDomain:
    """The domain with prompts for longer programs, and with nothing held out: as it is for a test."""
    return dataclasses.replace(domain, max_lines=lines, two_inputs=two_inputs, held_out=None, novelty=False)


def test_questions(domain: ListDomain, split: Split, key: Key, *, number: int) -> Questions:
    """Questions on the programs of a split's test set, with fresh inputs.

    Args:
      domain: for how many examples a question has; its lines say which lengths are asked.
      split: what is held out.
      key: consumed: chooses programs, in turn where there are too few, and draws inputs.
      number: questions of each length and task type.
    """
    lengths = range(1, min(domain.max_lines, len(split.programs)) + 1)
    order = np.random.default_rng(0)
    programs = []
    for lines in lengths:
        available = split.test_programs(lines)
        require(len(available.signature) > 0, f"no program of {lines} lines is held out; hold out a larger share")
        # Some programs have no output on most inputs: spares take the place of those that found none.
        chosen = np.resize(order.permutation(len(available.signature)), _SPARE * number)
        programs.append(jax.tree.map(lambda x, chosen=chosen: x[chosen], available))
    names = tuple(f"{n} line{'s' * (n > 1)}" for n in lengths)
    return _questions(domain, programs, names, key, number)


def extrapolation_questions(domain: ListDomain, split: Split, key: Key, *, number: int) -> Questions:
    """Questions beyond what is trained: programs with four lines and one list, and with two inputs and 1 to 3 lines.

    They are drawn from the grammar; no program with four lines has a meaning that fewer lines can express, as far as
    the split knows.

    Args:
      domain: for how many examples a question has.
      split: all meanings of fewer lines.
      key: consumed.
      number: questions of each kind and task type.
    """
    four_key, two_key, key = jax.random.split(key, 3)
    known = jnp.asarray(np.concatenate(split.meanings))
    four = _drawn(wide(domain, lines=MAX_LINES), four_key, MAX_LINES, number)
    two = _drawn(wide(domain, lines=LARGEST_SPLIT, two_inputs=True), two_key, LARGEST_SPLIT, number)
    wanted = (
        (examine(four).length == MAX_LINES) & ~same_hash(probe(four).hash, known).any(-1),
        two.signature > 0,
    )
    programs = [
        jax.tree.map(lambda x, ok=ok: x[np.resize(np.flatnonzero(ok), _SPARE * number)], p)
        for p, ok in zip((four, two), map(np.asarray, wanted), strict=True)
    ]
    return _questions(wide(domain, lines=MAX_LINES, two_inputs=True), programs, EXTRAPOLATION, key, number)


def drawn_questions(domain: Domain, key: Key, *, number: int) -> Questions:
    """Questions of any domain: tasks drawn from its grammar, so many of each level and type.

    Args:
      domain: the world.
      key: consumed.
      number: questions of each level and type.
    """
    levels = range(1, domain.levels + 1)
    items = []
    for task, task_key in enumerate(jax.random.split(key, len(domain.tasks))):

        def posed(key: Key, task: int = task) -> Any:
            drafts = domain.draw(key, [task], 4 * _SPARE * number, jnp.int32(domain.levels))
            return domain.verify([task], drafts, jnp.zeros((), jnp.int32))[0]

        proposals = jax.jit(posed)(task_key)
        groups = []
        for level in levels:
            chosen = np.flatnonzero(np.asarray(proposals.accepted & (proposals.level == level)))
            require(len(chosen) > 0, f"no task of level {level} was drawn; ask for more questions")
            groups.append(jax.tree.map(lambda x, c=chosen: x[np.resize(c, number)], proposals.item))
        items.append(jax.tree.map(lambda *x: jnp.concatenate(x), *groups))
    return Questions(tuple(items), jnp.repeat(jnp.arange(len(levels)), number), tuple(f"level {n}" for n in levels))


def _drawn(domain: ListDomain, key: Key, lines: int, number: int) -> Program:
    """Programs that say something, of up to so many lines."""

    def draw(key: Key) -> tuple[Program, Array]:
        (draft,) = domain.draw(key, [0], 16 * _SPARE * number, jnp.int32(lines))
        return draft.program, probe(draft.program).informative

    program, informative = jax.jit(draw)(key)
    return jax.tree.map(lambda x: x[np.asarray(informative)], program)  # type: ignore[no-any-return]


def _questions(
    domain: ListDomain, programs: Sequence[Program], names: tuple[str, ...], key: Key, number: int
) -> Questions:
    """For each group, the first so many programs that have an output on enough of their inputs: for all task types."""
    judge = wide(domain, lines=MAX_LINES, two_inputs=True)
    posed = jax.jit(lambda k, p: _posed(judge, k, p))
    groups = []
    for group_key, program in zip(jax.random.split(key, len(programs)), programs, strict=True):
        item, good = posed(group_key, as_int32(program))
        chosen = np.flatnonzero(np.asarray(good))
        require(len(chosen) >= number, f"only {len(chosen)} of {number} questions can be asked; ask for fewer")
        groups.append(jax.tree.map(lambda x, chosen=chosen: x[chosen[:number]], item))
    several = jax.tree.map(lambda *x: jnp.concatenate(x), *groups)
    single = Triplet(several.program, *jax.tree.map(lambda x: x[:, :1], several[1:]))
    items = tuple(several if task == "induction" else single for task in TASKS)
    return Questions(items, jnp.repeat(jnp.arange(len(programs)), number), names)


def _posed(domain: ListDomain, key: Key, program: Program) -> tuple[Triplet, Array]:
    """Programs with inputs on which they have outputs, and for which as many as an induction task needs were found."""
    task = TASKS.index("induction")
    inputs = random_inputs(key, program.signature, 3 * domain.examples)
    number = len(program.signature)
    draft = Draft(program, inputs, jnp.zeros(number, jnp.int32), jnp.ones(number, bool))
    (proposals,) = domain.verify([task], [draft], jnp.zeros((), jnp.int32))
    return proposals.item, proposals.accepted


def make_examiner(
    domain: Domain, policy: TokenPolicy, task: int, *, samples: int = 64, chunk: int = 16
) -> Callable[[Params, Key, Any, Array], Marks]:
    """The program that has a solver answer questions of a task type, once greedily and so many times by chance.

    Args:
      domain: as wide as the questions.
      policy: the solver.
      task: index of the type.
      samples: sampled answers to each question.
      chunk: questions that are answered at a time: memory grows with it.

    Returns:
      A pure function of the network's parameters, a key, questions `[N]` and the level, which bounds answers.

    Raises:
      ConfigError: for numbers below 1.
    """
    require_number("samples", samples, 1, 100_000)
    require_number("chunk", chunk, 1, 1_000_000)

    def answer(params: Params, key: Key, item: Any, level: Array) -> Array:
        """Bool `[chunk, 1 + samples]`: the most probable answer, then the sampled ones."""
        prompt, expected = domain.pose(task, item, level)
        copies = 1 + samples
        number = copies * len(prompt)
        greedy = jnp.arange(number) % copies == 0
        length = domain.answer_tokens(task)
        answers = decode(policy, params, domain, key, prompt, expected, length, copies=copies, greedy=greedy)
        asked = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), item)
        return domain.check(task, asked, answers.state)[1].reshape(-1, copies)

    def examine_all(params: Params, key: Key, items: Any, level: Array) -> Marks:
        number = len(jax.tree.leaves(items)[0])
        parts = -(-number // chunk)
        index = jnp.arange(parts * chunk) % number  # the last part is filled up with the first questions

        def one(part: tuple[Key, Array]) -> Array:
            return answer(params, part[0], jax.tree.map(lambda x: x[part[1]], items), level)

        right = jax.lax.map(one, (jax.random.split(key, parts), index.reshape(parts, chunk)))
        right = right.reshape(-1, 1 + samples)[:number]
        return Marks(right[:, 0], right[:, 1:])

    return examine_all


def statistics(marks: Marks, group: Array, names: Sequence[str], ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """pass@k of each group of questions.

    Args:
      marks: the answers, concrete.
      group: int `[N]`, which of the groups each question is in.
      names: of the groups.
      ks: each at most the number of samples.

    Returns:
      By name: ``questions``; ``greedy``, the share of right answers among the most probable ones; ``pass@k``, the mean
      of the unbiased estimates; and for each of them the ends of its exact 95 % interval, ``... low`` and ``... high``,
      over questions. That of pass@k counts the questions of whose first k answers one is right.
    """
    group_of = np.asarray(group)
    greedy, sampled = np.asarray(marks.greedy), np.asarray(marks.sampled)
    samples = sampled.shape[1]
    table = {}
    for n, name in enumerate(names):
        here = group_of == n
        number = int(here.sum())
        row: dict[str, Any] = {"questions": number, "greedy": float(greedy[here].mean())}
        row["greedy low"], row["greedy high"] = clopper_pearson(int(greedy[here].sum()), number)
        for k in ks:
            row[f"pass@{k}"] = float(pass_at_k(jnp.asarray(sampled[here].sum(1)), samples, k).mean())
            solved = int(sampled[here, :k].any(1).sum())
            row[f"pass@{k} low"], row[f"pass@{k} high"] = clopper_pearson(solved, number)
        table[name] = row
    return table
