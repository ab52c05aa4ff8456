"""What a run of the reasoner is made of: its options, and the domain, model and learner that they describe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from azjax.algorithms import ALGORITHMS, make_learner
from azjax.config import ConfigError, require, require_number
from azjax.on_policy import OnPolicyConfig
from azjax.ppo import PPOConfig
from azjax.reasoning.arithmetic import ArithmeticDomain
from azjax.reasoning.domain import Domain
from azjax.reasoning.language import MAX_LINES
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import TokenPolicy, policy_of_size
from azjax.reasoning.reasoner import Reasoner, ReasonerConfig, make_reasoner
from azjax.reasoning.splits import LARGEST_SPLIT, Split
from azjax.runs.options import AlgorithmName
from azjax.runs.plain import from_plain
from azjax.runs.reading import parse_yaml, read_limited

__all__ = [
    "DomainOptions",
    "ReasonOptions",
    "default_learner_config",
    "differing",
    "fits",
    "make_parts",
    "parse_options",
    "read_options",
    "resolve",
    "to_yaml",
]

SCHEMA = 1
KIND = "reason"
_LARGEST_CONFIG = 1 << 20


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
class ReasonOptions(DomainOptions):
    """Options of a run of the reasoner."""

    updates: int = 4000
    """Updates of the run."""
    seed: int = 0
    """Seed of everything random."""
    run: Path | None = None
    """Folder for the results; must be new or empty. Default: runs/reason-DOMAIN-SEED-TIME."""
    algorithm: AlgorithmName = "ppo"
    """Learner; the help text shows its hyperparameters if it is named beside --help."""
    capacity: int = 16384
    """Triplets that the memory of each task type holds."""
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
    updates_per_call: int | None = None
    """Updates between two looks at the metrics; must divide the number of updates. Default: chosen."""
    checkpoint_seconds: float = 120.0
    """Seconds between two checkpoints; each evaluation makes one, too."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints to keep, beside the one with the best evaluation."""
    tensorboard: bool = True
    """Write event files for TensorBoard into the run's folder."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics, too. Default: none."""
    cache: bool = True
    """Keep compiled programs on disk for the next start."""
    quiet: bool = False
    """Print only the summary."""
    reasoner: ReasonerConfig = dataclasses.field(default_factory=default_reasoner_config)
    """How self-play goes. The remedies for random weights are on."""
    learner: OnPolicyConfig = dataclasses.field(default_factory=default_learner_config)
    """Hyperparameters of the algorithm."""

    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""
        super().validate()
        for name, least, most in (
            ("updates", 1, 2**31 - 1),
            ("seed", 0, 2**32 - 1),
            ("capacity", 1, 2**24),
            ("per_class", 0, 2**24),
            ("evaluations", 1, 2**30),
            ("evaluation_questions", 1, 2**16),
            ("evaluation_samples", 1, 2**16),
            ("keep_checkpoints", 1, 2**20),
        ):
            require_number(name, getattr(self, name), least, most)
        require_number("checkpoint_seconds", self.checkpoint_seconds, 0.0, 1e9)
        require_number("hold_out", self.hold_out, 0.0, 0.9)
        require(self.wandb != "", "wandb is ''; name a project, or leave it out")
        require(
            self.algorithm in get_args(AlgorithmName),
            f"algorithm is {self.algorithm!r}; it must be one of {', '.join(get_args(AlgorithmName))}",
        )
        expected = ALGORITHMS[self.algorithm].config
        require(
            type(self.learner) is expected,
            f"learner is a {type(self.learner).__name__}, but algorithm {self.algorithm!r} needs a {expected.__name__}",
        )
        require(
            self.algorithm != "trpo" or not self.value_head,
            "value_head is True, but TRPO fits values apart from the policy, whose trust region a shared head would "
            "leave; leave it out and use advantages baseline",
        )
        per_call = self.updates_per_call or 1
        require_number("updates_per_call", per_call, 1, 2**30)
        require(
            self.updates % per_call == 0,
            f"updates_per_call={per_call} does not divide the {self.updates} updates; change it, or leave it out",
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
    return dataclasses.replace(options, learner=options.learner.lengthened(fits(options)))


def fits(options: ReasonOptions) -> int:
    """How often the learner's ``fit`` is called in the run."""
    tasks = len(options.reasoner.played(options.make_domain().tasks)) if options.reasoner.steps == "task" else 1
    return options.updates * tasks


def make_parts(options: ReasonOptions, split: Split | None) -> tuple[Domain, TokenPolicy, Reasoner]:
    """Domain, model and training program of a run; nothing is compiled.

    Args:
      options: of the run.
      split: what is held out, and what else there is; ``None`` to find out only whether the parts fit together.

    Raises:
      ConfigError: if they don't fit together.
    """
    changes: dict[str, Any] = {"capacity": options.capacity}
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
    learner = make_learner(options.learner, network=policy)
    return domain, policy, make_reasoner(domain, policy, options.reasoner, learner=learner)


def to_plain(options: ReasonOptions) -> dict[str, Any]:
    """The options as plain data for a YAML file; the learner's are below the name of the algorithm."""
    data = dataclasses.asdict(options)
    data["run"] = None if options.run is None else str(options.run)
    learner = {k: list(v) if isinstance(v, tuple) else v for k, v in data.pop("learner").items()}
    return {"schema": SCHEMA, "kind": KIND, **data, options.algorithm: learner}


def to_yaml(options: ReasonOptions) -> str:
    """The text of ``config.yaml``."""
    return yaml.safe_dump(to_plain(options), sort_keys=False)


def read_options(path: Path) -> ReasonOptions:
    """The options in a ``config.yaml``.

    Raises:
      ConfigError: if the file is missing or damaged, of another schema or kind, or holds what no option can be.
    """
    return parse_options(read_limited(path, _LARGEST_CONFIG), path)


def parse_options(content: bytes, path: Path) -> ReasonOptions:
    """The options in the text of a ``config.yaml``; ``path`` is for the messages."""
    try:
        data = parse_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{path} is no configuration: {error}; use another copy of it") from error
    require(isinstance(data, dict), f"{path} is no configuration; use another copy of it")
    schema, kind = data.pop("schema", None), data.pop("kind", None)
    require(schema == SCHEMA, f"{path} has schema {schema!r}, this azjax reads {SCHEMA}; use the version that wrote it")
    require(kind == KIND, f"{path} is no run of the reasoner; azjax reason train makes one")
    try:
        algorithm = data.get("algorithm", "ppo")
        require(algorithm in get_args(AlgorithmName), f"algorithm is {str(algorithm)[:40]!r}")
        learner = from_plain(ALGORITHMS[algorithm].config, data.pop(algorithm, {}))
        require("learner" not in data, "unknown option 'learner'")
        return dataclasses.replace(from_plain(ReasonOptions, data), learner=learner)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; use another copy of it, or the version that wrote it") from error


# What may differ between two processes of one run.
_MAY_CHANGE = frozenset({
    "run", "quiet", "cache", "updates", "updates_per_call", "evaluations", "tensorboard", "wandb", "checkpoint_seconds",
    "keep_checkpoints", "schedule_updates",
})  # fmt: skip


def differing(then: ReasonOptions, now: ReasonOptions) -> list[str]:
    """Options that must not change within a run and did, as ``name then -> now``."""
    before, after = (_flat(options) for options in (then, now))
    names = [name for name in dict.fromkeys([*before, *after]) if name not in _MAY_CHANGE]
    changes = [(name, before.get(name), after.get(name)) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in changes if old != new]


def _flat(options: ReasonOptions) -> dict[str, Any]:
    """The options by name, those of the learner beside the others."""
    plain = to_plain(options)
    learner = plain.pop(options.algorithm)
    return plain | learner
