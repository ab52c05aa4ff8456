"""Full episodes of a policy from disk, on all devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.envs.base import EnvState
from azjax.evaluation import Episodes, compile_evaluator, make_evaluator
from azjax.runs import machine
from azjax.runs.policy import LoadedPolicy
from azjax.training import make_mesh

_MOST_LANES = 1024


class Player(NamedTuple):
    """A compiled program: ``play(first, recorded)`` plays ``lanes`` episodes from number ``first`` on."""

    play: Callable[[int, int], Episodes]
    lanes: int


def make_player(
    policy: LoadedPolicy,
    *,
    episodes: int,
    seed: int,
    stochastic: bool = False,
    record: Callable[[EnvState], Any] | None = None,
    outcome: Callable[[EnvState], Any] | None = None,
    episode_params: Any = None,
) -> Player:
    """Compiles a program that plays a policy's episodes.

    Args:
      policy: from disk.
      episodes: how many are to be played; up to 1024 are played at once.
      seed: of initial states and of exploration.
      stochastic: sample actions instead of taking the distribution's mode.
      record: what to keep of every step of one of the episodes that are played at once.
      outcome: of the state at the end of each episode: what else to return.
      episode_params: ``[N, ...]``, the params of episode i, from the beginning again after the last; default what the
        environment draws.
    """
    devices = min(jax.device_count(), episodes)
    lanes = -(-min(episodes, _MOST_LANES) // devices)
    evaluator = make_evaluator(
        policy.env,
        policy.act,
        lanes=lanes,
        deterministic=not stochastic,
        action_repeat=policy.action_repeat,
        record=record,
        outcome=outcome,
        episode_params=episode_params,
        axis_name=machine.AXIS,
    )
    key = jax.random.key(seed)
    with machine.quiet_loading():
        compiled = compile_evaluator(evaluator, make_mesh(devices, machine.AXIS))
        program = compiled.lower(policy.params, key, jnp.int32(0), jnp.int32(0)).compile()

    def play(first: int, recorded: int) -> Episodes:
        played: Episodes = jax.device_get(program(policy.params, key, jnp.int32(first), jnp.int32(recorded)))
        return played

    return Player(play, lanes * devices)


def play_all(player: Player, episodes: int) -> Episodes:
    """The episodes 0, 1, 2, ..., in rounds where they are many; without frames."""
    parts = [player.play(start, 0)._replace(frames=None) for start in range(0, episodes, player.lanes)]
    joined: Episodes = jax.tree.map(lambda *x: np.concatenate(x)[:episodes], *parts)
    return joined


def play_one(player: Player, number: int) -> Episodes:
    """One episode with its frames, the same bit for bit as among those of ``play_all``."""
    # In the same lane as there: in another one it would be rounded differently, and contacts amplify that.
    lane = number % player.lanes
    played = player.play(number - lane, lane)
    alone: Episodes = jax.tree.map(lambda x: x[lane : lane + 1], played._replace(frames=None))
    return alone._replace(frames=played.frames)
