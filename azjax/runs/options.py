"""What a training run is made of: its options, the tuned presets, and the arithmetic that must work out."""

from __future__ import annotations

import abc
import dataclasses
import importlib.resources
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import tyro
import yaml

from azjax.algorithms import ALGORITHMS
from azjax.config import ConfigError, nearest, require, require_number
from azjax.envs.lanes import check_division, check_lengths
from azjax.envs.registry import check_env_name, default_backend
from azjax.on_policy import OnPolicyConfig
from azjax.ppo import PPOConfig
from azjax.runs.plain import from_plain
from azjax.runs.reading import parse_yaml, read_limited

SCHEMA = 1
_LARGEST_CONFIG = 1 << 20
AlgorithmName = Literal["ppo", "trpo"]
OptionsT = TypeVar("OptionsT", bound="RunOptions")


@dataclasses.dataclass(frozen=True)
class RunOptions(abc.ABC):
    """What runs of every kind that trains a policy have in common."""

    kind: ClassVar[str]

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "ant"
    """Environment to train on; `azjax envs` lists them."""
    backend: str | None = None
    """Physics: spring, positional, generalized or mjx. Default: spring where the environment has it."""
    algorithm: AlgorithmName = "ppo"
    """Learner; the help text shows its hyperparameters if it is named beside --help."""
    steps: int = 1_000_000
    """Environment steps of all lanes together; training stops at the first update that reaches them."""
    seed: int = 0
    """Seed of everything random."""
    run: Path | None = None
    """Folder for the results; must be new or empty. Default: runs/ENV-ALGORITHM-SEED-TIME."""
    action_repeat: int = 1
    """Environment steps per decision."""
    evaluations: int = 5
    """Evaluations spread over the run, at most one a call; the last one comes after the last update."""
    devices: int | None = None
    """Devices to use. Default: as many as lanes and minibatches can be divided among; a CPU has one a core."""
    updates_per_call: int | None = None
    """Updates between two looks at the metrics; must divide the number of updates. Default: chosen."""
    vectorize: Literal["minor", "vmap"] = "minor"
    """How single environments become lanes: batch on the minor-most axis, or jax.vmap."""
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
    def env_steps_per_update(self) -> int:
        """Environment steps in which the lanes of one update are trained."""

    @property
    @abc.abstractmethod
    def updates(self) -> int:
        """Updates of the run: the first count that reaches ``steps``."""

    @abc.abstractmethod
    def steps_after(self, updates: int) -> int:
        """Environment steps behind so many updates."""

    @abc.abstractmethod
    def check_devices(self, devices: int) -> None:
        """Raises ``ConfigError`` unless lanes and minibatches can be divided among the devices."""

    @abc.abstractmethod
    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""

    @property
    def total_steps(self) -> int:
        """Environment steps at which training stops."""
        return self.steps_after(self.updates)

    def validate_common(self) -> None:
        """Raises ``ConfigError`` for the first option of these that makes no sense by itself."""
        for name, choices in (("algorithm", get_args(AlgorithmName)), ("vectorize", ("minor", "vmap"))):
            value = getattr(self, name)
            require(value in choices, f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        for name, most in (("steps", 2**53), ("action_repeat", 2**30), ("evaluations", 2**30)):
            require_number(name, getattr(self, name), 1, most)
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
            f"{expected.__name__}; preset_options fills in both",
        )
        self.learner.validate()
        if self.devices is not None:
            self.check_devices(self.devices)
        per_call = self.updates_per_call or 1
        require(
            self.updates % per_call == 0,
            f"updates_per_call={per_call} does not divide the {self.updates} updates that {self.steps} steps take "
            f"({self.env_steps_per_update} steps each); change it, or leave it out",
        )

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

    def fits(self, devices: int) -> bool:
        """Whether lanes and minibatches can be divided among that many devices."""
        try:
            self.check_devices(devices)
        except ConfigError:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Options of one training run."""

    kind: ClassVar[str] = "train"

    lanes: int = 512
    """Environments in parallel, on all devices together."""
    rollout_length: int = 16
    """Decisions of each lane per update."""
    episode_length: int = 1000
    """Time limit of an episode in environment steps."""
    reset_pool: int | None = None
    """Fresh initial states that each update prepares. Default: one for 32 environment steps, at least 32."""
    stagger: bool = True
    """Random time limits of the lanes' first episodes, so that they don't all reach the time limit together."""
    randomize: bool = False
    """Draw friction, mass and motor strength anew for each episode."""
    evaluation_episodes: int = 64
    """Full episodes of each evaluation."""

    @property
    def env_steps_per_update(self) -> int:
        """Environment steps of all lanes in one update."""
        return self.lanes * self.rollout_length * self.action_repeat

    @property
    def updates(self) -> int:
        """Updates of the run: the first count that reaches ``steps``."""
        return -(-self.steps // self.env_steps_per_update)

    def steps_after(self, updates: int) -> int:
        """Environment steps behind so many updates."""
        return updates * self.env_steps_per_update

    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""
        check_env_name(self.env, default_backend(self.env) if self.backend is None else self.backend)
        self.validate_common()
        for name, most in (
            ("lanes", 2**30),
            ("rollout_length", 2**30),
            ("episode_length", 2**30),
            ("evaluation_episodes", 2**24),
        ):
            require_number(name, getattr(self, name), 1, most)
        require(
            self.env_steps_per_update < 2**31,
            f"an update of {self.env_steps_per_update} environment steps is too long; "
            "lanes x rollout-length x action-repeat must stay below 2^31",
        )
        check_lengths(self.lanes, self.episode_length, self.env_steps_per_update)
        if self.reset_pool is not None:
            require_number("reset_pool", self.reset_pool, 1, 2**30)
        self.validate_learner()

    def check_devices(self, devices: int) -> None:
        """Raises ``ConfigError`` unless lanes and minibatches can be divided among the devices."""
        check_division(self.lanes, devices)
        self.check_minibatches(self.lanes, self.rollout_length, devices, "lanes, rollout-length")


def resolve(options: TrainOptions) -> TrainOptions:
    """Fills in what depends on other options: backend, schedule length."""
    backend = default_backend(options.env) if options.backend is None else options.backend
    check_env_name(options.env, backend)
    options = dataclasses.replace(options, backend=backend)
    if options.env_steps_per_update <= 0:  # which validate refuses
        return options
    return dataclasses.replace(options, learner=options.learner.lengthened(max(options.updates, 1)))


def load_preset(env: str, backend: str | None = None, algorithm: AlgorithmName = "ppo") -> dict[str, Any]:
    """The tuned settings for an environment, as plain data; ``{}`` if there are none.

    ``ENV/BACKEND`` in the file goes before ``ENV``.
    """
    require(algorithm in ALGORITHMS, f"algorithm is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}")
    text = (importlib.resources.files("azjax") / "presets" / f"{algorithm}.yaml").read_text()
    presets: dict[str, Any] = yaml.safe_load(text)
    backend = backend or default_backend(env)
    return presets.get(f"{env}/{backend}") or presets.get(env) or {}


def preset_options(
    env: str, backend: str | None = None, algorithm: AlgorithmName = "ppo", **changes: Any
) -> TrainOptions:
    """Training options of an environment: its preset, changed by keyword.

    Args:
      env: environment name.
      backend: physics backend, or ``None`` for the default.
      algorithm: the learner.
      **changes: fields of ``TrainOptions``, or of the learner's configuration.

    Raises:
      ConfigError: for an unknown environment or field.

    Examples:
      >>> preset_options("ant", steps=1000, learning_rate=1e-3).learner.learning_rate
      0.001
    """
    check_env_name(env, default_backend(env) if backend is None else backend)
    preset = load_preset(env, backend, algorithm)
    options = TrainOptions(env=env, backend=backend, algorithm=algorithm, learner=ALGORITHMS[algorithm].config())
    return with_changes(with_changes(options, preset), changes)


def preset_values(options: TrainOptions) -> dict[str, Any]:
    """What a preset of these options has: whatever differs from the defaults and belongs to the training program."""
    defaults = flat_options(TrainOptions(algorithm=options.algorithm, learner=ALGORITHMS[options.algorithm].config()))
    left_out = {"schema", "env", "backend", "algorithm", "seed", "run", "schedule_updates", "devices", "quiet", "cache"}
    own = {name: value for name, value in flat_options(options).items() if name not in left_out}
    return {name: value for name, value in own.items() if value != defaults[name]}


def read_preset(path: Path, env: str, backend: str | None, algorithm: AlgorithmName) -> TrainOptions:
    """The options of an environment with a preset from a file of the form of ``azjax/presets/ppo.yaml``.

    Raises:
      ConfigError: if the file can't be read, has no preset for the environment, or unknown options.
    """
    content = read_limited(path, _LARGEST_CONFIG, "name a file of presets")
    try:
        data = parse_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{path} is no file of presets: {error}; use another copy of it") from error
    known = ", ".join(map(str, data)) if isinstance(data, dict) else "nothing"
    own = (data.get(f"{env}/{backend or default_backend(env)}") or data.get(env)) if isinstance(data, dict) else None
    require(isinstance(own, dict), f"{path} has presets for {known[:200]}, not for {env}; name another file")
    options = TrainOptions(env=env, backend=backend, algorithm=algorithm, learner=ALGORITHMS[algorithm].config())
    plain = to_plain(with_changes(options, own or {}))
    return dataclasses.replace(options_from_plain(plain, TrainOptions), run=None)


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
    kind = {} if options.kind == TrainOptions.kind else {"kind": options.kind}
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
    return parse_options(read_limited(path, _LARGEST_CONFIG), path, cls)


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
    kind = data.get("kind", TrainOptions.kind)
    require(kind == cls.kind, f"its kind is {reprlib.repr(kind)}, not {cls.kind!r}")
    algorithm = rest.get("algorithm", "ppo")
    require(algorithm in get_args(AlgorithmName), f"algorithm is {reprlib.repr(algorithm)}")
    learner = from_plain(ALGORITHMS[algorithm].config, rest.pop(algorithm, {}))
    require("learner" not in rest, "unknown option 'learner'")
    return dataclasses.replace(from_plain(cls, rest), learner=learner)
