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
from typing import Any, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp

from azjax.config import nearest, require, require_number
from azjax.counters import Counter, counter_add, counter_from_int
from azjax.envs.lanes import (
    LaneStep,
    PoolLayout,
    Vectorize,
    check_lengths,
    choose_vectorize,
    default_pool,
    reused_resets,
)
from azjax.minibatches import masked_mean
from azjax.selfplay.baselines import Baseline, task_role_advantages
from azjax.selfplay.credit import SOLVER_REWARDS, Ends, SolverReward, add_success, only_outcome, task_cells
from azjax.selfplay.maps import TaskMaps, add_to_maps, init_maps
from azjax.selfplay.proposers.base import Feedback, Proposer, proposer_reward
from azjax.selfplay.ranked import RankedBuffer, init_ranked, ranked_reward
from azjax.selfplay.rounds import (
    first_states,
    fold_each,
    judge,
    replace_refused,
    surprise,
    task_metrics,
    verdict_metrics,
)
from azjax.selfplay.scores import LearnabilityKind, learnability
from azjax.selfplay.spaces import Proposal, Task
from azjax.selfplay.verification import TaskProtocol, VerificationConfig, verification_steps
from azjax.training import Metrics, Played, play, reduce_report
from azjax.types import Array, Batch, Info, Key, Learner

__all__ = ["SelfPlayConfig", "SelfPlayMetrics", "SelfPlayState", "SelfPlayTrainer", "make_selfplay"]


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
    """Settings of the loop, all static.

    Attributes:
      proposals: N, tasks proposed in each update, on all devices together.
      attempts: n, lanes that attempt each of them; at least 2.
      learnability: the proposer's reward for a verified task, see ``azjax.selfplay.learnability``.
      solver_reward: what the solver learns from: `dense`, the task's reward by GAE plus ``success_weight`` times the
        attempt's advantage of success; `success`, 1 at the end of an attempt that succeeded and nothing else; `ranked`,
        1 or -1 there, by comparison of its score with those of its own recent past.
      success_weight: of success beside the dense advantages, which are scaled to a standard deviation of 1.
      baseline: of the advantage of success: `task-role`, `global` or `question` (the attempts at the same task).
      percentile: of the recent scores that wins must exceed.
      past: scores remembered for each cell of tasks.
      past_minimum: scores that a cell must have before anything is won or lost.
      past_cells: cells along each axis of the task space within which scores are compared.
      verification: how strictly proposals are looked at.
      verify_every: safety and determinism are looked at in every so manieth update only; integrity, which costs no
        environment steps, always is.
    """

    proposals: int = 64
    attempts: int = 8
    learnability: LearnabilityKind = "variance"
    solver_reward: SolverReward = "dense"
    success_weight: float = 1.0
    baseline: Baseline = "task-role"
    percentile: float = 75.0
    past: int = 1000
    past_minimum: int = 50
    past_cells: int = 2
    verification: VerificationConfig = dataclasses.field(default_factory=lambda: VerificationConfig(steps=16))
    verify_every: int = 1

    def validate(self) -> None:
        """Raises ``ConfigError``, naming field and value, for the first field that makes no sense."""
        for name, low, high in (
            ("proposals", 1, 2**24),
            ("attempts", 2, 2**20),
            ("success_weight", 0.0, 1e6),
            ("percentile", 0.0, 100.0),
            ("past", 1, 2**24),
            ("past_minimum", 1, self.past),
            ("past_cells", 1, 64),
            ("verify_every", 1, 2**30),
        ):
            require_number(name, getattr(self, name), low, high)
        for name, choices in (
            ("learnability", get_args(LearnabilityKind)),
            ("solver_reward", SOLVER_REWARDS),
            ("baseline", get_args(Baseline)),
        ):
            value, known = getattr(self, name), list(choices)
            require(value in known, f"{name} is {value!r}{nearest(value, known)}; it must be one of {', '.join(known)}")
        self.verification.validate()


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

    def attempt(state: SelfPlayState, tasks: Task, key: Key) -> tuple[Played, Ends]:
        """Attempts at tasks ``[B]``, one for each lane, and more of them while there is time."""
        key_reset, key_act = jax.random.split(key)
        running, pool = first_states(env, mapped, key_reset, state.lanes, tasks, layout)

        def watch(result: LaneStep) -> Ends:
            over, outcome = result.terminated | result.truncated, mapped(env.outcome)(result.state)
            score = jnp.where(over & jnp.isfinite(outcome.score) & ~result.nonfinite, outcome.score, 0.0)
            return Ends(over, over & outcome.success & ~result.nonfinite, score)

        played = play(
            env,
            mapped,
            learner.act,
            state.learner.params,
            running,
            pool,
            layout,
            key_act,
            decisions=decisions,
            action_repeat=action_repeat,
            watch=watch,
        )
        return played, played.watched

    def credit(
        state: SelfPlayState, played: Played, ends: Ends, proposal: Proposal, source: Array, active: Array, key: Key
    ) -> tuple[Batch, RankedBuffer | None, Info]:
        """The solver's batch; ``proposal``, ``source`` and ``active`` are ``[B]``: what each lane attempted."""
        past, info = state.past, {}
        rollout = played.rollout
        if config.solver_reward == "success":
            rollout = only_outcome(rollout, ends, ends.success.astype(jnp.float32))
        elif past is not None:
            cell, _ = task_cells(family, proposal, config.past_cells)
            past, judged = ranked_reward(
                past,
                ends.score.reshape(-1),
                jnp.broadcast_to(cell, ends.over.shape).reshape(-1),
                key,
                percentile=config.percentile,
                minimum=config.past_minimum,
                mask=(ends.over & active).reshape(-1),
                axis_name=axis_name,
            )
            rollout = only_outcome(rollout, ends, judged.outcome.reshape(ends.over.shape))
            info["ranked_wins"] = masked_mean((judged.outcome > 0).astype(jnp.float32), judged.mask, axis_name)
            info["ranked_judged"] = masked_mean(judged.mask.reshape(ends.over.shape), ends.over & active, axis_name)
        batch = learner.estimate(state.learner, rollout)
        batch = batch._replace(mask=batch.mask & active)
        if config.solver_reward == "dense":
            per_question = config.baseline == "question"
            advantages = task_role_advantages(
                ends.of_first(ends.success).astype(jnp.float32),
                proposal.type,
                jnp.zeros_like(proposal.type),
                tasks=len(family.types),
                roles=1,
                baseline=config.baseline,
                question=source if per_question else None,
                questions=config.proposals if per_question else None,
                weights=active,
                axis_name=axis_name,
            )
            batch = add_success(batch, ends, advantages, config.success_weight, axis_name)
        return batch, past, info

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
        played, ends = attempt(state, family.decode(in_lanes), key_attempt)
        batch, past, ranked_info = credit(state, played, ends, in_lanes, question, active, key_ranked)

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
