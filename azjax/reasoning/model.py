"""A small decoder-only transformer: the policy that proposes and solves.

One model plays both roles; which, and for which task, is said by the first two tokens of its prompt. Prompts are filled
up with `PAD` on the left, answers on the right. Positions are rotary, so only distances count and the width to which a
prompt is filled up changes nothing.

The same blocks serve the whole sequence at once (learning) and a token at a time with stored keys and values
(`azjax.reasoning.decoding`).

References:
  Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762. Su et al., "RoFormer", 2021, arXiv 2104.09864,
  section 3.2, for rotary positions. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv 1910.07467.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from azjax.config import nearest, require
from azjax.distributions import Categorical
from azjax.types import ActionSpec, Array, Key, Observation, ObservationSpec, Params

__all__ = ["MASKED", "MODEL_SIZES", "PAD", "Cache", "TokenPolicy", "policy_of_size"]

PAD: Final = 0
"""The token that fills up; nothing attends to it."""

MASKED: Final = -1e9
"""The logit of a token that may not follow: finite, so divergences and the Fisher information stay finite."""

MODEL_SIZES: Final[dict[str, tuple[int, int, int]]] = {
    "micro": (2, 64, 4),
    "tiny": (2, 128, 4),
    "small": (2, 256, 8),
    "medium": (4, 256, 8),
    "large": (6, 288, 6),
}
"""Layers, width and heads: about 0.1, 0.4, 1.6, 3 and 6 million parameters."""


class Cache(NamedTuple):
    """Keys and values of a sequence of `S` places, one array for each layer, and which places hold a token."""

    keys: tuple[Array, ...]  # [N, S, heads, width / heads]
    values: tuple[Array, ...]
    filled: Array  # bool [N, S]


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    heads: int
    layers: int

    @nn.compact
    def __call__(self, x: Array, keys: Array, values: Array, start: Array | int, visible: Array) -> tuple[Array, ...]:
        width = x.shape[-1]
        normal = nn.initializers.normal
        # Each of the 2 L shortcuts adds an equal part to the variance of the stream.
        small = normal(0.02 / math.sqrt(2 * self.layers))
        y = nn.RMSNorm()(x)
        shape = (self.heads, width // self.heads)
        q, k, v = (
            nn.DenseGeneral(shape, use_bias=False, kernel_init=normal(0.02), name=name)(y)
            for name in ("query", "key", "value")
        )
        position = start + jnp.arange(x.shape[1])
        q, k = _rotate(q, position), _rotate(k, position)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k, start, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values, v, start, axis=1)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, keys) / math.sqrt(shape[1])
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, MASKED), axis=-1)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, values)
        x = x + nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, kernel_init=small, name="attended")(y)
        y = nn.Dense(4 * width, use_bias=False, kernel_init=normal(0.02), name="up")(nn.RMSNorm()(x))
        x = x + nn.Dense(width, use_bias=False, kernel_init=small, name="down")(nn.gelu(y))
        return x, keys, values


class _Transformer(nn.Module):
    """Tokens to logits and values, beside what earlier places left in the cache."""

    policy: TokenPolicy

    @nn.compact
    def __call__(
        self, tokens: Array, cache: Cache, start: Array | int, first: int
    ) -> tuple[Array, Array | None, Cache]:
        config = self.policy
        embed = nn.Embed(config.vocabulary, config.width, embedding_init=nn.initializers.normal(0.02))
        filled = jax.lax.dynamic_update_slice_in_dim(cache.filled, tokens != PAD, start, axis=1)
        place = jnp.arange(filled.shape[1])
        visible = filled[:, None] & (place <= (start + jnp.arange(tokens.shape[1]))[:, None])
        x = embed(tokens)
        keys, values = list(cache.keys), list(cache.values)
        for n in range(config.layers):
            block = _Block(config.heads, config.layers, name=f"block_{n}")
            x, keys[n], values[n] = block(x, keys[n], values[n], start, visible)
        x = nn.RMSNorm()(x[:, first:])
        value = None
        if config.value_head:
            value = nn.Dense(1, kernel_init=nn.initializers.zeros_init(), name="value_head")(x)[..., 0]
        return embed.attend(x), value, Cache(tuple(keys), tuple(values), filled)


@dataclasses.dataclass(frozen=True)
class TokenPolicy:
    """The transformer as a learner's network whose every decision is a token.

    An observation is `{"tokens": int32 [N, S], "allowed": bool [N, R, V]}`: prompts of `S - R` places with the answers
    of `R` behind them, and which of the `V` tokens could be chosen at each place of the answer. Actions are the
    answers, int32 `[N, R]`: a batch of a learner has these two axes, and the token axis is kept together.
    """

    vocabulary: int
    layers: int = 2
    width: int = 128
    heads: int = 4
    value_head: bool = False

    sequence: bool = dataclasses.field(default=True, init=False)
    """The last axis of a batch is one sequence, of which an observation is a whole: see ``azjax.networks.Network``."""

    def init(self, key: Key, observation_spec: ObservationSpec = None, action_spec: ActionSpec = None) -> Params:  # type: ignore[assignment]
        """Untrained parameters; ``key`` is consumed. They don't depend on the specs: any lengths will do.

        Raises:
          ConfigError: if the width can't be divided among the heads, or a head's part isn't even.
        """
        require(
            self.width % (2 * self.heads) == 0,
            f"width is {self.width} and heads is {self.heads}; width must be a multiple of twice the heads",
        )
        tokens = jnp.zeros((1, 1), jnp.int32)
        return self._module().init(key, tokens, self.empty_cache(1, 1), 0, 0)

    def apply(self, params: Params, observation: Observation) -> tuple[Categorical, Array | None]:
        """The distributions of the answers' tokens `[N, R]` and values `[N, R]`, or None without a value head."""
        tokens, allowed = observation["tokens"], observation["allowed"]  # type: ignore[index, call-overload]
        number, length = tokens.shape
        answer = allowed.shape[-2]
        cache = self.empty_cache(number, length - 1)
        # The token at a place is predicted from the place before it.
        logits, value, _ = self.extend(params, tokens[:, :-1], cache, 0, first=length - answer - 1)
        return Categorical(jnp.where(allowed, logits, MASKED)), value

    def extend(
        self, params: Params, tokens: Array, cache: Cache, start: Array | int, *, first: int = 0
    ) -> tuple[Array, Array | None, Cache]:
        """Reads more tokens of sequences whose earlier places are in the cache.

        Args:
          params: of ``init``.
          tokens: int32 `[N, T]`.
          cache: `[N, S]`.
          start: int32 [], the place of the first token.
          first: which of the T places is the first whose logits are wanted, static.

        Returns:
          Logits `[N, T - first, V]` without any mask, values `[N, T - first]` or None, and the cache.
        """
        return self._module().apply(params, tokens, cache, start, first)  # type: ignore[return-value]

    def empty_cache(self, number: int, places: int) -> Cache:
        """A cache without a token."""
        zeros = jnp.zeros((number, places, self.heads, self.width // self.heads))
        rows = (zeros,) * self.layers
        return Cache(rows, rows, jnp.zeros((number, places), bool))

    def _module(self) -> Any:
        return _Transformer(self)


def policy_of_size(size: str, vocabulary: int, *, value_head: bool = False) -> TokenPolicy:
    """A transformer of one of the named sizes.

    Args:
      size: a key of ``MODEL_SIZES``.
      vocabulary: number of tokens.
      value_head: predict values as well.

    Raises:
      ConfigError: if there is no such size.

    Examples:
      >>> policy_of_size("tiny", 100).width
      128
    """
    known = list(MODEL_SIZES)
    require(size in known, f"no model size {size!r}{nearest(size, known)} (there are: {', '.join(known)})")
    layers, width, heads = MODEL_SIZES[size]
    return TokenPolicy(vocabulary, layers, width, heads, value_head)


def _rotate(x: Array, position: Array) -> Array:
    """Pairs of features turned by angles proportional to the position; `x` is `[N, T, heads, d]`."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half) / half)
    angle = (position[:, None] * frequency)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], axis=-1)
