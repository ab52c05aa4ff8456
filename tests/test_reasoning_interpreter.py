"""The interpreter against plain Python on every program of 1 to 3 lines, and by hand where Python has other ideas."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.reasoning import Program, Value, enumerate_programs, execute, is_value, parse_program, trace, value
from azjax.reasoning.language import INT, LIST, MAX_LENGTH, NONE, OP_ID, SIGNATURES
from azjax.reasoning.text import stack_values

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import plain_interpreter

run_batch = jax.jit(execute)
run_trace = jax.jit(trace)


def draw_inputs(number, signature, seed=0):
    """Inputs of all lengths and magnitudes, the extremes among them."""
    rng = np.random.default_rng(seed)
    rows = [
        [
            rng.integers(-m, m + 1, n % (MAX_LENGTH + 1)).tolist() if kind == LIST else int(rng.integers(-3, 7))
            for kind in SIGNATURES[signature]
        ]
        for n, m in zip(range(number), np.resize([4, 12, 4, 50, 7, 3], number), strict=True)
    ]
    for row, length in ((-1, 5), (-2, 4)):
        rows[row][0] = rng.choice([-50, 50, 0], length).tolist()
    return rows


def batched(rows):
    stacked = [stack_values([*row, *[None] * (2 - len(row))]) for row in rows]
    return jax.tree.map(lambda *x: np.stack(x), *stacked)


def to_python(values):
    """Nested Python of values `[...]`, flat; None for nothing."""
    kinds, lengths = np.ravel(values.kind).tolist(), np.ravel(values.length).tolist()
    items = np.reshape(values.items, (-1, MAX_LENGTH)).tolist()
    return [
        None if kind == NONE else row[0] if kind == INT else row[:length]
        for kind, length, row in zip(kinds, lengths, items, strict=True)
    ]


def assert_equal_to_python(programs, rows):
    """``rows``: for each signature, inputs; each program runs on those of its own."""
    inputs = jax.tree.map(lambda *x: np.stack(x)[programs.signature], *(batched(r) for r in rows))
    output, valid = run_batch(jax.tree.map(lambda x: x[:, None], programs), inputs)
    expected = [
        plain_interpreter.run(lines, row)
        for lines, signature in zip(programs.lines.tolist(), programs.signature.tolist(), strict=True)
        for row in rows[signature]
    ]
    assert to_python(output) == expected
    assert np.ravel(valid).tolist() == [e is not None for e in expected]
    assert bool(is_value(output)[valid].all())


def test_all_programs_of_one_and_two_lines_give_what_python_gives():
    sets = [enumerate_programs(lines, signature) for signature in range(len(SIGNATURES)) for lines in (1, 2)]
    assert [len(s.lines) for s in sets] == [35, 1197, 10, 1124, 3, 177]
    programs = jax.tree.map(lambda *x: np.concatenate(x), *sets)
    assert_equal_to_python(programs, [draw_inputs(24, signature) for signature in range(len(SIGNATURES))])


def test_all_programs_of_three_lines_give_what_python_gives():
    programs = enumerate_programs(3)
    assert len(programs.lines) == 61_939
    assert_equal_to_python(programs, [draw_inputs(8, 0, seed=1)])


@pytest.mark.slow
@pytest.mark.parametrize("signature", [0, 1, 2])
def test_all_programs_of_three_lines_on_more_inputs(signature):
    programs = enumerate_programs(3, signature)
    for start in range(0, len(programs.lines), 50_000):
        chunk = jax.tree.map(lambda x, s=start: x[s : s + 50_000], programs)
        assert_equal_to_python(chunk, [draw_inputs(32, s, seed=2) for s in range(len(SIGNATURES))])


def one(text, *inputs, counter=0):
    """Output and validity of a program given as text."""
    output, valid = run_batch(parse_program(text), stack_values([*inputs, *[None] * (2 - len(inputs))]), counter)
    return to_python(output)[0], bool(valid)


@pytest.mark.parametrize(
    ("line", "xs", "expected"),
    [
        ("Head x0", [3, 1], 3),
        ("Last x0", [3, 1], 1),
        ("Minimum x0", [3, -1, 2], -1),
        ("Maximum x0", [-3, -1], -1),
        ("Sum x0", [], 0),
        ("Sort x0", [5, -2, 5, 0, -50], [-50, -2, 0, 5, 5]),
        ("Reverse x0", [1, 2, 3], [3, 2, 1]),
        ("Map (/2) x0", [-3, 3, -1, 1, 0], [-2, 1, -1, 0, 0]),
        ("Map (/3) x0", [-4, -3, -2, 49, 50], [-2, -1, -1, 16, 16]),
        ("Map (/4) x0", [-50, -4, -1, 3, 50], [-13, -1, -1, 0, 12]),
        ("Map (**2) x0", [-7, 7], [49, 49]),
        ("Map (*(-1)) x0", [-50, 50], [50, -50]),
        ("Filter (odd) x0", [-3, 2, 1, 0, -1], [-3, 1, -1]),
        ("Count (even) x0", [-4, 0, 3], 2),
        ("ZipWith (-) x0 x0", [5, 6], [0, 0]),
        ("Scanl1 (-) x0", [1, 2, 3], [1, -1, -4]),
        ("Scanl1 (max) x0", [], []),
    ],
)
def test_functions_by_hand(line, xs, expected):
    assert one(f"x0 = INPUT list | x2 = {line}", xs) == (expected, True)


@pytest.mark.parametrize(
    ("line", "n", "expected"),
    [
        ("Take x1 x0", 2, [1, 2]),
        ("Take x1 x0", -1, [1, 2]),
        ("Take x1 x0", 9, [1, 2, 3]),
        ("Take x1 x0", -9, []),
        ("Drop x1 x0", 2, [3]),
        ("Drop x1 x0", -1, [3]),
        ("Drop x1 x0", 9, []),
        ("Drop x1 x0", -9, [1, 2, 3]),
        ("Access x1 x0", 2, 3),
    ],
)
def test_slices_are_pythons(line, n, expected):
    assert one(f"x0 = INPUT list | x1 = INPUT int | x2 = {line}", [1, 2, 3], n) == (expected, True)


@pytest.mark.parametrize("n", [-1, 3, 50, -50])
def test_access_outside_of_a_list_has_no_output(n):
    """Python and the reference's `eval` would count -1 from the end."""
    assert one("x0 = INPUT list | x1 = INPUT int | x2 = Access x1 x0", [1, 2, 3], n) == (None, False)


