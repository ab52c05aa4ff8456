"""Proposers of tasks behind one protocol; a new one is one file."""

from azjax.selfplay.proposers.base import Feedback, Proposer, proposer_reward
from azjax.selfplay.proposers.learned import LearnedConfig, LearnedState, learned
from azjax.selfplay.proposers.sfl import SFLConfig, SFLState, sfl
from azjax.selfplay.proposers.uniform import uniform

__all__ = [
    "Feedback",
    "LearnedConfig",
    "LearnedState",
    "Proposer",
    "SFLConfig",
    "SFLState",
    "learned",
    "proposer_reward",
    "sfl",
    "uniform",
]
