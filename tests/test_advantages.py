"""Advantage estimators: literal cases, plain loops, identities of the GAE paper, and the errors of other trainers."""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from azjax.advantages import gae, gae_associative, lambda_returns, n_step, td_residuals

# Compiled once per shape: run operation by operation, the associative scan takes seconds.
COMPILED = {"gae": jax.jit(gae), "gae_associative": jax.jit(gae_associative)}
ESTIMATORS = pytest.mark.parametrize("estimator", COMPILED.values(), ids=COMPILED)


LENGTH = 9  # of most rollouts here, so that they share what is compiled


class Steps(NamedTuple):
    """A rollout as the estimators take it; every field `[T, ...]`."""

    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def random_steps(seed: int, shape: tuple[int, ...], end: float = 0.2, dtype: type = np.float32) -> Steps:
    """A rollout with both kinds of ending (sometimes both at once) and a value function that is consistent in time."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, *shape)) < end
    values = rng.normal(size=shape).astype(dtype)
    next_values = rng.normal(size=shape).astype(dtype)
    next_values[:-1] = np.where((terminated | truncated)[:-1], next_values[:-1], values[1:])
    return Steps(rng.normal(size=shape).astype(dtype), values, next_values, terminated, truncated)


def loop_gae(steps: Steps, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """GAE as one would write it for a single trajectory, with an `if` per case, in float64."""
    shape = steps.rewards.shape
    columns = [np.asarray(field).reshape(shape[0], -1) for field in steps]
    rewards, values, next_values = (column.astype(np.float64) for column in columns[:3])
    terminated, truncated = columns[3:]
    advantages = np.zeros_like(rewards)
    for lane in range(rewards.shape[1]):
        following = 0.0
        for t in reversed(range(shape[0])):
            if terminated[t, lane]:
                following = rewards[t, lane] - values[t, lane]
            elif truncated[t, lane]:
                following = rewards[t, lane] + gamma * next_values[t, lane] - values[t, lane]
            else:
                delta = rewards[t, lane] + gamma * next_values[t, lane] - values[t, lane]
                following = delta + gamma * lam * following
            advantages[t, lane] = following
    return advantages.reshape(shape), advantages.reshape(shape) + steps.values


def loop_n_step(steps: Steps, gamma: float, n: int) -> np.ndarray:
    """The n-step return of a `[T]` rollout, written out from its definition."""
    length = len(steps.rewards)
    returns = np.zeros(length)
    for start in range(length):
        total, discount = 0.0, 1.0
        for t in range(start, min(start + n, length)):
            total += discount * steps.rewards[t]
            discount *= gamma
            if steps.terminated[t]:
                break
            if steps.truncated[t] or t == min(start + n, length) - 1:
                total += discount * steps.next_values[t]
                break
        returns[start] = total
    return returns


def literal(terminated: list[bool], truncated: list[bool], middle: float = 8.0) -> Steps:
    """Three steps with gamma = lam = 1/2 in mind; `middle` is V of the second step's successor."""
    return Steps(
        np.array([1.0, 1.0, 1.0], np.float32),
        np.array([1.0, 2.0, 8.0], np.float32),
        np.array([2.0, middle, 16.0], np.float32),
        np.array(terminated),
        np.array(truncated),
    )


NO, LAST, MIDDLE = [False, False, False], [False, False, True], [False, True, False]
LITERAL = {
    # No end: residuals 1, 3, 1.
    "running": (literal(NO, NO), [1.8125, 3.25, 1.0]),
    # The second step ends the episode: residuals 1, 1 - 2, 1.
    "terminated": (literal(MIDDLE, NO, 4.0), [0.75, -1.0, 1.0]),
    # A time limit instead: residuals 1, 1 + 4/2 - 2, 1.
    "truncated": (literal(NO, MIDDLE, 4.0), [1.25, 1.0, 1.0]),
    "terminated wins": (literal(MIDDLE, MIDDLE, 4.0), [0.75, -1.0, 1.0]),
    # At the rollout's last step: residuals 1, 3, 1 - 8.
    "terminated last": (literal(LAST, NO), [1.3125, 1.25, -7.0]),
    "truncated last": (literal(NO, LAST), [1.8125, 3.25, 1.0]),
}


