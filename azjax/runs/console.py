"""What a run shows while it works: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_INTERVAL = 5.0
T = TypeVar("T")


class _Lasting:
    """A stream whose reader may go away: what can't be written is lost, and nothing else."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RunConsole:
    """Progress of one run; a context manager.

    Args:
      total_steps: what there is to do, in ``unit``.
      quiet: show only the summary, and warnings.
      silent: show nothing at all, as the processes do that help the first.
      unit: what is counted: its last word is that of the rate.
    """

    def __init__(
        self, total_steps: int, *, quiet: bool = False, silent: bool = False, unit: str = "environment steps"
    ) -> None:
        self.total_steps = total_steps
        self.unit = unit
        self.quiet = quiet or silent
        self._silent = silent
        self._console = Console(
            quiet=silent,
            file=cast(IO[str], _Lasting(sys.stdout)),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0

    def __enter__(self) -> RunConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def say(self, text: str, *, always: bool = False) -> None:
        """One line, above the bar if there is one; of a quiet run only if it must ``always`` be said."""
        if always or not self.quiet:
            (self._bar.console if self._bar else self._console).print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line that is seen even if the run is quiet: above the bar if there is one, else on standard error."""
        line = f"warning: {text}"
        if self._bar:
            self._bar.console.print(line, markup=False)
        elif not self._silent:
            print(line, file=_Lasting(sys.stderr), flush=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Shows that something long without progress is going on, and for how long it took."""
        start = time.monotonic()
        if self.quiet or not self._console.is_terminal:
            self.say(text + " ...")
            yield
        else:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.elapsed:.0f} s"))
            with Progress(*columns, console=self._console, transient=True) as bar:
                bar.add_task(text, total=None)
                yield
        self.say(f"{text}: {time.monotonic() - start:.1f} s")

    def each(self, text: str, items: Iterable[T], total: int) -> Iterator[T]:
        """Passes the items on and shows how many of them are done; off a terminal, a line every few seconds."""
        start = time.monotonic()
        if self._console.is_terminal and not self.quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:.0f} %"),
            )
            with Progress(*columns, console=self._console, transient=True) as bar:
                yield from bar.track(items, total=total, description=text)
        else:
            self._last_line = start
            for count, item in enumerate(items):
                if time.monotonic() - self._last_line >= _PLAIN_INTERVAL:
                    self._last_line = time.monotonic()
                    self.say(f"{text}: {count:,} of {total:,}")
                yield item
        self.say(f"{text}: {time.monotonic() - start:.1f} s")

    def progress(self, env_steps: int, rate: float, shown: str) -> None:
        """Moves the bar; off a terminal, prints a line every few seconds and at the end."""
        if self.quiet:
            return
        if self._console.is_terminal:
            self._move_bar(env_steps, rate, shown)
            return
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_INTERVAL or env_steps >= self.total_steps:
            self._last_line = now
            left = max(self.total_steps - env_steps, 0) / max(rate, 1e-9)
            self.say(
                f"{env_steps:>12,} of {self.total_steps:,} {self.unit}  {_rate(rate):>9} {self.unit.split()[-1]}/s  "
                f"{shown}  {left:.0f} s left"
            )

    def summary(self, title: str, rows: list[tuple[str, str]]) -> None:
        """The last screen: two columns; lines stay whole, so that paths can be copied."""
        self._stop()
        width = max(len(name) for name, _ in rows)
        self._console.print(f"\n{title}")
        for name, value in rows:
            self._console.print(f"{name:<{width}}  {value}")

    def _move_bar(self, env_steps: int, rate: float, shown: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn(f"{{task.completed:,.0f}} / {{task.total:,.0f}} {self.unit}"),
                BarColumn(bar_width=24),
                TextColumn(f"{{task.fields[rate]}} {self.unit.split()[-1]}/s · {{task.fields[shown]}} ·"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=self.total_steps, rate=_rate(rate), shown=shown)
            self._bar.start()
        fields: dict[str, Any] = {"rate": _rate(rate), "shown": shown}
        self._bar.update(self._task or TaskID(0), completed=env_steps, total=self.total_steps, **fields)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rate(rate: float) -> str:
    """A rate in digits that say something."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
