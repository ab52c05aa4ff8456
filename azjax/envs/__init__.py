"""Environments: the protocol, the registry, and how single environments become thousands of lanes."""

from azjax.envs.base import Environment, EnvState, fresh_state
from azjax.envs.brax import SUPPORTED, BraxEnvironment, Randomization
from azjax.envs.bridge import to_gymnasium
from azjax.envs.lanes import plain_vmap
from azjax.envs.registry import default_backend, make_env
from azjax.envs.scene import Geom, Scene

__all__ = [
    "SUPPORTED",
    "BraxEnvironment",
    "EnvState",
    "Environment",
    "Geom",
    "Randomization",
    "Scene",
    "default_backend",
    "fresh_state",
    "make_env",
    "plain_vmap",
    "to_gymnasium",
]
