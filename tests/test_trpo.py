"""TRPO: its step against dense numpy, its trust region, the bugs that other implementations had, and learning."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_envs

import azjax
from azjax.config import ConfigError, traced_names
from azjax.envs import plain_vmap
from azjax.on_policy import default_network

SPEC = jax.ShapeDtypeStruct((3,), jnp.float32)
SMALL = {"policy_hidden": (4,), "value_hidden": (4,), "epochs": 1, "minibatches": 1}
BOX = azjax.Box(2)
ROWS = 48
AXIS = "devices"


def config_of(**settings: Any) -> azjax.TRPOConfig:
    return azjax.TRPOConfig(**{**SMALL, "normalize_observations": False, **settings})


@functools.cache
def learner_of(action_spec: Any = BOX, network: Any = None, **settings: Any) -> Any:
    """Learner with a compiled fit, and a state whose policy is away from its initial, nearly constant one."""
    learner = azjax.trpo(config_of(**settings), network=network)
    state = learner.init(jax.random.key(0), SPEC, action_spec)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), state.params.network)
    state = dataclasses.replace(state, params=dataclasses.replace(state.params, network=moved))
    return learner._replace(fit=jax.jit(learner.fit)), state


def distribution_of(state: Any, observation: Any, network: Any = None) -> Any:
    network = network or default_network(state.hyperparameters)
    return network.apply(state.params.network, observation)[0]


@functools.partial(jax.jit, static_argnames=("network", "rows"))
def batch_of(state: Any, key: Any, network: Any = None, rows: int = ROWS) -> azjax.Batch:
    """Random observations and advantages; actions of the policy, so that all ratios are 1."""
    keys = jax.random.split(key, 4)
    observation = jax.random.normal(keys[0], (rows, 3))
    distribution = distribution_of(state, observation, network)
    action = distribution.sample(keys[1])
    return azjax.Batch(
        observation=observation,
        action=action,
        log_prob=distribution.log_prob(action),
        advantages=jax.random.normal(keys[2], (rows,)) * 3 + 1,
        returns=jax.random.normal(keys[3], (rows,)) + 2,
        mask=jnp.ones(rows, bool),
    )


def network_leaves(state: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(state.params.network)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def policy_leaves(state: Any) -> dict[str, np.ndarray]:
    return {name: leaf for name, leaf in network_leaves(state).items() if "value_" not in name}


def assert_same_policy(a: Any, b: Any) -> None:
    for (name, one), other in zip(policy_leaves(a).items(), policy_leaves(b).values(), strict=True):
        assert one.tobytes() == other.tobytes(), name


# ---------------------------------------------------------------------------------------------------------------------
# The step, again in numpy
# ---------------------------------------------------------------------------------------------------------------------

KINDS = {
    "normal": (azjax.Box(2), {"distribution": "normal"}),
    "tanh-normal": (azjax.Box(2), {"distribution": "tanh-normal"}),
    "categorical": (azjax.Discrete(3), {}),
}


def numpy_outputs(weights: dict[str, np.ndarray], observation: np.ndarray) -> np.ndarray:
    """Parameters of each row's distribution, of a policy with one hidden layer: [rows, outputs]."""
    w = {name.removeprefix("weights/params/"): x for name, x in weights.items()}
    hidden = np.tanh(observation @ w["policy_torso/Dense_0/kernel"] + w["policy_torso/Dense_0/bias"])
    output = hidden @ w["policy_head/kernel"] + w["policy_head/bias"]
    if "log_std" not in w:
        return output
    return np.concatenate([output, np.broadcast_to(w["log_std"] + math.log(0.7), output.shape)], axis=1)


