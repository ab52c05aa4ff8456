"""The three gates of proposed tasks: what is fine passes, and what each gate exists for is caught by it."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from jax.sharding import PartitionSpec

import azjax
from azjax.config import ConfigError
from azjax.envs.lanes import choose_vectorize, plain_vmap
from azjax.selfplay import (
    BODIES,
    Parameter,
    PointMass,
    Proposal,
    Task,
    TaskEnvironment,
    TaskFamily,
    TaskSpace,
    Verdict,
    VerificationConfig,
    make_task_env,
    task_family,
    verification_metrics,
    verification_steps,
    verify,
)

KEY = jax.random.key(0)
CONFIG = VerificationConfig(steps=12)
# What `Faulty` does at a whole number of `speed`; all else is an honest point mass.
HONEST, READS_RUN, READS_RUN_LATE, FLIPS_SUCCESS, NAN_AT_RESET, NAN_AT_REST, NAN_IN_MOTION, HIDDEN_NAN, JUMPS = range(9)


class Faulty(TaskEnvironment):
    """A point mass whose tasks have the faults that the gates must catch, chosen by the command's speed."""

    def __init__(self) -> None:
        speed = Parameter(0, 8, 0, "integer")
        wide = {"distance": Parameter(0.1, 5.0, 1.0), "mass": Parameter(-1.0, 1.0, 1.0)}
        family = task_family("pointmass")
        spaces = {"command": TaskSpace({"speed": speed}), "goal": TaskSpace(wide)}
        others = {n: Parameter(x - 1, x + 1, x) for n, x in family.neutral.items() if n not in ("speed", *wide)}
        super().__init__(PointMass(), TaskFamily(spaces, others), BODIES["pointmass"].settings)

    def reset(self, key: jax.Array, params: Task) -> azjax.EnvState:
        state, fault = super().reset(key, params), params.values["speed"]
        shift = jnp.where(fault == READS_RUN, 0.01 * (params.run % 64), 0.0) + jnp.where(
            fault == NAN_AT_RESET, jnp.nan, 0.0
        )
        return state.replace(observation=state.observation + shift)

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        after, fault, run = super().step(state, action), state.params.values["speed"], state.params.run
        still = (action == 0.0).all()
        attempt = after.inner
        shift = jnp.where((fault == READS_RUN_LATE) & (attempt.elapsed == 10) & (run % 3 == 1), 0.1, 0.0)
        broken = (fault == NAN_AT_REST) & still | (fault == NAN_IN_MOTION) & ~still
        position = attempt.body.inner["position"] + jnp.where((fault == JUMPS) & ~still, 100.0, 0.0)
        position = position + jnp.where(fault == HIDDEN_NAN, jnp.nan, 0.0)
        body = attempt.body.replace(inner=attempt.body.inner | {"position": position})
        flipped = attempt.success ^ ((fault == FLIPS_SUCCESS) & (run % 2 == 1))
        return after.replace(
            inner=attempt.replace(body=body, success=flipped),
            observation=after.observation + shift,
            reward=after.reward + jnp.where(broken, jnp.nan, 0.0),
        )


@functools.cache
def faulty() -> tuple[Faulty, Any]:
    env = Faulty()
    vectorize = choose_vectorize()
    return env, jax.jit(lambda proposals, keys, run: verify(env, vectorize, proposals, keys, run, CONFIG))


def judged(proposals: Proposal, run: int = 0) -> Verdict:
    _, gates = faulty()
    return gates(proposals, jax.random.split(KEY, proposals.type.shape[0]), run)


def proposals(rows: list[tuple[int, list[float]]]) -> Proposal:
    return Proposal(jnp.array([t for t, _ in rows], jnp.int32), jnp.array([c for _, c in rows], jnp.float32))


def command(speed: int) -> tuple[int, list[float]]:
    return 0, [(speed + 0.5) / 9, 0.0]


def goal(distance: float, mass: float) -> tuple[int, list[float]]:
    return 1, [(distance - 0.1) / 4.9, (mass + 1.0) / 2.0]


ROWS = 12  # of every batch, so that the program is compiled once


def verdicts(rows: list[tuple[int, list[float]]], run: int = 0) -> list[tuple[bool, bool, bool, bool]]:
    """(accepted, integrity, safety, determinism) of each row, beside honest tasks that fill the batch."""
    padded = rows + [goal(3.0, 1.0)] * (ROWS - len(rows))
    found = judged(proposals(padded), run)
    table = np.stack([np.asarray(x) for x in found], axis=1)
    assert table[len(rows) :].all()  # a neighbour's fault is not the honest ones'
    return [tuple(bool(x) for x in row) for row in table[: len(rows)]]


FINE = (True, True, True, True)


# ---------------------------------------------------------------------------------------------------------------------
# What each gate catches
# ---------------------------------------------------------------------------------------------------------------------


def test_honest_tasks_pass():
    assert verdicts([command(HONEST), goal(1.0, 1.0), goal(4.0, 0.8)]) == [FINE] * 3


