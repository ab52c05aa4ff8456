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
    venv: str | None = None
    """A requirement file of benchmarks/peers, without its ending: the virtual environment that the case runs in."""


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
    pairs = (("ant", "positional"), ("ant", "generalized"), ("ant", "mjx"), ("humanoid", "mjx"), ("hopper", "mjx"))
    for env, backend in pairs:
        for vectorize in ("vmap", "minor"):
            if (env, vectorize) == ("humanoid", "vmap"):
                continue  # hangs in LAPACK: see azjax/batching/linear_algebra.py
            options = {"env": env, "backend": backend, "vectorize": vectorize, "devices": 2, "lanes": 256}
            options |= {"steps": 4, "repeats": 7}
            cases.append(Case(f"{env}/{backend} {vectorize}", "physics", options))
    return cases


def locomotion() -> list[Case]:
    """Physics of azjax's own 3D tasks, contact forces included."""
    return [
        Case(f"{env}/{backend}", "physics", {"env": env, "backend": backend, "devices": 2, "lanes": 512, "repeats": 7})
        for env in ("azjax:biped", "azjax:quadruped")
        for backend in ("spring", "mjx")
    ]


def training() -> list[Case]:
    """The whole training program beside physics with policy inference, and the learner alone."""
    cases = []
    for env in MAIN:
        options = {"env": env, "devices": 2}
        cases.append(Case(f"{env} physics and policy", "physics", options | {"policy": True}))
        cases.append(Case(f"{env} training program", "training", options))
        cases.append(Case(f"{env} learner alone", "update", options))
    return cases


def population() -> list[Case]:
    """Members in one program beside runs one after the other: few lanes and many, growing populations, devices."""
    cases = []
    small = {"rollout_length": 32, "epochs": 4, "minibatches": 4, "policy_hidden": [32, 32], "value_hidden": [32, 32]}
    sizes = ((1, 1, 1), (1, 2, 2), (8, 1, 1), (8, 2, 1), (32, 2, 1))
    for env, lanes in (("azjax:cartpole", 16), ("inverted_pendulum", 16), ("ant", 32)):
        own = {"env": env, "lanes": lanes, **small}
        for members, devices, columns in sizes:
            label = f"{env} {lanes} lanes: {members} members on {devices} devices"
            cases.append(Case(label, "population", own | {"members": members, "devices": devices, "columns": columns}))
    return cases


def selfplay() -> list[Case]:
    """The self-play program beside plain training at uniform tasks of the same lanes and rollouts: training steps/s."""
    cases = []
    for env, devices in (("pointmass", 2), ("ant", 2)):
        own = {"env": env, "devices": devices, "tasks": "goal"}
        cases.append(Case(f"{env} plain training", "selfplay", own | {"plain": True}))
        cases += [
            Case(f"{env} {proposer}", "selfplay", own | {"proposer": proposer}) for proposer in ("uniform", "learned")
        ]
        cases.append(Case(f"{env} learned, verified every 4th update", "selfplay", own | {"verify_every": 4}))
    return cases