def numpy_natural_gradient(state: Any, batch: Any, damping: float) -> tuple[Any, ...]:
    """Gradient, damped Fisher and natural gradient as dense float64 arrays; derivatives by central differences."""
    leaves = {name: x.astype(np.float64) for name, x in policy_leaves(state).items()}
    theta = np.concatenate([x.ravel() for x in leaves.values()])
    ends = np.cumsum([x.size for x in leaves.values()])[:-1]

    def outputs(theta: np.ndarray) -> np.ndarray:
        parts = [p.reshape(x.shape) for p, x in zip(np.split(theta, ends), leaves.values(), strict=True)]
        return numpy_outputs(dict(zip(leaves, parts, strict=True)), np.asarray(batch.observation, np.float64))

    shift = 1e-6
    jacobian = np.stack(
        [(outputs(theta + shift * e) - outputs(theta - shift * e)) / (2 * shift) for e in np.eye(len(theta))], axis=-1
    )
    advantages = np.asarray(batch.advantages, np.float64)
    advantages = (advantages - advantages.mean()) / advantages.std()
    gradient, fisher = np.zeros(len(theta)), damping * np.eye(len(theta))
    for row, (output, action) in enumerate(zip(outputs(theta), np.asarray(batch.action), strict=True)):
        if action.ndim == 0:
            p = np.exp(output - output.max())
            p /= p.sum()
            score, own = np.eye(len(p))[action] - p, np.diag(p) - np.outer(p, p)
        else:
            (mean, log_std), z = np.split(output, 2), None
            z = (action - mean) / np.exp(log_std)
            score = np.concatenate([z / np.exp(log_std), z**2 - 1])
            own = np.diag(np.concatenate([np.exp(-2 * log_std), np.full(len(mean), 2.0)]))
        gradient += advantages[row] * jacobian[row].T @ score / len(advantages)
        fisher += jacobian[row].T @ own @ jacobian[row] / len(advantages)
    return gradient, fisher, np.linalg.solve(fisher, gradient)


@pytest.mark.parametrize(
    ("kind", "form"), [*((kind, "gauss-newton") for kind in KINDS), ("tanh-normal", "double-backward")]
)
def test_the_step_equals_a_dense_fisher_solve_in_numpy(kind, form):
    """Of all policy parameters, log_std among them, with the damping in the direction and in the length."""
    action_spec, settings = KINDS[kind]
    settings = {**settings, "damping": 0.1, "max_kl": 1e-3, "cg_iterations": 40, "cg_tolerance": 1e-6}
    learner, state = learner_of(action_spec, fisher_form=form, **settings)
    batch = batch_of(state, jax.random.key(1))
    after, info = learner.fit(state, batch, jax.random.key(2))
    gradient, fisher, natural = numpy_natural_gradient(state, batch, 0.1)
    step = np.sqrt(2 * 1e-3 / (natural @ fisher @ natural)) * natural
    before, moved = policy_leaves(state), policy_leaves(after)
    change = np.concatenate([(moved[name] - before[name]).ravel() for name in before])
    assert float(info["accepted"]) == 1.0
    expected = float(info["step_fraction"]) * step
    np.testing.assert_allclose(change, expected, rtol=5e-3, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(info["expected_improvement"], gradient @ step, rtol=1e-3)
    np.testing.assert_allclose(info["gradient_norm"], np.linalg.norm(gradient), rtol=1e-3)
    assert info["cg_residual"] <= 1e-6
    assert 1 < info["cg_iterations"] <= 40
    if isinstance(action_spec, azjax.Box):
        assert np.abs(moved["weights/params/log_std"] - before["weights/params/log_std"]).min() > 1e-5


@pytest.mark.parametrize("kind", ["tanh-normal", "categorical"])
def test_the_divergence_stays_inside_its_bound_on_a_thousand_problems(kind):
    """Bounds from 1e-4 to 1 and dampings from 0 to 1; KL(old || new) is computed anew, in float64."""
    action_spec, settings = KINDS[kind]
    learner = azjax.trpo(config_of(**settings))
    network = default_network(config_of(**settings))

    def run(key: Any) -> Any:
        keys = jax.random.split(key, 5)
        kl, damping = 10 ** jax.random.uniform(keys[0], minval=-4.0, maxval=0.0), jax.random.uniform(keys[1])
        own = dataclasses.replace(config_of(**settings), max_kl=kl, damping=damping)
        state = learner.init(keys[2], SPEC, action_spec, own)
        batch = batch_of(state, keys[3], network, 16)
        after, info = learner.fit(state, batch, keys[4])
        return distribution_of(state, batch.observation), distribution_of(after, batch.observation), kl, info

    old, new, bound, info = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 1000))
    with jax.enable_x64(True):
        old, new = (jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), d) for d in (old, new))
        kl = np.asarray(old.kl(new).mean(axis=1))
    assert (kl <= np.asarray(bound) * (1 + 1e-3)).all()
    assert (np.asarray(info["kl"]) <= np.asarray(bound)).all()
    np.testing.assert_allclose(info["kl"], kl, rtol=1e-2, atol=1e-6)
    accepted = np.asarray(info["accepted"]) > 0
    assert accepted.mean() > 0.9
    assert (np.asarray(info["improvement"])[accepted] > 0).all()
    assert np.median(kl / np.asarray(bound)) > 0.2  # and it is no smaller than it must be