@pytest.mark.parametrize(
    "row",
    [
        (2, [0.5, 0.5]),
        (-1, [0.5, 0.5]),
        (1, [math.nan, 1.0]),
        (1, [0.5, math.inf]),
        (1, [1.2, 1.0]),
        (1, [-0.001, 1.0]),
        goal(3.0, -0.5),  # inside the space, but no model has a negative mass
    ],
)
def test_integrity_refuses_what_is_no_task(row):
    accepted, integrity, _, _ = verdicts([row])[0]
    assert not integrity
    assert not accepted


def test_integrity_refuses_an_initial_state_that_is_not_finite_and_nothing_else_shows_it():
    assert verdicts([command(NAN_AT_RESET)]) == [(False, False, False, False)]


@pytest.mark.parametrize("fault", [NAN_AT_REST, NAN_IN_MOTION])
def test_safety_catches_nan_under_zero_and_under_random_actions(fault):
    accepted, integrity, safety, _ = verdicts([command(fault)])[0]
    assert (accepted, integrity, safety) == (False, True, False)


def test_safety_catches_an_exploded_body_that_the_observation_hides():
    """Brax and the point mass hide where they are."""
    for fault in (HIDDEN_NAN, JUMPS):
        accepted, integrity, safety, _ = verdicts([command(fault)])[0]
        assert (accepted, integrity, safety) == (False, True, False)


def test_safety_catches_an_explosion_by_physics():
    """4 N on 1 g: 4000 m/s²."""
    assert verdicts([goal(3.0, 1e-3)])[0][:3] == (False, True, False)


def test_safety_catches_a_task_that_is_over_at_step_0():
    """A goal within reach."""
    assert verdicts([goal(0.3, 1.0)])[0] == (False, True, False, True)


@pytest.mark.parametrize("fault", [READS_RUN, READS_RUN_LATE, FLIPS_SUCCESS])
@pytest.mark.parametrize("run", [0, 1, 2**30])
def test_determinism_catches_what_reads_the_number_of_the_run(fault, run):
    """In each call, and late in the episode too; success flips at every second run."""
    assert verdicts([command(fault)], run)[0] == (False, True, True, False)


def test_nothing_that_cannot_be_compared_is_deterministic():
    assert not verdicts([command(HIDDEN_NAN)])[0][3]


def test_runs_agree_to_the_bit_in_lanes_of_one_batch():
    env, config = make_task_env("pointmass"), VerificationConfig(steps=20, tolerance=0.0)
    gates = jax.jit(lambda p, keys, run: verify(env, plain_vmap, p, keys, run, config))
    drawn = env.family.sample(jax.random.key(3), (16,))
    assert gates(drawn, jax.random.split(KEY, 16), 5).accepted.all()


@pytest.mark.slow
@pytest.mark.parametrize("body", ["ant", "hopper", "walker2d", "humanoid"])
def test_the_tasks_of_braxs_bodies_pass(body):
    env = make_task_env(body)
    vectorize = choose_vectorize()
    gates = jax.jit(lambda p, keys, run: verify(env, vectorize, p, keys, run))
    drawn = env.family.sample(KEY, (32,))
    drawn = drawn._replace(cube=drawn.cube.at[0].set(2.0))
    found = gates(drawn, jax.random.split(KEY, 32), 0)
    assert not found.accepted[0]
    assert np.asarray(found.accepted)[1:].mean() >= 0.9
    assert np.asarray(found.determinism)[1:].all()


# ---------------------------------------------------------------------------------------------------------------------
# Rates, costs, errors
# ---------------------------------------------------------------------------------------------------------------------


def test_rates_are_metrics_over_all_devices(require_devices):
    flags = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]], bool)
    verdict = Verdict(*jnp.asarray(flags))
    expected = dict(zip(("accepted", "integrity", "safety", "determinism"), flags.mean(axis=1), strict=True))
    expected = {f"verification/{name}": rate for name, rate in expected.items()}
    assert {name: float(x) for name, x in verification_metrics(verdict).items()} == expected
    require_devices(2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("devices",))
    sharded = jax.shard_map(
        lambda v: verification_metrics(v, "devices"),
        mesh=mesh,
        in_specs=PartitionSpec("devices"),
        out_specs=PartitionSpec(),
    )(verdict)
    assert {name: float(x) for name, x in sharded.items()} == expected


def test_every_step_of_verification_is_counted():
    assert verification_steps(10, VerificationConfig(steps=7)) == 210
    assert verification_steps(10) == 1500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps of verification is 0"),
        ({"max_speed": math.nan}, "max_speed"),
        ({"tolerance": -1.0}, "tol"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(settings, message):
    env, _ = faulty()
    with pytest.raises(ConfigError, match=message):
        verify(
            env, plain_vmap, proposals([command(HONEST)]), jax.random.split(KEY, 1), 0, VerificationConfig(**settings)
        )


def test_discrete_actions_are_refused():
    with pytest.raises(ConfigError, match="discrete actions"):
        verify(toy_envs.Corridor(), plain_vmap, proposals([command(HONEST)]), jax.random.split(KEY, 1), 0)
