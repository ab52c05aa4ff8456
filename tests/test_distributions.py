"""Action distributions against scipy, numerical integration and Monte-Carlo estimates."""

from __future__ import annotations

import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from azjax.distributions import LOG_STD_RANGE, Categorical, Distribution, Normal, TanhNormal

CONTINUOUS = pytest.mark.parametrize("family", [Normal, TanhNormal])
ALL = pytest.mark.parametrize("name", ["Normal", "TanhNormal", "Categorical"])
KEY = jax.random.key(0)


def example(name: str, seed: int = 0, batch: tuple[int, ...] = (4,)) -> Distribution:
    """A distribution with moderate random parameters."""
    rng = np.random.default_rng(seed)
    loc, other = jnp.asarray(rng.normal(size=(2, *batch, 3)), jnp.float32)
    return {
        "Normal": Normal(loc, other / 2),
        "TanhNormal": TanhNormal(loc, other / 2),
        "Categorical": Categorical(loc),
    }[name]


def samples(distribution: Distribution, number: int) -> jax.Array:
    return jax.jit(jax.vmap(distribution.sample))(jax.random.split(KEY, number))


@ALL
def test_shapes_types_and_interface(name):
    distribution = example(name, batch=(5, 4))
    raw_action = distribution.sample(KEY)
    values = jax.jit(lambda p, q, raw: (p.log_prob(raw), p.entropy(), p.kl(q), p.log_prob(jnp.stack([raw] * 3))))(
        distribution, example(name, 1, (5, 4)), raw_action
    )
    assert isinstance(distribution, Distribution)
    event = () if name == "Categorical" else (3,)
    dtype = jnp.int32 if name == "Categorical" else jnp.float32
    for action in (raw_action, distribution.action(raw_action), distribution.mode()):
        assert (action.shape, action.dtype) == ((5, 4, *event), dtype)
    for value in values[:3]:
        assert (value.shape, value.dtype) == ((5, 4), jnp.float32)
    # Further leading axes of raw actions, for several samples of one distribution.
    np.testing.assert_array_equal(values[3], np.stack([values[0]] * 3))


@ALL
def test_immutable_pytree(name):
    distribution = example(name)
    with pytest.raises(AttributeError):
        distribution.loc = jnp.zeros(3)
    assert type(jax.tree.map(lambda leaf: leaf[0], distribution)) is type(distribution)
    assert len(jax.tree.leaves(distribution)) == (1 if name == "Categorical" else 2)


@ALL
def test_jit_and_vmap_change_nothing(name):
    distribution, other = example(name), example(name, 1)
    raw_action = distribution.sample(KEY)

    def evaluate(distribution, other, raw_action):
        return distribution.log_prob(raw_action), distribution.kl(other), distribution.action(raw_action)

    expected = evaluate(distribution, other, raw_action)
    for transform in (jax.jit, lambda function: jax.jit(jax.vmap(function))):
        chex.assert_trees_all_close(transform(evaluate)(distribution, other, raw_action), expected, rtol=1e-5)
    chex.assert_trees_all_close(jax.jit(lambda d: d.sample(KEY))(distribution), raw_action, rtol=1e-6)


@ALL
def test_the_key_decides_the_sample(name):
    distribution = example(name)
    chex.assert_trees_all_equal(distribution.sample(KEY), distribution.sample(KEY))
    draws = samples(distribution, 100)
    assert (draws != draws[0]).any(0).all()


def test_normal_against_scipy():
    distribution = example("Normal")
    reference = scipy.stats.norm(np.asarray(distribution.loc, np.float64), np.exp(np.asarray(distribution.log_std)))
    raw_action = np.asarray(distribution.sample(KEY))
    np.testing.assert_allclose(distribution.log_prob(raw_action), reference.logpdf(raw_action).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), reference.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_allclose(distribution.std, reference.std(), rtol=1e-6)
    np.testing.assert_array_equal(distribution.mode(), distribution.loc)
    np.testing.assert_array_equal(distribution.action(raw_action), raw_action)


