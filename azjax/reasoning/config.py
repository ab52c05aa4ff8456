"""The settings of the reasoner's self-play."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from azjax.config import register_config, require, require_number, static, traced
from azjax.selfplay import Baseline, LearnabilityKind

__all__ = ["ReasonerConfig"]


@register_config
@dataclasses.dataclass(frozen=True)
class ReasonerConfig:
    """How self-play goes. Floats are traced, the rest is static: see ``azjax.config``.

    The remedies for a model that starts from random weights, and finds nothing it could learn from, are off by default:
    ``first_level`` with ``grow_at``, ``uniform_share``, ``imitation``, ``hindsight``, ``learn_from_attempts``.
    """

    batch: int = static(64)
    """Proposals, and answers, of each task type in an update: of one device; in a run, of all of them together."""
    attempts: int = static(8)
    """Monte-Carlo attempts at each proposal."""
    score: Literal["variance", "absolute-zero", "absolute-zero-code", "min"] = static("variance")
    """The proposer's reward, a function of the attempts' success rate."""
    advantages: Literal["baseline", "gae"] = static("baseline")
    """Rewards less a baseline, or GAE over tokens with the model's value head and the learner's gamma and lam."""
    baseline: Literal["task-role", "global", "question"] = static("task-role")
    """Which rewards are compared: those of a task type and role, all, or those of one question."""
    whiten: Literal["sample", "token"] = static("sample")
    """What counts once in the baseline's mean and deviation: an answer, or each of its tokens as in the reference."""
    only: str = static("")
    """A task type that is played alone; empty: all of them."""
    train_proposer: bool = static(True)
    """Let proposals teach; otherwise the proposer gets only what the solver learns."""
    constrained: bool = static(True)
    """Write under the grammar; otherwise the form has to be learned as well."""
    uniform_share: float = static(0.0)
    """Part of the proposals that is drawn from the grammar instead of written; nothing is learned from drawing them."""
    first_level: int = static(0)
    """Level at the start, which then grows; 0: the domain's highest, from the start."""
    grow_at: float = traced(0.6)
    """Success rate of the solver, in every task type, at which the level grows by 1."""
    steps: Literal["joint", "task"] = static("joint")
    """One step of the learner on all answers, or one for each task type, whose answers are then no wider than they need
    be: several times as many steps for less computation, but each sees one task type."""
    imitation: float = traced(1.0)
    """Weight of a token of an imitated answer, where an advantage is about 1."""
    imitate_updates: int = static(0)
    """Warm start: so many updates also raise the likelihood of the answers that verification knows; 0: none."""
    imitation_batch: int = static(0)
    """Answers of each task type that an update of the warm start imitates; 0: as many as ``batch``."""
    hindsight: bool = static(False)
    """Also imitate wrong answers as right ones to the tasks that they do solve."""
    learn_from_attempts: bool = static(False)
    """Let the Monte-Carlo attempts teach the solver too."""
    leak: float = traced(0.0)
    """Part of the refused proposals of the right form that the gates let through; 1: no gates. Not what is held out."""
    refused: float = traced(-1.0)
    """Reward of a proposal that does not pass the gates."""
    wrong: float = traced(-0.5)
    """Reward of a wrong answer."""
    malformed: float = traced(-1.0)
    """Reward of what is no answer."""

    def validate(self) -> None:
        """Raises ``ConfigError``, naming field and value, for the first field that makes no sense."""
        require_number("batch", self.batch, 1, 1_000_000)
        require_number("attempts", self.attempts, 2, 10_000)
        require_number("uniform_share", self.uniform_share, 0.0, 1.0)
        require_number("first_level", self.first_level, 0, 1000)
        require_number("imitate_updates", self.imitate_updates, 0, 2**31 - 1)
        require_number("imitation_batch", self.imitation_batch, 0, 1_000_000)
        require_number("leak", self.leak, 0.0, 1.0)
        for name in ("grow_at", "imitation", "refused", "wrong", "malformed"):
            require_number(name, getattr(self, name), -1e6, 1e6)
        choices = {
            "advantages": ("baseline", "gae"),
            "baseline": get_args(Baseline),
            "score": get_args(LearnabilityKind),
            "whiten": ("sample", "token"),
            "steps": ("joint", "task"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; it must be one of {', '.join(known)}")
        require(
            self.baseline != "global" or self.steps == "joint",
            "baseline 'global' compares all answers; it needs steps 'joint'",
        )
        require(
            self.baseline != "question" or self.learn_from_attempts,
            "baseline 'question' compares attempts at one question; it needs learn_from_attempts",
        )

    def played(self, tasks: Sequence[str]) -> list[int]:
        """Which of a domain's task types are played.

        Raises:
          ConfigError: if ``only`` is none of them.
        """
        require(self.only in ("", *tasks), f"only is {self.only!r}; it must be empty or one of {', '.join(tasks)}")
        return [n for n, task in enumerate(tasks) if self.only in ("", task)]

    @property
    def drawn(self) -> int:
        """Proposals of a batch that are drawn from the grammar."""
        return round(self.uniform_share * self.batch)
