"""Prompts, answers under the mask, and what they are worth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.config import ConfigError
from azjax.reasoning import (
    TASKS,
    VOCABULARY,
    Triplet,
    advance,
    allowed,
    detokenize,
    execute,
    expect_answer,
    expect_task,
    judge,
    parse_program,
    prompt_tokens,
    proposer_prompt,
    proposer_reward,
    sample_tokens,
    solver_prompt,
    solver_reward,
    succeeded,
    zero_triplet,
)
from azjax.reasoning.tasks import check_abduction, check_deduction, check_induction, hidden_matches
from azjax.reasoning.text import stack_values
from azjax.reasoning.tokens import PAD

step = jax.jit(advance)
run = jax.jit(execute)
judged = jax.jit(judge, static_argnums=0)
to_solve = jax.jit(solver_prompt, static_argnums=0, static_argnames="shown")
to_propose = jax.jit(proposer_prompt, static_argnums=0)


def write(state, words):
    """The state after some words; one compiled step serves all lengths."""
    for word in words.split():
        state = step(state, jnp.int32(VOCABULARY.index(word)))
    return state


def triplet(text, *examples):
    """A program and what it gives for lists of inputs."""
    program = jax.tree.map(jnp.asarray, parse_program(text))
    inputs = jax.tree.map(lambda *x: jnp.stack(x), *(stack_values([*e, *[None] * (2 - len(e))]) for e in examples))
    outputs, _ = run(jax.tree.map(lambda x: x[None], program), inputs)
    return Triplet(program, inputs, outputs)


SUM = triplet("x0 = INPUT list | x2 = Map (*2) x0 | x3 = Sum x2", [[1, 2]])
EVEN = triplet("x0 = INPUT list | x2 = Filter (even) x0", *([[n, n + 1, 2 * n]] for n in range(10)))
TWO = triplet("x0 = INPUT list | x1 = INPUT int | x2 = Take x1 x0", *([[3, 1, 2], n] for n in range(10)))


def answered(task, given, words):
    return tuple(bool(x) for x in judged(task, given, write(expect_answer(task, given), words)))


def test_prompts_by_hand():
    assert detokenize(to_solve("deduction", SUM)) == (
        "solve deduction program <list> Map (*2) x0 Sum x2 end input [ 1 2 ] answer"
    )
    assert detokenize(to_solve("abduction", SUM)) == (
        "solve abduction program <list> Map (*2) x0 Sum x2 end output 6 answer"
    )
    assert detokenize(to_solve("induction", TWO, shown=2)) == (
        "solve induction <list,int> input [ 3 1 2 ] 0 output [ ] input [ 3 1 2 ] 1 output [ 3 ] answer"
    )
    references = jax.tree.map(lambda *x: jnp.stack(x), SUM, zero_triplet())
    assert detokenize(to_propose("abduction", references)) == (
        "propose abduction reference program <list> Map (*2) x0 Sum x2 end input [ 1 2 ] output 6"
        " reference program <list> end input [ 1 2 3 ] output [ 1 2 3 ] answer"
    )
    assert detokenize(to_propose("induction", jax.tree.map(lambda x: x[:1], references))) == (
        "propose induction program <list> Map (*2) x0 Sum x2 end answer"
    )
    none = jax.tree.map(lambda x: x[:0], references)
    assert detokenize(to_propose("deduction", none)) == "propose deduction answer"


def test_prompts_show_nothing_that_is_hidden():
    """The hidden examples change, the prompt does not; nor does a deduction prompt know its output."""
    other = EVEN._replace(
        inputs=EVEN.inputs._replace(items=EVEN.inputs.items.at[5:].set(7)),
        outputs=EVEN.outputs._replace(items=EVEN.outputs.items.at[5:].set(7)),
        program=SUM.program,
    )
    np.testing.assert_array_equal(to_solve("induction", EVEN), to_solve("induction", other))
    other = SUM._replace(outputs=stack_values([9]))
    np.testing.assert_array_equal(to_solve("deduction", SUM), to_solve("deduction", other))
    other = SUM._replace(inputs=zero_triplet().inputs)
    np.testing.assert_array_equal(to_solve("abduction", SUM), to_solve("abduction", other))


@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_their_width_and_end_at_the_right(task):
    longest = triplet(
        "x0 = INPUT list | x1 = INPUT list | x2 = ZipWith (+) x0 x1 | x3 = ZipWith (max) x0 x2"
        " | x4 = ZipWith (min) x0 x3 | x5 = ZipWith (min) x0 x4",
        *([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]] for _ in range(10)),
    )
    prompt = to_solve(task, longest)
    assert prompt.shape == (prompt_tokens("solve", task, 5),)
    # Nothing is longer, but for the signature that stands in front of an induction task's examples.
    assert (prompt == PAD).sum() == 0
    batch = jax.tree.map(lambda *x: jnp.stack(x), longest, EVEN)
    both = to_solve(task, batch)
    assert (both[:, -1] == VOCABULARY.index("answer")).all()
    np.testing.assert_array_equal(both[0], prompt)
    np.testing.assert_array_equal(both[1], jax.jit(jax.vmap(lambda t: solver_prompt(task, t)))(batch)[1])
    number = 1 if task == "induction" else 6
    references = jax.tree.map(lambda x: jnp.stack([x] * number), longest)
    prompt = to_propose(task, references)
    assert prompt.shape == (prompt_tokens("propose", task, number),)
    assert (prompt == PAD).sum() == 0


@pytest.mark.parametrize(
    ("task", "given", "words", "expected"),
    [
        ("deduction", SUM, "6", (True, True)),
        ("deduction", SUM, "5", (True, False)),
        ("deduction", SUM, "[ 6 ]", (False, False)),
        ("deduction", SUM, "6 6", (False, False)),
        ("deduction", EVEN, "[ 0 0 ]", (True, True)),
        ("deduction", EVEN, "[ 0 ]", (True, False)),
        ("deduction", EVEN, "[ 0 0", (False, False)),
        ("abduction", SUM, "[ 1 2 ]", (True, True)),
        ("abduction", SUM, "[ 3 ]", (True, True)),  # another input than the proposer's
        ("abduction", SUM, "[ -1 4 0 ]", (True, True)),
        ("abduction", SUM, "[ 6 ]", (True, False)),
        ("abduction", SUM, "[ 50 -47 ]", (True, False)),  # out of bounds on the way
        ("abduction", SUM, "6", (False, False)),
        ("abduction", TWO, "[ ] 5", (True, True)),
        ("induction", EVEN, "Filter (even) x0 end", (True, True)),
        ("induction", EVEN, "Sort x0 Filter (even) x0 end", (False, False)),  # dead code: not of the language
        ("induction", EVEN, "Reverse x0 Reverse x2 Filter (even) x3 end", (True, True)),
        ("induction", EVEN, "Filter (odd) x0 end", (True, False)),
        ("induction", EVEN, "Filter (even) x0", (False, False)),
        ("induction", EVEN, "Random x0 end", (False, False)),
        ("induction", TWO, "Take x1 x0 end", (True, True)),
        ("induction", TWO, "Drop x1 x0 end", (True, False)),
    ],
)  # fmt: skip
def test_answers_by_hand(task, given, words, expected):
    assert answered(task, given, words) == expected


def test_induction_is_judged_on_the_hidden_examples_and_on_all_of_them():
    """Right for the first five is not enough: from a table of those one learns nothing about the others."""
    good = parse_program("x0 = INPUT list | x2 = Filter (even) x0")
    broken = EVEN._replace(outputs=EVEN.outputs._replace(items=EVEN.outputs.items.at[7, 0].set(49)))
    assert bool(check_induction(EVEN, good))
    assert not check_induction(broken, good)
    assert hidden_matches(broken, good).tolist() == [True, True, False, True, True]
    shown_wrong = EVEN._replace(outputs=EVEN.outputs._replace(items=EVEN.outputs.items.at[2, 0].set(49)))
    assert bool(check_induction(shown_wrong, good))
    with pytest.raises(ConfigError, match="at least one must stay hidden"):
        check_induction(EVEN, good, shown=10)


def test_an_answer_takes_no_part_in_its_judgement():
    """In the reference an answer that is a program may return an object that is equal to everything.

    Here a program that reads the run counter, that fails, or that is not well-formed is wrong even where it would hit.
    """
    constant = triplet("x0 = INPUT list | x2 = Random x0", *([[n]] for n in range(10)))
    assert (constant.outputs.kind == 1).all()
    assert not check_induction(constant, constant.program)
    nothing = EVEN._replace(outputs=jax.tree.map(jnp.zeros_like, EVEN.outputs))
    failing = parse_program("x0 = INPUT list | x2 = Overflow x0")
    assert not hidden_matches(nothing, failing).any()
    empty = jax.tree.map(lambda x: jnp.zeros_like(x[0]), nothing.outputs)
    assert not check_deduction(nothing, empty)
    fails = triplet("x0 = INPUT list | x2 = Head x0", [[]])
    assert int(fails.outputs.kind[0]) == 0
    assert not check_abduction(fails, stack_values([[], None]))


def test_judging_batches_and_singles_agree():
    batch = jax.tree.map(lambda *x: jnp.stack(x), EVEN, TWO)
    for task in TASKS:

        def attempt(key, given, task=task):
            return sample_tokens(key, expect_answer(task, given), 24)[0]

        states = jax.jit(jax.vmap(attempt))(jax.random.split(jax.random.key(0), 2), batch)
        formatted, correct = judged(task, batch, states)
        assert bool(formatted.all())
        for n in range(2):
            one = jax.tree.map(lambda x, n=n: x[n], (batch, states))
            assert [bool(x) for x in judged(task, *one)] == [bool(formatted[n]), bool(correct[n])]


def test_what_proposers_may_write():
    start = expect_task("induction", TWO, examples=2)
    assert {VOCABULARY[n] for n in np.flatnonzero(allowed(start))} == {"["}
    assert bool(succeeded(write(start, "[ 1 ] 2 [ ] -3")))
    for task in ("deduction", "abduction"):
        start = expect_task(task, TWO, max_lines=1)
        assert {VOCABULARY[n] for n in np.flatnonzero(allowed(start))} == {"<list>", "<list,list>", "<list,int>"}


def test_rewards_by_hand():
    formatted, correct = jnp.array([True, True, False]), jnp.array([True, False, False])
    assert solver_reward(formatted, correct).tolist() == [1.0, -0.5, -1.0]
    assert solver_reward(formatted, correct, wrong=0.0, malformed=0.0).tolist() == [1.0, 0.0, 0.0]
    assert proposer_reward(jnp.array([True, False]), jnp.array([0.75, 0.75])).tolist() == [0.75, -1.0]


def test_a_share_of_attempts_has_a_fixed_denominator():
    """In the reference an attempt whose check fails to run is dropped from the mean, so that the share is too high.

    Every check here is true or false, also for an answer that fails: four attempts, one right.
    """
    correct = [answered("abduction", SUM, words)[1] for words in ("[ 3 ]", "[ 50 50 50 ]", "[", "6")]
    assert correct == [True, False, False, False]