@pytest.mark.parametrize("estimator", [gae, gae_associative, *COMPILED.values()], ids=[*COMPILED, "jit", "jit"])
@pytest.mark.parametrize("case", LITERAL)
def test_literal_cases(estimator, case):
    steps, expected = LITERAL[case]
    advantages, returns = estimator(*steps, gamma=0.5, lam=0.5)
    np.testing.assert_array_equal(advantages, expected)
    np.testing.assert_array_equal(returns, expected + steps.values)


def test_literal_residuals_and_n_step_and_lambda_returns():
    steps, _ = LITERAL["truncated"]
    np.testing.assert_array_equal(td_residuals(*steps[:4], gamma=0.5), [1.0, 1.0, 1.0])
    # r0 + r1/2 + 4/4, then r1 + 4/2, then r2 + 16/2.
    advantages, returns = n_step(*steps, gamma=0.5, n=2)
    np.testing.assert_array_equal(returns, [2.5, 3.0, 9.0])
    np.testing.assert_array_equal(advantages, [1.5, 1.0, 1.0])
    # r0 + (2/2 + 3/2)/2.
    arguments = (steps.rewards, steps.next_values, steps.terminated, steps.truncated)
    np.testing.assert_array_equal(lambda_returns(*arguments, gamma=0.5, lam=0.5), [2.25, 3.0, 9.0])


@ESTIMATORS
@pytest.mark.parametrize("shape", [(1,), (33, 5), (8, 3, 2), (4, 0)], ids=str)
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
def test_equals_a_plain_loop(estimator, shape, gamma, lam):
    steps = random_steps(0, shape)
    expected = loop_gae(steps, gamma, lam)
    chex.assert_trees_all_close(estimator(*steps, gamma=gamma, lam=lam), expected, rtol=2e-5, atol=2e-5)


@ESTIMATORS
def test_float64_is_accurate_to_its_last_digits(estimator):
    steps = random_steps(1, (200, 3), end=0.02, dtype=np.float64)
    with jax.enable_x64(True):
        advantages, returns = estimator(*steps, gamma=0.999, lam=0.98)
        assert advantages.dtype == returns.dtype == jnp.float64
        chex.assert_trees_all_close((advantages, returns), loop_gae(steps, 0.999, 0.98), rtol=1e-11, atol=1e-12)
        # A float64 scalar or flag array must not widen float32 data, nor break the scan's carry.
        single = random_steps(1, (5,))
        assert estimator(*single, gamma=np.float64(0.9), lam=np.float64(0.9))[0].dtype == jnp.float32


def test_low_precision_and_integer_inputs_are_computed_in_float32():
    steps = random_steps(2, (6, 2))
    half = [jnp.asarray(field, jnp.bfloat16) for field in steps[:3]]
    assert COMPILED["gae"](*half, *steps[3:], gamma=0.9, lam=0.9)[0].dtype == jnp.float32
    counts = np.arange(12).reshape(6, 2)
    assert lambda_returns(counts, *steps[2:], gamma=0.9, lam=0.9).dtype == jnp.float32
    # Flags stored as floating-point numbers, as Brax does, mean the same as booleans.
    flags = [field.astype(np.float32) for field in steps[3:]]
    chex.assert_trees_all_equal(
        COMPILED["gae"](*steps[:3], *flags, gamma=0.9, lam=0.9), COMPILED["gae"](*steps, gamma=0.9, lam=0.9)
    )


@ESTIMATORS
def test_lam_0_is_the_residual_and_lam_1_the_discounted_return(estimator):
    steps, gamma = random_steps(3, (33, 5), end=0.1), 0.97
    residuals = td_residuals(*steps[:4], gamma=gamma)
    np.testing.assert_allclose(estimator(*steps, gamma=gamma, lam=0.0)[0], residuals, rtol=1e-5, atol=1e-6)
    _, returns = estimator(*steps, gamma=gamma, lam=1.0)
    for lane in range(5):
        expected = loop_n_step(Steps(*(field[:, lane] for field in steps)), gamma, n=33)
        np.testing.assert_allclose(returns[:, lane], expected, rtol=1e-4, atol=1e-4)


