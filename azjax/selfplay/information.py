r"""How much the outcome of a task tells about the actions, in bits.

A task in which every attempt fails, or every attempt succeeds, teaches nothing, whatever constant is added to its
rewards. The measure of it is the mutual information of action and outcome,

.. math:: I(A; Z \mid S) = \mathbb{E}_{s}\left[ H(Z \mid s) - \mathbb{E}_{a \sim \pi} H(Z \mid s, a) \right]

for the policy at hand; information sparsity is about its largest value over all initial policies, which nothing here
estimates. There are three estimates, from cheap to exact:

* :func:`outcome_entropy`: H(Z) for each task, from the attempts that were made anyway; an upper bound, and where the
  outcome is a deterministic function of all actions together, what they tell in total;
* :func:`classifier_information`: a lower bound, from how well a classifier names the action that led to an outcome;
* :func:`branched_information`: the estimate proper, from several actions in each of several states, each continued
  several times (:func:`azjax.selfplay.branch` plays them).

These are diagnostics: as a reward for a proposer they would count its learnability twice, for
:math:`4 p (1 - p) \le H_b(p)`.

References:
  Arumugam, Henderson, Bacon, "An Information-Theoretic Perspective on Credit Assignment in Reinforcement Learning",
  2021, https://arxiv.org/abs/2103.06224, definitions 1 and 2, proposition 2.
  Miller, "Note on the bias of information estimates", 1955, for the correction of entropies.
  Barber, Agakov, "The IM algorithm: a variational approach to information maximization", 2003, for the lower bound.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from azjax.config import nearest, require, require_number
from azjax.selfplay.classifier import log_softmax_regression

__all__ = [
    "BranchedInformation",
    "ClassifierInformation",
    "OutcomeKind",
    "binary_entropy",
    "branched_information",
    "classifier_information",
    "outcome_entropy",
]

OutcomeKind = Literal["discrete", "gaussian"]


def binary_entropy(p: chex.Numeric) -> chex.Array:
    r"""Entropy of a coin in bits, :math:`H_b(p) = -p \log_2 p - (1 - p) \log_2 (1 - p)`; 0 at p = 0 and p = 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> binary_entropy(jnp.array([0.0, 0.5, 1.0])).tolist()
      [0.0, 1.0, 0.0]
    """
    p = jnp.asarray(p, jnp.float32)
    return -(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlogy(1.0 - p, 1.0 - p)) / math.log(2.0)


def outcome_entropy(successes: chex.Array, attempts: chex.Numeric) -> chex.Array:
    r"""Entropy of success for each task in bits, from k successes of n attempts.

    .. math:: \hat H = H_b(k / n) + \frac{1}{2 n \ln 2} \text{ if } 0 < k < n, \text{ else } 0

    The second term is Miller's and Madow's correction of the bias.

    Args:
      successes: `[...]` k.
      attempts: n, a number or an array that broadcasts with `successes`.

    Returns:
      float32 `[...]`; the correction may carry a value above 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> outcome_entropy(jnp.array([0, 4, 8]), 8).tolist()
      [0.0, 1.0901684, 0.0]
    """
    n = jnp.asarray(attempts, jnp.float32)
    k = jnp.asarray(successes, jnp.float32)
    return binary_entropy(k / n) + jnp.where((k > 0) & (k < n), 1.0 / (2.0 * n * math.log(2.0)), 0.0)


class BranchedInformation(NamedTuple):
    """Information of one decision about the outcome, in bits."""

    information: chex.Array  # float32 [] mean over states, less the null; noise can make it negative
    per_state: chex.Array  # float32 [S] before the null is taken off, e.g. for a bootstrap over states
    null: chex.Array  # float32 [] what the same estimator finds, on average, where actions were shuffled
    null_std: chex.Array  # float32 [] standard deviation of that over the shuffles


def branched_information(
    outcomes: chex.Array,
    key: chex.PRNGKey,
    *,
    kind: OutcomeKind = "discrete",
    sampled: bool = True,
    permutations: int = 64,
) -> BranchedInformation:
    r"""Estimates I(A; Z | S) from outcomes of M actions in each of S states, each continued C times.

    `discrete`, for success and for returns of few distinct values: with the plug-in entropies of a state's outcomes,
    and of each action's, each corrected by Miller and Madow (K distinct values among N outcomes),

    .. math:: I_s = \hat H(Z \mid s) - \frac1M \sum_a \hat H(Z \mid s, a), \qquad
              \hat H = -\sum_z \hat p_z \log_2 \hat p_z + \frac{K - 1}{2 N \ln 2}

    For binary outcomes of which no group is unanimous the correction is (M - 1) / (2 M C) nats. `gaussian`, for
    continuous returns: with :math:`MS_b` and :math:`MS_w`, the mean squares between and within actions,

    .. math:: I_s = -\tfrac12 \log_2 (1 - \rho_s), \qquad \rho_s = \frac{\sigma_b^2}{\sigma_b^2 + MS_w}, \qquad
              \sigma_b^2 = \frac{MS_b - MS_w}{C}

    which is infinite where continuations don't differ at all but actions do.

    A constant added to all outcomes changes nothing. For a single action early in a long episode expect a thousandth of
    a bit: hold it for several steps, or take many continuations.

    Args:
      outcomes: `[S, M, C]`, success or returns, M and C at least 2.
      key: for the shuffles; consumed.
      kind: see above.
      sampled: the actions are samples of the policy; then their own spread is short by (M - 1) / M, which is made good.
        False: they are all actions there are, equally probable.
      permutations: shuffles of a state's outcomes among its actions.

    Raises:
      ConfigError: for an unknown kind, or too few actions, continuations or permutations.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> outcomes = jnp.array([[[1, 1, 1, 1], [0, 0, 0, 0]]])  # one action always succeeds, the other never
      >>> estimate = branched_information(outcomes, jax.random.key(0), sampled=False)
      >>> bool(jnp.abs(estimate.per_state[0] - 1.0) < 0.1), bool(estimate.information > 0.9)
      (True, True)
    """
    known = list(get_args(OutcomeKind))
    require(kind in known, f"no kind of outcome {kind!r}{nearest(kind, known)} (there are: {', '.join(known)})")
    chex.assert_rank(outcomes, 3)
    states, actions, continuations = outcomes.shape
    require(
        actions >= 2 and continuations >= 2,
        f"outcomes of {actions} actions and {continuations} continuations tell nothing; use at least 2 of each",
    )
    require_number("permutations", permutations, 1, 2**20)
    outcomes = jnp.asarray(outcomes, jnp.float32)
    estimate = jax.vmap(_discrete if kind == "discrete" else _gaussian)

    def scaled(x: chex.Array) -> chex.Array:
        # The Gaussian estimate takes its mean square with M - 1 already.
        return estimate(x) * (actions / (actions - 1) if sampled and kind == "discrete" else 1.0)

    def shuffled(key: chex.PRNGKey) -> chex.Array:
        keys = jax.random.split(key, states)
        return scaled(jax.vmap(lambda k, z: jax.random.permutation(k, z.reshape(-1)).reshape(z.shape))(keys, outcomes))

    per_state = scaled(outcomes)
    nulls = jax.lax.map(lambda k: shuffled(k).mean(), jax.random.split(key, permutations))
    return BranchedInformation(per_state.mean() - nulls.mean(), per_state, nulls.mean(), nulls.std())


def _entropy(values: chex.Array) -> chex.Array:
    """Miller-Madow entropy in bits of values `[N]`, which count as the same where they are equal."""
    same = jnp.sum(values[:, None] == values[None, :], axis=1).astype(jnp.float32)
    distinct = jnp.sum(1.0 / same)
    return (-jnp.log(same / values.shape[0]).mean() + (distinct - 1.0) / (2.0 * values.shape[0])) / math.log(2.0)


def _discrete(outcomes: chex.Array) -> chex.Array:
    """The estimate for one state's outcomes `[M, C]`."""
    return _entropy(outcomes.reshape(-1)) - jax.vmap(_entropy)(outcomes).mean()


