"""A reasoner on disk: ``model.npz`` holds the arrays, ``model.json`` what they belong to. No pickle in either."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from azjax.config import ConfigError, require, require_number
from azjax.reasoning.model import TokenPolicy
from azjax.runs.folder import replacing, to_json
from azjax.runs.plain import check_types, from_plain
from azjax.runs.policy import fill, named_arrays, params_sha256, read_arrays
from azjax.runs.reading import read_json
from azjax.runs.reason_options import DomainOptions
from azjax.types import Params

__all__ = ["LoadedModel", "load_model", "save_model"]

SCHEMA = 1
_LARGEST_JSON = 1 << 16
_MEND = "use another run, or another copy of this one"


class LoadedModel(NamedTuple):
    """A model read from disk."""

    options: DomainOptions
    policy: TokenPolicy
    params: Params
    level: int  # up to which it was trained
    hold_out: float  # share of the meanings that it can't have been trained on


def save_model(folder: Path, params: Params, options: DomainOptions, *, level: int, hold_out: float) -> str:
    """Writes ``model.npz`` and ``model.json`` into a folder.

    Args:
      folder: an existing folder.
      params: of the network.
      options: domain and size.
      level: reached in training.
      hold_out: share of the meanings that were held out.

    Returns:
      The digest of the parameters.
    """
    digest = params_sha256(params)
    names = [field.name for field in dataclasses.fields(DomainOptions)]
    description = {
        "schema": SCHEMA,
        **{name: getattr(options, name) for name in names},
        "level": level,
        "hold_out": hold_out,
        "params_sha256": digest,
    }
    with replacing(folder / "model.npz") as arrays, replacing(folder / "model.json") as text:
        with arrays.open("wb") as file:
            np.savez(file, allow_pickle=False, **named_arrays(params))
        text.write_text(to_json(description), encoding="utf-8")
    return digest


def load_model(folder: str | os.PathLike[str]) -> LoadedModel:
    """Reads what ``save_model`` wrote; nothing in the files is executed.

    Raises:
      ConfigError: if a file is missing, damaged, too large, or its parts don't fit together.
    """
    path = Path(folder)
    require(path.is_dir(), f"{path} is not a run folder; azjax reason train makes one")
    where = path / "model.json"
    data: dict[str, Any] = read_json(where, _LARGEST_JSON)
    schema = data.pop("schema", None)
    require(
        schema == SCHEMA, f"{where} has schema {schema!r}, this azjax reads {SCHEMA}; use the version that wrote it"
    )
    own: dict[str, Any] = {"level": int, "hold_out": float, "params_sha256": str}
    try:
        check_types(data, own)
        level, hold_out, digest = (data.pop(name) for name in own)
        options = from_plain(DomainOptions, data)
        options.validate()
        domain = options.make_domain()
        require_number("level", level, 1, domain.levels)
        require_number("hold_out", hold_out, 0.0, 0.9)
    except (KeyError, ConfigError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"{where} does not describe a model: {reason}; {_MEND}") from error
    policy = options.make_policy(domain.vocabulary)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    params = fill(shapes, read_arrays(path / "model.npz"), path / "model.npz")
    require(
        params_sha256(params) == digest,
        f"{path / 'model.npz'} is damaged: its digest is not that in model.json; {_MEND}",
    )
    return LoadedModel(options, policy, params, level, float(hold_out))
