"""The Gymnasium bridge: Gymnasium's own checkers, azjax's own stepping, ends of episodes, seeds, spaces, errors."""

import builtins
import functools
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cli
import test_docs
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TransformObservation
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeObservation,
    RecordEpisodeStatistics,
    VectorizeTransformObservation,
)
from toy_envs import BraxCounter, Corridor, DictTask, Scripted, Target, Toy, float_spec

import azjax
from azjax.envs import plain_vmap
from azjax.envs.bridge import SteppedLanes
from azjax.envs.lanes import batch_first, reset_lanes, select_lanes, step_lanes
from azjax.runs import load_policy

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "gymnasium.md"
modes = pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
to_gymnasium = functools.partial(azjax.to_gymnasium, vectorize=plain_vmap)


def play(env: Any, actions: Any) -> list[Any]:
    return [env.step(action) for action in actions]


def uniform_actions(env: Any, steps: int, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def assert_equal_trees(x: Any, y: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, x, y)


# ---------------------------------------------------------------------------------------------------------------------
# Gymnasium's checkers and wrappers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [Scripted(50), Corridor(50), DictTask(50), BraxCounter(7)],
    ids=["box", "discrete", "dict", "brax"],
)
def test_a_single_environment_passes_gymnasiums_checker(env: Any) -> None:
    """What it warns of is left: no bounds of observations, and no spec to make the environment from."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_env(to_gymnasium(env, seed=1))
    messages = [str(warning.message) for warning in warned]
    assert [message for message in messages if "infin" not in message and "a spec" not in message] == []


@pytest.mark.parametrize("env", [Scripted(20), Corridor(20), DictTask(20)], ids=["box", "discrete", "dict"])
@modes
def test_lanes_pass_what_make_vec_asks_of_vector_environments_and_give_arrays_away(env: Any, mode: str) -> None:
    gymnasium.register(
        "azjax-toy-v0", vector_entry_point=lambda num_envs: to_gymnasium(env, num_envs, autoreset_mode=mode)
    )
    try:
        vector = gymnasium.make_vec("azjax-toy-v0", num_envs=3, vectorization_mode="vector_entry_point")
    finally:
        del gymnasium.registry["azjax-toy-v0"]
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    assert vector.metadata["autoreset_mode"] == AutoresetMode(mode)
    assert vector.num_envs == 3
    assert vector.spec is not None
    kept = [vector.reset(seed=3)[0]]
    for action in uniform_actions(vector, 3):
        observation, reward, terminated, truncated, infos = vector.step(action)
        assert vector.observation_space.contains(observation)
        assert (reward.dtype, reward.shape) == (np.float32, (3,))
        assert terminated.dtype == truncated.dtype == np.bool_
        assert isinstance(infos, dict)
        over = terminated | truncated
        for array in jax.tree.leaves((observation, reward, terminated, truncated)):
            array[...] = 0  # they are the caller's
        kept.append(observation)
        if mode == "Disabled" and over.any():
            vector.reset(options={"reset_mask": over})
    leaves = [leaf for observation in kept for leaf in jax.tree.leaves(observation)]
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
    vector.close()


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_gymnasiums_wrappers_record_whole_episodes(mode: str) -> None:
    """Lanes of ``Scripted`` end after 5 steps; the return is 1 + ... + 5 and five times the tag."""
    env = RecordEpisodeStatistics(to_gymnasium(Scripted(5), 4, autoreset_mode=mode))
    first, _ = env.reset(seed=0)
    steps = play(env, np.full((5, 4, 1), 0.5, np.float32))
    np.testing.assert_allclose(steps[-1][4]["episode"]["r"], 15 + 5 * first[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(steps[-1][4]["episode"]["l"], 5)
    play(env, np.full((6, 4, 1), 0.5, np.float32))
    np.testing.assert_array_equal(list(env.length_queue), [5] * 8)
    env.reset(options={"reset_mask": np.array([True, False, False, True])})


def test_infos_become_a_list_of_each_lanes_info() -> None:
    env = DictInfoToList(to_gymnasium(Scripted(2), 2))
    env.reset(seed=0)
    *_, infos = play(env, np.full((2, 2, 1), 0.5, np.float32))[-1]
    assert [info["final_obs"][0] for info in infos] == [2.0, 2.0]
    assert [info["final_info"] for info in infos] == [{"nonfinite": False}] * 2


def test_gymnasiums_wrappers_of_observations_want_the_next_step() -> None:
    env = to_gymnasium(Scripted(2), 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    env = VectorizeTransformObservation(env, TransformObservation, func=lambda x: 2 * x, observation_space=None)
    env = NormalizeObservation(env)
    first, _ = env.reset(seed=0)
    assert np.isfinite(first).all()
    assert env.env.step(np.zeros((2, 1), np.float32))[0][0, 0] == 2.0


# ---------------------------------------------------------------------------------------------------------------------
# Against azjax's own stepping
# ---------------------------------------------------------------------------------------------------------------------

EVENTS = {"terminate": (3, 12), "truncate": (5, 20), "nan_observation": (2, 15), "nan_reward": (2, 15)}


def reference(env: Any, key: Any, actions: Any, lanes: int, action_repeat: int, mode: str) -> Iterator[dict[str, Any]]:
    """The same lanes by ``reset_lanes`` and ``step_lanes``: every reset is a new episode, computed when it is due."""
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))
    reset = jax.jit(lambda numbers: reset_lanes(env, plain_vmap, keys(numbers)))
    step = jax.jit(
        lambda s, e, a: step_lanes(env, plain_vmap, s, e, a, limit=env.episode_length, action_repeat=action_repeat)
    )
    entries = lanes + max(lanes, 32)
    state = reset(jnp.arange(lanes, dtype=jnp.uint32))
    elapsed, waiting = np.zeros(lanes, np.int32), np.zeros(lanes, bool)
    used, first = lanes, 0
    for action in actions:
        if used + lanes > entries:
            used, first = 0, first + entries
        result = step(state, jnp.asarray(elapsed), jnp.asarray(action))
        terminated, truncated = np.asarray(result.terminated) & ~waiting, np.asarray(result.truncated) & ~waiting
        over = terminated | truncated
        fresh = over if mode == "SameStep" else waiting
        numbers = first + used + np.cumsum(fresh) - 1
        used += int(fresh.sum())
        state = select_lanes(jnp.asarray(fresh), reset(jnp.asarray(np.maximum(numbers, 0), jnp.uint32)), result.state)
        elapsed = np.where(fresh, 0, result.elapsed)
        final = np.asarray(result.final_observation)
        yield {
            "observation": np.where(fresh[:, None], batch_first(state.observation), final),
            "reward": np.where(waiting, 0.0, result.reward),
            "terminated": terminated,
            "truncated": truncated,
            "nonfinite": np.asarray(result.nonfinite) & over,
            "final": final,
            "over": over,
        }
        waiting = over if mode == "NextStep" else np.zeros(lanes, bool)


@pytest.mark.parametrize(("mode", "action_repeat"), [("SameStep", 1), ("NextStep", 1), ("SameStep", 3)])
def test_lanes_equal_azjaxs_own_stepping(mode: str, action_repeat: int) -> None:
    """Lanes that end in every possible way, often enough for the pool to be filled several times."""
    lanes, steps = 6, 80
    env = to_gymnasium(Scripted(8, **EVENTS), lanes, action_repeat=action_repeat, autoreset_mode=mode)
    env.reset(seed=5)
    actions = uniform_actions(env, steps)
    expected = reference(Scripted(8, **EVENTS), env._lanes._key, actions, lanes, action_repeat, mode)
    ended = {"terminated": 0, "truncated": 0, "nonfinite": 0}
    for (observation, reward, terminated, truncated, infos), want in zip(play(env, actions), expected, strict=True):
        np.testing.assert_array_equal(observation, want["observation"])
        np.testing.assert_array_equal(reward, want["reward"])
        np.testing.assert_array_equal(terminated, want["terminated"])
        np.testing.assert_array_equal(truncated, want["truncated"])
        assert np.isfinite(observation).all()
        for name in ended:
            ended[name] += int(want[name].sum())
        if not want["over"].any():
            assert infos == {}
            continue
        about = infos["final_info"] if mode == "SameStep" else infos
        np.testing.assert_array_equal(about["nonfinite"], want["nonfinite"])
        np.testing.assert_array_equal(about["_nonfinite"], want["over"])
        if mode == "SameStep":
            np.testing.assert_array_equal(infos["_final_obs"], want["over"])
            np.testing.assert_array_equal(infos["_final_info"], want["over"])
            for lane in range(lanes):
                last = infos["final_obs"][lane]
                assert (last is None) == (not want["over"][lane])
                if last is not None:
                    np.testing.assert_array_equal(last, want["final"][lane])
    assert min(ended.values()) > 3


def test_minor_vmap_gives_the_same_as_vmap() -> None:
    one, other = azjax.to_gymnasium(Scripted(4), 3), to_gymnasium(Scripted(4), 3)
    assert_equal_trees(one.reset(seed=1), other.reset(seed=1))
    actions = uniform_actions(one, 6)
    for x, y in zip(play(one, actions), play(other, actions), strict=True):
        assert_equal_trees(x[:4], y[:4])


# ---------------------------------------------------------------------------------------------------------------------
# Ends of episodes, by hand
# ---------------------------------------------------------------------------------------------------------------------


def test_the_same_step_returns_the_next_episode_and_the_true_last_observation() -> None:
    env = to_gymnasium(Scripted(3), 2)
    first, infos = env.reset(seed=0)
    assert infos == {}
    *_, (observation, reward, terminated, truncated, infos) = play(env, np.full((3, 2, 1), 0.5, np.float32))
    np.testing.assert_array_equal(terminated, [False, False])
    np.testing.assert_array_equal(truncated, [True, True])
    np.testing.assert_allclose(reward, 3 + first[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(observation[:, [0, 2]], 0.0)
    assert not np.isin(observation[:, 1], first[:, 1]).any()
    np.testing.assert_allclose(
        np.stack(infos["final_obs"]), np.stack([[3, tag, 1.5] for tag in first[:, 1]]), rtol=1e-6
    )


def test_the_next_step_resets_and_ignores_its_action() -> None:
    env = to_gymnasium(Scripted(2), 1, autoreset_mode="NextStep")
    first, _ = env.reset(seed=0)
    steps = play(env, np.ones((4, 1, 1), np.float32))
    np.testing.assert_allclose([step[0][0, 0] for step in steps], [1, 2, 0, 1])
    np.testing.assert_allclose([step[0][0, 2] for step in steps], [1, 2, 0, 1])
    np.testing.assert_allclose(steps[2][1], 0.0)
    np.testing.assert_array_equal([step[3][0] for step in steps], [False, True, False, False])
    assert steps[1][0][0, 1] == first[0, 1] != steps[2][0][0, 1]
    assert "final_obs" not in steps[1][4]


def test_without_autoreset_the_masked_lanes_are_reset_and_no_others() -> None:
    env = to_gymnasium(Scripted(9, terminate=(2, 3)), 16, autoreset_mode="Disabled")
    env.reset(seed=0)
    action = np.zeros((16, 1), np.float32)
    before, _, over, _, _ = play(env, [action] * 2)[-1]
    assert 1 < over.sum() < 16
    one = np.arange(16) == over.argmax()
    for options in ({"reset_mask": ~over}, {"reset_mask": one}):
        with pytest.raises(gymnasium.error.ResetNeeded, match="over"):
            env.step(action)
        env.reset(options=options)
    before, infos = env.reset(options={"reset_mask": ~over})
    with pytest.raises(gymnasium.error.ResetNeeded, match="over"):
        env.step(action)
    after, infos = env.reset(options={"reset_mask": over})
    assert infos == {}
    np.testing.assert_array_equal(after[~over], before[~over])
    np.testing.assert_array_equal(after[over, 0], 0.0)
    np.testing.assert_array_equal(env.step(action)[0][:, 0], after[:, 0] + 1)


def test_a_broken_lane_is_reported_and_its_nans_are_not_seen() -> None:
    """A NaN action breaks a lane as physics can; in the single environment the last finite observation stands in."""
    env = to_gymnasium(Scripted(100))
    env.reset(seed=0)
    before, *_, info = env.step(np.array([0.5], np.float32))
    assert info == {"nonfinite": False}
    observation, reward, terminated, truncated, info = env.step(np.array([np.nan], np.float32))
    np.testing.assert_array_equal(observation, before)
    assert (reward, terminated, truncated, info) == (0.0, False, True, {"nonfinite": True})


def test_a_single_environment_is_one_lane_without_autoreset() -> None:
    env = to_gymnasium(Corridor(9))
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, [1, 0, 0, 0, 0])
    assert info == {}
    steps = [env.step(2) for _ in range(4)]
    np.testing.assert_allclose([step[1] for step in steps], [-0.1, -0.1, -0.1, 0.9], rtol=1e-6)
    assert [step[2] for step in steps] == [False, False, False, True]
    assert [step[3] for step in steps] == [False] * 4
    assert type(steps[0][1]) is float
    np.testing.assert_array_equal(steps[-1][0], [0, 0, 0, 0, 1])
    with pytest.raises(gymnasium.error.ResetNeeded, match="over"):
        env.step(2)
    np.testing.assert_array_equal(env.reset()[0], [1, 0, 0, 0, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Spaces, seeds, errors
# ---------------------------------------------------------------------------------------------------------------------


class Mixed(Toy):
    """Observes whole numbers and a truth value beside a float."""

    observation_spec = {  # noqa: RUF012
        "count": jax.ShapeDtypeStruct((2,), jnp.int32),
        "flag": jax.ShapeDtypeStruct((), jnp.bool_),
        "image": float_spec(2, 3),
    }

    def reset(self, key: Any, params: Any) -> azjax.EnvState:
        return self.state(
            (), params, {"count": jnp.zeros(2, jnp.int32), "flag": jnp.asarray(False), "image": jnp.zeros((2, 3))}
        )

    def step(self, state: azjax.EnvState, action: Any) -> azjax.EnvState:
        count = state.observation["count"] + 1
        return self.state((), (), {"count": count, "flag": count[0] > 1, "image": jnp.full((2, 3), action[0])})


def test_spaces() -> None:
    env = to_gymnasium(Mixed(), 4)
    spaces = env.single_observation_space.spaces
    assert spaces["image"] == gymnasium.spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
    assert spaces["count"] == gymnasium.spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32)
    assert (spaces["flag"].dtype, spaces["flag"].shape) == (np.bool_, ())
    assert env.single_action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (4, 1), np.float32)
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    observation, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert to_gymnasium(Corridor(), 4).action_space == gymnasium.spaces.MultiDiscrete([3] * 4)
    assert to_gymnasium(Corridor()).action_space == gymnasium.spaces.Discrete(3)


def test_final_observations_of_dicts_are_dicts() -> None:
    env = to_gymnasium(DictTask(), 3)
    first, _ = env.reset(seed=0)
    *_, infos = env.step(np.zeros((3, 1), np.float32))
    for lane in range(3):
        assert_equal_trees(dict(infos["final_obs"][lane]), {name: leaf[lane] for name, leaf in first.items()})


def episodes(env: Any, seed: int | None, steps: int = 6) -> np.ndarray:
    observations = [env.reset(seed=seed)[0]]
    observations += [step[0] for step in play(env, np.zeros((steps, 3, 1), np.float32))]
    return np.stack(observations)


def test_a_seed_gives_the_same_episodes_later_ones_included() -> None:
    env = to_gymnasium(Scripted(2), 3, seed=7)
    by_constructor = episodes(env, None)
    assert len(np.unique(by_constructor[:, :, 1])) == 3 * 4  # four episodes a lane, each with a tag of its own
    going_on = episodes(env, None)
    assert not np.isin(going_on[:, :, 1], by_constructor[:, :, 1]).any()
    by_reset = episodes(env, 7)
    np.testing.assert_array_equal(by_reset, by_constructor)
    np.testing.assert_array_equal(episodes(env, None), going_on)
    np.testing.assert_array_equal(episodes(to_gymnasium(Scripted(2), 3), 7), by_constructor)
    assert not np.isin(episodes(env, 8)[:, :, 1], by_constructor[:, :, 1]).any()
    assert not np.isin(episodes(to_gymnasium(Scripted(2), 3), None)[:, :, 1], by_constructor[:, :, 1]).any()
    assert env.np_random_seed == 8


def test_a_mask_and_a_seed_together_reset_the_masked_lanes_from_that_seed() -> None:
    env = to_gymnasium(Scripted(9), 3)
    before, _ = env.reset(seed=0)
    after, _ = env.reset(seed=1, options={"reset_mask": np.array([False, True, True])})
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1:], to_gymnasium(Scripted(9), 3).reset(seed=1)[0][:2])


def test_the_environment_is_traced_once() -> None:
    class Counted(Scripted):
        traces = 0

        def step(self, state: Any, action: Any) -> Any:
            type(self).traces += 1
            return super().step(state, action)

    env = to_gymnasium(Counted(3), 2)
    env.reset(seed=0)
    play(env, np.zeros((40, 2, 1), np.float32))
    assert Counted.traces == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lanes": 0}, "lanes is 0"),
        ({"action_repeat": 0}, "action_repeat is 0"),
        ({"seed": -1}, "seed is -1"),
        (
            {"lanes": 2, "autoreset_mode": "Sometimes"},
            "'Sometimes'; it must be one of SameStep, NextStep, Disabled",
        ),
        ({"autoreset_mode": "NextStep"}, "give lanes"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(azjax.config.ConfigError, match=message):
        to_gymnasium(Target(), **arguments)


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'hopper'"):
        azjax.to_gymnasium("hoper", 2)


def test_wrong_calls_are_told() -> None:
    env = to_gymnasium(Corridor(), 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(np.zeros(2, int))
    env.reset()
    with pytest.raises(ValueError, match=r"actions have shape \(3,\); the action space has \(2,\)"):
        env.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="outside"):
        env.step(np.array([0, 3]))
    with pytest.raises(ValueError, match="unknown reset option"):
        env.reset(options={"mask": 1})
    for mask in ([True, False], np.ones(3, bool), np.ones(2)):
        with pytest.raises(ValueError, match="reset_mask must be a NumPy array of 2 booleans"):
            env.reset(options={"reset_mask": mask})
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(np.zeros(2, int))):
        with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="closed"):
            call()
    single = to_gymnasium(Target())
    single.reset()
    with pytest.raises(ValueError, match="shape"):
        single.step(np.zeros(2, np.float32))


def test_a_missing_gymnasium_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "gymnasium":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "azjax.envs.gymnasium")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        azjax.config.ConfigError, match=r"^gymnasium is not installed; pip install 'azjax\[gymnasium\]'"
    ):
        to_gymnasium(Target(), 2)


def test_importing_azjax_imports_neither_gymnasium_nor_playground() -> None:
    code = "import sys, azjax; print([m for m in ('gymnasium', 'mujoco_playground', 'warp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------------------------------------------------------------
# Policies of azjax, trainers of others
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> test_cli.Run:
    return test_cli.train_once(tmp_path_factory)


def test_a_trained_policy_gets_the_return_that_the_evaluator_gives_it(run: test_cli.Run) -> None:
    """From the same initial states, through steps from the host and through the evaluator's one program."""
    lanes, key = 6, jax.random.key(2)
    policy = load_policy(run.folder)
    evaluate = azjax.make_evaluator(policy.env, policy.act, lanes=lanes, vectorize=plain_vmap)
    expected = jax.jit(evaluate)(policy.params, key)
    env = RecordEpisodeStatistics(to_gymnasium(policy.env, lanes, autoreset_mode="NextStep"))
    env.reset(seed=0)
    env.unwrapped._lanes.start(jax.random.split(jax.random.fold_in(key, azjax.evaluation._EVALUATION))[0])
    observation, _ = env.reset()
    act = jax.jit(jax.vmap(lambda o: policy.act(policy.params, o, (), key, deterministic=True)[0]))
    returns, lengths = np.zeros(lanes), np.zeros(lanes)
    while not lengths.all():
        observation, *_, infos = env.step(np.asarray(act(observation)))
        if "episode" in infos:
            new = infos["_episode"] & (lengths == 0)
            returns, lengths = (
                np.where(new, infos["episode"]["r"], returns),
                np.where(new, infos["episode"]["l"], lengths),
            )
    np.testing.assert_array_equal(lengths, expected.length)
    np.testing.assert_allclose(returns, expected.episode_return, rtol=1e-4)
    assert len(set(lengths)) > 1


def test_the_example_of_the_docs_runs(run: test_cli.Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (code,) = test_docs.blocks(GUIDE.read_text(), "python")
    assert '"runs/cheetah"' in code
    exec(compile(code.replace('"runs/cheetah"', repr(str(run.folder))), str(GUIDE), "exec"), {})
    assert capsys.readouterr().out.startswith("mean return ")


def test_lanes_can_be_stepped_without_gymnasium() -> None:
    lanes = SteppedLanes(Target(), 5, vectorize=plain_vmap, action_repeat=1, autoreset="SameStep")
    lanes.start(jax.random.key(0))
    observation = lanes.reset()
    output, final = lanes.step(0.5 * observation)
    np.testing.assert_allclose(output.reward, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(final, observation)


def test_a_trainer_of_others_learns_through_the_bridge(tmp_path: Path) -> None:
    """PPO of skrl on ``Target``, in a process of its own, since it prints and has global settings; 0 earns 0.92."""
    pytest.importorskip("skrl")
    script = Path(__file__).parent / "train_with_skrl.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    before, after = (float(line.split()[-1]) for line in result.stdout.splitlines() if line.startswith("mean reward"))
    assert before < 0.9
    assert after > 0.99
