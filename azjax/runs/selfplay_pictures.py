"""Pictures of a self-play run: heat maps over the task space through time, and curves."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from azjax.config import ConfigError, require
from azjax.runs import markup
from azjax.runs.folder import replacing, write_text
from azjax.runs.markup import Html, element, join
from azjax.runs.policy import read_arrays
from azjax.selfplay.heldout import HeldOut
from azjax.selfplay.maps import CELLS, PHASES, Plane, TaskMaps, planes_of
from azjax.selfplay.spaces import Parameter, TaskFamily

TASKS, HELD_OUT = "tasks.npz", "heldout.npz"
_MAPS = ("proposed", "accepted", "rate", "reward")
_MOST_PLANES = 4  # of a type, drawn
_MOST_COLUMNS = 8


class Picture(NamedTuple):
    """A PNG and what it shows."""

    caption: str
    png: bytes


class TaskRecord(NamedTuple):
    """What is left of where proposals fell, and of the last evaluation."""

    maps: dict[str, np.ndarray]  # float64 [phases, planes, C, C] each
    phase_updates: int
    cube: np.ndarray  # float32 [G, D]
    type: np.ndarray  # int [G]
    inside: np.ndarray  # bool [G]
    success: np.ndarray  # bool [G, n]


def save_tasks(folder: Path, maps: TaskMaps, held_out: HeldOut, success: np.ndarray) -> None:
    """Writes ``tasks.npz`` and ``heldout.npz``."""
    length = int(maps.length)
    phases = max(1, -(-int(maps.updates) // length))
    arrays = {name: np.asarray(getattr(maps, name))[:phases] for name in _MAPS}
    kind = np.asarray(held_out.task.type)
    for name, content in (
        (TASKS, arrays | {"phase_updates": np.int64(length)}),
        (HELD_OUT, {"cube": held_out.cube, "type": kind, "inside": held_out.inside, "success": success}),
    ):
        with replacing(folder / name) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **content)


def read_tasks(folder: Path, family: TaskFamily) -> TaskRecord:
    """Reads what ``save_tasks`` wrote, or a stranger.

    Raises:
      ConfigError: if a file is missing, damaged, or does not fit the tasks.
    """
    maps, held_out = read_arrays(folder / TASKS), read_arrays(folder / HELD_OUT)
    planes, phases = len(planes_of(family)), len(maps.get(_MAPS[0], ()))
    shape = (phases, planes, CELLS, CELLS)
    good = 1 <= phases <= PHASES and all(name in maps and maps[name].shape == shape for name in _MAPS)
    good = good and all(bool(np.isfinite(maps[name]).all()) for name in _MAPS)
    require(good, f"{folder / TASKS} does not hold the maps of these tasks; use another copy of the run")
    length, count = maps.get("phase_updates", np.zeros(0)), len(held_out.get("type", ()))
    wanted = {"cube": (count, family.size), "type": (count,), "inside": (count,)}
    fits = all(name in held_out and held_out[name].shape == size for name, size in wanted.items())
    success = held_out.get("success", np.zeros(0))
    fits = fits and success.ndim == 2 and success.shape[0] == count > 0 and success.shape[1] > 0
    fits = fits and np.isfinite(held_out["cube"]).all() and length.shape == () and int(length) >= 1
    require(bool(fits), f"{folder / HELD_OUT} does not fit the tasks; use another copy of the run")
    return TaskRecord(
        {name: np.asarray(maps[name], np.float64) for name in _MAPS},
        int(length),
        held_out["cube"],
        held_out["type"].astype(int),
        held_out["inside"].astype(bool),
        success.astype(bool),
    )


def pictures_of(record: TaskRecord, records: Sequence[Mapping[str, Any]], family: TaskFamily) -> list[Picture]:
    """All pictures: curves, held-out success, and heat maps of every type."""
    pictures = [
        Picture("Held-out tasks and proposals through training.", draw_curves(records, family)),
        Picture(
            "Success at the held-out tasks after training; crosses are outside of the training range.",
            _draw_held_out(record, family),
        ),
    ]
    seen = dict.fromkeys(range(len(family.types)), 0)
    for number, plane in enumerate(planes_of(family)):
        seen[plane.type] += 1
        if seen[plane.type] <= _MOST_PLANES:
            name = family.types[plane.type]
            caption = f"{name.capitalize()} tasks: share of the proposals, success and learnability, from left to right"
            pictures.append(Picture(f"{caption} through training.", _draw_maps(record, family, number, plane)))
    return pictures


def picture_section(folder: Path, records: Sequence[Mapping[str, Any]], family: TaskFamily) -> Html:
    """The pictures of a run as a piece of a page, or why there are none."""
    try:
        pictures = pictures_of(read_tasks(folder, family), records, family)
    except (ConfigError, ValueError) as error:
        return element("p", f"The task space can't be shown: {error}.", class_="note")
    return join(*map(_figure, pictures))


def write_page(path: Path, title: str, facts: Sequence[tuple[str, str]], section: Html) -> None:
    """Writes a page without scripts that asks for nothing."""
    template = markup.asset("report.html")
    style = markup.source(markup.style_of(template))
    policy = f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src {style}"
    rows = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in facts]
    body = join(
        element("header", element("h1", title)),
        element("section", element("table", element("tbody", *rows))),
        element("section", section),
    )
    write_text(path, markup.fill(template, {"policy": policy, "title": join(title), "body": body}))


def draw_curves(records: Sequence[Mapping[str, Any]], family: TaskFamily) -> bytes:
    """Held-out scores, success at proposed tasks, learnability and entropy against environment steps."""
    figure = _figure_of(10.5, 3.4)
    axes = figure.subplots(1, 3)
    panels: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "held-out tasks",
            [
                ("heldout/success", "mean success"),
                ("heldout/coverage", "coverage"),
                ("heldout/cvar10", "worst tenth"),
                ("heldout/outside_success", "success outside"),
                ("heldout/outside_coverage", "coverage outside"),
            ],
        ),
        (
            "proposed tasks",
            [
                ("selfplay/success", "success"),
                ("selfplay/learnability", "learnability"),
                ("verification/accepted", "accepted"),
            ],
        ),
        ("entropy of proposals", [(f"selfplay/entropy_{name}", name) for name in family.types]),
    ]
    for axis, (title, curves) in zip(axes, panels, strict=True):
        for key, label in curves:
            rows = [(r["env_steps"], r[key]) for r in records if key in r]
            if rows:
                dashed = "--" if "outside" in key else "-"
                x, y = zip(*rows, strict=True)
                axis.plot(
                    x, y, dashed, label=label, linewidth=1.3, marker="o" if len(rows) < 12 else None, markersize=3
                )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("environment steps", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.set_ylim(-0.03, None)
        if axis.lines:
            axis.legend(frameon=False, fontsize=7)
    return _png(figure)


def _draw_held_out(record: TaskRecord, family: TaskFamily) -> bytes:
    types = len(family.types)
    figure = _figure_of(3.6 * types + 0.6, 3.2)
    axes = np.atleast_1d(figure.subplots(1, types))
    rate, drawn = record.success.mean(axis=1), None
    for kind, (axis, (name, space)) in enumerate(zip(axes, family.spaces.items(), strict=True)):
        first, second = 0, max(0, space.size - 1) if name == "goal" else min(1, space.size - 1)
        for inside, marker in ((True, "o"), (False, "x")):
            chosen = (record.type == kind) & (record.inside == inside)
            x = record.cube[chosen, first]
            y = record.cube[chosen, second] if second != first else np.zeros(chosen.sum())
            drawn = axis.scatter(x, y, c=rate[chosen], cmap="viridis", vmin=0, vmax=1, s=10, marker=marker)
        _label(axis, list(space.parameters.items()), first, second)
        axis.set_title(name, fontsize=9)
    figure.colorbar(drawn, ax=list(axes), label="success rate")
    return _png(figure)


def _draw_maps(record: TaskRecord, family: TaskFamily, number: int, plane: Plane) -> bytes:
    """Three rows (share of proposals, success, learnability) and a column for each span of training."""
    maps = {name: record.maps[name][:, number] for name in _MAPS}
    length = record.phase_updates
    while len(maps["proposed"]) > _MOST_COLUMNS:
        maps = {name: np.add.reduceat(x, range(0, len(x), 2)) for name, x in maps.items()}
        length *= 2
    columns = len(maps["proposed"])
    totals = np.maximum(maps["proposed"].sum(axis=(1, 2), keepdims=True), 1.0)
    attempted = np.where(maps["accepted"] > 0, maps["accepted"], np.nan)
    rows = [
        ("proposals", maps["proposed"] / totals * CELLS**2, "magma", 4.0),
        ("success", maps["rate"] / attempted, "viridis", 1.0),
        ("learnability", maps["reward"] / attempted, "viridis", 1.0),
    ]
    flat = plane.first == plane.second
    figure = _figure_of(1.25 * columns + 2.2, 2.6 if flat else 4.4)
    axes = figure.subplots(3, columns, squeeze=False)
    parameters = list(list(family.spaces.values())[plane.type].parameters.items())
    for row, (label, values, colours, most) in enumerate(rows):
        line = axes[row]
        for column, axis in enumerate(line):
            shown = np.diagonal(values[column])[None] if flat else values[column].T
            drawn = axis.imshow(
                shown, origin="lower", extent=(0, 1, 0, 1), cmap=colours, vmin=0, vmax=most, aspect="auto"
            )
            _label(axis, parameters, plane.first, plane.second)
            if row < len(rows) - 1:
                axis.set_xlabel("")
                axis.set_xticklabels([])
            if column:
                axis.set_ylabel("")
                axis.set_yticklabels([])
            if row == 0:
                axis.set_title(f"from update {column * length}", fontsize=6)
        figure.colorbar(drawn, ax=list(line), label="× uniform" if label == "proposals" else label)
    return _png(figure)


def _label(axis: Any, parameters: list[tuple[str, Parameter]], first: int, second: int) -> None:
    """Names and values of the parameters behind the axes of a cube."""
    for place, (ticks, labels, name_of) in (
        (first, (axis.set_xticks, axis.set_xticklabels, axis.set_xlabel)),
        (second, (axis.set_yticks, axis.set_yticklabels, axis.set_ylabel)),
    ):
        if place == second and first == second and ticks == axis.set_yticks:
            ticks([])
            continue
        name, parameter = parameters[place]
        ticks([0.0, 0.5, 1.0])
        labels([f"{float(parameter.decode(np.float32(u))):.3g}" for u in (0.0, 0.5, 1.0)], fontsize=6)
        unit = f" [{parameter.unit}]" if parameter.unit else ""
        name_of(f"{name.replace('_', ' ')}{unit}", fontsize=7)


def _figure_of(width: float, height: float) -> Any:
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: it takes long, and only this needs it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png")
    return content.getvalue()


def _figure(picture: Picture) -> Html:
    data = base64.b64encode(picture.png).decode("ascii")
    image = Html(f'<img src="data:image/png;base64,{data}" alt="{picture.caption}">')
    return element("figure", element("figcaption", picture.caption), image)
