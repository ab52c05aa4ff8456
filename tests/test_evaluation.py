"""Full episodes of a fixed policy: when they end, what counts, and the statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import toy_envs

import azjax
from azjax.envs.lanes import plain_vmap

LANES = 24


class Watched(toy_envs.Scripted):
    """Counts, on the host, how often any lane steps."""

    def __init__(self, *args: Any, **ranges: Any) -> None:
        super().__init__(*args, **ranges)
        self.steps = 0

    def step(self, state: azjax.EnvState, action: jax.Array) -> azjax.EnvState:
        def count() -> None:
            self.steps += 1

        jax.debug.callback(count)
        return super().step(state, action)


def expected_episode(params: dict[str, Any], tag: float, limit: int) -> dict[str, Any]:
    """One episode of ``Scripted`` in plain Python."""
    total = 0.0
    for count in range(1, limit + 1):
        if count in (params["nan_observation"], params["nan_reward"]):
            return {"return": total, "length": count, "terminated": False, "broken": True}
        total += count + tag
        if count >= params["terminate"]:
            return {"return": total, "length": count, "terminated": True, "broken": False}
        if count >= params["truncate"]:
            break
    return {"return": total, "length": count, "terminated": False, "broken": False}


def record(state: azjax.EnvState) -> dict[str, Any]:
    """What it takes to know a lane's episode in advance, and where it stands."""
    return {"count": state.inner["count"], "tag": state.inner["tag"], "params": state.params}


@pytest.fixture(scope="module")
def episodes() -> list[tuple[Any, dict[str, Any]]]:
    """Six lanes of evaluation, one at a time, so that each is the one recorded; with what was expected of each."""
    env = toy_envs.Scripted(12, terminate=(2, 20), truncate=(8, 20), nan_observation=(2, 40), nan_reward=(2, 40))
    evaluate = azjax.make_evaluator(env, toy_envs.idle().act, lanes=1, record=record, vectorize=plain_vmap)
    program, pairs = azjax.compile_evaluator(evaluate), []
    for n in range(12):
        played = jax.device_get(program(jnp.zeros(()), jax.random.key(n)))
        first = jax.tree.map(lambda x: x[0], played.frames.recorded)
        params = {name: int(x) for name, x in first["params"].items()}
        pairs.append((played, expected_episode(params, float(first["tag"]), 12)))
    return pairs


def test_returns_lengths_and_ends_equal_plain_python(episodes):
    kinds = set()
    for played, expected in episodes:
        np.testing.assert_allclose(played.episode_return[0], expected["return"], rtol=1e-5)
        assert int(played.length[0]) == expected["length"]
        assert bool(played.terminated[0]) == expected["terminated"]
        assert bool(played.nonfinite[0]) == expected["broken"]
        kinds.add((expected["terminated"], expected["broken"]))
    assert len(kinds) == 3  # ended by the task, by the clock, and broken


def test_recorded_frames_show_the_whole_episode_and_then_its_last_frame(episodes):
    for played, expected in episodes:
        length = expected["length"]
        count = np.asarray(played.frames.recorded["count"])
        assert count.shape == (13,)
        np.testing.assert_array_equal(count, np.minimum(np.arange(13), length))
        assert len(set(played.frames.recorded["tag"].tolist())) == 1
        reward = np.asarray(played.frames.reward)
        assert reward[0] == 0.0
        assert (reward[length + 1 :] == 0.0).all()
        np.testing.assert_allclose(reward.sum(), expected["return"], rtol=1e-5)


def test_evaluation_stops_when_all_lanes_are_done_and_not_before():
    """brax always plays to the time limit. Every lane here ends between its 3rd and 7th step."""
    env = Watched(1000, terminate=(3, 7))
    evaluate = azjax.make_evaluator(env, toy_envs.idle().act, lanes=LANES, vectorize=plain_vmap)
    played = jax.jit(evaluate)(jnp.zeros(()), jax.random.key(0))
    jax.block_until_ready(played)
    jax.effects_barrier()
    assert len(set(played.length.tolist())) > 2
    longest = int(played.length.max())
    assert env.steps in (longest, longest * LANES)  # as vmap calls back once, or once a lane
    assert longest <= 7
    assert played.terminated.all()


@pytest.mark.parametrize("repeat", [1, 3])
def test_action_repeat_counts_environment_steps_and_ends_on_time(repeat):
    """Also at a time limit that the repeat does not divide."""
    env = toy_envs.Scripted(8)
    evaluate = azjax.make_evaluator(
        env, toy_envs.idle().act, lanes=2, action_repeat=repeat, record=record, vectorize=plain_vmap
    )
    played = jax.jit(evaluate)(jnp.zeros(()), jax.random.key(0))
    np.testing.assert_array_equal(played.length, [8, 8])
    np.testing.assert_array_equal(played.frames.recorded["count"], np.minimum(np.arange(0, 8 + repeat, repeat), 8))
    tag = float(played.frames.recorded["tag"][0])
    np.testing.assert_allclose(played.episode_return[0], 36 + 8 * tag, rtol=1e-5)


