"""Proposers of tasks behind one protocol; a new one is one file."""

from azjax.selfplay.proposers.base import Feedback, Proposer, proposer_reward
from azjax.selfplay.proposers.choices import PROPOSERS, ProposerName, ProposerSettings, make_proposer
from azjax.selfplay.proposers.grid import GridConfig, grid_adaptive
from azjax.selfplay.proposers.guided import GuidedConfig, GuidedState, guided
from azjax.selfplay.proposers.learned import LearnedConfig, LearnedState, learned
from azjax.selfplay.proposers.plr import PLRConfig, PLRState, plr
from azjax.selfplay.proposers.sfl import SFLConfig, sfl
from azjax.selfplay.proposers.uniform import uniform
from azjax.selfplay.proposers.widening import WideningConfig, widening

__all__ = [
    "PROPOSERS",
    "Feedback",
    "GridConfig",
    "GuidedConfig",
    "GuidedState",
    "LearnedConfig",
    "LearnedState",
    "PLRConfig",
    "PLRState",
    "Proposer",
    "ProposerName",
    "ProposerSettings",
    "SFLConfig",
    "WideningConfig",
    "grid_adaptive",
    "guided",
    "learned",
    "make_proposer",
    "plr",
    "proposer_reward",
    "sfl",
    "uniform",
    "widening",
]
