"""Text, tokens and grammar: round trips, errors with a position, and a mask without dead ends."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.config import ConfigError
from azjax.reasoning import (
    VOCABULARY,
    Program,
    advance,
    allowed,
    detokenize,
    enumerate_programs,
    equal,
    examine,
    expect_inputs,
    expect_program,
    expect_proposal,
    expect_value,
    format_program,
    format_value,
    is_value,
    parse_program,
    parse_value,
    program_tokens,
    read,
    sample_tokens,
    succeeded,
    value,
    value_tokens,
    zero_program,
)
from azjax.reasoning.grammar import PROPOSAL_TOKENS
from azjax.reasoning.language import INT, LAMBDAS, LIST, MAX_LINES, OPERATIONS, SIGNATURE_KINDS, SIGNATURES
from azjax.reasoning.text import stack_values
from azjax.reasoning.tokens import END, PAD, PROGRAM_TOKENS, VALUE_TOKENS, pack_segments
from azjax.reasoning.wellformed import output_kind

PROPOSALS = 2048
READ = 2048  # programs that are read at a time


@functools.cache
def proposals():
    """Random proposals of every length, with their tokens."""

    @jax.jit
    def draw(keys, max_lines):
        return jax.vmap(lambda key, lines: sample_tokens(key, expect_proposal(lines), PROPOSAL_TOKENS))(keys, max_lines)

    return draw(jax.random.split(jax.random.key(0), PROPOSALS), 1 + jnp.arange(PROPOSALS) % MAX_LINES)


def at(tree, n):
    return jax.tree.map(lambda x: np.asarray(x)[n], tree)


examine_programs = jax.jit(examine)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The tables and text
# ---------------------------------------------------------------------------------------------------------------------


def test_the_language_has_what_its_description_says():
    proposable = [o for o in OPERATIONS if not o.banned]
    assert sum(not o.lambdas for o in proposable) == 10
    assert sum(bool(o.lambdas) for o in proposable) == 5
    assert len(LAMBDAS) == 19
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 160
    assert [o.name for o in OPERATIONS[: len(proposable)]] == [o.name for o in proposable]


@pytest.mark.parametrize(("lines", "signature"), [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_program_survives_text(lines, signature):
    programs = enumerate_programs(lines, signature)
    texts = {format_program(at(programs, n), " | ") for n in range(len(programs.lines))}
    assert len(texts) == len(programs.lines)
    for n in range(0, len(programs.lines), 7):
        program = at(programs, n)
        assert same(parse_program(format_program(program)), program)


def test_text_by_hand():
    program = parse_program(" x0 = INPUT list\n\nx1 = INPUT int | x2 = Take x1 x0\n x3 = ZipWith (min) x0 x2 ")
    assert format_program(program) == "x0 = INPUT list\nx1 = INPUT int\nx2 = Take x1 x0\nx3 = ZipWith (min) x0 x2"
    assert program.lines.tolist() == [[3, 0, 1, 0], [14, 18, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert same(parse_program("x0 = INPUT list"), zero_program())
    assert [format_value(value(x)) for x in (7, [], [1, -2], None)] == ["7", "[]", "[1 -2]", "nothing"]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("x0 = INPUT list\nx2 = Mop (*2) x0", "line 2, column 6", "did you mean 'Map'"),
        ("x0 = INPUT list | x2 = Map (*5) x0", "line 2, column 11", "(+1)"),
        ("x0 = INPUT list | x2 = Map *2 x0", "line 2, column 11", "(+1)"),
        ("x0 = INPUT list | x2 = Map (even) x0", "line 2, column 11", "Map takes one of"),
        ("x0 = INPUT list\nx2 = Head x1", "line 2, column 11", "no such variable"),
        ("x0 = INPUT list\nx2 = Head x0\nx3 = Sum x2", "line 3, column 10", "is an int; a list is needed"),
        ("x0 = INPUT list\nx2 = Head x2", "line 2, column 11", "no such variable"),
        ("x0 = INPUT list\nx3 = Head x0", "line 2, column 1", "defines x2"),
        ("x0 = INPUT list\nx2 = Head", "line 2, column 6", "takes 1 argument(s), got 0"),
        ("x0 = INPUT list\nx2 = Sort x0 x0", "line 2, column 6", "takes 1 argument(s), got 2"),
        ("x0 = INPUT list\nx2", "line 2, column 1", "expected x2 ="),
        ("x0 = INPUT float", "line 1, column 12", "list or int"),
        ("x1 = INPUT list", "line 1, column 1", "expected x0 = INPUT"),
        ("x0 = INPUT list\nx2 = Sort x0\nx1 = INPUT int", "line 3, column 1", "inputs come before"),
        ("x0 = INPUT list" + "".join(f"\nx{n} = Sort x0" for n in range(2, 7)), "line 6, column 1", "at most 4"),
        ("x0 = INPUT int", "begins with its inputs", "list and int"),
        ("", "begins with its inputs", "x0 = INPUT list"),
        ("x" * 1001, "1001 characters", "1000"),
    ],
)
def test_a_bad_program_is_refused_with_its_position(text, place, reason):
    with pytest.raises(ConfigError) as caught:
        parse_program(text)
    assert place in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["1) or True or (1", "eval(gold_output)", "[1 2", "[51]", "-51", "[1 2 3 4 5 6]", "1 2", "[1,,2]", "[[1]]", "1.0",
     "True", "", "__import__('os')", "[1] == [1]", "9999999999", "٣"],
)  # fmt: skip
def test_a_value_is_integers_and_nothing_that_could_be_evaluated(text):
    """The reference evaluates answers: `1) or True or (1` counts as right there, and so does the name of the answer."""
    with pytest.raises(ConfigError):
        parse_value(text)


values = st.one_of(st.integers(-50, 50), st.lists(st.integers(-50, 50), max_size=5))


@settings(deadline=None)
@given(values)
def test_values_survive_text(content):
    assert same(parse_value(format_value(value(content))), value(content))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_no_text_does_more_than_raise(text):
    messages = []
    for parse in (parse_program, parse_value):
        try:
            parse(text)
        except ConfigError as error:
            messages.append(str(error))
    assert all(len(message.splitlines()) == 1 for message in messages)


def test_equality_is_of_whole_values_and_nothing_is_equal_to_nothing():
    a, b = stack_values([1, [1], [1, 0], [], None, [1]]), stack_values([1, 1, [1], [], None, [1]])
    assert equal(a, b).tolist() == [True, False, False, True, False, True]


def test_lists_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="at most 5"):
        value([0] * 6)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens and grammar
# ---------------------------------------------------------------------------------------------------------------------


@jax.jit
def read_programs(programs):
    """Programs back from their tokens but the signature's, with no more lines allowed than each has."""
    lines = (programs.lines[..., 0] != 0).sum(-1)
    tokens = program_tokens(programs)[:, 1:]
    return jax.vmap(lambda t, s, n: read(expect_program(s, n), t))(tokens, programs.signature, lines)