def policy_of(deterministic: bool) -> tuple[Any, Any]:
    learner = azjax.ppo(azjax.PPOConfig(policy_hidden=(8,), value_hidden=(8,)))
    state = learner.init(jax.random.key(0), toy_envs.float_spec(1), azjax.Box(1))
    evaluate = azjax.make_evaluator(
        toy_envs.Target(), learner.act, lanes=LANES, deterministic=deterministic, vectorize=plain_vmap
    )
    return azjax.compile_evaluator(evaluate), state.params


def test_deterministic_episodes_take_the_mode_and_stochastic_ones_sample():
    """The reward tells the action: the untrained mode is about 0, samples spread by the initial deviation."""
    key = jax.random.key(0)
    program, params = policy_of(True)
    first, again = program(params, key), program(params, key)
    np.testing.assert_array_equal(first.episode_return, again.episode_return)
    assert np.asarray(first.episode_return).min() > 1 - 0.26  # 1 - (0 - x / 2)^2, |x| <= 1
    program, params = policy_of(False)
    sampled = np.asarray(program(params, key).episode_return)
    assert sampled.min() < 1 - 0.3
    assert (sampled != np.asarray(first.episode_return)).all()


def test_evaluation_never_reuses_a_training_key():
    """Not even when it is given the very key that training started from: other initial states, all different."""
    env = toy_envs.Scripted(3)
    trainer = azjax.make_trainer(env, toy_envs.idle(), lanes=16, rollout_length=6, vectorize=plain_vmap)
    key = jax.random.key(0)
    _, metrics = azjax.compile(trainer, updates_per_call=2).step(jax.jit(trainer.init)(key))
    trained = set(np.asarray(metrics.learner["rollout"].observation[..., 1]).ravel().tolist())

    def act(params: Any, observation: Any, carry: Any, key: Any, *, deterministic: bool = False) -> Any:
        return jnp.zeros(1), carry, None

    evaluate = azjax.make_evaluator(env, act, lanes=16, vectorize=plain_vmap)
    played = jax.jit(evaluate)(None, key)
    tags = np.round((np.asarray(played.episode_return) - 6) / 3, 4)
    assert len(set(tags.tolist())) == 16
    assert len(trained) > 32
    assert not set(tags.tolist()) & set(np.round(list(trained), 4).tolist())


def test_an_evaluator_takes_no_key_that_a_trainer_takes_from_the_same_one(monkeypatch):
    """By their bits: a split, a fold and a longer split of one key may be the same key."""
    taken: list[bytes] = []

    def note(function: Any) -> Any:
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if not isinstance(result, jax.core.Tracer):
                taken.extend(np.asarray(row).tobytes() for row in jax.random.key_data(result).reshape(-1, 2))
            return result

        return noting

    for name in ("split", "fold_in"):
        monkeypatch.setattr(jax.random, name, note(getattr(jax.random, name)))
    env, act = toy_envs.Target(), toy_envs.idle().act
    with jax.disable_jit():
        trainer = azjax.make_trainer(env, toy_envs.idle(), lanes=2, rollout_length=2, vectorize=plain_vmap)
        trainer.step(trainer.init(jax.random.key(0)))
        of_trainer, taken = set(taken), []
        azjax.make_evaluator(env, act, lanes=2, vectorize=plain_vmap)(None, jax.random.key(0))
    assert len(of_trainer) >= 8
    assert len(set(taken)) >= 3
    assert not of_trainer & set(taken)


def test_every_device_plays_episodes_of_its_own(require_devices):
    require_devices(2)
    env = toy_envs.Scripted(6, terminate=(2, 9))
    evaluate = azjax.make_evaluator(
        env, toy_envs.idle().act, lanes=8, axis_name="devices", record=record, vectorize=plain_vmap
    )
    program = azjax.compile_evaluator(evaluate, azjax.make_mesh(2, "devices"))
    played = program(jnp.zeros(()), jax.random.key(0))
    assert played.episode_return.shape == played.length.shape == (16,)
    assert len(set(played.episode_return.tolist())) == 16
    # Frames are those of the first device's first lane, unless another is asked for.
    one = azjax.compile_evaluator(evaluate, azjax.make_mesh(1, "devices"))(jnp.zeros(()), jax.random.key(0))
    np.testing.assert_allclose(played.episode_return[:8], one.episode_return, rtol=1e-6)
    np.testing.assert_array_equal(played.frames.recorded["count"], one.frames.recorded["count"])
    np.testing.assert_array_equal(played.frames.reward, one.frames.reward)


@pytest.mark.parametrize("devices", [1, 2])
def test_any_lane_can_be_recorded_without_changing_what_is_played(devices, require_devices):
    require_devices(devices)
    env = toy_envs.Scripted(6, terminate=(2, 9))
    evaluate = azjax.make_evaluator(
        env, toy_envs.idle().act, lanes=6 // devices, axis_name="devices", record=record, vectorize=plain_vmap
    )
    program = azjax.compile_evaluator(evaluate, azjax.make_mesh(devices, "devices"))
    tags = []
    for lane in range(6):
        played = jax.device_get(program(jnp.zeros(()), jax.random.key(0), 0, lane))
        if lane == 0:
            returns = played.episode_return
        np.testing.assert_array_equal(played.episode_return, returns)
        np.testing.assert_allclose(played.frames.reward.sum(), returns[lane], rtol=1e-6)
        assert played.frames.recorded["count"].max() == played.length[lane]
        tags.append(float(played.frames.recorded["tag"][0]))
    assert len(set(tags)) == 6


