"""Fitting values: the GAE paper's trust region against its own bound, and Adam in minibatches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import azjax
from azjax.parameters import as_vector, separate
from azjax.trust_region import Search
from azjax.value_fitting import fit_values, value_optimizer, value_step

ROWS, FEATURES = 40, 3
RNG = np.random.default_rng(0)
DESIGN = RNG.normal(size=(ROWS, FEATURES))
RETURNS = DESIGN @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=ROWS) + 1.0
PHI = jnp.array([0.2, 0.1, -0.1])
ALL = jnp.ones(ROWS, bool)
SEARCH = Search(tolerance=1e-7, iterations=30)


def step(scale: float = 1.0, mask: Any = ALL, phi: Any = PHI, **settings: Any) -> Any:
    return program(phi, jnp.asarray(RETURNS * scale, jnp.float32), mask, **settings)


@jax.jit
def program(phi: Any, target: Any, mask: Any, bound: Any = 0.01, damping: Any = 0.0) -> Any:
    features = jnp.asarray(DESIGN, jnp.float32)
    return value_step(lambda p: features @ p, phi, target, mask, bound=bound, damping=damping, search=SEARCH)


def change_of(phi: Any, scale: float = 1.0) -> float:
    """The constrained quantity of the paper's equation 29, in numpy."""
    old, new = DESIGN @ np.asarray(PHI, np.float64), DESIGN @ np.asarray(phi, np.float64)
    return float(np.mean((new - old) ** 2) / (2 * np.mean((old - RETURNS * scale) ** 2)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_the_step_goes_to_the_edge_of_the_papers_bound_whatever_the_scale_of_returns(scale, bound):
    """The printed rescaling omits sigma^2: it would go to bound / sigma^2."""
    phi, info = step(scale, bound=bound)
    assert bool(info["value_accepted"])
    reached = change_of(phi, scale)
    np.testing.assert_allclose(info["value_change"], reached, rtol=1e-3)
    assert reached <= bound * (1 + 1e-4)
    np.testing.assert_allclose(reached, bound, rtol=1e-3)


def test_the_printed_rescaling_misses_the_bound_by_sigma_squared():
    """What the test above would see of it."""
    error = DESIGN @ np.asarray(PHI) - 100 * RETURNS
    s = -np.linalg.solve(DESIGN.T @ DESIGN / ROWS, DESIGN.T @ error / ROWS)
    printed = np.sqrt(2 * 0.01 / (s @ DESIGN.T @ DESIGN @ s / ROWS)) * s
    assert change_of(np.asarray(PHI) + printed, 100.0) < 1e-5


def test_least_squares_are_solved_in_one_step_where_the_bound_allows_it():
    phi, info = step(bound=100.0)
    np.testing.assert_allclose(phi, np.linalg.lstsq(DESIGN, RETURNS, rcond=None)[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(info["value_loss"], 0.5 * np.mean((DESIGN @ np.asarray(phi) - RETURNS) ** 2), rtol=1e-3)
    again, info = step(bound=100.0, phi=phi)  # nothing is left to gain
    np.testing.assert_allclose(again, phi, rtol=1e-3, atol=1e-4)


def test_damping_is_added_to_the_gauss_newton_matrix():
    phi, _ = step(bound=100.0, damping=0.7)
    error = DESIGN @ np.asarray(PHI) - RETURNS
    expected = -np.linalg.solve(DESIGN.T @ DESIGN / ROWS + 0.7 * np.eye(FEATURES), DESIGN.T @ error / ROWS)
    np.testing.assert_allclose(phi - PHI, expected, rtol=1e-3)


def test_the_bound_holds_for_networks_too():
    """A hundred problems at once; the quadratic model is wrong there, so the bound itself is what is searched for."""
    network = azjax.ActorCritic((4,), (8,))
    spec = jax.ShapeDtypeStruct((FEATURES,), jnp.float32)
    observation = jnp.asarray(DESIGN * 3, jnp.float32)

    def run(key: Any) -> Any:
        key_init, key_target, key_bound = jax.random.split(key, 3)
        params = network.init(key_init, spec, azjax.Box(1))
        phi, rebuild = as_vector(params, separate(network, params, observation).value)
        target = 3 * jax.random.normal(key_target, (ROWS,))
        bound = 10 ** jax.random.uniform(key_bound, minval=-3.0, maxval=-1.0)

        def value(phi: Any) -> Any:
            return network.apply(rebuild(phi), observation)[1]

        after, info = value_step(value, phi, target, ALL, bound=bound, damping=1e-3, search=Search(iterations=15))
        return value(phi), value(after), target, bound, info

    old, new, target, bound, info = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 100))
    old, new, target = (np.asarray(x, np.float64) for x in (old, new, target))
    change = np.mean((new - old) ** 2, axis=1) / (2 * np.mean((old - target) ** 2, axis=1))
    assert (change <= bound * (1 + 1e-4)).all()
    np.testing.assert_allclose(info["value_change"], change, rtol=1e-3, atol=1e-7)
    assert np.mean(info["value_accepted"]) > 0.9
    better = np.mean((new - target) ** 2, axis=1) < np.mean((old - target) ** 2, axis=1)
    assert better[np.asarray(info["value_accepted"]) > 0].all()


def test_masked_rows_take_no_part():
    mask = jnp.arange(ROWS) % 3 != 0
    phi, info = step(mask=mask, bound=100.0)
    kept = np.flatnonzero(mask)
    np.testing.assert_allclose(phi, np.linalg.lstsq(DESIGN[kept], RETURNS[kept], rcond=None)[0], rtol=1e-3, atol=1e-4)
    nothing, info = step(mask=jnp.zeros(ROWS, bool))
    np.testing.assert_array_equal(nothing, PHI)
    assert not info["value_accepted"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_target_that_is_not_finite_leaves_the_values_bit_for_bit(wrong):
    target = jnp.asarray(RETURNS, jnp.float32).at[3].set(wrong)
    phi, info = program(PHI, target, ALL)
    assert np.asarray(phi).tobytes() == np.asarray(PHI).tobytes()
    assert not info["value_accepted"]


def test_perfect_values_stay():
    target = jnp.asarray(DESIGN, jnp.float32) @ PHI
    phi, info = program(PHI, target, ALL)
    np.testing.assert_array_equal(phi, PHI)
    assert float(info["value_loss"]) == 0.0


def test_devices_share_a_step():
    """Their masks differ, so that a mean over all entries is no mean of the devices' means."""
    mask = jnp.arange(ROWS) > 15
    expected, _ = step(mask=mask)
    returns, design = jnp.asarray(RETURNS, jnp.float32), jnp.asarray(DESIGN, jnp.float32)

    def run(design: Any, returns: Any, mask: Any) -> Any:
        return value_step(
            lambda phi: design @ phi, PHI, returns, mask, bound=0.01, damping=0.0, search=SEARCH, axis_name="devices"
        )[0]

    parts = (design.reshape(4, -1, FEATURES), returns.reshape(4, -1), mask.reshape(4, -1))
    found = jax.jit(jax.vmap(run, axis_name="devices"))(*parts)
    np.testing.assert_array_equal(found[0], found[3])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Adam
# ---------------------------------------------------------------------------------------------------------------------


def fit(target: Any = RETURNS, mask: Any = ALL, epochs: int = 1, minibatches: int = 1, rate: float = 0.01) -> Any:
    rows = (jnp.asarray(DESIGN, jnp.float32), jnp.asarray(target, jnp.float32), mask)
    return fit_values(
        lambda phi, x: x @ phi,
        PHI,
        value_optimizer(rate).init(PHI),
        rows,
        jax.random.key(0),
        learning_rate=rate,
        epochs=epochs,
        minibatches=minibatches,
    )


def test_whole_batches_equal_optax_by_hand():
    adam, phi = optax.adam(0.01, eps=1e-5), PHI
    state = adam.init(phi)
    for _ in range(3):
        gradient = jnp.asarray(DESIGN.T @ (DESIGN @ np.asarray(phi, np.float64) - RETURNS) / ROWS, jnp.float32)
        change, state = adam.update(gradient, state)
        phi = phi + change
    found, _, info = fit(epochs=3)
    np.testing.assert_allclose(found, phi, rtol=1e-4)
    assert float(info["skipped"]) == 0.0


def test_epochs_of_minibatches_find_the_least_squares():
    found, optimizer, _ = fit(epochs=300, minibatches=4)
    np.testing.assert_allclose(found, np.linalg.lstsq(DESIGN, RETURNS, rcond=None)[0], atol=0.1)
    assert int(optax.tree.get(optimizer, "count")) == 1200


def test_a_minibatch_that_is_not_finite_is_left_out_and_counted():
    broken = np.where(np.arange(ROWS) == 5, np.nan, RETURNS)
    found, optimizer, info = fit(broken, minibatches=4)
    assert float(info["skipped"]) == 0.25
    assert np.isfinite(found).all()
    assert int(optax.tree.get(optimizer, "count")) == 3
    masked, _, info = fit(np.where(np.arange(ROWS) == 5, 0.0, RETURNS), ALL.at[5].set(False), minibatches=4)
    assert float(info["skipped"]) == 0.0
    assert not np.allclose(masked, found)
