"""azjax.runs.render: the episode that is chosen is the one that is shown, and the robot is in the picture."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import mujoco
import numpy as np
import pytest
import test_cli
import toy_envs
from PIL import Image

import azjax
from azjax.cli import main
from azjax.config import ConfigError
from azjax.envs import SUPPORTED
from azjax.envs.scene import Geom, Scene
from azjax.evaluation import Episodes
from azjax.runs import opengl, pictures, video
from azjax.runs.episodes import make_player, play_all, play_one
from azjax.runs.policy import load_policy
from azjax.runs.render import RenderOptions, choose, first_seconds, render_episode
from azjax.runs.replay import Motion

render_module = sys.modules["azjax.runs.render"]


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps a rendering in this process from changing how JAX is set up."""
    for name in ("split_host", "use_cache"):
        monkeypatch.setattr(render_module.machine, name, lambda *args: None)


@pytest.fixture(scope="session")
def driver() -> str:
    """An OpenGL driver; without one, the tests that draw are left out."""
    try:
        return opengl.find_driver()
    except ConfigError as error:
        pytest.skip(f"no OpenGL driver here: {error}")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> test_cli.Run:
    return test_cli.train_once(tmp_path_factory)


# ---------------------------------------------------------------------------------------------------------------------
# Which episode
# ---------------------------------------------------------------------------------------------------------------------


def episodes_of(returns: list[float], broken: list[int] | None = None) -> Episodes:
    nonfinite = np.zeros(len(returns), bool)
    nonfinite[broken or []] = True
    length = np.full(len(returns), 10, np.int32)
    return Episodes(np.array(returns, np.float32), length, ~nonfinite, nonfinite, None)


@pytest.mark.parametrize(
    ("returns", "broken", "select", "number"),
    [
        ([3.0, 1.0, 2.0], [], "best", 0),
        ([3.0, 1.0, 2.0], [], "worst", 1),
        ([3.0, 1.0, 2.0], [], "median", 2),
        ([3.0, 1.0, 2.0, 4.0], [], "median", 2),  # the lower of the two in the middle
        ([5.0], [], "median", 0),
        ([9.0, 1.0, 2.0, 3.0], [0], "best", 3),
        ([-9.0, 1.0, 2.0, 3.0], [0], "worst", 1),
        ([9.0, 1.0, 2.0, 3.0], [0], "median", 2),
        ([float("nan"), 1.0, float("inf"), 3.0], [], "best", 3),
    ],
)
def test_the_episode_is_chosen_by_its_return(returns: list[float], broken: list[int], select: str, number: int) -> None:
    assert choose(episodes_of(returns, broken), select) == number


def test_there_is_no_choice_among_episodes_that_all_broke() -> None:
    with pytest.raises(ConfigError, match="physics broke in every episode; --select first"):
        choose(episodes_of([1.0, 2.0], [0, 1]), "best")


@pytest.fixture(scope="module")
def played(run: test_cli.Run) -> tuple[Any, Any, Episodes]:
    """The policy of a run, a program that plays nine episodes, and what it played."""
    policy = load_policy(run.folder)
    player = make_player(policy, episodes=9, seed=4, record=policy.env.poses)
    return policy, player, play_all(player, 9)


def test_an_episode_played_again_is_the_same_bit_for_bit(played: tuple[Any, Any, Episodes]) -> None:
    _, player, episodes = played
    assert len(np.unique(episodes.episode_return)) > 4
    for number in range(9):
        again = play_one(player, number)
        assert again.episode_return.shape == (1,)
        assert again.episode_return[0] == episodes.episode_return[number]
        assert again.length[0] == episodes.length[number]
        assert again.frames.reward[: again.length[0] + 1].sum() == pytest.approx(again.episode_return[0], rel=1e-5)


