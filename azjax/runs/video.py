"""Pictures as a GIF or an MP4 file, and which frames of an episode to show when."""

from __future__ import annotations

import contextlib
import itertools
import math
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from azjax.config import ConfigError, require

FASTEST_GIF = 50.0  # frames a second; what most programs show of a GIF's shorter delays is ten
FASTEST_MP4 = 240.0
_USUAL_GIF, _USUAL_MP4 = 25.0, 50.0


def fastest(suffix: str) -> float:
    """The most frames a second that a file of this kind may have."""
    return FASTEST_GIF if suffix == ".gif" else FASTEST_MP4


def schedule(
    frames: int, dt: float, *, suffix: str, fps: float | None = None, speed: float = 1.0
) -> tuple[np.ndarray, float]:
    """Which of an episode's frames to show, and how many a second.

    Args:
      frames: of the episode, at least 1.
      dt: simulated seconds from one to the next.
      suffix: ``.gif`` or ``.mp4``.
      fps: pictures a second; default: every frame, or every k-th where that would be more than 25 (GIF) or 50 (MP4).
      speed: simulated seconds in a second of the film.

    Returns:
      Indices of frames, and pictures a second; the last frame is always shown.
    """
    if fps is None:
        usual = _USUAL_GIF if suffix == ".gif" else _USUAL_MP4
        stride = max(1, math.ceil(speed / (dt * usual) - 1e-3))
        fps = min(speed / (dt * stride), usual)
    count = max(1, math.ceil((frames - 1) * dt * fps / speed - 1e-6) + 1)
    indices = np.rint(np.arange(count) * speed / (fps * dt)).astype(int)
    return np.minimum(indices, frames - 1), fps


def write_gif(
    path: Path, pictures: Iterable[np.ndarray], samples: Sequence[np.ndarray], *, count: int, fps: float, title: str
) -> None:
    """Writes pictures as a GIF that repeats for ever.

    Args:
      path: the file.
      pictures: uint8 ``[height, width, 3]``, one after the other; they aren't kept.
      samples: some of them, for the 256 colours that all share: without that, colours flicker and files grow.
      count: how many pictures there are.
      fps: pictures a second, at most 50.
      title: stored in the file as a comment.
    """
    palette = Image.fromarray(np.concatenate(samples)).quantize(256, dither=Image.Dither.NONE)

    def images() -> Iterator[Image.Image]:
        for picture in pictures:
            yield Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)

    rest = images()
    first = next(rest)
    first.save(path, save_all=True, append_images=rest, duration=delays(count, fps), loop=0, comment=title.encode())


def delays(count: int, fps: float) -> list[int]:
    """Milliseconds for which each picture of a GIF is shown, in the tens that it knows; no time is lost to rounding."""
    ends = [round(100 * number / fps) for number in range(count + 1)]
    return [10 * (end - start) for start, end in itertools.pairwise(ends)]


def find_encoder() -> str:
    """The path of ffmpeg.

    Raises:
      ConfigError: if the package that brings it is not installed.
    """
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            'ffmpeg, which writes .mp4, is not installed; run pip install "azjax[video]", or write .gif or .html'
        ) from error


def write_mp4(path: Path, pictures: Iterable[np.ndarray], *, size: tuple[int, int], fps: float, title: str) -> None:
    """Writes pictures as H.264, which browsers and players know.

    Args:
      path: the file.
      pictures: uint8 ``[height, width, 3]``, one after the other; they aren't kept.
      size: ``(width, height)``, both even, for colours are stored at half the size.
      fps: pictures a second.
      title: stored in the file.

    Raises:
      ConfigError: if ffmpeg is not installed, or fails.
    """
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6f}", "-i", "pipe:0"]
    wanted = ["-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [find_encoder(), "-v", "error", "-y", *given, *wanted, "-metadata", f"title={title}", f"file:{path}"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints) as encoder,
    ):
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended; why is in its complaints
                for picture in pictures:
                    encoder.stdin.write(picture.tobytes())  # type: ignore[union-attr]
                encoder.stdin.close()  # type: ignore[union-attr]
        except BaseException:
            encoder.kill()
            raise
        code = encoder.wait()
        complaints.seek(0)
        lines = complaints.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
    require(code == 0, f"ffmpeg can't write {path.suffix}: {lines[-1]}")