def _gaussian(outcomes: chex.Array) -> chex.Array:
    """The estimate for one state's outcomes `[M, C]`, by analysis of variance."""
    actions, continuations = outcomes.shape
    outcomes = outcomes - outcomes[0, 0]  # Equal ones are then exactly 0, and so are their mean squares.
    means = outcomes.mean(axis=1, keepdims=True)
    within = jnp.square(outcomes - means).sum() / (actions * (continuations - 1))
    between = continuations * jnp.square(means - means.mean()).sum() / (actions - 1)
    # 1 + (f - 1) / C is 1 / (1 - rho); where nothing differs at all, f is 0 / 0.
    f = jnp.where(between == within, 1.0, between / within)
    return 0.5 * jnp.log2(1.0 + (f - 1.0) / continuations)


class ClassifierInformation(NamedTuple):
    """A lower bound on the information of one decision about the outcome, in bits."""

    bound: chex.Array  # float32 [] on the half that the classifier was not fitted to
    null: chex.Array  # float32 [] the same where outcomes were shuffled; about 0 or below


def classifier_information(
    states: chex.Array,
    actions: chex.Array,
    outcomes: chex.Array,
    log_policy: chex.Array,
    key: chex.PRNGKey,
    *,
    outcome_count: int = 2,
    steps: int = 300,
    learning_rate: float = 0.1,
    decay: float = 1e-3,
) -> ClassifierInformation:
    r"""Bounds I(A; Z | S) from below, for discrete actions, by a hindsight classifier (Barber and Agakov).

    .. math:: I(A; Z \mid S) \ge \mathbb{E}\left[\log_2 h(a \mid s, z) - \log_2 \pi(a \mid s)\right]

    h is the policy, corrected by what the outcome tells: its logits are :math:`\log \pi(a \mid s)` plus a linear
    function, one for each outcome, of the state's features. It is fitted to one half of the decisions, drawn at random;
    the bound is taken on the other, so that it holds, up to noise, however badly h fits. Unlike branching it needs
    nothing but decisions that were made anyway.

    Args:
      states: `[N, F]` features; a constant is added to them. Scale them to about 1.
      actions: int `[N]`.
      outcomes: int `[N]`, from 0 to `outcome_count - 1`: success, or the number of a bin of returns.
      log_policy: `[N, A]` log-probabilities of all actions under the policy that acted.
      key: for the halves and for the null's shuffle; consumed.
      outcome_count: the number of outcomes.
      steps: steps of Adam on the whole half.
      learning_rate: of those.
      decay: weight of the squared correction in the loss, which keeps h near the policy where there is little data.

    Raises:
      AssertionError: if the shapes don't belong together.
      ConfigError: for fewer than 4 decisions.
    """
    number = actions.shape[0]
    require_number("the number of decisions", number, 4, 2**30)
    chex.assert_shape(actions, (number,))
    chex.assert_shape(outcomes, (number,))
    chex.assert_shape(states, (number, None))
    chex.assert_shape(log_policy, (number, None))
    key_halves, key_null = jax.random.split(key)
    order = jax.random.permutation(key_halves, number)
    features = jnp.concatenate([states, jnp.ones((number, 1))], axis=1)

    def bound(outcome: chex.Array) -> chex.Array:
        by_outcome = jax.nn.one_hot(outcome, outcome_count)[:, :, None] * features[:, None, :]
        log_hindsight = log_softmax_regression(
            by_outcome.reshape(number, -1),
            log_policy,
            actions,
            fitted=order[: number // 2],
            steps=steps,
            learning_rate=learning_rate,
            decay=decay,
        )
        gain = jnp.take_along_axis(log_hindsight - log_policy, actions[:, None], axis=1)[:, 0]
        return gain[order[number // 2 :]].mean() / math.log(2.0)

    return ClassifierInformation(bound(outcomes), bound(jax.random.permutation(key_null, outcomes)))