def test_without_damping_the_quadratic_model_of_the_divergence_reaches_the_bound():
    """Whatever F is: here it is scaled by the inverse variance, 1e4 to 1, which shows every other formula."""
    for std in (0.01, 1.0):
        policy = Table(std)
        learner, state = table_learner(policy, damping=0.0, max_kl=1e-4, cg_iterations=30)
        after, info = learner.fit(state, table_batch(policy), jax.random.key(0))
        change = np.asarray(after.params.network["loc"] - state.params.network["loc"], np.float64)
        model = 0.5 * np.sum(np.mean(change**2, axis=0)) / std**2  # F of the means of one row is 1 / (rows std^2)
        np.testing.assert_allclose(model / float(info["step_fraction"]) ** 2, 1e-4, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# A policy that is a table, so that every number can be done by hand
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table:
    """The observation is a row's number; the deviation is fixed unless ``learn_std``; no value function."""

    std: float = 0.5
    actions: int = 2
    rows: int = 12
    learn_std: bool = False
    deaf: bool = False  # whether the parameters do nothing

    def init(self, key: Any, observation_spec: Any, action_spec: Any) -> Any:
        table = {"loc": jnp.zeros((self.rows, self.actions))}
        return {**table, "log_std": jnp.zeros(self.actions)} if self.learn_std else table

    def apply(self, params: Any, observation: Any) -> Any:
        loc = params["loc"][observation[..., 0].astype(jnp.int32)] * (0.0 if self.deaf else 1.0)
        log_std = params["log_std"] if self.learn_std else jnp.zeros(self.actions)
        return azjax.Normal(loc, math.log(self.std) + log_std), None


def table_batch(policy: Table, seed: int = 0) -> azjax.Batch:
    rng = np.random.default_rng(seed)
    observation = jnp.arange(float(policy.rows))[:, None]
    distribution, _ = policy.apply(policy.init(None, None, None), observation)
    action = jnp.asarray(rng.normal(size=(policy.rows, policy.actions)) * policy.std, jnp.float32)
    return azjax.Batch(
        observation=observation,
        action=action,
        log_prob=distribution.log_prob(action),
        advantages=jnp.asarray(rng.normal(size=policy.rows) * 2 + 1, jnp.float32),
        returns=jnp.asarray(rng.normal(size=policy.rows), jnp.float32),
        mask=jnp.ones(policy.rows, bool),
    )


@functools.cache
def table_program(policy: Any, config: azjax.TRPOConfig) -> Any:
    """A learner over the table with a compiled fit: one for all traced hyperparameters."""
    learner = azjax.trpo(config, network=policy)
    return learner._replace(fit=jax.jit(learner.fit))


def table_learner(policy: Any, **settings: Any) -> Any:
    config = config_of(**settings)
    static = {name: value for name, value in vars(config).items() if name not in traced_names(config)}
    learner = table_program(policy, azjax.TRPOConfig(**static))
    spec = jax.ShapeDtypeStruct((1,), jnp.float32)
    return learner, learner.init(jax.random.key(0), spec, azjax.Box(policy.actions), config)


def numpy_kl(loc: Any, log_std: Any, new_loc: Any, new_log_std: Any) -> float:
    """Mean over rows of KL(first || second), summed over dimensions."""
    ratio, shift = np.exp(2 * (log_std - new_log_std)), (loc - new_loc) ** 2 / np.exp(2 * new_log_std)
    return float(np.mean(np.sum(0.5 * (ratio + shift - 1) + new_log_std - log_std, axis=1)))


def test_the_divergence_is_that_of_the_old_policy_from_the_new_one_summed_over_dimensions():
    """spinningup#443: the direction; stable-baselines3: the mean over dimensions, a factor of their number."""
    policy = Table(actions=8, rows=4, learn_std=True)
    learner, state = table_learner(policy, max_kl=1.0, accept_ratio=0.0, damping=0.01)
    batch = table_batch(policy)
    after, info = learner.fit(state, batch, jax.random.key(0))
    old, new = (jax.tree.map(lambda x: np.asarray(x, np.float64), s.params.network) for s in (state, after))
    before, behind = (old["loc"], old["log_std"] + np.log(0.5)), (new["loc"], new["log_std"] + np.log(0.5))
    forward, backward = numpy_kl(*before, *behind), numpy_kl(*behind, *before)
    assert abs(forward - backward) > 0.05 * forward
    np.testing.assert_allclose(info["kl"], forward, rtol=1e-3)
    assert forward <= 1.0


@pytest.mark.parametrize("settings", [{"accept_ratio": 1.0, "max_kl": 5.0}, {"max_kl": 1e6, "max_backtracks": 0}])
def test_a_failed_line_search_leaves_the_policy_bit_for_bit(settings):
    """tianshou#1287: the last candidate stayed."""
    policy = Table(learn_std=True)
    learner, state = table_learner(policy, **settings)
    batch = table_batch(policy)
    after, info = learner.fit(state, batch, jax.random.key(0))
    assert_same_policy(state, after)
    assert int(after.updates) == 1
    for name in ("accepted", "step_fraction", "kl", "improvement"):
        assert float(info[name]) == 0.0, name
    assert float(info["backtracks"]) == settings.get("max_backtracks", 10)
    assert float(info["expected_improvement"]) > 0


def test_log_std_moves():
    """baselines#262: it was missing among the parameters. Advantage to large noise widens the policy."""
    policy = Table(learn_std=True)
    learner, state = table_learner(policy)
    batch = table_batch(policy)
    batch = batch._replace(advantages=jnp.square(batch.action).sum(axis=1))
    after, _ = learner.fit(state, batch, jax.random.key(0))
    assert (np.asarray(after.params.network["log_std"]) > 1e-3).all()


@pytest.mark.parametrize("form", ["gauss-newton", "double-backward"])
def test_without_curvature_no_step_is_taken(form):
    """sb3-contrib#38, rllab#24: a NaN step. Neither gradient nor Fisher; then a gradient that is not finite."""
    policy = Table(deaf=True)
    learner, state = table_learner(policy, damping=0.0, fisher_form=form)
    after, info = learner.fit(state, table_batch(policy), jax.random.key(0))
    assert_same_policy(state, after)
    assert float(info["accepted"]) == 0.0
    policy = Table()
    learner, state = table_learner(policy, damping=0.0, fisher_form=form)
    batch = table_batch(policy)
    for broken in (
        batch._replace(advantages=batch.advantages.at[3].set(jnp.nan)),
        batch._replace(log_prob=batch.log_prob.at[3].set(jnp.nan)),
        batch._replace(action=batch.action.at[3].set(jnp.inf)),
    ):
        after, info = learner.fit(state, broken, jax.random.key(0))
        assert_same_policy(state, after)
        assert float(info["accepted"]) == 0.0
        assert float(info["kl"]) == 0.0


def test_the_surrogate_improves_by_the_part_that_is_asked_for_and_is_what_numpy_says():
    """modular_rl#7 and its missing test of the divergence; improvement without loss of digits."""
    policy = Table()
    batch = table_batch(policy)
    for ratio in (0.0, 0.5, 0.9):
        learner, state = table_learner(policy, max_kl=0.3, accept_ratio=ratio, advantage_normalization="none")
        after, info = learner.fit(state, batch, jax.random.key(0))
        loc = np.asarray(after.params.network["loc"], np.float64)
        action, advantages = np.asarray(batch.action, np.float64), np.asarray(batch.advantages, np.float64)
        log_ratio = np.sum(action**2 - (action - loc) ** 2, axis=1) / (2 * policy.std**2)
        improvement = np.mean(np.expm1(log_ratio) * advantages)
        np.testing.assert_allclose(info["improvement"], improvement, rtol=1e-3)
        np.testing.assert_allclose(info["policy_loss"], -np.mean(np.exp(log_ratio) * advantages), rtol=1e-3)
        least = ratio * float(info["step_fraction"]) * float(info["expected_improvement"])
        assert float(info["accepted"]) == 1.0
        assert improvement >= least * (1 - 1e-4)
        assert 0.0 < float(info["kl"]) <= 0.3


def test_the_policys_step_does_not_depend_on_the_fit_of_the_values():
    """modular_rl fits values first; sb3-contrib starts conjugate gradients at a random point."""
    learner, state = learner_of()
    batch = batch_of(state, jax.random.key(1))
    after, _ = learner.fit(state, batch, jax.random.key(2))
    other, _ = learner.fit(state, batch, jax.random.key(3))
    assert_same_policy(after, other)
    slow = dataclasses.replace(state, hyperparameters=dataclasses.replace(state.hyperparameters, learning_rate=0.0))
    still, _ = learner.fit(slow, batch, jax.random.key(2))
    assert_same_policy(after, still)
    before, fitted, unfitted = network_leaves(state), network_leaves(after), network_leaves(still)
    for name in before:
        if "value_" in name:
            assert (fitted[name] != before[name]).all(), name
            np.testing.assert_array_equal(unfitted[name], before[name])


def test_a_shared_torso_is_refused():
    with pytest.raises(ConfigError, match="shared_torso is True, but TRPO"):
        azjax.trpo(config_of(shared_torso=True))
    learner = azjax.trpo(config_of(), network=azjax.ActorCritic((4,), (4,), shared_torso=True))
    with pytest.raises(ConfigError, match=r"share parameters .*torso.* separate torsos"):
        learner.init(jax.random.key(0), SPEC, azjax.Box(2))


def test_a_distribution_without_a_fisher_is_told_of_the_other_form():
    @dataclasses.dataclass(frozen=True)
    class Plain(Table):
        def apply(self, params: Any, observation: Any) -> Any:
            distribution, value = super().apply(params, observation)
            return OnlyDivergence(distribution.loc, distribution.log_std), value

    policy = Plain()
    batch = table_batch(policy)
    learner, state = table_learner(policy)
    with pytest.raises(ConfigError, match=r"OnlyDivergence has no fisher_product.*double-backward"):
        learner.fit(state, batch, jax.random.key(0))
    learner, state = table_learner(policy, fisher_form="double-backward")
    after, info = learner.fit(state, batch, jax.random.key(0))
    assert float(info["accepted"]) == 1.0
    expected_learner, state = table_learner(Table())
    expected, _ = expected_learner.fit(state, batch, jax.random.key(0))
    np.testing.assert_allclose(after.params.network["loc"], expected.params.network["loc"], rtol=1e-4, atol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class OnlyDivergence:
    loc: Any
    log_std: Any

    def log_prob(self, action: Any) -> Any:
        return azjax.Normal(self.loc, self.log_std).log_prob(action)

    def entropy(self) -> Any:
        return azjax.Normal(self.loc, self.log_std).entropy()

    def kl(self, other: Any) -> Any:
        return azjax.Normal(self.loc, self.log_std).kl(azjax.Normal(other.loc, other.log_std))


# ---------------------------------------------------------------------------------------------------------------------
# The batch
# ---------------------------------------------------------------------------------------------------------------------


def test_masked_entries_take_no_part_whatever_is_in_them():
    learner, state = learner_of(normalize_returns=True, normalize_observations=True)
    batch = batch_of(state, jax.random.key(1))
    mask = jnp.arange(ROWS) % 4 != 1
    spoilt = jax.tree.map(
        lambda x: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan) if x.dtype == jnp.float32 else x, batch
    )._replace(mask=mask)
    kept = jax.tree.map(lambda x: x[np.flatnonzero(mask)], batch)
    after, info = learner.fit(state, spoilt, jax.random.key(0))
    expected, expected_info = learner.fit(state, kept, jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), (after, info), (expected, expected_info)
    )
    assert float(info["accepted"]) == 1.0


