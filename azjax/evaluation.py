"""Full episodes of a fixed policy, and their statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from azjax.config import require, require_number
from azjax.envs.base import Environment, EnvState
from azjax.envs.lanes import (
    Vectorize,
    batch_first,
    choose_vectorize,
    reset_lanes,
    select_lanes,
    step_lanes,
    strongly_typed,
)
from azjax.statistics import interquartile_mean, stratified_bootstrap_interval
from azjax.types import ActFn, Array, Key, Params
from azjax.xla import compiler_options

_EVALUATION = 0xE7A1


class Frames(NamedTuple):
    """One lane's episode, step by step; of the ``decisions + 1`` entries those past its end are repeats."""

    recorded: Any  # [decisions + 1, ...] what ``record`` gave, from the initial state on
    reward: Array  # float32 [decisions + 1] received on arriving at each frame; 0 for the first


class Episodes(NamedTuple):
    """One full episode of each lane."""

    episode_return: Array  # float32 [B]
    length: Array  # int32 [B] environment steps
    terminated: Array  # bool [B] the task ended it; else the time limit did
    nonfinite: Array  # bool [B] the physics broke; such episodes don't count
    frames: Frames | None  # of one lane, if recorded
    outcome: Any = ()  # [B, ...] what ``outcome`` gave for the state at the end


class Evaluator(Protocol):
    """``evaluate(params, key, first_episode=0, recorded=0) -> Episodes``."""

    def __call__(self, params: Params, key: Key, first_episode: Array | int = 0, recorded: Array | int = 0) -> Episodes:
        """Plays the episodes ``first_episode + lane`` and keeps the frames of lane ``recorded``.

        The same key and number always give the same episode, up to rounding, which depends on the number of lanes and
        on the lane; the same call with another ``recorded`` gives the same bits.
        """
        ...


def make_evaluator(
    env: Environment,
    act: ActFn,
    *,
    lanes: int,
    deterministic: bool = True,
    action_repeat: int = 1,
    record: Callable[[EnvState], Any] | None = None,
    outcome: Callable[[EnvState], Any] | None = None,
    episode_params: Any = None,
    axis_name: str | None = None,
    vectorize: Vectorize | None = None,
) -> Evaluator:
    """A pure function that plays one full episode in each of ``lanes`` lanes and stops when all are over.

    Args:
      env: the environment; its ``episode_length`` is the time limit.
      act: the learner's.
      lanes: episodes in parallel on this device.
      deterministic: take the distribution's mode instead of a sample.
      action_repeat: environment steps per decision, as in training.
      record: of one lane's single state: what to keep of every step, e.g. the poses for a replay.
      outcome: of the single state at the end of each episode: what else to return.
      episode_params: ``[N, ...]``, the params of episode i, from the beginning again after the last; default what the
        environment draws.
      axis_name: the device axis under ``shard_map``; numbers the lanes of all devices one after the other.
      vectorize: how single environments become lanes; see ``azjax.make_trainer``.

    Returns:
      ``evaluate(params, key, first_episode=0, recorded=0) -> Episodes``. Episode number ``first_episode + lane`` is
      folded into ``key``, so what is played doesn't depend on how the episodes are divided among devices and calls.
      Derive ``key`` from a seed that training doesn't use. ``recorded`` counts the lanes of all devices.
    """
    require_number("lanes", lanes, 1, 2**30)
    decisions = -(-env.episode_length // action_repeat)
    mapped = vectorize or choose_vectorize()

    class Loop(NamedTuple):
        t: Array
        env: EnvState
        over: Array
        episodes: Episodes

    def evaluate(params: Params, key: Key, first_episode: Array | int = 0, recorded: Array | int = 0) -> Episodes:
        # A key that training started from has been split, too; folding in a number first keeps the two apart.
        key_reset, key_act = jax.random.split(jax.random.fold_in(key, _EVALUATION))
        index = first_episode + jnp.arange(lanes, dtype=jnp.int32)
        if axis_name is not None:
            offset = lanes * jax.lax.axis_index(axis_name).astype(jnp.int32)
            index, recorded = index + offset, jnp.clip(recorded - offset, 0, lanes - 1)
        states = _initial(
            env, mapped, episode_params, jax.vmap(lambda n: jax.random.fold_in(key_reset, n))(index), index
        )
        lane_keys = jax.vmap(lambda n: jax.random.fold_in(key_act, n))(index)
        frames = _first_frames(record, states, recorded, decisions + 1)
        none = jnp.zeros(lanes, bool)
        start = Episodes(jnp.zeros(lanes), jnp.zeros(lanes, jnp.int32), none, none, frames)

        def body(loop: Loop) -> Loop:
            observation = batch_first(loop.env.observation)
            keys = jax.vmap(lambda k: jax.random.fold_in(k, loop.t))(lane_keys)
            action, _, _ = jax.vmap(lambda o, k: act(params, o, (), k, deterministic=deterministic))(observation, keys)
            result = step_lanes(
                env,
                mapped,
                loop.env,
                loop.episodes.length,
                action,
                limit=env.episode_length,
                action_repeat=action_repeat,
            )
            over, old = loop.over, loop.episodes
            reward = jnp.where(over, 0.0, result.reward)
            states = select_lanes(over, loop.env, result.state)
            return Loop(
                t=loop.t + 1,
                env=states,
                over=over | result.terminated | result.truncated,
                episodes=Episodes(
                    episode_return=old.episode_return + reward,
                    length=jnp.where(over, old.length, result.elapsed),
                    terminated=jnp.where(over, old.terminated, result.terminated),
                    nonfinite=jnp.where(over, old.nonfinite, result.nonfinite),
                    frames=_put_frame(record, old.frames, states, recorded, reward, loop.t + 1),
                ),
            )

        end = jax.lax.while_loop(lambda loop: ~loop.over.all(), body, Loop(jnp.int32(0), states, none, start))
        ending = () if outcome is None else batch_first(mapped(outcome)(end.env))
        return end.episodes._replace(frames=_repeat_last(end.episodes.frames, end.t), outcome=ending)

    return evaluate


Record = Callable[[EnvState], Any]


def _initial(env: Environment, vectorize: Vectorize, params: Any, keys: Key, index: Array) -> EnvState:
    """Initial states of the episodes ``index``, batch-last."""
    if params is None:
        return reset_lanes(env, vectorize, keys)
    number = jax.tree.leaves(params)[0].shape[0]
    chosen = jax.tree.map(lambda x: jnp.moveaxis(x[index % number], 0, -1), params)
    return strongly_typed(vectorize(env.reset)(keys, chosen))


def _first_frames(record: Record | None, states: EnvState, lane: Array | int, count: int) -> Frames | None:
    if record is None:
        return None
    first = record(jax.tree.map(lambda x: x[..., lane], states))
    return Frames(jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), first), jnp.zeros(count))


