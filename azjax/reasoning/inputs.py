"""Inputs for list programs, drawn at random."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from azjax.reasoning.language import INT, LARGEST, LIST, MAX_INPUTS, MAX_LENGTH, SIGNATURE_KINDS, Value
from azjax.types import Array, Key

__all__ = ["random_inputs"]

_MAGNITUDES = np.array([5, 12, 12, LARGEST])


def random_inputs(key: Key, signature: Array, number: int) -> Value:
    """Lists and integers of the kinds that signatures ask for.

    The lengths of lists are uniform from 1 to 5. Items are uniform up to a magnitude of 5, 12 or 50, so that programs
    which multiply stay within bounds often; integers are three times in four from -1 to 4, where they can be an index.

    Args:
      key: consumed.
      signature: int32 `[B]`.
      number: how many for each, static.

    Returns:
      Values `[B, number, MAX_INPUTS]`, int32.
    """
    keys = jax.random.split(key, 5)
    shape = (*signature.shape, number, MAX_INPUTS)
    magnitude = jnp.asarray(_MAGNITUDES)[jax.random.randint(keys[0], shape, 0, len(_MAGNITUDES))][..., None]
    items = jax.random.randint(keys[1], (*shape, MAX_LENGTH), -magnitude, magnitude + 1)
    small = jax.random.bernoulli(keys[2], 0.75, shape)
    integer = jnp.where(small, jax.random.randint(keys[3], shape, -1, MAX_LENGTH), items[..., 0])
    kind = jnp.take(jnp.asarray(SIGNATURE_KINDS), signature, axis=0, mode="clip")[..., None, :]
    kind = jnp.broadcast_to(kind, shape).astype(jnp.int32)
    length = jnp.where(kind == LIST, jax.random.randint(keys[4], shape, 1, MAX_LENGTH + 1), kind == INT)
    items = jnp.where((kind == INT)[..., None], integer[..., None], items)
    return Value(kind, length, jnp.where(jnp.arange(MAX_LENGTH) < length[..., None], items, 0))
