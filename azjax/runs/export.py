"""A trained policy as files that need no azjax: a StableHLO program, its weights, and a description of both.

``docs/export.md`` has the calling convention, and the forward pass in numpy.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from azjax.config import ConfigError, require
from azjax.networks import LOG_STD_RANGE
from azjax.normalization import DEFAULT_CLIP, std
from azjax.runs.folder import check_output, new_files
from azjax.runs.policy import LoadedPolicy, check_run, load_policy
from azjax.runs.reading import read_json, read_limited
from azjax.types import ActFn, ActionSpec, Array, Box, Discrete, Observation, ObservationSpec, Params

SCHEMA = 1
SUFFIX = ".stablehlo"
Platform = Literal["cpu", "cuda", "rocm", "tpu"]
KNOWN_PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "rocm", "tpu")
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
KEY_IMPLEMENTATION = "threefry2x32"
_LARGEST = 1 << 30
_LARGEST_JSON = 1 << 20
_MEND = "export the policy again"

Facts = dict[str, Any]
Arrays = dict[str, np.ndarray]


class ExportedPolicy(NamedTuple):
    """The files of an exported policy; they differ in their suffix only."""

    program: Path  # .stablehlo
    weights: Path  # .npz
    description: Path  # .json


def export_policy(
    run: str | os.PathLike[str] | LoadedPolicy,
    output: str | os.PathLike[str] | None = None,
    *,
    stochastic: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> ExportedPolicy:
    """Writes a trained policy as a StableHLO program, with its weights and a description beside it.

    Args:
      run: folder of a run, or a policy that ``load_policy`` read.
      output: a new file whose name ends in ``.stablehlo``; default ``exported.stablehlo`` in the folder.
      stochastic: sample actions, from a key that the program then takes, instead of the deterministic ones.
      platforms: where the program is to run: some of cpu, cuda, rocm and tpu.

    Returns:
      The three files. They appear together, and replace nothing.

    Raises:
      ConfigError: for a file that exists or can't be written, a platform that doesn't exist, or a damaged policy.
    """
    _check_platforms(platforms)
    if output is None:
        require(not isinstance(run, LoadedPolicy), "a policy that is no folder needs an output")
        output = check_run(run) / f"exported{SUFFIX}"  # type: ignore[arg-type]
    files = _files(Path(output))
    policy = run if isinstance(run, LoadedPolicy) else load_policy(run)
    program = export_act(
        policy.act,
        policy.params,
        policy.env.observation_spec,
        policy.env.action_spec,
        entry=policy.config.policy_observation,
        stochastic=stochastic,
        platforms=platforms,
    )
    facts, arrays = describe_policy(policy)
    weights = io.BytesIO()
    np.savez(weights, allow_pickle=False, **arrays)
    content = {files.program: bytes(program.serialize()), files.weights: weights.getvalue()}
    facts |= {
        "program": _describe_program(program, stochastic),
        "versions": {name: importlib.metadata.version(name) for name in ("azjax", "jax", "jaxlib")},
        "files": {path.name: {"bytes": len(data), "sha256": _digest(data)} for path, data in content.items()},
    }
    content[files.description] = (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode()
    with new_files(*content) as places:
        for place, data in zip(places, content.values(), strict=True):
            place.write_bytes(data)
    return files


def export_act(
    act: ActFn,
    params: Params,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    *,
    entry: str | None = None,
    stochastic: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """Lowers the acting function of any feed-forward learner to StableHLO, for batches of every size.

    Args:
      act: the learner's.
      params: ``state.params``; they become constants of the program.
      observation_spec: one observation, without batch axes.
      action_spec: the action space.
      entry: the one entry of a dict observation that ``act`` depends on; the others are then no input of the program.
      stochastic: sample actions instead of taking the distribution's mode.
      platforms: where the program is to run: some of cpu, cuda, rocm and tpu.

    Returns:
      ``exported.call(observation)``, or ``exported.call(observation, key)`` if stochastic, gives the actions as the
      environment wants them: float32 ``[batch, A]`` in [-1, 1], or int32 ``[batch]``. Observations are
      ``[batch, *shape]``, in a dict if the environment's are; ``key`` is uint32 ``[2]``, to be used once.

    Raises:
      ConfigError: for a platform that doesn't exist.

    Examples:
      >>> import azjax, jax, numpy as np
      >>> learner = azjax.ppo()
      >>> spec, action_spec = jax.ShapeDtypeStruct((3,), "float32"), azjax.Box(2)
      >>> state = learner.init(jax.random.key(0), spec, action_spec)
      >>> exported = export_act(learner.act, state.params, spec, action_spec, platforms=["cpu"])
      >>> exported.call(np.zeros((5, 3), np.float32)).shape
      (5, 2)
    """
    _check_platforms(platforms)
    constants = jax.tree.map(np.asarray, params)
    (batch,) = export.symbolic_shape("batch")

    def actions(observation: Observation, words: Array | None = None) -> Array:
        rows = jax.tree.leaves(observation)[0].shape[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), observation_spec)
        whole = {**zeros, **observation} if isinstance(observation, Mapping) else observation
        key = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32) if words is None else words, impl=KEY_IMPLEMENTATION)
        # The same policy on every platform, to rounding: TF32 and bfloat16 products would shift actions by 1e-3.
        with jax.default_matmul_precision("highest"):
            action, _, _ = act(constants, whole, (), key, deterministic=not stochastic)
        return jnp.clip(action, -1.0, 1.0) if isinstance(action_spec, Box) else action.astype(jnp.int32)

    seen = seen_entries(observation_spec, entry)
    inputs: list[Any] = [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype), seen)]
    if stochastic:
        inputs.append(jax.ShapeDtypeStruct((2,), jnp.uint32))
    return export.export(jax.jit(actions), platforms=tuple(platforms))(*inputs)


def load_exported(path: str | os.PathLike[str]) -> export.Exported:
    """Reads an exported policy; ``.call`` acts. Nothing but jax is needed for that: see ``docs/export.md``.

    Raises:
      ConfigError: if the file is missing, too large, damaged, or not the one that the description beside it names.
    """
    path = Path(path)
    data = read_limited(path, _LARGEST, "azjax export makes one")
    description = path.with_suffix(".json")
    named = None  # the program needs no description
    if description.exists():
        with contextlib.suppress(KeyError, TypeError):
            named = read_json(description, _LARGEST_JSON)["files"][path.name]["sha256"]
    require(named in (None, _digest(data)), f"{path} is not the file that its description names; {_MEND}")
    try:
        return export.deserialize(bytearray(data))
    except Exception as error:  # what flatbuffers raises on damaged data has no common type
        raise ConfigError(f"{path} can't be read as an exported policy: {error}; {_MEND}") from error


def seen_entries(observation: Any, entry: str | None) -> Any:
    """What a policy needs of an observation, or of its specification: all of it, or a dict with the one entry."""
    return observation if entry is None else {entry: observation[entry]}


def describe_policy(policy: LoadedPolicy) -> tuple[Facts, Arrays]:
    """Everything that a forward pass in another language needs: facts as plain data, and the arrays they name."""
    observation, statistics = _describe_observation(policy)
    network, weights = _describe_network(policy)
    distribution, deviations = _describe_distribution(policy)
    arrays = {**statistics, **weights, **deviations}
    spec = policy.env.action_spec
    bounds = {"low": -1.0, "high": 1.0} if isinstance(spec, Box) else {}
    facts = {
        "schema": SCHEMA,
        "algorithm": policy.description["algorithm"],
        "env": policy.env.name,
        "backend": policy.env.backend,
        "seconds_per_action": round(getattr(policy.env, "dt", 0.0) * policy.action_repeat, 7) or None,
        "params_sha256": policy.description["params_sha256"],
        "observation": observation,
        "network": network,
        "distribution": distribution,
        "action": {"kind": type(spec).__name__, "size": spec.size, **bounds},
        "arrays": {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()},
    }
    return facts, arrays


def _describe_observation(policy: LoadedPolicy) -> tuple[Facts, Arrays]:
    """The entries in the order in which their numbers enter the network, each with its statistics."""
    config, statistics = policy.config, policy.params.statistics
    spec = seen_entries(policy.env.observation_spec, config.policy_observation)
    named = isinstance(spec, Mapping)
    deviation = std(statistics)
    entries: list[Facts] = []
    arrays: Arrays = {}
    for name in sorted(spec) if named else [""]:
        leaf, mean, residual, scale = (
            tree[name] if named else tree for tree in (spec, statistics.mean, statistics.mean_residual, deviation)
        )
        normalised = config.normalize_observations and mean is not None
        places = [f"{kind}/{name}" if named else kind for kind in ("mean", "std")] if normalised else [None, None]
        if normalised:
            # float64 holds the sum of the mean and of what float32 could not hold of it.
            arrays[f"{places[0]}"] = np.asarray(mean, np.float64) + np.asarray(residual, np.float64)
            arrays[f"{places[1]}"] = np.asarray(scale, np.float32)
        entries.append(
            {
                "name": name,
                "shape": list(leaf.shape),
                "dtype": str(leaf.dtype),
                "size": math.prod(leaf.shape),
                "mean": places[0],
                "std": places[1],
            }
        )
    return {"kind": "dict" if named else "array", "clip": DEFAULT_CLIP, "entries": entries}, arrays


def _describe_network(policy: LoadedPolicy) -> tuple[Facts, Arrays]:
    """The dense layers from the observation to the distribution's parameter."""
    weights = policy.params.network.weights["params"]
    torso = weights.get("torso" if policy.config.shared_torso else "policy_torso", {})  # absent without hidden layers
    layers = {f"hidden_{n}": torso[f"Dense_{n}"] for n in range(len(policy.config.policy_hidden))}
    layers["output"] = weights["policy_head"]
    facts, arrays = _describe_layers(layers)
    return {"activation": policy.config.activation, "hidden": facts[:-1], "output": facts[-1]}, arrays


