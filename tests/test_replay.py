"""azjax.runs.replay: what the page holds, and that a real browser shows it."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser

from azjax.envs.scene import Geom, Scene
from azjax.runs.replay import write_replay

UPRIGHT = (1.0, 0.0, 0.0, 0.0)


def geom(link: int, kind: str, size: tuple[float, float, float], **other: Any) -> Geom:
    settings: dict[str, Any] = {
        "position": (0.0, 0.0, 0.0),
        "quaternion": UPRIGHT,
        "rgba": (0.9, 0.6, 0.2, 1.0),
    } | other
    return Geom(link=link, kind=kind, size=size, **settings)


WEDGE = {
    "vertices": ((0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.3)),
    "faces": ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)),
}


@pytest.fixture
def scene() -> Scene:
    """One link of every kind of shape, a see-through one and two that share a mesh, on a floor."""
    return Scene(
        links=("torso", "arm", "ball"),
        geoms=(
            geom(-1, "plane", (0.0, 0.0, 1.0), rgba=(0.5, 0.5, 0.5, 1.0)),
            geom(0, "box", (0.2, 0.1, 0.3)),
            geom(0, "cylinder", (0.1, 0.3, 0.0), position=(0.0, 0.4, 0.0), rgba=(0.2, 0.5, 0.8, 1.0)),
            geom(1, "capsule", (0.08, 0.25, 0.0), rgba=(0.1, 0.6, 0.5, 1.0)),
            geom(1, "ellipsoid", (0.1, 0.2, 0.15), position=(0.0, 0.0, 0.4), rgba=(0.8, 0.3, 0.6, 0.5)),
            geom(2, "mesh", (0.15, 0.15, 0.15), rgba=(0.5, 0.7, 0.3, 1.0), **WEDGE),
            geom(2, "mesh", (0.15, 0.15, 0.15), position=(0.0, 0.0, 0.4), **WEDGE),
            geom(2, "sphere", (0.1, 0.0, 0.0), position=(0.3, 0.0, 0.0)),
        ),
        dt=0.05,
    )


def motion(frames: int, links: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A walk along x with smaller motions of each link around it, and rotations of any length and sign."""
    rng = np.random.default_rng(0)
    at = np.arange(frames)[:, None, None]
    positions = spread * np.sin(0.05 * at * rng.uniform(0.5, 2, (1, links, 3)) + rng.uniform(0, 6, (1, links, 3)))
    positions[..., 0] += np.linspace(0, 100, frames)[:, None]
    positions[..., 2] += 0.6 + spread
    rotations = np.sin(0.03 * at * rng.uniform(0.5, 2, (1, links, 4)) + rng.uniform(0, 6, (1, links, 4)))
    return positions, rotations


