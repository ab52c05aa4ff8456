"""The bodies as Brax systems: own MJCF files, and what each physics backend needs to simulate them."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection
from typing import Any, NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np
from brax.io import mjcf

CONTROL_STEP = 0.01  # seconds, as in the paper


class Solver(NamedTuple):
    """How a backend simulates a control step."""

    substeps: int
    options: dict[str, Any]  # of `sys.opt`


SOLVERS = {
    "spring": Solver(4, {}),
    "mjx": Solver(
        2,
        {
            "solver": mujoco.mjtSolver.mjSOL_NEWTON,
            "disableflags": mujoco.mjtDisableBit.mjDSBL_EULERDAMP,
            "iterations": 1,
            "ls_iterations": 4,
        },
    ),
}


def load_model(name: str, touching: Collection[str] | None = None) -> mujoco.MjModel:
    """Compiles ``azjax/envs/locomotion/NAME.xml``.

    Args:
      name: which body.
      touching: names of the shapes that collide with the floor; default all that the file lets collide. Fewer are
        faster, and those that can't reach the floor before the episode ends need not be asked.
    """
    text = (importlib.resources.files(__package__) / f"{name}.xml").read_text()
    model = mujoco.MjModel.from_xml_string(text)
    if touching is not None:
        for index in range(model.ngeom):
            if model.geom(index).name not in touching:
                model.geom_contype[index] = 0
    return model


def load_system(model: mujoco.MjModel, backend: str) -> Any:
    """The ``brax.base.System`` of a body, with the time step and the solver of a backend."""
    system = mjcf.load_model(model)
    solver = SOLVERS[backend]
    options = {"timestep": CONTROL_STEP / solver.substeps, **solver.options}
    system = system.tree_replace({f"opt.{name}": value for name, value in options.items()})
    return _with_rotors(system, model) if backend == "spring" else system


def _with_rotors(system: Any, model: mujoco.MjModel) -> Any:
    """Adds the rotors' inertia, MuJoCo's armature, to that of the links about all their axes.

    The spring pipeline knows no armature, and its joints are stiff springs: about the long axis of a limb, whose own
    inertia is a hundredth of 1 kg m², they would need steps ten times smaller. The root gets that of its joints, too.
    """
    rotor = float(np.max(model.dof_armature))
    inertia = system.link.inertia
    return system.replace(
        link=system.link.replace(inertia=inertia.replace(i=inertia.i + rotor * jnp.eye(3))),
    )