@pytest.mark.parametrize("select", ["best", "worst", "median"])
def test_what_is_shown_is_what_was_chosen(
    run: test_cli.Run,
    played: tuple[Any, Any, Episodes],
    tmp_path: Path,
    quiet_machine: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    select: str,
) -> None:
    _, player, episodes = played
    monkeypatch.setattr(render_module, "make_player", lambda *args, **rest: player)
    output = tmp_path / "page.html"
    args = ["render", str(run.folder), "-o", str(output), "--select", select, "--episodes", "9", "--seed", "4"]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    wanted = {"best": np.max, "worst": np.min, "median": np.median}[select](episodes.episode_return)
    (number,) = np.flatnonzero(episodes.episode_return == wanted)[:1]
    shown = (
        f"inverted_pendulum (spring), ppo: return {wanted:,.1f}, length {episodes.length[number]:,}; "
        f"episode {number} ({select} of 9), seed 4, deterministic"
    )
    assert shown in captured.out
    assert str(output) in captured.out
    page = output.read_text()
    assert f"<title>{shown}" in page
    assert f'"steps":{episodes.length[number] + 1}' in page


def test_the_command_writes_a_page_into_the_folder_and_never_over_another(run: test_cli.Run, tmp_path: Path) -> None:
    for name in ("policy.json", "policy.npz"):  # such as the folder of a run's best policy
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    (tmp_path / "render.html").write_text("mine")
    flags = ["--select", "first", "--seconds", "0.3", "--stochastic"]
    result = test_cli.azjax_command("render", ".", *flags, cache=run.cache, cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.err == ""
    assert "compiling" in result.out
    assert "render-2.html" in result.out
    assert "episode 0 (the first), seed 0, stochastic" in result.out
    assert (tmp_path / "render.html").read_text() == "mine"
    policy = load_policy(tmp_path)
    (steps,) = re.findall(r'"steps":(\d+)', (tmp_path / "render-2.html").read_text())
    assert int(steps) <= int(0.3 / policy.env.dt) + 1


def test_an_episode_can_be_cut_short() -> None:
    motion = Motion(np.zeros((11, 2, 3)), np.zeros((11, 2, 4)), np.arange(11), True, 0.1)
    for seconds, frames in ((0.05, 1), (0.1, 2), (0.3, 4), (0.99, 10)):
        cut = first_seconds(motion, seconds)
        assert [len(x) for x in cut[:3]] == [frames] * 3
        assert not cut.terminated
    assert first_seconds(motion, 1.0) is motion
    assert first_seconds(motion, 1e9) is motion


def test_an_environment_without_a_model_is_not_drawn(
    run: test_cli.Run, tmp_path: Path, quiet_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(run.folder)
    bare = policy._replace(env=azjax.make_env(toy_envs.BareBrax()))
    monkeypatch.setattr(render_module, "load_policy", lambda folder: bare)
    monkeypatch.setattr(render_module, "find_driver", lambda: "egl")
    for name in ("x.html", "x.gif"):
        with pytest.raises(ConfigError, match="barebrax has no MuJoCo model, so there is nothing to draw"):
            render_episode(RenderOptions(run.folder, tmp_path / name))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Files of pictures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "dt", "suffix", "settings", "count", "fps"),
    [
        (101, 0.05, ".mp4", {}, 101, 20.0),
        (101, 0.05, ".gif", {}, 101, 20.0),
        (101, 0.008, ".mp4", {}, 35, 1 / 0.024),  # every third
        (101, 0.02, ".mp4", {}, 101, 50.0),
        (101, 0.02, ".gif", {}, 51, 25.0),
        (101, 0.05, ".mp4", {"speed": 0.5}, 101, 10.0),
        (101, 0.05, ".mp4", {"speed": 4.0}, 51, 40.0),
        (101, 0.05, ".mp4", {"fps": 60.0}, 301, 60.0),
        (101, 0.05, ".mp4", {"fps": 10.0, "speed": 2.0}, 26, 10.0),
        (1, 0.05, ".gif", {}, 1, 20.0),
    ],
)
def test_pictures_are_spread_over_the_time_that_passes(
    frames: int, dt: float, suffix: str, settings: dict[str, float], count: int, fps: float
) -> None:
    indices, rate = video.schedule(frames, dt, suffix=suffix, **settings)
    assert (len(indices), rate) == (count, pytest.approx(fps))
    assert (indices[0], indices[-1]) == (0, frames - 1)