@ESTIMATORS
@pytest.mark.parametrize("end", [0.0, 0.15])
def test_is_the_exponentially_weighted_average_of_n_step_estimators(estimator, end):
    length, gamma, lam = LENGTH, 0.9, 0.8
    steps = random_steps(4, (length,), end=end)
    # All estimators beyond the longest horizon coincide, so the last one takes the rest of the weight.
    weights = [(1 - lam) * lam ** (n - 1) for n in range(1, length)] + [lam ** (length - 1)]
    mixture = sum(weight * loop_n_step(steps, gamma, n) for n, weight in enumerate(weights, start=1))
    np.testing.assert_allclose(estimator(*steps, gamma=gamma, lam=lam)[1], mixture, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 11, 12, 1000])
def test_n_step_equals_its_definition(n):
    steps = random_steps(5, (12,), end=0.2)
    advantages, returns = n_step(*steps, gamma=0.9, n=n)
    expected = loop_n_step(steps, 0.9, n)
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantages, expected - steps.values, rtol=1e-5, atol=1e-6)


def test_n_step_bootstraps_from_next_values_only():
    """With, say, a target network the two value arrays differ, and the return must come from `next_values`."""
    steps = random_steps(6, (9,))
    _, returns = n_step(*steps, gamma=0.9, n=3)
    _, same = n_step(*steps._replace(values=steps.values + 5), gamma=0.9, n=3)
    np.testing.assert_array_equal(returns, same)


def test_lambda_returns_equal_the_returns_of_gae():
    steps = random_steps(7, (50, 3))
    _, expected = gae(*steps, gamma=0.95, lam=0.7)
    returns = lambda_returns(steps.rewards, *steps[2:], gamma=0.95, lam=0.7)
    np.testing.assert_allclose(returns, expected, rtol=1e-4, atol=1e-5)


@ESTIMATORS
def test_vmap_over_lanes_equals_trailing_axes(estimator):
    steps = random_steps(8, (10, 6))
    batched = estimator(*steps, gamma=0.9, lam=0.9)
    mapped = jax.vmap(lambda *args: estimator(*args, gamma=0.9, lam=0.9), in_axes=1, out_axes=1)(*steps)
    chex.assert_trees_all_close(mapped, batched, rtol=1e-6)


