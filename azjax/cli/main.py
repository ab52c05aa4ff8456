"""``azjax COMMAND``: finds the command and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from azjax.config import ConfigError, nearest

COMMANDS = {
    "train": "train a policy: azjax train ENV [--backend B] [--steps N] [--seed S] [--run DIR] ...",
    "sweep": "train many at once: azjax sweep ENV [--gamma 0.97,0.99] [--learning-rate log:1e-4..1e-2] [--seeds N] ...",
    "tune": "search for hyperparameters: azjax tune ENV [--learning-rate log:1e-4..1e-2] [--trials N] [--seeds N] ...",
    "selfplay": "have an agent propose its own tasks: azjax selfplay ENV [--tasks T,T] [--proposer P] ...",
    "reason": "train, examine and use a reasoner: azjax reason train|evaluate|solve|propose ...",
    "resume": "go on with a run that was interrupted, or make it longer: azjax resume DIR [--steps N]",
    "evaluate": "play full episodes with a trained policy: azjax evaluate DIR [--episodes N] ...",
    "compare": "compare runs in the terminal: azjax compare RUN [RUN ...] [--json] ...",
    "report": "write an HTML page about runs: azjax report RUN [RUN ...] [--output FILE] ...",
    "render": "show an episode of a trained policy: azjax render DIR [--output FILE.html|.gif|.mp4] ...",
    "export": "write a trained policy as StableHLO and numpy files: azjax export DIR [--output FILE.stablehlo] ...",
    "envs": "list the environments with their sizes and backends",
    "doctor": "say what is installed, which devices JAX sees, and whether a tiny training step works",
}
BROKEN = 1
WRONG_INPUT = 2
INTERRUPTED = 130
WATCHED = "AZJAX_WATCHED"
"""Set in the environment of a process that azjax.cli.together watches."""
LOST = 75
"""Exit code of a watched process that lost another one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      The exit code: 0; 1 if JAX's devices don't work, memory or disk is full, or ``doctor`` found something broken; 2
      for wrong input; 130 after Ctrl-C and 143 after SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "±" must not end a run
            stream.reconfigure(errors="replace")
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else WRONG_INPUT
    if args[0] == "--version":
        from azjax import __version__

        print(f"azjax {__version__}")
        return 0
    name, rest = args[0], args[1:]
    prog = f"azjax {name}"
    if name not in COMMANDS:
        print(
            f"azjax: error: unknown command {name!r}{nearest(name, list(COMMANDS))} (there are: {', '.join(COMMANDS)})",
            file=sys.stderr,
        )
        return WRONG_INPUT
    run: Callable[[Sequence[str], str], int] = importlib.import_module(f"azjax.cli.{name}").run
    try:
        return run(rest, prog)
    except ConfigError as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in reason:
            mend = "use fewer --lanes, a shorter --rollout-length or fewer --evaluation-episodes"
            print(f"{prog}: error: out of memory: {reason}; {mend}", file=sys.stderr)
        elif WATCHED in os.environ and type(error).__name__ == "JaxRuntimeError":
            print(f"{prog}: {reason[:300]}", file=sys.stderr)
            return LOST
        elif "nitialize backend" in reason:
            print(f"{prog}: error: JAX can't use its devices: {reason}; see azjax doctor", file=sys.stderr)
        else:
            raise
        return BROKEN
    except BrokenPipeError:  # nobody reads any more
        return BROKEN
    except OSError as error:
        print(f"{prog}: error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt as stop:
        print(f"{prog}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return getattr(stop, "exit_code", INTERRUPTED)


def entry() -> NoReturn:
    """The ``azjax`` script: ends the process with the code of ``main``."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads any more; Python would complain of it at the end
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code > 128:  # at once, without waiting for a program that XLA is still busy with
        os._exit(code)
    sys.exit(code)


def usage() -> str:
    """The text of ``azjax --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "azjax: massively parallel reinforcement learning in JAX\n\n"
        f"usage: azjax COMMAND [options]\n\ncommands:\n{commands}\n\n"
        "azjax COMMAND --help shows the options of a command; azjax --version the version."
    )
