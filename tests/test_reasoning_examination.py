"""Splits by meaning, pass@k, and what examinations ask."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from azjax.config import ConfigError
from azjax.reasoning.arithmetic import ArithmeticDomain
from azjax.reasoning.buffers import Triplet
from azjax.reasoning.examination import (
    Marks,
    drawn_questions,
    extrapolation_questions,
    make_examiner,
    statistics,
    test_questions,
    wide,
)
from azjax.reasoning.hashing import same_hash
from azjax.reasoning.interpreter import execute
from azjax.reasoning.language import as_int32, equal
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import TokenPolicy
from azjax.reasoning.passk import clopper_pearson, pass_at_k
from azjax.reasoning.search import Candidates, search_inputs, search_programs, solved_after
from azjax.reasoning.splits import make_split
from azjax.reasoning.text import parse_program, stack_values
from azjax.reasoning.verification import probe
from azjax.reasoning.wellformed import examine

test_questions.__test__ = False


@pytest.fixture(scope="module")
def split():
    return make_split(2)


@pytest.fixture(scope="module")
def lists(split):
    return ListDomain(
        references=1, examples=4, shown=2, capacity=64, two_inputs=False, max_lines=2, held_out=split.held_out
    )


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        answers = [n < correct for n in range(samples)]
        subsets = list(itertools.combinations(answers, k))
        expected = sum(map(any, subsets)) / len(subsets)
        assert float(pass_at_k(jnp.int32(correct), samples, k)) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="k is 7"):
        pass_at_k(jnp.int32(0), 6, 7)


@given(trials=st.integers(1, 400), data=st.data(), level=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_intervals_are_those_of_scipy(trials, data, level):
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(confidence_level=level, method="exact")
    np.testing.assert_allclose(clopper_pearson(successes, trials, level), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("numbers", "message"), [((1, 0), "trials"), ((3, 2), "successes"), ((1, 2, 1.0), "level is 1.0")]
)
def test_impossible_intervals_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        clopper_pearson(*numbers)


def test_the_split_holds_a_fifth_of_two_line_meanings_out_and_no_one_line_meaning(split):
    assert [len(m) for m in split.meanings] == [29, 491]
    assert not split.tested[0].any()
    assert 0.15 < split.tested[1].mean() < 0.25
    rows = {tuple(row) for m in split.meanings for row in m.tolist()}
    assert len(rows) == 29 + 491  # no meaning twice, and none of one line among those of two
    meaning = probe(jax.tree.map(jnp.asarray, split.test_programs(2)))
    np.testing.assert_array_equal(np.asarray(meaning.hash), split.held_out)
    again = make_split(2, share=0.0)
    assert len(again.held_out) == 0


def test_held_out_meanings_can_not_be_proposed(lists, split):
    open_domain = wide(lists, lines=2)
    drawn = jax.jit(lambda key: open_domain.draw(key, [0], 256, jnp.int32(2)))(jax.random.key(0))
    (gated,) = jax.jit(lambda d: lists.verify([0], d, jnp.int32(0)))(drawn)
    (ungated,) = jax.jit(lambda d: open_domain.verify([0], d, jnp.int32(0)))(drawn)
    held_out = np.asarray(same_hash(gated.meaning, jnp.asarray(split.held_out)).any(1))
    assert 10 < held_out.sum() < 200
    assert np.asarray(ungated.accepted)[held_out].any()
    assert not np.asarray(gated.accepted)[held_out].any()
    assert not np.asarray(gated.admissible)[held_out].any()  # not even a leaky gate lets them through
    assert np.asarray(gated.accepted)[~held_out].mean() > 0.5


def test_questions_are_what_they_are_called_and_their_solutions_right(lists, split):
    asked = test_questions(lists, split, jax.random.key(1), number=8)
    assert asked.names == ("1 line", "2 lines")
    assert asked.group.tolist() == [0] * 8 + [1] * 8
    lengths = [examine(item.program).length.tolist() for item in asked.items]
    assert lengths == [[1] * 8 + [2] * 8] * 3
    for item in asked.items:
        meaning = probe(item.program).hash
        assert same_hash(meaning[8:], jnp.asarray(split.held_out)).any(1).all()
        program = jax.tree.map(lambda x: x[:, None], item.program)
        output, valid = execute(program, item.inputs)
        assert (valid & equal(output, item.outputs)).all()
    assert asked.items[2].outputs.kind.shape == (16, 4)
    assert asked.items[0].outputs.kind.shape == (16, 1)


@pytest.mark.slow
def test_extrapolation_is_beyond_what_is_trained(lists, split):
    asked = extrapolation_questions(lists, split, jax.random.key(2), number=8)
    program = asked.items[0].program
    assert (np.asarray(examine(program).length)[:8] == 4).all()
    assert (np.asarray(program.signature)[:8] == 0).all()
    assert (np.asarray(program.signature)[8:] > 0).all()


def test_an_examiner_knows_right_from_wrong():
    domain = ArithmeticDomain(capacity=8)
    policy = TokenPolicy(domain.vocabulary, layers=1, width=16, heads=2)
    asked = drawn_questions(domain, jax.random.key(0), number=10)
    assert asked.names == ("level 1", "level 2", "level 3")
    params = policy.init(jax.random.key(1))
    examiner = jax.jit(make_examiner(domain, policy, 0, samples=40, chunk=7))  # 7 doesn't divide 30
    marks = examiner(params, jax.random.key(2), asked.items[0], jnp.int32(3))
    assert marks.greedy.shape == (30,)
    assert marks.sampled.shape == (30, 40)
    assert 0.05 < float(marks.sampled.mean()) < 0.14  # chance is 1 in 11
    # A network of zeros finds all numbers equally likely, and says the first, 0.
    zeros = jax.tree.map(jnp.zeros_like, params)
    greedy = examiner(zeros, jax.random.key(2), asked.items[0], jnp.int32(3)).greedy
    np.testing.assert_array_equal(np.asarray(greedy), np.asarray(asked.items[0].result) == 0)


def test_statistics_by_hand():
    marks = Marks(
        jnp.array([True, False, False, True]),
        jnp.array([[True, False], [False, False], [False, True], [True, True]]),
    )
    table = statistics(marks, jnp.array([0, 0, 1, 1]), ("a", "b"), (1, 2))
    assert table["a"]["questions"] == 2
    assert (table["a"]["greedy"], table["a"]["pass@1"], table["a"]["pass@2"]) == (0.5, 0.25, 0.5)
    assert (table["b"]["pass@1"], table["b"]["pass@2"]) == (0.75, 1.0)
    assert (table["b"]["pass@2 low"], table["b"]["pass@2 high"]) == pytest.approx(clopper_pearson(2, 2))
    assert table["a"]["pass@1 low"] == pytest.approx(clopper_pearson(1, 2)[0])  # the first answers: one of two is right


def test_a_search_stops_at_the_first_program_that_fits_and_is_judged_by_what_was_hidden():
    """Of the shown pair Head, Last and Minimum are right, of the hidden ones Minimum alone; Sum fits nothing."""
    texts = ["x0 = INPUT list | x2 = Sum x0", "x0 = INPUT list | x2 = Head x0", "x0 = INPUT list | x2 = Minimum x0"]
    programs = jax.tree.map(lambda *x: np.stack(x), *(as_int32(parse_program(text)) for text in texts))
    inputs, outputs = [[3, 4, 3], [4, 2], [5, 1]], [3, 2, 1]
    rows = [
        jax.tree.map(lambda *x: np.stack(x)[None], *map(stack_values, part))
        for part in ([[x, None] for x in inputs], [[y] for y in outputs])
    ]
    item = Triplet(jax.tree.map(lambda x: x[2:], programs), rows[0], jax.tree.map(lambda x: x[:, :, 0], rows[1]))
    found = search_programs(item, programs, shown=1, chunk=2)
    assert found.fits.tolist() == [[False, True, True]]
    assert found.right.tolist() == [[False, False, True]]
    # Head comes first, and is believed.
    assert [bool(solved_after(found, n)[0]) for n in (1, 2, 3)] == [False, False, False]
    reverse = Candidates(found.fits[:, ::-1], found.right[:, ::-1])
    assert [bool(solved_after(reverse, n)[0]) for n in (1, 3)] == [True, True]
    with pytest.raises(ConfigError, match="shown is 3 of 3 examples"):
        search_programs(item, programs, shown=3)
    hits = search_inputs(jax.random.key(0), item, number=400)
    # A single integer from -50 to 50 is the minimum of many lists.
    assert 0 < hits.right.sum() < 100


def test_a_pool_has_every_meaning_that_is_not_held_out_and_is_drawn_from_evenly(split):
    pool = split.pool(2)
    assert len(pool.signature) == 29 + int((~split.tested[1]).sum())
    hashes = np.asarray(jax.jit(lambda p: probe(p).hash)(as_int32(pool)))
    assert not same_hash(hashes, jnp.asarray(split.held_out)).any()
    domain = ListDomain(examples=4, shown=2, two_inputs=False, max_lines=2, pool=pool)
    draw = jax.jit(lambda level: domain.draw(jax.random.key(0), [0, 1], 4000, level))
    (first, _), (both, _) = (draw(jnp.int32(level)) for level in (1, 2))
    lengths = [np.asarray(examine(draft.program).length) for draft in (first, both)]
    assert (lengths[0] == 1).all()
    assert (lengths[1] == 1).mean() == pytest.approx(29 / len(pool.signature), abs=0.02)
    assert np.asarray(both.formatted).all()
