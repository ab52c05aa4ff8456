"""Four CPU devices, quick compilation, and programs that several tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import jax
import pytest

# Both must be set before JAX starts a backend. JAX_COMPILATION_CACHE_DIR, if the caller sets it, is read by JAX itself.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 4)
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    # The tests compile far more than they run: this halves their time. Programs and their meaning stay the same.
    jax.config.update("jax_disable_most_optimizations", True)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell without job control has its background jobs ignore interrupts, and so would every process started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import toy_envs
from browser import CHROMIUM, Browser

import azjax

jax.devices()  # now, before a command under test chooses how many there are


@pytest.fixture(scope="session")
def require_devices():
    """``require_devices(n)`` skips the test where JAX sees fewer than ``n`` devices."""

    def check(count: int) -> None:
        if len(jax.devices()) < count:
            pytest.skip(f"needs {count} devices, JAX sees {len(jax.devices())}")

    return check


class Program(NamedTuple):
    """A trainer with its compiled functions."""

    env: azjax.Environment
    learner: azjax.Learner
    trainer: azjax.Trainer
    compiled: azjax.CompiledTrainer

    def run(self, key: jax.Array, calls: int) -> list[azjax.Metrics]:
        """The metrics of so many calls of ``step``, each with its leading axis of updates."""
        state, metrics = self.compiled.init(key), []
        for _ in range(calls):
            state, reported = self.compiled.step(state)
            metrics.append(reported)
        return metrics


@pytest.fixture(scope="session")
def lanes_program() -> Program:
    """Lanes that end in every possible way, more often than the pool has entries; nothing is learned."""
    env = toy_envs.Scripted(8, terminate=(3, 30), truncate=(5, 40), nan_observation=(2, 30), nan_reward=(2, 30))
    learner = toy_envs.idle()
    trainer = azjax.make_trainer(env, learner, lanes=64, rollout_length=16)
    return Program(env, learner, trainer, azjax.compile(trainer))


@pytest.fixture(scope="session")
def ppo_program() -> Program:
    """PPO on lanes that end in every possible way; ``metrics.learner`` has the rollout and the batch."""
    env = toy_envs.Scripted(6, terminate=(3, 12), nan_observation=(2, 60))
    config = azjax.PPOConfig(
        epochs=1, minibatches=1, learning_rate=1e-3, gamma=0.9, lam=0.8, policy_hidden=(8,), value_hidden=(8,)
    )
    learner = toy_envs.spy(azjax.ppo(config))
    trainer = azjax.make_trainer(env, learner, lanes=32, rollout_length=8, vectorize=azjax.envs.plain_vmap)
    return Program(env, learner, trainer, azjax.compile(trainer))


@pytest.fixture(scope="session")
def brax_program() -> Program:
    """PPO on a randomised Brax environment, 32 lanes, episodes of at most 12 steps."""
    env = azjax.make_env("inverted_pendulum", "spring", episode_length=12, randomize=True)
    config = azjax.PPOConfig(epochs=1, minibatches=2, policy_hidden=(8,), value_hidden=(8,))
    learner = toy_envs.spy(azjax.ppo(config))
    trainer = azjax.make_trainer(env, learner, lanes=32, rollout_length=8)
    return Program(env, learner, trainer, azjax.compile(trainer))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
