"""Answers as rows of a learner's batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from azjax.advantages import gae
from azjax.reasoning.decoding import Answers, Grammar, masks_along
from azjax.reasoning.model import MASKED, PAD, TokenPolicy
from azjax.types import Array, Batch, Params

__all__ = ["PROPOSER", "SOLVER", "Rows", "as_batch", "imitation_rows", "join", "rows_of", "token_advantages"]

PROPOSER, SOLVER = 0, 1
"""The two roles, as they number the cells of TRR++."""


class Rows(NamedTuple):
    """`N` answers with prompts of `W` places and answers of `R`."""

    prompt: Array  # int32 [N, W] PAD on the left
    answer: Array  # int32 [N, R] PAD on the right
    log_prob: Array  # [N, R] when it was written
    value: Array  # [N, R] then
    allowed: Array  # bool [N, R, V]
    mask: Array  # bool [N, R] the places that were decided
    reward: Array  # [N]
    task: Array  # int32 [N]
    role: Array  # int32 [N]
    question: Array  # int32 [N] equal for answers to the same question on this device
    counts: Array  # bool [N] False: takes no part at all
    imitated: Array  # bool [N] a right answer that is learned by its likelihood, whatever the reward


def rows_of(prompt: Array, answers: Answers[Any], reward: Array, *, task: int, role: int, question: Array) -> Rows:
    """Rows of answers that were sampled; all count."""
    number = len(reward)
    return Rows(
        prompt,
        *(answers.tokens, answers.log_prob, answers.value, answers.allowed, answers.mask),
        reward,
        task=jnp.full(number, task),
        role=jnp.full(number, role),
        question=question,
        counts=jnp.ones(number, bool),
        imitated=jnp.zeros(number, bool),
    )


def imitation_rows(
    policy: TokenPolicy,
    params: Params,
    grammar: Grammar[Any],
    prompt: Array,
    state: Any,
    answer: Array,
    known: Array,
    *,
    task: int,
) -> Rows:
    """Rows of right answers that were not sampled: the gradient of their log-likelihood is what a learner then takes.

    Args:
      policy: the network.
      params: its parameters now, for the probabilities from which importance ratios are counted.
      grammar: of the answers.
      prompt: int32 `[N, W]`.
      state: `[N]`, what the grammar expects first.
      answer: int32 `[N, R]`.
      known: bool `[N]`, where there is an answer; the other rows don't count.
      task: its index.
    """
    allowed, _ = masks_along(grammar, state, answer)
    number = len(answer)
    tokens = jnp.concatenate([prompt, answer], axis=1)
    distribution, value = policy.apply(params, {"tokens": tokens, "allowed": allowed})
    log_prob = distribution.log_prob(answer)
    mask = ~allowed[..., PAD]
    # An answer that the grammar doesn't allow has no likelihood to raise.
    known &= jnp.where(mask, log_prob > MASKED / 2, True).all(-1)
    return Rows(
        *(prompt, answer, log_prob, jnp.zeros_like(log_prob) if value is None else value, allowed, mask),
        reward=jnp.zeros(number),
        task=jnp.full(number, task),
        role=jnp.full(number, SOLVER),
        question=jnp.zeros(number, jnp.int32),
        counts=known,
        imitated=jnp.ones(number, bool),
    )


def join(parts: list[Rows]) -> Rows:
    """Rows of several widths, filled up to the widest."""
    width = max(part.prompt.shape[1] for part in parts)
    length = max(part.answer.shape[1] for part in parts)
    filled = [_fill(part, width, length) for part in parts]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *filled)  # type: ignore[no-any-return]


def _fill(rows: Rows, width: int, length: int) -> Rows:
    left = ((0, 0), (width - rows.prompt.shape[1], 0))
    right = ((0, 0), (0, length - rows.answer.shape[1]))
    allowed = jnp.pad(rows.allowed, (*right, (0, 0)))
    behind = jnp.arange(length) >= rows.answer.shape[1]
    wide = {name: jnp.pad(getattr(rows, name), right) for name in ("answer", "log_prob", "value", "mask")}
    allowed = allowed.at[..., PAD].set(allowed[..., PAD] | behind)
    return rows._replace(prompt=jnp.pad(rows.prompt, left), allowed=allowed, **wide)


def token_advantages(rows: Rows, gamma: Array | float, lam: Array | float) -> tuple[Array, Array]:
    """GAE over the tokens of each answer, whose reward comes with its last token.

    Returns:
      Advantages and returns `[N, R]`, 0 behind the end.
    """
    following = jnp.pad(rows.mask[:, 1:], ((0, 0), (0, 1)))
    last = rows.mask & ~following
    after = jnp.pad(rows.value[:, 1:], ((0, 0), (0, 1)))
    advantages, returns = gae(
        jnp.where(last, rows.reward[:, None], 0.0).T,
        rows.value.T,
        after.T,
        last.T,
        ~rows.mask.T,  # what lies behind the end is cut off from it
        gamma=gamma,
        lam=lam,
    )
    return jnp.where(rows.mask, advantages.T, 0.0), jnp.where(rows.mask, returns.T, 0.0)


def as_batch(rows: Rows, advantages: Array, returns: Array) -> Batch:
    """The batch of a learner with a sequence network; advantages and returns `[N, R]`."""
    return Batch(
        observation={"tokens": jnp.concatenate([rows.prompt, rows.answer], axis=1), "allowed": rows.allowed},
        action=rows.answer,
        log_prob=rows.log_prob,
        advantages=advantages,
        returns=returns,
        mask=rows.mask & rows.counts[:, None],
    )
