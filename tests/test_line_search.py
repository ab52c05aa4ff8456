"""Backtracking: what is accepted, what is refused, and that a refusal leaves no trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.line_search import Measurement, backtracking_line_search

START = jnp.array([0.1, -0.3, 1e-7])
STEP = jnp.array([1.0, 2.0, 3.0])


def search(improvement, distance, **settings):
    """With improvement and distance as functions of the fraction of the step."""

    def measure(x):
        fraction = (x[1] - START[1]) / STEP[1]
        return Measurement(jnp.asarray(improvement(fraction)), jnp.asarray(distance(fraction)))

    options = {"expected": jnp.float32(1.0), "bound": 1.0, "factor": 0.5, **settings}
    return backtracking_line_search(measure, START, STEP, **options)


def test_a_good_step_is_taken_whole():
    x, info = search(lambda f: 0.9 * f, lambda f: 0.5 * f)
    np.testing.assert_allclose(x, START + STEP)
    assert (bool(info.accepted), float(info.fraction), int(info.backtracks)) == (True, 1.0, 0)
    np.testing.assert_allclose((info.improvement, info.distance), (0.9, 0.5), rtol=1e-6)


def test_a_step_is_shortened_until_it_is_inside_the_bound():
    """modular_rl has no such test, baselines accepts 1.5 times the bound."""
    x, info = search(lambda f: f, lambda f: 3.0 * f)
    np.testing.assert_allclose(x, START + 0.25 * STEP)
    assert int(info.backtracks) == 2
    np.testing.assert_allclose(info.distance, 0.75, rtol=1e-6)
    _, info = search(lambda f: f, lambda f: 1.4 * f)
    assert int(info.backtracks) == 1


def test_the_bound_itself_is_inside():
    _, info = search(lambda f: f, lambda f: jnp.ones(()))
    assert int(info.backtracks) == 0
    assert bool(info.accepted)


def test_the_expected_improvement_shrinks_with_the_step():
    """Improvement f - f^2: 0 of the full step, half of what half a step promises."""
    for ratio, backtracks in ((0.0, 1), (0.1, 1), (0.5, 1), (0.6, 2), (0.8, 3)):
        _, info = search(lambda f: f - f * f, lambda f: 0.0 * f, accept_ratio=ratio)
        assert (bool(info.accepted), int(info.backtracks)) == (True, backtracks), ratio


@pytest.mark.parametrize(
    ("improvement", "distance"),
    [
        (lambda f: -f, lambda f: 0.0 * f),
        (lambda f: 0.0 * f, lambda f: 0.0 * f),  # no change is no improvement
        (lambda f: f, lambda f: 2.0 + f),
        (lambda f: jnp.nan * f, lambda f: 0.0 * f),
        (lambda f: f, lambda f: jnp.nan * f),
        (lambda f: f, lambda f: jnp.inf + f),
    ],
    ids=["worse", "unchanged", "too far", "nan improvement", "nan distance", "infinite distance"],
)
def test_on_failure_the_start_comes_back_bit_for_bit(improvement, distance):
    """tianshou#1287: the parameters of the last candidate stayed."""
    x, info = search(improvement, distance, accept_ratio=0.0, max_backtracks=4)
    assert np.asarray(x).tobytes() == np.asarray(START).tobytes()
    assert (bool(info.accepted), float(info.fraction), int(info.backtracks)) == (False, 0.0, 4)
    assert (float(info.improvement), float(info.distance)) == (0.0, 0.0)


def test_a_step_that_is_not_usable_is_not_even_tried():
    x, info = backtracking_line_search(
        lambda x: Measurement(jnp.ones(()), jnp.zeros(())),
        START,
        jnp.full(3, jnp.nan),
        expected=jnp.float32(jnp.nan),
        bound=1.0,
        usable=jnp.array(False),
    )
    assert np.asarray(x).tobytes() == np.asarray(START).tobytes()
    assert not info.accepted
    assert int(info.backtracks) == 0


@pytest.mark.parametrize(("limit", "accepted"), [(2, False), (3, True)])
def test_it_tries_the_full_step_and_so_many_shorter_ones(limit, accepted):
    _, info = search(lambda f: f, lambda f: 8.0 * f, max_backtracks=limit)
    assert bool(info.accepted) == accepted


def test_each_member_of_a_population_has_a_search_of_its_own():
    bounds = jnp.array([8.0, 3.0, 0.1, 0.0])

    def run(bound):
        return search(lambda f: f, lambda f: 8.0 * f, bound=bound)

    together, info = jax.jit(jax.vmap(run))(bounds)
    np.testing.assert_array_equal(info.backtracks, [0, 2, 7, 10])
    np.testing.assert_array_equal(info.accepted, [True, True, True, False])
    for n, bound in enumerate(bounds):
        alone, _ = run(bound)
        np.testing.assert_array_equal(together[n], alone)
