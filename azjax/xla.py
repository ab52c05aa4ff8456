"""What azjax asks of XLA when it compiles a program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_WANTED = {
    # XLA's default of 256 bits leaves half of an AVX-512 unit idle; where there is none, it changes nothing.
    "cpu": {"xla_cpu_prefer_vector_width": 512},
}


@functools.cache
def compiler_options(platform: str) -> dict[str, int]:
    """Options for ``jax.jit(..., compiler_options=...)`` that make azjax's programs faster on a platform.

    Options that this release of XLA doesn't know are left out.

    Examples:
      >>> compiler_options("tpu")
      {}
    """
    options = {}
    for name, value in _WANTED.get(platform, {}).items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(jnp.zeros(())).compile()
        except jax.errors.JaxRuntimeError:
            continue
        options[name] = value
    return options
