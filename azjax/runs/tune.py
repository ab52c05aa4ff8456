"""Search for hyperparameters with optuna, a population for each batch of trials: what ``azjax tune`` does.

The folder holds ``tune.yaml`` (what is searched), ``study.log`` (optuna's journal of all trials, from which an
interrupted search goes on), ``batches/NN`` (each a sweep's folder), and at the end ``preset.yaml``, which ``azjax train
--preset`` reads, ``trials.csv`` and ``summary.json``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from azjax.config import ConfigError, require, require_number
from azjax.runs.console import RunConsole
from azjax.runs.folder import RunFolder, check_free, write_json, write_text
from azjax.runs.groups import shown
from azjax.runs.kinds import TUNE
from azjax.runs.options import TrainOptions, preset_values, resolve
from azjax.runs.reading import parse_yaml, read_json, read_limited
from azjax.runs.run_options import SCHEMA, options_from_plain, to_plain
from azjax.runs.signals import Interrupts, RunInterrupted
from azjax.runs.starting import default_folder
from azjax.runs.sweep import MOST_MEMBERS, Axes, Member, Range, member_options, read_axis
from azjax.runs.sweep_results import to_csv
from azjax.runs.sweeps import Sweep, run_sweep
from azjax.runs.sweeps import resume as resume_sweep

_LARGEST = 1 << 20
_LARGEST_JOURNAL = 1 << 28
_MEND = "use another copy of it, or the version that wrote it"
DEFAULT_SPACE = {
    "learning_rate": "log:1e-4..1e-2",
    "gamma": "0.95,0.97,0.98,0.99,0.995",
    "lam": "0.9..1",
}
"""What is searched if nothing is named; ``max_kl`` takes the place of the learning rate for TRPO."""


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched, and how long."""

    base: TrainOptions  # of all trials
    space: dict[str, Any]  # axes as text or plain data; see ``azjax.runs.sweep.read_axis``
    trials: int = 32
    batch: int = 8  # trials that are trained together
    seeds: int = 1  # runs of each trial
    chunk: int | None = None

    def axes(self) -> Axes:
        """The axes, checked."""
        return {name: read_axis(self.base, name, spec) for name, spec in self.space.items()}

    def validate(self) -> None:
        """Raises ``ConfigError`` for what can't be searched."""
        for name in ("trials", "batch", "seeds"):
            require_number(name, getattr(self, name), 1, 1 << 16)
        if self.chunk is not None:
            require_number("chunk", self.chunk, 1, 1 << 20)
        members = min(self.batch, self.trials) * self.seeds
        require(
            members <= MOST_MEMBERS,
            f"{self.batch} trials x {self.seeds} seeds are {members} members of a batch, more than {MOST_MEMBERS}; use "
            "a smaller batch",
        )
        require(
            importlib.util.find_spec("optuna") is not None,
            'azjax tune needs optuna, which is not installed; pip install "azjax[sweep]"',
        )
        for axis in self.axes().values():
            require(
                isinstance(axis, Range) or all(not isinstance(value, tuple) for value in axis.values),
                "lists of layers can't be searched; sweep over them instead",
            )
        for values in self._corners():
            member_options(self.base, {**values, "seed": self.base.seed})

    def _corners(self) -> list[dict[str, Any]]:
        """The ends of every axis, all first values and all last ones."""
        ends = {
            name: (axis.low, axis.high) if isinstance(axis, Range) else (axis.values[0], axis.values[-1])
            for name, axis in self.axes().items()
        }
        return [{name: pair[end] for name, pair in ends.items()} for end in (0, 1)]


def default_space(options: TrainOptions) -> dict[str, str]:
    """What is searched if nothing is named."""
    if options.algorithm == "trpo":
        return {"max_kl": "log:3e-3..1e-1"} | {k: v for k, v in DEFAULT_SPACE.items() if k != "learning_rate"}
    return dict(DEFAULT_SPACE)


class Found(NamedTuple):
    """A finished search."""

    folder: Path
    summary: dict[str, Any]


