"""A policy on disk: ``policy.npz`` holds the arrays, ``policy.json`` what they belong to. No pickle in either."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import reprlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.algorithms import ALGORITHMS, algorithm_name, make_learner
from azjax.config import ConfigError, require, require_number, traced_names
from azjax.envs.base import Environment
from azjax.envs.registry import make_env
from azjax.on_policy import OnPolicyConfig
from azjax.runs.arrays import named_leaves
from azjax.runs.folder import replacing, to_json
from azjax.runs.kinds import SWEEP
from azjax.runs.plain import check_types, from_plain
from azjax.runs.reading import check_file, read_json
from azjax.selfplay.bodies import task_env_by_name
from azjax.selfplay.tasks import PREFIX
from azjax.types import ActFn, Params

SCHEMA = 1
_LARGEST_JSON = 1 << 20
_LARGEST_NPZ = 1 << 30
_MEND = "evaluate another run, or another copy of this one"
_DESCRIPTION_TYPES: dict[str, Any] = {
    "algorithm": str,
    "env": str,
    "backend": str,
    "episode_length": int,
    "action_repeat": int,
    "randomize": bool,
    "params_sha256": str,
}


class LoadedPolicy(NamedTuple):
    """A policy read from disk, and what it was trained on."""

    act: ActFn
    params: Params
    env: Environment
    action_repeat: int
    description: dict[str, Any]
    config: OnPolicyConfig


def named_arrays(params: Params) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths, in the pytree's order."""
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params)}


