"""What a run of any kind is made of: the options that all have in common, and options as text."""

from __future__ import annotations

import abc
import dataclasses
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import jax
import tyro
import yaml

from azjax.algorithms import ALGORITHMS
from azjax.config import ConfigError, nearest, require, require_number
from azjax.on_policy import OnPolicyConfig
from azjax.ppo import PPOConfig
from azjax.runs.plain import from_plain
from azjax.runs.reading import parse_yaml, read_limited

SCHEMA = 1
LARGEST_CONFIG = 1 << 20
DEFAULT_KIND = "train"  # of a configuration that names none
AlgorithmName = Literal["ppo", "trpo"]
OptionsT = TypeVar("OptionsT", bound="RunOptions")


@dataclasses.dataclass(frozen=True)
class RunOptions(abc.ABC):
    """What runs of every kind have in common."""

    kind: ClassVar[str]
    unit: ClassVar[str] = "environment steps"
    """What a run's length is counted in."""
    keeps_devices: ClassVar[bool] = False
    """Whether a run must go on with as many devices as it was started with."""

    algorithm: AlgorithmName = "ppo"
    """Learner; the help text shows its hyperparameters if it is named beside --help."""
    seed: int = 0
    """Seed of everything random."""
    run: Path | None = None
    """Folder for the results; must be new or empty. Default: runs/, and below it what is run and when."""
    evaluations: int = 5
    """Evaluations spread over the run, at most one a call; the last one comes after the last update."""
    devices: int | None = None
    """Devices to use. Default: as many as the work can be divided among; a CPU has one a core."""
    updates_per_call: int | None = None
    """Updates between two looks at the metrics; must divide the number of updates. Default: chosen."""
    deterministic: bool = False
    """On a GPU, ask XLA for the same bits in every run, at some cost in speed."""
    checkpoint_seconds: float = 60.0
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
    learner: OnPolicyConfig = dataclasses.field(default_factory=PPOConfig)
    """Hyperparameters of the algorithm."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What a folder of such a run is named after."""

    @property
    @abc.abstractmethod
    def updates(self) -> int:
        """Updates of the run."""

    @property
    def learner_calls(self) -> int:
        """How often the learner updates in the run, by which its schedules are stretched."""
        return self.updates

    @property
    def _why_so_many(self) -> str:
        """Where the number of updates comes from, in a message."""
        return ""

    @property
    @abc.abstractmethod
    def most_updates_per_call(self) -> int:
        """Updates between two looks at the metrics: a second's worth or a little more, at a guess."""

    @abc.abstractmethod
    def with_steps(self: OptionsT, steps: int) -> OptionsT:
        """The options of a run that is so long, in ``unit``."""

    @abc.abstractmethod
    def steps_after(self, updates: int) -> int:
        """What so many updates count, in ``unit``."""

    @abc.abstractmethod
    def check_devices(self, devices: int) -> None:
        """Raises ``ConfigError`` unless the work of an update can be divided among the devices."""

    @abc.abstractmethod
    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""

    @property
    def total_steps(self) -> int:
        """Where the run stops, in ``unit``."""
        return self.steps_after(self.updates)

    def validate_common(self) -> None:
        """Raises ``ConfigError`` for the first option of these that makes no sense by itself."""
        names = get_args(AlgorithmName)
        require(self.algorithm in names, f"algorithm is {self.algorithm!r}; it must be one of {', '.join(names)}")
        require_number("evaluations", self.evaluations, 1, 2**30)
        require_number("seed", self.seed, 0, 2**32 - 1)
        require_number("checkpoint_seconds", self.checkpoint_seconds, 0.0, 1e9)
        require_number("keep_checkpoints", self.keep_checkpoints, 1, 2**20)
        require(self.wandb != "", "wandb is ''; name a project, or leave it out")
        for name in ("devices", "updates_per_call"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), 1, 2**30)

    def validate_learner(self) -> None:
        """Raises ``ConfigError`` unless the learner is as it should be, and devices and calls divide the work.

        What comes last: the numbers that this depends on make sense.
        """
        expected = ALGORITHMS[self.algorithm].config
        require(
            type(self.learner) is expected,
            f"learner is a {type(self.learner).__name__}, but algorithm {self.algorithm!r} needs a "
            f"{expected.__name__}; change one of the two",
        )
        self.learner.validate()
        if self.devices is not None:
            self.check_devices(self.devices)
        per_call = self.updates_per_call or 1
        require(
            self.updates % per_call == 0,
            f"updates_per_call={per_call} does not divide the {self.updates} updates{self._why_so_many}; change it, or "
            "leave it out",
        )

    def fits(self, devices: int) -> bool:
        """Whether the work of an update can be divided among that many devices."""
        try:
            self.check_devices(devices)
        except ConfigError:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class EnvOptions:
    """Where a policy is trained, and for how long: what help texts and files name first."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "ant"
    """Environment to train on; `azjax envs` lists them."""
    backend: str | None = None
    """Physics: spring, positional, generalized or mjx. Default: spring where the environment has it."""
    steps: int = 1_000_000
    """Environment steps of all lanes together; training stops at the first update that reaches them."""
    action_repeat: int = 1
    """Environment steps per decision."""
    vectorize: Literal["minor", "vmap"] = "minor"
    """How single environments become lanes: batch on the minor-most axis, or jax.vmap."""


@dataclasses.dataclass(frozen=True)
class EnvRunOptions(RunOptions, EnvOptions):
    """What runs that train a policy in an environment have in common."""

    run: Path | None = None
    """Folder for the results; must be new or empty. Default: runs/ENV-ALGORITHM-SEED-TIME."""
    devices: int | None = None
    """Devices to use. Default: as many as lanes and minibatches can be divided among; a CPU has one a core."""

    @property
    def name(self) -> str:
        """Environment, algorithm and seed."""
        return f"{self.env}-{self.algorithm}-{self.seed}"

    @property
    @abc.abstractmethod
    def env_steps_per_update(self) -> int:
        """Environment steps in which the lanes of one update are trained."""

    @property
    def _why_so_many(self) -> str:
        """Where the number of updates comes from, in a message."""
        return f" that {self.steps} steps take ({self.env_steps_per_update} steps each)"

    @property
    def most_updates_per_call(self) -> int:
        """Updates between two looks at the metrics: a second's worth, at a guess."""
        guess = 20_000 if jax.devices()[0].platform == "cpu" else 500_000
        return max(1, guess // self.env_steps_per_update)

    def with_steps(self: EnvOptionsT, steps: int) -> EnvOptionsT:
        """The options of a run of so many environment steps."""
        require_number("steps", steps, 1, 2**53)
        return dataclasses.replace(self, steps=steps)

    def validate_common(self) -> None:
        """Raises ``ConfigError`` for the first option of these that makes no sense by itself."""
        super().validate_common()
        require(self.vectorize in ("minor", "vmap"), f"vectorize is {self.vectorize!r}; it must be one of minor, vmap")
        require_number("steps", self.steps, 1, 2**53)
        require_number("action_repeat", self.action_repeat, 1, 2**30)

    def check_minibatches(self, lanes: int, decisions: int, devices: int, length: str) -> None:
        """Raises ``ConfigError`` unless the decisions of an update can be cut into minibatches on every device.

        Args:
          lanes: of all devices.
          decisions: of each lane.
          devices: how many.
          length: the option to change.
        """
        require(
            lanes * decisions // devices % self.learner.batch_divisor == 0,
            f"{lanes} lanes x {decisions} decisions on {devices} device{'s' * (devices > 1)} "
            f"can't be cut into {self.learner.batch_divisor} equal minibatches; change {length} or minibatches",
        )


EnvOptionsT = TypeVar("EnvOptionsT", bound=EnvRunOptions)


def with_changes(options: OptionsT, changes: Mapping[str, Any]) -> OptionsT:
    """The options with some fields changed; fields of the learner's configuration stand beside the others."""
    own = {field.name for field in dataclasses.fields(options)} - {"learner"}
    learner = {field.name for field in dataclasses.fields(options.learner)}
    for name in changes:
        known = sorted(own | learner)
        require(name in own | learner, f"unknown option {name!r}{nearest(name, known)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    of_learner: dict[str, Any] = {k: v for k, v in values.items() if k in learner}
    of_run: dict[str, Any] = {k: v for k, v in values.items() if k in own}
    return dataclasses.replace(options, learner=dataclasses.replace(options.learner, **of_learner), **of_run)


def to_plain(options: RunOptions) -> dict[str, Any]:
    """The options as plain data for a YAML or JSON file; the learner's are below the name of the algorithm."""
    data = dataclasses.asdict(options)
    data["run"] = None if options.run is None else str(options.run)
    learner = {k: list(v) if isinstance(v, tuple) else v for k, v in data.pop("learner").items()}
    kind = {} if options.kind == DEFAULT_KIND else {"kind": options.kind}
    return {"schema": SCHEMA, **kind, **data, options.algorithm: learner}


def flat_options(options: RunOptions) -> dict[str, Any]:
    """The options by name, those of the learner beside the others."""
    plain = to_plain(options)
    learner = plain.pop(options.algorithm)
    return plain | learner


def to_yaml(options: RunOptions) -> str:
    """The text of ``config.yaml``."""
    return yaml.safe_dump(to_plain(options), sort_keys=False)


def read_options(path: Path, cls: type[OptionsT]) -> OptionsT:
    """The options in a ``config.yaml``.

    Raises:
      ConfigError: if the file is missing or damaged, of another schema, or holds what no option can be.
    """
    return parse_options(read_limited(path, LARGEST_CONFIG), path, cls)


def parse_options(content: bytes, path: Path, cls: type[OptionsT]) -> OptionsT:
    """The options in the text of a ``config.yaml`` of a kind of run; ``path`` is for the messages."""
    try:
        data = parse_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{path} is no configuration: {error}; use another copy of it") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    require(schema == SCHEMA, f"{path} has schema {schema!r}, this azjax reads {SCHEMA}; use the version that wrote it")
    try:
        return options_from_plain(data, cls)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; use another copy of it, or the version that wrote it") from error


def options_from_plain(data: Any, cls: type[OptionsT]) -> OptionsT:
    """The options of a kind of run in plain data; see ``to_plain``.

    Raises:
      ConfigError: for what no option can be.
    """
    require(isinstance(data, dict), f"{reprlib.repr(data)} stands where options should be")
    rest = {name: value for name, value in data.items() if name not in ("schema", "kind")}
    kind = data.get("kind", DEFAULT_KIND)
    require(kind == cls.kind, f"its kind is {reprlib.repr(kind)}, not {cls.kind!r}")
    algorithm = rest.get("algorithm", "ppo")
    require(algorithm in get_args(AlgorithmName), f"algorithm is {reprlib.repr(algorithm)}")
    learner = from_plain(ALGORITHMS[algorithm].config, rest.pop(algorithm, {}))
    require("learner" not in rest, "unknown option 'learner'")
    return dataclasses.replace(from_plain(cls, rest), learner=learner)
