"""Elementary functions that XLA:CPU computes by calling the C library number by number, in arithmetic instead."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from azjax.batching.control_flow import with_original_derivative
from azjax.batching.interpreter import Batch, Value, rule
from azjax.batching.jaxprs import Equation
from azjax.batching.rules import elementwise

# (atan(a) / a - 1) / a^2 as a polynomial in a^2 on [0, 1], highest power first: minimax in the relative error of atan,
# which is 1.7e-8 before rounding.
ARCTANGENT = (
    0.0029206919,
    -0.016367927,
    0.04321186,
    -0.07552214,
    0.106660046,
    -0.14211056,
    0.19993773,
    -0.33333153,
)


@rule("atan2")
def atan2(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """On a CPU in float32 by a polynomial, to about 2 units in the last place; JAX's derivative."""
    if eqn.out_avals[0].dtype != np.float32:
        return elementwise(eqn, inputs, batch)

    def forward(values: Sequence[Value]) -> list[Any]:
        shape = eqn.out_avals[0].shape
        y, x = (
            jnp.broadcast_to(batch.full(value, aval.shape), (*shape, batch.size))
            for value, aval in zip(values, eqn.in_avals, strict=True)
        )
        return [lax.platform_dependent(y, x, cpu=_atan2, default=lax.atan2)]

    return with_original_derivative(eqn, inputs, batch, forward)


def _atan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of (x, y), with the C standard's values for zeros and infinities; subnormal numbers count as zeros."""
    large, small = lax.max(abs(x), abs(y)), lax.min(abs(x), abs(y))
    # 0 / 0 stands for an angle of 0, inf / inf for one of 45 degrees.
    ratio = jnp.where(small == large, (large > 0).astype(jnp.float32), small / jnp.where(large == 0, 1.0, large))
    square = ratio * ratio
    series = jnp.float32(ARCTANGENT[0])
    for coefficient in ARCTANGENT[1:]:
        series = series * square + jnp.float32(coefficient)
    angle = ratio + ratio * (square * series)
    angle = jnp.where(abs(y) > abs(x), jnp.float32(math.pi / 2) - angle, angle)
    angle = jnp.where(jnp.signbit(x), jnp.float32(math.pi) - angle, angle)
    angle = jnp.where(jnp.isnan(x) | jnp.isnan(y), jnp.float32(math.nan), angle)
    return jnp.copysign(angle, y)