def tune(search: Search, folder: Path | None = None) -> Found:
    """Searches from the beginning.

    Args:
      search: what to search.
      folder: new or empty; default ``runs/ENV-ALGORITHM-tune-TIME``.

    Raises:
      ConfigError: for a search that makes no sense, before anything is written.
      RunInterrupted: if a signal stopped it; ``azjax resume`` goes on.
    """
    if folder is not None:
        check_free(folder)
    search.validate()
    path = folder or default_folder(f"{search.base.env}-{search.base.algorithm}-tune")
    made = RunFolder.new(path, chosen=folder is not None)
    write_text(made.file(TUNE), to_text(search))
    with made.claimed():
        return _search_until_stopped(made, search)


def resume(path: Path, *, steps: int | None = None, devices: int | None = None, quiet: bool = False) -> Found:
    """Goes on with a search that was interrupted."""
    require(steps is None, f"{path} is a search, whose trials have equally many steps; leave --steps out")
    require(not jax.distributed.is_initialized(), "a search runs in one process; leave the coordinator out")
    folder = RunFolder.existing(path, nested=True)
    require(not folder.file("summary.json").exists(), f"search {path} is finished; its results are in {path}")
    search = from_text(read_limited(folder.file(TUNE), _LARGEST).decode("utf-8", "replace"), folder.file(TUNE))
    base = dataclasses.replace(search.base, quiet=quiet, devices=devices or search.base.devices)
    search = dataclasses.replace(search, base=base)
    search.validate()
    with folder.claimed():
        return _search_until_stopped(folder, search)


def _search_until_stopped(folder: RunFolder, search: Search) -> Found:
    mend = f"go on from what was saved with: azjax resume {folder.path}"
    try:
        with Interrupts(mend):
            return _search(folder, search)
    except RunInterrupted as stop:  # of a batch, which does not go on by itself
        raise RunInterrupted(stop.signal, mend) from stop


def _search(folder: RunFolder, search: Search) -> Found:
    study = open_study(folder.file("study.log"), search.base.seed)
    axes = search.axes()
    with RunConsole(0, quiet=search.base.quiet) as console:
        for number, size in enumerate(_batches(search)):
            waiting = [trial for trial in study.trials if trial.user_attrs.get("batch") == number]
            for _ in range(size - len(waiting)):
                _ask(study, axes).set_user_attr("batch", number)
            waiting = [trial for trial in study.trials if trial.user_attrs.get("batch") == number]
            unfinished = [trial for trial in waiting if not trial.state.is_finished()]
            if not unfinished:
                continue
            console.say(f"batch {number} of {len(_batches(search))}: {len(waiting)} trials with {search.seeds} seeds")
            scores = _run_batch(folder.path / "batches" / f"{number:02d}", search, [t.params for t in waiting])
            for trial, score in zip(waiting, scores, strict=True):
                if not trial.state.is_finished():
                    _tell(study, trial.number, score)
            if any(trial.value is not None for trial in study.trials):
                console.say(f"best so far: {study.best_value:.1f} with {_words(study.best_params)}")
        return Found(folder.path, _finish(folder, search, study, console))


def _batches(search: Search) -> list[int]:
    """The numbers of trials in each batch."""
    full, rest = divmod(search.trials, search.batch)
    return [search.batch] * full + [rest] * (rest > 0)


