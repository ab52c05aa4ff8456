"""Names of environments, and what to say when a name is wrong."""

from __future__ import annotations

import difflib
from typing import Any

from azjax.config import ConfigError, require
from azjax.envs.base import Environment
from azjax.envs.brax import SUPPORTED, BraxEnvironment, Randomization, load_brax

DEFAULT_EPISODE_LENGTH = 1000


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.65)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_env_name(name: str, backend: str) -> None:
    """Raises ``ValueError``, listing what exists, unless azjax has the environment on that backend."""
    known = sorted(SUPPORTED)
    require(name in SUPPORTED, f"unknown environment {name!r}{nearest(name, known)} (there are: {', '.join(known)})")
    backends = SUPPORTED[name]
    require(
        backend in backends,
        f"environment {name!r} has no backend {backend!r}{nearest(backend, list(backends))} "
        f"(it has: {', '.join(backends)})",
    )


def default_backend(name: str) -> str:
    """The backend an environment trains on unless told otherwise: the fastest one it has."""
    return SUPPORTED.get(name, ("spring",))[0]


def make_env(
    env: str | Any,
    backend: str | None = None,
    *,
    episode_length: int | None = None,
    randomize: bool | Randomization = False,
    **settings: Any,
) -> Environment:
    """An environment by name, or an adapter around an object with Brax's ``reset`` and ``step``.

    Args:
      env: a name that ``azjax envs`` lists; or an object; an object that follows azjax's protocol comes back as it is.
      backend: physics of a named environment: spring, positional, generalized or mjx. Default: spring where it exists.
      episode_length: the time limit in environment steps; default 1000.
      randomize: draw friction, mass and motor strength anew for each episode, from the default or the given ranges.
      **settings: what the named environment's own constructor takes, e.g. ``reset_noise_scale=0.0``.

    Returns:
      An ``Environment``.

    Raises:
      ValueError: for an unknown name, an impossible pair of name and backend, or settings that don't exist or apply.
      TypeError: for an object without ``reset`` and ``step``.
    """
    randomization = Randomization() if randomize is True else (randomize or None)
    if isinstance(env, str):
        episode_length = DEFAULT_EPISODE_LENGTH if episode_length is None else episode_length
        backend = backend or default_backend(env)
        check_env_name(env, backend)
        try:
            bare = load_brax(env, backend, **settings)
        except TypeError as error:
            raise ConfigError(f"environment {env!r} does not take these settings: {error}") from error
        return BraxEnvironment(bare, name=env, episode_length=episode_length, randomization=randomization)
    require(backend is None and not settings, "backend and settings apply to environments given by name only")
    if hasattr(env, "sample_params") and hasattr(env, "observation_spec"):
        require(
            episode_length is None and randomization is None,
            f"{type(env).__name__} follows azjax's protocol: set its own episode_length and sample_params instead",
        )
        return env  # type: ignore[no-any-return]
    episode_length = DEFAULT_EPISODE_LENGTH if episode_length is None else episode_length
    if not (callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None))):
        raise TypeError(f"an environment is a name or an object with reset and step, not {type(env).__name__}")
    return BraxEnvironment(env, episode_length=episode_length, randomization=randomization)
