r"""The gates that a proposed task passes before anybody learns from it.

Three verdicts, after the three steps of Absolute Zero's reasoner, each of which must be positively shown; what cannot
be shown, a comparison with NaN included, is refused:

* *integrity*: the type exists, its part of the unit cube is finite and inside, the decoded values are finite and within
  bounds, the model that they make can be simulated, and the initial state is finite;
* *safety*: not over at step 0, and neither zero actions nor random ones make anything not finite, or any link faster
  than ``max_speed``;
* *determinism*: two runs with the same initial state, pushes and random actions agree. They are two lanes of one batch
  with different run numbers (:class:`~azjax.selfplay.spaces.Task`): two identical calls would be merged by the
  compiler, and could never differ.

References:
  Zhao et al., "Absolute Zero: Reinforced Self-play Reasoning with Zero Data", 2025, https://arxiv.org/abs/2505.03335,
  section 3.3.3, for programs; the gates of tasks on bodies are azjax's own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from azjax.config import require, require_number
from azjax.envs.base import Environment, EnvState
from azjax.envs.lanes import Vectorize, select_lanes, strongly_typed
from azjax.selfplay.spaces import Proposal, Task, TaskFamily
from azjax.selfplay.tasks import Outcome
from azjax.types import Array, Box, Info, Key

__all__ = ["TaskProtocol", "Verdict", "VerificationConfig", "verification_metrics", "verification_steps", "verify"]

_RUNS = 3  # zero actions, random actions, and the same random actions again


class TaskProtocol(Environment, Protocol):
    """What verification and the self-play loop ask of an environment with tasks."""

    family: TaskFamily
    dt: float

    def valid(self, task: Task) -> Array:
        """Bool []: the model that a task makes can be simulated."""
        ...

    def outcome(self, state: EnvState) -> Outcome:
        """What became of the attempt that a state belongs to."""
        ...

    def poses(self, state: EnvState) -> tuple[Array, Array]:
        """World positions ``[L, 3]`` and quaternions ``[L, 4]`` of the links."""
        ...


@dataclasses.dataclass(frozen=True)
class VerificationConfig:
    """How strictly tasks are looked at.

    Attributes:
      steps: environment steps of each of the three runs.
      max_speed: what no link may exceed from one step to the next [m/s]; beyond it physics have exploded.
      tolerance: the largest difference between two runs, relative to 1 plus the size of a number, that rounding
        explains. On a CPU lanes of one batch agree to the bit; on a GPU sums may be taken in another order.
    """

    steps: int = 50
    max_speed: float = 50.0
    tolerance: float = 1e-3

    def validate(self) -> None:
        """Raises ``ConfigError`` for a number out of its range."""
        require_number("steps of verification", self.steps, 1, 2**20)
        require_number("max_speed of verification", self.max_speed, 1e-3, 1e9)
        require_number("tolerance of verification", self.tolerance, 0.0, 1.0)


class Verdict(NamedTuple):
    """What verification found about proposals ``[N]``."""

    accepted: Array  # bool [N] all three below
    integrity: Array  # bool [N]
    safety: Array  # bool [N]
    determinism: Array  # bool [N]


class _Seen(NamedTuple):
    """What a lane has shown so far, batch-last."""

    state: EnvState
    finite: Array  # bool [M]
    fastest: Array  # float32 [M] m/s
    agrees: Array  # bool [M]; of the lanes of random actions alone


def verify(
    env: TaskProtocol,
    vectorize: Vectorize,
    proposals: Proposal,
    keys: Key,
    run: Array | int,
    config: VerificationConfig | None = None,
) -> Verdict:
    """Passes proposals through the three gates, all in parallel lanes of the program that calls this.

    A run that ends stays as it ended.

    Args:
      env: the environment with tasks.
      vectorize: ``minor_vmap`` or ``plain_vmap``, see ``azjax.envs.lanes.choose_vectorize``.
      proposals: ``[N]``, any numbers.
      keys: ``[N]``, one a proposal, for its initial state, its pushes and the random actions; consumed.
      run: [], a number that grows from call to call. It must be an argument of the compiled program, not a constant.
      config: how strictly; default ``VerificationConfig()``.

    Returns:
      Verdicts ``[N]``.

    Raises:
      ConfigError: for a configuration that makes no sense, or discrete actions.
    """
    config = VerificationConfig() if config is None else config
    config.validate()
    require(isinstance(env.action_spec, Box), f"{env.name} has discrete actions; verification needs continuous ones")
    number = proposals.type.shape[0]
    tasks = env.family.decode(proposals, 0)
    lanes = jax.tree.map(lambda x: jnp.concatenate([x] * _RUNS), tasks)
    # Each lane has a run number of its own, those of two calls differ, and on overflow they wrap.
    runs = jnp.asarray(run, jnp.int32) * _RUNS + jnp.repeat(jnp.arange(_RUNS, dtype=jnp.int32), number)
    lanes = lanes._replace(run=runs)
    key_reset, key_actions = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    initial = strongly_typed(vectorize(env.reset)(jnp.concatenate([key_reset] * _RUNS), lanes))
    seen = _watch(env, vectorize, initial, key_actions, config)
    within = env.family.contains(proposals) & vectorize(env.valid)(tasks)
    integrity = within & _of_all_runs(_finite(env, vectorize, initial))
    calm = seen.finite & (seen.fastest <= config.max_speed) & ~(initial.terminated | initial.truncated)
    safety = _of_all_runs(calm)
    determinism = seen.agrees
    return Verdict(integrity & safety & determinism, integrity, safety, determinism)


def verification_steps(proposals: int, config: VerificationConfig | None = None) -> int:
    """Environment steps that verifying so many proposals takes."""
    return _RUNS * proposals * (VerificationConfig() if config is None else config).steps


def verification_metrics(verdict: Verdict, axis_name: str | None = None) -> Info:
    """The share of proposals that passed each gate, and all of them, over all devices."""
    rates = {f"verification/{name}": jnp.mean(passed, dtype=jnp.float32) for name, passed in verdict._asdict().items()}
    return rates if axis_name is None else jax.lax.pmean(rates, axis_name)


def _watch(env: TaskProtocol, vectorize: Vectorize, initial: EnvState, keys: Key, config: VerificationConfig) -> _Seen:
    """Runs the three lanes of each task, batch-last, with the random actions of ``keys`` ``[N]`` in two of them."""
    number = keys.shape[0]

    def look(seen: _Seen) -> _Seen:
        # At what the loop carries: a comparison fused with a step may round one of two equal numbers twice.
        return seen._replace(
            finite=seen.finite & _finite(env, vectorize, seen.state),
            agrees=seen.agrees & _agree(env, vectorize, seen.state, number, config.tolerance),
        )

    def step(seen: _Seen, t: Array) -> tuple[_Seen, None]:
        seen = look(seen)
        before = seen.state
        random = jax.vmap(lambda key: _random_action(env, jax.random.fold_in(key, t)), out_axes=-1)(keys)
        action = jnp.concatenate([jnp.zeros_like(random), random, random], axis=-1)
        over = before.terminated | before.truncated
        after = select_lanes(over, before, strongly_typed(vectorize(env.step)(before, action)))
        (old, _), (new, _) = vectorize(env.poses)(before), vectorize(env.poses)(after)
        speed = jnp.sqrt(jnp.sum((new - old) ** 2, axis=1)).max(axis=0) / env.dt
        return seen._replace(state=after, fastest=jnp.maximum(seen.fastest, speed)), None

    yes = jnp.ones(_RUNS * number, bool)
    start = _Seen(state=initial, finite=yes, fastest=jnp.zeros(_RUNS * number), agrees=yes[:number])
    return look(jax.lax.scan(step, start, jnp.arange(config.steps))[0])


def _random_action(env: TaskProtocol, key: Key) -> Array:
    spec = env.action_spec
    return jax.random.uniform(key, (spec.size,), minval=-1.0, maxval=1.0)


def _watched(env: TaskProtocol, vectorize: Vectorize, state: EnvState) -> list[Array]:
    """What counts about a state: numbers ``[..., M]``."""
    outcome: Any = vectorize(env.outcome)(state)
    return [*jax.tree.leaves(state.observation), state.reward, *vectorize(env.poses)(state), outcome.score]


def _finite(env: TaskProtocol, vectorize: Vectorize, state: EnvState) -> Array:
    """Bool ``[M]``."""
    flags = [jnp.isfinite(x).all(axis=tuple(range(x.ndim - 1))) for x in _watched(env, vectorize, state)]
    return jnp.stack(flags).all(axis=0)


def _agree(env: TaskProtocol, vectorize: Vectorize, state: EnvState, number: int, tolerance: float) -> Array:
    """Bool ``[N]``: the second and the third run are the same so far."""

    def runs(x: Array) -> tuple[Array, Array]:
        return x[..., number : 2 * number], x[..., 2 * number :]

    def close(x: Array) -> Array:
        one, other = runs(x)
        near = jnp.abs(one - other) <= tolerance * (1.0 + jnp.abs(one))
        return near.all(axis=tuple(range(x.ndim - 1)))

    def equal(x: Array) -> Array:
        one, other = runs(x)
        return one == other

    flags = [state.terminated, state.truncated, vectorize(env.outcome)(state).success]
    return jnp.stack([close(x) for x in _watched(env, vectorize, state)] + [equal(x) for x in flags]).all(axis=0)


def _of_all_runs(flags: Array) -> Array:
    """Bool ``[N]`` from ``[3 N]``: true in each run."""
    return flags.reshape(_RUNS, -1).all(axis=0)
