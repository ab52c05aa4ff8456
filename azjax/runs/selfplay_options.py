"""What a self-play run is made of: its options, presets, and the arithmetic that must work out."""

from __future__ import annotations

import dataclasses
import importlib.resources
from typing import Annotated, Any, ClassVar

import tyro
import yaml

from azjax.algorithms import ALGORITHMS
from azjax.config import nearest, require, require_number
from azjax.envs.lanes import check_division, check_lengths
from azjax.envs.registry import check_env_name, default_backend
from azjax.runs.run_options import AlgorithmName, EnvRunOptions, with_changes
from azjax.selfplay.baselines import Baseline
from azjax.selfplay.bodies import BODIES, episode_length_of, task_family
from azjax.selfplay.config import SelfPlayConfig, SolverReward
from azjax.selfplay.proposers.choices import ProposerName, ProposerSettings, check_settings
from azjax.selfplay.scores import LearnabilityKind
from azjax.selfplay.trainer import env_steps_of
from azjax.selfplay.verification import VerificationConfig, verification_steps

_OWN_BACKEND = "azjax"


@dataclasses.dataclass(frozen=True)
class SelfPlayOptions(EnvRunOptions):
    """Options of one self-play run."""

    kind: ClassVar[str] = "selfplay"

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "pointmass"
    """Body that does the tasks: pointmass, ant, hopper, walker2d or humanoid."""
    tasks: str = "goal,command,disturbance"
    """Types of task, with commas between."""
    proposer: ProposerName = "learned"
    """Who proposes tasks; frozen is the learned one that never learns."""
    proposals: int = 64
    """Tasks proposed in each update, on all devices together."""
    attempts: int = 8
    """Lanes that attempt each of them, a whole episode; at least 2."""
    solver_reward: SolverReward = "dense"
    """What the solver learns from: the tasks' reward and success, success only, or wins against its own past."""
    success_weight: float = 1.0
    """Weight of an attempt's advantage of success beside dense advantages of standard deviation 1."""
    baseline: Baseline = "task-role"
    """What success is compared to: that of the same type of task, of all tasks, or of the same task."""
    ranked_percentile: float = 75.0
    """Percentile of the recent scores that wins must exceed, for solver-reward ranked."""
    learnability: LearnabilityKind = "variance"
    """Reward of the proposer for a verified task; refused ones give -1."""
    uniform_share: float | None = None
    """Share of uniform proposals of sfl, plr, learned, frozen and guided. Default: 0.5."""
    proposer_learning_rate: float | None = None
    """Step size of the proposers that learn. Default: 0.001 for learned, 0.003 for guided."""
    proposer_entropy: float | None = None
    """Weight of the learned proposer's entropy bonus. Default: 0.01."""
    widening_updates: int | None = None
    """Updates after which the widening proposer proposes the whole space. Default: half of the run's."""
    verification_steps: int = 16
    """Environment steps of each of the three runs in which a proposal is verified."""
    verify_every: int = 1
    """Updates from one verification by simulation to the next; bounds are always checked."""
    evaluation_tasks: int = 1024
    """Tasks of the held-out grid, a quarter of them outside of the training range."""
    evaluation_episodes: int = 8
    """Full episodes at each of them; half of them choose the worst tasks, half report on them."""

    @property
    def types(self) -> tuple[str, ...]:
        """The types of task."""
        return types_of(self.tasks)

    @property
    def lanes(self) -> int:
        """Environments in parallel, on all devices together."""
        return self.proposals * self.attempts

    @property
    def episode_length(self) -> int:
        """Time limit of an attempt in environment steps."""
        return episode_length_of(self.env, self.types)

    @property
    def rollout_length(self) -> int:
        """Decisions of each lane per update."""
        return -(-self.episode_length // self.action_repeat)

    @property
    def env_steps_per_update(self) -> int:
        """Environment steps of the attempts of one update."""
        return self.lanes * self.rollout_length * self.action_repeat

    @property
    def verification_steps_per_update(self) -> int:
        """Environment steps of an update's verification, where there is any."""
        return verification_steps(self.proposals, VerificationConfig(steps=self.verification_steps))

    def steps_after(self, updates: int) -> int:
        """Environment steps behind so many updates, those of verification included."""
        return env_steps_of(updates, self.env_steps_per_update, self.verification_steps_per_update, self.verify_every)

    @property
    def updates(self) -> int:
        """Updates of the run: the first count that reaches ``steps``."""
        cycle = self.steps_after(self.verify_every)
        updates = self.steps // cycle * self.verify_every
        missing = self.steps - self.steps_after(updates)
        if missing <= 0:
            return updates
        return updates + max(1, -(-(missing - self.verification_steps_per_update) // self.env_steps_per_update))

    @property
    def config(self) -> SelfPlayConfig:
        """The settings of the loop."""
        return SelfPlayConfig(
            proposals=self.proposals,
            attempts=self.attempts,
            learnability=self.learnability,
            solver_reward=self.solver_reward,
            success_weight=self.success_weight,
            baseline=self.baseline,
            percentile=self.ranked_percentile,
            verification=VerificationConfig(steps=self.verification_steps),
            verify_every=self.verify_every,
        )

    @property
    def proposer_settings(self) -> ProposerSettings:
        """The settings of the proposer."""
        return ProposerSettings(
            uniform_share=self.uniform_share,
            learning_rate=self.proposer_learning_rate,
            entropy=self.proposer_entropy,
            widening_updates=self.widening_updates,
        )

    def validate(self) -> None:
        """Raises ``ConfigError`` for the first option that makes no sense by itself or with the others."""
        task_family(self.env, self.types)
        require(len(self.types) > 0, f"tasks is {self.tasks!r}; name some of {', '.join(task_family(self.env).types)}")
        check_backend(self.env, self.backend)
        self.validate_common()
        check_settings(self.proposer, self.proposer_settings)
        require_number("ranked_percentile", self.ranked_percentile, 0.0, 100.0)
        require_number("verification_steps", self.verification_steps, 1, 2**20)
        self.config.validate()
        require_number("evaluation_tasks", self.evaluation_tasks, 4 * len(self.types), 2**20)
        require_number("evaluation_episodes", self.evaluation_episodes, 2, 2**16)
        require(
            self.evaluation_episodes % 2 == 0,
            f"evaluation_episodes is {self.evaluation_episodes}; half of them choose the worst tasks, so use an even "
            "number",
        )
        check_lengths(self.lanes, self.episode_length, self.env_steps_per_update)
        self.validate_learner()

    def check_devices(self, devices: int) -> None:
        """Raises ``ConfigError`` unless tasks and minibatches can be divided among the devices."""
        require(
            self.proposals % devices == 0,
            f"{self.proposals} proposals can't be divided among {devices} devices; use a multiple of {devices}",
        )
        check_division(self.lanes, devices, self.attempts)
        self.check_minibatches(self.lanes, self.rollout_length, devices, "proposals, attempts")


def types_of(tasks: str) -> tuple[str, ...]:
    """The types of task in text with commas between."""
    return tuple(name.strip() for name in tasks.split(",") if name.strip())


def check_backend(body: str, backend: str | None) -> None:
    """Raises ``ConfigError`` unless the body has the physics; the point mass has its own."""
    if body == "pointmass":
        require(backend in (None, _OWN_BACKEND), f"the point mass has no backend {backend!r}; leave --backend out")
    else:
        check_env_name(body, default_backend(body) if backend is None else backend)


def resolve_selfplay(options: SelfPlayOptions) -> SelfPlayOptions:
    """Fills in what depends on other options: backend, lengths of schedules."""
    require(
        options.env in BODIES,
        f"no tasks for {options.env!r}{nearest(options.env, list(BODIES))} (there are for: {', '.join(BODIES)})",
    )
    check_backend(options.env, options.backend)
    own = _OWN_BACKEND if options.env == "pointmass" else default_backend(options.env)
    options = dataclasses.replace(options, backend=options.backend or own)
    task_family(options.env, options.types)
    if not options.types or min(options.proposals, options.attempts, options.action_repeat, options.verify_every) < 1:
        return options  # which validate refuses
    updates = max(options.updates, 1)
    widening = options.widening_updates
    if options.proposer == "widening" and widening is None:
        widening = max(1, updates // 2)
    return dataclasses.replace(options, learner=options.learner.lengthened(updates), widening_updates=widening)


def selfplay_preset(env: str, algorithm: AlgorithmName = "ppo", **changes: Any) -> SelfPlayOptions:
    """Self-play options of a body: its preset, changed by keyword.

    Args:
      env: name of the body.
      algorithm: the solver's learner.
      **changes: fields of ``SelfPlayOptions``, or of the learner's configuration.

    Raises:
      ConfigError: for an unknown body or field.

    Examples:
      >>> selfplay_preset("pointmass", proposer="sfl").proposer
      'sfl'
    """
    require(env in BODIES, f"no tasks for {env!r}{nearest(env, list(BODIES))} (there are for: {', '.join(BODIES)})")
    require(algorithm in ALGORITHMS, f"algorithm is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}")
    path = importlib.resources.files("azjax") / "presets" / "selfplay.yaml"
    presets: dict[str, Any] = yaml.safe_load(path.read_text())
    options = SelfPlayOptions(env=env, algorithm=algorithm, learner=ALGORITHMS[algorithm].config())
    return with_changes(with_changes(options, presets[env][algorithm]), changes)