def test_a_batch_of_which_nothing_counts_changes_nothing():
    learner, state = learner_of()
    batch = batch_of(state, jax.random.key(1))._replace(mask=jnp.zeros(ROWS, bool))
    after, info = learner.fit(state, batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after.params.network, state.params.network)
    assert all(np.isfinite(x) for x in info.values())


def test_leading_axes_of_a_batch_make_no_difference():
    learner, state = learner_of()
    flat = batch_of(state, jax.random.key(1))
    shaped = jax.tree.map(lambda x: x.reshape(6, 8, *x.shape[1:]), flat)
    one, two = (learner.fit(state, batch, jax.random.key(0)) for batch in (flat, shaped))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


def test_a_part_of_the_states_estimates_the_fisher_and_the_whole_batch_holds_the_bound():
    learner, state = learner_of(fisher_subsampling=4)
    batch = batch_of(state, jax.random.key(1))
    first, info = learner.fit(state, batch, jax.random.key(0))
    second, _ = learner.fit(state, batch, jax.random.key(1))
    again, _ = learner.fit(state, batch, jax.random.key(0))
    assert_same_policy(first, again)
    one, two = policy_leaves(first), policy_leaves(second)
    assert any((one[name] != two[name]).any() for name in one)
    old, new = (distribution_of(s, batch.observation) for s in (state, first))
    np.testing.assert_allclose(info["kl"], old.kl(new).mean(), rtol=1e-3)
    assert float(info["kl"]) <= 0.01
    # All states are as good as some where all are alike.
    alike = batch._replace(observation=jnp.ones_like(batch.observation))
    alike = alike._replace(log_prob=distribution_of(state, alike.observation).log_prob(batch.action))
    part, _ = learner.fit(state, alike, jax.random.key(0))
    learner, same = learner_of()
    whole, _ = learner.fit(same, alike, jax.random.key(0))
    for name, leaf in policy_leaves(part).items():
        np.testing.assert_allclose(leaf, policy_leaves(whole)[name], rtol=1e-3, atol=1e-5)


