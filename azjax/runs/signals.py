"""Ctrl-C, SIGTERM and a closed terminal as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_DEAF = 1.0


class StopRequest:
    """While it is entered, the first SIGINT, SIGTERM or SIGHUP is noted; the next one has its usual effect, at once.

    A signal that is ignored, as ``nohup`` has SIGHUP, stays so.
    Python hands signals to the main thread only: entered elsewhere, it notes nothing, and signals keep their effect.

    Args:
      say: takes a line when the first signal comes.
      deaf: seconds after the first during which others are taken for the same: one that was sent to a whole group of
        processes arrives again from the parent that passes it on.
    """

    def __init__(self, say: Callable[[str], None], deaf: float = 0.0) -> None:
        self._deaf, self._deaf_until = deaf, 0.0
        self.signal: signal.Signals | None = None
        self._say = say
        self._before: dict[signal.Signals, Any] = {}
        self._around: Interrupts | None = None

    def __enter__(self) -> StopRequest:
        self._before = _replace_handlers(self._note)
        owners = [getattr(handler, "__self__", None) for handler in self._before.values()]
        self._around = next((owner for owner in owners if isinstance(owner, Interrupts)), None)
        if self._around is not None and self._around.signal is not None:
            self._note(self._around.signal, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def hand_on(self) -> None:
        """Has the ``Interrupts`` around hear of a signal that came when there was nothing left to stop here."""
        if self.signal is not None and self._around is not None and self._around.signal is None:
            self._around.hear(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() >= self._deaf_until:
                self._restore()
                signal.raise_signal(number)
            return
        self.signal, self._deaf_until = signal.Signals(number), time.monotonic() + self._deaf
        if not self._deaf:
            self._restore()
        self._say(f"{self.signal.name}: finishing the current call, then saving; once more stops at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Interrupts:
    """While it is entered, and no ``StopRequest`` is, a SIGINT, SIGTERM or SIGHUP raises ``RunInterrupted`` at once.

    It is for the time in which there is nothing to finish or to save: between two loops, while programs are compiled.
    A signal that is ignored stays so; entered outside the main thread it does nothing.

    Args:
      mend: how to go on.
      later: only note the first signal, which the next ``StopRequest`` finds: other processes must hear of it first.
        Others in the second after it are taken for the same.
    """

    def __init__(self, mend: str, later: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self._mend, self._later, self._deaf_until = mend, later, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = _replace_handlers(self.hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """A signal has come."""
        if self._later and self.signal is None:
            self.signal, self._deaf_until = signal.Signals(number), time.monotonic() + _SECONDS_DEAF
        elif time.monotonic() >= self._deaf_until:
            raise RunInterrupted(signal.Signals(number), self._mend)


def _replace_handlers(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Has the signals that aren't ignored handled in another way, if this is the main thread; how they were before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class RunInterrupted(KeyboardInterrupt):
    """A signal ended the run after what it had trained was saved.

    Args:
      number: the signal.
      mend: how to go on.
    """

    def __init__(self, number: signal.Signals, mend: str) -> None:
        super().__init__(f"stopped by {number.name}; {mend}")
        self.signal, self.exit_code = number, 128 + number
