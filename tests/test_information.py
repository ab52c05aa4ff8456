"""Information of outcomes about actions: closed forms, nulls, and the constant that changes nothing."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from azjax.config import ConfigError
from azjax.selfplay import (
    binary_entropy,
    branched_information,
    classifier_information,
    learnability,
    outcome_entropy,
)

KEY = jax.random.key(0)


def bits(p: Any) -> Any:
    return entropy([p, 1 - p], base=2)


def bandit(probabilities: Any, states: int, actions: int, continuations: int, seed: int = 0) -> Any:
    """Outcomes of uniformly sampled arms, float32 [S, M, C]."""
    rng = np.random.default_rng(seed)
    arms = rng.integers(0, len(probabilities), (states, actions))
    return rng.random((states, actions, continuations)) < np.asarray(probabilities)[arms][:, :, None]


def test_the_entropy_of_a_coin() -> None:
    p = np.linspace(0.0, 1.0, 21)
    np.testing.assert_allclose(binary_entropy(jnp.asarray(p)), bits(p), atol=1e-6)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_the_correction_takes_most_of_the_bias_away(p: float) -> None:
    n, k = 16, np.arange(17)
    probability = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in k])
    corrected = (probability * np.asarray(outcome_entropy(jnp.asarray(k), n))).sum()
    plain = (probability * bits(k / n)).sum()
    assert abs(corrected - bits(p)) < 0.3 * abs(plain - bits(p))
    assert outcome_entropy(jnp.array([0, n]), n).tolist() == [0.0, 0.0]


def test_learnability_is_a_lower_bound_on_the_bits_of_an_attempt() -> None:
    p = np.linspace(0.0, 1.0, 101)
    assert (4 * p * (1 - p) <= bits(p) + 1e-12).all()
    k, n = np.arange(101), 100
    raw = np.asarray(learnability(jnp.asarray(k), n)) * (n - 1) / n
    assert (raw <= np.asarray(binary_entropy(jnp.asarray(k / n))) + 1e-5).all()


@pytest.mark.parametrize("probabilities", [(0.2, 0.8), (0.45, 0.55), (0.1, 0.5, 0.9), (0.0, 1.0)])
def test_branching_finds_the_closed_form_of_a_bandit(probabilities: Any) -> None:
    truth = bits(np.mean(probabilities)) - bits(np.array(probabilities)).mean()
    estimate = branched_information(jnp.asarray(bandit(probabilities, 400, 8, 8)), KEY, permutations=8)
    error = float(jnp.std(estimate.per_state)) / math.sqrt(400)
    assert abs(float(estimate.information) - truth) < 4 * error + 0.05 * truth


def test_branching_with_all_arms_once() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.random((300, 2, 64)) < np.array([0.2, 0.8])[:, None]
    estimate = branched_information(jnp.asarray(outcomes), KEY, sampled=False, permutations=8)
    np.testing.assert_allclose(estimate.information, 1 - bits(0.2), atol=0.01)


@pytest.mark.parametrize("kind", ["discrete", "gaussian"])
def test_actions_without_consequence_give_nothing(kind: Any) -> None:
    rng = np.random.default_rng(1)
    outcomes = rng.random((400, 8, 8)) < 0.3 if kind == "discrete" else rng.normal(size=(400, 8, 8))
    estimate = branched_information(jnp.asarray(outcomes), KEY, kind=kind, permutations=16)
    error = float(jnp.std(estimate.per_state)) / math.sqrt(400)
    assert abs(float(estimate.information)) < 4 * error
    assert abs(float(estimate.per_state.mean()) - float(estimate.null)) < 4 * error


def test_unanimous_outcomes_give_exactly_0_whatever_they_are() -> None:
    for value in (0.0, 1.0, -7.25):
        for kind in ("discrete", "gaussian"):
            estimate = branched_information(jnp.full((3, 4, 4), value), KEY, kind=kind, permutations=4)  # type: ignore[arg-type]
            assert estimate.per_state.tolist() == [0.0] * 3
            assert float(estimate.information) == 0.0


@pytest.mark.parametrize("between", [0.5, 1.0, 2.0])
def test_gaussian_returns(between: float) -> None:
    """Means of the actions with standard deviation b, noise with 1: I = log2(1 + b^2) / 2."""
    rng = np.random.default_rng(2)
    outcomes = between * rng.normal(size=(600, 16, 1)) + rng.normal(size=(600, 16, 16))
    estimate = branched_information(jnp.asarray(outcomes), KEY, kind="gaussian", permutations=8)
    np.testing.assert_allclose(estimate.information, 0.5 * np.log2(1 + between**2), rtol=0.06)


def test_adding_a_constant_to_rewards_changes_nothing() -> None:
    """The claim of the article that azjax started from: a constant cannot make a sparse signal denser."""
    outcomes = jnp.asarray(bandit((0.1, 0.6, 0.9), 20, 8, 8), jnp.float32)
    returns = jnp.round(jax.random.normal(KEY, (20, 8, 8)) * 256) / 256
    for kind, values in (("discrete", outcomes), ("gaussian", returns)):
        before = branched_information(values, KEY, kind=kind, permutations=4)  # type: ignore[arg-type]
        after = branched_information(values + 1024.0, KEY, kind=kind, permutations=4)  # type: ignore[arg-type]
        tolerance = 0 if kind == "discrete" else 1e-3
        jax.tree.map(lambda a, b, t=tolerance: np.testing.assert_allclose(a, b, atol=t), after, before)


def hindsight(probabilities: Any, seed: int = 3, number: int = 4000) -> Any:
    """States, arms, outcomes and log-policy of a bandit whose better arm depends on the state's sign."""
    rng = np.random.default_rng(seed)
    states = rng.choice([-1.0, 1.0], (number, 1))
    policy = np.where(states > 0, [[0.3, 0.7]], [[0.5, 0.5]])
    arms = (rng.random(number) < policy[:, 1]).astype(int)
    favoured = arms == (states[:, 0] > 0)
    outcomes = rng.random(number) < np.where(favoured, probabilities[1], probabilities[0])
    return jnp.asarray(states), jnp.asarray(arms), jnp.asarray(outcomes, jnp.int32), jnp.asarray(np.log(policy))


def truth_of_hindsight(probabilities: Any) -> float:
    low, high = probabilities
    given = []
    for favoured in (0.7, 0.5):
        p = favoured * high + (1 - favoured) * low
        given.append(bits(p) - favoured * bits(high) - (1 - favoured) * bits(low))
    return float(np.mean(given))


def test_the_classifier_bounds_the_information_from_below() -> None:
    truth = truth_of_hindsight((0.2, 0.9))
    estimate = jax.jit(classifier_information)(*hindsight((0.2, 0.9)), KEY)
    assert 0.8 * truth < float(estimate.bound) < 1.15 * truth
    assert float(estimate.null) < 0.02 * truth
    nothing = jax.jit(classifier_information)(*hindsight((0.5, 0.5)), KEY)
    assert abs(float(nothing.bound)) < 0.01


@pytest.mark.parametrize(
    ("outcomes", "options", "message"),
    [
        (np.zeros((2, 1, 4)), {}, "1 actions"),
        (np.zeros((2, 4, 1)), {}, "1 continuations"),
        (np.zeros((2, 4, 4)), {"kind": "gausian"}, "did you mean 'gaussian'"),
        (np.zeros((2, 4, 4)), {"permutations": 0}, "permutations is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(outcomes: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branched_information(jnp.asarray(outcomes), KEY, **options)