@hypothesis.given(
    frames=st.integers(1, 2000),
    dt=st.floats(0.001, 0.2),
    suffix=st.sampled_from([".gif", ".mp4"]),
    fps=st.none() | st.floats(0.5, 50.0),
    speed=st.floats(0.05, 20.0),
)
def test_a_schedule_keeps_time(frames: int, dt: float, suffix: str, fps: float | None, speed: float) -> None:
    hypothesis.assume(frames * dt / speed * (fps or 50.0) < 1e5)
    indices, rate = video.schedule(frames, dt, suffix=suffix, fps=fps, speed=speed)
    assert 0 < rate <= video.fastest(suffix)
    assert (indices[0], indices[-1]) == (0, frames - 1)
    assert (np.diff(indices) >= 0).all()
    shown_at = np.arange(len(indices)) / rate * speed
    assert np.abs(indices[:-1] * dt - shown_at[:-1]).max(initial=0.0) <= dt / 2 + 1e-9
    assert shown_at[-1] - (frames - 1) * dt < speed / rate + 1e-6


@hypothesis.given(count=st.integers(1, 500), fps=st.floats(0.5, 50.0))
def test_a_gif_loses_no_time_to_rounding(count: int, fps: float) -> None:
    delays = video.delays(count, fps)
    assert len(delays) == count
    assert all(delay % 10 == 0 and delay >= 20 for delay in delays)
    assert abs(sum(delays) - 1000 * count / fps) <= 5 + 1e-6


def coloured(count: int, width: int, height: int) -> list[np.ndarray]:
    """A white square that moves over a coloured ground."""
    result = []
    for number in range(count):
        picture = np.full((height, width, 3), (40, 120, 200), np.uint8)
        picture[10:20, 2 * number : 2 * number + 10] = 255
        result.append(picture)
    return result