def rollout_of(learner: Any, state: Any, seed: int = 0, steps: int = 6, lanes: int = 4) -> azjax.Rollout:
    rng = np.random.default_rng(seed)
    observation = (rng.normal(size=(steps, lanes, 3)) * [1, 5, 20] + [0, 3, -40]).astype(np.float32)
    act = jax.vmap(learner.act, in_axes=(None, 0, None, 0))
    action, _, info = act(
        state.params, observation.reshape(-1, 3), (), jax.random.split(jax.random.key(seed), steps * lanes)
    )
    shape = (steps, lanes)
    terminated = rng.random(shape) < 0.2
    return azjax.Rollout(
        observation=jnp.asarray(observation),
        carry=(),
        action=action.reshape(*shape, *action.shape[1:]),
        info=jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), info),
        reward=jnp.asarray(rng.normal(size=shape), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray((rng.random(shape) < 0.2) & ~terminated),
        final_observation=jnp.asarray(observation + rng.normal(size=observation.shape), jnp.float32),
    )


def test_acting_and_estimating_are_those_of_ppo():
    settings = {"policy_hidden": (4,), "value_hidden": (4,), "gamma": 0.9, "lam": 0.7, "normalize_returns": True}
    trpo, ppo = azjax.trpo(azjax.TRPOConfig(**settings)), azjax.ppo(azjax.PPOConfig(**settings))
    states = [learner.init(jax.random.key(0), SPEC, azjax.Box(2)) for learner in (trpo, ppo)]
    rollouts = [rollout_of(learner, state) for learner, state in zip((trpo, ppo), states, strict=True)]
    batches = [learner.estimate(s, r) for learner, s, r in zip((trpo, ppo), states, rollouts, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_the_first_ratio_of_every_update_is_1_and_statistics_count_each_row_once():
    learner, state = learner_of(normalize_returns=True, normalize_observations=True)
    seen, returns = [], []
    for update in range(2):
        rollout = rollout_of(learner, state, update)
        batch = learner.estimate(state, rollout)
        # If the normaliser had moved between acting and learning, the surrogate before the step would not be 0.
        state, info = learner.fit(state, batch, jax.random.key(update))
        np.testing.assert_allclose(-info["policy_loss"], info["improvement"], atol=1e-5)
        assert float(info["accepted"]) == 1.0
        seen.append(np.asarray(rollout.observation, np.float64).reshape(-1, 3))
        returns.append(np.asarray(batch.returns, np.float64).ravel())
    seen, returns = np.concatenate(seen), np.concatenate(returns)
    assert azjax.counter_to_int(state.params.statistics.count) == len(seen) == 48
    np.testing.assert_allclose(state.params.statistics.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.return_statistics.mean, returns.mean(), rtol=1e-4, atol=1e-5)
    assert int(state.updates) == 2


def test_diagnostics_have_the_names_of_ppo_and_those_of_the_step():
    learner, state = learner_of()
    batch = batch_of(state, jax.random.key(1))
    _, info = learner.fit(state, batch, jax.random.key(0))
    ppo = azjax.ppo(azjax.PPOConfig(policy_hidden=(4,), value_hidden=(4,), epochs=1, minibatches=1))
    ppo_state = ppo.init(jax.random.key(0), SPEC, azjax.Box(2))
    _, of_ppo = jax.eval_shape(ppo.fit, ppo_state, batch, jax.random.key(0))
    step = {"cg_residual", "cg_iterations", "step_fraction", "backtracks", "accepted"}
    step |= {"expected_improvement", "improvement"}
    assert set(info) == set(of_ppo) - {"clip_fraction"} | step
    returns, advantages = np.asarray(batch.returns, np.float64), np.asarray(batch.advantages, np.float64)
    np.testing.assert_allclose(info["explained_variance"], 1 - advantages.var() / returns.var(), rtol=1e-3)
    entropy = distribution_of(state, batch.observation).entropy().mean()
    np.testing.assert_allclose(info["entropy"], entropy, rtol=1e-4)
    assert {x.dtype for x in info.values()} == {jnp.dtype("float32")}


# ---------------------------------------------------------------------------------------------------------------------
# Populations and devices
# ---------------------------------------------------------------------------------------------------------------------


def test_a_population_equals_its_members_alone():
    """Each with its own bound, damping and acceptance, and so with its own line searches of policy and values."""
    learner = azjax.trpo(config_of(value_update="trust-region"))
    each = [
        config_of(value_update="trust-region", max_kl=k, damping=d, accept_ratio=a, backtrack_factor=f)
        for k, d, a, f in ((1e-3, 0.1, 0.1, 0.5), (0.5, 0.0, 0.9, 0.8), (0.1, 1.0, 0.99, 0.9), (1e6, 0.1, 0.1, 0.5))
    ]

    def run(key: Any, hyperparameters: Any) -> Any:
        state = learner.init(key, SPEC, azjax.Box(2), hyperparameters)
        return learner.fit(state, batch_of(state, key, default_network(each[0])), key)

    keys = jax.random.split(jax.random.key(0), len(each))
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *each)
    together, info = jax.jit(jax.vmap(run))(keys, stacked)
    alone = jax.jit(run)
    for n, config in enumerate(each):
        after, own = alone(keys[n], config)
        np.testing.assert_array_equal(info["backtracks"][n], own["backtracks"])
        np.testing.assert_array_equal(info["accepted"][n], own["accepted"])
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_allclose(a[n], b, rtol=1e-3, atol=1e-5),
            together.params.network,
            after.params.network,
        )
    assert alone._cache_size() == 1  # other hyperparameters compiled nothing
    assert len(set(np.asarray(info["backtracks"]).tolist())) > 2


