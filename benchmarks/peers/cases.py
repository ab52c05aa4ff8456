"""Peers, one measurement a process: ``python -m benchmarks.peers.cases NAME '{"option": value}'`` prints a JSON line.

Imports nothing of azjax. Environment, lanes, rollout length, minibatches, epochs and network sizes are those of azjax's
ant preset unless changed; what a peer does beside that, or can't do, is its own.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.process import peak_memory, since_process_start

SHAPE = {"lanes": 1024, "rollout_length": 16, "minibatches": 16, "epochs": 4, "hidden": 64}


def brax_ppo(
    env: str = "ant",
    devices: int = 1,
    updates: int = 4,
    epochs_timed: int = 6,
    settings: dict[str, Any] | None = None,
    threshold: float | None = None,
    limit_seconds: float = 600.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Brax's PPO. Without a threshold: steps/s after warm-up; with one: seconds from process start to that return."""
    import jax

    if not hasattr(jax, "device_put_replicated"):  # removed from jax 0.10; brax 0.14.2 still calls it
        jax.device_put_replicated = _replicate
    import functools

    from brax import envs
    from brax.training.agents.ppo import networks, train

    chosen: dict[str, Any] = {
        "num_envs": SHAPE["lanes"],
        "unroll_length": SHAPE["rollout_length"],
        "num_minibatches": SHAPE["minibatches"],
        "batch_size": SHAPE["lanes"] // SHAPE["minibatches"],
        "num_updates_per_batch": SHAPE["epochs"],
        "learning_rate": 2e-3,
        "entropy_cost": 1e-3,
        "discounting": 0.97,
        "reward_scaling": 1.0,
    } | (settings or {})
    hidden = (SHAPE["hidden"],) * 2
    if settings is None:
        chosen["network_factory"] = functools.partial(
            networks.make_ppo_networks, policy_hidden_layer_sizes=hidden, value_hidden_layer_sizes=hidden
        )
    per_update = chosen["batch_size"] * chosen["unroll_length"] * chosen["num_minibatches"]
    marks: list[int] = []
    rates: list[float] = []
    reached: list[tuple[int, float]] = []

    class Enough(Exception):
        pass

    def progress(steps: int, metrics: dict[str, Any]) -> None:
        marks.append(int(steps))
        if "training/sps" in metrics:  # right as long as num_resets_per_eval is 0, its default
            rates.append(float(metrics["training/sps"]))
        value = float(metrics.get("eval/episode_reward", float("-inf")))
        if threshold is not None:
            if value >= threshold:
                reached.append((int(steps), since_process_start()))
            if reached or since_process_start() > limit_seconds:
                raise Enough

    quiet = threshold is None and "run_evals" in inspect.signature(train.train).parameters
    rounds = epochs_timed + 1  # the first evaluation, or its place, comes before the first epoch
    with contextlib.suppress(Enough):
        train.train(
            envs.get_environment(env, backend="spring"),
            num_timesteps=per_update * updates * epochs_timed,
            num_evals=rounds,
            episode_length=1000,
            normalize_observations=True,
            **({"run_evals": False} if quiet else {}),
            progress_fn=progress,
            seed=seed,
            max_devices_per_host=devices,
            **chosen,
        )
    common = {"unit": "environment steps/s", "versions": _versions("brax", "jax")}
    if threshold is not None:
        steps, seconds = reached[0] if reached else (marks[-1], None)
        return {**common, "seconds_to_threshold": seconds, "steps_to_threshold": steps, "limit_seconds": limit_seconds}
    return {
        **common,
        "rate": statistics.median(rates[2:]),  # the first two epochs compile
        "rate_min": min(rates[2:]),
        "rate_max": max(rates[2:]),
        "epochs": len(rates),
    }


