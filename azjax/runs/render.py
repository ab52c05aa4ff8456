"""One episode of a trained policy as a page, a GIF or a film: what ``azjax render`` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from azjax.config import require, require_number
from azjax.envs.base import EnvState
from azjax.envs.scene import Scene
from azjax.evaluation import Episodes
from azjax.runs import machine
from azjax.runs.console import RunConsole
from azjax.runs.episodes import make_player, play_all, play_one
from azjax.runs.folder import check_output, first_free, new_files
from azjax.runs.opengl import find_driver
from azjax.runs.policy import LoadedPolicy, check_run, load_policy
from azjax.runs.replay import Motion, has_scene, marked, recorded_motion, write_motion
from azjax.runs.video import fastest, find_encoder, schedule, write_gif, write_mp4
from azjax.selfplay.tasks import TaskEnvironment

SUFFIXES = (".html", ".gif", ".mp4")
Choice = Literal["median", "best", "worst", "first"]
CHOICES: tuple[Choice, ...] = ("median", "best", "worst", "first")
_SIZES = {".gif": (400, 300), ".mp4": (640, 480)}
_LARGEST = 4096
_SAMPLES = 8  # pictures from which a GIF's colours are chosen


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Options of a rendering."""

    run: Path
    """Folder of a finished run."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """New file: .html (3D page), .gif or .mp4. Default: render.html in the run's folder, or render-2.html and so on."""
    episodes: int = 8
    """Episodes to play and to choose from."""
    select: Choice = "median"
    """Which of them to show, by return; first plays no more than one."""
    seed: int = 0
    """Seed of initial states and of exploration; it never shares a key with training."""
    stochastic: bool = False
    """Sample actions instead of taking the distribution's mode."""
    seconds: float | None = None
    """Show the episode's first so many simulated seconds. Default: all of it."""
    camera: str | None = None
    """For .gif and .mp4: track, which follows the robot, or a camera of the model by name or number. Default: track."""
    width: int | None = None
    """For .gif and .mp4: pixels across. Default: 400 for .gif, 640 for .mp4."""
    height: int | None = None
    """For .gif and .mp4: pixels down. Default: 300 for .gif, 480 for .mp4."""
    fps: float | None = None
    """For .gif and .mp4: pictures a second. Default: one a step, or one every k steps, up to 25 (.gif) or 50 (.mp4)."""
    speed: float | None = None
    """For .gif and .mp4: simulated seconds in a second. Default: 1."""

    @property
    def target(self) -> Path:
        """The file to write."""
        return first_free(self.run / "render.html") if self.output is None else self.output

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        width, height = _SIZES[self.target.suffix]
        return self.width or width, self.height or height

    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""
        require_number("episodes", self.episodes, 1, 2**24)
        require(self.select in CHOICES, f"select is {self.select!r}; it must be one of {', '.join(CHOICES)}")
        require_number("seed", self.seed, 0, 2**32 - 1)
        if self.seconds is not None:
            require_number("seconds", self.seconds, 1e-3, 1e9)
        check_run(self.run)
        path = self.target
        require(path.suffix in SUFFIXES, f"output is {path}; its name must end in {', '.join(SUFFIXES[:-1])} or .mp4")
        if path.suffix == ".html":
            self._check_page()
        else:
            self._check_pictures(path.suffix)
        check_output(path)

    def _check_page(self) -> None:
        for name in ("camera", "width", "height", "fps", "speed"):
            value = getattr(self, name)
            require(value is None, f"{name} is {value}, but .html has controls for that; leave it out, or write .mp4")

    def _check_pictures(self, suffix: str) -> None:
        for name, pixels in zip(("width", "height"), self.size, strict=True):
            given = getattr(self, name)
            require_number(name, pixels if given is None else given, 16, _LARGEST)
            require(
                suffix != ".mp4" or pixels % 2 == 0,
                f"{name} is {pixels}; .mp4 needs an even number of pixels: {pixels - 1} or {pixels + 1}",
            )
        if self.fps is not None:
            require_number("fps", self.fps, 0.1, fastest(suffix))
        if self.speed is not None:
            require_number("speed", self.speed, 1e-3, 1e3)
        if suffix == ".mp4":
            find_encoder()


class RenderedEpisode(NamedTuple):
    """What was written, and which episode it shows."""

    output: Path
    number: int  # of the episode; the first is 0
    played: int  # how many it was chosen from
    episode_return: float
    length: int  # environment steps
    terminated: bool
    title: str


def render_episode(options: RenderOptions) -> RenderedEpisode:
    """Plays episodes of a trained policy and writes one of them as a page, a GIF or a film.

    Raises:
      ConfigError: for options that can't work, before anything is played or written; or if the physics broke in all
        episodes.
    """
    options = dataclasses.replace(options, output=options.target)
    options.validate()
    pictures = options.target.suffix != ".html"
    if pictures:
        find_driver()  # whether there is one must be known before anything is played
    machine.split_host(lambda n: options.episodes >= n)
    machine.use_cache()
    policy = load_policy(options.run)
    require(
        has_scene(policy.env),
        f"{policy.env.name} has no MuJoCo model, so there is nothing to draw; azjax evaluate needs none",
    )
    if pictures:
        _check_camera(options, policy)
    with RunConsole(0) as console:
        rendered, scene, motion = play(options, policy, console)
        with new_files(options.target) as (place,):
            if pictures:
                write_pictures(place, options, policy, scene, motion, rendered.title, console)
            else:
                write_motion(place, scene, motion, rendered.title)
    return rendered


