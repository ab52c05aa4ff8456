"""How the bodies of the GAE paper go after training: evaluation, curves and pictures for docs/gae_study.md.

Command:   python experiments/gae_walkers.py runs/biped runs/quadruped --out docs/gae_study
Hardware:  any; pictures need an EGL or OSMesa driver, as azjax render does
Time:      a minute for each run on 2 cores
Expected:  NAME_curves.png, NAME.png (moving, at the speed of life), one walkers.png with a gait in a line, walkers.json

The runs are folders of ``azjax train azjax:NAME --algorithm trpo``, or members of a sweep.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageSequence

from azjax.config import ConfigError, require
from azjax.runs import RenderOptions, render_episode
from azjax.runs.folder import read_metrics, write_json
from azjax.runs.plots import plot_curves

KEPT = ("env", "backend", "algorithm", "seed", "env_steps", "simulated_seconds", "updates", "evaluation", "seconds")
SIZE = (240, 180)
FPS = 12.5
SHOWN = 6  # pictures of a gait
BETWEEN = 2  # frames from one of them to the next


def main() -> None:
    """Reads the runs and writes what the page shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, one for each body")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files, which are replaced")
    parser.add_argument("--seconds", type=float, default=2.6, help="simulated seconds that the moving picture shows")
    parser.add_argument("--after", type=float, default=3.0, help="simulated seconds before them")
    args = parser.parse_args()
    try:
        walkers(args)
    except ConfigError as error:
        raise SystemExit(f"gae_walkers: {error}") from None


def walkers(args: argparse.Namespace) -> None:
    """Everything for every run."""
    found = [read_run(path) for path in args.runs]
    names = [summary["env"].rpartition(":")[2] for summary in found]
    require(len(set(names)) == len(names), f"two of the runs are of one body ({', '.join(names)}); give one of each")
    args.out.mkdir(parents=True, exist_ok=True)
    gaits = []
    for path, name, summary in zip(args.runs, names, found, strict=True):
        title = f"TRPO on azjax:{name}, seed {summary['seed']}"
        plot_curves(args.out / f"{name}_curves.png", read_metrics(path / "metrics.jsonl"), title=title)
        frames = moving(path, args.after, args.seconds)
        save_moving(args.out / f"{name}.png", frames)
        gaits.append((name, frames))
        print(f"{name}: return {summary['evaluation']['return_mean']:.0f}, {len(frames)} frames", flush=True)
    strip(gaits).save(args.out / "walkers.png", optimize=True)
    kept = {name: {key: own[key] for key in KEPT} for name, own in zip(names, found, strict=True)}
    write_json(args.out / "walkers.json", kept)


def read_run(path: Path) -> dict[str, Any]:
    """The summary of a finished run."""
    file = path / "summary.json"
    require(file.exists(), f"{path} is no finished run; azjax resume finishes one")
    return dict(json.loads(file.read_text()))


def moving(run: Path, after: float, seconds: float) -> list[Image.Image]:
    """Pictures of the median of eight episodes, from some seconds on."""
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "gait.gif"
        width, height = SIZE
        render_episode(RenderOptions(run, output=film, seconds=after + seconds, fps=FPS, width=width, height=height))
        with Image.open(film) as image:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    require(len(frames) > SHOWN * BETWEEN, f"the median episode of {run} is over before its gait can be seen")
    return frames[min(int(after * FPS), len(frames) - SHOWN * BETWEEN) :]


def save_moving(path: Path, frames: list[Image.Image]) -> None:
    """An animated PNG of few colours."""
    few = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    few[0].save(path, save_all=True, append_images=few[1:], duration=round(1000 / FPS), loop=0, optimize=True)


def strip(gaits: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """A line of pictures for each body, some hundredths of a second apart."""
    width, height = 150, 165
    whole = Image.new("RGB", (SHOWN * width, height * len(gaits)), "white")
    draw = ImageDraw.Draw(whole)
    for row, (name, frames) in enumerate(gaits):
        for column, frame in enumerate(frames[: SHOWN * BETWEEN : BETWEEN]):
            left = (frame.width - width) // 2
            whole.paste(
                frame.crop((left, 0, left + width, frame.height)).resize((width, height)),
                (column * width, row * height),
            )
        draw.text((6, row * height + 4), name, fill="black")
    return whole


if __name__ == "__main__":
    main()
