"""Names of environments, and what to say when a name is wrong."""

from __future__ import annotations

from typing import Any

from azjax.config import ConfigError, nearest, require
from azjax.envs import locomotion, playground
from azjax.envs.base import Environment
from azjax.envs.brax import SUPPORTED, BraxEnvironment, Randomization, load_brax

DEFAULT_EPISODE_LENGTH = 1000
# Suites whose names carry a prefix: the backends of each task, the default one first.
SUITES: dict[str, dict[str, tuple[str, ...]]] = {
    locomotion.PREFIX: locomotion.TASKS,
    playground.PREFIX: dict.fromkeys(playground.TASKS, playground.BACKENDS),
}


def backends_of(name: str) -> tuple[str, ...]:
    """The physics backends of an environment, the default one first.

    Raises:
      ValueError: listing what exists, for a name that azjax doesn't know.
    """
    prefix, task = _split(name)
    if prefix:
        tasks = SUITES[prefix]
        hint = nearest(task, list(tasks)).replace("'", f"'{prefix}", 1)
        suite = prefix.removesuffix(":")
        require(task in tasks, f"unknown environment {name!r}{hint} (see azjax envs --suite {suite})")
        return tasks[task]
    known = sorted(SUPPORTED)
    full = next((prefix + name for prefix, tasks in SUITES.items() if name in tasks), None)
    hint = f"; did you mean {full!r}?" if full else nearest(name, known)
    require(name in SUPPORTED, f"unknown environment {name!r}{hint} (there are: {', '.join(known)})")
    return SUPPORTED[name]


def _split(name: str) -> tuple[str, str]:
    """The prefix of a suite, ``""`` for Brax, and the name within it."""
    prefix = next((prefix for prefix in SUITES if name.startswith(prefix)), "")
    return prefix, name.removeprefix(prefix)


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
    prefix, task = _split(name)
    return (SUITES[prefix] if prefix else SUPPORTED).get(task, ("spring",))[0]


def default_episode_length(name: str) -> int:
    """The time limit in environment steps of an environment made by name."""
    return locomotion.EPISODE_LENGTHS.get(name.removeprefix(locomotion.PREFIX), DEFAULT_EPISODE_LENGTH)


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
      env: a name that ``azjax envs`` lists, ``"azjax:"`` and one of azjax's own tasks, ``"playground:"`` and a task of
        MuJoCo Playground, or an object; an object that follows azjax's protocol comes back as it is.
      backend: physics of a named environment: spring, positional, generalized or mjx. Default: spring where it exists.
      episode_length: the time limit in environment steps; default 1000, for azjax's own tasks that of their paper.
      randomize: draw friction, mass and motor strength anew for each episode, from the default or the given ranges.
      **settings: what the named environment's own constructor takes, e.g. ``reset_noise=0.0``, or entries of a
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
        limit = default_episode_length(env) if episode_length is None else episode_length
        if env == locomotion.CARTPOLE:
            require(
                randomization is None, f"{env} has no physics model, so it can't be randomised; leave randomize out"
            )
            return locomotion.load_cartpole(episode_length=limit, **settings)
        return _adapt(_load(env, backend, settings), env, limit, randomization)
    require(backend is None and not settings, "backend and settings apply to environments given by name only")
    if hasattr(env, "sample_params") and hasattr(env, "observation_spec"):
        require(
            episode_length is None and randomization is None,
            f"{type(env).__name__} follows azjax's protocol: set its own episode_length and sample_params instead",
        )
        return env  # type: ignore[no-any-return]
    if not (callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None))):
        raise TypeError(f"an environment is a name or an object with reset and step, not {type(env).__name__}")
    return _adapt(env, None, DEFAULT_EPISODE_LENGTH if episode_length is None else episode_length, randomization)


def _load(name: str, backend: str, settings: dict[str, Any]) -> Any:
    """The suite's own environment behind a name."""
    prefix, task = _split(name)
    if prefix == playground.PREFIX:
        return playground.load_playground(name, **settings)
    try:
        if prefix == locomotion.PREFIX:
            return locomotion.load_task(task, backend, **settings)
        return load_brax(name, backend, **settings)
    except TypeError as error:
        raise ConfigError(f"environment {name!r} does not take these settings: {error}") from error


def _adapt(bare: Any, name: str | None, episode_length: int, randomization: Randomization | None) -> Environment:
    adapter = playground.PlaygroundEnvironment if hasattr(bare, "mjx_model") else BraxEnvironment
    return adapter(bare, name=name, episode_length=episode_length, randomization=randomization)
