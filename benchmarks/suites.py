"""Which cases a suite runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: a function of a module of cases, its options, and the figure that matters."""

    label: str
    name: str
    options: dict[str, Any]
    figure: str = "rate"
    module: str = "benchmarks.cases"
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    repeatable: bool = True


MAIN = ("ant", "halfcheetah", "hopper", "walker2d", "humanoid")


def physics() -> list[Case]:
    """Physics alone: both vectorisations on one device and on two."""
    cases = []
    for env in MAIN:
        for vectorize in ("vmap", "minor"):
            for devices in (1, 2):
                options = {"env": env, "vectorize": vectorize, "devices": devices}
                cases.append(Case(f"{env}/spring {vectorize} {devices} device(s)", "physics", options))
    return cases


def backends() -> list[Case]:
    """Physics on the other backends, both vectorisations, two devices."""
    cases = []
    for env in ("ant", "halfcheetah", "humanoid"):
        for backend in ("positional", "generalized", "mjx"):
            for vectorize in ("vmap", "minor"):
                options = {"env": env, "backend": backend, "vectorize": vectorize, "devices": 2, "lanes": 256}
                options |= {"steps": 4, "repeats": 7}
                cases.append(Case(f"{env}/{backend} {vectorize}", "physics", options))
    return cases


def training() -> list[Case]:
    """The whole training program beside physics with policy inference, and the learner alone."""
    cases = []
    for env in MAIN:
        options = {"env": env, "devices": 2}
        cases.append(Case(f"{env} physics and policy", "physics", options | {"policy": True}))
        cases.append(Case(f"{env} training program", "training", options))
        cases.append(Case(f"{env} learner alone", "update", options))
    return cases


def resets() -> list[Case]:
    """What an entry of the reset pool costs beside the 64 environment steps it is prepared for."""
    pairs = [(env, None) for env in (*MAIN, "inverted_pendulum", "reacher")]
    pairs += [("ant", "mjx"), ("ant", "generalized"), ("ant", "positional")]
    return [
        Case(f"{env}/{backend or 'spring'}", "resets", {"env": env, "backend": backend}, figure="pool_share_of_rollout")
        for env, backend in pairs
    ]


def gae() -> list[Case]:
    """Forms of GAE beside a pass over the same memory."""
    return [
        Case(f"{form} {length} x {lanes}", "gae", {"form": form, "length": length, "lanes": lanes})
        for length, lanes in ((16, 1024), (128, 4096), (1024, 4096))
        for form in ("scan", "associative", "floor")
    ]


SUITES: dict[str, Callable[[], list[Case]]] = {
    "physics": physics,
    "backends": backends,
    "training": training,
    "resets": resets,
    "gae": gae,
}
