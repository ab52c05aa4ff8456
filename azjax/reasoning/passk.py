"""pass@k: how often at least one of k answers is right, and how sure that is.

References:
  Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374, equation 1.
  Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika
  26 (1934), 404-413.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from azjax.config import require, require_number
from azjax.types import Array

__all__ = ["clopper_pearson", "pass_at_k"]


def pass_at_k(correct: Array, samples: int, k: int) -> Array:
    r"""The unbiased estimate of the probability that one of k answers is right.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k}

    Args:
      correct: int `[...]`, c: how many of the n answers to each question are right.
      samples: n, static.
      k: at most n, static.

    Returns:
      float32 `[...]`, for each question; their mean is pass@k.

    Raises:
      ConfigError: unless 1 <= k <= n.

    Examples:
      >>> pass_at_k(jnp.array([0, 1, 3]), 4, 2).tolist()
      [0.0, 0.5, 1.0]
    """
    require(1 <= k <= samples, f"k is {k}; of {samples} answers it can be 1 to {samples}")
    wrong = samples - jnp.asarray(correct)
    # The binomials' quotient, factor by factor; it is 0 as soon as fewer than k are wrong.
    factors = (wrong[..., None] - jnp.arange(k)) / (samples - jnp.arange(k))
    return 1.0 - jnp.where(wrong < k, 0.0, jnp.prod(jnp.maximum(factors, 0.0), axis=-1))


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a probability: of all that are consistent with so many successes, the smallest and largest.

    Args:
      successes: how many there were.
      trials: of how many, at least 1.
      level: that the interval holds the probability, at least; 0 to 1.

    Returns:
      Its two ends.

    Raises:
      ConfigError: if a number is out of range.

    Examples:
      >>> [round(end, 4) for end in clopper_pearson(8, 10)]
      [0.4439, 0.9748]
    """
    require_number("trials", trials, 1, 10_000_000)
    require_number("successes", successes, 0, trials)
    require(0.0 < level < 1.0, f"level is {level}; it lies between 0 and 1")
    tail = (1.0 - level) / 2.0
    low = 0.0 if successes == 0 else _bisect(lambda p: _at_least(successes, trials, p) < tail)
    high = 1.0 if successes == trials else _bisect(lambda p: _at_least(successes + 1, trials, p) < 1.0 - tail)
    return low, high


def _at_least(k: int, n: int, p: float) -> float:
    """Probability of k or more successes."""
    if p <= 0.0 or p >= 1.0:
        return float(p >= 1.0)
    j = np.arange(k, n + 1)
    choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in j.tolist()])
    return float(np.exp(choose + j * math.log(p) + (n - j) * math.log1p(-p)).sum())


def _bisect(below: Callable[[float], bool]) -> float:
    """Where a condition that holds at 0 ceases to hold."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2.0