def _describe_layers(layers: Mapping[str, Mapping[str, Any]]) -> tuple[list[Facts], Arrays]:
    arrays = {f"{name}/{part}": np.asarray(x) for name, layer in layers.items() for part, x in layer.items()}
    facts = [
        {"kernel": f"{name}/kernel", "bias": f"{name}/bias", "size": arrays[f"{name}/bias"].size} for name in layers
    ]
    return facts, arrays


def _describe_distribution(policy: LoadedPolicy) -> tuple[Facts, Arrays]:
    """What the output of the network means, what makes an action of it, and the logarithm of the deviation."""
    config, weights = policy.config, policy.params.network.weights["params"]
    if isinstance(policy.env.action_spec, Discrete):
        return {"kind": "categorical", "output": "logits", "deterministic_action": "argmax"}, {}
    # How ActorCritic.apply makes log_std: init_std is a factor on the learned deviation, and the sum is clipped.
    shift = np.float32(math.log(config.init_std))
    facts: Facts = {"clip": list(LOG_STD_RANGE)}
    if config.state_dependent_std:
        head = weights["log_std_head"]
        layers, arrays = _describe_layers({"log_std": {"kernel": head["kernel"], "bias": head["bias"] + shift}})
        facts |= layers[0]
    else:
        arrays = {"log_std": np.asarray(weights["log_std"] + shift)}
        facts |= {"array": "log_std"}
    return {
        "kind": config.distribution,
        "output": "loc",
        "deterministic_action": "tanh" if config.distribution == "tanh-normal" else "clip",
        "log_std": facts,
    }, arrays