def open_study(path: Path, seed: int) -> Any:
    """The study in a journal, made if there is none; no other process may be using it.

    Raises:
      ConfigError: if the journal can't be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # What a kill left: optuna would wait for the lock, and write behind a line that was cut short.
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        os.truncate(path, read_limited(path, _LARGEST_JOURNAL).rfind(b"\n") + 1)
    # Its other kind of lock is a link, which resuming a folder refuses.
    storage = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    study = optuna.create_study(study_name="azjax", storage=storage, direction="maximize", load_if_exists=True)
    # Trials of a batch are trained at once. A search that goes on must not draw again what it has drawn.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 7919 * len(study.trials), constant_liar=True)
    return study


def _ask(study: Any, axes: Axes) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return study.ask({
        name: FloatDistribution(axis.low, axis.high, log=axis.log) if isinstance(axis, Range)
        else CategoricalDistribution(axis.values)  # type: ignore[arg-type]
        for name, axis in axes.items()
    })  # fmt: skip


def _tell(study: Any, number: int, score: float | None) -> None:
    from optuna.trial import TrialState

    if score is None:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, score)


def _run_batch(path: Path, search: Search, trials: list[dict[str, Any]]) -> list[float | None]:
    """Trains the trials of a batch; each one's mean return over seeds, None if a seed broke."""
    valid = [values for values in trials if _makes_sense(search, values)]
    if valid and not (path / "summary.json").exists():
        if path.exists():
            resume_sweep(path, quiet=search.base.quiet)
        else:
            seeds = range(search.base.seed, search.base.seed + search.seeds)
            members: list[Member] = [{**values, "seed": seed} for values in valid for seed in seeds]
            path.parent.mkdir(exist_ok=True)
            run_sweep(Sweep(search.base, tuple(members), search.chunk), path)
    rows = read_rows(path) if valid else []
    scores: list[float | None] = []
    for values in trials:
        if values not in valid:
            scores.append(None)
            continue
        i = valid.index(values)
        own = [row["return_mean"] for row in rows[i * search.seeds : (i + 1) * search.seeds] if not row["frozen"]]
        whole = len(own) == search.seeds and all(value is not None for value in own)
        scores.append(sum(own) / len(own) if whole else None)
    return scores


def _makes_sense(search: Search, values: dict[str, Any]) -> bool:
    """Whether values that are each allowed are allowed together."""
    try:
        member_options(search.base, {**values, "seed": search.base.seed})
    except ConfigError:
        return False
    return True


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The members of a finished sweep."""
    rows: list[dict[str, Any]] = read_json(path / "summary.json", 1 << 26)["rows"]
    return rows


def _finish(folder: RunFolder, search: Search, study: Any, console: RunConsole) -> dict[str, Any]:
    done = [trial for trial in study.trials if trial.value is not None]
    require(bool(done), f"no trial of {folder.path} ended with a return; search nearer to the preset")
    best = study.best_params
    preset = folder.file("preset.yaml")
    write_text(preset, yaml.safe_dump({search.base.env: preset_values(search.base) | best}, sort_keys=False))
    rows = [{"trial": trial.number, "return_mean": trial.value, **trial.params} for trial in study.trials]
    write_text(folder.file("trials.csv"), to_csv(rows))
    summary = {
        "kind": "tune",
        "env": search.base.env,
        "algorithm": search.base.algorithm,
        "trials": len(study.trials),
        "failed": len(study.trials) - len(done),
        "best": {"return_mean": study.best_value, "values": best},
    }
    write_json(folder.file("summary.json"), summary)
    algorithm = "" if search.base.algorithm == "ppo" else f" --algorithm {search.base.algorithm}"
    rows_shown = [
        ("best trial", f"return {study.best_value:.1f} (mean of {search.seeds} seeds): {_words(best)}"),
        ("trials", str(folder.file("trials.csv"))),
        ("preset", f"azjax train {search.base.env}{algorithm} --preset {preset}"),
    ]
    console.summary(f"{search.base.algorithm} on {search.base.env}, {len(study.trials)} trials", rows_shown)
    return summary


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def to_text(search: Search) -> str:
    """The text of ``tune.yaml``."""
    fields = {f.name: getattr(search, f.name) for f in dataclasses.fields(search) if f.name != "base"}
    return yaml.safe_dump({"schema": SCHEMA, "base": to_plain(resolve(search.base)), **fields}, sort_keys=False)


def from_text(text: str, path: Path) -> Search:
    """The search in the text of a ``tune.yaml``; ``path`` is for the messages."""
    try:
        data = parse_yaml(text.encode())
        require(isinstance(data, dict), "it holds no mapping")
        require(data.get("schema") == SCHEMA, f"it has schema {data.get('schema')!r}, this azjax reads {SCHEMA}")
        base = options_from_plain(data.get("base"), TrainOptions)
        space, numbers = data.get("space"), {name: data.get(name) for name in ("trials", "batch", "seeds")}
        require(isinstance(space, dict) and len(space) > 0, "space is no mapping")
        require(all(type(value) is int for value in numbers.values()), "trials, batch or seeds is no whole number")
        search = Search(base, space, chunk=data.get("chunk"), **numbers)
        search.axes()
    except ValueError as error:
        raise ConfigError(f"{path} describes no search: {error}; {_MEND}") from error
    return search
