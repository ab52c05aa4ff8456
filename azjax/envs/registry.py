"""Names of environments, and what to say when a name is wrong."""

from __future__ import annotations

from typing import Any

from azjax.config import ConfigError, nearest, require
from azjax.envs.base import Environment
from azjax.envs.brax import SUPPORTED, BraxEnvironment, Randomization, load_brax
from azjax.envs.playground import BACKENDS as PLAYGROUND_BACKENDS
from azjax.envs.playground import PREFIX, TASKS, PlaygroundEnvironment, load_playground

DEFAULT_EPISODE_LENGTH = 1000


def backends_of(name: str) -> tuple[str, ...]:
    """The physics backends of an environment, the default one first.

    Raises:
      ValueError: listing what exists, for a name that azjax doesn't know.
    """
    if name.startswith(PREFIX):
        task = name.removeprefix(PREFIX)
        hint = nearest(task, list(TASKS)).replace("'", f"'{PREFIX}", 1)
        require(task in TASKS, f"unknown environment {name!r}{hint} (see azjax envs --suite playground)")
        return PLAYGROUND_BACKENDS
    known = sorted(SUPPORTED)
    hint = f"; did you mean '{PREFIX}{name}'?" if name in TASKS else nearest(name, known)
    require(name in SUPPORTED, f"unknown environment {name!r}{hint} (there are: {', '.join(known)})")
    return SUPPORTED[name]


def check_env_name(name: str, backend: str) -> None:
    """Raises ``ValueError``, listing what exists, unless azjax has the environment on that backend."""
    backends = backends_of(name)
    require(
        backend in backends,
        f"environment {name!r} has no backend {backend!r}{nearest(backend, list(backends))} "
        f"(it has: {', '.join(backends)})",
    )


def default_backend(name: str) -> str:
    """The backend an environment trains on unless told otherwise: the fastest one it has."""
    if name.startswith(PREFIX):
        return PLAYGROUND_BACKENDS[0]
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
      env: a name that ``azjax envs`` lists, ``"playground:"`` and a task of MuJoCo Playground, or an object; an object
        that follows azjax's protocol comes back as it is.
      backend: physics of a named environment: spring, positional, generalized or mjx. Default: spring where it exists.
      episode_length: the time limit in environment steps; default 1000.
      randomize: draw friction, mass and motor strength anew for each episode, from the default or the given ranges.
      **settings: what the named environment's own constructor takes, e.g. ``reset_noise_scale=0.0``, or entries of a
        Playground task's configuration, e.g. ``ctrl_dt=0.02``.

    Returns:
      An ``Environment``.

    Raises:
      ValueError: for an unknown name, an impossible pair of name and backend, or settings that don't exist or apply.
      TypeError: for an object without ``reset`` and ``step``.
    """
    randomization = Randomization() if randomize is True else (randomize or None)
    if isinstance(env, str):
        backend = backend or default_backend(env)
        check_env_name(env, backend)
        return _adapt(_load(env, backend, settings), env, episode_length, randomization)
    require(backend is None and not settings, "backend and settings apply to environments given by name only")
    if hasattr(env, "sample_params") and hasattr(env, "observation_spec"):
        require(
            episode_length is None and randomization is None,
            f"{type(env).__name__} follows azjax's protocol: set its own episode_length and sample_params instead",
        )
        return env  # type: ignore[no-any-return]
    if not (callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None))):
        raise TypeError(f"an environment is a name or an object with reset and step, not {type(env).__name__}")
    return _adapt(env, None, episode_length, randomization)


def _load(name: str, backend: str, settings: dict[str, Any]) -> Any:
    """The suite's own environment behind a name."""
    if name.startswith(PREFIX):
        return load_playground(name, **settings)
    try:
        return load_brax(name, backend, **settings)
    except TypeError as error:
        raise ConfigError(f"environment {name!r} does not take these settings: {error}") from error


def _adapt(bare: Any, name: str | None, episode_length: int | None, randomization: Randomization | None) -> Environment:
    adapter = PlaygroundEnvironment if hasattr(bare, "mjx_model") else BraxEnvironment
    limit = DEFAULT_EPISODE_LENGTH if episode_length is None else episode_length
    return adapter(bare, name=name, episode_length=limit, randomization=randomization)