def _replicate(tree: Any, devices: Any) -> Any:
    """What ``jax.device_put_replicated`` did: a copy on each device, along a new first axis."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    where = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("i",)), jax.sharding.PartitionSpec("i"))
    return jax.tree.map(lambda x: jax.device_put(jnp.stack([x] * len(devices)), where), tree)


def rejax_ppo(env: str = "ant", updates: int = 6, repeats: int = 3) -> dict[str, Any]:
    """PPO of rejax: one program for the whole training, so two lengths are timed and subtracted."""
    import jax
    from rejax import get_algo
    from rejax.compat.brax2gymnax import create_brax

    environment, env_params = create_brax(env, backend="spring")

    def seconds(count: int) -> float:
        algorithm = (
            get_algo("ppo")
            .create(
                env=environment,
                env_params=env_params,
                num_envs=SHAPE["lanes"],
                num_steps=SHAPE["rollout_length"],
                num_epochs=SHAPE["epochs"],
                num_minibatches=SHAPE["minibatches"],
                learning_rate=2e-3,
                gamma=0.97,
                total_timesteps=SHAPE["lanes"] * SHAPE["rollout_length"] * count,
                eval_freq=SHAPE["lanes"] * SHAPE["rollout_length"] * count,
                normalize_observations=True,
                skip_initial_evaluation=True,
                agent_kwargs={"hidden_layer_sizes": (SHAPE["hidden"],) * 2, "activation": "tanh"},
            )
            .replace(eval_callback=lambda *_: ())
        )
        train = jax.jit(algorithm.train)
        jax.block_until_ready(train(jax.random.PRNGKey(0)))
        found = []
        for n in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(train(jax.random.PRNGKey(n)))
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    difference = seconds(2 * updates) - seconds(updates)
    rate = SHAPE["lanes"] * SHAPE["rollout_length"] * updates / difference
    return {"rate": rate, "unit": "environment steps/s", "versions": _versions("rejax", "brax", "jax")}


def sb3_trpo(
    sub_sampling: int = 1, repeats: int = 7, observation_size: int = 27, action_size: int = 8
) -> dict[str, Any]:
    """Decisions/s of the learner of stable-baselines3-contrib's TRPO on a made-up rollout, with ant's sizes.

    Timed are advantages and ``train()``; nothing is stepped. Its bound is on the mean over action dimensions, so the
    sum's 0.01 is 0.01 / 8 there, and its damping 0.1 / 8.
    """
    import gymnasium
    import numpy as np
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Still(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            return np.zeros(observation_size, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(observation_size, np.float32), 0.0, False, False, {}

    lanes, length = SHAPE["lanes"], SHAPE["rollout_length"]
    layers = [SHAPE["hidden"]] * 2
    model = TRPO(
        "MlpPolicy",
        DummyVecEnv([Still] * lanes),
        n_steps=length,
        batch_size=lanes * length // SHAPE["minibatches"],
        n_critic_updates=SHAPE["epochs"],
        sub_sampling_factor=sub_sampling,
        cg_max_steps=10,
        cg_damping=0.1 / action_size,
        target_kl=0.01 / action_size,
        line_search_max_iter=10,
        gamma=0.97,
        policy_kwargs={"net_arch": {"pi": layers, "vf": layers}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=0,
    )
    model.set_logger(configure(None, []))
    generator = np.random.default_rng(0)
    buffer = model.rollout_buffer
    observation = generator.standard_normal((length, lanes, observation_size)).astype(np.float32)
    starts, ended = np.zeros(lanes, np.float32), np.zeros(lanes, bool)

    def rollout() -> Any:
        buffer.reset()
        for step in observation:
            with torch.no_grad():
                action, value, log_prob = model.policy(torch.as_tensor(step))
            buffer.add(step, action.numpy(), step[:, 0], starts, value, log_prob)
        return value

    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        value = rollout()
        start = time.perf_counter()
        buffer.compute_returns_and_advantage(last_values=value, dones=ended)
        model.train()
        seconds.append(time.perf_counter() - start)
    rates = sorted(lanes * length / each for each in seconds[1:])
    return {
        "rate": statistics.median(rates),
        "rate_min": rates[0],
        "rate_max": rates[-1],
        "unit": "decisions/s",
        "threads": torch.get_num_threads(),
        "versions": _versions("sb3-contrib", "stable-baselines3", "torch", "numpy"),
    }


def _versions(*packages: str) -> dict[str, str]:
    import importlib.metadata

    return {package: importlib.metadata.version(package) for package in packages}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "brax_ppo": brax_ppo,
    "rejax_ppo": rejax_ppo,
    "sb3_trpo": sb3_trpo,
}


def main(name: str, options: str = "{}") -> None:
    """Runs a case and prints what it measured."""
    settings: dict[str, Any] = json.loads(options)
    devices = settings.get("devices", 1)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    measured = CASES[name](**settings)
    print(
        json.dumps({**measured, "peak_mib": round(peak_memory()), "process_seconds": round(since_process_start(), 2)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
