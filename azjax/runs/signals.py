"""Ctrl-C, SIGTERM and a closed terminal as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

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


class RunInterrupted(KeyboardInterrupt):
    """A signal ended the run after it was saved.

    Args:
      number: the signal.
      mend: how to go on.
    """

    def __init__(self, number: signal.Signals, mend: str) -> None:
        super().__init__(f"stopped by {number.name}; {mend}")
        self.exit_code = 128 + number
