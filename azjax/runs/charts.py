"""Learning curves as inline SVG: small, with text as text, coloured by the page's own style sheet.

matplotlib's SVG carries its styles in attributes, which a strict Content-Security-Policy refuses, and one set of
colours; these drawings follow the page into the dark. Ticks are matplotlib's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from azjax.runs.markup import Html, element
from azjax.statistics import CurveSummary

COLOURS = 8  # of the page's style sheet; more curves than that are dashed
_WIDTH, _HEIGHT = 440.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 10.0, 38.0
_MOST_MARKS = 24
_MOST_SEEDS = 20
_DASHES = ("none", "6 3", "2 2", "8 3 2 3")
# One shape after the other, so that curves can be told apart without colours.
_SHAPES = ("M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z", "M-3-3h6v6h-6z", "M0-4L4 3H-4z", "M0-4L4 0 0 4-4 0z")


@dataclasses.dataclass(frozen=True)
class Series:
    """The curves of one configuration."""

    index: int  # its place among the configurations: colour and shape
    label: str
    summary: CurveSummary


def draw(series: Sequence[Series], *, x_label: str, y_label: str, marks: bool) -> Html:
    """A chart of the IQM of each configuration with its interval as a band and single seeds as thin lines.

    Args:
      series: at least one.
      x_label: what the horizontal axis is.
      y_label: what the vertical axis is.
      marks: whether to mark the points, where they are few.
    """
    frame = _Frame(series)
    names = ", ".join(entry.label for entry in series)
    return element(
        "svg",
        _grid(frame, x_label, y_label),
        *(_series(frame, entry, marks) for entry in series),
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=f"{y_label} against {x_label}: {names}",
    )


def swatch(index: int) -> Html:
    """A piece of a configuration's line with its mark, for legends and tables."""
    mark = element("path", d=_SHAPES[index % len(_SHAPES)], transform="translate(12 6)", class_="mark")
    return element("svg", _line("M0 6H24", index), mark, viewBox="0 0 24 12", class_=f"swatch {_class(index)}")


class _Frame:
    """From data to the drawing."""

    def __init__(self, series: Sequence[Series]) -> None:
        from matplotlib.ticker import EngFormatter, MaxNLocator  # late: it takes long, and only this needs it

        drawn = [np.concatenate([s.summary.values.ravel(), s.summary.low, s.summary.high]) for s in series]
        low, high = min(float(v.min()) for v in drawn), max(float(v.max()) for v in drawn)
        pad = 0.04 * (high - low) or max(abs(high) * 0.05, 0.5)
        self.x = (0.0, max(float(s.summary.x[-1]) for s in series) or 1.0)
        self.y = (low - pad, high + pad)
        thousands, locator = EngFormatter(sep=""), MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])

        def form(tick: float) -> str:  # "k" and "M" are read at once, "m" for a thousandth is not
            return thousands(tick) if abs(tick) >= 1000 else f"{tick:g}"

        self.x_ticks, self.y_ticks = (
            [(float(tick), form(tick)) for tick in locator.tick_values(*ends) if ends[0] <= tick <= ends[1]]
            for ends in (self.x, self.y)
        )

    def across(self, x: np.ndarray | float) -> np.ndarray:
        return _LEFT + (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def down(self, y: np.ndarray | float) -> np.ndarray:
        return _HEIGHT - _BOTTOM - (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM)

    def path(self, x: np.ndarray, y: np.ndarray) -> str:
        points = zip(self.across(x), self.down(y), strict=True)
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _grid(frame: _Frame, x_label: str, y_label: str) -> Html:
    parts = []
    for value, text in frame.x_ticks:
        x = f"{frame.across(value):.1f}"
        parts.append(element("text", text, x=x, y=f"{_HEIGHT - _BOTTOM + 15:g}", class_="tick middle"))
        parts.append(element("path", d=f"M{x} {_TOP:g}V{_HEIGHT - _BOTTOM:g}", class_="grid"))
    for value, text in frame.y_ticks:
        y = float(frame.down(value))
        parts.append(element("text", text, x=f"{_LEFT - 6:g}", y=f"{y + 4:.1f}", class_="tick end"))
        parts.append(element("path", d=f"M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}", class_="grid"))
    middle, centre = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(element("text", x_label, x=f"{middle:g}", y=f"{_HEIGHT - 6:g}", class_="axis middle"))
    turned = f"translate(11 {centre:g}) rotate(-90)"
    parts.append(element("text", y_label, transform=turned, class_="axis middle"))
    return element("g", *parts)


def _series(frame: _Frame, entry: Series, marks: bool) -> Html:
    s = entry.summary
    parts = [element("title", entry.label)]
    if len(s.values) > 1:
        there, back = frame.path(s.x, s.high), frame.path(s.x[::-1], s.low[::-1])
        parts.append(element("path", d=f"{there}L{back[1:]}z", class_="band"))
        parts += [element("path", d=frame.path(s.x, y), class_="seed") for y in s.values[:_MOST_SEEDS]]
    parts.append(_line(frame.path(s.x, s.iqm), entry.index))
    if len(s.x) == 1 or (marks and len(s.x) <= _MOST_MARKS):
        shape = _SHAPES[entry.index % len(_SHAPES)]
        for x, y in zip(frame.across(s.x), frame.down(s.iqm), strict=True):
            parts.append(element("path", d=shape, transform=f"translate({x:.1f} {y:.1f})", class_="mark"))
    return element("g", *parts, class_=_class(entry.index))


def _line(d: str, index: int) -> Html:
    return element("path", d=d, class_="line", stroke_dasharray=_DASHES[index // COLOURS % len(_DASHES)])


def _class(index: int) -> str:
    return f"c{index % COLOURS}"