def test_normal_kl_in_closed_form():
    p, q = Normal(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 1.0]))), Normal(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_allclose(p.kl(q), np.log(1 / 2) + (4 + 1) / 2 - 1 / 2, rtol=1e-6)
    np.testing.assert_allclose(q.kl(p), np.log(2) + (1 + 1) / (2 * 4) - 1 / 2, rtol=1e-6)


def test_a_small_divergence_keeps_its_digits():
    """A trust region compares divergences of 1e-2 and less, whose terms nearly cancel in the textbook form."""
    log_ratios = np.linspace(1e-3, 5e-3, 50, dtype=np.float32)[:, None]
    p, q = Normal(jnp.zeros((50, 1)), jnp.asarray(log_ratios)), Normal(jnp.zeros((50, 1)), jnp.zeros((50, 1)))
    doubled = 2 * log_ratios[:, 0].astype(np.float64)
    np.testing.assert_allclose(p.kl(q), 0.5 * (np.expm1(doubled) - doubled), rtol=1e-3)


def test_the_hessian_of_the_divergence_is_the_fisher_information():
    """What TRPO needs of it: at equal parameters the value and gradient vanish, the curvature does not."""
    at = jnp.array([0.3, -0.7])

    def divergence(parameters):
        return Normal(at[:1], at[1:]).kl(Normal(parameters[:1], parameters[1:]))

    assert divergence(at) == 0
    np.testing.assert_array_equal(jax.jit(jax.grad(divergence))(at), 0)
    np.testing.assert_allclose(jax.jit(jax.hessian(divergence))(at), np.diag([np.exp(1.4), 2.0]), rtol=1e-5, atol=1e-6)


def test_log_std_may_be_state_independent():
    loc = example("Normal").loc
    for family in (Normal, TanhNormal):
        shared, spelled_out = family(loc, jnp.full(3, -0.5)), family(loc, jnp.full((4, 3), -0.5))
        raw_action = shared.sample(KEY)
        chex.assert_trees_all_close(raw_action, spelled_out.sample(KEY))
        for method in ("log_prob", "entropy", "kl"):
            arguments = {"log_prob": [raw_action], "entropy": [], "kl": [family(loc + 1, jnp.zeros(3))]}[method]
            result = getattr(shared, method)(*arguments)
            assert result.shape == (4,)
            np.testing.assert_allclose(result, getattr(spelled_out, method)(*arguments), rtol=1e-6)


@pytest.mark.parametrize(("loc", "std"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 0.8), (0.0, 3.0)])
def test_the_tanh_normal_density_integrates_to_1(loc, std):
    """Over actions, that is with the change of variables, on a grid that is even in the raw action."""
    distribution = TanhNormal(jnp.array([loc]), jnp.log(jnp.array([std])))
    raw_action = np.linspace(loc - 8 * std, loc + 8 * std, 20001)
    density = np.exp(np.asarray(distribution.log_prob(jnp.asarray(raw_action, jnp.float32)[:, None]), np.float64))
    # d tanh(x) = dx / cosh(x)^2, in float64: an independent spelling of the Jacobian.
    np.testing.assert_allclose(np.trapezoid(density / np.cosh(raw_action) ** 2, raw_action), 1.0, rtol=1e-4)
    inside = np.linspace(-0.999, 0.999, 4001)
    probability = np.exp(distribution.log_prob(jnp.arctanh(inside)[:, None]))
    expected = np.diff(scipy.stats.norm(loc, std).cdf(np.arctanh([-0.999, 0.999])))[0]
    np.testing.assert_allclose(np.trapezoid(probability, inside), expected, rtol=2e-2)


