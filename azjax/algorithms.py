"""The learners by name, each with its hyperparameters and what makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from azjax.networks import Network
from azjax.on_policy import OnPolicyConfig
from azjax.ppo import PPOConfig, ppo
from azjax.trpo import TRPOConfig, trpo
from azjax.types import Learner


class Algorithm(NamedTuple):
    """A learner and its hyperparameters."""

    config: type[OnPolicyConfig]
    make: Callable[..., Learner]  # of a configuration, network and axis_name


ALGORITHMS = {"ppo": Algorithm(PPOConfig, ppo), "trpo": Algorithm(TRPOConfig, trpo)}


def algorithm_name(config: OnPolicyConfig) -> str:
    """The name of the algorithm whose hyperparameters these are."""
    (name,) = (name for name, algorithm in ALGORITHMS.items() if algorithm.config is type(config))
    return name


def make_learner(config: OnPolicyConfig, *, network: Network | None = None, axis_name: str | None = None) -> Learner:
    """The learner whose hyperparameters these are.

    Args:
      config: one of the classes in ``ALGORITHMS``.
      network: default an actor-critic of the configured sizes.
      axis_name: the axis of ``shard_map`` or ``vmap`` over which the learner reduces.
    """
    return ALGORITHMS[algorithm_name(config)].make(config, network=network, axis_name=axis_name)
