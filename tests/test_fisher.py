"""Fisher-vector products: two forms against each other and against a dense matrix, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import azjax
from azjax.fisher import double_backward_product, fisher_product, gauss_newton_product
from azjax.parameters import as_vector, separate

ROWS, INPUTS = 7, 3
FORMS = (fisher_product, double_backward_product)
KINDS = {
    "normal": (azjax.Box(2), {"distribution": "normal"}),
    "tanh-normal": (azjax.Box(2), {"distribution": "tanh-normal"}),
    "state-dependent-std": (azjax.Box(2), {"state_dependent_std": True}),
    "categorical": (azjax.Discrete(4), {}),
}


def problem(kind: str, seed: int = 0) -> Any:
    """A policy on a batch as a function of its parameters, those parameters, and weights."""
    spec, settings = KINDS[kind]
    network = azjax.ActorCritic((4,), (4,), **settings)
    rng = np.random.default_rng(seed)
    observation = jnp.asarray(rng.normal(size=(ROWS, INPUTS)))
    params = network.init(jax.random.key(seed), jax.ShapeDtypeStruct((INPUTS,), observation.dtype), spec)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5), params)
    theta, rebuild = as_vector(params, separate(network, params, observation).policy)
    weights = rng.random(ROWS)
    return lambda t: network.apply(rebuild(t), observation)[0], theta, jnp.asarray(weights / weights.sum())


def dense(policy: Any, theta: Any, weights: Any) -> np.ndarray:
    """Jacobians by central differences, the distribution's Fisher written out, everything in numpy."""
    theta, policy = np.asarray(theta), jax.jit(policy)

    def outputs(t: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(x) for x in jax.tree.leaves(policy(jnp.asarray(t)))]

    shift = 1e-6
    columns = [
        [(a - b) / (2 * shift) for a, b in zip(outputs(theta + shift * e), outputs(theta - shift * e), strict=True)]
        for e in np.eye(len(theta))
    ]
    jacobians = [np.stack(leaf, axis=-1) for leaf in zip(*columns, strict=True)]  # [rows, outputs, parameters]
    distribution = policy(jnp.asarray(theta))
    total = np.zeros((len(theta), len(theta)))
    for n, weight in enumerate(np.asarray(weights)):
        if isinstance(distribution, azjax.Categorical):
            p = np.exp(np.asarray(distribution.log_probs[n]))
            blocks = [np.diag(p) - np.outer(p, p)]
        else:
            blocks = [np.diag(np.exp(-2 * np.asarray(distribution.log_std[n]))), 2 * np.eye(distribution.loc.shape[-1])]
        total += weight * sum(j[n].T @ block @ j[n] for j, block in zip(jacobians, blocks, strict=True))
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_equal_the_dense_fisher_in_float64(kind):
    with jax.enable_x64(True):
        policy, theta, weights = problem(kind)
        assert theta.dtype == jnp.float64
        matrix = dense(policy, theta, weights)
        assert np.linalg.eigvalsh(matrix).min() > -1e-9
        vectors = np.random.default_rng(1).normal(size=(4, len(theta)))
        for form in FORMS:
            found = jax.jit(jax.vmap(form(policy, theta, weights)))(jnp.asarray(vectors))
            np.testing.assert_allclose(found, vectors @ matrix, rtol=1e-5, atol=1e-7)
        one, two = (jax.jit(jax.vmap(form(policy, theta, weights)))(vectors) for form in FORMS)
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_agree_in_float32(kind):
    policy, theta, weights = problem(kind)
    assert theta.dtype == jnp.float32
    v = jnp.asarray(np.random.default_rng(1).normal(size=len(theta)), jnp.float32)
    one, two = (jax.jit(lambda v, form=form: form(policy, theta, weights)(v))(v) for form in FORMS)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * float(jnp.abs(one).max()))


def test_a_log_std_that_all_states_share_counts_for_each():
    """F of log_std is 2 whatever the number of states; summed as one row it would be 2 / rows."""

    def policy(theta: Any) -> azjax.Normal:
        return azjax.Normal(jnp.zeros((ROWS, 2)) + theta[:2], theta[2:])  # log_std [2] beside loc [ROWS, 2]

    theta, weights = jnp.array([0.0, 0.0, 0.5, -0.5]), jnp.full(ROWS, 1 / ROWS)
    expected = np.array([np.exp(-1.0), np.exp(1.0), 2.0, 2.0])
    for form in FORMS:
        np.testing.assert_allclose(form(policy, theta, weights)(jnp.ones(4)), expected, rtol=1e-5)


def test_rows_without_weight_take_no_part():
    policy, theta, _ = problem("tanh-normal")
    kept = jnp.arange(ROWS) < 4
    v = jnp.ones_like(theta)
    among = fisher_product(policy, theta, kept / 4)(v)
    alone = fisher_product(lambda t: jax.tree.map(lambda x: x[:4], policy(t)), theta, jnp.full(4, 0.25))(v)
    np.testing.assert_allclose(among, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_devices_share_a_product(form):
    spec, _ = KINDS["normal"]
    network = azjax.ActorCritic((4,), (4,))
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(8, INPUTS)), jnp.float32)
    params = network.init(jax.random.key(0), jax.ShapeDtypeStruct((INPUTS,), jnp.float32), spec)
    theta, rebuild = as_vector(params, separate(network, params, observation).policy)
    v, weights = jnp.sin(jnp.arange(theta.size, dtype=jnp.float32)), jnp.arange(8.0) / 28

    def product(observation: Any, weights: Any, axis_name: str | None = None) -> Any:
        return form(lambda t: network.apply(rebuild(t), observation)[0], theta, weights, axis_name)(v)

    divided = jax.jit(jax.vmap(lambda o, w: product(o, w, "devices"), axis_name="devices"))
    halves = divided(observation.reshape(2, 4, INPUTS), weights.reshape(2, 4))
    np.testing.assert_array_equal(halves[0], halves[1])
    np.testing.assert_allclose(halves[0], jax.jit(product)(observation, weights), rtol=1e-4, atol=1e-6)


def test_a_product_is_linear_in_the_batch_of_a_plain_function():
    """J^T W J of least squares."""
    design = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, 3)), jnp.float32)
    weights = jnp.arange(1.0, ROWS + 1)
    product = gauss_newton_product(lambda t: design @ t, jnp.zeros(3), weights)
    expected = np.asarray(design).T @ np.diag(weights) @ np.asarray(design)
    np.testing.assert_allclose(jax.vmap(product)(jnp.eye(3)), expected, rtol=1e-4)
