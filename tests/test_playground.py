"""MuJoCo Playground: its names and errors without it, the adapter on a stand-in, and the real suite where installed."""

import builtins
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from toy_envs import idle

import azjax
from azjax.cli import main
from azjax.config import ConfigError
from azjax.envs import plain_vmap
from azjax.envs.compat import SHALLOW
from azjax.envs.lanes import batch_first, reset_lanes, step_lanes
from azjax.envs.playground import DM_CONTROL, PREFIX, SUITES, TASKS, PlaygroundEnvironment
from azjax.runs import load_policy

installed = pytest.mark.skipif(
    importlib.util.find_spec("mujoco_playground") is None, reason="needs MuJoCo Playground: azjax[playground]"
)
vectorizers = pytest.mark.parametrize("vectorize", [plain_vmap, azjax.minor_vmap], ids=["plain", "minor"])

URL = "https://github.com/google-deepmind/mujoco_menagerie.git"
PENDULUM = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1" contype="0" conaffinity="0"/>
    <body name="arm" pos="0 0 1">
      <joint name="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 .5" size=".05" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" gear="5"/></actuator>
</mujoco>
"""


@flax.struct.dataclass
class State:
    """Shaped like ``mujoco_playground.State``."""

    data: Any
    obs: Any
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, Any]
    info: dict[str, Any]


class Pendulum:
    """Shaped like a ``mujoco_playground.MjxEnv``: ends when the arm hangs down; draws noise from a key in its info."""

    action_size = 1
    dt = 0.02

    def __init__(self, impl: str = "jax", xml: str = PENDULUM) -> None:
        self.mj_model = mujoco.MjModel.from_xml_string(xml)
        self.mj_model.opt.timestep = self.dt
        self.mjx_model = mjx.put_model(self.mj_model, impl="jax")
        if impl != "jax":
            self.mjx_model = types.SimpleNamespace(impl=types.SimpleNamespace(value=impl))

    def _observe(self, data: Any, noise: jax.Array) -> dict[str, jax.Array]:
        exact = jnp.concatenate([data.qpos, data.qvel])
        return {"state": exact + noise, "privileged_state": exact}

    def reset(self, rng: jax.Array) -> State:
        rng, key = jax.random.split(rng)
        data = mjx.make_data(self.mj_model, impl="jax")
        data = mjx.forward(self.mjx_model, data.replace(qpos=0.1 * jax.random.normal(key, (self.mj_model.nq,))))
        reward, done = jnp.zeros(2)
        return State(data, self._observe(data, jnp.zeros(())), reward, done, {"height": 0.0}, {"rng": rng, "step": 0})

    def step(self, state: State, action: jax.Array) -> State:
        data = mjx.step(self.mjx_model, state.data.replace(ctrl=action))
        state.info["rng"], key = jax.random.split(state.info["rng"])
        state.info["step"] += 1
        height = jnp.cos(data.qpos[0])
        state.metrics["height"] = height
        done = jnp.isnan(data.qpos).any() | (height < 0)
        observation = self._observe(data, 0.01 * jax.random.normal(key))
        return state.replace(data=data, obs=observation, reward=height, done=done.astype(float))


@pytest.fixture(scope="module")
def pendulum() -> azjax.Environment:
    return azjax.make_env(Pendulum(), episode_length=50)


def lanes_of(env: azjax.Environment, vectorize: Any, lanes: int, steps: int) -> list[Any]:
    """Fresh lanes, stepped with random actions, without resets; ``[reset, step, ...]``."""
    keys = jax.random.split(jax.random.key(0), lanes)
    actions = jax.random.uniform(jax.random.key(1), (steps, lanes, env.action_spec.size), minval=-1.0, maxval=1.0)

    @jax.jit
    def program(keys: Any, actions: Any) -> Any:
        states = reset_lanes(env, vectorize, keys)

        def step(carry: Any, action: Any) -> Any:
            result = step_lanes(env, vectorize, *carry, action, limit=1000)
            return (result.state, result.elapsed), result

        return states, jax.lax.scan(step, (states, jnp.zeros(lanes, jnp.int32)), actions)[1]

    states, results = program(keys, actions)
    return [states, *(jax.tree.map(lambda x, t=t: x[t], results) for t in range(steps))]


# ---------------------------------------------------------------------------------------------------------------------
# The adapter on a stand-in
# ---------------------------------------------------------------------------------------------------------------------


def test_an_object_of_playground_is_adapted(pendulum: azjax.Environment) -> None:
    assert isinstance(pendulum, PlaygroundEnvironment)
    assert isinstance(pendulum, azjax.Environment)
    assert (pendulum.name, pendulum.backend, pendulum.episode_length) == ("Pendulum", "mjx", 50)
    assert pendulum.action_spec == azjax.Box(1)
    assert {name: leaf.shape for name, leaf in pendulum.observation_spec.items()} == {
        "state": (2,),
        "privileged_state": (2,),
    }
    assert pendulum.dt == 0.02


@vectorizers
def test_lanes_of_playground_step_end_and_keep_keys_of_their_own(pendulum: azjax.Environment, vectorize: Any) -> None:
    first, *steps = lanes_of(pendulum, vectorize, lanes=4, steps=60)
    data = jax.random.key_data
    assert len({tuple(data(key).tolist()) for key in first.inner.info["rng"]}) == 4
    assert len({tuple(data(key).tolist()) for key in steps[-1].state.inner.info["rng"]}) == 4
    noise = np.asarray(steps[0].final_observation["state"] - steps[0].final_observation["privileged_state"])
    assert len(np.unique(noise[:, 0])) == 4
    np.testing.assert_array_equal(steps[-1].state.inner.info["step"], 60)
    terminated = np.stack([step.terminated for step in steps])
    angle = np.stack([step.final_observation["privileged_state"][:, 0] for step in steps])
    np.testing.assert_array_equal(terminated, np.cos(angle) < 0)
    assert terminated.any()
    assert not np.stack([step.truncated | step.nonfinite for step in steps]).any()


def test_playgrounds_end_by_nan_is_a_broken_lane_and_no_termination(pendulum: azjax.Environment) -> None:
    """The reward is NaN then, so that it is seen even where the observation doesn't show it."""
    state = reset_lanes(pendulum, plain_vmap, jax.random.split(jax.random.key(0), 2))
    qpos = state.inner.data.qpos.at[0, 1].set(jnp.nan)
    broken = state.replace(inner=state.inner.replace(data=state.inner.data.replace(qpos=qpos)))
    result = step_lanes(pendulum, plain_vmap, broken, jnp.zeros(2, jnp.int32), jnp.zeros((2, 1)), limit=1000)
    np.testing.assert_array_equal(result.nonfinite, [False, True])
    np.testing.assert_array_equal(result.truncated, [False, True])
    np.testing.assert_array_equal(result.terminated, [False, False])
    assert np.isfinite(result.reward).all()
    after = jax.vmap(lambda inner: pendulum._state(inner, (), jnp.asarray(True)).reward, in_axes=-1)(broken.inner)
    np.testing.assert_array_equal(np.isnan(after), [False, True])


