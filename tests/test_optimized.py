"""What the other tests show of programs compiled quickly, once more for those that users run: XLA's optimisations on.

One process of its own trains a Brax environment on the minor-most axis, on 1 and on 2 devices.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
import azjax

CONFIG = azjax.PPOConfig(epochs=1, minibatches=1, entropy_coefficient=0.01, policy_hidden=(16,), value_hidden=(16,))
ENV = azjax.make_env("inverted_pendulum", "spring", episode_length=12)


def spy(learner):  # the metrics also hold what was learned from
    def fit(state, batch, key):
        after, info = learner.fit(state, batch, key)
        gather = lambda x: jax.lax.all_gather(x, "lanes", axis=1, tiled=True)
        return after, {**info, "batch": jax.tree.map(gather, batch), "before": state.params}
    return learner._replace(fit=fit)


def compiled(devices):
    learner = spy(azjax.ppo(CONFIG, axis_name="lanes"))
    trainer = azjax.make_trainer(ENV, learner, lanes=64, rollout_length=8, axis_name="lanes")
    return azjax.compile(trainer, azjax.make_mesh(devices, "lanes"))


def train(program, seed=0):
    state, seen = program.init(jax.random.key(seed)), []
    for _ in range(4):
        state, metrics = program.step(state)
        seen.append(jax.tree.map(lambda x: np.asarray(x[0]), metrics))
    return state, seen


def bits(tree):
    return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))


one, seen_one = train(compiled(1))
program = compiled(2)
two, seen_two = train(program)
again, _ = train(program)
other, _ = train(program, seed=1)

assert bits(two.learner) == bits(again.learner), "the same seed gives the same bits"
assert bits(two.learner) != bits(other.learner), "another seed gives others"
for leaf in jax.tree.leaves(two.learner):
    first, second = (np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards)
    assert first == second, "replicas are equal to the bit"

for a, b in zip(seen_one, seen_two):
    np.testing.assert_allclose(b.learner["batch"].observation, a.learner["batch"].observation, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(b.episodes.ended, a.episodes.ended)
    assert a.episodes.ended > 0
for a, b in zip(jax.tree.leaves(one.learner.params), jax.tree.leaves(two.learner.params)):
    np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)

network = azjax.ppo(CONFIG)
from azjax.on_policy import default_network

@jax.jit
def ratio(params, batch):
    observation = azjax.normalize(params.statistics, batch.observation)
    distribution, _ = default_network(CONFIG).apply(params.network, observation)
    return jnp.exp(distribution.log_prob(batch.action) - batch.log_prob)

for metrics in seen_two:
    np.testing.assert_allclose(ratio(metrics.learner["before"], metrics.learner["batch"]), 1.0, atol=1e-5)
print("all shown")
"""


def test_optimised_programs_keep_the_promises(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all shown\n"), done.stderr[-3000:]
