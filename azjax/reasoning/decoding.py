"""Answers written token by token, with stored keys and values, under a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from azjax.reasoning.model import MASKED, PAD, TokenPolicy
from azjax.types import Array, Key, Params

__all__ = ["Answers", "Grammar", "decode", "masks_along"]

S = TypeVar("S")


class Grammar(Protocol[S]):
    """An automaton over tokens, both functions on a single state; after the end, and after a failure, only `PAD`."""

    def allowed(self, state: S) -> Array:
        """Which tokens may follow, bool `[V]`."""
        ...

    def advance(self, state: S, token: Array) -> S:
        """The state after one more token, int32 []."""
        ...


class Answers(NamedTuple, Generic[S]):
    """What was written for `N` prompts, in `R` places each."""

    tokens: Array  # int32 [N, R]; PAD behind the end
    log_prob: Array  # [N, R] of each token
    value: Array  # [N, R] before each token; 0 without a value head
    allowed: Array  # bool [N, R, V] what could have been chosen
    mask: Array  # bool [N, R] the places that were decided: those up to the end
    state: S  # [N] of the grammar


def decode(
    policy: TokenPolicy,
    params: Params,
    grammar: Grammar[S],
    key: Key,
    prompts: Array,
    state: S,
    length: int,
    *,
    copies: int | Sequence[int] = 1,
    greedy: bool | Array = False,
    constrained: bool = True,
) -> Answers[S]:
    """Samples answers.

    Args:
      policy: the network.
      params: its parameters.
      grammar: what may be written.
      key: consumed.
      prompts: int32 `[N, W]`, `PAD` on the left.
      state: `[N]`, what the grammar expects first.
      length: R, static.
      copies: independent answers to each prompt, or to every one of the N, static; the prompt is read once. Those to
        one are neighbours: with one number the answers are `[N * copies]`.
      greedy: take the most probable token each time; for all answers, or bool for each of them.
      constrained: choose only among the tokens that the grammar allows, static. Without it a token that is not allowed
        ends the answer, which has then failed.

    Returns:
      The answers.
    """
    number, width = prompts.shape
    cache = policy.empty_cache(number, width + length)
    logits, value, cache = policy.extend(params, prompts, cache, 0, first=width - 1)
    each = np.broadcast_to(np.asarray(copies), number)
    if (each != 1).any():
        read = (cache, state, logits, value)
        cache, state, logits, value = jax.tree.map(lambda x: x[np.repeat(np.arange(number), each)], read)

    def step(carry: Any, xs: tuple[Array, Key]) -> tuple[Any, Any]:
        state, cache, logits, value = carry
        place, key = xs
        legal = jax.vmap(grammar.allowed)(state)
        ended = legal[:, PAD]
        choice = legal if constrained else legal | ~ended[:, None]
        log_probs = jax.nn.log_softmax(jnp.where(choice, logits[:, 0], MASKED))
        sampled = jax.random.categorical(key, log_probs)
        token = jnp.where(greedy, jnp.argmax(log_probs, axis=-1), sampled)
        token = token.astype(jnp.int32)
        log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
        seen = jnp.zeros_like(log_prob) if value is None else value[:, 0]
        state = jax.vmap(grammar.advance)(state, token)
        logits, value, cache = policy.extend(params, token[:, None], cache, place)
        return (state, cache, logits, value), (token, log_prob, seen, choice, ~ended)

    places = width + jnp.arange(length)
    carry: Any = (state, cache, logits, value)
    (state, *_), written = jax.lax.scan(step, carry, (places, jax.random.split(key, length)))
    tokens, log_prob, seen, choice, mask = (jnp.moveaxis(x, 0, 1) for x in written)
    return Answers(tokens, log_prob, seen, choice, mask, state)


def masks_along(grammar: Grammar[S], state: S, tokens: Array) -> tuple[Array, S]:
    """What the grammar allows at each place of given answers.

    Args:
      grammar: what may be written.
      state: `[N]`, what it expects first.
      tokens: int32 `[N, R]`.

    Returns:
      bool `[N, R, V]`, and the last states `[N]`.
    """

    def step(state: S, token: Array) -> tuple[S, Array]:
        return jax.vmap(grammar.advance)(state, token), jax.vmap(grammar.allowed)(state)

    state, masks = jax.lax.scan(step, state, tokens.T)
    return jnp.moveaxis(masks, 0, 1), state
