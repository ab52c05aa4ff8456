"""The Absolute Zero Reasoner: one model proposes tasks and learns to solve them, in one program without outside data.

An update goes, for each task type, through: proposals with references to past ones; verification; Monte-Carlo attempts
at what was accepted, whose success rate gives the proposer its reward; memory; a batch of tasks to solve. The answers
of all roles and task types then make one batch for the learner, with advantages by task type and role (TRR++) or by
GAE over tokens.

References:
  Zhao et al., "Absolute Zero: Reinforced Self-play Reasoning with Zero Data", 2025, arXiv 2505.03335, algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from azjax.config import register_config, require, require_number, static, traced
from azjax.minibatches import masked_mean
from azjax.ppo import PPOConfig, ppo
from azjax.reasoning.decoding import Answers, decode
from azjax.reasoning.domain import Domain, Proposals
from azjax.reasoning.model import TokenPolicy
from azjax.reasoning.rows import PROPOSER, SOLVER, Rows, as_batch, imitation_rows, join, rows_of, token_advantages
from azjax.reasoning.tasks import proposer_reward, solver_reward
from azjax.selfplay import Baseline, LearnabilityKind, learnability, task_role_advantages
from azjax.types import Array, Discrete, Info, Key, Learner

__all__ = ["Reasoner", "ReasonerConfig", "ReasonerState", "default_learner", "make_reasoner"]


@register_config
@dataclasses.dataclass(frozen=True)
class ReasonerConfig:
    """How self-play goes. Floats are traced, the rest is static: see ``azjax.config``.

    The remedies for a model that starts from random weights, and finds nothing it could learn from, are off by default:
    ``first_level`` with ``grow_at``, ``uniform_share``, ``imitation``, ``hindsight``, ``learn_from_attempts``.
    """

    batch: int = static(64)
    """Proposals, and answers, of each task type in an update, on each device."""
    attempts: int = static(8)
    """Monte-Carlo attempts at each proposal."""
    score: Literal["variance", "absolute-zero", "absolute-zero-code", "min"] = static("variance")
    """The proposer's reward, a function of the attempts' success rate."""
    advantages: Literal["baseline", "gae"] = static("baseline")
    """Rewards less a baseline, or GAE over tokens with the model's value head and the learner's gamma and lam."""
    baseline: Literal["task-role", "global", "question"] = static("task-role")
    """Which rewards are compared: those of a task type and role, all, or those of one question."""
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
    imitation: float = traced(1.0)
    """Weight of a token of an imitated answer, where an advantage is about 1."""
    imitate_updates: int = static(0)
    """Warm start: so many updates also raise the likelihood of the answers that verification knows; 0: none."""
    hindsight: bool = static(False)
    """Also imitate wrong answers as right ones to the tasks that they do solve."""
    learn_from_attempts: bool = static(False)
    """Let the Monte-Carlo attempts teach the solver too."""
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
        for name in ("grow_at", "imitation", "refused", "wrong", "malformed"):
            require_number(name, getattr(self, name), -1e6, 1e6)
        choices = {
            "advantages": ("baseline", "gae"),
            "baseline": get_args(Baseline),
            "score": get_args(LearnabilityKind),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, f"{name} is {value!r}; it must be one of {', '.join(known)}")
        require(
            self.baseline != "question" or self.learn_from_attempts,
            "baseline 'question' compares attempts at one question; it needs learn_from_attempts",
        )

    @property
    def drawn(self) -> int:
        """Proposals of a batch that are drawn from the grammar."""
        return round(self.uniform_share * self.batch)


class ReasonerState(NamedTuple):
    """All that is carried from update to update. ``memory`` is each device's own, the rest the same on all."""

    learner: Any
    memory: Any
    success: Array  # float32 [tasks] running mean of the solver's success rate
    level: Array  # int32 []
    updates: Array  # int32 []
    key: Key
    config: ReasonerConfig  # traced fields as arrays


class Reasoner(NamedTuple):
    """Pure functions: ``init(key) -> ReasonerState`` and ``step(state) -> (state, Info)``, neither compiled."""

    init: Callable[[Key], ReasonerState]
    step: Callable[[ReasonerState], tuple[ReasonerState, Info]]


def default_learner(policy: TokenPolicy, *, learning_rate: float = 1e-3, axis_name: str | None = None) -> Learner:
    """REINFORCE: PPO with one step on the whole batch, as in the reference."""
    config = PPOConfig(
        learning_rate=learning_rate,
        epochs=1,
        minibatches=1,
        normalize_observations=False,
        advantage_normalization="none",
        gamma=1.0,
        lam=1.0,
    )
    return ppo(config, network=policy, axis_name=axis_name)


