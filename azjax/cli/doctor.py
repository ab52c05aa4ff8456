"""``azjax doctor``."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from azjax.cli.parsing import parse
from azjax.counters import counter_to_int
from azjax.envs import make_env
from azjax.ppo import PPOConfig, ppo
from azjax.runs import machine
from azjax.training import compile, make_mesh, make_trainer


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Options of the check-up."""

    quick: bool = False
    """Leave out the training step."""


def run(args: Sequence[str], prog: str) -> int:
    """Checks the installation; returns 1 if something is broken."""
    options = parse(DoctorOptions, args, prog=prog)
    machine.split_host(lambda n: True)
    for name, version in machine.versions().items():
        print(f"{name:<18}{version}")
    try:
        devices = machine.describe_devices()
    except RuntimeError as error:
        print(f"{'devices':<18}broken: {str(error).splitlines()[0]}")
        return 1
    print(f"{'platform':<18}{devices['platform']}: {devices['count']} x {devices['kind']}")
    print(f"{'CPU':<18}{devices['cpu']}, {devices['cores']} cores")
    print(f"{'cache':<18}{machine.use_cache() or 'off: no folder can be written'}")
    precise = check_precision()
    try:
        trains = options.quick or check_training()
    except Exception as error:  # whatever it is, saying so is this command's task
        print(f"{'training step':<18}broken: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        trains = False
    return 0 if precise and trains else 1


def check_precision() -> bool:
    """Says how precise float32 matrix products are; the physics asks for the highest precision itself."""
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    exact = x.astype(np.float64) @ x.astype(np.float64)

    def error(precision: str | None) -> float:
        product = np.asarray(jnp.matmul(x, x, precision=precision), np.float64)
        return float(np.abs(product - exact).max() / np.abs(exact).max())

    default, highest = error(None), error("highest")
    setting = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION") or "platform default"
    print(f"{'precision':<18}matmul error {default:.0e} ({setting}), {highest:.0e} (physics: highest)")
    return highest < 1e-5


def check_training() -> bool:
    """Compiles and runs one update on inverted_pendulum with all devices."""
    start = time.monotonic()
    print(f"{'training step':<18}compiling ...", flush=True)
    count = jax.device_count()
    learner = ppo(PPOConfig(epochs=1, minibatches=1), axis_name=machine.AXIS)
    trainer = make_trainer(
        make_env("inverted_pendulum"), learner, lanes=8 * count, rollout_length=4, axis_name=machine.AXIS
    )
    program = compile(trainer, make_mesh(count, machine.AXIS))
    state, metrics = program.step(program.init(jax.random.key(0)))
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.learner.params.network))
    steps = counter_to_int(jax.tree.map(lambda x: x[-1], metrics.env_steps))
    good = finite and steps == trainer.env_steps_per_update
    verdict = "works" if good else "broken: parameters are not finite"
    print(f"{'training step':<18}{verdict} ({steps} environment steps, {time.monotonic() - start:.1f} s)")
    return good