def test_the_scene_and_the_poses_are_those_of_mujoco(pendulum: azjax.Environment) -> None:
    scene = pendulum.scene()
    assert scene.links == ("arm",)
    assert [geom.kind for geom in scene.geoms] == ["plane", "capsule"]
    assert scene.dt == 0.02
    state = pendulum.reset(jax.random.key(0), ())
    position, quaternion = pendulum.poses(state)
    np.testing.assert_allclose(position, [[0, 0, 1]], atol=1e-6)
    data = mujoco.MjData(pendulum._env.mj_model)
    data.qpos = np.asarray(state.inner.data.qpos)
    mujoco.mj_kinematics(pendulum._env.mj_model, data)
    np.testing.assert_allclose(quaternion, data.xquat[1:], atol=1e-6)


def test_a_trainer_takes_it_and_episodes_end_at_the_time_limit_or_by_the_task(pendulum: azjax.Environment) -> None:
    trainer = azjax.make_trainer(pendulum, idle(), lanes=8, rollout_length=60, vectorize=plain_vmap)
    _, metrics = jax.jit(trainer.step)(trainer.init(jax.random.key(0)))
    rollout = metrics.learner["rollout"]
    assert rollout.terminated.any()
    assert int(metrics.episodes.ended) >= 8
    assert int(metrics.nonfinite_lanes) == 0