def _describe_program(program: export.Exported, stochastic: bool) -> Facts:
    """The calling convention, read off the program itself."""
    (inputs, _) = jax.tree.unflatten(program.in_tree, program.in_avals)

    def spec(aval: Any) -> Facts:
        shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
        return {"shape": shape, "dtype": str(aval.dtype)}

    observation = inputs[0]
    facts = {name: spec(x) for name, x in observation.items()} if isinstance(observation, dict) else spec(observation)
    return {
        "calling_convention_version": program.calling_convention_version,
        "platforms": list(program.platforms),
        "stochastic": stochastic,
        "arguments": {"observation": facts, **({"key": spec(inputs[1])} if stochastic else {})},
        "result": spec(program.out_avals[0]),
    }


def _check_platforms(platforms: Sequence[str]) -> None:
    known = ", ".join(KNOWN_PLATFORMS)
    require(len(platforms) > 0, f"platforms is empty; name some of {known}")
    for name in platforms:
        require(name in KNOWN_PLATFORMS, f"platform {name!r} is none; there are {known}")
    require(len(set(platforms)) == len(platforms), f"platforms is {' '.join(platforms)}; name each of them once")


def _files(program: Path) -> ExportedPolicy:
    require(program.suffix == SUFFIX, f"output is {program}; its name must end in {SUFFIX}")
    files = ExportedPolicy(program, program.with_suffix(".npz"), program.with_suffix(".json"))
    for path in files:
        check_output(path)
    return files


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