def _put_frame(
    record: Record | None, frames: Frames | None, states: EnvState, lane: Array | int, reward: Array, t: Array
) -> Any:
    if record is None or frames is None:
        return None
    frame = Frames(record(jax.tree.map(lambda x: x[..., lane], states)), reward[lane])
    return jax.tree.map(lambda buffer, x: buffer.at[t].set(x), frames, frame)


def _repeat_last(frames: Frames | None, last: Array) -> Frames | None:
    """Frames that the loop never reached show the last one, no longer the first."""
    if frames is None:
        return None
    index = jnp.minimum(jnp.arange(frames.reward.shape[0]), last)
    return frames._replace(recorded=jax.tree.map(lambda buffer: buffer[index], frames.recorded))


def compile_evaluator(evaluate: Evaluator, mesh: Mesh | None = None) -> Any:
    """Jits an evaluator, on every device of ``mesh`` at once; the lanes of all devices come back in one axis."""
    if mesh is None:
        return jax.jit(evaluate, compiler_options=compiler_options(jax.default_backend(), soon=True))
    (axis,) = mesh.axis_names

    def on_device(params: Params, key: Key, first_episode: Array, recorded: Array) -> Episodes:
        episodes = evaluate(params, key, first_episode, recorded)
        mine = jax.lax.axis_index(axis) == recorded // episodes.length.shape[0]
        frames = jax.tree.map(lambda x: jax.lax.psum(jnp.where(mine, x, 0), axis), episodes.frames)
        return episodes._replace(frames=frames)

    lanes, whole = PartitionSpec(axis), PartitionSpec()
    program = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, whole, whole, whole),
        out_specs=_episodes_of(lanes, whole),
        check_vma=False,
    )
    return jax.jit(
        lambda params, key, first_episode=0, recorded=0: program(
            params, key, jnp.int32(first_episode), jnp.int32(recorded)
        ),
        compiler_options=compiler_options(mesh.devices.flat[0].platform, soon=True),
    )


def _episodes_of(lanes: Any, frames: Any) -> Any:
    """The same entry for each field of ``Episodes`` that has one value a lane, another for the frames."""
    return Episodes(lanes, lanes, lanes, lanes, frames=frames, outcome=lanes)


def summarize(episodes: Episodes) -> dict[str, Any]:
    """Mean, std, median, IQM with its 95 % bootstrap interval, min, max and length over episodes that count.

    Returns:
      Plain Python numbers: ``episodes``, ``nonfinite_episodes``, ``return_mean``, ``return_std``, ``return_median``,
      ``return_iqm``, ``return_iqm_low``, ``return_iqm_high``, ``return_min``, ``return_max``, ``length_mean``,
      ``terminated_fraction``, and ``returns``, each episode's.

    Raises:
      ValueError: if no episode ended with finite physics.
    """
    valid = ~np.asarray(episodes.nonfinite) & np.isfinite(episodes.episode_return)
    require(bool(valid.any()), "the physics broke in every evaluation episode")
    returns = np.asarray(episodes.episode_return, np.float64)[valid]
    low, high = stratified_bootstrap_interval([returns])
    return {
        "episodes": int(valid.sum()),
        "nonfinite_episodes": int((~valid).sum()),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_median": float(np.median(returns)),
        "return_iqm": interquartile_mean(returns),
        "return_iqm_low": low,
        "return_iqm_high": high,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "length_mean": float(np.asarray(episodes.length)[valid].mean()),
        "terminated_fraction": float(np.asarray(episodes.terminated)[valid].mean()),
        "returns": [float(x) for x in returns],
    }