def test_tanh_normal_against_the_naive_formula_in_float64():
    distribution = example("TanhNormal")
    raw_action = np.asarray(distribution.sample(KEY), np.float64)
    base = scipy.stats.norm(np.asarray(distribution.loc, np.float64), np.exp(np.asarray(distribution.log_std)))
    expected = (base.logpdf(raw_action) - np.log1p(-(np.tanh(raw_action) ** 2))).sum(-1)
    np.testing.assert_allclose(distribution.log_prob(raw_action), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(distribution.action(raw_action), np.tanh(raw_action), rtol=1e-6)
    np.testing.assert_array_equal(distribution.mode(), distribution.loc)


@ALL
def test_entropy_equals_the_mean_of_minus_log_prob(name):
    distribution = example(name)
    log_prob = -np.asarray(jax.jit(distribution.log_prob)(samples(distribution, 20_000)), np.float64)
    np.testing.assert_array_less(
        np.abs(distribution.entropy() - log_prob.mean(0)), 5 * np.sqrt(log_prob.var(0) / 20_000)
    )


@pytest.mark.parametrize(("std", "error"), [(0.01, 1e-4), (0.3, 1e-4), (1.0, 1e-4), (2.0, 3e-3), (7.4, 0.3)])
def test_the_entropy_of_a_tanh_normal_is_as_exact_as_stated(std, error):
    """Against scipy's adaptive quadrature of the squashing term, and its derivatives against differences of that."""

    def squashing(loc, std):
        density = scipy.stats.norm(loc, std).pdf
        slope = lambda x: -2 * (np.logaddexp(x, -x) - np.log(2))  # noqa: E731
        edges = [-9 * std + loc, -3 * std + loc, 0.0, loc, 3 * std + loc, 9 * std + loc]
        return sum(
            scipy.integrate.quad(lambda x: density(x) * slope(x), a, b, epsabs=1e-10)[0]
            for a, b in itertools.pairwise(sorted(edges))
        )

    entropy = jax.jit(lambda loc, log_std: TanhNormal(loc[None], log_std[None]).entropy())
    gradient = jax.grad(entropy, argnums=(0, 1))
    for loc in (0.0, 0.4, -1.5, 5.0):
        expected = scipy.stats.norm(loc, std).entropy() + squashing(loc, std)
        arguments = jnp.float32(loc), jnp.log(jnp.float32(std))
        np.testing.assert_allclose(entropy(*arguments), expected, atol=error, rtol=1e-5)
        by_loc, by_log_std = gradient(*arguments)
        h = 1e-4
        np.testing.assert_allclose(
            by_loc, (squashing(loc + h, std) - squashing(loc - h, std)) / (2 * h), atol=10 * error
        )
        wider, narrower = squashing(loc, std * np.exp(h)), squashing(loc, std * np.exp(-h))
        np.testing.assert_allclose(by_log_std, 1 + (wider - narrower) / (2 * h), atol=10 * error)


@ALL
def test_kl_equals_the_mean_of_the_log_ratio(name):
    p, q = example(name, 0), example(name, 1)
    ratio = jax.jit(lambda raw_actions: p.log_prob(raw_actions) - q.log_prob(raw_actions))(samples(p, 20_000))
    ratio = np.asarray(ratio, np.float64)
    np.testing.assert_array_less(np.abs(ratio.mean(0) - p.kl(q)), 5 * ratio.std(0) / np.sqrt(20_000))


@CONTINUOUS
def test_samples_have_the_stated_moments(family):
    distribution = family(jnp.array([0.5, -2.0]), jnp.log(jnp.array([0.1, 3.0])))
    raw_actions = np.asarray(samples(distribution, 20_000))
    np.testing.assert_allclose(raw_actions.mean(0), [0.5, -2.0], atol=5 * 3 / np.sqrt(20_000))
    np.testing.assert_allclose(raw_actions.std(0), [0.1, 3.0], rtol=0.03)


@CONTINUOUS
def test_samples_are_reparameterised(family):
    def total(loc, log_std):
        return jnp.sum(family(loc, log_std).sample(KEY))

    by_loc, by_log_std = jax.grad(total, argnums=(0, 1))(jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_array_equal(by_loc, 1)
    np.testing.assert_allclose(by_log_std, family(jnp.zeros(3), jnp.zeros(3)).sample(KEY), rtol=1e-6)


@CONTINUOUS
def test_values_and_gradients_are_finite_at_extremes(family):
    @jax.jit
    @jax.vmap
    def evaluate(loc, log_std, raw_action):
        def value(loc, log_std, raw_action):
            p, q = family(loc, log_std), family(raw_action, -log_std / 2)
            return p.log_prob(raw_action) + p.entropy() + p.kl(q) + p.action(p.sample(KEY)).sum()

        return jax.value_and_grad(value, argnums=(0, 1, 2))(loc, log_std, raw_action)

    log_stds = [-1e9, -100.0, LOG_STD_RANGE[0], 0.0, LOG_STD_RANGE[1], 100.0, 1e9]
    sizes = [sign * size for size in (0.0, 1e-30, 8.9, 20.0, 100.0, 1e4, 1e9) for sign in (1, -1)]
    grid = np.array(list(itertools.product(log_stds, sizes)), np.float32)
    chex.assert_tree_all_finite(evaluate(np.zeros_like(grid[:, :1]), grid[:, :1], grid[:, 1:]))


def test_tanh_log_prob_neither_overflows_nor_rounds_where_the_action_saturates():
    """At |x| = 20 the naive log(1 - tanh(x)^2) is log(0); the true value is 2 log 2 - 2 |x|."""
    raw_action = jnp.array([20.0, -20.0, 1e4, -1e4])[:, None]
    distribution = TanhNormal(raw_action, jnp.zeros_like(raw_action))
    expected = -0.5 * np.log(2 * np.pi) - 2 * np.log(2) + 2 * np.abs(raw_action[:, 0])
    np.testing.assert_allclose(distribution.log_prob(raw_action), expected, rtol=1e-6)
    np.testing.assert_array_equal(distribution.action(raw_action), jnp.sign(raw_action))


def test_log_std_beyond_its_range_is_clipped_consistently():
    low, high = LOG_STD_RANGE
    for log_std, clipped in [(-1e3, low), (1e3, high)]:
        beyond, at = Normal(jnp.zeros(1), jnp.full(1, log_std)), Normal(jnp.zeros(1), jnp.full(1, clipped))
        assert beyond.std == at.std
        assert beyond.entropy() == at.entropy()
        assert beyond.kl(at) == 0
        assert beyond.sample(KEY) == at.sample(KEY)
        assert beyond.log_prob(jnp.ones(1)) == at.log_prob(jnp.ones(1))


finite = st.floats(-5, 5, width=32)


def vectors(size: int) -> st.SearchStrategy:
    return st.lists(finite, min_size=size, max_size=size).map(lambda values: jnp.array(values, jnp.float32))


kl = jax.jit(lambda p, q: (p.kl(q), p.kl(p)))


@settings(deadline=None, max_examples=40)
@given(*[vectors(3)] * 4)
def test_property_divergences_are_not_negative_and_vanish_only_at_equality(a, b, c, d):
    for p, q in [(Normal(a, b), Normal(c, d)), (TanhNormal(a, b), TanhNormal(c, d)), (Categorical(a), Categorical(c))]:
        between, itself = kl(p, q)
        assert itself == 0
        assert between >= -1e-6


@pytest.mark.parametrize("shift", [0.0, 100.0, -1e6])
def test_categorical_against_scipy(shift):
    logits = np.asarray(example("Categorical").logits)
    other = np.asarray(example("Categorical", 1).logits)
    distribution = Categorical(jnp.asarray(logits) + shift)
    logits = np.asarray(distribution.logits, np.float64)  # what the shift has left of them in float32
    p, q = scipy.special.softmax(logits, -1), scipy.special.softmax(other, -1)
    raw_action = np.array([0, 2, 1, 1])
    np.testing.assert_allclose(distribution.log_prob(raw_action), np.log(p[np.arange(4), raw_action]), rtol=1e-4)
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(distribution.kl(Categorical(other)), scipy.stats.entropy(p, q, axis=-1), rtol=1e-4)
    np.testing.assert_array_equal(distribution.mode(), p.argmax(-1))


def test_categorical_samples_have_the_stated_frequencies():
    distribution = Categorical(jnp.log(jnp.array([0.1, 0.2, 0.7])))
    frequencies = np.bincount(samples(distribution, 20_000), minlength=3) / 20_000
    np.testing.assert_allclose(frequencies, [0.1, 0.2, 0.7], atol=5 * 0.5 / np.sqrt(20_000))


def test_masked_categories_are_never_chosen_and_stay_out_of_values_and_gradients():
    logits = jnp.array([1.0, -jnp.inf, 2.0, -jnp.inf])
    kept = jnp.array([1.0, 2.0])
    masked, small = Categorical(logits), Categorical(kept)
    assert set(np.unique(samples(masked, 200))) == {0, 2}
    np.testing.assert_allclose(masked.entropy(), small.entropy(), rtol=1e-6)
    np.testing.assert_allclose(masked.kl(Categorical(jnp.zeros(4))), np.log(4) - small.entropy(), rtol=1e-5)
    np.testing.assert_allclose(masked.kl(masked), 0)
    np.testing.assert_allclose(masked.log_prob(jnp.array(2)), small.log_prob(jnp.array(1)), rtol=1e-6)
    assert Categorical(jnp.zeros(4)).kl(masked) == jnp.inf

    def value(logits, other):
        p = Categorical(logits)
        return p.entropy() + p.kl(Categorical(other)) + p.log_prob(jnp.array(0))

    for gradient in jax.jit(jax.grad(value, argnums=(0, 1)))(logits, jnp.where(jnp.isfinite(logits), 0.0, logits)):
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[jnp.array([1, 3])], 0)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_categorical_gradients_are_finite_at_extreme_logits(size):
    def value(logits, other):
        p, q = Categorical(logits), Categorical(other)
        return p.entropy() + p.log_prob(jnp.array(0)) + p.kl(q)

    logits = jnp.array([size, 0.0, -size])
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(logits, -logits))


