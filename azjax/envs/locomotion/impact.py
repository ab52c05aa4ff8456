"""Physics steps that also tell the contact forces on each link.

On mjx they follow exactly from the forces that its solver found: the linear part of ``cfrc_ext`` from
``rne_postconstraint``, which MJX leaves out of its step unless a sensor needs it. The solver's few iterations
(``models.SOLVERS``) make those forces themselves inexact. On spring there is no contact force: collisions change the
links' velocities in each time step, and what is reported is that change of momentum over the time, an approximation
whose impulses the pipeline itself has averaged over the contact points of a link.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from brax.mjx import pipeline as mjx_pipeline
from brax.spring import collisions
from brax.spring import pipeline as spring_pipeline
from mujoco.mjx._src import smooth

from azjax.envs.compat import results_of
from azjax.types import Array

Substep = Callable[[Any, Any, Array], tuple[Any, Array]]


def spring_step(system: Any, state: Any, action: Array) -> tuple[Any, Array]:
    """One time step of Brax's spring pipeline, and the mean contact force ``[L, 3]`` on each link in it, in N."""
    with results_of(collisions, "resolve") as changes:
        after = spring_pipeline.step(system, state, action)
    (change,) = changes
    return after, state.mass[:, None] * change.vel / system.opt.timestep


def mjx_step(system: Any, state: Any, action: Array) -> tuple[Any, Array]:
    """One time step of MJX, and the contact force ``[L, 3]`` on each link in it, in N."""
    after = mjx_pipeline.step(system, state, action)
    return after, smooth.rne_postconstraint(system, after)._impl.cfrc_ext[1:, 3:]


_SUBSTEPS: dict[str, Substep] = {"spring": spring_step, "mjx": mjx_step}


def control_step(backend: str, system: Any, state: Any, action: Array, substeps: int) -> tuple[Any, Array]:
    """So many time steps with one action ``[A]``, and the mean contact force ``[L, 3]`` on each link in them, in N.

    Args:
      backend: ``"spring"`` or ``"mjx"``.
      system: the ``brax.base.System``.
      state: the state of the backend's pipeline.
      action: ``[A]`` in [-1, 1].
      substeps: how many time steps.
    """

    def substep(carry: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], None]:
        after, force = _SUBSTEPS[backend](system, carry[0], action)
        return (after, carry[1] + force), None

    start = (state, jnp.zeros((system.num_links(), 3)))
    (after, total), _ = jax.lax.scan(substep, start, length=substeps)
    return after, total / substeps
