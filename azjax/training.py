"""The whole-training-step program: one update is a rollout of all lanes and everything the learner does with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from azjax.config import require, require_number
from azjax.counters import Counter, counter_add, counter_from_int
from azjax.envs.base import Environment, EnvState
from azjax.envs.lanes import (
    LaneStep,
    Pool,
    PoolLayout,
    Vectorize,
    batch_first,
    check_division,
    check_lengths,
    choose_vectorize,
    draw_from_pool,
    fill_pool,
    pool_layout,
    reset_lanes,
    reused_resets,
    step_lanes,
)
from azjax.types import ActFn, Array, Info, Key, Learner, Params, Rollout
from azjax.xla import compiler_options


@flax.struct.dataclass
class LaneState:
    """The lanes between two steps; the lane is the last axis of every leaf."""

    env: EnvState
    index: Array  # int32 [B] number of the lane among all devices' lanes
    elapsed: Array  # int32 [B] environment steps of the running episode
    limit: Array  # int32 [B] its time limit; below the environment's in first episodes that are cut short
    episode_return: Array  # float32 [B] reward of the running episode so far


@flax.struct.dataclass
class TrainState:
    """All that training carries from update to update."""

    learner: Any
    lanes: LaneState
    key: Key
    env_steps: Counter  # environment steps of all lanes since the start, exact


class EpisodeTotals(NamedTuple):
    """Sums over the episodes that ended in an update; broken ones are left out."""

    ended: Array  # int32 []
    return_sum: Array  # float32 []
    return_min: Array  # float32 [] +inf if there were none
    return_max: Array  # float32 [] -inf if there were none
    length_sum: Array  # int32 [] environment steps


class Metrics(NamedTuple):
    """What an update reports; the same on every device."""

    env_steps: Counter  # after the update
    episodes: EpisodeTotals
    reward_mean: Array  # float32 [] per decision
    nonfinite_lanes: Array  # int32 [] lanes whose physics broke and that were reset
    reset_reuse: Array  # int32 [] resets that took an initial state for the second time
    learner: Info


class Trainer(NamedTuple):
    """Two pure functions, and the facts about them that a program around them needs.

    ``init(key) -> TrainState`` and ``step(TrainState) -> (TrainState, Metrics)``, one update: no host callback, safe
    under ``jit``, ``vmap`` (a population), ``shard_map`` (devices) and ``lax.scan``.
    """

    init: Callable[[Key], TrainState]
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    lanes: int  # on all devices together
    decisions: int  # of all lanes in one update
    env_steps_per_update: int
    reset_group: int  # consecutive lanes that must stay on one device
    axis_name: str | None


class Compilable(Protocol):
    """What ``compile`` asks of a trainer, of whatever kind.

    The state of ``init`` is a dataclass with an entry ``lanes``, whose leaves are divided among devices along their
    last axis; all else is the same on every device.
    """

    @property
    def init(self) -> Callable[[Key], Any]:
        """From a key to the state."""
        ...

    @property
    def step(self) -> Callable[[Any], tuple[Any, Any]]:
        """From a state to the next one and metrics."""
        ...

    @property
    def lanes(self) -> int:
        """On all devices together."""
        ...

    @property
    def reset_group(self) -> int:
        """Consecutive lanes that must stay on one device."""
        ...

    @property
    def axis_name(self) -> str | None:
        """The device axis."""
        ...


def make_trainer(
    env: Environment,
    learner: Learner,
    *,
    lanes: int,
    rollout_length: int,
    action_repeat: int = 1,
    reset_pool: int | None = None,
    stagger: bool = False,
    axis_name: str | None = None,
    vectorize: Vectorize | None = None,
) -> Trainer:
    """Combines an environment and a learner into a training program.

    Args:
      env: see ``azjax.make_env``.
      learner: see ``azjax.ppo``.
      lanes: environments in parallel, on all devices together.
      rollout_length: decisions of each lane per update.
      action_repeat: environment steps per decision.
      reset_pool: fresh initial states that each update prepares; default one for every 32 environment steps of the
        update, at least 32, at most 4 a lane.
      stagger: give each lane's first episode a random time limit, so that lanes don't reach the time limit together.
        Otherwise every batch of a task that rarely terminates shows one phase of the episode only, and the learner
        forgets the others. Those first episodes don't count in the statistics.
      axis_name: the device axis when ``step`` runs under ``shard_map``; the learner needs the same name.
      vectorize: how single environments become lanes: ``minor_vmap`` or ``azjax.envs.plain_vmap``; default
        ``minor_vmap``, on a CPU in blocks of lanes that fit its cache.

    Returns:
      A ``Trainer``; pass it to ``azjax.compile``, or wrap its functions yourself.

    Raises:
      ValueError: for counts below 1 or too large to be added up in 32 bits, or a learner with another axis name; when
        traced, for a policy with a recurrent state.

    Examples:
      >>> import azjax, jax
      >>> env = azjax.make_env("inverted_pendulum")
      >>> trainer = azjax.make_trainer(env, azjax.ppo(), lanes=64, rollout_length=16)
      >>> state = jax.eval_shape(trainer.init, jax.random.key(0))
      >>> state.lanes.elapsed.shape
      (64,)
    """
    for name, value in (("lanes", lanes), ("rollout_length", rollout_length), ("action_repeat", action_repeat)):
        require_number(name, value, 1, 2**30)
    require(
        learner.axis_name == axis_name,
        f"the learner reduces over axis_name={learner.axis_name!r}, the trainer over {axis_name!r}; name both alike, "
        "or the devices' parameters drift apart",
    )
    env_steps_per_update = lanes * rollout_length * action_repeat
    require(
        env_steps_per_update < 2**31,
        f"an update of {env_steps_per_update} environment steps is too long: lanes x rollout_length x action_repeat "
        "must stay below 2^31",
    )
    check_lengths(lanes, env.episode_length, env_steps_per_update)
    layout = pool_layout(lanes, env_steps_per_update, reset_pool)
    mapped = vectorize or choose_vectorize()

    def first_limits(key: Key) -> Array:
        if not stagger:
            return jnp.full(lanes, env.episode_length, jnp.int32)
        return jax.random.randint(key, (lanes,), 1, env.episode_length + 1, jnp.int32)

    def init(key: Key) -> TrainState:
        key, key_learner, key_lanes, key_limit = jax.random.split(key, 4)
        index = jnp.arange(lanes, dtype=jnp.int32)
        keys = jax.vmap(lambda n: jax.random.fold_in(key_lanes, n))(index)
        return TrainState(
            learner=learner.init(key_learner, env.observation_spec, env.action_spec),
            lanes=LaneState(
                env=reset_lanes(env, mapped, keys),
                index=index,
                elapsed=jnp.zeros(lanes, jnp.int32),
                limit=first_limits(key_limit),
                episode_return=jnp.zeros(lanes, jnp.float32),
            ),
            key=key,
            env_steps=counter_from_int(0),
        )

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        key, key_act, key_pool, key_fit = jax.random.split(state.key, 4)
        pool = fill_pool(env, mapped, key_pool, state.lanes.index, layout)
        played = play(
            env,
            mapped,
            learner.act,
            state.learner.params,
            state.lanes,
            pool,
            layout,
            key_act,
            decisions=rollout_length,
            action_repeat=action_repeat,
        )
        rollout = played.rollout
        learner_state, info = learner.fit(state.learner, learner.estimate(state.learner, rollout), key_fit)
        env_steps = counter_add(state.env_steps, env_steps_per_update)
        metrics = Metrics(
            env_steps=env_steps,
            learner=info,
            **reduce_report(played.report, rollout.reward, reused_resets(played.used, layout), axis_name),
        )
        return TrainState(learner=learner_state, lanes=played.lanes, key=key, env_steps=env_steps), metrics

    return Trainer(
        init=init,
        step=step,
        lanes=lanes,
        decisions=lanes * rollout_length,
        env_steps_per_update=env_steps_per_update,
        reset_group=layout.group,
        axis_name=axis_name,
    )


class LaneReport(NamedTuple):
    """What ended in a step of the lanes."""

    ended: Array  # bool [B] an episode that counts
    nonfinite: Array  # bool [B]
    episode_return: Array  # float32 [B]
    elapsed: Array  # int32 [B]


class Played(NamedTuple):
    """A rollout, and where it left the lanes."""

    lanes: LaneState
    used: Array  # int32 [groups] of the pool
    rollout: Rollout
    report: LaneReport  # [T, B]
    watched: Any  # [T, ...]


def play(
    env: Environment,
    vectorize: Vectorize,
    act: ActFn,
    params: Params,
    lanes: LaneState,
    pool: Pool,
    layout: PoolLayout,
    key: Key,
    *,
    decisions: int,
    action_repeat: int = 1,
    watch: Callable[[LaneStep], Any] = lambda result: (),
) -> Played:
    """A rollout of all lanes with one policy; a lane whose episode ends goes on with an initial state of the pool.

    Args:
      env: the environment.
      vectorize: ``minor_vmap`` or ``plain_vmap``.
      act: the learner's.
      params: what it needs.
      lanes: where they stand.
      pool: initial states, and how many are used already.
      layout: how lanes share them.
      key: for actions, the same on every device: the number of lane and step are folded in; consumed.
      decisions: length of the rollout.
      action_repeat: environment steps per decision.
      watch: of each step before any reset: what else to return.
    """
    lane_keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(lanes.index)

    def decide(carry: tuple[LaneState, Array], t: Array) -> tuple[Any, tuple[Rollout, LaneReport, Any]]:
        before, used = carry
        observation = batch_first(before.env.observation)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, t))(lane_keys)
        action, recurrent, info = jax.vmap(lambda o, k: act(params, o, (), k))(observation, keys)
        require(not jax.tree.leaves(recurrent), "the policy has a recurrent state; this trainer takes none")
        result = step_lanes(
            env, vectorize, before.env, before.elapsed, action, limit=before.limit, action_repeat=action_repeat
        )
        after, used, report = _account_and_reset(before, result, pool._replace(used=used), layout, env.episode_length)
        rollout = Rollout(
            observation=observation,
            carry=(),
            action=action,
            info=info,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            final_observation=result.final_observation,
        )
        return (after, used), (rollout, report, watch(result))

    steps = jnp.arange(decisions, dtype=jnp.int32)
    (after, used), (rollout, report, watched) = jax.lax.scan(decide, (lanes, pool.used), steps)
    return Played(after, used, rollout, report, watched)


def _account_and_reset(
    before: LaneState, result: LaneStep, pool: Pool, layout: PoolLayout, episode_length: int
) -> tuple[LaneState, Array, LaneReport]:
    """Books the step on the running episodes and replaces those that are over."""
    over = result.terminated | result.truncated
    episode_return = before.episode_return + result.reward
    used, env_state = draw_from_pool(pool, over, result.state, layout)
    after = dataclasses.replace(
        before,
        env=env_state,
        elapsed=jnp.where(over, 0, result.elapsed),
        limit=jnp.where(over, episode_length, before.limit),
        episode_return=jnp.where(over, 0.0, episode_return),
    )
    # Of first episodes with a shorter limit the short ones would be seen more often; so none of them counts.
    counts = over & ~result.nonfinite & (before.limit >= episode_length)
    return after, used, LaneReport(counts, result.nonfinite, episode_return, result.elapsed)


def reduce_report(report: LaneReport, reward: Array, reuse: Array, axis_name: str | None) -> dict[str, Any]:
    """Totals over steps, lanes and devices."""
    ended, returns = report.ended, report.episode_return
    sums = {
        "ended": ended.sum(dtype=jnp.int32),
        "return_sum": jnp.where(ended, returns, 0.0).sum(),
        "length_sum": jnp.where(ended, report.elapsed, 0).sum(dtype=jnp.int32),
        "nonfinite": report.nonfinite.sum(dtype=jnp.int32),
        "reuse": reuse,
    }
    low = jnp.where(ended, returns, jnp.inf).min()
    high = jnp.where(ended, returns, -jnp.inf).max()
    reward_mean = reward.mean()
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
        low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
        reward_mean = jax.lax.pmean(reward_mean, axis_name)
    return {
        "episodes": EpisodeTotals(sums["ended"], sums["return_sum"], low, high, sums["length_sum"]),
        "reward_mean": reward_mean,
        "nonfinite_lanes": sums["nonfinite"],
        "reset_reuse": sums["reuse"],
    }


class CompiledTrainer(NamedTuple):
    """Jitted ``init(key)`` and ``step(state)``; ``step`` donates its argument and stacks the metrics of its updates.

    ``state`` describes the train state (shapes, types, placement), for ``step.lower(state).compile()``.
    """

    init: Any
    step: Any
    state: Any


def compile(trainer: Compilable, mesh: Mesh | None = None, updates_per_call: int = 1) -> CompiledTrainer:
    """Turns a trainer into compiled programs: devices, several updates per call, donated buffers.

    Nothing is compiled until the first call (or ``step.lower(state).compile()``), and ``trainer.step`` is traced once.

    Args:
      trainer: what to run.
      mesh: devices along the trainer's ``axis_name``: lanes are divided among them, parameters replicated.
      updates_per_call: updates of one call of ``step``; their metrics come back stacked ``[updates_per_call, ...]``.

    Returns:
      Jitted functions, with ``azjax.xla.compiler_options``; JAX refuses to trace such functions inside others (``jit``,
      ``grad``), where ``trainer.init`` and ``trainer.step`` belong.

    Raises:
      ValueError: if mesh and axis name don't fit together, or the lanes can't be divided.
    """
    require_number("updates_per_call", updates_per_call, 1, 2**30)

    def many(state: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda s, _: trainer.step(s), state, None, updates_per_call)

    if mesh is None and trainer.axis_name is not None:
        mesh = make_mesh(1, trainer.axis_name)
    shapes = jax.eval_shape(trainer.init, jax.random.key(0))
    if mesh is None:
        platform = jax.default_backend()
        return CompiledTrainer(
            init=jax.jit(trainer.init, compiler_options=compiler_options(platform, soon=True)),
            step=jax.jit(many, donate_argnums=0, compiler_options=compiler_options(platform)),
            state=shapes,
        )
    require(
        trainer.axis_name is not None,
        f"a mesh needs a trainer and a learner with axis_name={mesh.axis_names[0]!r}",
    )
    require(
        mesh.axis_names == (trainer.axis_name,),
        f"the mesh has axes {mesh.axis_names}; the trainer reduces over {trainer.axis_name!r}",
    )
    check_division(trainer.lanes, mesh.size, trainer.reset_group)
    specs = partition_specs(shapes, trainer.axis_name)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def on_device(state: Any) -> tuple[Any, Any]:
        own = dataclasses.replace(state, lanes=resize_empty(state.lanes, trainer.lanes // mesh.size))
        after, metrics = many(own)
        return dataclasses.replace(after, lanes=resize_empty(after.lanes, trainer.lanes)), metrics

    platform = mesh.devices.flat[0].platform
    program = jax.shard_map(
        on_device, mesh=mesh, in_specs=(specs,), out_specs=(specs, PartitionSpec()), check_vma=False
    )
    return CompiledTrainer(
        init=jax.jit(trainer.init, out_shardings=shardings, compiler_options=compiler_options(platform, soon=True)),
        step=jax.jit(program, donate_argnums=0, compiler_options=compiler_options(platform)),
        state=placed(shapes, shardings),
    )


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes and types of a pytree, with the place of each leaf."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def make_mesh(devices: int, axis_name: str) -> Mesh:
    """A mesh of the first ``devices`` devices along one axis."""
    available = jax.devices()
    require(
        1 <= devices <= len(available),
        f"{devices} devices asked for, but JAX sees {len(available)} ({available[0].platform})",
    )
    return jax.make_mesh((devices,), (axis_name,), axis_types=(AxisType.Auto,), devices=available[:devices])


def partition_specs(shapes: Any, axis_name: str | None) -> Any:
    """Where each leaf of a train state lives: lanes divided along their last axis, all else on every device."""
    replicated = jax.tree.map(lambda _: PartitionSpec(), shapes)
    return dataclasses.replace(replicated, lanes=lane_specs(shapes.lanes, axis_name))


def lane_specs(tree: Any, axis_name: str | None) -> Any:
    """Specs that divide batch-last leaves along their last axis.

    Empty leaves, of which MJX has several, are on every device: JAX places them there whatever it is asked for.
    """
    return jax.tree.map(
        lambda leaf: PartitionSpec(*([None] * (leaf.ndim - 1)), axis_name) if leaf.size else PartitionSpec(), tree
    )


def resize_empty(tree: Any, lanes: int) -> Any:
    """Batch-last leaves, the empty ones of which, not being divided among devices, get the others' number of lanes."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else jnp.zeros((*leaf.shape[:-1], lanes), leaf.dtype), tree)