def play(options: RenderOptions, policy: LoadedPolicy, console: RunConsole) -> tuple[RenderedEpisode, Scene, Motion]:
    """Plays the episodes, chooses one, and plays that again with its poses recorded; with the marks of its task."""
    count = 1 if options.select == "first" else options.episodes
    env: Any = policy.env
    with_tasks = isinstance(env, TaskEnvironment)
    with console.waiting("compiling"), machine.rare_collection():
        player = make_player(
            policy,
            episodes=count,
            seed=options.seed,
            stochastic=options.stochastic,
            record=env.poses,
            outcome=task_of if with_tasks else None,
        )
    with console.waiting(f"playing {count} episode{'s' * (count > 1)}"):
        number = choose(play_all(player, count), options.select) if count > 1 else 0
        shown = play_one(player, number)
    title = describe(options, policy, shown, number, count)
    rendered = RenderedEpisode(
        options.target,
        number,
        count,
        float(shown.episode_return[0]),
        int(shown.length[0]),
        bool(shown.terminated[0]),
        title,
    )
    motion = recorded_motion(env, shown, policy.action_repeat)
    if options.seconds is not None:
        motion = first_seconds(motion, options.seconds)
    task = jax.tree.map(lambda x: x[0], shown.outcome) if with_tasks else None
    return rendered, *marked(env, env.scene(), motion, task)


def task_of(state: EnvState) -> Any:
    """The task that an attempt is at."""
    return state.params


def choose(episodes: Episodes, select: str) -> int:
    """The number of the episode to show: the best, worst or median by return of those whose physics held.

    The median of an even number is the lower one of the two in the middle.

    Raises:
      ConfigError: if the physics broke in every episode.
    """
    returns = np.asarray(episodes.episode_return, np.float64)
    sound = np.flatnonzero(~np.asarray(episodes.nonfinite) & np.isfinite(returns))
    require(sound.size > 0, "the physics broke in every episode; --select first shows the first up to there")
    ordered = sound[np.argsort(returns[sound], kind="stable")]
    return int(ordered[{"worst": 0, "median": (sound.size - 1) // 2, "best": sound.size - 1}[select]])


def describe(options: RenderOptions, policy: LoadedPolicy, shown: Episodes, number: int, count: int) -> str:
    """One line on what is shown."""
    chosen = f"{options.select} of {count}" if count > 1 else "the first"
    kind = "stochastic" if options.stochastic else "deterministic"
    broken = ", the physics broke" if bool(shown.nonfinite[0]) else ""
    return (
        f"{policy.env.name} ({policy.env.backend}), {policy.description['algorithm']}: "
        f"return {float(shown.episode_return[0]):,.1f}, length {int(shown.length[0]):,}{broken}; "
        f"episode {number} ({chosen}), seed {options.seed}, {kind}"
    )


def first_seconds(motion: Motion, seconds: float) -> Motion:
    """The frames up to a simulated time."""
    last = int(seconds / motion.dt + 1e-6) + 1
    if last >= len(motion.positions):
        return motion
    return Motion(motion.positions[:last], motion.rotations[:last], motion.rewards[:last], False, motion.dt)


def write_pictures(
    path: Path,
    options: RenderOptions,
    policy: LoadedPolicy,
    scene: Scene,
    motion: Motion,
    title: str,
    console: RunConsole,
) -> None:
    """Draws the frames and writes them as they come."""
    from azjax.runs.pictures import TRACK, Studio, make_camera

    env: Any = policy.env
    width, height = options.size
    camera = make_camera(env.model(), options.camera or TRACK, motion, width / height)
    driver = find_driver()
    frames, fps = schedule(
        len(motion.positions), motion.dt, suffix=path.suffix, fps=options.fps, speed=options.speed or 1.0
    )
    with Studio(scene, driver, width=width, height=height, radius=camera.radius) as studio:

        def draw(frame: int) -> np.ndarray:
            return studio.draw(motion.positions[frame], motion.rotations[frame], camera.view(frame))

        film = console.each(f"drawing {len(frames)} pictures with {driver}", map(draw, frames), len(frames))
        if path.suffix == ".gif":
            samples = [draw(frame) for frame in frames[:: -(-len(frames) // _SAMPLES)]]
            write_gif(path, film, samples, count=len(frames), fps=fps, title=title)
        else:
            write_mp4(path, film, size=(width, height), fps=fps, title=title)


def _check_camera(options: RenderOptions, policy: LoadedPolicy) -> None:
    from azjax.runs.pictures import TRACK, find_camera

    find_camera(policy.env.model(), options.camera or TRACK)  # type: ignore[attr-defined]
