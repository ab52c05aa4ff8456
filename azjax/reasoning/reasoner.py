"""The Absolute Zero Reasoner: one model proposes tasks and learns to solve them, in one program without outside data.

An update goes, for each task type, through: proposals with references to past ones; verification; Monte-Carlo attempts
at what was accepted, whose success rate gives the proposer its reward; memory; a batch of tasks to solve. The answers
of all roles and task types then make one batch for the learner, with advantages by task type and role (TRR++) or by
GAE over tokens.

References:
  Zhao et al., "Absolute Zero: Reinforced Self-play Reasoning with Zero Data", 2025, arXiv 2505.03335, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import require
from azjax.counters import Counter, counter_add, counter_psum, counter_zero
from azjax.minibatches import masked_mean
from azjax.ppo import PPOConfig, ppo
from azjax.reasoning.config import ReasonerConfig
from azjax.reasoning.decoding import Answers, decode
from azjax.reasoning.domain import Domain, Proposals
from azjax.reasoning.model import TokenPolicy
from azjax.reasoning.rows import PROPOSER, SOLVER, Rows, as_batch, imitation_rows, join, rows_of, token_advantages
from azjax.reasoning.tasks import proposer_reward, solver_reward
from azjax.selfplay import learnability, task_role_advantages
from azjax.types import Array, Discrete, Info, Key, Learner

__all__ = ["Counts", "Reasoner", "ReasonerState", "default_learner", "make_reasoner"]


class Counts(NamedTuple):
    """What has been spent so far, exactly and on all devices together."""

    decoded: Counter  # tokens that the model chose
    trained: Counter  # tokens of answers from which it learned
    executions: Counter  # runs of a program on an input


class ReasonerState(NamedTuple):
    """All that is carried from update to update. ``memory`` is each device's own, the rest the same on all."""

    learner: Any
    memory: Any
    success: Array  # float32 [tasks] running mean of the solver's success rate, of those that are played
    level: Array  # int32 []
    updates: Array  # int32 []
    counts: Counts
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
    tasks = config.played(domain.tasks)

    def init(key: Key) -> ReasonerState:
        learner_key, key = jax.random.split(key)
        spec = {
            "tokens": jax.ShapeDtypeStruct((2,), jnp.int32),
            "allowed": jax.ShapeDtypeStruct((1, domain.vocabulary), jnp.bool_),
        }
        return ReasonerState(
            learner=learner.init(learner_key, spec, Discrete(domain.vocabulary)),
            memory=domain.init(),
            success=jnp.zeros(len(tasks)),
            level=jnp.asarray(config.first_level or domain.levels, jnp.int32),
            updates=jnp.zeros((), jnp.int32),
            counts=Counts(counter_zero(), counter_zero(), counter_zero()),
            key=key,
            config=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config),
        )

    def step(state: ReasonerState) -> tuple[ReasonerState, Info]:
        play_key, fit_key, key = jax.random.split(state.key, 3)
        if learner.axis_name is not None:
            play_key = jax.random.fold_in(play_key, jax.lax.axis_index(learner.axis_name))
        memory = state.memory
        info: Info = {}
        played: list[_Played] = []
        propose_key, play_key = jax.random.split(play_key)
        proposed = play.propose(propose_key, state, tasks)
        for task, task_key, one in zip(tasks, jax.random.split(play_key, len(tasks)), proposed, strict=True):
            state_now = state._replace(memory=memory)
            played.append(play(task_key, state_now, task, *one, learner.axis_name))
            memory = played[-1].memory
            info |= {f"{domain.tasks[task]}/{name}": x for name, x in played[-1].info.items()}
        parts = [one.rows for one in played]
        if config.steps == "joint":
            parts = [[rows for part in parts for rows in part]]
        fitted, trained, infos = state.learner, jnp.zeros((), jnp.uint32), []
        for part, part_key in zip(parts, jax.random.split(fit_key, len(parts)), strict=True):
            rows = join(part)
            batch = as_batch(rows, *_advantages(rows, state, len(domain.tasks), learner.axis_name))
            fitted, fit_info = learner.fit(fitted, batch, part_key)
            trained += batch.mask.sum(dtype=jnp.uint32)
            infos.append(fit_info)
        fit_info = jax.tree.map(lambda *x: sum(x) / len(x), *infos)
        spent = (
            sum((one.decoded for one in played), jnp.zeros((), jnp.uint32)),
            trained,
            jnp.uint32(sum(one.executions for one in played)),
        )
        counts = Counts(*(_count(c, x, learner.axis_name) for c, x in zip(state.counts, spent, strict=True)))
        success = 0.9 * state.success + 0.1 * jnp.stack([one.info["solved"] for one in played])
        grows = (success.min() >= state.config.grow_at) & (state.level < domain.levels)
        state = ReasonerState(
            learner=fitted,
            memory=memory,
            success=jnp.where(grows, 0.0, success),
            level=state.level + grows,
            updates=state.updates + 1,
            counts=counts,
            key=key,
            config=state.config,
        )
        return state, info | fit_info | {"level": state.level.astype(jnp.float32)}

    return Reasoner(init, step)


