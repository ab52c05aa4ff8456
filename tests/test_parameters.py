"""Which parameters belong to the policy, found in the network's program."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import azjax
from azjax.config import ConfigError
from azjax.parameters import as_vector, separate

SPEC = jax.ShapeDtypeStruct((3,), jnp.float32)
BATCH = jax.ShapeDtypeStruct((5, 3), jnp.float32)


def names_of(params: Any, chosen: tuple[bool, ...]) -> set[str]:
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    return {path for path, mine in zip(paths, chosen, strict=True) if mine}


@pytest.mark.parametrize(
    ("spec", "state_dependent"), [(azjax.Box(2), False), (azjax.Box(2), True), (azjax.Discrete(4), False)]
)
def test_an_actor_critic_falls_into_two_parts_with_log_std_in_the_policy(spec, state_dependent):
    """baselines#262: log_std was missing."""
    network = azjax.ActorCritic((4,), (4,), state_dependent_std=state_dependent)
    params = network.init(jax.random.key(0), SPEC, spec)
    parts = separate(network, params, BATCH)
    policy, value = names_of(params, parts.policy), names_of(params, parts.value)
    assert policy | value == names_of(params, (True,) * len(parts.policy))
    assert not policy & value
    assert {name.split("/")[2] for name in value} == {"value_torso", "value_head"}
    if isinstance(spec, azjax.Box):
        assert any("log_std" in name for name in policy)


@dataclasses.dataclass(frozen=True)
class Custom:
    """Names that mislead: what is called value is the policy's; sb3-contrib goes by such names."""

    shared: bool = False
    critic: bool = True

    def init(self, key: Any, observation_spec: Any, action_spec: Any) -> Any:
        return {"value_of_action": jnp.ones((3, 2)), "policy_b": jnp.ones(3), "unused": jnp.ones(4)}

    def apply(self, params: Any, observation: Any) -> Any:
        hidden = jax.jit(jnp.tanh)(observation * (params["policy_b"] if self.shared else 1.0))
        loc = hidden @ params["value_of_action"]
        value = jax.jit(lambda x, w: jnp.sum(x * w, -1))(observation, params["policy_b"]) if self.critic else None
        return azjax.Normal(loc, jnp.zeros_like(loc)), value


def test_parts_are_found_by_use_not_by_name():
    params = Custom().init(None, None, None)
    parts = separate(Custom(), params, BATCH)
    assert names_of(params, parts.policy) == {"value_of_action"}
    assert names_of(params, parts.value) == {"policy_b"}
    assert not any(separate(Custom(critic=False), params, BATCH).value)


def test_shared_parameters_are_refused_by_name():
    params = Custom().init(None, None, None)
    with pytest.raises(ConfigError, match=r"share parameters \(\['policy_b'\]\).* separate torsos"):
        separate(Custom(shared=True), params, BATCH)
    network = azjax.ActorCritic((4, 4), (4,), shared_torso=True)
    with pytest.raises(ConfigError, match=r"torso.*, \.\.\.\)"):
        separate(network, network.init(jax.random.key(0), SPEC, azjax.Box(2)), BATCH)


def test_a_vector_goes_back_to_where_it_came_from():
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(2), "c": jnp.full((), 7.0)}
    vector, rebuild = as_vector(params, (True, False, True))
    np.testing.assert_array_equal(vector, [0, 1, 2, 3, 4, 5, 7])
    moved = rebuild(vector * 2)
    np.testing.assert_array_equal(moved["a"], params["a"] * 2)
    np.testing.assert_array_equal(moved["b"], params["b"])
    assert float(moved["c"]) == 14.0
    assert as_vector(params, (False,) * 3)[0].size == 0
