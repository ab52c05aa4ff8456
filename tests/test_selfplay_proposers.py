"""Proposers: what they propose, what they remember, and that they find the tasks whose outcome is in doubt."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import azjax
from azjax.config import ConfigError
from azjax.selfplay import Parameter, Proposal, TaskFamily, TaskSpace
from azjax.selfplay.proposers import (
    Feedback,
    GridConfig,
    GuidedConfig,
    LearnedConfig,
    PLRConfig,
    Proposer,
    SFLConfig,
    WideningConfig,
    grid_adaptive,
    guided,
    learned,
    plr,
    proposer_reward,
    sfl,
    uniform,
    widening,
)
from azjax.selfplay.proposers.plr import replay_weights

KEY = jax.random.key(0)
UNIT = Parameter(0.0, 1.0, 0.0)
FAMILY = TaskFamily({"goal": TaskSpace({"x": UNIT, "y": UNIT}), "grip": TaskSpace({"z": UNIT})})
ATTEMPTS = 8
ROUNDS = (60, 256)  # updates, and proposals in each


def true_rate(proposal: Proposal) -> jax.Array:
    """Easy at the left, impossible from 0.3 on for goals; grips are easy from 0.8 on: doubt is in two narrow bands."""
    x = proposal.cube[..., 0]
    return jax.nn.sigmoid(jnp.where(proposal.type == 0, 40.0 * (0.2 - x), 40.0 * (x - 0.85)))


@jax.jit
def feedback_of(proposal: Proposal, memo: Any, key: jax.Array, refused: float = 1.1) -> Feedback:
    """From true attempts; a task beyond ``refused`` on its first axis is refused."""
    successes = jax.random.binomial(key, ATTEMPTS, true_rate(proposal))
    accepted = proposal.cube[..., 0] <= refused
    reward = proposer_reward(accepted, successes, ATTEMPTS)
    rate = jnp.where(accepted, successes / ATTEMPTS, 0.0)
    return Feedback(proposal, memo, reward, accepted, rate, rate * (1.0 - rate))


init, propose, update = (
    jax.jit(lambda proposer, *args, name=name: getattr(proposer, name)(*args), static_argnums=0)
    for name in ("init", "propose", "update")
)


def played(proposer: Proposer, updates: int, number: int, key: jax.Array) -> tuple[Any, Any]:
    """The state after so many updates, and what was proposed and paid in each."""
    key_init, key = jax.random.split(key)
    state, history = init(proposer, key_init), []
    for key_now in jax.random.split(key, updates):
        key_propose, key_attempt, key_update = jax.random.split(key_now, 3)
        proposal, memo = propose(proposer, state, jax.random.split(key_propose, number))
        feedback = feedback_of(proposal, memo, key_attempt, 0.95)
        state, info = update(proposer, state, feedback, key_update)
        history.append((feedback, info))
    return state, jax.tree.map(lambda *x: np.stack(x), *history)


def known(rows: list[tuple[int, float, float]], memo: Any = None, accepted: Any = True) -> Feedback:
    """Feedback for goals at ``x`` of ``(memo, x, rate)``, whose reward is 4 p (1 - p) or -1."""
    places, x, rate = (jnp.asarray(column) for column in zip(*rows, strict=True))
    proposal = Proposal(jnp.zeros(len(rows), jnp.int32), jnp.stack([x, jnp.zeros_like(x)], -1))
    accepted = jnp.broadcast_to(jnp.asarray(accepted), rate.shape)
    return Feedback(
        proposal,
        places if memo is None else memo,
        jnp.where(accepted, 4 * rate * (1 - rate), -1.0),
        accepted,
        jnp.where(accepted, rate, 0.0),
        x,
    )


LEARNED = learned(FAMILY, LearnedConfig(references=2, memory=4))
SMALL_BUFFER = sfl(FAMILY, SFLConfig(capacity=3, fresh=0.25, decay=0.5))
PROPOSERS = {
    "uniform": uniform(FAMILY),
    "sfl": sfl(FAMILY, SFLConfig(capacity=64)),
    "learned": LEARNED,
    "guided": guided(FAMILY),
    "widening": widening(FAMILY),
    "grid": grid_adaptive(FAMILY, GridConfig(cells=4)),
    "plr": plr(FAMILY, PLRConfig(capacity=64)),
}


# ---------------------------------------------------------------------------------------------------------------------
# The protocol
# ---------------------------------------------------------------------------------------------------------------------


def test_the_reward_of_a_proposal():
    accepted, successes = jnp.array([True, True, True, False, False]), jnp.array([0, 2, 4, 2, 99])
    np.testing.assert_allclose(proposer_reward(accepted, successes, 4), [0.0, 4 / 3, 0.0, -1.0, -1.0])
    np.testing.assert_allclose(proposer_reward(accepted, successes, 4, "absolute-zero"), [0.0, 0.5, 0.0, -1.0, -1.0])


@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_proposals_are_tasks_of_the_family_and_of_both_types(name):
    state, (feedback, info) = played(PROPOSERS[name], 3, ROUNDS[1], KEY)
    assert FAMILY.contains(feedback.proposal).all()
    assert feedback.proposal.cube.shape == (3, ROUNDS[1], 2)
    assert set(np.unique(feedback.proposal.type)) == {0, 1}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(info))
    again, _ = played(PROPOSERS[name], 3, ROUNDS[1], KEY)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "name", ["sfl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("learned", "guided", "grid", "plr"))]
)
def test_proposals_and_state_do_not_depend_on_the_number_of_devices(name, require_devices):
    require_devices(2)
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    make = {
        "sfl": functools.partial(sfl, FAMILY, SFLConfig(capacity=16)),
        "learned": functools.partial(learned, FAMILY),
        "guided": functools.partial(guided, FAMILY),
        "grid": functools.partial(grid_adaptive, FAMILY),
        "plr": functools.partial(plr, FAMILY, PLRConfig(capacity=16)),
    }[name]

    def rounds(proposer: Proposer, keys: jax.Array) -> tuple[Any, Proposal]:
        state = proposer.init(KEY)
        for number in range(2):
            keys_now = jax.vmap(lambda k, n=number: jax.random.fold_in(k, n))(keys)
            proposal, memo = proposer.propose(state, keys_now)
            # What comes of a task depends on the task alone here, as keys of attempts would on its global number.
            rate = jnp.round(true_rate(proposal) * ATTEMPTS) / ATTEMPTS
            accepted = rate < 0.999
            reward = proposer_reward(accepted, rate * ATTEMPTS, ATTEMPTS)
            state, _ = proposer.update(state, Feedback(proposal, memo, reward, accepted, rate, rate), KEY)
        return state, proposal

    keys = jax.random.split(jax.random.key(5), 32)
    alone = jax.jit(functools.partial(rounds, make()))(keys)
    together = jax.jit(
        jax.shard_map(
            functools.partial(rounds, make(axis_name="devices")),
            mesh=mesh,
            in_specs=PartitionSpec("devices"),
            out_specs=(PartitionSpec(), PartitionSpec("devices")),
            check_vma=False,
        )
    )(keys)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The learnability buffer
# ---------------------------------------------------------------------------------------------------------------------


def buffer_of(state: Any) -> dict[float, float]:
    """Position and score of the tasks in the buffer."""
    held = np.isfinite(state.score)
    x, score = np.asarray(state.tasks.cube[:, 0])[held], np.asarray(state.score)[held]
    return {round(float(k), 3): pytest.approx(float(v), abs=1e-5) for k, v in zip(x, score, strict=True)}


def test_the_buffer_keeps_the_best_scores_again_and_forgets_by_hand():
    state = init(SMALL_BUFFER, KEY)
    assert buffer_of(state) == {}
    # Fresh: what nothing can be learned from does not enter, and the best three of four others do.
    rows = [(-1, 0.1, 0.0), (-1, 0.2, 0.25), (-1, 0.3, 0.5), (-1, 0.4, 0.75), (-1, 0.5, 0.125), (-1, 0.6, 1.0)]
    state, info = update(SMALL_BUFFER, state, known(rows), KEY)
    assert buffer_of(state) == {0.3: 1.0 + 0.0005, 0.4: 0.75 + 0.00075, 0.2: 0.75 + 0.00025}
    assert float(info["proposer/buffer_tasks"]) == 3.0
    # Replayed twice: the mean counts; not attempted: half of the score is left; solved for good: gone.
    nothing = [(-1, 0.7, 0.0)] * 4
    rows = [(0, 0.3, 0.25), (0, 0.3, 0.5), (1, 0.4, 1.0), *nothing]
    state, _ = update(SMALL_BUFFER, state, known(rows[:6]), KEY)
    assert buffer_of(state) == {0.3: 0.875 + 0.000375, 0.2: 0.375125}
    # A refused task never stays, replayed or fresh.
    rows = [(0, 0.3, 0.5), (-1, 0.9, 0.5), *nothing]
    state, _ = update(SMALL_BUFFER, state, known(rows, accepted=False), KEY)
    assert buffer_of(state) == {0.2: 0.1875625}


def test_the_memo_is_the_place_in_the_buffer():
    empty = init(SMALL_BUFFER, KEY)
    keys = jax.random.split(KEY, 2000)
    assert (propose(SMALL_BUFFER, empty, keys)[1] == -1).all()
    rows = [(-1, 0.2, 0.25), (-1, 0.3, 0.5)] + [(-1, 0.9, 0.0)] * 4
    state, _ = update(SMALL_BUFFER, empty, known(rows), KEY)
    proposal, place = propose(SMALL_BUFFER, state, keys)
    place, x = np.asarray(place), np.asarray(proposal.cube[:, 0])
    assert set(place) == {-1, 0, 1}
    assert abs((place == -1).mean() - 0.25) < 0.04
    assert abs((place == 0).mean() - (place == 1).mean()) < 0.06
    np.testing.assert_allclose(x[place == 0], 0.3, rtol=1e-6)
    np.testing.assert_allclose(x[place == 1], 0.2, rtol=1e-6)


@pytest.mark.parametrize("name", ["sfl", "guided"])
def test_replayed_and_chosen_tasks_are_more_in_doubt_than_uniform_ones(name):
    """The memo tells which are which."""
    _, (feedback, _) = played(PROPOSERS[name], 40, ROUNDS[1], jax.random.key(1))
    late = jax.tree.map(lambda x: np.asarray(x[-10:]), feedback)
    own = late.memo >= 0 if name == "sfl" else late.memo
    assert 0.4 < own.mean() < 0.6
    for type_ in (0, 1):
        of_type = late.proposal.type == type_
        assert late.reward[own & of_type].mean() > late.reward[~own & of_type].mean() + 0.25


def test_prioritised_replay_keeps_what_surprised_and_weighs_rank_and_age_by_hand():
    """The regret of ``known`` tasks is where they are."""
    config = PLRConfig(capacity=3, replay=1.0, temperature=0.5, staleness=0.25)
    proposer = plr(FAMILY, config)
    state, _ = proposer.update(
        proposer.init(KEY), known([(-1, 0.2, 0.0), (-1, 0.6, 0.0), (-1, 0.4, 1.0), (-1, 0.1, 1.0)]), KEY
    )
    np.testing.assert_allclose(state.buffer.score, [0.6, 0.4, 0.2])
    ranks = np.array([1.0, 1 / 4, 1 / 9]) / (1 + 1 / 4 + 1 / 9)
    np.testing.assert_allclose(replay_weights(state.buffer, state.updates, config), ranks, rtol=1e-5)
    # The second is attempted again and surprises less than the third, which is refused if it comes.
    state, _ = proposer.update(state, known([(1, 0.1, 0.0)]), KEY)
    np.testing.assert_allclose(state.buffer.score, [0.6, 0.2, 0.1])
    np.testing.assert_allclose(state.buffer.tasks.cube[:, 0], [0.6, 0.2, 0.4])
    expected = 0.75 * ranks + 0.25 * np.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(replay_weights(state.buffer, state.updates, config), expected, rtol=1e-5)
    proposal, place = propose(proposer, state, jax.random.split(KEY, 2000))
    np.testing.assert_allclose(np.bincount(place, minlength=3) / 2000, expected, atol=0.04)
    np.testing.assert_array_equal(proposal.cube[:, 0], np.asarray(state.buffer.tasks.cube[:, 0])[place])
    state, _ = proposer.update(state, known([(1, 0.9, 0.0), (-1, 0.9, 0.0)], accepted=False), KEY)
    np.testing.assert_allclose(state.buffer.score, [0.6, 0.1, -np.inf])


# ---------------------------------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------------------------------


def test_the_schedule_widens_from_the_neutral_task_to_the_whole_cube():
    """Neutral is 0 on all axes here."""
    proposer = widening(FAMILY, WideningConfig(start=0.2, updates=4))
    state, keys, widest = proposer.init(KEY), jax.random.split(KEY, 500), []
    for _ in range(6):
        proposal, memo = propose(proposer, state, keys)
        widest.append(float(proposal.cube[:, 0].max()))
        state, _ = proposer.update(state, feedback_of(proposal, memo, KEY), KEY)
    np.testing.assert_allclose(widest, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], atol=0.01)


def test_a_neutral_value_inside_stays_the_centre():
    family = TaskFamily({"a": TaskSpace({"x": Parameter(-1.0, 1.0, 0.0), "y": Parameter(0.0, 4.0, 9.0)})})
    proposal, _ = widening(family, WideningConfig(start=0.0)).propose(jnp.int32(0), jax.random.split(KEY, 4))
    np.testing.assert_allclose(proposal.cube, [[0.5, 1.0]] * 4)


def test_the_grid_opens_around_what_was_done_well_by_hand():
    proposer = grid_adaptive(FAMILY, GridConfig(cells=4, passing=0.75, step=0.4))
    goals, grips = (np.array(x) for x in proposer.init(KEY))
    expected = np.zeros((4, 4))
    expected[0, 0] = 1.0
    np.testing.assert_array_equal(goals, expected)
    np.testing.assert_array_equal(grips, [1.0, 0.0, 0.0, 0.0])
    # Goals at x with y = 0; the second is not good enough, the others are in one cell, and count once.
    rows = [(0, 0.3, 0.75), (0, 0.9, 0.7), (0, 0.4, 1.0)]
    state, info = proposer.update(proposer.init(KEY), known(rows, ()), KEY)
    expected[:3, :2] = 0.4
    expected[0, 0] = 1.0
    np.testing.assert_allclose(state[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(state[1], grips)
    assert float(info["proposer/open_cells"]) == pytest.approx(7 / 20)
    unmoved, _ = proposer.update(state, known(rows, (), accepted=False), KEY)
    np.testing.assert_array_equal(unmoved[0], state[0])
    # Cells are drawn by their weights, points uniformly inside.
    proposal, _ = propose(proposer, state, jax.random.split(KEY, 4000))
    goal = np.asarray(proposal.cube)[np.asarray(proposal.type) == 0]
    share, *_ = np.histogram2d(*goal.T, bins=4, range=[[0, 1], [0, 1]], density=False)
    np.testing.assert_allclose(share / len(goal), expected / expected.sum(), atol=0.04)
    assert np.asarray(proposal.cube)[np.asarray(proposal.type) == 1, 0].max() <= 0.25


# ---------------------------------------------------------------------------------------------------------------------
# The learned proposer
# ---------------------------------------------------------------------------------------------------------------------


def test_the_context_shows_the_type_and_past_tasks_with_their_rates():
    state = init(LEARNED, KEY)
    keys = jax.random.split(KEY, ROUNDS[1])
    proposal, memo = propose(LEARNED, state, keys)
    np.testing.assert_array_equal(memo.context[:, :2], jax.nn.one_hot(proposal.type, 2))
    np.testing.assert_array_equal(memo.context[:, 2:], 0.0)  # nothing is remembered
    own = np.asarray(memo.own)
    expected = 0.5 * (np.tanh(memo.raw_action) + 1.0)
    expected[np.asarray(proposal.type) == 1, 1] = 0.0  # grips have one axis
    np.testing.assert_allclose(proposal.cube[own], expected[own], atol=1e-6)
    assert np.abs(proposal.cube - expected)[~own].max() > 0.1
    rows = [(0, 0.9, 0.5)] * 250 + [
        (0, 0.1, 0.25),
        (0, 0.2, 0.5),
        (0, 0.3, 0.75),
        (0, 0.4, 1.0),
        (0, 0.5, 0.0),
        (0, 0.6, 0.125),
    ]
    state, _ = update(LEARNED, state, known(rows, memo, np.arange(256) != 251), KEY)
    _, memo = propose(LEARNED, state, keys)
    seen = np.asarray(memo.context[:, 2:]).reshape(-1, 6)
    np.testing.assert_array_equal(seen[:, [0, 1, 3, 5]], np.tile([1.0, 0.0, 0.0, 1.0], (512, 1)))
    # The last four that were accepted.
    pairs = {(round(float(x), 3), round(float(rate), 3)) for x, rate in seen[:, [2, 4]]}
    assert pairs == {(0.3, 0.75), (0.4, 1.0), (0.5, 0.0), (0.6, 0.125)}


def test_uniform_proposals_take_no_part_in_the_gradient():
    state = init(LEARNED, KEY)
    proposal, memo = propose(LEARNED, state, jax.random.split(KEY, ROUNDS[1]))
    own = np.asarray(memo.own)
    assert 0.3 < own.mean() < 0.7
    feedback = feedback_of(proposal, memo, KEY)
    other = feedback._replace(reward=jnp.where(own, feedback.reward, 100.0))
    one, two = (update(LEARNED, state, f, KEY)[0].learner for f in (feedback, other))
    for x, y in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(x, y)
    moved = [not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (one, state.learner)), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("trpo", marks=pytest.mark.slow)])
def test_the_learned_proposer_finds_the_tasks_in_doubt_of_both_types(algorithm):
    """Nobody tells it where they are; the policy that it started with stays where it was."""
    settings = {"normalize_observations": False, "state_dependent_std": True, "init_std": 0.9}
    trpo = LearnedConfig(learner=azjax.TRPOConfig(**settings))
    proposer = LEARNED if algorithm == "ppo" else learned(FAMILY, trpo)
    _, (feedback, info) = played(proposer, *ROUNDS, jax.random.key(2))
    late = jax.tree.map(lambda x: np.asarray(x[-10:]), feedback)
    for type_ in (0, 1):
        own = late.memo.own & (late.proposal.type == type_)
        others = ~late.memo.own & (late.proposal.type == type_)
        assert late.reward[own].mean() > late.reward[others].mean() + 0.2, type_
    own, others = np.asarray(info["proposer/reward_own"]), np.asarray(info["proposer/reward_uniform"])
    assert own[-10:].mean() > others[-10:].mean() + 0.2


def test_a_proposer_without_references_sees_the_type_alone():
    proposer = learned(FAMILY, LearnedConfig(references=0))
    proposal, memo = jax.eval_shape(lambda key: proposer.propose(proposer.init(key), jax.random.split(key, 8)), KEY)
    assert memo.context.shape == (8, 2)
    assert proposal.cube.shape == (8, 2)


def test_a_frozen_proposer_does_not_learn():
    frozen = learned(FAMILY, LearnedConfig(references=2, memory=4, frozen=True))
    state = init(LEARNED, KEY)
    proposal, memo = propose(LEARNED, state, jax.random.split(KEY, ROUNDS[1]))
    after, _ = frozen.update(state, feedback_of(proposal, memo, KEY), KEY)
    for x, y in zip(*map(jax.tree.leaves, (after.learner, state.learner)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(after.memory.count) == 4


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sfl(FAMILY, SFLConfig(capacity=0)), "capacity of the learnability buffer is 0"),
        (lambda: sfl(FAMILY, SFLConfig(fresh=1.5)), "fresh share"),
        (lambda: sfl(FAMILY, SFLConfig(decay=0.0)), "decay"),
        (lambda: learned(FAMILY, LearnedConfig(uniform=-0.1)), "uniform share"),
        (lambda: learned(FAMILY, LearnedConfig(memory=0)), "memory"),
        (lambda: learned(FAMILY, LearnedConfig(references=-1)), "references"),
        (lambda: widening(FAMILY, WideningConfig(updates=0)), "updates of the widening"),
        (lambda: grid_adaptive(FAMILY, GridConfig(cells=0)), "cells of the adaptive grid is 0"),
        (lambda: grid_adaptive(FAMILY, GridConfig(cells=1024 + 1)), "cells of the adaptive grid"),
        (lambda: plr(FAMILY, PLRConfig(temperature=0.0)), "temperature of prioritised level replay"),
        (lambda: guided(FAMILY, GuidedConfig(candidates=0)), "candidates of the guided proposer is 0"),
        (lambda: guided(FAMILY, GuidedConfig(hidden=(8, 0))), "hidden layer"),
        (lambda: uniform(TaskFamily({})), "no types"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
