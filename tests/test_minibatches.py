"""Masked means, and the order of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.minibatches import masked_mean, normalize_advantages, shuffled


def test_masked_mean_and_normalisation_equal_numpy():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(5, 4)).astype(np.float32) * 7 + 3, rng.random((5, 4)) < 0.6
    np.testing.assert_allclose(masked_mean(x, mask), x[mask].mean(), rtol=1e-5)
    normal = np.asarray(normalize_advantages(jnp.asarray(x), jnp.asarray(mask)))
    np.testing.assert_allclose(normal[mask], (x[mask] - x[mask].mean()) / x[mask].std(), rtol=1e-4, atol=1e-5)
    assert float(masked_mean(x, np.zeros_like(mask))) == 0.0
    assert np.isfinite(normalize_advantages(jnp.full(4, 2.0), jnp.ones(4, bool))).all()


@pytest.mark.parametrize("size", [1, 2, 37, 4096, 65536, 70000])
def test_shuffled_is_a_permutation_that_the_key_decides(size):
    first, second, other = (np.asarray(shuffled(jax.random.key(seed), size)) for seed in (0, 0, 1))
    assert first.dtype == np.int32
    np.testing.assert_array_equal(np.sort(first), np.arange(size))
    np.testing.assert_array_equal(first, second)
    assert size < 3 or (first != other).any()


def test_shuffled_places_every_row_anywhere():
    orders = np.asarray(jax.vmap(lambda key: shuffled(key, 8))(jax.random.split(jax.random.key(0), 8000)))
    counts = np.stack([np.bincount(column, minlength=8) for column in orders.T])  # [place, row]
    assert np.square(counts - 1000.0).sum() / 1000.0 < 90  # chi-square with 49 degrees of freedom, p = 3e-4
    pairs = np.bincount(orders[:, 0] * 8 + orders[:, 1], minlength=64).reshape(8, 8)
    assert (np.diag(pairs) == 0).all()
    off = pairs[~np.eye(8, dtype=bool)]
    assert np.square(off - off.mean()).sum() / off.mean() < 103  # 55 degrees, p = 1e-4