def test_errors_are_clear():
    normal, squashed, choice = (example(name) for name in ("Normal", "TanhNormal", "Categorical"))
    with pytest.raises(TypeError, match="one class, got Normal and TanhNormal"):
        normal.kl(squashed)
    with pytest.raises(TypeError, match="one class"):
        choice.kl(normal)
    with pytest.raises(AssertionError, match="float32"):
        choice.log_prob(jnp.zeros(4))
    for distribution in (normal, squashed):
        with pytest.raises(AssertionError, match="dimension"):
            distribution.log_prob(jnp.zeros((4, 1)))
        with pytest.raises(AssertionError, match="dimension"):
            distribution.kl(type(distribution)(jnp.zeros((4, 1)), jnp.zeros((4, 1))))
    assert jnp.isnan(choice.log_prob(jnp.full(4, 3))).all()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        for family in (Normal, TanhNormal):
            distribution = family(jnp.zeros(2), jnp.zeros(2))
            assert distribution.sample(KEY).dtype == jnp.float64
            assert distribution.log_prob(jnp.ones(2)).dtype == jnp.float64
        choice = Categorical(jnp.zeros(3))
        assert choice.sample(KEY).dtype == choice.mode().dtype == jnp.int32


@pytest.mark.parametrize("name", ["Normal", "TanhNormal", "Categorical"])
def test_the_fisher_product_is_the_hessian_of_the_divergence_and_the_variance_of_the_score(name):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        if name == "Categorical":
            distribution = Categorical(jnp.asarray(rng.normal(size=4)))
        else:
            distribution = {"Normal": Normal, "TanhNormal": TanhNormal}[name](
                jnp.asarray(rng.normal(size=2)), jnp.asarray(rng.normal(size=2) * 0.3)
            )
        flat, unravel = jax.flatten_util.ravel_pytree(distribution)
        found = jax.vmap(lambda v: jax.flatten_util.ravel_pytree(distribution.fisher_product(unravel(v)))[0])(
            jnp.eye(flat.size)
        )
        hessian = jax.hessian(lambda other: distribution.kl(unravel(other)))(flat)
        np.testing.assert_allclose(found, hessian, rtol=1e-9, atol=1e-12)

        actions = samples(distribution, 50_000)
        scores = jax.vmap(jax.grad(lambda x, a: unravel(x).log_prob(a)), (None, 0))(flat, jnp.asarray(actions))
        np.testing.assert_allclose(found, np.cov(scores.T), atol=0.1)


def test_the_fisher_product_leaves_out_what_has_no_gradient():
    beyond = Normal(jnp.zeros(2), jnp.array([LOG_STD_RANGE[0] - 1, LOG_STD_RANGE[1] + 1]))
    np.testing.assert_array_equal(beyond.fisher_product(Normal(jnp.zeros(2), jnp.ones(2))).log_std, 0.0)
    masked = Categorical(jnp.array([0.0, -jnp.inf, 1.0]))
    product = masked.fisher_product(Categorical(jnp.array([1.0, jnp.nan, 0.0]))).logits
    p = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    np.testing.assert_allclose(product, [p[0] * (1 - p[0]), 0.0, -p[0] * p[1]], rtol=1e-6)
    with pytest.raises(AssertionError, match="shape"):
        Normal(jnp.zeros((4, 2)), jnp.zeros(2)).fisher_product(Normal(jnp.zeros((4, 2)), jnp.zeros(2)))
