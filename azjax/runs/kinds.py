"""Kinds of runs: what a folder's ``config.yaml`` says it holds, and which module goes on with it."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azjax.config import ConfigError, require
from azjax.runs.reading import parse_yaml, read_limited
from azjax.runs.run_options import DEFAULT_KIND, LARGEST_CONFIG

# A module of each kind has ``resume(path, *, steps, devices, quiet)``.
MODULES = {
    DEFAULT_KIND: "azjax.runs.train",
    "sweep": "azjax.runs.sweeps",
    "tune": "azjax.runs.tune",
    "selfplay": "azjax.runs.selfplay",
    "reason": "azjax.runs.reason",
}
SWEEP, TUNE = "sweep.yaml", "tune.yaml"
"""Sweeps and searches have their configuration under these names; ``config.yaml`` is one run's."""


def kind_of(folder: Path) -> str:
    """The kind of a run: the ``kind`` in its configuration, ``train`` where it has none.

    Raises:
      ConfigError: if the folder holds no run, or one of a kind that this version doesn't know.
    """
    require(folder.is_dir(), f"{folder} is not a run folder; azjax train makes one")
    for name, kind in ((SWEEP, "sweep"), (TUNE, "tune")):
        if (folder / name).exists():
            return kind
    path = folder / "config.yaml"
    try:
        data = parse_yaml(read_limited(path, LARGEST_CONFIG))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no configuration: {error}; use another copy of it") from error
    kind = data.get("kind", DEFAULT_KIND) if isinstance(data, dict) else DEFAULT_KIND
    known = ", ".join(MODULES)
    require(
        isinstance(kind, str) and kind in MODULES,
        f"{path} is of a run of kind {reprlib.repr(kind)}, this azjax knows {known}; use the version that wrote it",
    )
    return kind


def resume_of(folder: Path) -> Callable[..., Any]:
    """What goes on with the run in a folder."""
    resume: Callable[..., Any] = importlib.import_module(MODULES[kind_of(folder)]).resume
    return resume
