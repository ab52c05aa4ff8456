"""Trains skrl's PPO (JAX) on a toy of azjax through the Gymnasium bridge; a script for test_gymnasium.py."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from skrl.agents.jax.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.jax import wrap_env
from skrl.memories.jax import RandomMemory
from skrl.models.jax import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.jax import SequentialTrainer
from skrl.utils import set_seed
from toy_envs import Target

import azjax

LANES, STEPS, ROLLOUT = 64, 512, 16


class Policy(GaussianMixin, Model):
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        x = nn.tanh(nn.Dense(32)(inputs["observations"]))
        return nn.Dense(self.num_actions)(x), {"log_std": self.param("log_std", lambda _: jnp.zeros(self.num_actions))}


class Value(DeterministicMixin, Model):
    def __init__(self, **spaces):
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)

    @nn.compact
    def __call__(self, inputs, role):
        return nn.Dense(1)(nn.tanh(nn.Dense(32)(inputs["observations"]))), {}


def mean_reward(env, policy) -> float:
    """Of the mean action, in lanes of an environment of its own."""
    observation, _ = env.reset(seed=1)
    inputs = {"observations": jnp.asarray(observation), "states": None}
    mean = policy.apply(policy.state_dict.params, inputs, "policy")[0]
    return float(np.mean(env.step(np.asarray(mean))[1]))


def main() -> None:
    set_seed(0)
    env = wrap_env(azjax.to_gymnasium(Target(), LANES, seed=0), wrapper="gymnasium")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    models = {"policy": Policy(**spaces), "value": Value(**spaces)}
    for role, model in models.items():
        model.init_state_dict(role=role)
    config = PPO_CFG(rollouts=ROLLOUT, learning_epochs=4, mini_batches=4, learning_rate=3e-3)
    config.experiment.write_interval = config.experiment.checkpoint_interval = 0
    memory = RandomMemory(memory_size=ROLLOUT, num_envs=env.num_envs, device=env.device)
    agent = PPO(models=models, memory=memory, cfg=config, **spaces)
    judge = azjax.to_gymnasium(Target(), 256)
    print("mean reward before:", mean_reward(judge, models["policy"]))
    trainer = SequentialTrainer(
        env=env, agents=agent, cfg={"timesteps": STEPS, "disable_progressbar": True, "headless": True}
    )
    trainer.train()
    print("mean reward after:", mean_reward(judge, models["policy"]))


if __name__ == "__main__":
    main()
