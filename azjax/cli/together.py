"""Commands that several processes run together, each watched by a parent that can say what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from azjax.cli.main import WATCHED
from azjax.runs.hosts import Hosts, joined

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a command ends with by itself: see azjax.cli.main.
_UNDERSTOOD = {0, 1, 2, *(128 + number for number in _SIGNALS)}


def together(hosts: Hosts, command: Sequence[str], work: Callable[[], Any]) -> int:
    """Does the work in this process, or, if there are other processes, in a child that meets them.

    JAX ends a process from C++ when another one is lost: only a parent is left to say so.

    Args:
      hosts: the processes.
      command: the words behind ``azjax``, to start the child with.
      work: what to do.

    Returns:
      The exit code.
    """
    hosts.validate()
    if hosts.several and WATCHED not in os.environ:
        return watch(command)
    with joined(hosts):
        work()
    return 0


def watch(command: Sequence[str]) -> int:
    """Runs a command in a child, passes signals on, and explains an end that the child could not."""
    child = subprocess.Popen(
        [sys.executable, "-m", "azjax", *command],
        env=os.environ | {WATCHED: "1"},
        start_new_session=True,  # a Ctrl-C on the terminal reaches it once, from here
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code in _UNDERSTOOD:
        return code
    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    print(
        f"azjax {command[0]}: error: a process of the run was lost, which ended this one ({ended}); what was saved is "
        "kept: start all processes again with azjax resume DIR",
        file=sys.stderr,
    )
    return 1
