"""Many environments in parallel: vectorised steps, the time limit, action repeat, non-finite states and fresh resets.

Environment states stay *batch-last*: the lane is the last axis of every leaf, which is the layout that keeps SIMD units
busy on a CPU. What leaves these functions for a learner (observation, reward, flags) is batch-first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from azjax.batching import CPU_BLOCK, fold_members, minor_vmap
from azjax.config import require
from azjax.envs.base import Environment, EnvState, fresh_state
from azjax.types import Array, Box, Key, Observation

Vectorize = Callable[[Callable[..., Any]], Callable[..., Any]]
# Lanes of one group share a pool of initial states. The group is the same for every device count that divides the
# number of groups, so which reset a lane gets doesn't depend on the devices.
LARGEST_GROUP = 32
_SMALLEST_POOL = 32
_ENV_STEPS_PER_ENTRY = 32
_MOST_ENTRIES = 4  # a lane


def plain_vmap(f: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.vmap`` over the last axis of all arguments and results."""
    return jax.vmap(f, in_axes=-1, out_axes=-1)


def choose_vectorize(name: str = "minor", platform: str | None = None) -> Vectorize:
    """How single environments become lanes on a platform: ``"minor"``, in blocks on a CPU, or ``"vmap"``.

    The lanes of a population's members, ``jax.vmap`` over the training program, are folded into one axis.

    Not by backend: on ant/generalized ``"vmap"`` is the faster one (``python -m benchmarks backends``), but with a
    device for each core it can hang in LAPACK (``azjax.batching.linear_algebra``).
    """
    platform = jax.default_backend() if platform is None else platform
    if name == "vmap":
        return lambda f: fold_members(plain_vmap(f))
    block = CPU_BLOCK if platform == "cpu" else None
    return lambda f: fold_members(minor_vmap(f, block=block))


def batch_first(tree: Any) -> Any:
    """Moves the last axis of every leaf to the front."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), tree)


def select_lanes(condition: Array, on_true: Any, on_false: Any) -> Any:
    """Leaf by leaf ``where(condition, on_true, on_false)`` for batch-last trees and a condition ``[B]``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)


def take_lanes(tree: Any, index: Array) -> Any:
    """The lanes ``index`` of a batch-last tree."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=-1), tree)


def _finite(tree: Any) -> Array:
    """Bool ``[B]``: whether all numbers of a batch-last tree are finite in a lane."""
    flags = [jnp.all(jnp.isfinite(x), axis=tuple(range(x.ndim - 1))) for x in jax.tree.leaves(tree)]
    return jnp.stack(flags).all(axis=0)


def to_environment(env: Environment, action: Array) -> Array:
    """Batch-first actions as the environment wants them: inside [-1, 1] if continuous, lanes last."""
    if isinstance(env.action_spec, Box):
        action = jnp.clip(action, -1.0, 1.0)
    return jnp.moveaxis(action, 0, -1)


def reset_lanes(env: Environment, vectorize: Vectorize, keys: Key) -> EnvState:
    """Fresh initial states for keys ``[B]``, batch-last."""
    return strongly_typed(vectorize(lambda key: fresh_state(env, key))(keys))


def strongly_typed(states: EnvState) -> EnvState:
    """Environments return weakly typed leaves (``where(fallen, 1.0, 0.0)``); a state that comes out of an update with
    other weak types than it went in with would have the program traced a second time.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), states)


class LaneStep(NamedTuple):
    """What one decision did to each lane, before any reset."""

    state: EnvState  # batch-last
    elapsed: Array  # int32 [B] environment steps of the episode so far
    reward: Array  # float32 [B] summed over the action repeat up to the end of the episode
    terminated: Array  # bool [B] the task ended the episode
    truncated: Array  # bool [B] the time limit, the environment itself or a non-finite state cut it short
    nonfinite: Array  # bool [B] the lane's physics broke
    final_observation: Observation  # batch-first: the true successor; the last finite one where the physics broke


def step_lanes(
    env: Environment,
    vectorize: Vectorize,
    state: EnvState,
    elapsed: Array,
    action: Array,
    *,
    limit: Array | int,
    action_repeat: int = 1,
) -> LaneStep:
    """Steps every lane once with its action, ``action_repeat`` times where that is more than 1.

    An episode that ends inside the repeat keeps the state of its end and earns nothing more. A lane whose observation
    or reward is not finite counts as truncated with reward 0.

    Args:
      env: the environment.
      vectorize: ``minor_vmap`` or ``plain_vmap``.
      state: batch-last states.
      elapsed: int32 ``[B]`` environment steps of the running episodes.
      action: ``[B, A]``, batch-first.
      limit: time limit in environment steps, one for all lanes or int32 ``[B]``.
      action_repeat: environment steps per decision.
    """
    action = to_environment(env, action)

    def env_step(before: EnvState, action: Array) -> EnvState:
        return strongly_typed(vectorize(env.step)(before, action))

    def repeat(carry: tuple[EnvState, Array], done: Array) -> tuple[tuple[EnvState, Array], None]:
        before, reward = carry
        over = before.terminated | before.truncated | ~_finite(before.observation) | (elapsed + done >= limit)
        after = select_lanes(over, before, env_step(before, action))
        return (after, reward + jnp.where(over, 0.0, after.reward)), None

    if action_repeat == 1:
        after = env_step(state, action)
        reward = after.reward
    else:
        (after, reward), _ = jax.lax.scan(repeat, (state, jnp.zeros_like(state.reward)), jnp.arange(action_repeat))
    finite = _finite((after.observation, reward))
    # A time limit that the repeat doesn't divide ends the last decision early.
    elapsed_after = jnp.minimum(elapsed + action_repeat, limit)
    terminated = after.terminated & finite
    truncated = (after.truncated | (elapsed_after >= limit)) & ~terminated | ~finite
    final_observation = select_lanes(finite, after.observation, state.observation)
    return LaneStep(
        state=after,
        elapsed=elapsed_after,
        reward=jnp.where(finite, reward, 0.0),
        terminated=terminated,
        truncated=truncated,
        nonfinite=~finite,
        final_observation=batch_first(final_observation),
    )


