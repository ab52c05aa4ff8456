"""The transformer: sizes, decoding against the whole forward pass, masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from azjax.config import ConfigError
from azjax.reasoning import VOCABULARY
from azjax.reasoning.arithmetic import DONE, OPERATION, ArithmeticDomain
from azjax.reasoning.decoding import decode, masks_along
from azjax.reasoning.model import MODEL_SIZES, PAD, TokenPolicy, policy_of_size

DOMAIN = ArithmeticDomain()  # its grammar is small; that of lists is tested beside it
POLICY = TokenPolicy(DOMAIN.vocabulary, layers=2, width=16, heads=2, value_head=True)
PROMPTS = jnp.array([[0, 0, 1, 3, 5], [2, 4, 20, 8, 5], [0, 2, 5, 7, 5]], jnp.int32)
LENGTH = 10


@pytest.fixture(scope="module")
def params():
    # Larger weights than at the start, where nearly uniform choices would agree by themselves.
    return jax.tree.map(lambda x: 4 * x + 0.02, POLICY.init(jax.random.key(0)))


def expected(number):
    start = DOMAIN._expect(1, OPERATION, 3)
    return jax.tree.map(lambda x: jnp.repeat(x, number, axis=0), start)


forward = jax.jit(POLICY.apply)


def succeeded(state):
    return (state.section == DONE) & ~state.failed


@pytest.fixture(scope="module")
def write():
    return jax.jit(
        lambda params, key, state, copies=1, greedy=False, constrained=True: decode(
            POLICY, params, DOMAIN, key, PROMPTS, state, LENGTH, copies=copies, greedy=greedy, constrained=constrained
        ),
        static_argnames=("copies", "greedy", "constrained"),
    )


@pytest.fixture(scope="module")
def answers(params, write):
    return write(params, jax.random.key(1), expected(3), copies=4)


def whole(params, answers, copies=1, pad=0):
    """The forward pass on prompts and answers at once."""
    prompts = jnp.repeat(PROMPTS, copies, axis=0)
    tokens = jnp.concatenate([jnp.zeros((len(prompts), pad), jnp.int32), prompts, answers.tokens], axis=1)
    return forward(params, {"tokens": tokens, "allowed": answers.allowed})


@pytest.mark.parametrize("pad", [0, 7])
def test_decoding_agrees_with_the_whole_forward_pass_however_far_prompts_are_filled_up(params, answers, pad):
    distribution, value = whole(params, answers, copies=4, pad=pad)
    mask = np.asarray(answers.mask)
    np.testing.assert_allclose(
        distribution.log_prob(answers.tokens)[mask], answers.log_prob[mask], rtol=2e-4, atol=2e-4
    )
    np.testing.assert_allclose(value[mask], answers.value[mask], rtol=2e-4, atol=2e-4)
    assert np.ptp(np.asarray(answers.log_prob)[mask]) > 0.5  # not a comparison of constants
    assert bool(jnp.isfinite(distribution.entropy()).all())
    assert bool(jnp.isfinite(distribution.kl(distribution)).all())


def test_answers_end_within_the_mask(answers):
    assert bool(succeeded(answers.state).all())
    chosen = np.take_along_axis(np.asarray(answers.allowed), np.asarray(answers.tokens)[..., None], axis=-1)
    assert chosen.all()
    assert ((np.asarray(answers.tokens) == PAD) == ~np.asarray(answers.mask)).all()
    assert len({tuple(row) for row in np.asarray(answers.tokens).tolist()}) > 8  # copies are independent
    masks, state = jax.jit(lambda s, t: masks_along(DOMAIN, s, t))(expected(12), answers.tokens)
    np.testing.assert_array_equal(masks, answers.allowed)
    assert bool(succeeded(state).all())


def test_without_the_mask_a_wrong_token_ends_the_answer_for_good(params, write):
    free = write(params, jax.random.key(2), expected(3), constrained=False)
    failed, mask = np.asarray(free.state.failed), np.asarray(free.mask)
    assert failed.any()
    assert not succeeded(free.state)[failed].any()
    assert (np.asarray(free.tokens)[~mask] == PAD).all()
    assert mask[:, 0].all()
    distribution, _ = whole(params, free)
    np.testing.assert_allclose(distribution.log_prob(free.tokens)[mask], free.log_prob[mask], rtol=2e-4, atol=2e-4)


def test_greedy_answers_are_the_most_probable_whatever_the_key(params, write):
    one, other = (write(params, jax.random.key(n), expected(3), greedy=True) for n in range(2))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    distribution, _ = whole(params, one)
    np.testing.assert_array_equal(distribution.mode(), one.tokens)


def test_a_token_depends_on_nothing_behind_it(params):
    tokens = jax.random.randint(jax.random.key(3), (1, 9), 1, DOMAIN.vocabulary)
    allowed = jnp.ones((1, 8, DOMAIN.vocabulary), bool)
    logits = forward(params, {"tokens": tokens, "allowed": allowed})[0].logits
    changed = forward(params, {"tokens": tokens.at[0, 5].set(1), "allowed": allowed})[0].logits
    np.testing.assert_allclose(logits[:, :5], changed[:, :5], atol=1e-5)
    assert float(jnp.abs(logits[:, 5:] - changed[:, 5:]).max()) > 1e-3


@pytest.mark.parametrize(("size", "millions"), zip(MODEL_SIZES, (0.109, 0.41, 1.6, 3.2, 6.0), strict=True))
def test_sizes(size, millions):
    params = jax.eval_shape(policy_of_size(size, len(VOCABULARY)).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, rel=0.05)


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        policy_of_size("smal", 10)
    with pytest.raises(ConfigError, match="multiple of twice the heads"):
        TokenPolicy(10, width=18, heads=4).init(jax.random.key(0))