@pytest.mark.parametrize("signature", range(len(SIGNATURES)))
def test_the_grammar_takes_every_program_and_reads_it_back(signature):
    one, two = enumerate_programs(1, signature), enumerate_programs(2, signature)
    # Of one size with the test below, so that one compiled reader serves all.
    programs = jax.tree.map(lambda a, b: np.resize(np.concatenate([a, b]), (READ, *a.shape[1:])), one, two)
    state = read_programs(programs)
    assert bool(succeeded(state).all())
    assert same(state.program, programs)


def test_the_grammar_takes_programs_of_three_lines():
    everything = enumerate_programs(3)
    programs = jax.tree.map(lambda x: x[:: -(-len(x) // READ)], everything)
    programs = jax.tree.map(lambda x: np.resize(x, (READ, *x.shape[1:])), programs)
    state = read_programs(programs)
    assert bool(succeeded(state).all())
    assert same(state.program, programs)


def test_under_the_mask_every_sequence_ends_in_a_well_formed_program_with_an_input():
    state, _ = proposals()
    assert bool(jax.vmap(succeeded)(state).all())
    form = examine_programs(state.program)
    assert bool(form.well_formed.all())
    assert not form.banned.any()
    assert (np.asarray(form.length) <= 1 + np.arange(PROPOSALS) % MAX_LINES).all()
    assert set(np.asarray(form.length).tolist()) == {1, 2, 3, 4}
    assert set(np.asarray(state.program.signature).tolist()) == {0, 1, 2}
    kinds = SIGNATURE_KINDS[np.asarray(state.program.signature)]
    np.testing.assert_array_equal(state.inputs.kind[:, 0], kinds)
    assert bool((is_value(at_first(state.inputs)) == (kinds != 0)).all())


def at_first(inputs):
    return jax.tree.map(lambda x: x[:, 0], inputs)


def test_proposals_are_their_tokens():
    state, tokens = proposals()
    inputs = at_first(state.inputs)
    written = [value_tokens(jax.tree.map(lambda x, n=n: x[:, n], inputs)) for n in range(2)]
    again = pack_segments([program_tokens(state.program), *written], PROPOSAL_TOKENS)
    np.testing.assert_array_equal(again, tokens)
    reread = jax.jit(jax.vmap(lambda t: read(expect_proposal(), t)))(tokens)
    assert same(reread.program, state.program)
    assert same(reread.inputs, state.inputs)
    text = detokenize(tokens[0])
    assert text.startswith("<")
    assert " end " in text


mask_of = jax.jit(allowed)
step = jax.jit(advance)


def masks_of(state):
    return {VOCABULARY[n] for n in np.flatnonzero(mask_of(state))}


def after(state, words):
    for word in words.split():
        state = step(state, jnp.int32(VOCABULARY.index(word)))
    return state


def test_masks_by_hand():
    start = expect_proposal(2)
    assert masks_of(start) == {"<list>", "<list,list>", "<list,int>"}
    one_list = after(start, "<list>")
    assert masks_of(one_list) == {o.name for o in OPERATIONS if not o.banned and INT not in o.arguments}
    assert masks_of(after(start, "<list> Filter")) == {"(>0)", "(<0)", "(even)", "(odd)"}
    # An integer is left, and one line: it must be used together with the list, and then the program ends.
    head = after(start, "<list> Head x0")
    assert masks_of(head) == {"Take", "Drop", "Access", "end"}
    assert masks_of(after(start, "<list> Head x0 Take")) == {"x2"}
    assert masks_of(after(start, "<list> Head x0 Take x2")) == {"x0"}
    assert masks_of(after(start, "<list> Head x0 Take x2 x0")) == {"end"}
    # With one line for two lists, only what uses both will do, and each once.
    two = after(expect_proposal(1), "<list,list>")
    assert masks_of(two) == {"ZipWith"}
    assert masks_of(after(expect_proposal(1), "<list,list> ZipWith (+) x0")) == {"x1"}
    inside = after(start, "<list> Sort x0 end [")
    assert masks_of(inside) == {"]", *(str(n) for n in range(-50, 51))}
    assert masks_of(after(start, "<list> Sort x0 end [ 1 2 3 4 5")) == {"]"}
    assert masks_of(after(start, "<list> Sort x0 end [ ]")) == {"pad"}


def test_masks_of_answers():
    assert masks_of(expect_value(INT)) == {str(n) for n in range(-50, 51)}
    assert masks_of(expect_value(LIST)) == {"["}
    assert masks_of(after(expect_inputs(2), "[ ]")) == {str(n) for n in range(-50, 51)}
    done = after(expect_inputs(2), "[ 4 ] -7")
    assert bool(succeeded(done))
    assert same(at(done.inputs, 0), stack_values([[4], -7]))
    several = after(expect_inputs(0, 3), "[ 4 ] [ ] [ 1 2 ]")
    assert bool(succeeded(several))
    assert np.asarray(several.inputs.length)[:, 0].tolist() == [1, 0, 2]
    assert not succeeded(after(expect_inputs(0, 3), "[ 4 ] [ ]"))


def test_the_mask_is_never_empty_and_allows_what_can_be_finished():
    """Along random sequences, with few lines left: what is allowed is not empty before the end."""

    @jax.jit
    def counts(key):
        def step(state, key):
            mask = allowed(state)
            token = jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf))
            return advance(state, token), mask.sum()

        return jax.lax.scan(step, expect_proposal(3), jax.random.split(key, PROPOSAL_TOKENS))[1]

    assert int(jax.vmap(counts)(jax.random.split(jax.random.key(2), 256)).min()) >= 1


@pytest.mark.parametrize(
    "words",
    ["<list> Random x0", "<list> Overflow", "<list> Head x1", "<list> Map x0", "<list> end", "end", "<list> Sort x0 x0",
     "<list> Sort x0 end 5", "<list> Sort x0 end [ 1 2 3 4 5 6", "<list> Sort x0 end [ ] end", "solve",
     "<list,list> Sort x0 end"],
)  # fmt: skip
def test_a_token_outside_of_the_mask_is_a_format_error_for_good(words):
    state = after(expect_proposal(), words)
    assert bool(state.failed)
    assert masks_of(state) == {"pad"}
    assert not succeeded(after(state, "pad"))
    assert not succeeded(after(state, "[ ]"))


def test_an_unfinished_sequence_has_not_succeeded():
    assert not succeeded(after(expect_program(0), "Sort x0"))
    assert bool(succeeded(after(expect_program(0), "Sort x0 end")))


def test_lengths_of_token_sequences():
    longest = parse_program(
        "x0 = INPUT list | x1 = INPUT list | x2 = ZipWith (+) x0 x1 | x3 = ZipWith (+) x0 x2"
        " | x4 = ZipWith (+) x0 x3 | x5 = ZipWith (+) x0 x4"
    )
    assert program_tokens(longest).shape == (PROGRAM_TOKENS,)
    assert not (program_tokens(longest) == PAD).any()
    tokens = value_tokens(stack_values([[1, 2, 3, 4, 5], [], 3, None]))
    assert tokens.shape == (4, VALUE_TOKENS)
    assert (tokens != PAD).sum(1).tolist() == [7, 2, 1, 0]
    assert program_tokens(zero_program()).tolist()[1] == END


# ---------------------------------------------------------------------------------------------------------------------
# Well-formed programs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: [[0] * 4] * 4, "no lines"),
        (lambda lines: [lines[0], [0] * 4, lines[1], [0] * 4], "a gap"),
        (lambda lines: [[9, 0, 0, 1], *lines[1:]], "a field that is not used"),
        (lambda lines: [[9, 3, 0, 0], *lines[1:]], "a lambda that is not used"),
        (lambda lines: [lines[0], [10, 0, 0, 0], *lines[2:]], "dead code"),
        (lambda lines: [lines[0], [10, 0, 3, 0], *lines[2:]], "a variable of later"),
        (lambda lines: [lines[0], [18, 0, 2, 0], *lines[2:]], "no such function"),
        (lambda lines: [[-1, 0, 0, 0], *lines[1:]], "no such function"),
        (lambda lines: [[11, 15, 0, 0], *lines[1:]], "a lambda of another kind"),
        (lambda lines: [*lines[:3], [0, 0, 0, 1]], "something behind the end"),
    ],
)
def test_what_is_not_well_formed(change, why):
    program = parse_program("x0 = INPUT list | x2 = Sort x0 | x3 = Sum x2")
    assert bool(examine_programs(program).well_formed)
    changed = Program(program.signature, np.array(change(program.lines.tolist()), np.int32))
    assert not examine_programs(changed).well_formed, why


def test_an_input_that_is_not_used_and_a_signature_that_does_not_exist_are_not_well_formed():
    assert not examine_programs(parse_program("x0 = INPUT list | x1 = INPUT list | x2 = Sort x0")).well_formed
    assert not examine_programs(zero_program()).well_formed
    program = parse_program("x0 = INPUT list | x2 = Sort x0")
    for signature in (-1, 3):
        assert not examine_programs(program._replace(signature=np.int32(signature))).well_formed


def test_kinds_of_outputs():
    programs = ["x0 = INPUT list", "x0 = INPUT list | x2 = Sum x0", "x0 = INPUT list | x2 = Sum x0 | x3 = Take x2 x0"]
    assert [int(output_kind(parse_program(p))) for p in programs] == [LIST, INT, LIST]
