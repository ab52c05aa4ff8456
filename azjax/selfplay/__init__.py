"""Self-play without data: the pure pieces with which an agent proposes its own tasks and learns to do them."""

from azjax.selfplay.baselines import Baseline, CellStatistics, cell_statistics, task_role_advantages
from azjax.selfplay.information import (
    BranchedInformation,
    ClassifierInformation,
    OutcomeKind,
    binary_entropy,
    branched_information,
    classifier_information,
    outcome_entropy,
)
from azjax.selfplay.ranked import RankedBuffer, RankedReward, init_ranked, ranked_reward
from azjax.selfplay.scores import LearnabilityKind, learnability

__all__ = [
    "Baseline",
    "BranchedInformation",
    "CellStatistics",
    "ClassifierInformation",
    "LearnabilityKind",
    "OutcomeKind",
    "RankedBuffer",
    "RankedReward",
    "binary_entropy",
    "branched_information",
    "cell_statistics",
    "classifier_information",
    "init_ranked",
    "learnability",
    "outcome_entropy",
    "ranked_reward",
    "task_role_advantages",
]