@pytest.mark.parametrize("value_update", ["adam", "trust-region"])
def test_one_two_and_four_devices_learn_the_same(require_devices, value_update):
    """Also where their masks differ; replicas are bitwise equal."""
    require_devices(4)
    settings = {"normalize_returns": True, "normalize_observations": True, "value_update": value_update}
    _, state = learner_of(**settings)
    batch = batch_of(state, jax.random.key(1))._replace(mask=jnp.arange(ROWS) >= 17)
    learner = azjax.trpo(config_of(**settings), axis_name=AXIS)
    whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)
    results = []
    for devices in (1, 2, 4):
        fit = jax.shard_map(
            learner.fit,
            mesh=azjax.make_mesh(devices, AXIS),
            in_specs=(whole, rows, whole),
            out_specs=(whole, whole),
            check_vma=False,
        )
        results.append(jax.jit(fit)(state, batch, jax.random.key(2)))
        for leaf in jax.tree.leaves(results[-1]):
            replicas = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
            assert len(set(replicas)) == 1
    results.append(learner_of(**settings)[0].fit(state, batch, jax.random.key(2)))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, results[0])
    assert float(results[0][1]["accepted"]) == 1.0


def test_no_two_leaves_of_a_fresh_state_share_a_buffer():
    """Donating the state would give the same buffer away twice."""
    for value_update in ("adam", "trust-region"):
        state = azjax.trpo(config_of(value_update=value_update)).init(jax.random.key(0), SPEC, azjax.Box(2))
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
        assert len(pointers) == len(set(pointers))


