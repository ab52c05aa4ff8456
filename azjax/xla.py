"""What azjax asks of XLA when it compiles a program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Options = dict[str, int | bool]

_WANTED: dict[str, Options] = {
    # XLA's default of 256 bits leaves half of an AVX-512 unit idle; where there is none, it changes nothing.
    "cpu": {"xla_cpu_prefer_vector_width": 512},
}
_WANTED_SOON: dict[str, Options] = {
    # The older code generator takes two thirds of the time and half of the memory. Physics runs as fast, learning not.
    "cpu": {"xla_cpu_use_fusion_emitters": False},
}


def compiler_options(platform: str, *, soon: bool = False) -> Options:
    """Options for ``jax.jit(..., compiler_options=...)`` that suit azjax's programs on a platform.

    Options that this release of XLA doesn't know are left out.

    Args:
      platform: ``"cpu"``, ``"gpu"``, ...
      soon: for a program that runs once or seldom: compile it in less time and memory.

    Examples:
      >>> compiler_options("tpu")
      {}
    """
    wanted = _WANTED.get(platform, {}) | (_WANTED_SOON.get(platform, {}) if soon else {})
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: int | bool) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(jnp.zeros(())).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
