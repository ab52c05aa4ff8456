"""The self-play program: what is attempted, what counts, what either role learns from, and the held-out grid."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs
from test_selfplay_tasks import Rail

import azjax
from azjax.config import ConfigError
from azjax.counters import counter_to_int
from azjax.selfplay import (
    Proposal,
    SelfPlayConfig,
    TaskEnvironment,
    TaskSettings,
    VerificationConfig,
    make_selfplay,
    make_task_env,
    task_family,
)
from azjax.selfplay.bodies import BODIES, episode_length_of, wider_family
from azjax.selfplay.credit import Ends, add_success, only_outcome, task_cells
from azjax.selfplay.heldout import held_out_grid, held_out_scores
from azjax.selfplay.maps import CELLS, PHASES, add_to_maps, init_maps, planes_of, proposal_entropy
from azjax.selfplay.proposers import (
    PROPOSERS,
    Feedback,
    Proposer,
    ProposerSettings,
    learned,
    make_proposer,
    uniform,
)
from azjax.selfplay.rounds import replace_refused
from azjax.selfplay.spaces import Parameter, TaskSpace

KEY = jax.random.key(0)
AXIS = "devices"
LOW, HIGH = np.array([1.0, -np.pi, 2.0]), np.array([10.0, np.pi, 6.0])
"""Of distance [m], bearing [rad] and horizon [s]."""
PLACES = TaskSpace(
    {
        name: Parameter(float(low), float(high), float(low))
        for name, low, high in zip(("distance", "bearing", "horizon"), LOW, HIGH, strict=True)
    }
)
GOAL = dataclasses.replace(task_family("pointmass", ("goal",)), spaces={"goal": PLACES})


# ---- pieces


def ends_of(over: list[list[int]], success: list[list[int]]) -> Ends:
    flags = jnp.array(over, bool), jnp.array(success, bool)
    return Ends(*flags, score=jnp.where(flags[1], 1.0, 0.0))


ENDS = ends_of([[0, 1], [1, 0], [1, 1]], [[0, 0], [1, 0], [0, 1]])  # [T=3, B=2]


def test_first_attempts_are_told_from_those_that_follow() -> None:
    assert ENDS.first.tolist() == [[True, True], [True, False], [False, False]]
    assert ENDS.of_first(ENDS.success).tolist() == [True, False]
    assert ENDS.of_first(jnp.arange(6.0).reshape(3, 2)).tolist() == [2.0, 1.0]


def test_success_is_added_once_to_the_decisions_of_first_attempts_and_to_no_target() -> None:
    dense = jnp.array([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])  # mean 0, standard deviation 1
    batch = azjax.Batch((), (), (), dense, 2.0 * dense, jnp.ones((3, 2), bool))
    after = add_success(batch, ENDS, jnp.array([0.5, -0.25]), 2.0)
    np.testing.assert_allclose(after.advantages, [[2.0, -1.5], [2.0, -1.0], [1.0, -1.0]], atol=1e-6)
    assert after.returns.tolist() == (2.0 * dense).tolist()
    assert after.values is not None
    assert after.values.tolist() == dense.tolist()  # returns - advantages, as before


def test_the_dense_reward_of_a_task_holds_no_bonus_for_success() -> None:
    """A goal reached and the same way towards one out of reach earn the same."""
    env = TaskEnvironment(Rail(), GOAL, TaskSettings(2.0, 0.5, 0.5, 1.0, control_cost=0.0))

    def way(distance: float) -> tuple[float, bool]:
        task = GOAL.decode(proposal([distance, 0.0, 6.0]))
        state = env.reset(KEY, jax.tree.map(lambda x: x[0], task))
        total = 0.0
        for _ in range(2):
            state = env.step(state, jnp.array([1.0, 0.0]))
            total += float(state.reward)
        return total, bool(state.inner.success)

    (near, reached), (far, missed) = way(2.0), way(9.0)
    assert (reached, missed) == (True, False)
    assert near == pytest.approx(far, rel=1e-5)


def test_only_the_outcome_is_earned_at_the_end_of_an_attempt_which_is_an_end_of_the_task() -> None:
    flags = jnp.zeros((3, 2), bool)
    rollout = azjax.Rollout((), (), (), (), jnp.ones((3, 2)), flags, ~flags, ())  # type: ignore[arg-type]
    after = only_outcome(rollout, ENDS, jnp.full((3, 2), -1.0))
    assert after.reward.tolist() == [[0.0, -1.0], [-1.0, 0.0], [-1.0, -1.0]]
    assert after.terminated.tolist() == ENDS.over.tolist()
    assert not after.truncated.any()


def test_scores_are_compared_within_cells_of_the_task_space() -> None:
    family = task_family("pointmass", ("goal", "command"))
    tasks = Proposal(jnp.array([0, 0, 1, 1]), jnp.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0, 0.6, 0.9], [0, 0.6, 0]]))
    cell, number = task_cells(family, tasks, 2)
    assert cell.tolist() == [1, 7, 10, 10]  # a command has no third axis
    assert number == 16


@pytest.mark.parametrize(
    ("accepted", "source", "found"),
    [
        ([1, 1, 1], [0, 1, 2], True),
        ([1, 0, 1], [0, 2, 2], True),
        ([0, 1, 0], [1, 1, 1], True),
        ([0, 0, 0], None, False),
    ],
)
def test_the_lanes_of_a_refused_task_attempt_the_next_accepted_one(
    accepted: list[int], source: list[int] | None, found: bool
) -> None:
    tasks = Proposal(jnp.zeros(3, jnp.int32), jnp.arange(9.0).reshape(3, 3))
    chosen, whence, any_ = replace_refused(GOAL, tasks, jnp.array(accepted, bool), jnp.arange(3), None)
    assert bool(any_) == found
    if source is None:  # the neutral task, not to be trained on
        assert GOAL.contains(chosen).all()
    else:
        assert whence.tolist() == source
        assert chosen.cube.tolist() == tasks.cube[jnp.array(source)].tolist()


def test_maps_add_up_and_neighbouring_phases_merge_when_all_are_used() -> None:
    assert len(planes_of(task_family("pointmass"))) == 3 + 1 + 10
    maps = init_maps(GOAL)
    tasks = Proposal(jnp.zeros(2, jnp.int32), jnp.array([[0.05, 0.15, 0.95], [0.05, 0.15, 1.0]]))
    arguments = (GOAL, tasks, jnp.array([True, False]), jnp.array([0.5, 0.9]), jnp.array([1.0, 7.0]))
    add = jax.jit(lambda maps: add_to_maps(maps, *arguments))
    for _ in range(PHASES + 1):
        maps = add(maps)
    assert (int(maps.length), int(maps.updates)) == (2, PHASES + 1)
    first = maps.proposed[:, 0, 0, 1]
    assert first.tolist() == [4.0] * (PHASES // 2) + [2.0] + [0.0] * (PHASES // 2 - 1)
    assert float(maps.proposed[:, 1, 0, CELLS - 1].sum()) == 2 * (PHASES + 1)
    assert float(maps.accepted[0].sum()) == 2 * 3  # in each of the three planes
    assert float(maps.rate[0, 0, 0, 1]) == 1.0
    assert float(maps.reward[0, 0, 0, 1]) == 2.0


def test_entropy_of_proposals_goes_from_0_to_1() -> None:
    one = jnp.zeros((CELLS, CELLS)).at[3, 4].set(50.0)
    counts = jnp.stack([one, jnp.ones((CELLS, CELLS)), jnp.zeros((CELLS, CELLS))])
    np.testing.assert_allclose(proposal_entropy(counts), [0.0, 1.0, 0.0], atol=1e-6)


# ---- the whole update on a body that goes where it is told


def proposal(*tasks: list[float]) -> Proposal:
    """Goal tasks of distance [m], bearing [rad] and horizon [s]."""
    values = np.array(tasks, np.float32)
    return Proposal(jnp.zeros(len(tasks), jnp.int32), jnp.asarray((values - LOW) / (HIGH - LOW), jnp.float32))


REACHED, MISSED, REFUSED = [4.0, 0.0, 6.0], [4.0, np.pi, 2.0], [20.0, 0.0, 6.0]
TASKS = proposal(REACHED, REFUSED, MISSED)


def scripted(tasks: Proposal) -> Proposer:
    """Always the same tasks; ``metrics.selfplay`` has the feedback."""

    def update(state: Any, feedback: Feedback, key: Any) -> Any:
        return state, {f"feedback/{k}": v for k, v in feedback._asdict().items() if k not in ("proposal", "memo")}

    return Proposer(lambda key: (), lambda state, keys: (tasks, ()), update)


def full_throttle() -> azjax.Learner:
    """Straight ahead; the advantage of a decision is its reward, and ``metrics.training.learner`` has the batch."""

    def act(params: Any, observation: Any, carry: Any, key: Any, *, deterministic: bool = False) -> Any:
        action = jnp.array([1.0, 0.0])
        return action, carry, azjax.ActInfo(jnp.zeros(()), action)

    def estimate(state: Any, rollout: azjax.Rollout) -> azjax.Batch:
        reward, mask = rollout.reward, jnp.ones_like(rollout.terminated)
        return azjax.Batch(rollout.observation, rollout.action, jnp.zeros_like(reward), reward, reward, mask)

    return azjax.Learner(
        init=lambda key, observation_spec, action_spec, hyperparameters=None: toy_envs.IdleState(jnp.zeros(())),
        act=act,
        estimate=estimate,
        fit=lambda state, batch, key: (state, {"batch": batch}),
    )


@functools.cache
def script(**changes: Any) -> Any:
    """Metrics of three updates."""
    env = TaskEnvironment(Rail(), GOAL, TaskSettings(2.0, 0.5, 0.5, 1.0, control_cost=0.0))
    base = SelfPlayConfig(
        proposals=3,
        attempts=2,
        learnability="absolute-zero-code",
        verification=VerificationConfig(steps=4),
        verify_every=2,
        past_minimum=20,
    )
    config = dataclasses.replace(base, **changes)
    trainer = make_selfplay(env, full_throttle(), scripted(TASKS), config, vectorize=azjax.envs.plain_vmap)
    step, state, metrics = jax.jit(trainer.step), trainer.init(KEY), []
    for _ in range(3):
        state, reported = step(state)
        metrics.append(reported)
    return trainer, state, metrics


def test_environment_steps_of_training_and_verification_are_counted_apart_and_exactly() -> None:
    trainer, state, metrics = script()
    assert (trainer.lanes, trainer.decisions, trainer.training_steps_per_update) == (6, 360, 360)
    assert trainer.verification_steps_per_update == 3 * 3 * 4
    assert [counter_to_int(m.training_steps) for m in metrics] == [360, 720, 1080]
    assert [counter_to_int(m.verification_steps) for m in metrics] == [36, 36, 72]  # every other update
    assert [counter_to_int(m.training.env_steps) for m in metrics] == [396, 756, 1152]
    assert [trainer.env_steps(n) for n in (1, 2, 3)] == [396, 756, 1152]
    assert counter_to_int(state.env_steps) == 1152
    assert np.isnan(metrics[1].selfplay["verification/safety"])  # not looked at
    assert float(metrics[0].selfplay["verification/safety"]) == pytest.approx(1.0)


@pytest.mark.parametrize("update", [0, 1])
def test_refused_tasks_give_minus_1_and_are_not_attempted(update: int) -> None:
    """Also in an update without verification by simulation."""
    _, _, metrics = script()
    told = metrics[update].selfplay
    assert told["feedback/accepted"].tolist() == [True, False, True]
    assert told["feedback/reward"].tolist() == [-0.5, -1.0, -0.5]
    assert told["feedback/rate"].tolist() == [1.0, 0.0, 0.0]
    assert float(told["selfplay/success"]) == 0.5  # of the accepted ones
    batch = metrics[update].training.learner["batch"]
    assert batch.mask.all()
    # The lanes of the refused task do the next one: away from the goal, as those behind them.
    np.testing.assert_allclose(batch.returns[:, 2:4], batch.returns[:, 4:6], atol=1e-5)


def test_the_regret_is_the_mean_absolute_advantage_of_the_first_attempts_and_0_where_refused() -> None:
    _, _, metrics = script()
    batch, regret = metrics[0].training.learner["batch"], metrics[0].selfplay["feedback/regret"]
    size = np.abs(np.asarray(batch.advantages))
    np.testing.assert_allclose(regret, [size[:4, :2].mean(), 0.0, size[:20, 4:].mean()], rtol=1e-5)


def test_advantages_are_those_of_the_dense_reward_and_of_success() -> None:
    """4 m at 1 m a step with a reach of 0.5 m: four steps of 5 approach units; then the next attempt. Else 20 steps."""
    _, _, metrics = script()
    batch = metrics[0].training.learner["batch"]
    reward = np.asarray(batch.returns)
    np.testing.assert_allclose(reward[:, 0], 5.0, rtol=1e-4)
    np.testing.assert_allclose(reward[:, 4], -5.0, rtol=1e-4)
    dense = (reward - reward.mean()) / reward.std()
    success = np.array([1, 1, 0, 0, 0, 0])  # of the task that replaced the refused one, too
    advantage = (success - success.mean()) / success.std()
    first = np.zeros((60, 6))
    first[:4, :2], first[:20, 2:] = 1.0, 1.0
    np.testing.assert_allclose(batch.advantages, dense + first * advantage, atol=1e-4)
    np.testing.assert_allclose(batch.values, 0.0, atol=1e-6)
    assert int(metrics[0].training.episodes.ended) == 6  # first attempts, however many follow
    assert float(metrics[0].training.episodes.length_sum) == 2 * 4 + 4 * 20


def test_success_alone_is_earned_at_the_end_of_every_attempt() -> None:
    _, _, metrics = script(solver_reward="success")
    reward = np.asarray(metrics[0].training.learner["batch"].advantages)
    expected = np.zeros(60)
    expected[3::4] = 1.0
    np.testing.assert_array_equal(reward[:, 0], expected)
    assert (reward[:, 2:] == 0.0).all()


def test_ranked_reward_compares_with_the_past_of_the_same_cell() -> None:
    _, state, metrics = script(solver_reward="ranked")
    first, second = (np.asarray(m.training.learner["batch"].advantages) for m in metrics[:2])
    assert (first == 0.0).all()  # there is no past yet
    assert set(second[3::4, 0].tolist()) <= {-1.0, 1.0}  # all scores tie: coins
    assert (np.delete(second[:, 0], np.s_[3::4]) == 0.0).all()
    cell, _ = task_cells(GOAL, TASKS, 2)
    count = np.asarray(state.past.count)
    assert count[int(cell[0])] == 3 * 2 * 15  # every attempt of three updates
    assert count[int(cell[2])] == 3 * 4 * 3
    assert count.sum() == count[int(cell[0])] + count[int(cell[2])]
    assert 0.0 < float(metrics[1].selfplay["selfplay/ranked_judged"]) < 1.0  # the other cell has too short a past


def test_nothing_is_trained_on_if_nothing_is_accepted() -> None:
    trainer = make_selfplay(
        TaskEnvironment(Rail(), GOAL, TaskSettings(2.0, 0.5, 0.5, 1.0)),
        full_throttle(),
        scripted(proposal(REFUSED, REFUSED, REFUSED)),
        SelfPlayConfig(proposals=3, attempts=2, verification=VerificationConfig(steps=1)),
        vectorize=azjax.envs.plain_vmap,
    )
    _, metrics = jax.jit(trainer.step)(trainer.init(KEY))
    assert not metrics.training.learner["batch"].mask.any()
    assert metrics.selfplay["feedback/reward"].tolist() == [-1.0] * 3
    assert int(metrics.training.episodes.ended) == 0


# ---- programs


def trainer_of(proposer: str, axis_name: str | None = None, **changes: Any) -> Any:
    env = make_task_env("pointmass", ("goal", "command"))
    config = azjax.PPOConfig(epochs=1, minibatches=1, policy_hidden=(8,), value_hidden=(8,), learning_rate=1e-3)
    own = SelfPlayConfig(proposals=4, attempts=4, verification=VerificationConfig(steps=2), **changes)
    return make_selfplay(
        env,
        azjax.ppo(config, axis_name=axis_name),
        make_proposer(proposer, env.family, axis_name=axis_name),
        own,
        axis_name=axis_name,
        vectorize=azjax.envs.plain_vmap,
    )


def leaves_of(state: Any) -> list[Any]:
    return [np.asarray(x) for x in jax.tree.leaves((state.learner.params, state.proposer, state.maps, state.updates))]


@pytest.fixture(scope="module", params=["sfl", pytest.param("learned", marks=pytest.mark.slow)])
def jitted(request: pytest.FixtureRequest) -> Any:
    """Two updates of two seeds, one after the other, in one call each."""
    compiled = azjax.compile(trainer_of(request.param), updates_per_call=2)
    results = []
    for seed in (0, 1):
        state, metrics = compiled.step(compiled.init(jax.random.key(seed)))
        results.append((leaves_of(state), metrics))
    return request.param, results


@pytest.mark.slow
def test_several_seeds_at_once_are_what_each_is_alone(jitted: Any) -> None:
    trainer = trainer_of(jitted[0])
    states = jax.vmap(trainer.init)(jnp.stack([jax.random.key(0), jax.random.key(1)]))
    many = jax.jit(lambda states: jax.lax.scan(lambda s, _: jax.vmap(trainer.step)(s), states, None, 2))
    after, metrics = many(states)
    for seed, (expected, reported) in enumerate(jitted[1]):
        alone = [x[seed] for x in leaves_of(after)]
        for one, other in zip(alone, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
        success = metrics.selfplay["selfplay/success"][:, seed]
        np.testing.assert_allclose(success, reported.selfplay["selfplay/success"], atol=1e-6)


def test_attempts_of_several_seeds_at_once_are_what_each_has_alone() -> None:
    """The same with a policy that acts at random and learns nothing, which compiles fast."""

    def act(params: Any, observation: Any, carry: Any, key: Any, *, deterministic: bool = False) -> Any:
        action = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return action, carry, azjax.ActInfo(jnp.zeros(()), action)

    env = make_task_env("pointmass", ("command",))
    config = SelfPlayConfig(proposals=4, attempts=4, verification=VerificationConfig(steps=2))
    learner = full_throttle()._replace(act=act)
    trainer = make_selfplay(env, learner, uniform(env.family), config, vectorize=azjax.envs.plain_vmap)
    states = [trainer.init(jax.random.key(seed)) for seed in (0, 1)]
    _, many = jax.jit(jax.vmap(trainer.step))(jax.tree.map(lambda *x: jnp.stack(x), *states))
    step = jax.jit(trainer.step)
    for seed, state in enumerate(states):
        _, alone = step(state)
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(one, other[seed], rtol=1e-4, atol=1e-5)


def test_two_devices_learn_what_one_does(jitted: Any, require_devices: Any) -> None:
    require_devices(2)
    compiled = azjax.compile(trainer_of(jitted[0], AXIS), azjax.make_mesh(2, AXIS), updates_per_call=2)
    state, metrics = compiled.step(compiled.init(jax.random.key(0)))
    expected, reported = jitted[1][0]
    for one, other in zip(leaves_of(state), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    for name, value in reported.selfplay.items():
        np.testing.assert_allclose(metrics.selfplay[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("solver_reward", ["dense", "success", "ranked"])
def test_every_proposer_goes_with_every_reward(proposer: str, solver_reward: str) -> None:
    trainer = trainer_of(proposer, solver_reward=solver_reward, past_minimum=4)
    state, metrics = azjax.compile(trainer, updates_per_call=3).step(trainer.init(KEY))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.params.network))
    assert float(metrics.training.learner["policy_loss"][-1]) != 0.0
    assert int(state.updates) == 3


@pytest.mark.slow
@pytest.mark.parametrize("proposer", [uniform, learned])
def test_success_at_held_out_tasks_rises(proposer: Any) -> None:
    env = make_task_env("pointmass", ("goal",))
    config = azjax.PPOConfig(epochs=4, minibatches=16, learning_rate=1e-3, gamma=0.97)
    trainer = make_selfplay(env, azjax.ppo(config), proposer(env.family))
    compiled = azjax.compile(trainer, updates_per_call=30)
    _, metrics = compiled.step(compiled.init(KEY))
    success = np.asarray(metrics.selfplay["selfplay/success"])
    assert success[:3].mean() < 0.3
    if proposer is uniform:
        assert success[-3:].mean() > 0.6


# ---- wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proposals": 0}, "proposals is 0"),
        ({"attempts": 1}, "attempts is 1"),
        ({"success_weight": -1.0}, "success_weight is -1.0"),
        ({"solver_reward": "dens"}, "did you mean 'dense'"),
        ({"baseline": "task"}, "baseline is 'task'"),
        ({"learnability": "p"}, "learnability is 'p'"),
        ({"verify_every": 0}, "verify_every is 0"),
        ({"past": 10}, "past_minimum is 50"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SelfPlayConfig(), **changes).validate()


def test_an_axis_of_the_learner_alone_is_refused() -> None:
    env = make_task_env("pointmass", ("goal",))
    with pytest.raises(ConfigError, match="drift apart"):
        make_selfplay(env, azjax.ppo(axis_name=AXIS), uniform(env.family))


def test_proposers_by_name_refuse_what_they_have_no_use_for() -> None:
    with pytest.raises(ConfigError, match="did you mean 'learned'"):
        make_proposer("learnd", GOAL)
    with pytest.raises(ConfigError, match=r"proposer_learning_rate is 0\.1, but proposer 'sfl' has no use for it"):
        make_proposer("sfl", GOAL, ProposerSettings(learning_rate=0.1))
    with pytest.raises(ConfigError, match="uniform_share is 2"):
        make_proposer("sfl", GOAL, ProposerSettings(uniform_share=2.0))


# ---- the held-out grid


@pytest.mark.parametrize("body", list(BODIES))
def test_the_grid_is_fixed_and_partly_outside_of_the_training_range(body: str) -> None:
    family = task_family(body)
    grid, again = (held_out_grid(family, wider_family(family), 120) for _ in range(2))
    assert np.array_equal(grid.cube, again.cube)
    assert np.bincount(np.asarray(grid.task.type)).tolist() == [40, 40, 40]
    assert int(grid.inside.sum()) == 90
    for number, space in enumerate(family.spaces.values()):
        mine = np.asarray(grid.task.type) == number
        cube = grid.cube[:, : space.size]
        within = ((cube >= -1e-5) & (cube <= 1 + 1e-5)).all(axis=1)
        assert np.array_equal(within[mine], grid.inside[mine])
    assert np.isfinite(np.stack(list(grid.task.values.values()))).all()
    assert (np.asarray(grid.task.values["horizon"]) > 0.1).all()


@pytest.mark.parametrize("body", ["pointmass", pytest.param("ant", marks=pytest.mark.slow)])
def test_time_limits_are_known_before_a_body_is_made(body: str) -> None:
    for types in (None, ("command",)):
        env = make_task_env(body, types)
        assert env.dt == pytest.approx(BODIES[body].dt)
        assert env.episode_length == episode_length_of(body, types)


@pytest.mark.slow
@pytest.mark.parametrize("body", ["hopper", "walker2d", "humanoid"])
def test_time_limits_of_the_other_bodies(body: str) -> None:
    assert make_task_env(body).episode_length == episode_length_of(body)


def test_the_worst_tasks_are_chosen_by_other_episodes_than_those_reported() -> None:
    success = np.ones((20, 4), bool)
    success[3] = [0, 0, 1, 1]  # chosen, and well reported
    success[7] = [0, 0, 0, 1]
    success[9] = [1, 1, 0, 0]  # bad, but not seen to be so by the half that chooses
    scores = held_out_scores(success, np.ones(20, bool))
    assert scores is not None
    assert scores.tasks == 20
    assert scores.success == pytest.approx((17 + 0.5 + 0.25 + 0.5) / 20)
    assert scores.coverage == pytest.approx(17 / 20)
    assert scores.cvar10 == pytest.approx((1.0 + 0.5) / 2)
    assert held_out_scores(success, np.zeros(20, bool)) is None
    with pytest.raises(ConfigError, match="episodes of each held-out task is 1"):
        held_out_scores(success[:, :1], np.ones(20, bool))