def test_hyperparameters_with_other_static_fields_are_refused():
    learner = azjax.trpo(config_of())
    with pytest.raises(ConfigError, match="cg_iterations"):
        learner.init(jax.random.key(0), SPEC, azjax.Box(2), config_of(cg_iterations=3))


# ---------------------------------------------------------------------------------------------------------------------
# Whole training programs
# ---------------------------------------------------------------------------------------------------------------------


def test_it_learns_where_the_target_is():
    """The best action is half of the observation; a random policy earns about 0.5."""
    config = azjax.TRPOConfig(policy_hidden=(8,), value_hidden=(8,), epochs=2, minibatches=2, max_kl=0.05)
    trainer = azjax.make_trainer(
        toy_envs.Target(), azjax.trpo(config), lanes=128, rollout_length=4, vectorize=plain_vmap
    )
    program = azjax.compile(trainer, updates_per_call=60)
    _, metrics = program.step(program.init(jax.random.key(0)))
    assert metrics.reward_mean[0] < 0.7
    assert metrics.reward_mean[-5:].mean() > 0.95
    assert metrics.learner["accepted"].mean() > 0.9
    assert (metrics.learner["kl"] <= 0.05).all()


def test_it_learns_to_walk_down_the_corridor():
    config = azjax.TRPOConfig(policy_hidden=(8,), value_hidden=(8,), max_kl=0.05, value_update="trust-region")
    trainer = azjax.make_trainer(
        toy_envs.Corridor(50), azjax.trpo(config), lanes=64, rollout_length=16, vectorize=plain_vmap
    )
    program = azjax.compile(trainer, updates_per_call=30)
    _, metrics = program.step(program.init(jax.random.key(0)))
    final = metrics.episodes.return_sum[-3:].sum() / metrics.episodes.ended[-3:].sum()
    assert final > 0.9 * toy_envs.Corridor.OPTIMAL_RETURN


