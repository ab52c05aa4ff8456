"""Which OpenGL driver draws MuJoCo's pictures on a machine that has no screen."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from typing import Any

from azjax.config import ConfigError, require
from azjax.envs.brax import quiet_dependencies

DRIVERS = ("egl", "osmesa")
PACKAGES = "libegl1, libgl1 and libgl1-mesa-dri for EGL, or libosmesa6 for OSMesa"
MEND = f"on Debian or Ubuntu install {PACKAGES}; or write .html, which needs no driver"
_SECONDS = 60.0
# MuJoCo and PyOpenGL settle on a driver when they are imported, so that a process can try one only.
_PROBE = """
import os
import mujoco
if not hasattr(mujoco, "GLContext"):
    raise SystemExit("that switches drawing off")
context = mujoco.GLContext(64, 64)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
os._exit(0)  # some drivers crash on their way out
"""


def find_driver() -> str:
    """The driver that the user set in ``MUJOCO_GL``, or else the first of EGL and OSMesa that works.

    Raises:
      ConfigError: if it doesn't work, or none does; the message says what to install.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen:
        reason = fault_of(chosen)
        require(
            reason is None,
            f"MUJOCO_GL is {chosen!r}, which draws nothing here: {reason}; unset it, or install what it needs "
            f"(Debian, Ubuntu: {PACKAGES})",
        )
        return chosen
    faults = {}
    for driver in DRIVERS:
        reason = fault_of(driver)
        if reason is None:
            return driver
        faults[driver] = reason
    tried = ", ".join(f"{driver} ({reason})" for driver, reason in faults.items())
    raise ConfigError(f"no OpenGL driver works for pictures: {tried}; {MEND}")


@functools.cache
def fault_of(driver: str) -> str | None:
    """What goes wrong with a driver, tried in a process of its own; ``None`` if it draws."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=os.environ | {"MUJOCO_GL": driver},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_SECONDS:.0f} seconds"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def context_class(driver: str) -> Any:
    """MuJoCo's ``GLContext`` for a driver, whatever ``MUJOCO_GL`` was when MuJoCo was imported."""
    with quiet_dependencies():
        if driver in DRIVERS:
            return importlib.import_module(f"mujoco.{driver}").GLContext
        return importlib.import_module("mujoco").GLContext
