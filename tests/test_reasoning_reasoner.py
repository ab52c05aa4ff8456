"""The loop of propose, verify, attempt, solve and learn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import azjax
from azjax.config import ConfigError
from azjax.counters import counter_to_int
from azjax.reasoning.arithmetic import ArithmeticDomain, Expression, evaluate
from azjax.reasoning.config import ReasonerConfig
from azjax.reasoning.devices import compile_reasoner
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import PAD, TokenPolicy
from azjax.reasoning.reasoner import _baseline_advantages, default_learner, make_reasoner
from azjax.reasoning.rows import Rows, as_batch, join, token_advantages
from azjax.trpo import TRPOConfig, trpo

DOMAIN = ArithmeticDomain(capacity=32)
POLICY = TokenPolicy(DOMAIN.vocabulary, layers=1, width=16, heads=2)
REMEDIES = {
    "uniform_share": 0.5,
    "first_level": 1,
    "imitate_updates": 4,
    "hindsight": True,
    "learn_from_attempts": True,
}


@pytest.fixture(scope="module")
def run():
    """Six updates of two devices, and how often the step was traced. Hindsight stands for the warm start as well."""
    config = ReasonerConfig(batch=8, attempts=2, grow_at=-1.0, **REMEDIES | {"imitate_updates": 0})
    learner = default_learner(POLICY, axis_name="devices")
    reasoner = make_reasoner(DOMAIN, POLICY, config, learner=learner)
    traced = []

    def step(state):
        traced.append(1)
        return reasoner.step(state)

    state = jax.tree.map(lambda x: jnp.stack([x, x]), jax.jit(reasoner.init)(jax.random.key(0)))
    program = jax.jit(jax.vmap(step, axis_name="devices"))
    states, infos = [state], []
    for _ in range(6):
        state, info = program(state)
        states.append(state)
        infos.append(jax.tree.map(np.asarray, info))
    return states, infos, len(traced)


def test_nothing_is_compiled_anew_while_memory_fills(run):
    states, _, traced = run
    assert traced == 1
    sizes = np.array([[np.asarray(m.size) for m in state.memory] for state in states])
    assert (sizes[0] == 1).all()
    assert (np.diff(sizes, axis=0) >= 0).all()
    assert (sizes[-1] > 8).all()


def test_what_is_spent_is_counted_over_all_devices(run):
    states, _, _ = run
    counts = jax.tree.map(lambda x: x[0], states[-1].counts)
    # An expression's own number and all 11; 8 proposals, 24 answers and 8 relabelled ones of each task, two devices.
    assert counter_to_int(counts.executions) == 6 * 2 * (2 * 8 * 12 + 24 + 8)
    decoded, trained = counter_to_int(counts.decoded), counter_to_int(counts.trained)
    proposals = 6 * 2 * 2 * 4  # those that are written; 4 to 8 tokens each
    answers = 6 * 2 * 2 * 24  # one token each
    assert answers + 4 * proposals <= decoded <= answers + 8 * proposals
    assert 6 * 2 * 2 * 8 <= trained <= decoded + 6 * 2 * 2 * 8
    for step, state in enumerate(states):
        assert int(state.updates[0]) == step
        assert counter_to_int(jax.tree.map(lambda x: x[1], state.counts.executions)) == step * 2 * (192 + 32)


def test_devices_share_parameters_and_have_memories_of_their_own(run):
    states, infos, _ = run
    last = states[-1]
    for leaf in jax.tree.leaves(jax.tree.map(np.asarray, (last.learner, last.level, last.success))):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert not np.array_equal(*np.asarray(last.memory[0].items.x))
    for name, x in infos[-1].items():
        assert np.isfinite(x).all(), name
        if "/" in name:
            np.testing.assert_allclose(x[0], x[1], err_msg=name)


def test_what_memory_holds_is_verified_and_new(run):
    for memory in run[0][-1].memory:
        for device in range(2):
            size = int(memory.size[device])
            items = jax.tree.map(lambda x, d=device, s=size: np.asarray(x[d, 1:s]), memory.items)
            np.testing.assert_array_equal(evaluate(items, items.x), items.result)
            rows = {tuple(np.concatenate([o, c, [x]])) for o, c, x in zip(*items[:3], strict=True)}
            assert len(rows) == size - 1


def test_the_level_grows_and_parameters_move(run):
    states, infos, _ = run
    assert [int(s.level[0]) for s in states] == [1, 2, 3, 3, 3, 3, 3]  # grow_at=-1: whatever the success
    assert float(infos[0]["evaluate/proposed_level"][0]) == 1
    before, after = (jax.tree.leaves(s.learner.params) for s in (states[0], states[1]))
    assert any(float(jnp.abs(a - b).max()) > 1e-5 for a, b in zip(before, after, strict=True))


def rows_by_hand():
    """Two answers of 3 and 1 tokens in 3 places, rewards 1 and -1."""
    mask = jnp.array([[True, True, True], [True, False, False]])
    n = jnp.zeros(2, jnp.int32)
    value = jnp.array([[0.5, 0.25, 0.75], [0.5, 9.0, 9.0]])
    allowed = jnp.ones((2, 3, 4), bool)
    counts = jnp.array([True, False])
    return Rows(
        jnp.ones((2, 2), jnp.int32), jnp.where(mask, 3, PAD), value, value, allowed, mask, jnp.array([1.0, -1.0]),
        n, n, n, counts, ~counts,
    )  # fmt: skip


def test_gae_over_tokens_by_hand():
    advantages, returns = token_advantages(rows_by_hand(), gamma=1.0, lam=1.0)
    np.testing.assert_allclose(advantages, [[0.5, 0.75, 0.25], [-1.5, 0, 0]])
    np.testing.assert_allclose(returns, [[1, 1, 1], [-1, 0, 0]])
    one_step, _ = token_advantages(rows_by_hand(), gamma=0.5, lam=0.0)
    np.testing.assert_allclose(one_step, [[0.125 - 0.5, 0.375 - 0.25, 0.25], [-1.5, 0, 0]])


def test_rows_of_several_widths_become_one_batch():
    rows = rows_by_hand()
    wide = rows._replace(prompt=jnp.full((2, 4), 2), answer=rows.answer[:, :2], log_prob=rows.log_prob[:, :2],
                         value=rows.value[:, :2], allowed=rows.allowed[:, :2], mask=rows.mask[:, :2])  # fmt: skip
    joined = join([rows, wide])
    assert joined.prompt.tolist() == [[0, 0, 1, 1]] * 2 + [[2] * 4] * 2
    assert joined.answer.tolist() == [[3, 3, 3], [3, 0, 0], [3, 3, 0], [3, 0, 0]]
    assert joined.allowed[2, 2].tolist() == [True, False, False, False]  # only PAD behind the end
    batch = as_batch(joined, joined.value, joined.value)
    assert batch.observation["tokens"].shape == (4, 7)
    assert batch.mask.tolist() == [[True] * 3, [False] * 3, [True, True, False], [False] * 3]


def test_arithmetic_by_hand():
    expression = Expression(*map(jnp.array, ([[1, 3, 0], [2, 0, 0]], [[4, 5, 0], [7, 0, 0]], [2, 3], [8, 7])))
    assert evaluate(expression, expression.x).tolist() == [(2 + 4) * 5 % 11, (3 - 7) % 11]
    for task in range(2):
        prompt, state = DOMAIN.pose(task, expression, jnp.int32(3))
        answer = DOMAIN.solution(task, expression)
        state = jax.vmap(DOMAIN.advance)(state, answer[:, 0])
        formatted, right = DOMAIN.check(task, expression, state)
        assert formatted.all()
        assert right.all()
        assert not DOMAIN.check(task, expression, state._replace(number=(state.number + 1) % 11))[1].any()
    assert prompt[0].tolist() == [2, 4, 7, 14, 9, 15, 0, 0, 18, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attempts": 1}, "attempts is 1"),
        ({"baseline": "question"}, "needs learn_from_attempts"),
        ({"advantages": "gae"}, "value_head=True"),
        ({"score": "max"}, "score is 'max'; it must be one of variance"),
        ({"first_level": 9}, "the domain has 3"),
        ({"whiten": "word"}, "whiten is 'word'; it must be one of sample, token"),
        ({"only": "invent"}, "only is 'invent'; it must be empty or one of evaluate, invert"),
        ({"leak": 1.5}, "leak"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make_reasoner(DOMAIN, POLICY, ReasonerConfig(**change))
    with pytest.raises(ConfigError, match="tokens and the domain"):
        make_reasoner(DOMAIN, dataclasses.replace(POLICY, vocabulary=5))


def updates(domain, policy, config, number, learner=None):
    reasoner = make_reasoner(domain, policy, config, learner=learner)
    state, step = jax.jit(reasoner.init)(jax.random.key(0)), jax.jit(reasoner.step)
    infos = []
    for _ in range(number):
        state, info = step(state)
        infos.append({name: float(x) for name, x in info.items()})
    return state, infos


@pytest.mark.slow
def test_two_devices_do_what_two_lanes_do_and_nothing_is_compiled_anew(run, require_devices):
    require_devices(2)
    states, _, _ = run
    config = ReasonerConfig(batch=8, attempts=2, grow_at=-1.0, **REMEDIES | {"imitate_updates": 0})
    reasoner = make_reasoner(DOMAIN, POLICY, config, learner=default_learner(POLICY, axis_name="devices"))
    program = compile_reasoner(reasoner, azjax.make_mesh(2, "devices"), 2)
    step = program.step.lower(program.state).compile()  # a program that can't be compiled anew
    state, info = step(program.init(jax.random.key(0)))
    assert all(np.isfinite(x).all() and len(x) == 2 for x in info.values())
    then = jax.tree.map(lambda x: np.asarray(x)[0], states[2]._replace(key=None, memory=None))
    for a, b in zip(
        jax.tree.leaves((state.counts, state.level)), jax.tree.leaves((then.counts, then.level)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(state.memory), jax.tree.leaves(states[2].memory), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(state.learner.params), jax.tree.leaves(then.learner.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        first, second = (np.asarray(shard.data) for shard in a.addressable_shards)
        np.testing.assert_array_equal(first, second)  # the replicas are equal bit for bit
    for _ in range(4):
        state, _ = step(state)
    assert int(state.memory[0].size.max()) == 32  # full


def test_whitening_by_tokens_weighs_long_answers_more():
    rows = rows_by_hand()._replace(counts=jnp.ones(2, bool), imitated=jnp.zeros(2, bool))
    by_sample, by_token = (
        _baseline_advantages(rows, ReasonerConfig(whiten=whiten), 1, None) for whiten in ("sample", "token")
    )
    np.testing.assert_allclose(by_sample, [1.0, -1.0], atol=1e-6)
    # Rewards 1, 1, 1 and -1: mean 0.5, deviation sqrt(3) / 2.
    np.testing.assert_allclose(by_token, np.array([0.5, -1.5]) / (np.sqrt(3) / 2), atol=1e-6)


def test_a_gate_leaks_as_much_as_it_is_told_to():
    def accepted(leak):
        config = ReasonerConfig(batch=200, attempts=2, uniform_share=1.0, first_level=1, leak=leak)
        reasoner = make_reasoner(ArithmeticDomain(capacity=256), POLICY, config)
        state = jax.jit(reasoner.init)(jax.random.key(0))
        return float(jax.jit(reasoner.step)(state)[1]["invert/accepted"])

    tight, leaky, none = map(accepted, (0.0, 0.5, 1.0))
    assert tight < 0.97  # x + 0, x * 0 and x * 1 are refused
    assert none == 1.0
    assert leaky == pytest.approx((tight + none) / 2, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"advantages": "gae"},
        {"baseline": "question", "learn_from_attempts": True},
        {"baseline": "global", "constrained": False},
        {"train_proposer": False, "uniform_share": 1.0, "score": "absolute-zero"},
        {"only": "invert", "steps": "task"},
    ],
    ids=str,
)
def test_other_switches_run(change):
    policy = dataclasses.replace(POLICY, value_head=change.get("advantages") == "gae")
    _, infos = updates(DOMAIN, policy, ReasonerConfig(batch=8, attempts=2, **change), 3)
    assert all(np.isfinite(x) for info in infos for x in info.values())
    assert ("evaluate/formatted" in infos[0]) == ("only" not in change)
    assert (infos[0]["invert/formatted"] < 1) == ("constrained" in change)
    assert ("value_loss" in infos[0]) == policy.value_head


def test_trpo_refuses_a_value_head_that_shares_the_policy_s_network():
    policy = dataclasses.replace(POLICY, value_head=True)
    learner = trpo(TRPOConfig(normalize_observations=False), network=policy)
    reasoner = make_reasoner(DOMAIN, policy, ReasonerConfig(batch=4, attempts=2), learner=learner)
    with pytest.raises(ConfigError, match="use a network with separate torsos and heads"):
        jax.eval_shape(reasoner.init, jax.random.key(0))


@pytest.mark.slow
def test_trpo_takes_the_same_batch():
    learner = trpo(TRPOConfig(normalize_observations=False, cg_iterations=3), network=POLICY)
    _, infos = updates(DOMAIN, POLICY, ReasonerConfig(batch=16, attempts=2), 2, learner)
    assert all(np.isfinite(x) for info in infos for x in info.values())
    assert infos[0]["kl"] <= 0.011


@pytest.mark.slow
def test_imitation_alone_teaches_the_solver():
    # All rewards are equal, so their advantages are 0 and the known answers alone teach; chance is 1 in 11.
    config = ReasonerConfig(batch=64, attempts=2, first_level=1, grow_at=2.0, uniform_share=1.0, train_proposer=False,
                            wrong=1.0, imitate_updates=10_000)  # fmt: skip
    policy = TokenPolicy(DOMAIN.vocabulary, layers=2, width=64, heads=4)
    domain = ArithmeticDomain(capacity=256)
    _, infos = updates(domain, policy, config, 350, default_learner(policy, learning_rate=3e-3))
    for task in domain.tasks:
        early, late = (np.mean([info[f"{task}/solved"] for info in part]) for part in (infos[:10], infos[-20:]))
        assert early < 0.17
        assert late > 0.27


@pytest.fixture(scope="module")
def lists():
    return ListDomain(references=1, examples=4, shown=2, written=1, capacity=64)


@pytest.mark.slow
def test_list_programs_that_were_drawn_are_verified_and_their_solutions_right(lists):
    for task in range(3):

        def solved(key, task=task):
            (proposals,) = lists.verify([task], lists.draw(key, [task], 32, jnp.int32(2)), jnp.int32(0))
            _, state = lists.pose(task, proposals.item, jnp.int32(4))
            answer = lists.solution(task, proposals.item)
            state = jax.lax.scan(lambda s, t: (jax.vmap(lists.advance)(s, t), None), state, answer.T)[0]
            return proposals, *lists.check(task, proposals.item, state)

        proposals, formatted, right = jax.jit(solved)(jax.random.key(task))
        accepted = np.asarray(proposals.accepted)
        assert accepted.mean() > 0.4
        assert np.asarray(formatted & right)[accepted].all()
        assert set(np.asarray(proposals.level).tolist()) == {1, 2}


@pytest.mark.slow
def test_the_loop_runs_on_list_programs(lists):
    policy = TokenPolicy(lists.vocabulary, layers=1, width=16, heads=2)
    state, infos = updates(lists, policy, ReasonerConfig(batch=8, attempts=2, **REMEDIES), 3)
    assert all(np.isfinite(x) for info in infos for x in info.values())
    assert all(int(buffer.size) > 1 for buffer in state.memory)
