"""Run folders that no training made: what `azjax train` would leave, from numbers given by a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from azjax.envs.scene import Geom, Scene
from azjax.runs.options import preset_options, resolve
from azjax.runs.replay import write_replay
from azjax.runs.run_options import to_plain

VERSIONS = {"python": "3.11.7", "azjax": "0.1.0", "jax": "0.10.1"}
DEVICES = {"platform": "cpu", "kind": "cpu", "count": 2, "cpu": "Some CPU", "cores": 2, "used": 2}


def make_run(
    folder: Path,
    returns: Sequence[float] = (0.0, 50.0, 100.0),
    *,
    env: str = "ant",
    backend: str | None = None,
    seed: int = 0,
    every: int = 1000,
    finished: bool = True,
    replay: bool = False,
    kl: Sequence[float] | None = None,
    versions: dict[str, str] | None = None,
    devices: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A run whose n-th evaluation, after ``(n + 1) every`` environment steps and that many milliseconds, gave
    ``returns[n]``; training episodes return ten less, four lines for each evaluation.
    """
    folder.mkdir(parents=True)
    plain = to_plain(resolve(preset_options(env, backend, seed=seed, run=folder, **options))) | (config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    kl = [0.01] * (4 * len(returns)) if kl is None else kl
    with (folder / "metrics.jsonl").open("w") as file:
        for line in range(4 * len(returns)):
            steps, value = (line + 1) * every // 4, float(returns[line // 4])
            learner = {"learner/kl": kl[line], "learner/value_loss": 1.0}
            train = {"train/episodes": 3, "train/episode_return": value - 10.0}
            common = {"env_steps": steps, "time/seconds": steps / 1000}
            file.write(json.dumps(common | train | learner) + "\n")
            if line % 4 == 3:
                file.write(json.dumps(common | {"eval/episodes": 2, "eval/episode_return_mean": value}) + "\n")
    if finished:
        write_summary(folder, plain, returns, every, versions or VERSIONS, devices or DEVICES)
    if replay:
        write_walk(folder / "replay.html")
    return folder


def write_summary(
    folder: Path,
    plain: dict[str, Any],
    returns: Sequence[float],
    every: int,
    versions: dict[str, str],
    devices: dict[str, Any],
) -> None:
    steps = every * len(returns)
    summary = {
        **{name: plain[name] for name in ("env", "backend", "algorithm", "seed")},
        "env_steps": steps,
        "evaluation": {"episodes": 2, "return_mean": float(returns[-1]), "returns": [float(returns[-1])] * 2},
        "seconds": {"compilation": 1.0, "training": steps / 1000, "evaluation": 1.0, "total": steps / 1000 + 2.0},
        "devices": devices,
        "versions": versions,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def write_walk(path: Path) -> None:
    """A replay of two coloured bodies that walk."""
    upright = (1.0, 0.0, 0.0, 0.0)
    shape = {"position": (0.0, 0.0, 0.0), "quaternion": upright}
    scene = Scene(
        links=("torso", "head"),
        geoms=(
            Geom(link=-1, kind="plane", size=(0.0, 0.0, 1.0), rgba=(0.5, 0.5, 0.5, 1.0), **shape),
            Geom(link=0, kind="box", size=(0.3, 0.2, 0.2), rgba=(0.9, 0.4, 0.1, 1.0), **shape),
            Geom(link=1, kind="sphere", size=(0.2, 0.0, 0.0), rgba=(0.1, 0.5, 0.9, 1.0), **shape),
        ),
        dt=0.05,
    )
    at = np.arange(100)[:, None]
    way = np.concatenate([0.05 * at, np.sin(0.2 * at), 0.5 + 0 * at], axis=-1)
    positions = np.stack([way, way + np.array([0.0, 0.0, 0.5])], axis=1)
    rotations = np.broadcast_to(np.array(upright), (100, 2, 4))
    write_replay(path, scene, positions, rotations, title="a walk", rewards=np.ones(99))
