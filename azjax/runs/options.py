"""What a training run is made of: its options, and the tuned presets."""

from __future__ import annotations

import dataclasses
import importlib.resources
from pathlib import Path
from typing import Any, ClassVar

import yaml

from azjax.algorithms import ALGORITHMS
from azjax.config import ConfigError, require, require_number
from azjax.envs.lanes import check_division, check_lengths
from azjax.envs.registry import check_env_name, default_backend
from azjax.runs.reading import parse_yaml, read_limited
from azjax.runs.run_options import (
    DEFAULT_KIND,
    LARGEST_CONFIG,
    AlgorithmName,
    EnvRunOptions,
    flat_options,
    options_from_plain,
    to_plain,
    with_changes,
)


@dataclasses.dataclass(frozen=True)
class TrainOptions(EnvRunOptions):
    """Options of one training run."""

    kind: ClassVar[str] = DEFAULT_KIND

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
    content = read_limited(path, LARGEST_CONFIG, "name a file of presets")
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
