"""The default actor-critic: shapes, what each side sees, initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import azjax
from azjax.networks import ACTIVATIONS, LOG_STD_RANGE, MLP, ActorCritic, flatten_observation

SPEC = jax.ShapeDtypeStruct((3,), jnp.float32)
BOX = azjax.Box(2)
DICT_SPEC = {
    "state": jax.ShapeDtypeStruct((2,), jnp.float32),
    "privileged": jax.ShapeDtypeStruct((2, 2), jnp.float32),
    "contacts": jax.ShapeDtypeStruct((), jnp.int32),
}


class Jitted(ActorCritic):
    """The same, compiled: the tests are after results."""

    def apply(self, params, observation):
        return _apply(self, params, observation)


_apply = jax.jit(ActorCritic.apply, static_argnums=0)


@functools.cache
def make(spec="array", action_spec=BOX, **settings):
    """A small network and its parameters."""
    network = Jitted(**{"policy_hidden": (8,), "value_hidden": (8,), **settings})
    specs = {"array": SPEC, "dict": DICT_SPEC}
    return network, jax.jit(lambda key: network.init(key, specs[spec], action_spec))(jax.random.key(0))


def dict_observation(seed=0, leading=()):
    rng = np.random.default_rng(seed)
    return {
        "state": rng.normal(size=(*leading, 2)).astype(np.float32),
        "privileged": rng.normal(size=(*leading, 2, 2)).astype(np.float32),
        "contacts": rng.integers(0, 3, size=leading, dtype=np.int32),
    }


@pytest.mark.parametrize("leading", [(), (5,), (4, 5)])
def test_any_leading_axes(leading):
    network, params = make()
    distribution, value = network.apply(params, jnp.ones((*leading, 3)))
    assert distribution.loc.shape == (*leading, 2)
    assert jnp.broadcast_shapes(distribution.log_std.shape, distribution.loc.shape) == (*leading, 2)
    assert value.shape == leading


@pytest.mark.parametrize("spec", ["array", "dict"])
def test_a_batch_equals_its_rows(spec):
    network, params = make(spec)
    batch = dict_observation(leading=(4,)) if spec == "dict" else np.random.default_rng(0).normal(size=(4, 3))
    distribution, value = network.apply(params, batch)
    rows, row_values = jax.vmap(lambda observation: network.apply(params, observation))(batch)
    np.testing.assert_allclose(distribution.loc, rows.loc, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, row_values, rtol=1e-5, atol=1e-6)


def test_policy_and_value_function_each_see_their_own_entry():
    network, params = make("dict", policy_observation="state", value_observation="privileged")
    first, second = dict_observation(0), dict_observation(1)
    distribution, value = network.apply(params, first)
    other_privileged = network.apply(params, {**first, "privileged": second["privileged"]})
    other_state = network.apply(params, {**first, "state": second["state"]})
    other_contacts = network.apply(params, {**first, "contacts": second["contacts"] + 1})
    np.testing.assert_array_equal(other_privileged[0].loc, distribution.loc)
    assert other_privileged[1] != value
    assert (other_state[0].loc != distribution.loc).any()
    np.testing.assert_array_equal(other_state[1], value)
    np.testing.assert_array_equal(other_contacts[0].loc, distribution.loc)
    np.testing.assert_array_equal(other_contacts[1], value)


def test_without_names_both_sides_see_all_entries():
    network, params = make("dict")
    first = dict_observation(0)
    distribution, value = network.apply(params, first)
    for name, change in (("state", 1.0), ("privileged", 1.0), ("contacts", 1)):
        changed, changed_value = network.apply(params, {**first, name: first[name] + change})
        assert (changed.loc != distribution.loc).any(), name
        assert changed_value != value, name


def test_entries_are_flattened_in_sorted_order_and_kept_apart_from_leading_axes():
    observation = {"b": jnp.arange(12.0).reshape(2, 3, 2), "a": jnp.array([100, 200])}
    ranks = (("a", 0), ("b", 2))
    flat = flatten_observation(observation, None, ranks)
    np.testing.assert_array_equal(flat, [[100, 0, 1, 2, 3, 4, 5], [200, 6, 7, 8, 9, 10, 11]])
    assert flat.dtype == jnp.float32
    np.testing.assert_array_equal(flatten_observation(observation, "a", ranks), [[100], [200]])


@pytest.mark.parametrize("field", ["policy_observation", "value_observation"])
def test_an_entry_that_does_not_exist_is_an_error_that_lists_the_others(field):
    with pytest.raises(ValueError, match=rf"{field} is 'velocity'.*contacts, privileged, state"):
        make("dict", **{field: "velocity"})
    with pytest.raises(ValueError, match=rf"{field} is 'velocity'.*one array"):
        make("array", **{field: "velocity"})


@pytest.mark.parametrize(
    ("action_spec", "settings", "kind"),
    [
        (azjax.Box(2), {}, azjax.TanhNormal),
        (azjax.Box(2), {"distribution": "normal"}, azjax.Normal),
        (azjax.Discrete(4), {}, azjax.Categorical),
    ],
)
def test_the_distribution_fits_the_action_space(action_spec, settings, kind):
    network, params = make(action_spec=action_spec, **settings)
    distribution, _ = network.apply(params, jnp.ones((5, 3)))
    assert type(distribution) is kind
    event = distribution.logits if kind is azjax.Categorical else distribution.loc
    assert event.shape == (5, action_spec.size)


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_the_untrained_policy_is_centred_with_the_standard_deviation_asked_for(state_dependent_std):
    network, params = make(state_dependent_std=state_dependent_std, init_std=0.4)
    observation = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    distribution, _ = network.apply(params, observation)
    np.testing.assert_allclose(distribution.loc, np.zeros((64, 2)), atol=0.03)
    np.testing.assert_allclose(jnp.broadcast_to(distribution.std, (64, 2)), np.full((64, 2), 0.4), rtol=0.05)
    spread = float(jnp.ptp(jnp.broadcast_to(distribution.log_std, (64, 2)), axis=0).max())
    assert (spread > 0) == state_dependent_std


@pytest.mark.parametrize(("shift", "bound"), [(-100.0, LOG_STD_RANGE[0]), (100.0, LOG_STD_RANGE[1])])
def test_the_standard_deviation_stays_in_range(shift, bound):
    network, params = make()
    weights = jax.tree.map(lambda x: x, params.weights)
    weights["params"]["log_std"] = weights["params"]["log_std"] + shift
    distribution, _ = network.apply(params.replace(weights=weights), jnp.ones(3))
    np.testing.assert_allclose(distribution.log_std, [bound, bound])


@pytest.mark.parametrize("shared", [False, True])
def test_the_value_function_trains_the_policys_torso_only_if_it_is_shared(shared):
    network, params = make(shared_torso=shared)
    observation = jnp.array([0.3, -1.0, 2.0])
    gradient = jax.jit(jax.grad(lambda p: network.apply(p, observation)[1]))(params).weights["params"]
    torso = gradient["torso" if shared else "policy_torso"]
    reached = any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(torso))
    assert reached == shared
    assert not any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradient["policy_head"]))
    assert ("value_torso" in gradient) == (not shared)


def test_hidden_layers_start_orthogonal_with_gain_sqrt_2():
    _, params = make(policy_hidden=(3,))
    kernel = np.asarray(params.weights["params"]["policy_torso"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 2.0 * np.eye(3), atol=1e-5)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_each_activation_is_the_one_that_it_names(activation):
    module = MLP((4,), activation)
    x = jnp.array([0.5, -1.5])
    params = module.init(jax.random.key(0), x)
    linear = x @ params["params"]["Dense_0"]["kernel"] + params["params"]["Dense_0"]["bias"]
    expected = {"tanh": jnp.tanh, "relu": jax.nn.relu, "silu": jax.nn.silu, "elu": jax.nn.elu, "gelu": jax.nn.gelu}
    np.testing.assert_allclose(module.apply(params, x), expected[activation](linear), rtol=1e-5)


def test_different_keys_give_different_weights_and_the_same_key_the_same():
    network = ActorCritic(policy_hidden=(4,), value_hidden=(4,))
    init = jax.jit(
        lambda key: network.init(key, SPEC, azjax.Box(1)).weights["params"]["policy_torso"]["Dense_0"]["kernel"]
    )
    first, again, other = init(jax.random.key(0)), init(jax.random.key(0)), init(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_networks_of_many_members_are_factorised_one_by_one() -> None:
    network, spec = azjax.ActorCritic(), jax.ShapeDtypeStruct((27,), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    program = jax.jit(jax.vmap(lambda key: network.init(key, spec, azjax.Box(8))))
    # LAPACK for a batch of matrices hangs where there is a device for each core.
    text = program.lower(keys).as_text()
    assert "geqrf" in text or "qr" in text.lower()
    assert "tensor<8x64x64xf32>" not in "".join(line for line in text.splitlines() if "custom_call" in line)
    together = program(keys)
    for n in (0, 7):
        alone = jax.jit(lambda key: network.init(key, spec, azjax.Box(8)))(keys[n])
        jax.tree.map(lambda a, b, n=n: np.testing.assert_array_equal(a[n], b), together, alone)