def test_policy_and_values_may_see_different_entries_of_an_observation():
    config = config_of(policy_observation="seen", value_observation="hidden", normalize_observations=True)
    trainer = azjax.make_trainer(
        toy_envs.DictTask(), azjax.trpo(config), lanes=32, rollout_length=4, vectorize=plain_vmap
    )
    program = azjax.compile(trainer)
    state, metrics = program.step(program.init(jax.random.key(0)))
    assert float(metrics.learner["accepted"][0]) == 1.0
    kernel = state.learner.params.network.weights["params"]["value_torso"]["Dense_0"]["kernel"]
    assert kernel.shape == (1, 4)


def test_minibatches_that_do_not_divide_the_batch_are_an_error():
    learner, state = learner_of(minibatches=5)
    with pytest.raises(ConfigError, match=r"48 decisions per device .* 5 equal minibatches"):
        learner.fit(state, batch_of(state, jax.random.key(1)), jax.random.key(0))


def test_a_whole_training_program_on_inverted_pendulum(require_devices):
    require_devices(2)
    env = azjax.make_env("inverted_pendulum", "spring", episode_length=50)
    config = azjax.TRPOConfig(**{**SMALL, "epochs": 2, "minibatches": 2}, fisher_subsampling=4)
    learner = azjax.trpo(config, axis_name=AXIS)
    trainer = azjax.make_trainer(env, learner, lanes=64, rollout_length=16, axis_name=AXIS, vectorize=plain_vmap)
    program = azjax.compile(trainer, azjax.make_mesh(2, AXIS), updates_per_call=5)
    state, metrics = program.step(program.init(jax.random.key(0)))
    assert azjax.counter_to_int(state.env_steps) == 5 * 64 * 16
    assert (metrics.learner["accepted"] == 1.0).all()
    assert (metrics.learner["kl"] <= 0.01).all()
    assert (metrics.learner["kl"] > 1e-4).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.learner.params, metrics.learner)))
    lengths = metrics.episodes.length_sum / metrics.episodes.ended
    assert lengths[-1] > lengths[0]
