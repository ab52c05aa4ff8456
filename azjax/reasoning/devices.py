"""A reasoner's programs on several devices: each has a memory of its own and a part of every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from azjax.config import require_number
from azjax.reasoning.reasoner import Reasoner, ReasonerState
from azjax.training import placed
from azjax.types import Info, Key
from azjax.xla import compiler_options

__all__ = ["CompiledReasoner", "compile_reasoner"]


class CompiledReasoner(NamedTuple):
    """Jitted functions of a reasoner, whose state's ``memory`` has a leading axis of devices."""

    init: Callable[[Key], ReasonerState]
    step: Callable[[ReasonerState], tuple[ReasonerState, Info]]
    state: ReasonerState  # shapes, types and places


def compile_reasoner(reasoner: Reasoner, mesh: Mesh, updates_per_call: int = 1) -> CompiledReasoner:
    """Turns a reasoner into compiled programs: devices, several updates a call, donated buffers.

    Nothing is compiled before the first call, or ``step.lower(state).compile()``; then once, however full memory is.

    Args:
      reasoner: its learner's ``axis_name`` is the mesh's only axis; ``batch`` is that of a device.
      mesh: of ``azjax.make_mesh``.
      updates_per_call: updates of one call of ``step``, whose reports come stacked ``[updates_per_call]``.

    Raises:
      ConfigError: for less than one update a call.
    """
    require_number("updates_per_call", updates_per_call, 1, 2**30)
    (axis,) = mesh.axis_names

    def init(key: Key) -> ReasonerState:
        state = reasoner.init(key)
        return state._replace(memory=jax.tree.map(lambda x: jnp.stack([x] * mesh.size), state.memory))

    def on_device(state: ReasonerState) -> tuple[ReasonerState, Info]:
        own = state._replace(memory=jax.tree.map(lambda x: x[0], state.memory))
        after, info = jax.lax.scan(lambda s, _: reasoner.step(s), own, length=updates_per_call)
        return after._replace(memory=jax.tree.map(lambda x: x[None], after.memory)), info

    shapes = jax.eval_shape(init, jax.random.key(0))
    specs: Any = jax.tree.map(lambda _: PartitionSpec(), shapes)
    specs = specs._replace(memory=jax.tree.map(lambda _: PartitionSpec(axis), shapes.memory))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    platform = mesh.devices.flat[0].platform
    program = jax.shard_map(
        on_device, mesh=mesh, in_specs=(specs,), out_specs=(specs, PartitionSpec()), check_vma=False
    )
    return CompiledReasoner(
        init=jax.jit(init, out_shardings=shardings, compiler_options=compiler_options(platform, soon=True)),
        step=jax.jit(program, donate_argnums=0, compiler_options=compiler_options(platform)),
        state=placed(shapes, shardings),
    )
