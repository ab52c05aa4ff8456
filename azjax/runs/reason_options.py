"""What a run of the reasoner is made of: its options, and the domain, model and learner that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from azjax.algorithms import make_learner
from azjax.config import require, require_number
from azjax.on_policy import OnPolicyConfig
from azjax.ppo import PPOConfig
from azjax.reasoning.arithmetic import ArithmeticDomain
from azjax.reasoning.config import ReasonerConfig
from azjax.reasoning.domain import Domain
from azjax.reasoning.language import MAX_LINES
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import TokenPolicy, policy_of_size
from azjax.reasoning.reasoner import Reasoner, make_reasoner
from azjax.reasoning.splits import LARGEST_SPLIT, Split
from azjax.runs import machine
from azjax.runs.run_options import RunOptions
from azjax.trpo import TRPOConfig

__all__ = [
    "LEARNERS",
    "DomainOptions",
    "ReasonOptions",
    "default_learner_config",
    "default_reasoner_config",
    "make_parts",
    "resolve",
]


def default_learner_config() -> PPOConfig:
    """REINFORCE: one step on the whole batch."""
    return PPOConfig(
        learning_rate=3e-3,
        epochs=1,
        minibatches=1,
        normalize_observations=False,
        advantage_normalization="none",
        gamma=1.0,
        lam=1.0,
    )


def default_trpo_config() -> TRPOConfig:
    """A trust region around the policy that wrote the answers."""
    return TRPOConfig(normalize_observations=False, advantage_normalization="none", gamma=1.0, lam=1.0)


LEARNERS: dict[str, Callable[[], OnPolicyConfig]] = {"ppo": default_learner_config, "trpo": default_trpo_config}
"""The hyperparameters that each algorithm starts from."""


def default_reasoner_config() -> ReasonerConfig:
    """Self-play with the remedies for a model that starts from random weights."""
    return ReasonerConfig(
        batch=16,
        attempts=2,
        uniform_share=0.5,
        first_level=1,
        imitate_updates=2**31 - 1,
        imitation_batch=48,
        hindsight=True,
        steps="task",
    )


@dataclasses.dataclass(frozen=True)
class DomainOptions:
    """The world of tasks, and the size of the model: what a model file must know."""

    domain: Literal["lists", "arithmetic"] = "lists"
    """Programs over lists of integers, or chains of modular arithmetic."""
    max_lines: int = 2
    """Lines of the longest list program."""
    two_inputs: bool = False
    """Let list programs have two inputs."""
    references: int = 1
    """Past triplets that a proposer sees; wide prompts are slow."""
    examples: int = 6
    """Examples of an induction task."""
    shown: int = 3
    """How many of them the solver sees; the others decide."""
    size: str = "tiny"
    """Size of the model: micro, tiny, small, medium or large: 0.1 to 6 million parameters."""
    value_head: bool = False
    """Predict values: needed for advantages gae."""

    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense."""
        require(
            self.domain in ("lists", "arithmetic"), f"domain is {self.domain!r}; it must be one of lists, arithmetic"
        )
        require_number("max_lines", self.max_lines, 1, MAX_LINES)
        require_number("references", self.references, 0, 64)
        require_number("examples", self.examples, 2, 48)
        require_number("shown", self.shown, 0, 47)
        self.make_domain()
        self.make_policy(1)

    def make_domain(self, **changes: Any) -> ListDomain | ArithmeticDomain:
        """The domain, with other fields as given."""
        if self.domain == "arithmetic":
            return ArithmeticDomain(references=self.references, **changes)
        names = ("max_lines", "two_inputs", "references", "examples", "shown")
        return ListDomain(**{name: getattr(self, name) for name in names}, **changes)

    def make_policy(self, vocabulary: int) -> TokenPolicy:
        """The model."""
        return policy_of_size(self.size, vocabulary, value_head=self.value_head)