def test_a_gif_holds_the_pictures(tmp_path: Path) -> None:
    frames = coloured(9, 51, 33)
    video.write_gif(tmp_path / "x.gif", iter(frames), frames[::4], count=9, fps=30.0, title="return 1.0")
    with Image.open(tmp_path / "x.gif") as image:
        assert (image.size, image.n_frames, image.info["loop"]) == ((51, 33), 9, 0)
        assert image.info["comment"] == b"return 1.0"
        durations = []
        for number, frame in enumerate(frames):
            image.seek(number)
            durations.append(image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB"), int) - frame).max() <= 4
    assert (sum(durations), set(durations)) == (300, {30, 40})


def decoded(path: Path, width: int, height: int) -> tuple[np.ndarray, str]:
    """The pictures of a film, and what ffmpeg says of it."""
    pytest.importorskip("imageio_ffmpeg")
    command = [video.find_encoder(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3).astype(int), done.stderr.decode()


def test_an_mp4_holds_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    frames = coloured(12, 50, 34)
    path = tmp_path / "a:b.mp4"  # which is no protocol
    video.write_mp4(path, iter(frames), size=(50, 34), fps=24.0, title="return 1.0")
    found, facts = decoded(path, 50, 34)
    for fact in ("Video: h264", "yuv420p", "50x34", "24 fps", "Duration: 00:00:00.50", ": return 1.0"):
        assert fact in facts
    assert len(found) == 12
    for picture, wanted in zip(found, frames, strict=True):
        assert np.abs(picture - wanted).mean() < 6
        assert abs(picture[15].sum(axis=-1).argmax() - wanted[15].sum(axis=-1).argmax()) <= 8


def test_without_ffmpeg_the_mend_is_named(
    run: test_cli.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["render", str(run.folder), "-o", str(tmp_path / "x.mp4")]) == 2
    err = capsys.readouterr().err
    assert 'pip install "azjax[video]"' in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failing_ffmpeg_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(ConfigError, match=r"ffmpeg can't write \.mp4: \S") as caught:
        video.write_mp4(tmp_path / "no" / "x.mp4", coloured(3, 16, 16), size=(16, 16), fps=24.0, title="")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Drivers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What goes wrong with each driver; to be changed by the test."""
    faults: dict[str, str | None] = {"egl": "no library", "osmesa": "no such file", "glfw": "no screen"}
    monkeypatch.setattr(opengl, "fault_of", lambda name: faults[name])
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    return faults


def test_egl_is_tried_before_osmesa(faults: dict[str, str | None]) -> None:
    faults["osmesa"] = None
    assert opengl.find_driver() == "osmesa"
    faults["egl"] = None
    assert opengl.find_driver() == "egl"
    assert "MUJOCO_GL" not in os.environ


def test_without_a_driver_the_message_says_what_to_install(faults: dict[str, str | None]) -> None:
    with pytest.raises(ConfigError) as caught:
        opengl.find_driver()
    message = str(caught.value)
    for fragment in ("egl (no library)", "osmesa (no such file)", "libegl1", "libosmesa6", ".html"):
        assert fragment in message
    assert "\n" not in message


def test_the_users_driver_is_taken_as_it_is(faults: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    faults |= {"egl": None, "glfw": None}
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert opengl.find_driver() == "glfw"
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ConfigError, match=r"MUJOCO_GL is 'osmesa', which draws nothing here: no such file; unset it"):
        opengl.find_driver()


def test_a_setting_with_which_mujoco_cannot_be_imported_is_one_line(run: test_cli.Run, tmp_path: Path) -> None:
    for name in ("x.html", "x.gif"):
        result = test_cli.azjax_command(
            "render", str(run.folder), "-o", name, cache=run.cache, cwd=tmp_path, MUJOCO_GL="direct3d"
        )
        test_cli.complains(result, ["MUJOCO_GL", "direct3d", "unset it"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["direct3d", "off"])
def test_a_driver_that_does_not_draw_is_found_out_in_another_process(setting: str) -> None:
    reason = opengl.fault_of(setting)
    assert reason
    assert "\n" not in reason


# ---------------------------------------------------------------------------------------------------------------------
# Poses and cameras
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def env_of(name: str) -> Any:
    return azjax.make_env(name, SUPPORTED[name][-1])


def moved(model: Any, seed: int) -> Any:
    """The data of a model in a pose drawn at random, by MuJoCo's own kinematics."""
    data = mujoco.MjData(model)
    rng = np.random.default_rng(seed)
    mujoco.mj_integratePos(model, data.qpos, rng.uniform(-1, 1, model.nv), 1.0)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    return data


def motion_of(datas: list[Any], dt: float = 0.05) -> Motion:
    positions, rotations = (np.stack([getattr(d, field)[1:] for d in datas]) for field in ("xpos", "xquat"))
    return Motion(positions, rotations, np.zeros(len(datas)), False, dt)


def resting(name: str, frames: int = 1, speed: float = 0.0) -> Motion:
    """A robot in the pose of its model that glides along x, in metres a frame."""
    model = env_of(name).model()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    motion = motion_of([data] * frames)
    along = np.arange(frames)[:, None, None] * np.array([speed, 0.0, 0.0])
    return motion._replace(positions=motion.positions + along)


ANYWHERE = pictures.View(np.zeros(3), np.array([0.0, -3.0, 1.0]), np.eye(3), 45.0)


@pytest.mark.parametrize("name", ["ant", "humanoid", "pusher", "reacher"])
def test_shapes_are_drawn_where_mujocos_kinematics_has_them(name: str) -> None:
    env = env_of(name)
    model, scene = env.model(), env.scene()
    wanted = moved(model, 1)
    drawn = pictures.build_model(scene, 64, 48, 1.0)
    data = mujoco.MjData(drawn)
    lengths = np.random.default_rng(2).uniform(0.5, 2, (model.nbody - 1, 1))
    pictures.place(drawn, data, wanted.xpos[1:], lengths * wanted.xquat[1:], ANYWHERE)
    visible = [g for g in range(model.ngeom) if model.geom_group[g] <= 2 and model.geom_rgba[g, 3] > 0]
    shapes = pictures.carried_shapes(model, motion_of([wanted])._replace(rotations=(lengths * wanted.xquat[1:])[None]))
    carried = (model.geom_bodyid > 0) & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)
    np.testing.assert_allclose(shapes.centres[0], wanted.geom_xpos[carried], atol=1e-9)
    assert len(visible) == drawn.ngeom == len(scene.geoms) > 2
    # MuJoCo sorts shapes by body, in both models.
    np.testing.assert_allclose(data.geom_xpos, wanted.geom_xpos[visible], atol=1e-6)
    for own, theirs in zip(data.geom_xmat, wanted.geom_xmat[visible], strict=True):
        axes = own.reshape(3, 3).T @ theirs.reshape(3, 3)
        assert abs(axes[2, 2]) == pytest.approx(1.0, abs=1e-5)  # capsules look alike turned about their axis
    colours = sorted(geom.rgba for geom in scene.geoms if geom.kind != "plane")
    shown = sorted(map(tuple, drawn.geom_rgba[drawn.geom_type != mujoco.mjtGeom.mjGEOM_PLANE].tolist()))
    np.testing.assert_allclose(shown, colours, atol=1e-6)
    assert (drawn.geom_size[drawn.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, :2] == 0).all()
    assert (drawn.vis.global_.offwidth, drawn.vis.global_.offheight) == (64, 48)


@pytest.mark.parametrize("name", ["ant", "humanoid", "swimmer", "walker2d"])
def test_the_models_own_cameras_look_as_mujoco_has_them(name: str) -> None:
    env = env_of(name)
    model = env.model()
    datas = [moved(model, seed) for seed in range(3)]
    motion = motion_of(datas)
    motion = motion._replace(rotations=-2.0 * motion.rotations)
    drawn = pictures.build_model(env.scene(), 64, 48, 1.0)
    placed = mujoco.MjData(drawn)
    for index in range(model.ncam):
        camera = pictures.make_camera(model, str(index), motion, 1.0)
        for frame in (2, 0, 1):
            view = camera.view(frame)
            pictures.place(drawn, placed, motion.positions[frame], motion.rotations[frame], view)
            for position, rotation in ((view.position, view.rotation), (placed.cam_xpos[0], placed.cam_xmat[0])):
                np.testing.assert_allclose(position, datas[frame].cam_xpos[index], atol=1e-9)
                np.testing.assert_allclose(np.ravel(rotation), datas[frame].cam_xmat[index], atol=1e-9)
            assert drawn.cam_fovy[0] == view.fovy == model.cam_fovy[index]


def test_a_camera_is_found_by_name_or_number_and_a_wrong_one_lists_them() -> None:
    ant, pendulum = env_of("ant").model(), env_of("inverted_pendulum").model()
    assert pictures.find_camera(ant, "track") is None
    assert pictures.find_camera(ant, "0") == 0
    two = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><camera name='side'/><camera/><body><geom size='1'/></body></worldbody></mujoco>"
    )
    assert (pictures.find_camera(two, "side"), pictures.find_camera(two, "1")) == (0, 1)
    for wrong in ("left", "2", "-1", ""):
        with pytest.raises(ConfigError, match=rf"no camera '{wrong}'; there is 'track'.* own: 0 \('side'\), 1$"):
            pictures.find_camera(two, wrong)
    with pytest.raises(ConfigError, match="none of its own"):
        pictures.find_camera(pendulum, "side")


