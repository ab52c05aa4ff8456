"""azjax's own tasks, those of the GAE paper: their names, known without importing the physics."""

from __future__ import annotations

from typing import Any

from azjax.config import ConfigError
from azjax.envs.base import Environment
from azjax.envs.brax import quiet_dependencies

PREFIX = "azjax:"
CARTPOLE = "azjax:cartpole"
# The physics backends of each task, the default one first.
TASKS: dict[str, tuple[str, ...]] = {
    "biped": ("spring", "mjx"),
    "quadruped": ("spring", "mjx"),
    "getup": ("spring", "mjx"),
    "cartpole": ("jax",),
}
# The time limits of the paper in environment steps; in 3D they are 20 s of simulated time.
EPISODE_LENGTHS = {"biped": 2000, "quadruped": 2000, "getup": 2000, "cartpole": 1000}


def load_task(task: str, backend: str, **settings: Any) -> Any:
    """One of the 3D tasks as a Brax environment, quietly.

    Args:
      task: a name in ``TASKS``, not the cart-pole.
      backend: one of the task's backends.
      **settings: what the task's own constructor takes.

    Raises:
      TypeError: for a setting that the task doesn't have.
    """
    with quiet_dependencies():
        from azjax.envs.locomotion.tasks import CLASSES

        return CLASSES[task](backend=backend, **settings)


def load_cartpole(**settings: Any) -> Environment:
    """The cart-pole, which follows azjax's own protocol.

    Raises:
      ConfigError: for a setting that it doesn't have.
    """
    from azjax.envs.locomotion.cartpole import CartPole

    try:
        return CartPole(**settings)
    except TypeError as error:
        raise ConfigError(f"environment {CARTPOLE!r} does not take these settings: {error}") from error
