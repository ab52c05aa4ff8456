"""Flags of commands whose learner --algorithm chooses: each learner has hyperparameters of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from azjax.algorithms import ALGORITHMS
from azjax.cli.parsing import flags_of, parse
from azjax.config import ConfigError
from azjax.on_policy import OnPolicyConfig
from azjax.runs.run_options import RunOptions

T = TypeVar("T", bound=RunOptions)


def flags_by_algorithm(
    options: type[T], what: str, learners: Mapping[str, Callable[[], OnPolicyConfig]] | None = None
) -> dict[str, type[T]]:
    """The options with the hyperparameters of each algorithm, as the classes whose fields are a command's flags.

    Args:
      options: of the command.
      what: they are options of.
      learners: each algorithm's hyperparameters, where they aren't its own defaults.
    """
    flags: dict[str, type[T]] = {}
    for name, algorithm in ALGORITHMS.items():
        default: Any = algorithm.config if learners is None else learners[name]
        learner = Annotated[algorithm.config, tyro.conf.arg(help=f"Hyperparameters of {name.upper()}.")]  # type: ignore[name-defined]
        others = [
            f"`--algorithm {other} --help` shows those of {other.upper()}" for other in ALGORITHMS if other != name
        ]
        flags[name] = dataclasses.make_dataclass(
            f"{name.upper()}{options.__name__}",
            [("learner", learner, dataclasses.field(default_factory=default))],
            bases=(options,),
            frozen=True,
            namespace={
                "__doc__": f"Options of {what} with {name.upper()}; {', '.join(others)}.",
                "__module__": options.__module__,
            },
        )
    return flags


def read_options(flags: Mapping[str, type[T]], default_of: Callable[[T], Any], args: Sequence[str], prog: str) -> T:
    """Options from a preset, overridden by flags.

    ``--help`` shows the preset's values as defaults, those of what is named beside it.

    Args:
      flags: from ``flags_by_algorithm``.
      default_of: what the flags override, by what the command line names.
      args: the command line.
      prog: the command.
    """
    algorithm = _chosen_algorithm(args)
    own = flags.get(algorithm, flags["ppo"])
    _check_owner(args, algorithm, flags, own, prog)
    named = parse(own, [a for a in args if a not in ("-h", "--help")], prog=prog)
    return parse(own, args, prog=prog, default=own(**vars(default_of(named))))


def options_of_run(options: Any, cls: type[T]) -> T:
    """The options of a run among those of its command."""
    return cls(**{field.name: getattr(options, field.name) for field in dataclasses.fields(cls)})


def _chosen_algorithm(args: Sequence[str]) -> str:
    """What the command line names as the algorithm: it decides which flags there are."""
    chosen = "ppo"
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if flag == "--algorithm":
            chosen = value if equals else following
    return chosen


def _check_owner(args: Sequence[str], algorithm: str, flags: Mapping[str, type], own: type, prog: str) -> None:
    """Raises ``ConfigError`` for a flag that only another algorithm has."""
    for word in args:
        flag = word.partition("=")[0].replace("_", "-")
        owners = [name for name, other in flags.items() if flag in flags_of(other)]
        if owners and flag not in flags_of(own):
            raise ConfigError(f"{flag} is an option of {owners[0]}, not of {algorithm}; see {prog} --help")