def scaling() -> list[Case]:
    """Cost of ant's training program against lanes, rollout length, network width and devices."""
    cases = [
        Case(f"ant {lanes} lanes", "training", {"devices": 2, "lanes": lanes, "minibatches": min(16, lanes // 32)})
        for lanes in (64, 256, 1024, 4096, 16384)
    ]
    cases += [
        Case(f"ant rollout length {length}", "training", {"devices": 2, "rollout_length": length})
        for length in (4, 64, 128)
    ]
    cases += [
        Case(f"ant hidden {width} {width}", "training",
             {"devices": 2, "policy_hidden": [width] * 2, "value_hidden": [width] * 2})
        for width in (32, 128, 256)
    ]  # fmt: skip
    cases.append(Case("ant 1 device", "training", {"devices": 1}))
    blocks = (("minor", "blocks of 128"), ("whole", "whole batch"), ("vmap", "jax.vmap"))
    cases += [
        Case(f"ant physics {lanes} lanes, {label}", "physics", {"devices": 2, "lanes": lanes, "vectorize": vectorize})
        for lanes in (256, 1024, 4096)
        for vectorize, label in blocks
    ]
    return cases


def devices() -> list[Case]:
    """Strong scaling (the same lanes, or members, on more devices) and weak (as many on each) over a host's devices."""
    cases = []
    for env, algorithm in (("ant", "ppo"), ("ant", "trpo"), ("humanoid", "ppo")):
        for lanes, count, label in ((512, 1, "alone"), (512, 2, "strong"), (1024, 2, "weak")):
            options = {"env": env, "algorithm": algorithm, "lanes": lanes, "devices": count, "minibatches": 8}
            cases.append(Case(f"{algorithm} on {env}, {lanes} lanes on {count} ({label})", "training", options))
    small = {"env": "ant", "lanes": 64, "rollout_length": 32, "epochs": 4, "minibatches": 4}
    small |= {"policy_hidden": [32, 32], "value_hidden": [32, 32]}
    for members, count, label in ((4, 1, "alone"), (4, 2, "strong"), (8, 2, "weak")):
        options = small | {"members": members, "devices": count, "columns": 1}
        cases.append(Case(f"{members} members on {count} ({label})", "population", options))
    return cases


def gpu() -> list[Case]:
    """One accelerator, within 8 minutes: both vectorisations, the training program at growing numbers of lanes, GAE."""
    cases = []
    for env, backend, lanes in (("ant", "spring", 8192), ("humanoid", "spring", 8192), ("ant", "mjx", 4096)):
        for vectorize in ("vmap", "minor"):
            options = {"env": env, "backend": backend, "vectorize": vectorize, "devices": 1, "lanes": lanes}
            cases.append(Case(f"{env}/{backend} physics {vectorize}", "physics", options | {"repeats": 9}))
    for lanes in (2048, 8192, 32768):
        for vectorize in ("vmap", "minor"):
            options = {"devices": 1, "lanes": lanes, "vectorize": vectorize, "repeats": 9}
            cases.append(Case(f"ant training {lanes} lanes {vectorize}", "training", options))
    cases += [Case(f"gae {form} 128 x 32768", "gae", {"form": form, "lanes": 32768}) for form in FORMS]
    return cases


FORMS = ("scan", "associative", "floor")


def resets() -> list[Case]:
    """What an entry of the reset pool costs beside the 32 environment steps it is prepared for."""
    pairs = [(env, None) for env in (*MAIN, "inverted_pendulum", "reacher")]
    pairs += [("ant", "mjx"), ("ant", "positional")]
    return [
        Case(f"{env}/{backend or 'spring'}", "resets", {"env": env, "backend": backend}, figure="pool_share_of_rollout")
        for env, backend in pairs
    ]


def gae() -> list[Case]:
    """Forms of GAE beside a pass over the same memory."""
    return [
        Case(f"{form} {length} x {lanes}", "gae", {"form": form, "length": length, "lanes": lanes})
        for length, lanes in ((16, 1024), (128, 4096), (1024, 4096))
        for form in FORMS
    ]


def peers() -> list[Case]:
    """Whole training programs on equal settings: azjax, Brax's PPO and rejax, each where and as its users start it."""
    module = "benchmarks.peers.cases"
    cases = []
    for env in MAIN:
        own = {"lanes": 1024, "rollout_length": 16, "minibatches": 16, "epochs": 4, "action_repeat": 1}
        cases.append(Case(f"{env} azjax, 2 devices", "training", {"env": env, "devices": 2, **own}))
        brax = {"env": env, "devices": 1}
        cases.append(Case(f"{env} brax, 1 device", "brax_ppo", brax, module=module))
        two = {"env": env, "devices": 2}
        cases.append(Case(f"{env} brax, 2 devices, jax 0.5.3", "brax_ppo", two, module=module, venv="brax-jax0.5"))
        if env == "ant":
            cases.append(Case(f"{env} azjax, 1 device", "training", {"env": env, "devices": 1, **own}))
            cases.append(Case(f"{env} brax, 2 devices", "brax_ppo", two, module=module))
            cases.append(Case(f"{env} rejax", "rejax_ppo", {"env": env}, module=module, venv="rejax"))
    return cases


def trpo() -> list[Case]:
    """One update of TRPO beside one of PPO and of stable-baselines3-contrib's TRPO, on equal data of ant's preset."""
    variants: dict[str, dict[str, Any] | None] = {
        "ppo": None,
        "trpo, F from all decisions": {"minibatches": 16, "epochs": 4},
        "trpo, F from a tenth": {"minibatches": 16, "epochs": 4, "fisher_subsampling": 10},
        "trpo, F from all, double-backward": {"minibatches": 16, "epochs": 4, "fisher_form": "double-backward"},
        "trpo, F from all, values by trust region": {"value_update": "trust-region"},
    }
    cases = [Case(f"ant {label}", "update", {"env": "ant", "devices": 2, "trpo": v}) for label, v in variants.items()]
    for label, factor in (("all decisions", 1), ("a tenth", 10)):
        options, module = {"sub_sampling": factor}, "benchmarks.peers.cases"
        cases.append(Case(f"ant sb3-contrib trpo, F from {label}", "sb3_trpo", options, module=module, venv="sb3"))
    own: dict[str, Any] = {"lanes": 1024, "rollout_length": 16, "minibatches": 16, "epochs": 4, "action_repeat": 1}
    for algorithm in ("ppo", "trpo"):
        cases.append(
            Case(f"ant training, {algorithm}", "training", {"env": "ant", "devices": 2, "algorithm": algorithm} | own)
        )
    return cases


def reasoning() -> list[Case]:
    """List programs: executions/s beside plain Python's, verification, probes, grammar decoding; the whole loop."""
    cases = [Case("execute, plain Python", "reasoning", {"part": "python", "programs": 512, "repeats": 5})]
    for programs, inputs in ((256, 4), (2048, 32), (16_384, 32)):
        for devices in (1, 2):
            options = {"part": "execute", "programs": programs, "inputs": inputs, "devices": devices}
            cases.append(Case(f"execute {programs} x {inputs}, {devices} device(s)", "reasoning", options))
    for part, programs in (("verify", 2048), ("probe", 2048), ("decode", 2048)):
        options = {"part": part, "programs": programs, "devices": 2}
        cases.append(Case(f"{part} {programs}, 2 devices", "reasoning", options))
    for size, lines, batch in (("micro", 1, 16), ("tiny", 1, 16), ("tiny", 2, 16), ("tiny", 2, 64)):
        for devices in (1, 2):
            options = {"size": size, "max_lines": lines, "batch": batch, "devices": devices}
            label = f"loop, {size} model, {lines} line(s), batch {batch}, {devices} device(s)"
            cases.append(Case(label, "reasoner", options))
    return cases


def startup() -> list[Case]:
    """From process start to the first update; each case measures an empty and then a filled compilation cache."""
    return [Case(env, "startup", {"env": env}, figure="warm_seconds") for env in ("ant", "humanoid")]


# Brax's own settings for ant (notebooks/training.ipynb), with its default networks.
BRAX_ANT = {
    "num_envs": 4096,
    "batch_size": 2048,
    "num_minibatches": 32,
    "unroll_length": 5,
    "num_updates_per_batch": 4,
    "discounting": 0.97,
    "learning_rate": 3e-4,
    "entropy_cost": 1e-2,
    "reward_scaling": 10.0,
}


def threshold() -> list[Case]:
    """From process start to an evaluation return of 2000 on ant, each trainer with its own tuned settings."""
    seconds = "seconds_to_threshold"
    cases = [Case(f"azjax, seed {seed}", "threshold", {"seed": seed}, figure=seconds) for seed in range(5)]
    for label, devices, venv in (("brax, 1 device", 1, None), ("brax, 2 devices, jax 0.5.3", 2, "brax-jax0.5")):
        options = {"devices": devices, "settings": BRAX_ANT, "threshold": 2000.0, "epochs_timed": 40, "updates": 1}
        options |= {"limit_seconds": 1500.0}
        cases += [
            Case(f"{label}, seed {seed}", "brax_ppo", options | {"seed": seed}, seconds, "benchmarks.peers.cases", venv)
            for seed in range(5)
        ]
    return cases


SUITES: dict[str, Callable[[], list[Case]]] = {
    "physics": physics,
    "backends": backends,
    "population": population,
    "selfplay": selfplay,
    "locomotion": locomotion,
    "training": training,
    "reasoning": reasoning,
    "resets": resets,
    "gae": gae,
    "gpu": gpu,
    "scaling": scaling,
    "devices": devices,
    "peers": peers,
    "startup": startup,
    "trpo": trpo,
    "threshold": threshold,
}