def test_a_smoothed_path_does_not_lag() -> None:
    straight = np.outer(np.arange(50.0), [1.0, -2.0, 0.5])
    for window in (0, 1, 2, 7, 20, 1000):
        np.testing.assert_allclose(pictures.smoothed(straight, window), straight, atol=1e-9)
    wave = straight + np.sin(np.arange(50.0) * 2 * np.pi / 10)[:, None]
    inside = slice(10, -10)  # at its ends a path keeps its points
    assert np.abs(pictures.smoothed(wave, 20) - straight)[inside].max() < np.abs(wave - straight).max() / 10
    np.testing.assert_allclose(pictures.smoothed(wave[:1], 20), wave[:1])


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(seed=st.integers(0, 10_000), aspect=st.floats(0.4, 3.0), speed=st.floats(0.0, 20.0))
@pytest.mark.parametrize("name", ["ant", "humanoid", "hopper"])
def test_the_tracking_camera_never_loses_the_robot(name: str, seed: int, aspect: float, speed: float) -> None:
    """A sphere around every shape lies inside the four planes of the picture's edges, in every frame."""
    model = env_of(name).model()
    rng = np.random.default_rng(seed)
    heading = rng.uniform(0, 2 * np.pi)
    datas = [moved(model, int(s)) for s in rng.integers(0, 1000, 4) for _ in range(10)]
    way = np.outer(np.arange(40) * 0.05 * speed, [np.cos(heading), np.sin(heading), 0.0])
    motion = motion_of(datas)
    motion = motion._replace(positions=motion.positions + way[:, None])
    camera = pictures.make_camera(model, "track", motion, aspect)
    shapes = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    for frame, data in enumerate(datas):
        view = camera.view(frame)
        right, up, back = ((data.geom_xpos[shapes] + way[frame] - view.position) @ view.rotation).T
        vertical = np.radians(view.fovy) / 2
        for offset, half in ((up, vertical), (right, np.arctan(np.tan(vertical) * aspect))):
            room = -back * np.sin(half) - np.abs(offset) * np.cos(half)
            assert (room >= model.geom_rbound[shapes]).all()


