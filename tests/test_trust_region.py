"""The length of a natural gradient step, and when none is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.line_search import Measurement
from azjax.trust_region import Search, trust_region_step

SIZE = 8
SEARCH = Search(tolerance=1e-6, iterations=40)
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(SIZE, SIZE))
H = ROOT @ ROOT.T / SIZE + 0.5 * np.eye(SIZE)
G = RNG.normal(size=SIZE)
THETA = jnp.asarray(RNG.normal(size=SIZE), jnp.float32)


def step_of(h, g, bound=0.01):
    """Objective g . x, distance half x H x: both exact, so that the full step is taken."""
    h, g = jnp.asarray(h, jnp.float32), jnp.asarray(g, jnp.float32)

    def measure(x):
        moved = x - THETA
        return Measurement(g @ moved, 0.5 * moved @ h @ moved)

    return trust_region_step(THETA, g, lambda v: h @ v, measure, bound=bound, search=SEARCH)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_the_quadratic_model_reaches_the_bound_however_the_matrix_is_scaled(scale):
    h, bound = scale * H, 0.01
    theta, info = step_of(h, G, bound)
    moved = np.asarray(theta - THETA, np.float64)
    assert float(info.line_search.fraction) == 1.0
    np.testing.assert_allclose(0.5 * moved @ h @ moved / bound, 1.0, rtol=1e-3)
    natural = np.linalg.solve(h, G)
    np.testing.assert_allclose(moved, np.sqrt(2 * bound / (natural @ h @ natural)) * natural, rtol=1e-3)
    np.testing.assert_allclose(info.expected_improvement, G @ moved, rtol=1e-3)


def test_formulas_that_are_printed_elsewhere_miss_the_bound_by_orders_of_magnitude():
    """With g in place of s, or without the 2: what the test above would see of them."""

    def reached(h, beta):
        s = np.linalg.solve(h, G)
        return 0.5 * beta(s, h) ** 2 * (s @ h @ s) / 0.01

    for scale, expected in ((1e2, 1e-4), (1e-2, 1e4)):
        wrong = reached(scale * H, lambda s, h: np.sqrt(0.01 / (G @ h @ G)))
        assert 0.05 < wrong / expected < 20
    assert reached(H, lambda s, h: np.sqrt(0.01 / (s @ h @ s))) == pytest.approx(0.5)


def test_a_quadratic_problem_is_solved_in_one_step():
    """Objective -|x - best|^2_H / 2: the natural gradient points to the optimum, which longest=1 reaches."""
    best = RNG.normal(size=SIZE)
    h, target = jnp.asarray(H, jnp.float32), jnp.asarray(best, jnp.float32)

    def objective(x):
        return -0.5 * (x - target) @ h @ (x - target)

    def measure(x):
        return Measurement(objective(x) - objective(THETA), 0.5 * (x - THETA) @ h @ (x - THETA))

    gradient = jax.grad(objective)(THETA)
    theta, _ = trust_region_step(THETA, gradient, lambda v: h @ v, measure, bound=1e6, search=SEARCH, longest=1.0)
    np.testing.assert_allclose(theta, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e10])
def test_the_magnitude_of_the_objective_makes_no_difference(scale):
    theta, info = step_of(H, G * scale)
    expected, _ = step_of(H, G)
    assert bool(info.line_search.accepted)
    np.testing.assert_allclose(theta, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("h", "g"),
    [
        (np.zeros((SIZE, SIZE)), G),
        (-H, G),
        (np.diag([1.0] * (SIZE - 1) + [-1.0]), G),
        (np.full((SIZE, SIZE), np.nan), G),
        (H, np.where(np.arange(SIZE) == 2, np.nan, G)),
        (H, np.where(np.arange(SIZE) == 2, np.inf, G)),
        (H, np.zeros(SIZE)),
    ],
    ids=["zero curvature", "negative", "indefinite", "nan matrix", "nan gradient", "infinite gradient", "no gradient"],
)
def test_no_step_rather_than_nan(h, g):
    """sb3-contrib#38, rllab#24: the square root of a negative s H s; rllab then takes a step of any length."""
    theta, info = step_of(h, g)
    assert np.asarray(theta).tobytes() == np.asarray(THETA).tobytes()
    assert not info.line_search.accepted
    assert float(info.expected_improvement) == 0.0
    assert float(info.line_search.distance) == 0.0
