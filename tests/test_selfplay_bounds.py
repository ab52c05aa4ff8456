"""Tasks inside of the training range can be solved, and few by doing nothing: shown on the point mass by a controller.

The controller sees what a policy does, neither physics nor position. Margins are its own: it has to come nearer to
goals than tasks ask for, and to track better.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.evaluation import make_evaluator
from azjax.selfplay import PointMass, Proposal, Task, TaskEnvironment, TaskSettings, task_family
from azjax.selfplay.bodies import BODIES
from azjax.selfplay.heldout import COVERED

FAMILY, SETTINGS = task_family("pointmass"), BODIES["pointmass"].settings
GOAL, COMMAND, DISTURBANCE = range(3)
HARDER = dataclasses.replace(SETTINGS, reach=0.8 * SETTINGS.reach, passing=SETTINGS.passing + 0.05)
LEVELS = {GOAL: (0.0, 0.25, 0.5, 0.75, 1.0), COMMAND: (0.0, 0.25, 0.5, 0.75, 1.0), DISTURBANCE: (0.0, 1.0)}


def drive(share: Any, observation: jax.Array, carry: Any, key: Any, deterministic: bool = True) -> Any:
    """To goals at full throttle, forwards or in reverse; commands by inverting nominal physics; a share of it."""
    along, across, turn_rate = observation[2:5]
    kind, goal, command = observation[5:8], observation[8:10], observation[10:12]
    way = jnp.where(goal[0] >= 0.0, 1.0, -1.0)
    off = jnp.arctan2(way * goal[1], way * goal[0])
    # Of unknown motors twice the nominal strength is expected, so that none makes it unstable; what the weak ones
    # lack is made up for by aiming higher.
    strength = jnp.where(kind[DISTURBANCE] > 0, 2.0, 1.0)
    speed = SETTINGS.reference_speed * command[0] + 0.25 * kind[DISTURBANCE]
    speed = jnp.where(kind[GOAL] > 0, jnp.where(jnp.abs(off) < 1.2, 8.0 * way, 0.0), speed)
    turn = jnp.where(kind[GOAL] > 0, 5.0 * off, command[1])
    dt = PointMass.dt
    throttle = ((speed - along) / dt + along - turn_rate * across) / (4.0 * strength)
    steering = ((turn - turn_rate) / dt + turn_rate) / (6.0 * strength)
    return share * jnp.clip(jnp.stack([throttle, steering]), -1.0, 1.0), None, None


def player(tasks: Task, settings: TaskSettings, episodes: int) -> Any:
    """``play(throttle)``: the success rate of each task over initial states and pushes, with actions times a number."""
    env, number = TaskEnvironment(PointMass(), FAMILY, settings), tasks.type.shape[0]
    play = make_evaluator(
        env,
        drive,
        lanes=number * episodes,
        outcome=env.outcome,
        episode_params=jax.tree.map(lambda x: jnp.tile(x, episodes), tasks),
    )
    program = jax.jit(lambda share: play(share, jax.random.key(0)).outcome.success)
    return lambda share: np.asarray(program(share)).reshape(episodes, number).mean(axis=0)


def corners() -> Proposal:
    """The corners of each type's cube and, of those with few axes, more between them: hard bearings are no corners."""
    cubes, kinds = [], []
    for kind, levels in LEVELS.items():
        size = FAMILY.spaces[FAMILY.types[kind]].size
        points = np.array(list(itertools.product(*[levels] * size)), np.float32)
        cubes.append(np.pad(points, ((0, 0), (0, FAMILY.size - size))))
        kinds.append(np.full(len(points), kind, np.int32))
    return Proposal(jnp.asarray(np.concatenate(kinds)), jnp.asarray(np.concatenate(cubes)))


def test_every_corner_of_the_point_masss_tasks_can_be_solved_with_a_margin():
    points = corners()
    rate = player(FAMILY.decode(points), HARDER, episodes=24)(1.0)
    assert len(rate) == 125 + 25 + 32
    unsolved = [
        (FAMILY.types[int(k)], x.tolist(), float(r))
        for k, x, r in zip(points.type, np.asarray(points.cube), rate, strict=True)
        if r < COVERED
    ]
    assert unsolved == []


def forbidden() -> Task:
    """Tasks beyond physics: 10 m in 2 s at up to 4 m/s, a speed that drag forbids, a slope too steep for the mass."""
    values = {name: jnp.full(3, x, jnp.float32) for name, x in FAMILY.neutral.items()}
    changes = {"distance": (0, 10.0), "horizon": (0, 2.0), "speed": (1, 5.0), "slope": (2, 0.25), "mass": (2, 2.0)}
    for name, (task, value) in changes.items():
        values[name] = values[name].at[task].set(value)
    return Task(jnp.arange(3), values, jnp.zeros(3, jnp.int32))


def test_few_tasks_are_solved_by_doing_nothing_and_none_that_physics_forbid():
    drawn = FAMILY.decode(FAMILY.sample(jax.random.key(1), (600,)))
    play = player(jax.tree.map(lambda *x: jnp.concatenate(x), drawn, forbidden()), SETTINGS, episodes=2)
    idle, driven = play(0.0)[:600], play(1.0)
    for kind in LEVELS:
        mine = np.asarray(drawn.type) == kind
        assert idle[mine].mean() < 0.02
        assert driven[:600][mine].mean() > 0.98
    np.testing.assert_array_equal(driven[600:], 0.0)


@pytest.mark.parametrize("body", list(BODIES))
def test_no_goal_is_reached_at_the_start_and_none_needs_more_than_a_trained_bodys_speed(body):
    fastest = {"pointmass": 4.0, "ant": 5.0, "hopper": 1.4, "walker2d": 1.4, "humanoid": 1.4}[body]
    bounds = BODIES[body]
    reach = bounds.settings.reach
    assert bounds.distance[0] > reach
    assert (bounds.distance[1] - reach) / bounds.horizon[0] <= 0.7 * fastest
    # Commands count as followed while the score of the missing speed alone is above passing; kept from rest on.
    leeway = bounds.settings.speed_width * math.sqrt(-math.log(bounds.settings.passing))
    assert bounds.speed[1] <= 0.7 * fastest + leeway
    for name, parameter in task_family(body).spaces["disturbance"].parameters.items():
        assert parameter.contains(jnp.float32(parameter.neutral)), name
