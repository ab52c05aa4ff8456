"""Settings of the self-play loop."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from azjax.config import nearest, require, require_number
from azjax.selfplay.baselines import Baseline
from azjax.selfplay.scores import LearnabilityKind
from azjax.selfplay.verification import VerificationConfig

__all__ = ["SelfPlayConfig", "SolverReward"]

SolverReward = Literal["dense", "success", "ranked"]


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
    """Settings of the loop, all static.

    Attributes:
      proposals: N, tasks proposed in each update, on all devices together.
      attempts: n, lanes that attempt each of them; at least 2.
      learnability: the proposer's reward for a verified task, see ``azjax.selfplay.learnability``.
      solver_reward: what the solver learns from: `dense`, the task's reward by GAE plus ``success_weight`` times the
        attempt's advantage of success; `success`, 1 at the end of an attempt that succeeded and nothing else; `ranked`,
        1 or -1 there, by comparison of its score with those of its own recent past.
      success_weight: of success beside the dense advantages, which are scaled to a standard deviation of 1.
      baseline: of the advantage of success: `task-role`, `global` or `question` (the attempts at the same task).
      percentile: of the recent scores that wins must exceed.
      past: scores remembered for each cell of tasks.
      past_minimum: scores that a cell must have before anything is won or lost.
      past_cells: cells along each axis of the task space within which scores are compared.
      verification: how strictly proposals are looked at.
      verify_every: safety and determinism are looked at in every so manieth update only; integrity, which costs no
        environment steps, always is.
    """

    proposals: int = 64
    attempts: int = 8
    learnability: LearnabilityKind = "variance"
    solver_reward: SolverReward = "dense"
    success_weight: float = 1.0
    baseline: Baseline = "task-role"
    percentile: float = 75.0
    past: int = 1000
    past_minimum: int = 50
    past_cells: int = 2
    verification: VerificationConfig = dataclasses.field(default_factory=lambda: VerificationConfig(steps=16))
    verify_every: int = 1

    def validate(self) -> None:
        """Raises ``ConfigError``, naming field and value, for the first field that makes no sense."""
        for name, low, high in (
            ("proposals", 1, 2**24),
            ("attempts", 2, 2**20),
            ("success_weight", 0.0, 1e6),
            ("percentile", 0.0, 100.0),
            ("past", 1, 2**24),
            ("past_minimum", 1, self.past),
            ("past_cells", 1, 64),
            ("verify_every", 1, 2**30),
        ):
            require_number(name, getattr(self, name), low, high)
        for name, choices in (
            ("learnability", get_args(LearnabilityKind)),
            ("solver_reward", get_args(SolverReward)),
            ("baseline", get_args(Baseline)),
        ):
            value, known = getattr(self, name), list(choices)
            require(value in known, f"{name} is {value!r}{nearest(value, known)}; it must be one of {', '.join(known)}")
        self.verification.validate()
