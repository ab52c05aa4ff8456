"""The parts of an update of self-play: what is attempted, from where, and what there is to say of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from azjax.envs.lanes import LaneStep, Pool, PoolLayout, Vectorize, strongly_typed, take_lanes
from azjax.minibatches import masked_mean, sum_over_devices
from azjax.selfplay.credit import Ends
from azjax.selfplay.information import outcome_entropy
from azjax.selfplay.proposers.base import Feedback, gather, neutral_points
from azjax.selfplay.spaces import Proposal, Task, TaskFamily
from azjax.selfplay.verification import TaskProtocol, Verdict, VerificationConfig, verify
from azjax.training import LaneState, Played, play
from azjax.types import ActFn, Array, Batch, Info, Key, Params

__all__ = [
    "attempt",
    "first_states",
    "fold_each",
    "judge",
    "replace_refused",
    "surprise",
    "task_metrics",
    "verdict_metrics",
]


def fold_each(key: Key, numbers: Array) -> Key:
    """A key for each of the numbers ``[N]``."""
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)


def judge(
    env: TaskProtocol,
    vectorize: Vectorize,
    proposal: Proposal,
    keys: Key,
    updates: Array,
    every: int,
    config: VerificationConfig,
) -> tuple[Verdict, Array]:
    """Verdicts on proposals ``[N]``, and whether all gates were looked at, bool [].

    In updates between, only integrity without a simulation is: that the numbers are within bounds and make a model.
    """

    def all_gates() -> Verdict:
        return verify(env, vectorize, proposal, keys, updates, config)

    def without_steps() -> Verdict:
        good = env.family.contains(proposal) & vectorize(env.valid)(env.family.decode(proposal))
        yes = jnp.ones_like(good)
        return Verdict(good, good, yes, yes)

    due = updates % every == 0
    return (all_gates() if every == 1 else jax.lax.cond(due, all_gates, without_steps)), due


def replace_refused(
    family: TaskFamily, proposal: Proposal, accepted: Array, number: Array, axis_name: str | None
) -> tuple[Proposal, Array, Array]:
    """What is attempted in place of each proposal ``[N]``: itself, or where it was refused the next accepted one.

    Args:
      family: whose tasks they are.
      proposal: each device its own.
      accepted: bool ``[N]`` by verification.
      number: int32 ``[N]`` of each proposal among those of all devices, in order.
      axis_name: the device axis.

    Returns:
      The tasks to attempt; the number of the proposal that each of them was; and whether there is any, bool []: if not,
      the tasks are neutral ones, not to be trained on.
    """
    everyone, fine = gather((proposal, accepted), axis_name)
    count = fine.shape[0]
    # From each place, how far it is to the next accepted one, the end followed by the beginning.
    ahead = jnp.where(jnp.concatenate([fine, fine]), jnp.arange(2 * count), 2 * count)
    following = jax.lax.cummin(ahead, reverse=True)[:count]
    source = jnp.where(following < 2 * count, following % count, jnp.arange(count))[number]
    neutral = Proposal(jnp.zeros_like(proposal.type), jnp.broadcast_to(neutral_points(family)[0], proposal.cube.shape))
    chosen = jax.tree.map(lambda x: x[source], everyone)
    found = fine.any()
    return jax.tree.map(lambda x, y: jnp.where(found, x, y), chosen, neutral), source, found


def first_states(
    env: TaskProtocol, vectorize: Vectorize, key: Key, index: Array, tasks: Task, layout: PoolLayout
) -> tuple[LaneState, Pool]:
    """Lanes at the start of their first attempts at tasks ``[B]``, and the initial states of those that follow.

    Args:
      env: the environment.
      vectorize: ``minor_vmap`` or ``plain_vmap``.
      key: the same on every device; consumed.
      index: int32 ``[B]`` number of each lane.
      tasks: the task of each lane.
      layout: every lane has a pool of its own, for only its states are of its task.
    """
    entries, lanes = layout.entries, index.shape[0]
    keys = fold_each(key, (index[:, None] * entries + jnp.arange(entries)).reshape(-1))
    states = strongly_typed(vectorize(env.reset)(keys, jax.tree.map(lambda x: jnp.repeat(x, entries), tasks)))
    running = LaneState(
        env=take_lanes(states, jnp.arange(lanes) * entries),
        index=index,
        elapsed=jnp.zeros(lanes, jnp.int32),
        limit=jnp.full(lanes, env.episode_length, jnp.int32),
        episode_return=jnp.zeros(lanes, jnp.float32),
    )
    return running, Pool(states, used=jnp.ones(lanes, jnp.int32))


def attempt(
    env: TaskProtocol,
    vectorize: Vectorize,
    act: ActFn,
    params: Params,
    index: Array,
    tasks: Task,
    key: Key,
    layout: PoolLayout,
    *,
    decisions: int,
    action_repeat: int,
) -> tuple[Played, Ends]:
    """Attempts at tasks ``[B]``, one for each lane, and more of them while there is time.

    Args:
      env: the environment.
      vectorize: ``minor_vmap`` or ``plain_vmap``.
      act: the solver's.
      params: what it needs.
      index: int32 ``[B]`` number of each lane.
      tasks: the task of each lane.
      key: the same on every device; consumed.
      layout: see ``first_states``.
      decisions: how many each lane makes: as many as the longest attempt.
      action_repeat: environment steps per decision.
    """
    key_reset, key_act = jax.random.split(key)
    running, pool = first_states(env, vectorize, key_reset, index, tasks, layout)

    def watch(result: LaneStep) -> Ends:
        over, outcome = result.terminated | result.truncated, vectorize(env.outcome)(result.state)
        score = jnp.where(over & jnp.isfinite(outcome.score) & ~result.nonfinite, outcome.score, 0.0)
        return Ends(over, over & outcome.success & ~result.nonfinite, score)

    played = play(
        env,
        vectorize,
        act,
        params,
        running,
        pool,
        layout,
        key_act,
        decisions=decisions,
        action_repeat=action_repeat,
        watch=watch,
    )
    return played, played.watched


def surprise(batch: Batch, ends: Ends, attempts: int) -> Array:
    """Mean absolute advantage of the first attempts at each task, ``[N]``."""
    counts = batch.mask & ends.first
    total = jnp.where(counts, jnp.abs(batch.advantages), 0.0).sum(axis=0).reshape(-1, attempts).sum(axis=1)
    return total / jnp.maximum(counts.sum(axis=0).reshape(-1, attempts).sum(axis=1), 1)


def task_metrics(
    feedback: Feedback, successes: Array, ends: Ends, attempts: int, family: TaskFamily, axis_name: str | None
) -> Info:
    """Means over the accepted proposals of all devices; NaN of a type that none of them has."""
    accepted, kind = feedback.accepted, feedback.proposal.type
    score = ends.of_first(ends.score).reshape(-1, attempts).mean(axis=1)
    doubtful = ((successes > 0) & (successes < attempts)).astype(jnp.float32)

    def mean(x: Array, among: Array = accepted) -> Array:
        return masked_mean(x, among, axis_name)

    info = {
        "success": mean(feedback.rate),
        "score": mean(score),
        "informative": mean(doubtful),
        "bits_per_attempt": mean(outcome_entropy(successes, attempts)),
        "proposer_reward": mean(feedback.reward, jnp.ones_like(accepted)),
        "learnability": mean(feedback.reward),
    }
    for number, name in enumerate(family.types):
        mine = accepted & (kind == number)
        any_ = sum_over_devices(mine.sum(), axis_name) > 0
        info[f"success_{name}"] = jnp.where(any_, mean(feedback.rate, mine), jnp.nan)
    return {f"selfplay/{name}": x for name, x in info.items()}


def verdict_metrics(verdict: Verdict, due: Array, axis_name: str | None) -> Info:
    """The share of proposals that passed each gate, NaN of those that were not looked at."""
    looked_at: dict[str, Any] = {"accepted": True, "integrity": True, "safety": due, "determinism": due}
    info = {}
    for name, passed in verdict._asdict().items():
        share = masked_mean(passed.astype(jnp.float32), jnp.ones_like(passed), axis_name)
        info[f"verification/{name}"] = jnp.where(looked_at[name], share, jnp.nan)
    return info