def test_a_model_whose_bodies_have_no_shapes_is_not_drawn() -> None:
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom size='1'/><body><inertial mass='1' pos='0 0 0' diaginertia='1 1 1'/>"
        "<freejoint/></body></worldbody></mujoco>"
    )
    motion = Motion(np.zeros((2, 1, 3)), np.tile([1.0, 0.0, 0.0, 0.0], (2, 1, 1)), np.zeros(2), False, 0.1)
    with pytest.raises(ConfigError, match="have no shapes"):
        pictures.make_camera(model, "track", motion, 1.0)


def test_the_tracking_camera_stands_beside_the_path() -> None:
    model = env_of("humanoid").model()
    standing = resting("humanoid", 50)
    for degrees in (0.0, 90.0, 200.0):
        direction = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0])
        way = np.outer(np.linspace(0, 30, 50), direction)
        camera = pictures.make_camera(model, "track", standing._replace(positions=standing.positions + way[:, None]), 1)
        views = [camera.view(frame) for frame in (0, 20, 49)]
        for view in views:
            np.testing.assert_allclose(view.rotation.T @ view.rotation, np.eye(3), atol=1e-9)
            assert np.linalg.det(view.rotation) == pytest.approx(1.0)
            right, up, back = view.rotation.T
            assert right @ direction == pytest.approx(np.cos(np.radians(25.0)))  # it walks to the right
            assert back @ direction > 0.3  # and is seen from the front
            assert up[2] > 0.9
        assert views[2].position - views[0].position == pytest.approx(way[49], abs=1e-6)


def test_the_camera_of_a_robot_that_stays_where_it_is_stands_still() -> None:
    model = env_of("reacher").model()
    motion = motion_of([moved(model, seed) for seed in range(10)])
    views = [pictures.make_camera(model, "track", motion, 1.0).view(frame) for frame in range(10)]
    assert len({tuple(view.position) for view in views}) == 1
    walking = resting("ant", 40, 0.2)
    view = pictures.make_camera(env_of("ant").model(), "track", walking, 1.0).view
    np.testing.assert_allclose(view(30).position - view(10).position, [4.0, 0.0, 0.0], atol=1e-9)


