"""The gates: what they refuse, one at a time, with positive controls; and what programs mean."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.reasoning import Program, enumerate_programs, execute, parse_program, probe, value, verify, zero_program
from azjax.reasoning.language import INT, LIST
from azjax.reasoning.text import stack_values

verified = jax.jit(verify)
probed = jax.jit(probe)


def verdict(text, *inputs, counter=0):
    return verified(parse_program(text), stack_values([*inputs, *[None] * (2 - len(inputs))]), counter)


def flags(v):
    return {name: bool(getattr(v, name)) for name in ("accepted", "integrity", "safety", "determinism")}


ALL = dict.fromkeys(("accepted", "integrity", "safety", "determinism"), True)


def test_a_good_proposal_passes_every_gate_and_has_its_output():
    v = verdict("x0 = INPUT list | x2 = Sort x0 | x3 = Head x2", [3, 1, 2])
    assert flags(v) == ALL
    assert (int(v.output.kind), int(v.output.items[0])) == (INT, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Positive controls, and the reference's defects
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counter", [0, 1, 50, 100, 101, 2**31 - 2])
def test_determinism_catches_what_reads_the_run_counter(counter):
    """In the reference the check raises an exception whose name does not hold "error", and that counts as passed."""
    v = verdict("x0 = INPUT list | x2 = Random x0", [1], counter=counter)
    assert flags(v) == ALL | {"accepted": False, "safety": False, "determinism": False}
    assert int(v.output.kind) == 0


def test_determinism_looks_at_every_variable_not_at_the_output_alone():
    """With both counters the list is taken whole, so the outputs agree."""
    text = "x0 = INPUT list | x2 = Random x0 | x3 = Take x2 x0"
    inputs = stack_values([[1, 2], None])
    outputs = [execute(parse_program(text), inputs, c)[0].items.tolist() for c in (80, 81)]
    assert outputs[0] == outputs[1]
    assert not verdict(text, [1, 2], counter=80).determinism


def test_the_two_runs_are_not_made_one():
    """In the reference both calls share a process, so what differs between processes cannot show.

    Here they are lanes of one execution with counters that the compiler does not know: it has to run both.
    """
    inputs, counter = stack_values([[1], None]), jnp.int32(3)
    random = parse_program("x0 = INPUT list | x2 = Random x0")
    sort = parse_program("x0 = INPUT list | x2 = Sort x0")
    batch = jax.tree.map(lambda *x: jnp.stack(x), random, sort)
    compiled = jax.jit(jax.vmap(verify, in_axes=(0, None, None))).lower(batch, inputs, counter).compile()
    assert compiled(batch, inputs, counter).determinism.tolist() == [False, True]
    assert not jax.jit(lambda program: verify(program, inputs, 3))(random).determinism


def test_safety_catches_what_leaves_the_bounds():
    v = verdict("x0 = INPUT list | x2 = Overflow x0", [1])
    assert not v.safety
    assert not v.accepted
    harmless = verdict("x0 = INPUT list | x2 = Map (**2) x0 | x3 = Count (>0) x2", [7])
    assert flags(harmless) == ALL
    # An intermediate result out of bounds, an output within.
    assert flags(verdict("x0 = INPUT list | x2 = Map (**2) x0 | x3 = Count (>0) x2", [8])) == dict.fromkeys(ALL, False)


@pytest.mark.parametrize("name", ["Random", "Overflow"])
@pytest.mark.parametrize("line", [0, 1, 2])
def test_banned_operations_are_caught_wherever_they_stand(name, line):
    """In the reference a dotted name such as os.sys is compared with parts of dotted names, and never matches."""
    rows = ["x2 = Reverse x0", "x3 = Reverse x2", "x4 = Reverse x3"]
    rows[line] = f"x{line + 2} = {name} x{line + 1 if line else 0}"
    rest = ["x3 = Take x2 x0", "x4 = Reverse x3"][line:] if line < 1 else ["x4 = Take x3 x0"][line - 1 :]
    v = verdict(" | ".join(["x0 = INPUT list", *rows[: line + 1], *rest]), [1, 2])
    assert bool(v.integrity) == (name == "Random")
    assert not v.safety
    assert not v.accepted


@pytest.mark.parametrize(
    "lines",
    [[[18, 0, 0, 0]], [[-1, 0, 0, 0]], [[10, 0, 0, 1]], [[10, 0, 6, 0]], [[11, 20, 0, 0]], [[127] * 4], [[0] * 4]],
)
def test_what_is_unknown_is_refused(lines):
    """Fails closed: the reference lets pass whatever raises nothing that it knows."""
    program = Program(np.int32(0), np.array(lines + [[0] * 4] * 3, np.int32))
    v = verified(program, stack_values([[1, 2], None]), 0)
    assert not v.accepted
    assert not v.integrity


def test_the_zero_program_is_no_proposal():
    v = verified(zero_program(), stack_values([[1, 2], None]), 0)
    assert not v.integrity
    assert not v.accepted
    assert bool(probed(zero_program()).identity)


@pytest.mark.parametrize("inputs", [[[1], [1]], [None], [3], [[99]], [[1], None, 5][1:]])
def test_inputs_of_another_signature_are_refused(inputs):
    assert not verdict("x0 = INPUT list | x2 = Sort x0", *inputs).accepted


def test_dead_code_is_refused():
    assert not verdict("x0 = INPUT list | x2 = Sort x0 | x3 = Head x0", [1, 2]).integrity


def test_long_outputs_are_whole():
    """The reference cuts outputs at 400 characters, after which no answer is right."""
    v = verdict("x0 = INPUT list | x2 = Reverse x0", [-50, -49, -48, -47, -46])
    assert v.output.items.tolist() == [-46, -47, -48, -49, -50]
    assert int(v.output.length) == 5


def test_batches_singles_and_int8_agree():
    texts = ["x2 = Sort x0", "x2 = Random x0", "x2 = Head x0", "x2 = Overflow x0"]
    programs = jax.tree.map(lambda *x: np.stack(x), *(parse_program(f"x0 = INPUT list | {t}") for t in texts))
    inputs = jax.tree.map(lambda *x: np.stack(x), *(stack_values([x, None]) for x in ([2, 1], [1], [], [3])))
    together = verified(*jax.tree.map(lambda x: x.astype(np.int8), (programs, inputs)), 5)
    assert together.accepted.tolist() == [True, False, False, False]
    mapped = jax.jit(jax.vmap(verify, in_axes=(0, 0, None)))(programs, inputs, 5)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------------------
# Meaning
# ---------------------------------------------------------------------------------------------------------------------


def meaning(text):
    return probed(parse_program(text))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x2 = Map (*2) x0", "x2 = ZipWith (+) x0 x0"),
        ("x2 = Minimum x0", "x2 = Sort x0 | x3 = Head x2"),
        ("x2 = Reverse x0 | x3 = Reverse x2 | x4 = Sum x3", "x2 = Sum x0"),
        ("x2 = Map (*4) x0", "x2 = Map (*2) x0 | x3 = Map (*2) x2"),
    ],
)
def test_equal_meanings_have_equal_hashes(a, b):
    assert meaning(f"x0 = INPUT list | {a}").hash.tolist() == meaning(f"x0 = INPUT list | {b}").hash.tolist()


@functools.cache
def classes(lines):
    found = probed(enumerate_programs(lines))
    hashes = np.asarray(found.hash).astype(np.uint64)
    return (hashes[:, 0] << np.uint64(32)) | hashes[:, 1], jax.tree.map(np.asarray, found)


def test_hashes_tell_meanings_apart_exactly_as_the_outputs_do():
    """No collision, in either word, among all outputs of all programs of two lines."""
    from azjax.reasoning.verification import _PROBES

    hashes, found = classes(2)
    probes = jax.tree.map(lambda x: x[0], _PROBES)
    programs = jax.tree.map(lambda x: x[:, None], enumerate_programs(2))
    output, _ = jax.jit(execute)(programs, probes)
    rows = np.concatenate([np.asarray(x).reshape(len(hashes), -1) for x in output], axis=1)
    distinct = len(np.unique(rows, axis=0))
    assert distinct == len(np.unique(hashes)) == len(np.unique(found.hash[:, 0])) == len(np.unique(found.hash[:, 1]))


def test_numbers_of_semantic_classes():
    one, found_one = classes(1)
    two, found_two = classes(2)
    assert len(np.unique(one[found_one.informative])) == 29
    assert len(np.setdiff1d(two[found_two.informative], one[found_one.informative])) == 491


@pytest.mark.parametrize(
    "text",
    [
        "x0 = INPUT list | x2 = ZipWith (-) x0 x0 | x3 = Sum x2",
        "x0 = INPUT list | x2 = Filter (>0) x0 | x3 = Filter (<0) x2",
    ],
)
def test_constants_are_known(text):
    m = meaning(text)
    assert bool(m.constant)
    assert not m.informative


@pytest.mark.parametrize(
    "text",
    [
        "x0 = INPUT list | x2 = Reverse x0 | x3 = Reverse x2",
        "x0 = INPUT list | x2 = ZipWith (max) x0 x0",
        "x0 = INPUT list | x1 = INPUT int | x2 = Take x1 x0 | x3 = Scanl1 (min) x2 | x4 = ZipWith (max) x0 x0",
        "x0 = INPUT list | x2 = Map (*(-1)) x0 | x3 = Map (*(-1)) x2",
    ],
)
def test_identities_are_known(text):
    m = meaning(text)
    assert bool(m.identity)
    assert not m.informative


def test_programs_that_fail_on_most_inputs_are_known():
    program = parse_program("x0 = INPUT list | x2 = Scanl1 (*) x0")
    m = probed(program)
    assert int(m.valid) < 16
    assert not m.informative
    assert bool(
        jax.jit(lambda p: probe(p, min_valid=4))(parse_program("x0 = INPUT list | x2 = Scanl1 (*) x0")).informative
    )
    never = meaning("x0 = INPUT list | x2 = Overflow x0")
    assert (int(never.valid), bool(never.constant), bool(never.informative)) == (0, True, False)


def test_probes_are_inputs_of_all_lengths():
    from azjax.reasoning.verification import _PROBES, PROBES

    assert _PROBES.kind.shape == (3, PROBES, 2)
    assert set(_PROBES.length[0, :, 0].tolist()) == {0, 1, 2, 3, 4, 5}
    assert (_PROBES.kind[1] == LIST).all()
    assert (_PROBES.kind[2] == [LIST, INT]).all()
    assert int(value([]).length) == 0
