"""Canaries for the versions underneath: each names the package, or the pair of packages, that broke.

What they guard against, and how the bounds were found, is in docs/versions.md.
"""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
BOUNDED = ("jax", "jaxlib", "brax", "mujoco", "mujoco-mjx")


def version(package: str) -> str:
    return importlib.metadata.version(package)


def requirements() -> dict[str, Requirement]:
    """The unconditional dependencies of azjax, by name."""
    found = (Requirement(line) for line in importlib.metadata.requires("azjax") or ())
    return {r.name: r for r in found if r.marker is None}


def run_python(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own, on the CPU, away from the checkout."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH", "PYTHONWARNINGS")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**env, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@contextlib.contextmanager
def pair(package: str, underneath: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a message with the two versions that don't go together."""
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"{package} {version(package)} does not work with {underneath} {version(underneath)}: "
            f"{type(error).__name__}: {error}"
        )


# The tested bounds


@pytest.mark.parametrize("package", BOUNDED)
def test_the_installed_version_was_tested(package):
    allowed = requirements()[package].specifier
    rest = ", ".join(f"{name} {version(name)}" for name in BOUNDED if name != package)
    assert allowed.contains(version(package), prereleases=True), (
        f"{package} {version(package)} lies outside {allowed}, which is what was tested; beside it: {rest}"
    )


def test_jax_and_jaxlib_are_of_one_release():
    assert Version(version("jax")).release[:3] == Version(version("jaxlib")).release[:3]


@pytest.mark.parametrize("path", sorted((ROOT / "constraints").glob("*.txt")), ids=lambda path: path.stem)
def test_constraints_pin_every_dependency_within_its_bounds(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): pinned for name, pinned in (line.split("==") for line in lines)}
    for name, requirement in requirements().items():
        pinned = pins[canonicalize_name(name)]
        assert requirement.specifier.contains(pinned), f"{path.name} pins {name}=={pinned}, outside {requirement}"


def test_the_documented_bounds_are_the_ones_in_force():
    text = (ROOT / "docs" / "versions.md").read_text()
    declared = {name: requirements()[name].specifier for name in BOUNDED}
    for name, specifier in declared.items():
        documented = [Requirement(line) for line in text.splitlines() if line.startswith((f"{name}>", f"{name}="))]
        assert [r.specifier for r in documented] == [specifier], f"docs/versions.md states other bounds of {name}"


# Each pair does its smallest real piece of work


def test_flax_and_optax_with_jax():
    with pair("flax", "jax"):
        import flax.linen as nn

        module = nn.Dense(3)
        params = module.init(jax.random.key(0), jnp.ones((2, 4)))
        assert module.apply(params, jnp.ones((2, 4))).shape == (2, 3)
    with pair("optax", "jax"):
        import optax

        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params))
        assert jax.tree.all(jax.tree.map(lambda u: bool(jnp.isfinite(u).all()), updates))


def test_mjx_with_mujoco_and_jax():
    import mujoco
    from mujoco import mjx

    xml = """<mujoco><option timestep="0.01"><flag contact="disable"/></option><worldbody><body pos="0 0 1">
      <joint name="swing" axis="0 1 0"/><geom type="sphere" size="0.1" pos="0 0 -0.5" mass="1"/>
    </body></worldbody></mujoco>"""
    with pair("mujoco-mjx", "mujoco"):
        model = mujoco.MjModel.from_xml_string(xml)
        data = mujoco.MjData(model)
        data.qpos[:] = 0.5
        placed, state = mjx.put_model(model, impl="jax"), mjx.put_data(model, data, impl="jax")
    with pair("mujoco-mjx", "jax"):
        state = jax.jit(mjx.step)(placed, state)
    mujoco.mj_step(model, data)
    with pair("mujoco-mjx", "mujoco"):
        np.testing.assert_allclose(state.qpos, data.qpos, rtol=1e-5)
        np.testing.assert_allclose(state.qvel, data.qvel, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_brax_with_mujoco_and_jax():
    with pair("brax", "mujoco"):
        from brax import envs

        # halfcheetah's model uses an attribute that mujoco 4.0 calls deprecated
        for name in ("ant", "halfcheetah", "humanoid", "pusher"):
            envs.get_environment(name, backend="spring")
        env = envs.get_environment("inverted_pendulum", backend="spring")
    with pair("brax", "jax"):
        step = jax.jit(lambda key, action: env.step(env.reset(key), action))
        state = step(jax.random.key(0), jnp.zeros(env.action_size))
        assert np.isfinite(np.asarray(state.obs)).all()


# Known defects of XLA's CPU backend: crashes in an interpreter of their own, wrong sums likewise

RANK_8 = """
a, b = jnp.ones((10, 4, 6)), jnp.ones((10, 4, 6, 9, 9, 9, 9, 9))
got = jax.jit(lambda a, b: jnp.log(jnp.sum(a[(...,) + (None,) * 5] * b, axis=2)))(a, b)
assert got.shape == (10, 4, 9, 9, 9, 9, 9) and np.allclose(got, np.log(6.0))
"""
RANK_7 = """
a, b = jnp.ones((3, 1, 2, 2, 8, 8, 8)), jnp.ones((3, 1, 2, 2, 8, 8, 8))
got = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)
assert (np.asarray(got) == 2).all()
"""
MATRIX_VECTOR = """
x = jnp.arange(32_769.0)[:, None] * jnp.array([1.0, 0.0, 0.0])
got = jax.jit(lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x))(x)
assert np.allclose(got, np.asarray(x)[:, 0] ** 2), got[-1]
"""
BROADCAST_SUM = """
total = jax.jit(lambda a: jnp.sum(jnp.broadcast_to(a, (2, 1024, 1024))))
got = {float(total(jnp.ones((1024, 1)))) for _ in range(50)}
assert got == {2.0**21}, got
"""


@pytest.mark.parametrize(
    ("issue", "program"),
    [("jax#39257", RANK_8), ("jax#40412", RANK_7), ("jax#39103", MATRIX_VECTOR), ("tensorflow#126812", BROADCAST_SUM)],
)
def test_known_defects_of_the_cpu_backend_are_absent(issue, program, tmp_path):
    jaxlib = version("jaxlib")
    # jaxlib 0.11.2 is what GPU images carry; on their CPU it needs the documented flag.
    flags = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="} if jaxlib.startswith("0.11.") else {}
    done = run_python("import jax, jax.numpy as jnp, numpy as np" + program, tmp_path, **flags)
    assert done.returncode == 0, f"jaxlib {jaxlib} has the defect of {issue} (exit {done.returncode}): {done.stderr}"


# Importing azjax


def test_importing_azjax_prints_nothing_and_leaves_the_environment_variables_alone(tmp_path):
    """Playground's import overwrites XLA_FLAGS, MUJOCO_GL and two more."""
    program = "import os; before = dict(os.environ); import azjax; azjax.make_env('ant'); assert os.environ == before"
    done = run_python(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_making_an_environment_prints_nothing_and_leaves_no_file(tmp_path):
    done = run_python("import azjax; azjax.make_env('halfcheetah', backend='spring')", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_importing_azjax_starts_no_backend_and_no_trainer_of_brax(tmp_path):
    program = """
import sys
import azjax
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a JAX backend was started"
loaded = [name for name in sys.modules if name.startswith(("brax.training", "matplotlib", "tyro", "IPython"))]
assert not loaded, loaded
"""
    done = run_python(program, tmp_path)
    assert done.returncode == 0, done.stderr