def test_what_stays_in_a_plane_is_seen_from_above() -> None:
    heights = {}
    for name in ("swimmer", "humanoid"):
        view = pictures.make_camera(env_of(name).model(), "track", resting(name), 1.0).view(0)
        heights[name] = view.rotation[2, 2]
    assert heights["swimmer"] > 0.7 > 0.4 > heights["humanoid"]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def silhouette(studio: pictures.Studio, motion: Motion, frame: int, view: pictures.View) -> np.ndarray:
    """Where the picture shows something that moves: what changes when it is taken away."""
    positions, rotations = motion.positions[frame], motion.rotations[frame]
    there = studio.draw(positions, rotations, view).astype(int)
    away = studio.draw(positions - [0.0, 0.0, 1e4], rotations, view).astype(int)
    return np.abs(there - away).max(axis=-1) > 60


@pytest.mark.parametrize("name", ["ant", "humanoid", "halfcheetah", "reacher", "pusher", "inverted_pendulum"])
def test_the_robot_is_in_the_picture(driver: str, name: str) -> None:
    env = env_of(name)
    motion = resting(name, 20, 0.3)
    camera = pictures.make_camera(env.model(), "track", motion, 4 / 3)
    with pictures.Studio(env.scene(), driver, width=160, height=120, radius=camera.radius) as studio:
        for frame in (0, 10, 19):
            picture = studio.draw(motion.positions[frame], motion.rotations[frame], camera.view(frame))
            assert picture.shape == (120, 160, 3)
            assert picture.dtype == np.uint8
            robot = silhouette(studio, motion, frame, camera.view(frame))
            assert 0.01 < robot.mean() < 0.5
            middle = np.argwhere(robot).mean(axis=0) / (120, 160)
            assert (np.abs(middle - 0.5) < 0.2).all()
            edges = np.concatenate([robot[0], robot[-1], robot[:, 0], robot[:, -1]])
            assert edges.mean() < 0.05  # but for a shadow


def test_pictures_are_the_right_way_up_and_follow_the_poses(driver: str) -> None:
    env = env_of("ant")
    motion = resting("ant")
    camera = pictures.make_camera(env.model(), "track", motion, 1.0)
    view = camera.view(0)
    with pictures.Studio(env.scene(), driver, width=128, height=128, radius=camera.radius) as studio:

        def centre(shift: list[float]) -> np.ndarray:
            moved = motion._replace(positions=motion.positions + np.array(shift))
            return np.argwhere(silhouette(studio, moved, 0, view)).mean(axis=0)

        middle = centre([0.0, 0.0, 0.0])
        assert centre([0.0, 0.0, 0.6])[0] < middle[0] - 5  # higher is nearer to the first row
        assert centre([0.6, 0.0, 0.0])[1] > middle[1] + 5  # and forwards is to the right
        sky = studio.draw(motion.positions[0], motion.rotations[0], view._replace(rotation=_level(view.rotation)))
        assert sky[0].mean() > sky[-1].mean() + 10  # bright above, floor below


def _level(rotation: np.ndarray) -> np.ndarray:
    """The same direction, looking neither up nor down."""
    right = rotation[:, 0]
    return np.stack([right, [0.0, 0.0, 1.0], np.cross(right, [0.0, 0.0, 1.0])], axis=1)


def test_pictures_may_be_larger_than_mujocos_own_buffer(driver: str) -> None:
    env = env_of("ant")
    motion = resting("ant")
    camera = pictures.make_camera(env.model(), "track", motion, 1.0)
    width, height = env.model().vis.global_.offwidth + 160, env.model().vis.global_.offheight + 8
    with pictures.Studio(env.scene(), driver, width=width, height=height, radius=1.0) as studio:
        picture = studio.draw(motion.positions[0], motion.rotations[0], camera.view(0))
    assert picture.shape == (height, width, 3)
    assert picture[-8:].std() > 0
    assert picture[:, -160:].std() > 0


