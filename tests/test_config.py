"""Hyperparameters: which are traced and which static, and what validation says."""

import dataclasses
import math
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import azjax
from azjax.config import ConfigError, as_arrays, register_config, require, require_number, static, traced, traced_names


@register_config
@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = traced(0.5)
    size: int = static(3)
    decay: float = traced(0.9)


def test_traced_fields_are_the_leaves_and_static_ones_the_structure():
    config = Config(rate=0.25)
    assert traced_names(config) == traced_names(Config) == ("rate", "decay")
    assert jax.tree.leaves(config) == [0.25, 0.9]
    assert jax.tree.structure(Config(size=3)) == jax.tree.structure(Config(rate=7.0))
    assert jax.tree.structure(Config(size=3)) != jax.tree.structure(Config(size=4))


def test_as_arrays_makes_float32_of_traced_fields_only():
    config = as_arrays(Config(rate=1, size=5))
    assert config.size == 5
    assert isinstance(config.size, int)
    for leaf in (config.rate, config.decay):
        assert leaf.dtype == jnp.float32
        assert leaf.shape == ()
        assert not leaf.weak_type
    assert float(config.rate) == 1.0


def test_a_traced_field_recompiles_nothing_and_a_static_one_does():
    chex.clear_trace_counter()
    traces = []

    @jax.jit
    def program(config):
        traces.append(config.size)
        return config.rate * jnp.ones(config.size)

    for rate in (0.1, 0.2, 0.3):
        np.testing.assert_allclose(program(as_arrays(Config(rate=rate))), [rate] * 3, rtol=1e-6)
    assert traces == [3]
    assert program(as_arrays(Config(size=2))).shape == (2,)
    assert traces == [3, 2]


def test_vmap_over_a_config_is_a_population():
    stacked = dataclasses.replace(as_arrays(Config()), rate=jnp.array([1.0, 2.0]))
    axes = dataclasses.replace(Config(), rate=0, decay=None)
    result = jax.vmap(lambda config: config.rate * config.decay, in_axes=(axes,))(stacked)
    np.testing.assert_allclose(result, [0.9, 1.8], rtol=1e-6)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().rate = 1.0  # type: ignore[misc]


def test_require_raises_a_value_error_with_the_message():
    require(True, "never seen")
    with pytest.raises(ValueError, match=r"^lanes make no sense$"):
        require(False, "lanes make no sense")


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
def test_require_number_names_the_field_and_the_value(value):
    with pytest.raises(ValueError, match=rf"gamma is {value}; .* 0.* 1"):
        require_number("gamma", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_require_number_includes_its_bounds(value):
    require_number("gamma", value, 0.0, 1.0)


@pytest.mark.parametrize("kind", [azjax.PPOConfig, azjax.TRPOConfig])
def test_learners_trace_their_floats(kind):
    """Every float is traced but the one that only initialises; every count and choice is static."""
    floats = {name for name, hint in typing.get_type_hints(kind).items() if hint is float}
    assert set(traced_names(kind)) == floats - {"init_std"}


@pytest.mark.parametrize("kind", [azjax.PPOConfig, azjax.TRPOConfig])
def test_learners_make_sense_by_default(kind):
    kind().validate()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", math.nan),
        ("damping", -0.1),
        ("damping", math.inf),
        ("cg_tolerance", -1e-9),
        ("accept_ratio", 1.5),
        ("backtrack_factor", 1.0),
        ("backtrack_factor", 0.0),
        ("learning_rate", -1e-3),
        ("max_value_change", 0.0),
        ("value_damping", -1.0),
        ("cg_iterations", 0),
        ("max_backtracks", -1),
        ("fisher_subsampling", 0),
        ("fisher_form", "dense"),
        ("value_update", "lbfgs"),
        ("advantage_normalization", "minibatch"),
        ("epochs", 0),
        ("minibatches", 0),
        ("gamma", 1.01),
        ("lam", -0.1),
        ("reward_scale", 0.0),
        ("activation", "sine"),
        ("policy_hidden", (64, 0)),
        ("shared_torso", True),
    ],
)
def test_trpo_config_names_the_field_that_makes_no_sense(field, value):
    config = azjax.TRPOConfig(**{field: value})
    with pytest.raises(ConfigError, match=f"^{field} is "):
        config.validate()
    with pytest.raises(ConfigError, match=field):
        azjax.trpo(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("gamma", 1.01),
        ("lam", -0.1),
        ("clip", 0.0),
        ("value_clip", 0.0),
        ("value_coefficient", -1.0),
        ("entropy_coefficient", math.inf),
        ("max_grad_norm", 0.0),
        ("reward_scale", 0.0),
        ("target_kl", 0.0),
        ("epochs", 0),
        ("minibatches", 0),
        ("schedule", "exponential"),
        ("schedule_updates", -1),
        ("advantage_normalization", "lane"),
        ("activation", "sine"),
        ("distribution", "beta"),
        ("policy_hidden", (64, 0)),
        ("value_hidden", (0,)),
        ("init_std", 0.0),
    ],
)
def test_ppo_config_names_the_field_that_makes_no_sense(field, value):
    config = azjax.PPOConfig(**{field: value})  # making one checks nothing: only validate does
    with pytest.raises(ValueError, match=field):
        config.validate()
    with pytest.raises(ValueError, match=field):
        azjax.ppo(config)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_schedule_needs_its_length(schedule):
    with pytest.raises(ValueError, match="schedule_updates"):
        azjax.PPOConfig(schedule=schedule).validate()
    azjax.PPOConfig(schedule=schedule, schedule_updates=10).validate()


def test_a_shared_torso_needs_one_observation():
    with pytest.raises(ValueError, match="shared_torso"):
        azjax.PPOConfig(shared_torso=True, policy_observation="state").validate()
    azjax.PPOConfig(shared_torso=True, policy_observation="state", value_observation="state").validate()


@pytest.mark.parametrize("init_std", [1e-3, 50.0])
def test_a_standard_deviation_that_the_network_would_clip_is_refused(init_std):
    """The network keeps log_std within its range, so a value outside of it would silently not be used."""
    with pytest.raises(ValueError, match="init_std"):
        azjax.PPOConfig(init_std=init_std).validate()


def test_infinity_switches_clipping_off():
    azjax.PPOConfig(value_clip=math.inf, max_grad_norm=math.inf).validate()