def params_sha256(params: Params) -> str:
    """A digest of names, types, shapes and bytes of all leaves."""
    digest = hashlib.sha256()
    for name, array in named_arrays(params).items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {little.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()


def save_policy(
    folder: Path, params: Params, env: Environment, *, config: OnPolicyConfig, settings: dict[str, Any]
) -> str:
    """Writes ``policy.npz`` and ``policy.json`` into a folder.

    Args:
      folder: an existing folder.
      params: ``state.params`` of a learner.
      env: what the policy acts in.
      config: the learner's configuration; it describes the network.
      settings: ``episode_length``, ``action_repeat`` and ``randomize`` of the run.

    Returns:
      The digest of the parameters.
    """
    digest = params_sha256(params)
    algorithm = algorithm_name(config)
    description = {
        "schema": SCHEMA,
        "algorithm": algorithm,
        "env": env.name,
        "backend": env.backend,
        **settings,
        **_describe_spaces(env),
        algorithm: _plain_config(config),
        "params_sha256": digest,
    }
    # Both are complete before either takes its place.
    with replacing(folder / "policy.npz") as arrays, replacing(folder / "policy.json") as text:
        with arrays.open("wb") as file:
            np.savez(file, allow_pickle=False, **named_arrays(params))
        text.write_text(to_json(description), encoding="utf-8")
    return digest


def check_run(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path; raises ``ConfigError`` unless it is one."""
    path = Path(folder)
    require(os.path.isdir(path), f"{path} is not a run folder; azjax train makes one")
    members = path / "members"
    require(not (path / SWEEP).exists(), f"{path} is a sweep of many runs; name one of them, as in {members / '000'}")
    return path


def load_policy(folder: str | os.PathLike[str]) -> LoadedPolicy:
    """Reads a policy that ``save_policy`` or ``azjax train`` wrote; nothing in the files is executed.

    Raises:
      ConfigError: if a file is missing, damaged, too large, or doesn't fit the environment it names.
    """
    path = check_run(folder)
    description = _read_description(path / "policy.json")
    try:
        check_types(description, _DESCRIPTION_TYPES)
        config = _config_of(description)
        config.validate()
        require_number("action_repeat", description["action_repeat"], 1, 2**30)
        require_number("episode_length", description["episode_length"], 1, 2**30)
    except (KeyError, TypeError, ConfigError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path / 'policy.json'} does not describe a policy: {reason}; {_MEND}") from error
    repeat, digest = description["action_repeat"], description["params_sha256"]
    env = _environment(description)
    for name, space in _describe_spaces(env).items():
        found = description.get(name)
        require(
            found == space,
            f"{path / 'policy.json'}: {name} is {reprlib.repr(found)}, but {env.name} has {space}; {_MEND}",
        )
    learner = make_learner(config)
    shapes = jax.eval_shape(
        lambda key: learner.init(key, env.observation_spec, env.action_spec).params, jax.random.key(0)
    )
    params = fill(shapes, read_arrays(path / "policy.npz"), path / "policy.npz")
    require(
        params_sha256(params) == digest,
        f"{path / 'policy.npz'} is damaged: its digest is not that in policy.json; {_MEND}",
    )
    return LoadedPolicy(learner.act, params, env, repeat, description, config)


def _environment(description: dict[str, Any]) -> Environment:
    """What the policy acts in."""
    name, backend, length = (description[key] for key in ("env", "backend", "episode_length"))
    if not name.startswith(PREFIX):
        return make_env(name, backend, episode_length=length, randomize=description["randomize"])
    env = task_env_by_name(name, backend)
    require(
        length == env.episode_length and not description["randomize"],
        f"policy.json: the tasks of {name} last {env.episode_length} steps, not {length}; {_MEND}",
    )
    return env


def _describe_spaces(env: Environment) -> dict[str, Any]:
    """Observation and action space as plain data."""
    spec = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named_leaves(env.observation_spec)}
    return {
        "observation": spec,
        "action": {"kind": type(env.action_spec).__name__, **dataclasses.asdict(env.action_spec)},
    }


def _plain_config(config: OnPolicyConfig) -> dict[str, Any]:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    # JSON has no infinity; null in a float field stands for it.
    return {k: None if v == float("inf") else v for k, v in plain.items()}


def _config_of(description: dict[str, Any]) -> OnPolicyConfig:
    """The learner's configuration in a description whose entries have their types."""
    name = description["algorithm"]
    require(name in ALGORITHMS, f"algorithm is {reprlib.repr(name)}; it must be one of {', '.join(ALGORITHMS)}")
    plain, kind = description[name], ALGORITHMS[name].config
    require(isinstance(plain, dict), f"{name} is {reprlib.repr(plain)}")
    infinite = {k: float("inf") for k in traced_names(kind) if k in plain and plain[k] is None}
    return from_plain(kind, plain | infinite)


def _read_description(path: Path) -> dict[str, Any]:
    data = read_json(path, _LARGEST_JSON)
    require(
        data.get("schema") == SCHEMA,
        f"{path} has schema {data.get('schema')!r}, this azjax reads {SCHEMA}; use the version that wrote it",
    )
    return data


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that a stranger may have written.

    Raises:
      ConfigError: if it can't be read, or unpacks to more than a policy may be.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        require(size <= _LARGEST_NPZ, f"{path} unpacks to {size} bytes; that is too large")
        with np.load(path, allow_pickle=False) as archive:
            # An entry that is no array at all comes back as its bytes.
            return {name: np.asarray(archive[name]) for name in archive.files}
    except ConfigError:
        raise
    except Exception as error:  # the list of what zipfile, zlib and numpy raise on damaged data is long
        raise ConfigError(f"{path} can't be read: {error}; {_MEND}") from error


def fill(shapes: Params, arrays: dict[str, np.ndarray], path: Path) -> Params:
    """Parameters from arrays by name; raises ``ConfigError`` unless all are there, of their shapes, and finite."""
    filled = []
    for name, leaf in named_leaves(shapes):
        require(name in arrays, f"{path} lacks the array {name!r}; {_MEND}")
        array = arrays[name]
        require(
            array.shape == leaf.shape and array.dtype == leaf.dtype,
            f"{path}: {name!r} is {array.dtype}{list(array.shape)}, the network needs {leaf.dtype}{list(leaf.shape)}; "
            + _MEND,
        )
        finite = not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())
        require(finite, f"{path}: {name!r} is not finite; {_MEND}")
        filled.append(jnp.asarray(array))
    return jax.tree.unflatten(jax.tree.structure(shapes), filled)