def test_every_kind_of_shape_is_drawn(driver: str) -> None:
    wedge: dict[str, Any] = {
        "vertices": ((0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.3)),
        "faces": ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)),
    }
    kinds = ("sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh")
    geoms = tuple(
        Geom(
            link=link, kind=kind, size=(0.15, 0.1, 0.1), position=(0.0, 0.0, 0.0), quaternion=(1.0, 0.0, 0.0, 0.0),
            rgba=(0.9, 0.1, 0.1, 1.0), **(wedge if kind == "mesh" else {}),
        )
        for link, kind in enumerate(kinds)
    )  # fmt: skip
    scene = Scene(links=kinds, geoms=geoms, dt=0.05)
    positions = np.array([[0.5 * n - 1.25, 0.0, 0.0] for n in range(6)])
    rotations = np.tile([1.0, 0.0, 0.0, 0.0], (6, 1))
    level = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    view = pictures.View(np.zeros(3), np.array([0.0, -5.0, 0.0]), level, 45.0)
    with pictures.Studio(scene, driver, width=240, height=120, radius=1.5) as studio:
        red = studio.draw(positions, rotations, view).astype(int)
    columns = ((red[..., 0] - red[..., 2]) > 60).sum(axis=0)
    at = np.flatnonzero(columns > 2)
    assert len(np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)) == 6


def test_a_driver_that_fails_after_all_is_one_line() -> None:
    if opengl.fault_of("osmesa") is None:
        pytest.skip("OSMesa works here")
    with pytest.raises(ConfigError, match=r"osmesa can't draw 32 x 32 pixels: .*libegl1"):
        pictures.Studio(env_of("ant").scene(), "osmesa", width=32, height=32, radius=1.0)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_command_writes_pictures(
    run: test_cli.Run,
    played: tuple[Any, Any, Episodes],
    tmp_path: Path,
    driver: str,
    quiet_machine: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    _, player, episodes = played
    monkeypatch.setattr(render_module, "make_player", lambda *args, **rest: player)
    output = tmp_path / f"film{suffix}"
    size = ["--width", "96", "--height", "64"]
    assert main(["render", str(run.folder), "-o", str(output), "--episodes", "9", "--select", "best", *size]) == 0
    out = capsys.readouterr().out
    assert f"pictures with {driver}" in out
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    number = int(np.argmax(episodes.episode_return))
    motion = render_module.recorded_motion(load_policy(run.folder).env, play_one(player, number), 1)
    indices, fps = video.schedule(len(motion.positions), motion.dt, suffix=suffix)
    if suffix == ".mp4":
        film, facts = decoded(output, 96, 64)
        assert len(film) == len(indices)
        assert f"{round(fps, 2):g} fps" in facts
        return
    with Image.open(output) as image:
        assert image.size == (96, 64)
        assert f"return {episodes.episode_return.max():,.1f}".encode() in image.info["comment"]
        total = 0
        for frame in range(image.n_frames):  # those that look alike are stored as one
            image.seek(frame)
            total += image.info["duration"]
        assert image.n_frames > 1
        assert total == pytest.approx(1000 * len(indices) / fps, abs=10)


def test_a_wrong_camera_is_named_before_anything_is_played(
    run: test_cli.Run,
    tmp_path: Path,
    driver: str,
    quiet_machine: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(render_module, "make_player", lambda *args, **rest: pytest.fail("it played"))
    assert main(["render", str(run.folder), "-o", str(tmp_path / "x.gif"), "--camera", "left"]) == 2
    err = capsys.readouterr().err
    assert "no camera 'left'" in err
    assert "'track'" in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_film_leaves_nothing(
    run: test_cli.Run,
    played: tuple[Any, Any, Episodes],
    tmp_path: Path,
    driver: str,
    quiet_machine: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(render_module, "make_player", lambda *args, **rest: played[1])
    drawn = []
    draw = pictures.Studio.draw

    def interrupted(self: pictures.Studio, *args: Any) -> np.ndarray:
        drawn.append(1)
        if len(drawn) > 12:
            raise KeyboardInterrupt
        return draw(self, *args)

    monkeypatch.setattr(pictures.Studio, "draw", interrupted)
    for suffix in (".gif", ".mp4"):
        drawn.clear()
        assert main(["render", str(run.folder), "-o", str(tmp_path / f"x{suffix}"), "--width", "32"]) == 130
        assert list(tmp_path.iterdir()) == []