@pytest.mark.parametrize("devices", [1, 2])
def test_an_episode_depends_on_its_number_alone(devices, require_devices):
    """Not on the device that plays it, nor on the call: 16 episodes at once, or the same in calls of 4."""
    require_devices(devices)
    env = toy_envs.Scripted(6, terminate=(2, 9))
    key = jax.random.key(0)

    def program(lanes: int) -> Any:
        act = toy_envs.idle().act
        return azjax.make_evaluator(env, act, lanes=lanes, axis_name="devices", vectorize=plain_vmap)

    at_once = azjax.compile_evaluator(program(16), azjax.make_mesh(1, "devices"))(jnp.zeros(()), key)
    in_parts = azjax.compile_evaluator(program(4 // devices), azjax.make_mesh(devices, "devices"))
    parts = [in_parts(jnp.zeros(()), key, start) for start in range(0, 16, 4)]
    for name in ("episode_return", "length", "terminated"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(joined, getattr(at_once, name), rtol=1e-6)
    assert len(set(np.asarray(at_once.episode_return).tolist())) == 16


def test_an_evaluation_needs_a_lane():
    with pytest.raises(ValueError, match="lanes is 0"):
        azjax.make_evaluator(toy_envs.Target(), toy_envs.idle().act, lanes=0)


def test_a_brax_policy_is_evaluated(brax_program):
    """Discounts nothing, stops at the falls, and says why episodes ended."""
    evaluate = azjax.make_evaluator(brax_program.env, brax_program.learner.act, lanes=8, record=brax_program.env.poses)
    state = brax_program.compiled.init(jax.random.key(0))
    played = azjax.compile_evaluator(evaluate)(state.learner.params, jax.random.key(1))
    summary = azjax.summarize(played)
    assert summary["episodes"] == 8
    assert 1 <= summary["length_mean"] <= 12
    np.testing.assert_array_equal(played.terminated, played.length < 12)
    positions, rotations = played.frames.recorded
    assert positions.shape[0] == rotations.shape[0] == 13
    np.testing.assert_allclose(np.linalg.norm(rotations, axis=-1), 1.0, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def made_up(returns: Any, nonfinite: Any = None) -> azjax.Episodes:
    returns = np.asarray(returns, np.float32)
    n = len(returns)
    return azjax.Episodes(
        episode_return=returns,
        length=np.arange(10, 10 + n, dtype=np.int32),
        terminated=np.arange(n) % 3 == 0,
        nonfinite=np.zeros(n, bool) if nonfinite is None else np.asarray(nonfinite),
        frames=None,
    )


def test_the_summary_equals_numpy_and_scipy():
    returns = np.random.default_rng(0).gamma(2.0, 100.0, size=40).astype(np.float32)
    episodes = made_up(returns)
    summary = azjax.summarize(episodes)
    exact = returns.astype(np.float64)
    expected = {
        "episodes": 40,
        "nonfinite_episodes": 0,
        "return_mean": exact.mean(),
        "return_std": exact.std(),
        "return_median": np.median(exact),
        "return_iqm": scipy.stats.trim_mean(exact, 0.25),
        "return_min": exact.min(),
        "return_max": exact.max(),
        "length_mean": episodes.length.mean(),
        "terminated_fraction": 14 / 40,
    }
    for name, number in expected.items():
        assert summary[name] == pytest.approx(number, rel=1e-9), name
        assert type(summary[name]) in (int, float), name
    assert summary["returns"] == exact.tolist()
    assert summary["return_iqm_low"] < summary["return_iqm"] < summary["return_iqm_high"]
    assert set(summary) == {*expected, "returns", "return_iqm_low", "return_iqm_high"}


def test_broken_episodes_are_left_out_of_every_figure_but_their_own():
    broken = np.array([False, True, False, True, False])
    returns = np.array([1.0, -1e9, 3.0, np.nan, 5.0])
    summary = azjax.summarize(made_up(returns, broken))
    assert summary["episodes"] == 3
    assert summary["nonfinite_episodes"] == 2
    assert summary["returns"] == [1.0, 3.0, 5.0]
    assert (summary["return_min"], summary["return_mean"], summary["return_max"]) == (1.0, 3.0, 5.0)
    assert summary["length_mean"] == pytest.approx(12.0)
    assert summary["terminated_fraction"] == pytest.approx(1 / 3)
    assert np.isfinite([v for k, v in summary.items() if k != "returns"]).all()


def test_an_evaluation_in_which_everything_broke_is_an_error():
    with pytest.raises(ValueError, match="every evaluation episode"):
        azjax.summarize(made_up([1.0, 2.0], [True, True]))
