"""Lanes step by step behind a stateful interface, and the way from there to Gymnasium."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import ConfigError, require, require_number
from azjax.envs.base import Environment, EnvState
from azjax.envs.lanes import (
    Pool,
    PoolLayout,
    Vectorize,
    batch_first,
    choose_vectorize,
    draw_from_pool,
    reset_lanes,
    step_lanes,
)
from azjax.envs.registry import make_env
from azjax.types import Array, Key, Observation
from azjax.xla import compiler_options

if TYPE_CHECKING:
    from azjax.envs.gymnasium import LaneEnv, LaneVectorEnv

Autoreset = Literal["SameStep", "NextStep", "Disabled"]
AUTORESET: tuple[Autoreset, ...] = ("SameStep", "NextStep", "Disabled")
_SMALLEST_RESERVE = 32


class Running(NamedTuple):
    """The lanes between two steps."""

    env: EnvState  # batch-last
    elapsed: Array  # int32 [B] environment steps of the running episodes
    over: Array  # bool [B] the episode has ended and the lane waits for its reset


class LaneOutput(NamedTuple):
    """What one decision of every lane gave, batch-first."""

    observation: Observation  # [B, ...] the first one of the next episode where the lane was reset
    reward: Array  # float32 [B]
    terminated: Array  # bool [B]
    truncated: Array  # bool [B]
    nonfinite: Array  # bool [B] the physics broke
    used: Array  # int32 [1] initial states taken from the pool so far


class SteppedLanes:
    """Environments in parallel, stepped from the host: azjax's lanes and fresh resets without a learner.

    Initial states are prepared many at a time, as in training. Episode ``n`` since the last ``start`` begins in a state
    that depends on that key and on ``n`` alone; lanes that are reset together take the next numbers in their order.

    Args:
      env: the environment; its ``episode_length`` is the time limit.
      lanes: how many.
      vectorize: how single environments become lanes; see ``azjax.make_trainer``.
      action_repeat: environment steps per decision.
      autoreset: reset a lane in the step that ends its episode, in the next step (whose action is ignored), or never.
    """

    def __init__(
        self, env: Environment, lanes: int, *, vectorize: Vectorize | None, action_repeat: int, autoreset: Autoreset
    ) -> None:
        self.env = env
        self.lanes = lanes
        self._layout = PoolLayout(group=lanes, entries=lanes + max(lanes, _SMALLEST_RESERVE))
        self._mapped = vectorize or choose_vectorize()
        self._action_repeat = action_repeat
        self._autoreset = autoreset
        platform = jax.default_backend()
        seldom, often = compiler_options(platform, soon=True), compiler_options(platform)
        self._fill = jax.jit(self._trace_fill, compiler_options=seldom)
        self._begin = jax.jit(self._trace_begin, compiler_options=seldom)
        self._renew = jax.jit(self._trace_renew, donate_argnums=0, compiler_options=seldom)
        self._step = jax.jit(self._trace_step, donate_argnums=0, compiler_options=often)
        self._key: Key | None = None
        self._pool: Pool | None = None
        self._prepared = 0  # initial states prepared since the last start
        self._used = 0  # of those in the pool
        self._running: Running | None = None

    def start(self, key: Key) -> None:
        """Draws all initial states from now on from ``key``; running episodes go on."""
        self._key, self._pool, self._prepared = key, None, 0

    def reset(self, mask: np.ndarray | None = None) -> Observation:
        """Begins a new episode in the lanes of ``mask`` (bool ``[B]``; all by default, and always at the first time).

        Returns:
          Observations ``[B, ...]`` of all lanes.
        """
        pool = self._ready_pool()
        if self._running is None:
            self._running, used = self._begin(pool)
        else:
            mask = np.ones(self.lanes, bool) if mask is None else mask
            self._running, used = self._renew(self._running, pool, jnp.asarray(mask))
        self._take(pool, used)
        return batch_first(self._running.env.observation)

    def step(self, action: Array | np.ndarray) -> tuple[LaneOutput, Observation]:
        """One decision of every lane with actions ``[B, A]``, ``[B]`` for discrete ones; after the first ``reset``.

        Returns:
          The outputs, and the true successors ``[B, ...]``, of which the ends of episodes are the interesting ones.
        """
        pool = self._ready_pool()
        self._running, output, final = self._step(self._running, pool, action)
        self._take(pool, output.used)
        return output, final

    def _ready_pool(self) -> Pool:
        """The pool, filled anew unless it has an initial state left for every lane."""
        if self._pool is None or self._used + self.lanes > self._layout.entries:
            states = self._fill(self._key, jnp.uint32(self._prepared))
            self._prepared += self._layout.entries
            self._pool, self._used = Pool(states, jnp.zeros(1, jnp.int32)), 0
        return self._pool

    def _take(self, pool: Pool, used: Array) -> None:
        self._pool, self._used = pool._replace(used=used), int(used[0])

    def _trace_fill(self, key: Key, first: Array) -> EnvState:
        numbers = first + jnp.arange(self._layout.entries, dtype=jnp.uint32)
        return reset_lanes(self.env, self._mapped, jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers))

    def _trace_begin(self, pool: Pool) -> tuple[Running, Array]:
        env = jax.tree.map(lambda x: x[..., : self.lanes], pool.states)
        running = Running(env, jnp.zeros(self.lanes, jnp.int32), jnp.zeros(self.lanes, bool))
        return running, jnp.full(1, self.lanes, jnp.int32)

    def _trace_renew(self, running: Running, pool: Pool, fresh: Array) -> tuple[Running, Array]:
        used, env = draw_from_pool(pool, fresh, running.env, self._layout)
        return Running(env, jnp.where(fresh, 0, running.elapsed), running.over & ~fresh), used

    def _trace_step(self, running: Running, pool: Pool, action: Array) -> tuple[Running, LaneOutput, Observation]:
        result = step_lanes(
            self.env,
            self._mapped,
            running.env,
            running.elapsed,
            action,
            limit=self.env.episode_length,
            action_repeat=self._action_repeat,
        )
        # A lane that waited for its reset takes no step, whatever was computed for it.
        awake = ~running.over
        terminated, truncated = result.terminated & awake, result.truncated & awake
        over = terminated | truncated
        fresh = {"SameStep": over, "NextStep": running.over, "Disabled": jnp.zeros_like(over)}[self._autoreset]
        after, used = self._trace_renew(Running(result.state, result.elapsed, over), pool, fresh)
        output = LaneOutput(
            observation=_select_first(fresh, batch_first(after.env.observation), result.final_observation),
            reward=jnp.where(awake, result.reward, 0.0),
            terminated=terminated,
            truncated=truncated,
            nonfinite=result.nonfinite & awake,
            used=used,
        )
        return after, output, result.final_observation


def _select_first(condition: Array, on_true: Any, on_false: Any) -> Any:
    """``where`` for batch-first trees and a condition ``[B]``."""
    return jax.tree.map(lambda x, y: jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y), on_true, on_false)


@overload
def to_gymnasium(
    env: str | Any,
    lanes: None = None,
    *,
    seed: int | None = None,
    vectorize: Vectorize | None = None,
    action_repeat: int = 1,
) -> LaneEnv: ...


@overload
def to_gymnasium(
    env: str | Any,
    lanes: int,
    *,
    seed: int | None = None,
    vectorize: Vectorize | None = None,
    action_repeat: int = 1,
    autoreset_mode: Any = "SameStep",
) -> LaneVectorEnv: ...


def to_gymnasium(
    env: str | Any,
    lanes: int | None = None,
    *,
    seed: int | None = None,
    vectorize: Vectorize | None = None,
    action_repeat: int = 1,
    autoreset_mode: Any = "SameStep",
) -> LaneEnv | LaneVectorEnv:
    """An environment of azjax for code that speaks Gymnasium: many lanes in one jitted program, or a single one.

    Observations and rewards are float32 NumPy arrays, actions lie in [-1, 1] (or are whole numbers from 0), the time
    limit is ``truncated``. A lane whose physics breaks is truncated with reward 0 and its last finite observation, and
    marked ``nonfinite`` in the info.

    Args:
      env: what ``azjax.make_env`` takes: a name, or an object with azjax's or Brax's functions.
      lanes: environments in parallel, for a ``gymnasium.vector.VectorEnv``; ``None`` gives a ``gymnasium.Env``.
      seed: what the first ``reset()`` uses if it is given none; default a random one.
      vectorize: how single environments become lanes; see ``azjax.make_trainer``.
      action_repeat: environment steps per decision.
      autoreset_mode: Gymnasium's ``AutoresetMode`` or its value. ``"SameStep"``: the step that ends an episode returns
        the first observation of the next one, and the true last one in ``info["final_obs"]``. ``"NextStep"``: the step
        after an end resets, its action is ignored. ``"Disabled"``: ``reset(options={"reset_mask": ...})`` does.

    Raises:
      ValueError: for counts below 1 or an unknown mode, or where Gymnasium is not installed.
    """
    for name, value in (("lanes", 1 if lanes is None else lanes), ("action_repeat", action_repeat)):
        require_number(name, value, 1, 2**30)
    if seed is not None:
        require_number("seed", seed, 0)
    mode = getattr(autoreset_mode, "value", autoreset_mode)
    require(mode in AUTORESET, f"autoreset_mode is {mode!r}; it must be one of {', '.join(AUTORESET)}")
    require(lanes is not None or mode == "SameStep", "a single environment has no autoreset_mode; give lanes, too")
    try:
        from azjax.envs.gymnasium import LaneEnv, LaneVectorEnv
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gymnasium":
            raise
        raise ConfigError("gymnasium is not installed; pip install 'azjax[gymnasium]' does it") from error
    stepped = SteppedLanes(
        make_env(env),
        1 if lanes is None else lanes,
        vectorize=vectorize,
        action_repeat=action_repeat,
        autoreset="Disabled" if lanes is None else mode,
    )
    return LaneEnv(stepped, seed) if lanes is None else LaneVectorEnv(stepped, mode, seed)
