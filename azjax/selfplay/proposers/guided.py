r"""Success-model-guided sampling: learnability without a policy gradient.

A classifier :math:`s(c)` is fitted to the outcomes of past tasks; of several uniform candidates the one whose predicted
learnability :math:`4 s (1 - s)` is largest is proposed. It pools what neighbouring tasks showed, which the success rate
of a few attempts at one task cannot, and, beside the learned proposer, tells what the policy gradient itself is worth.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from azjax.config import require_number
from azjax.networks import MLP
from azjax.selfplay.proposers.base import Feedback, Proposer, gather
from azjax.selfplay.proposers.memory import Memory, features, init_memory, recall, remember
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Info, Key, Params

__all__ = ["GuidedConfig", "GuidedState", "guided"]


@dataclasses.dataclass(frozen=True)
class GuidedConfig:
    """Settings of the guided proposer.

    Attributes:
      candidates: uniform candidates of one type among which a proposal is chosen.
      uniform: probability that a proposal is a uniform one.
      memory: past tasks that the model is fitted to: the most recent ones.
      steps: gradient steps of Adam in each update.
      batch: past tasks in each of them, drawn with replacement.
      learning_rate: of Adam.
      hidden: sizes of the model's hidden layers.
    """

    candidates: int = 8
    uniform: float = 0.5
    memory: int = 4096
    steps: int = 8
    batch: int = 256
    learning_rate: float = 3e-3
    hidden: tuple[int, ...] = (64, 64)

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        for name, low, high in (
            ("candidates", 1, 2**20),
            ("uniform", 0.0, 1.0),
            ("memory", 1, 2**24),
            ("steps", 1, 2**20),
            ("batch", 1, 2**20),
            ("learning_rate", 0.0, 1.0),
        ):
            require_number(f"{name} of the guided proposer", getattr(self, name), low, high)
        for size in self.hidden:
            require_number("size of a hidden layer of the guided proposer", size, 1, 2**16)


@flax.struct.dataclass
class GuidedState:
    """The model of success and what it is fitted to."""

    params: Params
    optimizer: Any
    memory: Memory


class _Model(nn.Module):
    """The logit of success."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., n]`` to ``[...]``."""
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(MLP(self.hidden)(x))[..., 0]


def guided(family: TaskFamily, config: GuidedConfig | None = None, *, axis_name: str | None = None) -> Proposer:
    """Success-model-guided sampling as a proposer; the memo says which proposals were chosen by the model.

    Args:
      family: the tasks; each type is proposed with equal probability.
      config: settings; default ``GuidedConfig()``.
      axis_name: the device axis, over which the memory is gathered; every device fits the same model to it.

    Raises:
      ConfigError: for a family or settings that make no sense.
    """
    config = GuidedConfig() if config is None else config
    config.validate()
    family.validate()
    model, optimizer = _Model(config.hidden), optax.adam(config.learning_rate)

    def init(key: Key) -> GuidedState:
        params = model.init(key, jnp.zeros(len(family.types) + family.size))
        return GuidedState(params, optimizer.init(params), init_memory(family, config.memory))

    def propose(state: GuidedState, keys: Key) -> tuple[Proposal, Array]:
        def one(key: Key) -> tuple[Proposal, Array]:
            key_chosen, key_type, key_cube = jax.random.split(key, 3)
            # Candidates are of one type: the model shall choose within types, not among them.
            type_ = jnp.full(config.candidates, family.sample(key_type).type)
            drawn = family.canonical(Proposal(type_, jax.random.uniform(key_cube, (config.candidates, family.size))))
            success = jax.nn.sigmoid(jnp.asarray(model.apply(state.params, features(family, drawn))))
            chosen = jax.random.bernoulli(key_chosen, 1.0 - config.uniform) & (state.memory.count > 0)
            place = jnp.where(chosen, jnp.argmax(success * (1.0 - success)), 0)
            return jax.tree.map(lambda x: x[place], drawn), chosen

        return jax.vmap(one)(keys)

    def loss(params: Params, tasks: Proposal, rate: Array, present: Array) -> Array:
        logit = model.apply(params, features(family, tasks))
        return jnp.mean(jnp.where(present, optax.sigmoid_binary_cross_entropy(logit, rate), 0.0))

    def update(state: GuidedState, feedback: Feedback, key: Key) -> tuple[GuidedState, Info]:
        arrived = gather((feedback.proposal, feedback.rate, feedback.accepted), axis_name)
        memory = remember(state.memory, *arrived)

        def step(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Array]:
            params, moments = carry
            value, gradient = jax.value_and_grad(loss)(params, *recall(memory, key, config.batch))
            change, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, change), moments), value

        start = (state.params, state.optimizer)
        (params, moments), losses = jax.lax.scan(step, start, jax.random.split(key, config.steps))
        return GuidedState(params, moments, memory), {"proposer/model_loss": losses[-1]}

    return Proposer(init, propose, update)
