"""Patches around frozen physics code last only while it is being traced."""

import jax
import pytest
from mujoco.mjx._src import scan

import azjax
from azjax.envs.compat import barriers_in_mjx, tree_depth


def reset_program(name: str) -> str:
    env = azjax.make_env(name, "mjx")
    return str(jax.make_jaxpr(lambda key: azjax.envs.fresh_state(env, key))(jax.random.key(0)))


def test_depth_of_a_tree():
    assert tree_depth([0]) == 0
    assert tree_depth([0, 0, 1, 1, 3, 0]) == 3


def test_a_deep_model_on_mjx_gets_barriers_and_a_shallow_one_none():
    original = scan.body_tree
    assert "optimization_barrier" in reset_program("pusher")
    assert "optimization_barrier" not in reset_program("inverted_pendulum")
    assert scan.body_tree is original


def test_mjx_is_restored_after_an_error():
    original = scan.body_tree

    def fail():
        with barriers_in_mjx():
            assert scan.body_tree is not original
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert scan.body_tree is original


def test_a_changed_mjx_is_left_alone(monkeypatch):
    monkeypatch.delattr(scan, "body_tree")
    with barriers_in_mjx():
        assert not hasattr(scan, "body_tree")
