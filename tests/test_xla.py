"""What azjax asks of XLA."""

import jax
import jax.numpy as jnp
import pytest
from toy_envs import Corridor

import azjax
from azjax import xla


@pytest.fixture
def wanted(monkeypatch):
    """Sets what is wanted, for this test only."""
    return lambda options: monkeypatch.setattr(xla, "_WANTED", {"cpu": options})


def test_unknown_options_are_left_out(wanted):
    wanted({"xla_cpu_prefer_vector_width": 128, "xla_cpu_no_such_option": 1})
    assert xla.compiler_options("cpu") == {"xla_cpu_prefer_vector_width": 128}
    assert xla.compiler_options("gpu") == {}


def test_all_that_is_wanted_is_known_to_this_release():
    assert xla.compiler_options("cpu") == {"xla_cpu_prefer_vector_width": 512}
    assert xla.compiler_options("cpu", soon=True) == {
        "xla_cpu_prefer_vector_width": 512,
        "xla_cpu_use_fusion_emitters": False,
    }


def test_compiled_programs_carry_the_options():
    trainer = azjax.make_trainer(Corridor(), azjax.ppo(), lanes=32, rollout_length=2)
    compiled = azjax.compile(trainer)
    with pytest.raises(ValueError, match="xla_cpu_prefer_vector_width"):
        jax.jit(lambda key: compiled.init(key))(jax.random.key(0))
    assert jnp.isfinite(compiled.step(compiled.init(jax.random.key(0)))[1].reward_mean).all()