@pytest.mark.parametrize("line", ["Head x0", "Last x0", "Minimum x0", "Maximum x0"])
def test_an_empty_list_has_no_such_item(line):
    assert one(f"x0 = INPUT list | x2 = {line}", []) == (None, False)


@pytest.mark.parametrize(
    "text",
    [
        "x0 = INPUT list | x2 = Map (*2) x0",
        "x0 = INPUT list | x2 = Sum x0",
        "x0 = INPUT list | x2 = Map (*4) x0 | x3 = Map (/4) x2",
        "x0 = INPUT list | x2 = Scanl1 (*) x0 | x3 = Count (>0) x2",
        "x0 = INPUT list | x2 = Overflow x0",
        "x0 = INPUT list | x2 = Overflow x0 | x3 = Take x2 x0",
    ],
)
def test_a_number_out_of_bounds_anywhere_leaves_no_output(text):
    assert one(text, [50, 50, 50, 50, 50]) == (None, False)


@pytest.mark.parametrize(
    "inputs",
    [
        [value([51]), value(None)],
        [value([-51]), value(None)],
        [value(3), value(None)],
        [value(None), value(None)],
        [value([1]), value([1])],
        [Value(np.int32(LIST), np.int32(6), np.zeros(5, np.int32)), value(None)],
        [Value(np.int32(LIST), np.int32(-1), np.zeros(5, np.int32)), value(None)],
        [Value(np.int32(LIST), np.int32(1), np.array([1, 7, 0, 0, 0], np.int32)), value(None)],
        [Value(np.int32(3), np.int32(1), np.array([1, 0, 0, 0, 0], np.int32)), value(None)],
        [Value(np.int32(LIST), np.int32(1), np.array([256, 0, 0, 0, 0], np.int32)), value(None)],
    ],
)
def test_inputs_that_are_none_have_no_output(inputs):
    stacked = jax.tree.map(lambda *x: np.stack(x), *inputs)
    output, valid = run_batch(parse_program("x0 = INPUT list | x2 = Sort x0"), stacked)
    assert not valid
    assert to_python(output) == [None]


def test_the_program_of_no_lines_returns_its_input():
    assert one("x0 = INPUT list", [4, 2]) == ([4, 2], True)


def test_every_variable_is_kept_by_trace():
    program = parse_program("x0 = INPUT list | x2 = Map (*2) x0 | x3 = Head x0 | x4 = Take x3 x2")
    variables, valid = run_trace(program, stack_values([[1, 5], None]))
    assert bool(valid)
    assert to_python(variables) == [[1, 5], None, [2, 10], 1, [2], None]
    variables, valid = run_trace(program, stack_values([[1, 50], None]))
    assert not valid
    assert to_python(variables) == [[1, 50], None, None, 1, None, None]


def test_random_reads_the_run_counter_and_nothing_else_does():
    outputs = [one("x0 = INPUT list | x2 = Random x0", [1], counter=c)[0] for c in range(120)]
    assert all(a != b for a, b in itertools.pairwise(outputs))
    for text in ("x0 = INPUT list | x2 = Sort x0", "x0 = INPUT list | x2 = Sum x0"):
        assert one(text, [2, 1], counter=0) == one(text, [2, 1], counter=7)


fields = st.tuples(st.integers(-3, 20), st.integers(-3, 22), st.integers(-3, 8), st.integers(-3, 8))


@settings(deadline=None, max_examples=200)
@given(st.lists(fields, min_size=4, max_size=4), st.integers(-2, 4), st.lists(st.integers(-50, 50), max_size=5))
def test_any_integers_whatever_give_a_value_or_nothing(lines, signature, xs):
    """Nothing is trusted: no crash, no output out of bounds, none without validity."""
    program = Program(np.int32(signature), np.array(lines, np.int32))
    output, valid = run_batch(program, stack_values([xs, None]))
    assert bool(is_value(output)) == bool(valid)
    if valid:
        assert signature == 0
        assert all(0 <= op <= len(OP_ID) for op, *_ in lines)


def test_batching_by_broadcast_by_vmap_and_by_nothing_agree():
    programs = jax.tree.map(lambda x: jnp.asarray(x[::100]), enumerate_programs(2))
    inputs = batched(draw_inputs(6, 0))
    broadcast = run_batch(jax.tree.map(lambda x: x[:, None], programs), inputs)
    mapped = jax.jit(jax.vmap(lambda p: jax.vmap(lambda i: execute(p, i))(inputs)))(programs)
    for a, b in zip(jax.tree.leaves(broadcast), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_array_equal(a, b)
    single = run_batch(jax.tree.map(lambda x: x[3], programs), jax.tree.map(lambda x: x[2], inputs))
    for a, b in zip(jax.tree.leaves(broadcast), jax.tree.leaves(single), strict=True):
        np.testing.assert_array_equal(a[3, 2], b)