@dataclasses.dataclass(frozen=True)
class ReasonOptions(RunOptions, DomainOptions):
    """Options of a run of the reasoner."""

    kind: ClassVar[str] = "reason"
    unit: ClassVar[str] = "updates"
    keeps_devices: ClassVar[bool] = True

    run: Path | None = None
    """Folder for the results; must be new or empty. Default: runs/reason-DOMAIN-SEED-TIME."""
    devices: int | None = None
    """Devices to use, for good. Default: as many as batches can be divided among; a CPU has one a core."""
    updates: int = 4000
    """Updates of the run."""
    capacity: int = 16384
    """Triplets that the memory of each task type holds, divided among devices."""
    per_class: int = 0
    """Triplets with the same meaning that it holds at most; 0: any number."""
    recency: bool = False
    """Draw past triplets with a weight that grows from the oldest to the newest."""
    novelty: bool = True
    """Refuse constants, identities and programs that fail on most probes."""
    draw_from: Literal["grammar", "meanings"] = "grammar"
    """Where proposals that are drawn instead of written come from: the grammar, or a list with a program for every
    meaning that may be trained on, which no learner from zero data has."""
    hold_out: float = 0.2
    """Share of the meanings of two- and three-line programs that may not be proposed and are tested."""
    evaluations: int = 8
    """Evaluations spread over the run, at most one a call; the last one comes after the last update."""
    evaluation_questions: int = 64
    """Questions of each length and task type in an evaluation."""
    evaluation_samples: int = 8
    """Sampled answers to each of them, beside the most probable one."""
    reasoner: ReasonerConfig = dataclasses.field(default_factory=default_reasoner_config)
    """How self-play goes. The remedies for random weights are on."""
    learner: OnPolicyConfig = dataclasses.field(default_factory=default_learner_config)
    """Hyperparameters of the algorithm."""

    @property
    def name(self) -> str:
        """The domain and the seed."""
        return f"reason-{self.domain}-{self.seed}"

    @property
    def learner_calls(self) -> int:
        """How often the learner updates in the run."""
        tasks = len(self.reasoner.played(self.make_domain().tasks)) if self.reasoner.steps == "task" else 1
        return self.updates * tasks

    @property
    def most_updates_per_call(self) -> int:
        """Updates between two looks at the metrics: some seconds' worth, at a guess."""
        return 20

    def with_steps(self, steps: int) -> ReasonOptions:
        """The options of a run of so many updates."""
        return dataclasses.replace(self, updates=steps)

    def steps_after(self, updates: int) -> int:
        """Updates are what is counted."""
        return updates

    def check_devices(self, devices: int) -> None:
        """Raises ``ConfigError`` unless what an update makes, and memory, can be divided among that many devices."""
        require_number("devices", devices, 1, 2**20)
        parts = {"batch": self.reasoner.batch, "imitation_batch": self.reasoner.imitation_batch}
        parts |= {"the drawn part of a batch": self.reasoner.drawn, "capacity": self.capacity}
        for name, number in parts.items():
            require(
                number % devices == 0,
                f"{name} is {number}, which {devices} devices can't divide; change one of the two",
            )

    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""
        DomainOptions.validate(self)
        self.validate_common()
        for name, least, most in (
            ("updates", 1, 2**31 - 1),
            ("capacity", 1, 2**24),
            ("per_class", 0, 2**24),
            ("evaluation_questions", 1, 2**16),
            ("evaluation_samples", 1, 2**16),
        ):
            require_number(name, getattr(self, name), least, most)
        require_number("hold_out", self.hold_out, 0.0, 0.9)
        self.validate_learner()
        require(
            self.algorithm != "trpo" or not self.value_head,
            "value_head is True, but TRPO fits values apart from the policy, whose trust region a shared head would "
            "leave; leave it out and use advantages baseline",
        )
        require(
            self.reasoner.batch <= self.capacity,
            f"batch is {self.reasoner.batch}, but the memory holds {self.capacity}; raise capacity",
        )
        require(
            self.draw_from in ("grammar", "meanings"),
            f"draw_from is {self.draw_from!r}; it must be one of grammar, meanings",
        )
        require(
            self.draw_from == "grammar" or (self.domain == "lists" and self.max_lines <= LARGEST_SPLIT),
            f"draw_from is 'meanings', which are known for list programs of up to {LARGEST_SPLIT} lines",
        )
        make_parts(self, None)


def resolve(options: ReasonOptions) -> ReasonOptions:
    """Fills in the length of a falling schedule of the learning rate, which the learner counts in calls of ``fit``."""
    return dataclasses.replace(options, learner=options.learner.lengthened(options.learner_calls))


def make_parts(options: ReasonOptions, split: Split | None) -> tuple[Domain, TokenPolicy, Reasoner]:
    """Domain, model and training program of a run, as on each of its devices; nothing is compiled.

    Args:
      options: of the run.
      split: what is held out, and what else there is; ``None`` to find out only whether the parts fit together.

    Raises:
      ConfigError: if they don't fit together.
    """
    devices = options.devices or 1
    changes: dict[str, Any] = {"capacity": options.capacity // devices}
    if options.domain == "lists":
        changes |= {
            "held_out": None if split is None else split.held_out,
            "pool": None if split is None or options.draw_from == "grammar" else split.pool(options.max_lines),
            "novelty": options.novelty,
            "recency": options.recency,
            "per_class": options.per_class or None,
        }
    domain = options.make_domain(**changes)
    policy = options.make_policy(domain.vocabulary)
    learner = make_learner(options.learner, network=policy, axis_name=machine.AXIS)
    config = dataclasses.replace(
        options.reasoner,
        batch=options.reasoner.batch // devices,
        imitation_batch=options.reasoner.imitation_batch // devices,
    )
    return domain, policy, make_reasoner(domain, policy, config, learner=learner)