class PoolLayout(NamedTuple):
    """How lanes share pools of fresh initial states."""

    group: int  # lanes that share a pool
    entries: int  # initial states in a group's pool


def group_size(lanes: int) -> int:
    """How many consecutive lanes share a pool and must stay on one device; ``lanes`` counts all devices'."""
    largest = max(1, min(LARGEST_GROUP, lanes // 8))
    # A power of 2, so that 32 lanes a device, times any number, can always be divided in whole groups.
    return math.gcd(lanes, 1 << (largest.bit_length() - 1))


def check_division(lanes: int, devices: int) -> None:
    """Raises ``ValueError`` unless the lanes can be divided among the devices in whole groups."""
    group = group_size(lanes)
    require(
        lanes // group % devices == 0,
        f"{lanes} lanes can't be divided among {devices} devices in whole groups of {group}; "
        f"use a multiple of {LARGEST_GROUP * devices} lanes",
    )


def check_lengths(lanes: int, episode_length: int, env_steps: int) -> None:
    """Raises ``ValueError`` unless the lengths of all episodes that may end in an update add up to less than 2^31."""
    require(
        env_steps + lanes * episode_length < 2**31,
        f"episodes of {episode_length} environment steps are too long for {lanes} lanes: their lengths in one update, "
        "added up, must stay below 2^31; use fewer lanes or a shorter episode_length",
    )


def default_pool(lanes: int, env_steps: int) -> int:
    """Initial states that an update prepares: one for every 32 environment steps, at least 32, at most 4 a lane.

    So the pool's cost beside the rollout doesn't depend on how lanes, rollout length and action repeat are chosen, and
    its memory stays within a few times that of the lanes.
    """
    return max(min(env_steps // _ENV_STEPS_PER_ENTRY, _MOST_ENTRIES * lanes), _SMALLEST_POOL)


def pool_layout(lanes: int, env_steps: int, reset_pool: int | None = None) -> PoolLayout:
    """Groups of lanes and the entries of each group's pool.

    Args:
      lanes: the number of lanes on all devices together.
      env_steps: environment steps of all lanes in one update.
      reset_pool: initial states for all lanes together; default ``default_pool(lanes, env_steps)``.

    Raises:
      ValueError: if the pool is smaller than 1.
    """
    pool = default_pool(lanes, env_steps) if reset_pool is None else reset_pool
    require(pool >= 1, f"reset_pool is {pool}; it must be at least 1")
    group = group_size(lanes)
    return PoolLayout(group=group, entries=max(1, math.ceil(pool * group / lanes)))


class Pool(NamedTuple):
    """Fresh initial states of the groups on this device, and how many each group has used."""

    states: EnvState  # batch-last, groups * entries lanes
    used: Array  # int32 [groups]


def fill_pool(env: Environment, vectorize: Vectorize, key: Key, lane_index: Array, layout: PoolLayout) -> Pool:
    """New initial states for the groups of these lanes; ``key`` is consumed.

    Args:
      env: the environment.
      vectorize: ``minor_vmap`` or ``plain_vmap``.
      key: the same on every device; the entry's global number is folded in.
      lane_index: int32 ``[B]`` global numbers of this device's lanes, in order, whole groups.
      layout: how lanes share pools.
    """
    groups = lane_index[:: layout.group] // layout.group
    entries = (groups[:, None] * layout.entries + jnp.arange(layout.entries)).reshape(-1)
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(entries)
    return Pool(states=reset_lanes(env, vectorize, keys), used=jnp.zeros(groups.shape, jnp.int32))


def draw_from_pool(pool: Pool, over: Array, state: EnvState, layout: PoolLayout) -> tuple[Array, EnvState]:
    """Gives each lane that is ``over`` (bool ``[B]``) its group's next initial state, wrapping when all are used.

    Returns:
      ``Pool.used`` after that, and the states.
    """
    # Whether any lane draws is asked for all members of a population at once: conditions that differ between members
    # would have the states selected in every step.
    return fold_members(functools.partial(_draw, layout))(pool, over, state)  # type: ignore[no-any-return]


def _draw(layout: PoolLayout, pool: Pool, over: Array, state: EnvState) -> tuple[Array, EnvState]:
    by_group = over.reshape(-1, layout.group)
    number = pool.used[:, None] + jnp.cumsum(by_group, axis=1, dtype=jnp.int32) - 1
    group = jnp.arange(by_group.shape[0], dtype=jnp.int32)[:, None]
    index = (group * layout.entries + jnp.maximum(number, 0) % layout.entries).reshape(-1)
    state = jax.lax.cond(
        over.any(),
        lambda: select_lanes(over, take_lanes(pool.states, index), state),
        lambda: state,
    )
    return pool.used + by_group.sum(axis=1, dtype=jnp.int32), state


def reused_resets(used: Array, layout: PoolLayout) -> Array:
    """int32 []: resets that had to take an initial state a second time, from ``Pool.used`` ``[groups]``."""
    return jnp.maximum(used - layout.entries, 0).sum()