def make_reasoner(
    domain: Domain,
    policy: TokenPolicy,
    config: ReasonerConfig | None = None,
    *,
    learner: Learner | None = None,
) -> Reasoner:
    """The training program of a domain.

    Args:
      domain: the world of tasks.
      policy: the model, with a value head if the configuration wants GAE.
      config: how self-play goes; validated here.
      learner: made with ``network=policy`` and without normalised observations; its ``axis_name`` is the device axis
        here as well. Default: ``default_learner(policy)``.

    Returns:
      The reasoner. ``step`` compiles once, however full the memory.

    Raises:
      ConfigError: if the parts don't fit together.
    """
    config = ReasonerConfig() if config is None else config
    config.validate()
    require(
        policy.vocabulary == domain.vocabulary,
        f"the model has {policy.vocabulary} tokens and the domain {domain.vocabulary}; make them equal",
    )
    require(
        policy.value_head or config.advantages != "gae",
        "advantages 'gae' need a model with value_head=True",
    )
    require(config.first_level <= domain.levels, f"first_level is {config.first_level}; the domain has {domain.levels}")
    learner = default_learner(policy) if learner is None else learner
    play = _Play(domain, policy, config)

    def init(key: Key) -> ReasonerState:
        learner_key, key = jax.random.split(key)
        spec = {
            "tokens": jax.ShapeDtypeStruct((2,), jnp.int32),
            "allowed": jax.ShapeDtypeStruct((1, domain.vocabulary), jnp.bool_),
        }
        return ReasonerState(
            learner=learner.init(learner_key, spec, Discrete(domain.vocabulary)),
            memory=domain.init(),
            success=jnp.zeros(len(domain.tasks)),
            level=jnp.asarray(config.first_level or domain.levels, jnp.int32),
            updates=jnp.zeros((), jnp.int32),
            key=key,
            config=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config),
        )

    def step(state: ReasonerState) -> tuple[ReasonerState, Info]:
        play_key, fit_key, key = jax.random.split(state.key, 3)
        if learner.axis_name is not None:
            play_key = jax.random.fold_in(play_key, jax.lax.axis_index(learner.axis_name))
        memory, rates = state.memory, []
        parts: list[Rows] = []
        info: Info = {}
        for task, task_key in enumerate(jax.random.split(play_key, len(domain.tasks))):
            memory, played, rate, task_info = play(task_key, state._replace(memory=memory), task, learner.axis_name)
            parts += played
            rates.append(rate)
            info |= {f"{domain.tasks[task]}/{name}": x for name, x in task_info.items()}
        rows = join(parts)
        advantages, returns = _advantages(rows, state, len(domain.tasks), learner.axis_name)
        fitted, fit_info = learner.fit(state.learner, as_batch(rows, advantages, returns), fit_key)
        success = 0.9 * state.success + 0.1 * jnp.stack(rates)
        grows = (success.min() >= state.config.grow_at) & (state.level < domain.levels)
        state = ReasonerState(
            learner=fitted,
            memory=memory,
            success=jnp.where(grows, 0.0, success),
            level=state.level + grows,
            updates=state.updates + 1,
            key=key,
            config=state.config,
        )
        return state, info | fit_info | {"level": state.level.astype(jnp.float32)}

    return Reasoner(init, step)


