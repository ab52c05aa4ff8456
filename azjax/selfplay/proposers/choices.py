"""The proposers by name, with the settings that a command line gives them."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from azjax.config import nearest, require, require_number
from azjax.selfplay.proposers.base import Proposer
from azjax.selfplay.proposers.grid import grid_adaptive
from azjax.selfplay.proposers.guided import GuidedConfig, guided
from azjax.selfplay.proposers.learned import LearnedConfig, learned
from azjax.selfplay.proposers.plr import PLRConfig, plr
from azjax.selfplay.proposers.sfl import SFLConfig, sfl
from azjax.selfplay.proposers.uniform import uniform
from azjax.selfplay.proposers.widening import WideningConfig, widening
from azjax.selfplay.spaces import TaskFamily

__all__ = ["PROPOSERS", "ProposerName", "ProposerSettings", "make_proposer"]

ProposerName = Literal["uniform", "widening", "grid", "sfl", "plr", "learned", "frozen", "guided"]
PROPOSERS: tuple[str, ...] = get_args(ProposerName)


@dataclasses.dataclass(frozen=True)
class ProposerSettings:
    """What may be set of a proposer; ``None`` leaves its own default, and is all that others accept."""

    uniform_share: float | None = None  # sfl, plr, learned, frozen, guided: share of proposals that are uniform
    learning_rate: float | None = None  # learned, guided
    entropy: float | None = None  # learned: weight of the entropy bonus
    widening_updates: int | None = None  # widening: updates until the whole space is proposed


_TAKES = {
    "uniform_share": ("sfl", "plr", "learned", "frozen", "guided"),
    "learning_rate": ("learned", "guided"),
    "entropy": ("learned",),
    "widening_updates": ("widening",),
}


def check_settings(name: str, settings: ProposerSettings) -> None:
    """Raises ``ConfigError`` for a proposer that doesn't exist, or a setting that it has no use for or can't have."""
    require(
        name in PROPOSERS,
        f"proposer is {name!r}{nearest(name, list(PROPOSERS))}; it must be one of {', '.join(PROPOSERS)}",
    )
    for field, value in dataclasses.asdict(settings).items():
        option = field if field.startswith(("widening", "uniform")) else f"proposer_{field}"
        require(
            value is None or name in _TAKES[field],
            f"{option} is {value}, but proposer {name!r} has no use for it (only: {', '.join(_TAKES[field])}); "
            "leave it out",
        )
        if value is not None:
            low, high = {"entropy": (-1e6, 1e6), "widening_updates": (1, 2**30)}.get(field, (0.0, 1.0))
            require_number(option, value, low, high)


def make_proposer(
    name: str, family: TaskFamily, settings: ProposerSettings | None = None, *, axis_name: str | None = None
) -> Proposer:
    """A proposer by name; `frozen` is the learned one that never learns.

    Args:
      name: one of ``PROPOSERS``.
      family: the tasks.
      settings: what differs from its defaults.
      axis_name: the device axis.

    Raises:
      ConfigError: for an unknown name, or settings that it doesn't have.
    """
    chosen = ProposerSettings() if settings is None else settings
    check_settings(name, chosen)
    share = 0.5 if chosen.uniform_share is None else chosen.uniform_share
    if name == "uniform":
        return uniform(family)
    if name == "widening":
        updates = chosen.widening_updates
        return widening(family, WideningConfig() if updates is None else WideningConfig(updates=updates))
    if name == "grid":
        return grid_adaptive(family, axis_name=axis_name)
    if name == "sfl":
        return sfl(family, SFLConfig(fresh=share), axis_name=axis_name)
    if name == "plr":
        return plr(family, PLRConfig(replay=1.0 - share), axis_name=axis_name)
    if name == "guided":
        rate = GuidedConfig().learning_rate if chosen.learning_rate is None else chosen.learning_rate
        return guided(family, GuidedConfig(uniform=share, learning_rate=rate), axis_name=axis_name)
    config = LearnedConfig(uniform=share, frozen=name == "frozen")
    own = config.learner
    if chosen.learning_rate is not None:
        own = dataclasses.replace(own, learning_rate=chosen.learning_rate)  # type: ignore[call-arg]
    if chosen.entropy is not None:
        own = dataclasses.replace(own, entropy_coefficient=chosen.entropy)  # type: ignore[call-arg]
    return learned(family, dataclasses.replace(config, learner=own), axis_name=axis_name)
