r"""A proposer that learns by policy gradient which tasks are worth proposing.

As Absolute Zero's proposer, it is asked for a task of a given type, sees K past tasks with their success rates, and is
rewarded by the learnability of what it answers; the advantage is that among the proposals of its type (TRR++). The
policy is a learner of azjax's: PPO, TRPO, or REINFORCE, which is PPO with one epoch and one minibatch. Its action
:math:`a \in [-1, 1]^D` is the point :math:`(a + 1) / 2` of the unit cube; axes that a type lacks are noise to it, of
no expected effect on the gradient.

A share of the proposals is uniform instead: it keeps easy tasks from being forgotten and the proposer from collapsing,
shows what lies elsewhere to the memory, and takes no part in the gradient, so that the rest stays on-policy.

References:
  Zhao et al., "Absolute Zero: Reinforced Self-play Reasoning with Zero Data", 2025, https://arxiv.org/abs/2505.03335,
  sections 3.1 to 3.3.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from azjax.algorithms import make_learner
from azjax.config import require_number
from azjax.on_policy import OnPolicyConfig
from azjax.ppo import PPOConfig
from azjax.selfplay.baselines import task_role_advantages
from azjax.selfplay.proposers.base import Feedback, Proposer, gather
from azjax.selfplay.proposers.memory import Memory, features, init_memory, recall, remember
from azjax.selfplay.spaces import Proposal, TaskFamily
from azjax.types import Array, Batch, Box, Info, Key

__all__ = ["LearnedConfig", "LearnedState", "learned"]


def _default_learner() -> PPOConfig:
    return PPOConfig(
        learning_rate=1e-3,
        entropy_coefficient=0.01,
        value_coefficient=0.0,
        epochs=4,
        minibatches=1,
        advantage_normalization="none",
        normalize_observations=False,
        state_dependent_std=True,
        init_std=0.9,
    )


@dataclasses.dataclass(frozen=True)
class LearnedConfig:
    """Settings of the learned proposer.

    Attributes:
      learner: the policy's own hyperparameters. Advantages are normalised by type before, and no value is used.
      references: K, past tasks that each proposal is made in view of.
      memory: past tasks that references are drawn from: the most recent ones.
      uniform: probability that a proposal is a uniform one.
      frozen: never update the policy: what remains of it when it does not learn.
    """

    learner: OnPolicyConfig = dataclasses.field(default_factory=_default_learner)
    references: int = 6
    memory: int = 4096
    uniform: float = 0.5
    frozen: bool = False

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        self.learner.validate()
        require_number("references of the learned proposer", self.references, 0, 1024)
        require_number("memory of the learned proposer", self.memory, 1, 2**24)
        require_number("uniform share of the learned proposer", self.uniform, 0.0, 1.0)


@flax.struct.dataclass
class LearnedState:
    """The policy and what it remembers."""

    learner: Any
    memory: Memory


class Memo(NamedTuple):
    """What the gradient needs of a proposal."""

    context: Array  # float32 [C] what the policy saw
    raw_action: Array  # float32 [D]
    log_prob: Array  # float32 []
    own: Array  # bool [] the policy's, not a uniform one


def learned(family: TaskFamily, config: LearnedConfig | None = None, *, axis_name: str | None = None) -> Proposer:
    """The policy-gradient proposer.

    Args:
      family: the tasks; each type is asked for with equal probability.
      config: settings; default ``LearnedConfig()``.
      axis_name: the device axis, over which the gradient is averaged and the memory gathered.

    Raises:
      ConfigError: for a family or settings that make no sense.
    """
    config = LearnedConfig() if config is None else config
    config.validate()
    family.validate()
    learner = make_learner(config.learner, axis_name=axis_name)
    types, size = len(family.types), family.size
    width = types + config.references * (types + size + 2)

    def init(key: Key) -> LearnedState:
        policy = learner.init(key, jax.ShapeDtypeStruct((width,), jnp.float32), Box(size))
        return LearnedState(policy, init_memory(family, config.memory))

    def context(memory: Memory, type_: Array, key: Key) -> Array:
        tasks, rate, present = recall(memory, key, config.references)
        rows = [features(family, tasks), rate[:, None], jnp.ones((config.references, 1))]
        seen = jnp.where(present[:, None], jnp.concatenate(rows, axis=-1), 0.0)
        return jnp.concatenate([jax.nn.one_hot(type_, types), seen.reshape(-1)])

    def propose(state: LearnedState, keys: Key) -> tuple[Proposal, Memo]:
        def one(key: Key) -> tuple[Proposal, Memo]:
            key_own, key_task, key_context, key_action = jax.random.split(key, 4)
            own = ~jax.random.bernoulli(key_own, config.uniform)
            drawn = family.sample(key_task)
            seen = context(state.memory, drawn.type, key_context)
            action, _, info = learner.act(state.learner.params, seen, (), key_action)
            cube = jnp.where(own, jnp.clip(0.5 * (action + 1.0), 0.0, 1.0), drawn.cube)
            return family.canonical(Proposal(drawn.type, cube)), Memo(seen, info.raw_action, info.log_prob, own)

        return jax.vmap(one)(keys)

    def update(state: LearnedState, feedback: Feedback, key: Key) -> tuple[LearnedState, Info]:
        memo, proposal = feedback.memo, feedback.proposal
        advantages = task_role_advantages(
            feedback.reward,
            proposal.type,
            jnp.zeros_like(proposal.type),
            tasks=types,
            roles=1,
            weights=memo.own,
            axis_name=axis_name,
        )
        batch = Batch(memo.context, memo.raw_action, memo.log_prob, advantages, advantages, memo.own)
        policy, info = (state.learner, {}) if config.frozen else learner.fit(state.learner, batch, key)
        info = {f"proposer/{name}": x for name, x in info.items()}
        memory = remember(state.memory, *gather((proposal, feedback.rate, feedback.accepted), axis_name))
        return LearnedState(policy, memory), info | _rewards(feedback, axis_name)

    return Proposer(init, propose, update)


def _rewards(feedback: Feedback, axis_name: str | None) -> Info:
    """Mean rewards of the policy's proposals and of the uniform ones beside them."""
    own = feedback.memo.own
    sums = jnp.stack([jnp.stack([jnp.where(x, feedback.reward, 0.0).sum(), x.sum()]) for x in (own, ~own)])
    sums = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    means = sums[:, 0] / jnp.maximum(sums[:, 1], 1.0)
    return {"proposer/reward_own": means[0], "proposer/reward_uniform": means[1]}
