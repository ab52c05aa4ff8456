"""The self-play program: one update proposes tasks, verifies, attempts and scores them, and improves both roles.

::

    propose N tasks -> verify -> n attempts of each in parallel lanes -> success rate p of each task
        -> proposer: learnability of p, -1 for what was refused
        -> solver: dense reward and success, success only, or ranked reward
        -> both learn

An attempt is a whole episode, and a rollout is as long as the longest one: so every task of an update is attempted n
times, by one policy, within that update, and its outcome can be credited to all of the attempt's decisions. A lane
whose attempt is over attempts the same task once more, from another initial state; that is training data, while success
rates count the first attempt of each lane only, or short attempts would be seen more often.

A task that verification refuses is never attempted: its lanes attempt the next accepted proposal (by number, of any
device) instead. If none is accepted at all, nothing of the update is trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from azjax.config import require, require_number
from azjax.counters import Counter, counter_add, counter_from_int
from azjax.envs.lanes import (
    PoolLayout,
    Vectorize,
    check_lengths,
    choose_vectorize,
    default_pool,
    reused_resets,
)
from azjax.selfplay.config import SelfPlayConfig
from azjax.selfplay.credit import Attempted, solver_batch, task_cells
from azjax.selfplay.maps import TaskMaps, add_to_maps, init_maps
from azjax.selfplay.proposers.base import Feedback, Proposer, proposer_reward
from azjax.selfplay.ranked import RankedBuffer, init_ranked
from azjax.selfplay.rounds import (
    attempt,
    fold_each,
    judge,
    replace_refused,
    surprise,
    task_metrics,
    verdict_metrics,
)
from azjax.selfplay.scores import learnability
from azjax.selfplay.spaces import Proposal
from azjax.selfplay.verification import TaskProtocol, verification_steps
from azjax.training import Metrics, reduce_report
from azjax.types import Array, Info, Key, Learner

__all__ = ["SelfPlayMetrics", "SelfPlayState", "SelfPlayTrainer", "make_selfplay"]


@flax.struct.dataclass
class SelfPlayState:
    """All that self-play carries from update to update; all attempts end within one."""

    learner: Any  # the solver's
    proposer: Any
    past: RankedBuffer | None  # of scores, for ranked reward
    maps: TaskMaps
    lanes: Array  # int32 [B] number of each lane among all devices' lanes
    key: Key
    updates: Array  # int32 []
    training_steps: Counter  # environment steps of attempts since the start, exact
    verification_steps: Counter  # those of verification

    @property
    def env_steps(self) -> Counter:
        """All environment steps since the start."""
        return counter_add(self.training_steps, self.verification_steps)


class SelfPlayMetrics(NamedTuple):
    """What an update reports; the same on every device."""

    training: Metrics  # as of plain training: episodes are first attempts, env_steps include verification
    training_steps: Counter
    verification_steps: Counter
    selfplay: Info  # of proposals and attempts; NaN: nothing to tell of it in this update


class SelfPlayTrainer(NamedTuple):
    """Two pure functions like those of ``azjax.Trainer``, and the facts that a program around them needs."""

    init: Callable[[Key], SelfPlayState]
    step: Callable[[SelfPlayState], tuple[SelfPlayState, SelfPlayMetrics]]
    lanes: int  # on all devices together: proposals x attempts
    decisions: int  # of all lanes in one update
    training_steps_per_update: int
    verification_steps_per_update: int  # of an update in which verification takes any
    verify_every: int
    reset_group: int  # consecutive lanes that must stay on one device: the attempts at a task
    axis_name: str | None

    def env_steps(self, updates: int) -> int:
        """Environment steps of so many updates from the start."""
        return env_steps_of(
            updates, self.training_steps_per_update, self.verification_steps_per_update, self.verify_every
        )


def env_steps_of(updates: int, training: int, verification: int, every: int) -> int:
    """Environment steps of so many updates, each with ``training``, every ``every``-th with ``verification`` ones."""
    return updates * training + -(-updates // every) * verification


def make_selfplay(
    env: TaskProtocol,
    learner: Learner,
    proposer: Proposer,
    config: SelfPlayConfig | None = None,
    *,
    action_repeat: int = 1,
    initial_states: int | None = None,
    axis_name: str | None = None,
    vectorize: Vectorize | None = None,
) -> SelfPlayTrainer:
    """Combines tasks, a solver and a proposer into a training program.

    Args:
      env: see ``azjax.selfplay.make_task_env``.
      learner: the solver's, see ``azjax.ppo`` and ``azjax.trpo``.
      proposer: see ``azjax.selfplay.proposers``.
      config: settings; default ``SelfPlayConfig()``.
      action_repeat: environment steps per decision; the time limit of an attempt is cut to it where it doesn't divide.
      initial_states: fresh initial states that each lane gets in an update, for the attempts after its first; default
        one for every 32 environment steps, from 2 to 4.
      axis_name: the device axis when ``step`` runs under ``shard_map``; learner and proposer need the same name.
      vectorize: how single environments become lanes; see ``azjax.make_trainer``.

    Returns:
      A ``SelfPlayTrainer``; pass it to ``azjax.compile``, or wrap its functions yourself.

    Raises:
      ConfigError: for settings that make no sense, counts too large to be added up in 32 bits, or a learner with
        another axis name.

    Examples:
      >>> import azjax, jax
      >>> from azjax.selfplay import SelfPlayConfig, make_selfplay, make_task_env
      >>> from azjax.selfplay.proposers import uniform
      >>> env = make_task_env("pointmass", ("goal",))
      >>> trainer = make_selfplay(env, azjax.ppo(), uniform(env.family), SelfPlayConfig(proposals=4, attempts=4))
      >>> trainer.lanes, trainer.training_steps_per_update, trainer.verification_steps_per_update
      (16, 960, 192)
    """
    config = SelfPlayConfig() if config is None else config
    config.validate()
    require_number("action_repeat", action_repeat, 1, 2**30)
    require(
        learner.axis_name == axis_name,
        f"the learner reduces over axis_name={learner.axis_name!r}, self-play over {axis_name!r}; name both alike, "
        "or the devices' parameters drift apart",
    )
    family, lanes = env.family, config.proposals * config.attempts
    decisions = -(-env.episode_length // action_repeat)
    training_steps = lanes * decisions * action_repeat
    check_lengths(lanes, env.episode_length, training_steps)
    per_lane = max(2, default_pool(lanes, training_steps) // lanes) if initial_states is None else initial_states
    require_number("initial_states", per_lane, 1, 2**20)
    layout = PoolLayout(group=1, entries=per_lane)
    verifying = verification_steps(config.proposals, config.verification)
    mapped = vectorize or choose_vectorize()
    _, cells = task_cells(family, Proposal(jnp.zeros((), jnp.int32), jnp.zeros(family.size)), config.past_cells)

    def init(key: Key) -> SelfPlayState:
        key, key_learner, key_proposer = jax.random.split(key, 3)
        return SelfPlayState(
            learner=learner.init(key_learner, env.observation_spec, env.action_spec),
            proposer=proposer.init(key_proposer),
            past=init_ranked(cells, config.past) if config.solver_reward == "ranked" else None,
            maps=init_maps(family),
            lanes=jnp.arange(lanes, dtype=jnp.int32),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            training_steps=counter_from_int(0),
            verification_steps=counter_from_int(0),
        )

    def step(state: SelfPlayState) -> tuple[SelfPlayState, SelfPlayMetrics]:
        keys = jax.random.split(state.key, 7)
        key, key_propose, key_verify, key_attempt, key_ranked, key_fit, key_update = keys
        number = state.lanes[:: config.attempts] // config.attempts
        proposal, memo = proposer.propose(state.proposer, fold_each(key_propose, number))
        verdict, due = judge(
            env,
            mapped,
            proposal,
            fold_each(key_verify, number),
            state.updates,
            config.verify_every,
            config.verification,
        )
        attempted, source, found = replace_refused(family, proposal, verdict.accepted, number, axis_name)

        def to_lanes(x: Any) -> Any:
            return jax.tree.map(lambda y: jnp.repeat(y, config.attempts, axis=0), x)

        in_lanes, question = to_lanes(attempted), to_lanes(source)
        active = jnp.broadcast_to(found, state.lanes.shape)
        played, ends = attempt(
            env,
            mapped,
            learner.act,
            state.learner.params,
            state.lanes,
            family.decode(in_lanes),
            key_attempt,
            layout,
            decisions=decisions,
            action_repeat=action_repeat,
        )
        batch, past, ranked_info = solver_batch(
            learner,
            state.learner,
            state.past,
            played.rollout,
            Attempted(ends, in_lanes, question, active),
            key_ranked,
            family=family,
            config=config,
            axis_name=axis_name,
        )

        successes = ends.of_first(ends.success).reshape(-1, config.attempts).sum(axis=1, dtype=jnp.int32)
        rate = jnp.where(verdict.accepted, successes / config.attempts, 0.0)
        feedback = Feedback(
            proposal=proposal,
            memo=memo,
            reward=proposer_reward(verdict.accepted, successes, config.attempts, config.learnability),
            accepted=verdict.accepted,
            rate=rate,
            regret=jnp.where(verdict.accepted, surprise(batch, ends, config.attempts), 0.0),
        )
        solver, solver_info = learner.fit(state.learner, batch, key_fit)
        proposer_state, proposer_info = proposer.update(state.proposer, feedback, key_update)
        after = dataclasses.replace(
            state,
            learner=solver,
            proposer=proposer_state,
            past=past,
            maps=add_to_maps(
                state.maps,
                family,
                proposal,
                verdict.accepted,
                rate,
                learnability(successes, config.attempts, config.learnability),
                axis_name,
            ),
            key=key,
            updates=state.updates + 1,
            training_steps=counter_add(state.training_steps, training_steps),
            verification_steps=counter_add(state.verification_steps, jnp.where(due, verifying, 0)),
        )
        report = played.report._replace(ended=played.report.ended & ends.first & active)
        metrics = SelfPlayMetrics(
            training=Metrics(
                env_steps=after.env_steps,
                learner=solver_info,
                **reduce_report(report, played.rollout.reward, reused_resets(played.used, layout), axis_name),
            ),
            training_steps=after.training_steps,
            verification_steps=after.verification_steps,
            selfplay={f"selfplay/{name}": x for name, x in ranked_info.items()}
            | proposer_info
            | task_metrics(feedback, successes, ends, config.attempts, family, axis_name)
            | verdict_metrics(verdict, due, axis_name),
        )
        return after, metrics

    return SelfPlayTrainer(
        init=init,
        step=step,
        lanes=lanes,
        decisions=lanes * decisions,
        training_steps_per_update=training_steps,
        verification_steps_per_update=verifying,
        verify_every=config.verify_every,
        reset_group=config.attempts,
        axis_name=axis_name,
    )
