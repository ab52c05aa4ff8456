"""Runs read back from their folders, which may come from a stranger: sizes are checked, text is cleaned, nothing runs.

A folder counts as a run if it holds ``config.yaml``. A run without ``summary.json`` is unfinished: it is still going
on, or was killed; what it wrote so far is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from azjax.config import ConfigError, require
from azjax.runs.kinds import SWEEP
from azjax.runs.reading import check_file, parse_json, parse_yaml, read_limited

Plain = str | int | float | bool | None | tuple[str | int | float | bool | None, ...]

SELFPLAY = "selfplay"
CONFIG, METRICS, SUMMARY, REPLAY = "config.yaml", "metrics.jsonl", "summary.json", "replay.html"
_MEND = "leave this run out, or take another copy of it"
_LARGEST_CONFIG = 1 << 16
_LARGEST_SUMMARY = 1 << 26
_LARGEST_METRICS = 1 << 28
_LONGEST_LINE = 1 << 16
_MOST_LINES = 1 << 20
_LARGEST_NUMBER = 1e39  # above float32's, and small enough for the arithmetic that follows
_LONGEST_TEXT = 200
_MOST_ENTRIES = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A quantity over training; points in order, one for each number of environment steps."""

    env_steps: np.ndarray  # float64 [T]
    seconds: np.ndarray  # float64 [T] of training, without compilation and evaluation
    values: np.ndarray  # float64 [T]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a run folder says; all text in it is printable and short."""

    folder: Path
    name: str  # the folder as it was given
    options: Mapping[str, Plain]  # by name; those of the learner stand beside the others
    evaluation: Curve  # mean return of deterministic episodes
    training: Curve  # mean return of the episodes that ended
    kl: np.ndarray  # float64 [updates or calls]; NaN where a line has none
    value_loss: np.ndarray  # likewise
    finished: bool
    final_return: float | None  # mean of the last evaluation; None if there was none, or the physics broke in all of it
    env_steps: int
    seconds: float  # of training
    versions: Mapping[str, str]  # empty while unfinished
    devices: Mapping[str, Plain]  # empty while unfinished
    warnings: tuple[str, ...]
    records: tuple[Mapping[str, float], ...] = ()  # the lines of its metrics, as far as they are read

    @property
    def env(self) -> str:
        """Name of the environment; of self-play on a body another one than of training it, whose return it isn't."""
        return f"{'tasks:' if self.selfplay else ''}{self.options['env']}"

    @property
    def selfplay(self) -> bool:
        """Whether it was a run of self-play."""
        return self.options.get("kind") == SELFPLAY

    @property
    def backend(self) -> str:
        """Name of the physics."""
        return str(self.options.get("backend"))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.options["seed"])  # type: ignore[arg-type]


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The run folders among and inside the paths, in order, each once.

    A folder that is no run stands for the runs directly inside it, that of a sweep for its members. Files are passed
    over, so that ``runs/*`` may be given where a folder of runs holds other things, too.

    Returns:
      The folders, and the paths that were passed over.

    Raises:
      ConfigError: for a path that doesn't exist, or a folder that is no run and holds none.
    """
    found: dict[str, Path] = {}
    files = []
    for path in paths:
        require(os.path.lexists(path), f"{clean(str(path))} does not exist; azjax train makes run folders")
        if not os.path.isdir(path):
            files.append(clean(str(path)))
            continue
        for folder in [path] if (path / CONFIG).exists() else _runs_inside(path):
            found.setdefault(os.path.realpath(folder), folder)
    require(bool(found), f"{', '.join(clean(str(p)) for p in paths)}: no run folder; azjax train makes one")
    return list(found.values()), files


def _runs_inside(path: Path) -> list[Path]:
    path = path / "members" if (path / SWEEP).exists() else path
    try:
        children = sorted(path.iterdir())
    except OSError as error:
        raise ConfigError(f"{clean(str(path))} can't be read: {error.strerror}; give a run folder") from error
    runs = [child for child in children if (child / CONFIG).exists()]
    require(bool(runs), f"{clean(str(path))} is no run folder and holds none: {CONFIG} is missing; give a run folder")
    return runs


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
      ConfigError: if a file is missing, too large or malformed; the message names the file. Only the last line of
        ``metrics.jsonl`` may be cut, as a killed run leaves it: it is left out with a warning.
    """
    options = _read_config(folder / CONFIG)
    summary = _read_summary(folder / SUMMARY) if os.path.lexists(folder / SUMMARY) else None
    if summary is None and not os.path.lexists(folder / METRICS):
        records: list[dict[str, float]] = []
        warnings = [f"{clean(str(folder))} has measured nothing yet"]
    else:
        records, warnings = _read_metrics(folder / METRICS)
    if summary is not None:
        for name in ("env", "seed"):
            if summary[name] != options[name]:
                found = f"{summary[name]!r}, but {CONFIG} has {options[name]!r}"
                raise _fail(folder / SUMMARY, f"is another run's: its {name} is {found}")
    evaluation = _curve(records, "eval/episode_return_mean")
    learner = [record for record in records if "train/episodes" in record]
    last = records[-1] if records else {"env_steps": 0, "time/seconds": 0.0}
    return Run(
        folder=folder,
        name=clean(str(folder)),
        options=options,
        evaluation=evaluation,
        training=_curve(records, "train/episode_return"),
        kl=_column(learner, "learner/kl"),
        value_loss=_column(learner, "learner/value_loss"),
        finished=summary is not None,
        final_return=_final_return(records) if summary is None else summary["return_mean"],
        env_steps=int(last["env_steps"]) if summary is None else summary["env_steps"],
        seconds=last["time/seconds"] if summary is None else summary["seconds"],
        versions={} if summary is None else summary["versions"],
        devices={} if summary is None else summary["devices"],
        warnings=tuple(warnings),
        records=tuple(records),
    )


# ---- text and numbers


def clean(text: str) -> str:
    """The text without what could steer a terminal or reorder a line, and cut to a length that fits one."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


def _fail(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{clean(str(path))} {reason}; {_MEND}")


def _number(value: Any) -> float | None:
    """A number as a float; ``None`` for anything else, or one too large to be a result."""
    if type(value) not in (int, float) or not abs(value) < _LARGEST_NUMBER:
        return None
    return float(value)


def _check_steps(data: Mapping[str, Any]) -> None:
    steps = data.get("env_steps")
    if type(steps) is not int or not 0 <= steps < 1 << 63:
        raise ValueError("env_steps is missing, or no whole number that it can be")


def _scalar(value: Any) -> Any:
    """Text cleaned, numbers as they are."""
    if isinstance(value, str):
        return clean(value)
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 1 << 63):
        return value
    raise ValueError(f"a value has the wrong type or size: {type(value).__name__}")


def _plain(value: Any) -> Plain:
    if isinstance(value, list):
        if len(value) > _MOST_ENTRIES:
            raise ValueError(f"a list has more than {_MOST_ENTRIES} entries")
        return tuple(_scalar(item) for item in value)
    return _scalar(value)  # type: ignore[no-any-return]


def _mapping(data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{what} is no mapping of names to values")
    if len(data) > _MOST_ENTRIES or not all(isinstance(name, str) for name in data):
        raise ValueError(f"{what} has names that are no text, or more than {_MOST_ENTRIES}")
    return {clean(name): value for name, value in data.items()}


# ---- config.yaml


def _read_config(path: Path) -> dict[str, Plain]:
    """The options by name; those of the learner, which are nested in the file, stand beside the others."""
    content = read_limited(path, _LARGEST_CONFIG, _MEND)
    try:
        options = _flat(_mapping(parse_yaml(content), "the configuration"))
        if not (isinstance(options.get("env"), str) and type(options.get("seed")) is int):
            raise ValueError("env or seed is missing, or of the wrong type")
    except (ValueError, OverflowError) as error:
        raise _fail(path, f"does not hold the options of a run: {clean(str(error))}") from error
    return options


def _flat(data: dict[str, Any]) -> dict[str, Plain]:
    options: dict[str, Plain] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            nested = _mapping(value, name)
            options |= {key if key not in data else f"{name}.{key}": _plain(item) for key, item in nested.items()}
        else:
            options[name] = _plain(value)
    return options


# ---- metrics.jsonl

_READ_ALL = ("heldout/", "selfplay/", "verification/")
_READ = ("eval/episode_return_mean", "train/episode_return", "train/episodes", "learner/kl", "learner/value_loss")


def _read_metrics(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """Of each line the numbers that anything here is made of; and a warning if the last line is cut."""
    check_file(path, _MEND)
    records: list[dict[str, float]] = []
    for number, line in _lines(path):
        try:
            record = _record(parse_json(line))
            if records and any(record[name] < records[-1][name] for name in ("env_steps", "time/seconds")):
                raise ValueError("env_steps or time/seconds go back")
        except ValueError as error:
            if line.endswith(b"\n"):
                raise _fail(path, f"line {number}: {clean(str(error))}") from error
            return records, [f"{clean(str(path))}: line {number}, the last, is cut; it is left out"]
        records.append(record)
    return records, []


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, blank ones left out."""
    read = 0
    try:
        with path.open("rb") as file:
            for number in range(1, _MOST_LINES + 2):
                line = file.readline(_LONGEST_LINE + 1)
                read += len(line)
                if len(line) > _LONGEST_LINE:
                    raise _fail(path, f"line {number} is longer than {_LONGEST_LINE} bytes")
                if read > _LARGEST_METRICS:
                    raise _fail(path, f"is larger than {_LARGEST_METRICS} bytes")
                if not line:
                    return
                if number > _MOST_LINES:
                    raise _fail(path, f"has more than {_MOST_LINES} lines")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise _fail(path, f"can't be read: {error.strerror}") from error


def _record(data: Any) -> dict[str, float]:
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    _check_steps(data)
    record = {}
    own = [name for name in itertools.islice(data, _MOST_ENTRIES) if name in _READ or name.startswith(_READ_ALL)]
    for name in ("env_steps", "time/seconds", *own):
        value = _number(data.get(name))
        if value is None or (value < 0.0 and name == "time/seconds"):
            raise ValueError(f"{name} is missing, or no number that it can be")
        record[name] = value
    return record


def _column(records: list[dict[str, float]], name: str) -> np.ndarray:
    return np.array([record.get(name, math.nan) for record in records], np.float64)


def _curve(records: list[dict[str, float]], name: str) -> Curve:
    """The last record of each number of environment steps that has the quantity."""
    rows = {record["env_steps"]: record for record in records if name in record}
    columns = (_column(list(rows.values()), column) for column in ("env_steps", "time/seconds", name))
    return Curve(*columns)


def _final_return(records: list[dict[str, float]]) -> float | None:
    found = [record["eval/episode_return_mean"] for record in records if "eval/episode_return_mean" in record]
    return found[-1] if found else None


# ---- summary.json


def _read_summary(path: Path) -> dict[str, Any]:
    """What is used of the summary, checked."""
    content = read_limited(path, _LARGEST_SUMMARY, _MEND)
    try:
        data = _mapping(parse_json(content), "the summary")
        evaluation, seconds = (_mapping(data.get(name), name) for name in ("evaluation", "seconds"))
        versions, devices = (_mapping(data.get(name, {}), name) for name in ("versions", "devices"))
        summary = {
            "env": _scalar(data.get("env")),
            "seed": _scalar(data.get("seed")),
            "env_steps": data.get("env_steps"),
            "seconds": _number(seconds.get("training")),
            "return_mean": _number(evaluation.get("return_mean")) if "return_mean" in evaluation else None,
            "versions": {name: str(_scalar(value)) for name, value in versions.items()},
            "devices": {name: _plain(value) for name, value in devices.items()},
        }
        _check_steps(summary)
        for where, name in (("seconds", "seconds"), ("evaluation", "return_mean")):
            if summary[name] is None and (name == "seconds" or "return_mean" in evaluation):
                raise ValueError(f"a number is missing in {where}, or is none")
    except ValueError as error:
        raise _fail(path, f"is not the summary of a run: {clean(str(error))}") from error
    return summary
