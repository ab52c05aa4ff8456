"""What studies of arms share: their command line, and which runs are missing. Not a script."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from azjax.config import require, require_number


def parser(description: str | None, scales: Collection[str], default: str) -> argparse.ArgumentParser:
    """``run`` and ``report``, for a folder ``OUT/ARM/SEED``; a study adds options of its own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("command", choices=("run", "report"))
    made.add_argument("--out", type=Path, required=True, help="folder of the runs and of the report")
    made.add_argument("--scale", choices=tuple(scales), default=default, help="what is compared, and all sizes")
    made.add_argument("--arms", help="some of the arms, with commas between; default: all of the scale")
    made.add_argument("--seeds", type=int, help="seeds 0, 1, ... of every arm")
    made.add_argument("--minutes", type=float, default=float("inf"), help="start no further runs after so long")
    return made


def missing(
    args: argparse.Namespace,
    known: Collection[str],
    arms: Sequence[str],
    seeds: int,
    finished: Callable[[Path], bool],
) -> list[tuple[str, int]]:
    """Arms and seeds to run, seed by seed, so that a study that is cut short compares all arms.

    Args:
      args: of ``parser``.
      known: all arms that there are.
      arms: those of the scale.
      seeds: those of the scale.
      finished: whether nothing is left to do in the folder of a run.

    Raises:
      ConfigError: for an arm that isn't known, or no seeds.
    """
    chosen = tuple(arms) if args.arms is None else tuple(args.arms.split(","))
    for arm in chosen:
        require(arm in known, f"no arm {arm!r} (there are: {', '.join(known)})")
    number = seeds if args.seeds is None else args.seeds
    require_number("--seeds", number, 1, 10_000)
    return [(arm, seed) for seed in range(number) for arm in chosen if not finished(args.out / arm / str(seed))]