def test_other_implementations_and_randomisation_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'warp' implementation.*config_overrides=\{'impl': 'jax'\}"):
        azjax.make_env(Pendulum("warp"))
    with pytest.raises(ConfigError, match=r"Pendulum can't be randomised.*leave randomize out"):
        azjax.make_env(Pendulum(), randomize=True)


def barriers_in_reset(env: Any) -> int:
    adapted = azjax.make_env(env)
    return str(jax.make_jaxpr(lambda key: adapted.reset(key, ()))(jax.random.key(0))).count("optimization_barrier")


def test_deep_models_are_traced_with_barriers() -> None:
    link = '<body pos="0 0 .1"><joint axis="0 1 0"/><geom size=".02" contype="0" conaffinity="0"/>'
    arm = '<body name="arm" pos="0 0 1">'
    chain = PENDULUM.replace(arm, SHALLOW * link + arm).replace("</worldbody>", SHALLOW * "</body>" + "</worldbody>")
    assert barriers_in_reset(Pendulum()) == 0
    assert barriers_in_reset(Pendulum(xml=chain)) > SHALLOW


# ---------------------------------------------------------------------------------------------------------------------
# Names, and what is missing
# ---------------------------------------------------------------------------------------------------------------------


def test_tasks_are_listed_without_playground(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = "mujoco_playground" in sys.modules
    assert main(["envs", "--suite", "playground", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert list(facts) == [PREFIX + task for task in TASKS]
    assert facts["playground:CheetahRun"]["suite"] == DM_CONTROL
    assert facts["playground:CheetahRun"]["needs"] == ""
    assert "Menagerie" in facts["playground:Go1Getup"]["needs"]
    assert main(["envs", "--suite", "playground"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["environment", "suite", "needs", "preset"]
    assert [row.split()[0] for row in rows] == list(facts)
    assert ("mujoco_playground" in sys.modules) == loaded


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["playground:CheetaRun"], ["'playground:CheetaRun'", "did you mean 'playground:CheetahRun'", "--suite"]),
        (["playground:"], ["unknown environment 'playground:'", "azjax envs --suite playground"]),
        (["CheetahRun"], ["'CheetahRun'", "did you mean 'playground:CheetahRun'"]),
        (["playground:CheetahRun", "--backend", "spring"], ["no backend 'spring'", "it has: mjx"]),
    ],
)
def test_wrong_names_are_told_in_one_line(
    args: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("mujoco_playground", "MuJoCo Playground is not installed; pip install 'azjax[playground]'"),
        ("warp", "warp, which Playground needs, is not installed; pip install 'azjax[playground]'"),
    ],
)
def test_a_missing_playground_is_told_in_one_line(
    missing: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "mujoco_playground":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "playground:CheetahRun"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'playground:CheetahRun'" in line
    assert words in line
    assert list(tmp_path.iterdir()) == []


def fake_playground(monkeypatch: pytest.MonkeyPatch, menagerie: Path, load: Any) -> None:
    """A package in the place of ``mujoco_playground`` with as much of it as azjax touches."""
    package, source = types.ModuleType("mujoco_playground"), types.ModuleType("mujoco_playground._src")
    package.registry = types.SimpleNamespace(load=load)
    source.mjx_env = types.SimpleNamespace(MENAGERIE_PATH=menagerie, MENAGERIE_COMMIT_SHA="0123abc")
    monkeypatch.setitem(sys.modules, "mujoco_playground", package)
    monkeypatch.setitem(sys.modules, "mujoco_playground._src", source)


@pytest.mark.parametrize("task", [tasks[0] for suite, tasks in SUITES.items() if suite != DM_CONTROL])
def test_missing_robot_models_are_told_and_never_downloaded(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(task: str, config_overrides: Any) -> Any:
        loaded.append(task)
        return Pendulum()

    folder = tmp_path / "mujoco_menagerie"
    fake_playground(monkeypatch, folder, load)
    with pytest.raises(ConfigError) as error:
        azjax.make_env(PREFIX + task)
    for words in (
        PREFIX + task,
        "MuJoCo Menagerie",
        f"there is no {folder}",
        "git clone https://github.com/",
        "0123abc",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert loaded == []
    folder.mkdir()
    assert azjax.make_env(PREFIX + task).name == PREFIX + task
    assert loaded == [task]


def test_the_jax_implementation_is_asked_for_and_settings_override_the_tasks_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(task: str, config_overrides: Any) -> Any:
        asked.append((task, config_overrides))
        if "speed" in config_overrides:
            raise KeyError("Key 'speed' does not exist")
        if "bad" in config_overrides:
            raise ValueError("Error opening file 'x.obj'")
        return Pendulum(config_overrides["impl"])

    fake_playground(monkeypatch, tmp_path, load)
    env = azjax.make_env("playground:PointMass", episode_length=7, ctrl_dt=0.04)
    assert (env.name, env.backend, env.episode_length) == ("playground:PointMass", "mjx", 7)
    assert azjax.make_env("playground:PointMass").episode_length == 1000
    assert asked[0] == ("PointMass", {"impl": "jax", "ctrl_dt": 0.04})
    with pytest.raises(ConfigError, match=r"'playground:PointMass' does not take these settings.*speed"):
        azjax.make_env("playground:PointMass", speed=3)
    with pytest.raises(ConfigError, match="'playground:PointMass' can't be loaded: Error opening file"):
        azjax.make_env("playground:PointMass", bad=1)
    with pytest.raises(ConfigError, match="'warp' implementation"):
        azjax.make_env("playground:PointMass", impl="warp")


# ---------------------------------------------------------------------------------------------------------------------
# The real one
# ---------------------------------------------------------------------------------------------------------------------


def check_lanes(task: str, vectorize: Any, lanes: int = 3, steps: int = 5) -> None:
    env = azjax.make_env(PREFIX + task)
    first, *results = lanes_of(env, vectorize, lanes=lanes, steps=steps)
    starts = np.concatenate([np.ravel(x) for x in jax.tree.leaves(batch_first(first.observation))])
    assert np.isfinite(starts).all()
    for result in results:
        assert not result.nonfinite.any()
        for name, leaf in jax.tree_util.tree_leaves_with_path(result.final_observation):
            assert np.isfinite(leaf).all(), name
        assert np.isfinite(result.reward).all()
    spec = jax.tree.map(lambda leaf: (lanes, *leaf.shape), env.observation_spec)
    assert jax.tree.map(lambda leaf: leaf.shape, results[0].final_observation) == spec
    positions, rotations = env.poses(jax.tree.map(lambda x: x[..., 0], results[-1].state))
    assert positions.shape == (len(env.scene().links), 3)
    np.testing.assert_allclose(np.linalg.norm(rotations, axis=-1), 1.0, rtol=1e-4)


@installed
def test_the_list_of_tasks_is_that_of_the_installed_playground() -> None:
    from mujoco_playground import registry

    assert sorted(TASKS) == sorted(registry.ALL_ENVS)


@installed
@vectorizers
def test_cartpole_steps(vectorize: Any) -> None:
    check_lanes("CartpoleBalance", vectorize)


@installed
def test_a_setting_reaches_the_real_task() -> None:
    assert azjax.make_env("playground:CartpoleBalance", ctrl_dt=0.02).dt == 0.02
    with pytest.raises(ConfigError, match="does not take these settings"):
        azjax.make_env("playground:CartpoleBalance", sped=2.0)


@installed
@pytest.mark.slow
@vectorizers
@pytest.mark.parametrize("task", SUITES[DM_CONTROL])
def test_every_task_of_dm_control_steps_finitely(task: str, vectorize: Any) -> None:
    check_lanes(task, vectorize)


@installed
@pytest.mark.slow
def test_the_command_trains_evaluates_and_draws_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    args = ["--steps", "20000", "--lanes", "64", "--episode-length", "200", "--evaluations", "1", "--minibatches", "4"]
    assert main(["train", "playground:CartpoleBalance", *args, "--evaluation-episodes", "4", "--run", str(folder)]) == 0
    assert "playground:CartpoleBalance (mjx)" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env"] == "playground:CartpoleBalance"
    assert summary["evaluation"]["episodes"] == 4
    assert (folder / "replay.html").stat().st_size > 10_000
    assert "playground" in summary["versions"]
    assert load_policy(folder).env.name == "playground:CartpoleBalance"
    assert main(["evaluate", str(folder), "--episodes", "2", "--json"]) == 0