class _Play(NamedTuple):
    """What one task type does in an update."""

    domain: Domain
    policy: TokenPolicy
    config: ReasonerConfig

    def __call__(
        self, key: Key, state: ReasonerState, task: int, axis_name: str | None
    ) -> tuple[Any, list[Rows], Array, Info]:
        """The memory, rows for the learner, the solver's success rate and diagnostics."""
        propose_key, attempt_key, recall_key, solve_key = jax.random.split(key, 4)
        proposals, written = self._propose(propose_key, state, task)
        prompt, answers, correct, rewards = self._solve(
            attempt_key, state, task, proposals.item, copies=self.config.attempts
        )
        successes = correct.reshape(self.config.batch, self.config.attempts).sum(-1)
        score = learnability(successes, self.config.attempts, self.config.score)
        worth = proposer_reward(proposals.accepted, score, refused=state.config.refused)
        memory, added = self.domain.remember(state.memory, task, proposals, state.updates)

        item = self.domain.recall(recall_key, memory, task, self.config.batch)
        asked, solved, right, reward = self._solve(solve_key, state, task, item)
        cell, own = jnp.full(self.config.batch, -1), jnp.arange(self.config.batch)
        rows = [rows_of(asked, solved, reward, task=task, role=SOLVER, question=cell)]
        if written is not None and self.config.train_proposer:
            number = len(written[0])
            rows.append(rows_of(*written, worth[:number], task=task, role=PROPOSER, question=cell[:number]))
        if self.config.learn_from_attempts:
            repeated = (jnp.repeat(x, self.config.attempts, axis=0) for x in (prompt, own, proposals.accepted))
            prompt, question, counts = repeated
            tried = rows_of(prompt, answers, rewards, task=task, role=SOLVER, question=question)
            rows.append(tried._replace(counts=counts))
        rows += self._imitate(state, task, item, solved.state, right)

        mean = jnp.mean
        successes = jnp.where(proposals.accepted, successes, 0)

        def over_accepted(x: Array) -> Array:
            return masked_mean(x.astype(jnp.float32), proposals.accepted, axis_name)

        info = {
            "accepted": mean(proposals.accepted, dtype=jnp.float32),
            "formatted": mean(proposals.formatted, dtype=jnp.float32),
            "added": mean(added, dtype=jnp.float32),
            "proposer_reward": mean(worth),
            "solved": mean(right, dtype=jnp.float32),
        }
        if axis_name is not None:
            info = jax.lax.pmean(info, axis_name)
        rate = info["solved"]
        return (
            memory,
            rows,
            rate,
            info
            | {
                "attempts_solved": over_accepted(successes / self.config.attempts),
                "informative": over_accepted((successes > 0) & (successes < self.config.attempts)),
                "proposed_level": over_accepted(proposals.level),
            },
        )

    def _propose(
        self, key: Key, state: ReasonerState, task: int
    ) -> tuple[Proposals, tuple[Array, Answers[Any]] | None]:
        """A batch of proposals, those that were written first, with the prompts and answers of these."""
        invite_key, decode_key, read_key, draw_key = jax.random.split(key, 4)
        number, parts, written = self.config.batch - self.config.drawn, [], None
        if number:
            prompt, expected, context = self.domain.invite(invite_key, state.memory, task, number, state.level)
            answers = self._write(decode_key, state, prompt, expected, self.domain.proposal_tokens(task))
            written = prompt, answers
            parts.append(self.domain.read(read_key, task, context, answers.state))
        if self.config.drawn:
            parts.append(self.domain.draw(draw_key, task, self.config.drawn, state.level))
        drafts = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return self.domain.verify(task, drafts, state.updates), written

    def _solve(
        self, key: Key, state: ReasonerState, task: int, item: Any, copies: int = 1
    ) -> tuple[Array, Answers[Any], Array, Array]:
        """Prompts, answers, which are right, and rewards; with copies, neighbours answer the same."""
        prompt, expected = self.domain.pose(task, item, state.level)
        answers = self._write(key, state, prompt, expected, self.domain.answer_tokens(task), copies)
        items = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), item)
        formatted, correct = self.domain.check(task, items, answers.state)
        wrong, malformed = state.config.wrong, state.config.malformed
        return prompt, answers, correct, solver_reward(formatted, correct, wrong=wrong, malformed=malformed)

    def _write(
        self, key: Key, state: ReasonerState, prompt: Array, expected: Any, length: int, copies: int = 1
    ) -> Answers[Any]:
        return decode(
            self.policy,
            state.learner.params.network,
            self.domain,
            key,
            prompt,
            expected,
            length,
            copies=copies,
            constrained=self.config.constrained,
        )

    def _imitate(self, state: ReasonerState, task: int, item: Any, answered: Any, right: Array) -> list[Rows]:
        """Rows of the two remedies that raise the likelihood of answers known to be right."""
        sources = []
        if self.config.imitate_updates:
            warm = jnp.broadcast_to(state.updates < self.config.imitate_updates, right.shape)
            sources.append((item, warm))
        if self.config.hindsight:
            relabelled, known = self.domain.relabel(task, item, answered)
            sources.append((relabelled, known & ~right))
        rows = []
        for source, known in sources:
            prompt, expected = self.domain.pose(task, source, state.level)
            answer = self.domain.solution(task, source)
            network = state.learner.params.network
            rows.append(imitation_rows(self.policy, network, self.domain, prompt, expected, answer, known, task=task))
        return rows


def _advantages(rows: Rows, state: ReasonerState, tasks: int, axis_name: str | None) -> tuple[Array, Array]:
    """Advantages and returns `[N, R]` as the configuration says."""
    config = state.config
    if config.advantages == "gae":
        hp = state.learner.hyperparameters
        advantages, returns = token_advantages(rows, hp.gamma, hp.lam)
    else:
        each = _baseline_advantages(rows, config, tasks, axis_name)
        advantages = jnp.broadcast_to(each[:, None], rows.mask.shape)
        returns = advantages + rows.value
    imitated = rows.imitated[:, None]
    # The value head has nothing to learn from an imitated answer: its target is what it said.
    return jnp.where(imitated, config.imitation, advantages), jnp.where(imitated, rows.value, returns)


def _baseline_advantages(rows: Rows, config: ReasonerConfig, tasks: int, axis_name: str | None) -> Array:
    task = jnp.where(rows.imitated | ~rows.counts, -1, rows.task)
    question: dict[str, Any] = {}
    if config.baseline == "question":
        cells = 2 * tasks
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        # Who answers a question of its own is compared with its task type and role.
        own = cells + (device * tasks + rows.task) * config.batch + rows.question
        number = jnp.where(rows.question < 0, rows.task * 2 + rows.role, own)
        question = {"question": number, "questions": cells + devices * tasks * config.batch}
    return task_role_advantages(
        rows.reward, task, rows.role, tasks=tasks, baseline=config.baseline, axis_name=axis_name, **question
    )
