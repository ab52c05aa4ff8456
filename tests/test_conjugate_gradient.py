"""Conjugate gradients against dense solves, and where they must give up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.conjugate_gradient import conjugate_gradient


@functools.partial(jax.jit, static_argnames="iterations")
def solve(matrix, b, iterations=10, tolerance=1e-5):
    return conjugate_gradient(lambda v: matrix @ v, b, iterations=iterations, tolerance=tolerance)


def positive_definite(seed, size=6, lowest=0.3):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return (vectors * rng.uniform(lowest, 3.0, size)) @ vectors.T, rng.normal(size=size)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31))
def test_property_the_solution_is_that_of_a_dense_solver(seed):
    matrix, b = positive_definite(seed)
    x, info = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32), iterations=30, tolerance=1e-6)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)
    assert not info.failed
    assert info.residual <= 1e-6
    assert info.iterations <= 12


def test_the_residual_and_the_number_of_products_are_reported():
    matrix, b = positive_definite(0)
    residuals = []
    for n in (1, 2, 4):
        x, info = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32), iterations=n)
        np.testing.assert_allclose(info.residual, np.linalg.norm(b - matrix @ x) / np.linalg.norm(b), rtol=1e-3)
        assert int(info.iterations) == n
        residuals.append(float(info.residual))
    assert residuals[2] < residuals[0]
    _, info = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32), tolerance=residuals[1] * 1.01)
    assert int(info.iterations) == 2


def test_two_eigenvalues_take_two_iterations():
    diagonal = jnp.array([1.0, 5.0, 5.0, 1.0])
    x, info = conjugate_gradient(lambda v: diagonal * v, jnp.array([1.0, -2.0, 3.0, 4.0]))
    np.testing.assert_allclose(x, [1.0, -0.4, 0.6, 4.0], rtol=1e-5)
    assert int(info.iterations) == 2


def test_a_preconditioner_saves_iterations_and_changes_no_solution():
    diagonal = jnp.logspace(-1.5, 1.5, 30)
    b = jnp.asarray(np.random.default_rng(0).normal(size=30), jnp.float32)

    def run(preconditioner):
        return conjugate_gradient(
            lambda v: diagonal * v + 0.01 * v.sum(), b, iterations=100, tolerance=1e-6, preconditioner=preconditioner
        )

    plain, slow = run(None)
    helped, quick = run(lambda r: r / diagonal)
    np.testing.assert_allclose(helped, plain, rtol=1e-3, atol=1e-4)
    assert int(quick.iterations) < 6 < int(slow.iterations)
    _, exact = conjugate_gradient(lambda v: diagonal * v, b, preconditioner=lambda r: r / diagonal)
    assert int(exact.iterations) == 1


@pytest.mark.parametrize(
    "matrix",
    [np.diag([1.0, -1.0, 2.0]), np.zeros((3, 3)), -np.eye(3), np.diag([1.0, np.nan, 1.0]), np.diag([1.0, np.inf, 1.0])],
    ids=["indefinite", "zero", "negative", "nan", "inf"],
)
def test_without_positive_curvature_it_fails_with_finite_numbers(matrix):
    x, info = solve(jnp.asarray(matrix, jnp.float32), jnp.ones(3))
    assert bool(info.failed)
    assert np.isfinite(x).all()
    assert np.isfinite(info.residual)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_right_hand_side_that_is_not_finite_fails_at_once(wrong):
    x, info = solve(jnp.eye(3), jnp.array([1.0, wrong, 2.0]))
    assert bool(info.failed)
    assert int(info.iterations) == 0
    np.testing.assert_array_equal(x, 0.0)


def test_a_preconditioner_that_is_not_positive_definite_fails():
    x, info = conjugate_gradient(lambda v: jnp.array([1.0, 2.0]) * v, jnp.ones(2), preconditioner=lambda r: -r)
    assert bool(info.failed)
    assert np.isfinite(x).all()


def test_zero_has_the_solution_zero_and_no_failure():
    x, info = solve(jnp.eye(3), jnp.zeros(3))
    np.testing.assert_array_equal(x, 0.0)
    assert (bool(info.failed), int(info.iterations), float(info.residual)) == (False, 0, 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_magnitudes_make_no_difference(scale):
    matrix, b = positive_definite(3)
    x, info = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32) * np.float32(scale), iterations=20)
    assert not info.failed
    np.testing.assert_allclose(np.asarray(x) / np.float32(scale), np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)


def test_going_on_after_an_exact_solution_is_no_failure():
    """The recursion's residual shrinks for ever; its square must not underflow to a curvature of 0."""
    _, info = solve(jnp.diag(jnp.array([1.0, 2.0, 1e-3])), jnp.ones(3), iterations=200, tolerance=0.0)
    assert not info.failed


def test_members_of_a_population_stop_by_themselves():
    pairs = [positive_definite(n, lowest=0.01 if n % 2 else 1.0) for n in range(6)]
    matrices, bs = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*pairs, strict=True))
    together, info = jax.jit(jax.vmap(lambda a, b: conjugate_gradient(lambda v: a @ v, b, tolerance=1e-3)))(
        matrices, bs
    )
    assert len(set(np.asarray(info.iterations).tolist())) > 1
    for n in range(6):
        x, alone = solve(matrices[n], bs[n], tolerance=1e-3)
        np.testing.assert_allclose(together[n], x, rtol=1e-3, atol=1e-4)
        assert int(alone.iterations) == int(info.iterations[n])


def test_iterations_and_digits_are_not_lost_in_float32():
    """Sixteen eigenvalues over five decades: without reorthogonalisation, n iterations leave a residual of 5 %."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    matrix, b = (vectors * np.logspace(-3, 2, 16)) @ vectors.T, rng.normal(size=16)
    x, info = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32), iterations=17, tolerance=1e-4)
    assert info.residual <= 1e-4
    nudged, _ = solve(jnp.asarray(matrix * (1 + 1e-7 * rng.normal(size=(16, 16))), jnp.float32), b, iterations=8)
    x, _ = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32), iterations=8)
    np.testing.assert_allclose(nudged, x, rtol=1e-3, atol=1e-3 * float(jnp.abs(x).max()))
