"""Self-play without data: the pure pieces with which an agent proposes its own tasks and learns to do them."""

from azjax.selfplay.baselines import Baseline, CellStatistics, cell_statistics, task_role_advantages
from azjax.selfplay.bodies import BODIES, make_task_env, task_family, wider_family
from azjax.selfplay.config import SelfPlayConfig
from azjax.selfplay.heldout import HeldOut, HeldOutScores, held_out_grid, held_out_scores
from azjax.selfplay.information import (
    BranchedInformation,
    ClassifierInformation,
    OutcomeKind,
    binary_entropy,
    branched_information,
    classifier_information,
    outcome_entropy,
)
from azjax.selfplay.pointmass import PointMass
from azjax.selfplay.ranked import RankedBuffer, RankedReward, init_ranked, ranked_reward
from azjax.selfplay.scores import LearnabilityKind, learnability
from azjax.selfplay.spaces import Parameter, ParameterKind, Proposal, Task, TaskFamily, TaskSpace
from azjax.selfplay.tasks import Outcome, TaskEnvironment, TaskSettings
from azjax.selfplay.trainer import (
    SelfPlayMetrics,
    SelfPlayState,
    SelfPlayTrainer,
    make_selfplay,
)
from azjax.selfplay.verification import (
    TaskProtocol,
    Verdict,
    VerificationConfig,
    verification_metrics,
    verification_steps,
    verify,
)

__all__ = [
    "BODIES",
    "Baseline",
    "BranchedInformation",
    "CellStatistics",
    "ClassifierInformation",
    "HeldOut",
    "HeldOutScores",
    "LearnabilityKind",
    "Outcome",
    "OutcomeKind",
    "Parameter",
    "ParameterKind",
    "PointMass",
    "Proposal",
    "RankedBuffer",
    "RankedReward",
    "SelfPlayConfig",
    "SelfPlayMetrics",
    "SelfPlayState",
    "SelfPlayTrainer",
    "Task",
    "TaskEnvironment",
    "TaskFamily",
    "TaskProtocol",
    "TaskSettings",
    "TaskSpace",
    "Verdict",
    "VerificationConfig",
    "binary_entropy",
    "branched_information",
    "cell_statistics",
    "classifier_information",
    "held_out_grid",
    "held_out_scores",
    "init_ranked",
    "learnability",
    "make_selfplay",
    "make_task_env",
    "outcome_entropy",
    "ranked_reward",
    "task_family",
    "task_role_advantages",
    "verification_metrics",
    "verification_steps",
    "verify",
    "wider_family",
]
