r"""How much there is to learn from a task, judged by how many of its attempts succeeded."""

from __future__ import annotations

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import nearest, require

__all__ = ["LearnabilityKind", "learnability"]

LearnabilityKind = Literal["variance", "absolute-zero", "absolute-zero-code", "min"]


def learnability(successes: chex.Array, attempts: chex.Numeric, kind: LearnabilityKind = "variance") -> chex.Array:
    r"""The proposer's reward for a valid task, from the success rate :math:`p = k / n` of the solver's attempts.

    ======================  ==========================================================================
    kind                    reward
    ======================  ==========================================================================
    `variance`              :math:`4 p (1 - p) \frac{n}{n - 1}`: 4 times the unbiased variance of success
    `absolute-zero`         0 if p = 0, else 1 - p: the paper of Absolute Zero
    `absolute-zero-code`    1 - p if 0 < p < 1, else -0.5: its published code
    `min`                   :math:`\min(p, 1 - p)`: R-Zero
    ======================  ==========================================================================

    The factor n / (n - 1) makes the expectation of `variance` what :math:`4 p (1 - p)` is of the true success rate, for
    every n; so a value may exceed 1.

    Args:
      successes: `[...]` k, from 0 to n: an attempt without a result is no success, and stays in the denominator.
      attempts: n, at least 2: one number, or an array that broadcasts with `successes`.
      kind: see above.

    Returns:
      float32 `[...]`; 0 where traced `attempts` are below 2.

    Raises:
      ConfigError: for an unknown kind, or concrete attempts below 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> learnability(jnp.array([0, 1, 2, 4]), 4).tolist()
      [0.0, 1.0, 1.3333334, 0.0]
      >>> learnability(jnp.array([0, 1, 2, 4]), 4, "absolute-zero").tolist()
      [0.0, 0.75, 0.5, 0.0]

    References:
      Zhao et al., "Absolute Zero: Reinforced Self-play Reasoning with Zero Data", 2025,
      https://arxiv.org/abs/2505.03335, equation 4.
      Rutherford et al., "No Regrets: Investigating and Improving Regret Approximations for Curriculum Discovery", 2024,
      https://arxiv.org/abs/2408.15099, which scores tasks by p (1 - p).
      Huang et al., "R-Zero: Self-Evolving Reasoning LLM from Zero Data", 2025, https://arxiv.org/abs/2508.05004.
    """
    known = list(get_args(LearnabilityKind))
    require(kind in known, f"no kind of learnability {kind!r}{nearest(kind, known)} (there are: {', '.join(known)})")
    if not isinstance(attempts, jax.core.Tracer):
        fewest = int(np.min(attempts))
        require(fewest >= 2, f"attempts is {fewest}; one attempt says nothing about a rate, use at least 2")
    n = jnp.asarray(attempts, jnp.float32)
    p = jnp.asarray(successes, jnp.float32) / jnp.maximum(n, 1.0)
    if kind == "variance":
        score = 4.0 * p * (1.0 - p) * n / jnp.maximum(n - 1.0, 1.0)
    elif kind == "absolute-zero":
        score = jnp.where(p > 0, 1.0 - p, 0.0)
    elif kind == "absolute-zero-code":
        score = jnp.where((p > 0) & (p < 1), 1.0 - p, -0.5)
    else:
        score = jnp.minimum(p, 1.0 - p)
    return jnp.where(n >= 2, score, 0.0)