_Written = tuple[Array, Answers[Any]]
"""Prompts and answers of proposers."""


class _Played(NamedTuple):
    """What came of a task type's part of an update."""

    memory: Any
    rows: list[Rows]
    decoded: Array  # uint32 []
    executions: int
    info: Info


class _Play(NamedTuple):
    """What one task type does in an update."""

    domain: Domain
    policy: TokenPolicy
    config: ReasonerConfig

    def __call__(
        self,
        key: Key,
        state: ReasonerState,
        task: int,
        proposals: Proposals,
        written: _Written | None,
        axis_name: str | None,
    ) -> _Played:
        """Remembers proposals, attempts what was accepted and solves a batch of what is remembered."""
        recall_key, solve_key, imitate_key = jax.random.split(key, 3)
        batch, tries = self.config.batch, self.config.attempts
        memory, added = self.domain.remember(state.memory, task, proposals, state.updates)
        recalled = self.domain.recall(recall_key, memory, task, batch)
        # Attempts at proposals and answers to what is remembered are written, and judged, together.
        both = jax.tree.map(lambda *x: jnp.concatenate(x), proposals.item, recalled)
        solved = self._solve(solve_key, state, task, both, [tries] * batch + [1] * batch)
        attempts, answers = (jax.tree.map(lambda x, part=part: x[part], solved) for part in self._parts())
        successes = attempts.correct.reshape(batch, tries).sum(-1)
        worth = proposer_reward(
            proposals.accepted,
            learnability(successes, tries, self.config.score),
            refused=state.config.refused,
        )
        alone, own = jnp.full(batch, -1), jnp.arange(batch)
        rows = [self._solver_rows(answers, task, alone)]
        if written is not None and self.config.train_proposer:
            number = len(written[0])
            rows.append(rows_of(*written, worth[:number], task=task, role=PROPOSER, question=alone[:number]))
        if self.config.learn_from_attempts:
            tried = self._solver_rows(attempts, task, jnp.repeat(own, tries))
            rows.append(tried._replace(counts=jnp.repeat(proposals.accepted, tries)))
        rows += self._imitate(imitate_key, state._replace(memory=memory), task, recalled, answers)
        decoded = solved.answers.mask.sum(dtype=jnp.uint32)
        if written is not None:
            decoded += written[1].mask.sum(dtype=jnp.uint32)
        executions = self.domain.executions(
            task, proposals=batch, answers=batch * (tries + 1), relabelled=batch * self.config.hindsight
        )
        info = self._info(proposals, added, worth, successes, answers.correct, axis_name)
        return _Played(memory, rows, decoded, executions, info)

    def _parts(self) -> tuple[slice, slice]:
        """Which answers are attempts, and which the others."""
        attempts = self.config.batch * self.config.attempts
        return slice(attempts), slice(attempts, None)

    def _solver_rows(self, solved: _Solved, task: int, question: Array) -> Rows:
        return rows_of(solved.prompt, solved.answers, solved.reward, task=task, role=SOLVER, question=question)

    def _info(
        self,
        proposals: Proposals,
        added: Array,
        worth: Array,
        successes: Array,
        right: Array,
        axis_name: str | None,
    ) -> Info:
        successes = jnp.where(proposals.accepted, successes, 0)
        everywhere = {
            "accepted": proposals.accepted,
            "formatted": proposals.formatted,
            "added": added,
            "proposer_reward": worth,
            "solved": right,
        }
        where_accepted = {
            "attempts_solved": successes / self.config.attempts,
            "informative": (successes > 0) & (successes < self.config.attempts),
            "proposed_level": proposals.level,
        }
        if number := self.config.batch - self.config.drawn:
            # Of what the model wrote itself; what was refused counts 0, so quotients with the first are means over the
            # others that no update without any distorts.
            written = {
                "written_accepted": proposals.accepted,
                "written_level": jnp.where(proposals.accepted, proposals.level, 0),
                "written_solved": successes / self.config.attempts,
            }
            everywhere |= {name: x[:number] for name, x in written.items()}
        info = {name: x.mean(dtype=jnp.float32) for name, x in everywhere.items()}
        if axis_name is not None:
            info = jax.lax.pmean(info, axis_name)
        return info | {
            name: masked_mean(x.astype(jnp.float32), proposals.accepted, axis_name)
            for name, x in where_accepted.items()
        }

    def propose(self, key: Key, state: ReasonerState, tasks: Sequence[int]) -> list[tuple[Proposals, _Written | None]]:
        """For each task type a batch of proposals, those that were written first, with prompts and answers of these."""
        write_key, draw_key, leak_key = jax.random.split(key, 3)
        level = state.level
        number = self.config.batch - self.config.drawn
        drafts: list[list[Any]] = [[] for _ in tasks]
        written: list[_Written | None] = [None for _ in tasks]
        if number:
            for n, (task, task_key) in enumerate(zip(tasks, jax.random.split(write_key, len(tasks)), strict=True)):
                invite_key, decode_key, read_key = jax.random.split(task_key, 3)
                prompt, expected, context = self.domain.invite(invite_key, state.memory, task, number, level)
                answers = self._write(decode_key, state, prompt, expected, self.domain.proposal_tokens(task))
                written[n] = prompt, answers
                drafts[n].append(self.domain.read(read_key, task, context, answers.state))
        if self.config.drawn:
            for n, drawn in enumerate(self.domain.draw(draw_key, tasks, self.config.drawn, level)):
                drafts[n].append(drawn)
        joined = [jax.tree.map(lambda *x: jnp.concatenate(x), *parts) for parts in drafts]
        verified = self.domain.verify(tasks, joined, state.updates)
        leaked = jax.random.bernoulli(leak_key, state.config.leak, (len(tasks), self.config.batch))
        return [
            (one._replace(accepted=one.accepted | leaks & one.admissible), texts)
            for one, leaks, texts in zip(verified, leaked, written, strict=True)
        ]

    def _solve(self, key: Key, state: ReasonerState, task: int, item: Any, copies: Sequence[int]) -> _Solved:
        """Answers to each task, so many; neighbours answer the same."""
        prompt, expected = self.domain.pose(task, item, state.level)
        answers = self._write(key, state, prompt, expected, self.domain.answer_tokens(task), copies)
        asked = np.repeat(np.arange(len(copies)), copies)
        formatted, correct = self.domain.check(task, jax.tree.map(lambda x: x[asked], item), answers.state)
        wrong, malformed = state.config.wrong, state.config.malformed
        reward = solver_reward(formatted, correct, wrong=wrong, malformed=malformed)
        return _Solved(prompt[asked], answers, correct, reward)

    def _write(
        self,
        key: Key,
        state: ReasonerState,
        prompt: Array,
        expected: Any,
        length: int,
        copies: int | Sequence[int] = 1,
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

    def _imitate(self, key: Key, state: ReasonerState, task: int, item: Any, answered: _Solved) -> list[Rows]:
        """Rows of the two remedies that raise the likelihood of answers known to be right."""
        sources = []
        if self.config.imitate_updates:
            number = self.config.imitation_batch or self.config.batch
            # The tasks just solved do as well as others, but there may have to be more of them.
            source = item if number == self.config.batch else self.domain.recall(key, state.memory, task, number)
            sources.append((source, jnp.broadcast_to(state.updates < self.config.imitate_updates, (number,))))
        if self.config.hindsight:
            relabelled, known = self.domain.relabel(task, item, answered.answers.state)
            sources.append((relabelled, known & ~answered.correct))
        if not sources:
            return []
        source, known = jax.tree.map(lambda *x: jnp.concatenate(x), *sources)
        prompt, expected = self.domain.pose(task, source, state.level)
        answer = self.domain.solution(task, source)
        network = state.learner.params.network
        return [imitation_rows(self.policy, network, self.domain, prompt, expected, answer, known, task=task)]


class _Solved(NamedTuple):
    """`N` answers and what they are worth."""

    prompt: Array  # int32 [N, W]
    answers: Answers[Any]  # [N]
    correct: Array  # bool [N]
    reward: Array  # [N]


def _count(counter: Counter, amount: Array, axis_name: str | None) -> Counter:
    return counter_add(counter, amount if axis_name is None else counter_psum(amount, axis_name))


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
        rows.reward,
        task,
        rows.role,
        tasks=tasks,
        baseline=config.baseline,
        weights=rows.mask.sum(-1) if config.whiten == "token" else None,
        axis_name=axis_name,
        **question,
    )
