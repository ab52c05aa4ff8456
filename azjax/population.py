"""Many training runs in one program: members that differ in seed and traced hyperparameters, and share the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from azjax.config import as_arrays, require, require_number
from azjax.evaluation import Episodes, Evaluator
from azjax.training import Metrics, Trainer, TrainState, lane_specs, placed, resize_empty
from azjax.types import Array, Key
from azjax.xla import compiler_options

POPULATION = "population"
"""Name of the mesh axis that members are divided along."""


@flax.struct.dataclass
class PopulationState:
    """All members between two updates; the member is the first axis of every leaf."""

    members: TrainState
    alive: Array  # bool [P] False from the update on in which the member's parameters would have become NaN


class PopulationMetrics(NamedTuple):
    """What an update reports; the member is the first axis."""

    members: Metrics  # of a member that is not alive only ``env_steps`` means something
    alive: Array  # bool [P] after the update


class Population(NamedTuple):
    """Pure functions of a population, and the facts about it that a program around them needs.

    ``init(keys [P], hyperparameters [P]) -> PopulationState`` and ``step(PopulationState) -> (PopulationState,
    PopulationMetrics)``, one update of every member that is alive.
    """

    init: Callable[[Key, Any], PopulationState]
    step: Callable[[PopulationState], tuple[PopulationState, PopulationMetrics]]
    trainer: Trainer


def stack_hyperparameters(configs: Sequence[Any]) -> Any:
    """One configuration whose traced fields are float32 arrays ``[P]``.

    Args:
      configs: of the members; static fields must be the same in all.

    Raises:
      ConfigError: if there are none, or a static field differs.
    """
    require(len(configs) > 0, "a population has no members; give at least one configuration")
    structures = {jax.tree.structure(config) for config in configs}
    require(
        len(structures) == 1,
        "members of a population may differ in traced hyperparameters only (see azjax.config); make one population "
        "for each set of static ones",
    )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(as_arrays, configs))


def make_population(trainer: Trainer) -> Population:
    """Turns the training program of one member into that of many.

    A member whose parameters become NaN or infinite in an update stays as it was before it and takes no further part;
    its counter of environment steps stands still, and the others do not notice.

    Args:
      trainer: of one member; see ``azjax.make_trainer``.

    Returns:
      Pure functions, safe under ``jit``, ``shard_map`` and ``lax.scan``.

    Examples:
      >>> import azjax, jax
      >>> env = azjax.make_env("inverted_pendulum")
      >>> trainer = azjax.make_trainer(env, azjax.ppo(), lanes=64, rollout_length=16)
      >>> configs = [azjax.PPOConfig(gamma=gamma) for gamma in (0.9, 0.99)]
      >>> population = azjax.make_population(trainer)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> state = jax.eval_shape(population.init, keys, azjax.stack_hyperparameters(configs))
      >>> state.members.lanes.elapsed.shape
      (2, 64)
    """

    def init(keys: Key, hyperparameters: Any) -> PopulationState:
        members = jax.vmap(lambda key, own: with_hyperparameters(trainer.init(key), own))(keys, hyperparameters)
        return PopulationState(members=members, alive=jnp.ones(keys.shape, bool))

    def step(state: PopulationState) -> tuple[PopulationState, PopulationMetrics]:
        new, metrics = jax.vmap(trainer.step)(state.members)
        alive = state.alive & jax.vmap(_all_finite)(new.learner.params)

        def keep(after: Array, before: Array) -> Array:
            if jnp.issubdtype(after.dtype, jax.dtypes.prng_key):
                chosen = keep(jax.random.key_data(after), jax.random.key_data(before))
                return jax.random.wrap_key_data(chosen, impl=jax.random.key_impl(after))
            return jnp.where(alive.reshape(-1, *[1] * (after.ndim - 1)), after, before)

        # In a branch of its own: hardly ever does a member stand still, and a selection would copy every state.
        members = jax.lax.cond(alive.all(), lambda: new, lambda: jax.tree.map(keep, new, state.members))
        metrics = metrics._replace(env_steps=members.env_steps)
        return PopulationState(members=members, alive=alive), PopulationMetrics(metrics, alive)

    return Population(init=init, step=step, trainer=trainer)


def with_hyperparameters(state: TrainState, values: Any) -> TrainState:
    """A fresh train state with other traced hyperparameters."""
    learner = dataclasses.replace(state.learner, hyperparameters=values)
    if hasattr(learner, "learning_rate"):  # PPO's, which schedule=adaptive-kl steers
        learner = dataclasses.replace(learner, learning_rate=jnp.array(values.learning_rate))
    return dataclasses.replace(state, learner=learner)


def _all_finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def member(tree: Any, index: int) -> Any:
    """One member of a pytree whose leaves have the member as their first axis."""
    return jax.tree.map(lambda x: x[index], tree)


class CompiledPopulation(NamedTuple):
    """Jitted ``init(keys, hyperparameters)`` and ``step(state)``; ``step`` donates its argument.

    The metrics of ``step`` are ``[updates_per_call, P, ...]``. ``state`` describes the state: shapes, types, placement.
    """

    init: Any
    step: Any
    state: PopulationState


def divide_devices(members: int, devices: int, fits: Callable[[int], bool]) -> tuple[int, int]:
    """How many devices divide the members, and how many the lanes of each.

    Members are divided as far as they can be, since they have nothing to tell each other.

    Args:
      members: in one program.
      devices: that there are.
      fits: whether the lanes of a member can be divided among so many devices.

    Returns:
      ``(population, lanes)``; their product is at most ``devices``, and as large as can be.

    Examples:
      >>> divide_devices(6, 4, lambda n: True)
      (2, 2)
      >>> divide_devices(3, 2, lambda n: n == 1)
      (1, 1)
    """
    pairs = [
        (rows, columns)
        for rows in range(1, devices + 1)
        if members % rows == 0
        for columns in range(1, devices // rows + 1)
        if fits(columns)
    ]
    return max(pairs, key=lambda pair: (math.prod(pair), pair[0]), default=(1, 1))


def make_population_mesh(shape: tuple[int, int], lanes_axis: str) -> Mesh:
    """A mesh of ``(population, lanes)`` devices, those of one member next to each other."""
    count, available = math.prod(shape), jax.devices()
    require(1 <= count <= len(available), f"{count} devices asked for, but JAX sees {len(available)}; ask for no more")
    axes = (POPULATION, lanes_axis)
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2, devices=available[:count])


def compile_population(
    population: Population, members: int, mesh: Mesh, updates_per_call: int = 1
) -> CompiledPopulation:
    """Compiled programs of a population: members and lanes divided among devices, several updates a call.

    Args:
      population: what to run; its trainer's ``axis_name`` is the mesh's second axis.
      members: in the program.
      mesh: of axes ``POPULATION`` and the trainer's.
      updates_per_call: updates of one call of ``step``.

    Raises:
      ConfigError: if members or lanes can't be divided, or the axes don't fit.
    """
    require_number("members", members, 1, 2**20)
    require_number("updates_per_call", updates_per_call, 1, 2**30)
    trainer = population.trainer
    require(
        mesh.axis_names == (POPULATION, trainer.axis_name),
        f"the mesh has axes {mesh.axis_names}; it needs {POPULATION!r} and the trainer's axis_name, "
        f"{trainer.axis_name!r}",
    )
    rows, columns = mesh.devices.shape
    require(members % rows == 0, f"{members} members can't be divided among {rows} devices; change the mesh")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    config = jax.eval_shape(trainer.init, jax.random.key(0)).learner.hyperparameters
    values = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), config)
    shapes = jax.eval_shape(population.init, keys, values)
    specs = _specs(shapes, trainer.axis_name)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def on_device(state: PopulationState) -> tuple[PopulationState, PopulationMetrics]:
        state = _resized(state, trainer.lanes // columns)
        state, metrics = jax.lax.scan(lambda s, _: population.step(s), state, None, updates_per_call)
        # On every device, so that a host needs no other to read them.
        metrics = jax.lax.all_gather(metrics, POPULATION, axis=1, tiled=True)
        return _resized(state, trainer.lanes), metrics

    platform = mesh.devices.flat[0].platform
    program = jax.shard_map(
        on_device, mesh=mesh, in_specs=(specs,), out_specs=(specs, PartitionSpec()), check_vma=False
    )
    return CompiledPopulation(
        init=jax.jit(population.init, out_shardings=shardings, compiler_options=compiler_options(platform, soon=True)),
        step=jax.jit(program, donate_argnums=0, compiler_options=compiler_options(platform)),
        state=placed(shapes, shardings),
    )


def _specs(shapes: PopulationState, axis_name: str | None) -> PopulationState:
    divided = jax.tree.map(lambda _: PartitionSpec(POPULATION), shapes)

    def of_lanes(leaf: Any, spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(POPULATION, *spec[1:]) if leaf.size else PartitionSpec()

    lanes = shapes.members.lanes
    specs = jax.tree.map(of_lanes, lanes, lane_specs(lanes, axis_name))
    return dataclasses.replace(divided, members=dataclasses.replace(divided.members, lanes=specs))


def _resized(state: PopulationState, lanes: int) -> PopulationState:
    """Empty leaves, which are not divided, with as many members and lanes as the others have on a device."""
    members = state.alive.shape[0]

    def one(leaf: Any) -> Any:
        return leaf if leaf.size else jnp.zeros((members, *leaf.shape[1:]), leaf.dtype)

    resized = resize_empty(jax.tree.map(one, state.members.lanes), lanes)
    return dataclasses.replace(state, members=dataclasses.replace(state.members, lanes=resized))


def compile_population_evaluator(evaluate: Evaluator, mesh: Mesh) -> Any:
    """Jits an evaluator for all members: ``(params [P], keys [P]) -> Episodes [P, lanes of all devices]``."""
    lanes_axis = mesh.axis_names[1]

    def on_device(params: Any, keys: Key) -> Episodes:
        return jax.vmap(evaluate)(params, keys)

    own = PartitionSpec(POPULATION)
    program = jax.shard_map(
        on_device, mesh=mesh, in_specs=(own, own), out_specs=PartitionSpec(POPULATION, lanes_axis), check_vma=False
    )
    return jax.jit(program, compiler_options=compiler_options(mesh.devices.flat[0].platform, soon=True))