@ESTIMATORS
def test_gamma_and_lam_may_be_traced_and_are_traced_once(estimator):
    steps, traces = random_steps(9, (10, 2)), []

    @jax.jit
    def estimate(gamma, lam):
        traces.append(None)
        return estimator(*steps, gamma=gamma, lam=lam)

    for gamma, lam in [(0.9, 0.5), (0.99, 1.0)]:
        chex.assert_trees_all_close(estimate(gamma, lam), loop_gae(steps, gamma, lam), rtol=1e-4, atol=1e-5)
    assert len(traces) == 1

    gammas, lams = jnp.array([0.5, 0.9, 1.0]), jnp.array([0.0, 0.5, 1.0])
    population = jax.vmap(lambda gamma, lam: estimator(*steps, gamma=gamma, lam=lam)[0])(gammas, lams)
    for member, gamma, lam in zip(population, gammas, lams, strict=True):
        np.testing.assert_allclose(member, loop_gae(steps, float(gamma), float(lam))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gae", "gae_associative", "n_step", "lambda_returns"])
def test_gradients_equal_finite_differences(name):
    steps = random_steps(10, (6, 2), dtype=np.float64)
    flags = steps[3:]
    functions = {
        "gae": lambda r, v, w, gamma, lam: gae(r, v, w, *flags, gamma=gamma, lam=lam),
        "gae_associative": lambda r, v, w, gamma, lam: gae_associative(r, v, w, *flags, gamma=gamma, lam=lam),
        "n_step": lambda r, v, w, gamma, lam: n_step(r, v, w, *flags, gamma=gamma, n=3),
        "lambda_returns": lambda r, v, w, gamma, lam: lambda_returns(r, w, *flags, gamma=gamma, lam=lam),
    }
    with jax.enable_x64(True):
        check_grads(
            jax.jit(functions[name]), (*map(jnp.asarray, steps[:3]), 0.9, 0.8), order=1, modes=["rev"], rtol=1e-6
        )


@pytest.mark.parametrize("poison", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["gae", "gae_associative", "n_step", "lambda_returns"])
@pytest.mark.parametrize("where", ["successor", "next episode"])
def test_nothing_from_beyond_a_termination_leaks_into_values_or_gradients(name, poison, where):
    steps, end = random_steps(11, (8,), end=0.0), 3
    later = np.arange(8) > end
    clean = [np.array(field) for field in steps[:3]]
    poisoned = [np.where(later, poison, field) if where == "next episode" else np.array(field) for field in clean]
    poisoned[2][end] = poison
    value, gradients = differentiated(name, *poisoned, np.arange(8) == end, 0.9, 0.8)
    expected, expected_gradients = differentiated(name, *clean, np.arange(8) == end, 0.9, 0.8)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # gamma and lam also multiply what the next episode contains, so only the first kind of poison leaves them alone.
    compared = slice(None) if where == "successor" else slice(3)
    chex.assert_trees_all_close(gradients[compared], expected_gradients[compared], rtol=1e-6)
    assert gradients[2][end] == 0


@functools.partial(jax.jit, static_argnums=0)
def differentiated(name, rewards, values, next_values, terminated, gamma, lam):
    """The summed estimates up to and including the termination, with their gradients."""
    first_episode = jnp.cumsum(terminated) - terminated == 0

    def total(rewards, values, next_values, gamma, lam):
        flags = (terminated, jnp.zeros_like(terminated))
        outputs = {
            "gae": lambda: gae(rewards, values, next_values, *flags, gamma=gamma, lam=lam)[0],
            "gae_associative": lambda: gae_associative(rewards, values, next_values, *flags, gamma=gamma, lam=lam)[0],
            "n_step": lambda: n_step(rewards, values, next_values, *flags, gamma=gamma, n=5)[0],
            "lambda_returns": lambda: lambda_returns(rewards, next_values, *flags, gamma=gamma, lam=lam),
        }[name]()
        return jnp.sum(jnp.where(first_episode, outputs, 0))

    return jax.value_and_grad(total, argnums=range(5))(rewards, values, next_values, gamma, lam)


@ESTIMATORS
def test_one_step(estimator):
    one = jnp.ones((1, 2))
    never, always = jnp.zeros((1, 2), bool), jnp.ones((1, 2), bool)
    for flags, expected in [((never, never), 3.0), ((never, always), 3.0), ((always, never), 1.0)]:
        advantages, returns = estimator(2 * one, one, 4 * one, *flags, gamma=0.5, lam=0.9)
        np.testing.assert_array_equal(advantages, expected * one)
        np.testing.assert_array_equal(returns, (expected + 1) * one)


def test_errors_are_clear():
    steps = random_steps(12, (4, 2))
    empty = Steps(*(field[:0] for field in steps))
    for estimator in (gae, gae_associative):
        with pytest.raises(ValueError, match="at least one time step"):
            estimator(*empty, gamma=0.9, lam=0.9)
        with pytest.raises(AssertionError, match="shape"):
            estimator(*steps._replace(values=steps.values[:, :1]), gamma=0.9, lam=0.9)
        with pytest.raises(ValueError, match="gamma must be in"):
            estimator(*steps, gamma=1.01, lam=0.9)
        with pytest.raises(ValueError, match="lam must be in"):
            estimator(*steps, gamma=0.9, lam=-0.1)
        with pytest.raises(ValueError, match="lam must be in"):
            estimator(*steps, gamma=0.9, lam=jnp.nan)
        with pytest.raises(AssertionError, match="rank"):
            estimator(*steps, gamma=jnp.full(2, 0.9), lam=0.9)
    with pytest.raises(ValueError, match="at least one time step"):
        n_step(*empty, gamma=0.9, n=1)
    with pytest.raises(ValueError, match="at least one time step"):
        lambda_returns(empty.rewards, *empty[2:], gamma=0.9, lam=0.9)
    with pytest.raises(ValueError, match="at least one time step"):
        td_residuals(*(jnp.float32(0) for _ in range(4)), gamma=0.9)
    with pytest.raises(ValueError, match="n >= 1"):
        n_step(*steps, gamma=0.9, n=0)
    with pytest.raises(TypeError):
        n_step(*steps, gamma=0.9, n=1.5)


def test_all_run_inside_shard_map():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    steps = random_steps(13, (5, 4))
    lanes = P(None, "devices")
    sharded = jax.shard_map(
        lambda *args: (
            gae(*args, gamma=0.9, lam=0.8)[0],
            gae_associative(*args, gamma=0.9, lam=0.8)[0],
            *n_step(*args, gamma=0.9, n=3),
            lambda_returns(args[0], *args[2:], gamma=0.9, lam=0.8),
        ),
        mesh=mesh,
        in_specs=lanes,
        out_specs=lanes,
    )
    by_scan, by_associative_scan, *_ = jax.jit(sharded)(*steps)
    chex.assert_trees_all_close(by_scan, by_associative_scan, loop_gae(steps, 0.9, 0.8)[0], rtol=1e-4, atol=1e-5)


# Regressions: what is wrong, or was, in other trainers.


def brax_advantages(steps: Steps, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """`compute_gae` of brax 0.14: `(advantages, vs)`."""
    keep, alive = 1.0 - steps.truncated, gamma * (1.0 - steps.terminated)
    deltas = (steps.rewards + alive * steps.next_values - steps.values) * keep
    accumulated, traces = 0.0, np.zeros_like(steps.rewards)
    for t in reversed(range(len(deltas))):
        accumulated = deltas[t] + alive[t] * keep[t] * lam * accumulated
        traces[t] = accumulated
    targets = steps.values + traces
    following = np.concatenate([targets[1:], steps.next_values[-1:]])
    return (steps.rewards + alive * following - steps.values) * keep, targets


@ESTIMATORS
def test_not_the_v_trace_like_variant_of_brax(estimator):
    """There the first step ahead is not discounted by lambda: A_t = delta_t + gamma A_{t+1}."""
    steps = random_steps(14, (LENGTH,), end=0.0)
    advantages, returns = estimator(*steps, gamma=0.9, lam=0.5)
    theirs, targets = brax_advantages(steps, 0.9, 0.5)
    np.testing.assert_allclose(returns, targets, rtol=1e-4, atol=1e-5)  # their value targets are GAE's
    assert np.abs(advantages - theirs).max() > 0.1
    np.testing.assert_allclose(advantages, targets - steps.values, rtol=1e-4, atol=1e-5)


@ESTIMATORS
def test_a_truncated_step_keeps_its_advantage(estimator):
    """brax sets it to 0, which normalisation then turns into a spurious gradient."""
    steps = literal(NO, MIDDLE, middle=100.0)
    assert brax_advantages(steps, 0.5, 0.5)[0][1] == 0
    assert estimator(*steps, gamma=0.5, lam=0.5)[0][1] == 1 + 0.5 * 100 - 2


@ESTIMATORS
@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_no_residual_crosses_the_reset(estimator, kind):
    """Stoix, issue 142, and skrl, issue 449: with auto-reset, `values[t + 1]` is the next episode's first state."""
    steps = random_steps(15, (LENGTH,), end=0.0)
    steps = steps._replace(**{kind: np.arange(LENGTH) == 3})
    later = np.arange(LENGTH) > 3
    other = steps._replace(
        rewards=steps.rewards + 10 * later, values=steps.values - 20 * later, next_values=steps.next_values + 30 * later
    )
    before, _ = estimator(*steps, gamma=0.9, lam=0.9)
    after, _ = estimator(*other, gamma=0.9, lam=0.9)
    np.testing.assert_array_equal(before[:4], after[:4])
    assert (before[4:] != after[4:]).all()


@ESTIMATORS
def test_termination_and_truncation_are_not_merged(estimator):
    """CleanRL, issue 198, and purejaxrl, issue 20: a time limit is not worth 0, and a termination nothing but 0."""
    ended, _ = estimator(*literal(MIDDLE, NO, 100.0), gamma=0.5, lam=0.5)
    limited, _ = estimator(*literal(NO, MIDDLE, 100.0), gamma=0.5, lam=0.5)
    assert limited[1] - ended[1] == 0.5 * 100
    assert limited[0] - ended[0] == 0.25 * 0.5 * 100


@ESTIMATORS
def test_a_truncation_bootstraps_from_its_successor_not_from_itself(estimator):
    """rsl_rl, issue 151, and brax's `bootstrap_on_timeout` add gamma V(s_t) to the reward."""
    advantages, _ = estimator(*literal(NO, MIDDLE, 4.0), gamma=0.5, lam=0.5)
    assert advantages[1] == 1 + 0.5 * 4.0 - 2.0
    assert advantages[1] != 1 + 0.5 * 2.0 - 2.0


@ESTIMATORS
def test_flags_belong_to_the_step_that_ended_not_to_the_one_after(estimator):
    """Stoix's recurrent PPO used the previous step's done as this step's discount."""
    steps = literal(MIDDLE, NO, 4.0)
    shifted = steps._replace(terminated=np.roll(steps.terminated, 1))
    advantages, _ = estimator(*steps, gamma=0.5, lam=0.5)
    assert advantages[1] == 1.0 - 2.0
    assert (advantages != estimator(*shifted, gamma=0.5, lam=0.5)[0]).any()


# Properties.

numbers = hnp.arrays(np.float32, LENGTH, elements=st.floats(-100, 100, width=32))
flags = hnp.arrays(bool, LENGTH)
rollouts = st.builds(Steps, numbers, numbers, numbers, flags, flags)
fractions = st.floats(0, 1, width=32)
PROPERTY = settings(deadline=None, max_examples=40)


@PROPERTY
@given(rollouts, fractions, fractions)
def test_property_both_implementations_equal_the_loop(steps, gamma, lam):
    expected = loop_gae(steps, gamma, lam)
    for estimator in COMPILED.values():
        chex.assert_trees_all_close(estimator(*steps, gamma=gamma, lam=lam), expected, rtol=1e-4, atol=1e-2)


@ESTIMATORS
@PROPERTY
@given(steps=rollouts, other=rollouts, gamma=fractions, lam=fractions, end=st.integers(0, LENGTH - 2))
def test_property_an_end_hides_everything_after_it(estimator, steps, other, gamma, lam, end):
    steps.truncated[end] |= not steps.terminated[end]
    spliced = Steps(*(np.concatenate([a[: end + 1], b[end + 1 :]]) for a, b in zip(steps, other, strict=True)))
    expected, _ = estimator(*steps, gamma=gamma, lam=lam)
    advantages, _ = estimator(*spliced, gamma=gamma, lam=lam)
    np.testing.assert_array_equal(advantages[: end + 1], expected[: end + 1])


@ESTIMATORS
@PROPERTY
@given(steps=rollouts, gamma=fractions, lam=fractions, scale=st.sampled_from([-2.0, 0.5, 4.0]))
def test_property_linear_in_rewards_and_values(estimator, steps, gamma, lam, scale):
    scaled = steps._replace(**{name: getattr(steps, name) * np.float32(scale) for name in Steps._fields[:3]})
    advantages, _ = estimator(*steps, gamma=gamma, lam=lam)
    np.testing.assert_allclose(estimator(*scaled, gamma=gamma, lam=lam)[0], scale * advantages, rtol=1e-5, atol=1e-4)


@ESTIMATORS
@PROPERTY
@given(steps=rollouts, gamma=fractions, lam=fractions)
def test_property_the_true_value_function_has_no_advantage(estimator, steps, gamma, lam):
    """Where every residual is 0 the values solve Bellman's equation along the path, and lambda no longer matters."""
    bootstraps = np.where(steps.terminated, np.float32(0), steps.next_values)
    exact = steps._replace(values=steps.rewards + np.float32(gamma) * bootstraps)
    advantages, returns = estimator(*exact, gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantages, 0, atol=2e-4)
    np.testing.assert_allclose(returns, exact.values, rtol=1e-5, atol=2e-4)


@ESTIMATORS
@PROPERTY
@given(steps=rollouts, gamma=fractions, lam=fractions)
def test_property_terminated_wins_and_its_next_value_is_irrelevant(estimator, steps, gamma, lam):
    other = steps._replace(
        truncated=steps.truncated & ~steps.terminated,
        next_values=np.where(steps.terminated, np.float32(np.nan), steps.next_values),
    )
    chex.assert_trees_all_equal(estimator(*steps, gamma=gamma, lam=lam), estimator(*other, gamma=gamma, lam=lam))