def page_data(path: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert match is not None
    return json.loads(match.group(1))


def decoded(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).astype(np.float64)


def stored_poses(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    links = len(data["links"])
    offsets = decoded(data["offsets"], "<i2").reshape(-1, links, 3) / 32767
    positions = decoded(data["root"], "<f4").reshape(-1, 1, 3) + np.array(data["middle"]) + data["reach"] * offsets
    return positions, decoded(data["rotations"], "<i2").reshape(-1, links, 4) / 32767


# ---- what the file holds


def test_poses_survive_to_a_millimetre(tmp_path: Path, scene: Scene):
    positions, rotations = motion(400, 3)
    positions[:, 2] += np.linspace(0, 100, 400)[:, None]  # the ball leaves the robot 100 m behind on each axis
    write_replay(tmp_path / "replay.html", scene, positions, rotations, title="far")
    stored_positions, stored_rotations = stored_poses(page_data(tmp_path / "replay.html"))
    assert np.abs(stored_positions - positions).max() < 1e-3
    assert np.abs(stored_positions[:, :2] - positions[:, :2]).max() < 5e-5
    wanted = rotations / np.linalg.norm(rotations, axis=-1, keepdims=True)
    assert np.abs(stored_rotations - wanted).max() < 2e-5


@pytest.mark.parametrize(
    ("dt", "stride", "kept"), [(0.05, 1, 101), (0.02, 1, 101), (0.0199999996, 1, 101), (0.008, 3, 35)]
)
def test_fine_steps_are_thinned_out(tmp_path: Path, scene: Scene, dt: float, stride: int, kept: int):
    positions, rotations = motion(101, 3)
    scene = dataclasses.replace(scene, dt=dt)
    write_replay(tmp_path / "replay.html", scene, positions, rotations, title="fine", rewards=np.ones(100))
    data = page_data(tmp_path / "replay.html")
    assert data["stride"] == stride
    assert data["steps"] == 101
    stored, _ = stored_poses(data)
    assert stored.shape[0] == kept
    np.testing.assert_allclose(stored[-1], positions[-1], atol=1e-3)  # how the episode ended is always shown
    np.testing.assert_array_equal(decoded(data["returns"], "<f4"), np.arange(101))


def test_rewards_per_frame_or_per_step(tmp_path: Path, scene: Scene):
    positions, rotations = motion(4, 3)
    for rewards in ([0.0, 1.0, 2.0, 4.0], [1.0, 2.0, 4.0]):
        write_replay(tmp_path / "replay.html", scene, positions, rotations, title="t", rewards=rewards, terminated=True)
        data = page_data(tmp_path / "replay.html")
        np.testing.assert_array_equal(decoded(data["returns"], "<f4"), [0, 1, 3, 7])
        assert data["terminated"] is True


def test_a_thousand_frames_fit_in_less_than_a_megabyte(tmp_path: Path):
    names = tuple(f"link {link}" for link in range(9))  # as many as the ant has
    ant = Scene(links=names, geoms=tuple(geom(link, "capsule", (0.08, 0.2, 0.0)) for link in range(9)), dt=0.05)
    path = tmp_path / "replay.html"
    write_replay(path, ant, *motion(1001, 9), title="ant", rewards=np.ones(1000))
    assert path.stat().st_size < 300_000


def test_shared_mesh_is_stored_once(tmp_path: Path, scene: Scene):
    write_replay(tmp_path / "replay.html", scene, *motion(2, 3), title="mesh")
    geoms = page_data(tmp_path / "replay.html")["geoms"]
    assert decoded(geoms[5]["vertices"], "<f4").reshape(-1, 3).shape == (4, 3)
    assert geoms[6]["same_mesh_as"] == 5
    assert "vertices" not in geoms[6]


def test_page_asks_for_nothing(tmp_path: Path, scene: Scene):
    write_replay(tmp_path / "replay.html", scene, *motion(2, 3), title="alone")
    text = (tmp_path / "replay.html").read_text()
    without_namespace = text.replace('"http://www.w3.org/2000/svg"', "")  # a name, which nothing ever fetches
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]|\bsrc\s*=|\bimport\s*\(|@import|url\(", without_namespace)
    assert re.findall(r"href=\"(.*?)\"", text) == ["data:,"]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy.group(1)
    assert "unsafe" not in policy.group(1)


def test_hostile_texts_stay_texts(tmp_path: Path, scene: Scene):
    hostile = '</title></script><script>alert("1")</script><!-- {{data}} {{script}} \\1 \u2028'
    scene = dataclasses.replace(scene, links=(hostile, "arm", "ball"))
    write_replay(tmp_path / "replay.html", scene, *motion(2, 3), title=hostile)
    text = (tmp_path / "replay.html").read_text()
    assert text.count("<script") == text.count("</script") == 2
    assert "alert(&quot;1&quot;)" in text
    assert page_data(tmp_path / "replay.html")["links"][0] == hostile


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, scene: Scene):
    positions, rotations = motion(5, 3)
    broken = positions.copy()
    broken[3, 1, 2] = np.nan
    flat = rotations.copy()
    flat[2, 0] = 0
    stray = dataclasses.replace(scene, geoms=(geom(3, "sphere", (0.1, 0.0, 0.0)),))
    cases: list[tuple[str, Scene, Any, Any, Any]] = [
        (r"positions must have shape \[N, 3, 3\] .* got \[5, 2, 3\]", scene, positions[:, :2], rotations, None),
        (r"positions .* got \[0, 3, 3\]", scene, positions[:0], rotations[:0], None),
        (r"positions .* got \[3, 3\]", scene, positions[0], rotations[0], None),
        (r"rotations must have shape \[5, 3, 4\] .* got \[4, 3, 4\]", scene, positions, rotations[:4], None),
        (r"positions .* not finite in frame 3", scene, broken, rotations, None),
        (r"rotations .* length zero in frame 2", scene, positions, flat, None),
        (r"rewards must have shape \[5\] or \[4\], got \[3\]", scene, positions, rotations, np.ones(3)),
        (r"rewards .* not finite in frame 1", scene, positions, rotations, [0, np.inf, 0, 0, 0]),
        (r"3 links, but one of its geoms", stray, positions, rotations, None),
        (r"scene.dt must be", dataclasses.replace(scene, dt=0.0), positions, rotations, None),
        (r"no links", dataclasses.replace(scene, links=()), positions, rotations, None),
    ]
    for message, shown, where, turned, rewards in cases:
        with pytest.raises(ValueError, match=message) as refusal:
            write_replay(tmp_path / "replay.html", shown, where, turned, title="wrong", rewards=rewards)
        assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_file_at_once_and_leaves_nothing_else(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "folder" / "replay.html"
    write_replay(path, scene, *motion(2, 3), title="first")
    before = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_replay(path, scene, *motion(2, 3), title="second")
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


# ---- what a browser makes of it


@pytest.fixture
def page(tmp_path: Path, scene: Scene) -> Path:
    path = tmp_path / "replay.html"
    positions, rotations = motion(201, 3, spread=0.5)
    write_replay(path, scene, positions, rotations, title="A <b>walk</b>", rewards=np.arange(200) / 10, terminated=True)
    return path


READY = "window.__replay && __replay.ready"


@pytest.mark.parametrize(("width", "height", "dark"), [(1200, 800, False), (390, 800, True)])
def test_browser_shows_and_plays_it(browser: Browser, page: Path, width: int, height: int, dark: bool):
    browser.open(page, width, height, dark=dark)
    browser.wait_for(f"{READY} && __replay.frame > 0")  # it started by itself
    assert browser.evaluate("__replay.playing") is True
    browser.press(" ")
    browser.wait_for("!__replay.playing")
    picture = browser.picture()
    assert picture.shape == (height, width, 3)
    bottom = browser.evaluate("document.getElementById('canvas').getBoundingClientRect().bottom")
    assert bottom > 0.7 * height
    view = picture[100 : int(bottom) - 10].astype(int)
    robot = np.ptp(view, axis=-1) > 60  # the theme's floor and sky are nearly grey
    assert 0.005 < robot.mean() < 0.6
    assert len(np.unique(view.reshape(-1, 3), axis=0)) > 500
    assert (view.mean() < 100) == dark
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    for control in ("play", "speed", "follow", "reset", "scrub", "time", "step", "reward"):
        box = f"document.getElementById('{control}').getBoundingClientRect()"
        assert browser.evaluate(f"{box}.left >= 0 && {box}.right <= innerWidth && {box}.bottom <= innerHeight"), control
    assert browser.evaluate("document.querySelector('h1').textContent") == "A <b>walk</b>"
    summary = browser.evaluate("document.getElementById('summary').textContent")
    assert summary.startswith("return 1,990.0 · 200 steps · 10.0 s · terminated")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_browser_obeys_keys_mouse_and_buttons(browser: Browser, page: Path):
    browser.open(page, 500, 450)
    browser.wait_for(READY)
    browser.press(" ")
    browser.wait_for("!__replay.playing")
    browser.press("Home")
    browser.wait_for("__replay.frame === 0")
    browser.press("ArrowRight")
    browser.wait_for("__replay.frame === 1")
    browser.press("ArrowLeft")
    browser.wait_for("__replay.frame === 0")
    browser.press("ArrowUp")
    browser.wait_for("__replay.speed === 2")
    browser.press("End")
    browser.wait_for("__replay.frame === 200")
    assert "10.00 / 10.00 s" in browser.evaluate("document.getElementById('readout').textContent")
    assert "reward so far 1,990.0" in browser.evaluate("document.getElementById('readout').textContent")

    first = browser.evaluate("__replay.camera")
    browser.drag((200, 150), (300, 190))
    browser.wait_for(f"__replay.camera.yaw < {first['yaw'] - 0.1} && __replay.camera.pitch > {first['pitch'] + 0.1}")
    browser.drag((200, 150), (260, 150), button="right")
    browser.wait_for("Math.hypot(...__replay.camera.pan) > 0.01")
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=200, y=150, deltaX=0, deltaY=-200)
    browser.wait_for("__replay.camera.zoom < 0.9")
    browser.evaluate("document.getElementById('reset').click()")
    browser.wait_for(f"__replay.camera.zoom === 1 && __replay.camera.yaw === {first['yaw']}")

    assert browser.evaluate("__replay.camera.follow") is True  # it walks, so the camera goes along
    browser.evaluate("document.getElementById('follow').click()")
    browser.wait_for("!__replay.camera.follow")
    browser.press("Home")  # the robot is 100 m away now: only the empty floor is left
    browser.wait_for("__replay.frame === 0")
    assert (np.ptp(browser.picture()[80:280].astype(int), axis=-1) > 60).mean() < 1e-3
    browser.press("f")
    browser.wait_for("__replay.camera.follow && __replay.camera.lag[0] === 0")
    assert (np.ptp(browser.picture()[80:280].astype(int), axis=-1) > 60).mean() > 0.005
    assert browser.complaints() == []


def test_browser_reads_the_poses_that_were_written(browser: Browser, tmp_path: Path, scene: Scene):
    positions, rotations = motion(12, 3)
    write_replay(tmp_path / "replay.html", dataclasses.replace(scene, dt=0.01), positions, rotations, title="poses")
    browser.open(tmp_path / "replay.html", 500, 450)
    browser.wait_for(READY)
    rotations /= np.linalg.norm(rotations, axis=-1, keepdims=True)
    for step in (0, 4, 10, 11):  # kept are 0, 2, ... 10 and the last
        poses = browser.evaluate(f"__replay.posesAt({step})")
        np.testing.assert_allclose([pose["position"] for pose in poses], positions[step], atol=1e-3)
        likeness = np.abs((np.array([pose["rotation"] for pose in poses]) * rotations[step]).sum(axis=-1))
        np.testing.assert_allclose(likeness, 1, atol=1e-6)
    between = browser.evaluate("__replay.posesAt(10.5)")
    np.testing.assert_allclose([pose["position"] for pose in between], positions[10:12].mean(axis=0), atol=1e-3)
    middle = rotations[10] + rotations[11] * np.sign((rotations[10] * rotations[11]).sum(-1, keepdims=True))
    middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
    likeness = np.abs((np.array([pose["rotation"] for pose in between]) * middle).sum(axis=-1))
    np.testing.assert_allclose(likeness, 1, atol=1e-6)


def test_browser_shows_one_frame_without_floor_or_rewards(browser: Browser, tmp_path: Path, scene: Scene):
    still = dataclasses.replace(scene, geoms=scene.geoms[1:])
    write_replay(tmp_path / "replay.html", still, *motion(1, 3), title="one frame")
    browser.open(tmp_path / "replay.html", 500, 450)
    browser.wait_for(READY)
    assert browser.evaluate("__replay.playing") is False
    assert browser.evaluate("document.getElementById('reward').hidden") is True
    assert (np.ptp(browser.picture()[80:280].astype(int), axis=-1) > 60).mean() > 0.005
    assert browser.complaints() == []


def test_browser_without_webgl_says_so(browser: Browser, page: Path):
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument", source="HTMLCanvasElement.prototype.getContext = () => null"
    )
    try:
        browser.open(page, 500, 450)
        browser.wait_for("!document.getElementById('message').hidden")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    assert "needs WebGL 2" in browser.evaluate("document.getElementById('message').textContent")
    assert browser.complaints() == []
