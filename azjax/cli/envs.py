"""``azjax envs``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table

from azjax.cli.parsing import parse
from azjax.envs import SUPPORTED, locomotion, make_env
from azjax.envs.playground import DM_CONTROL, PREFIX, TASKS
from azjax.envs.registry import backends_of
from azjax.runs.options import load_preset

_HEADS = {
    "name": "environment",
    "observation_size": "observation",
    "action_size": "action",
    "seconds_per_step": "s/step",
}


@dataclasses.dataclass(frozen=True)
class EnvsOptions:
    """Options of the list of environments."""

    suite: Literal["brax", "azjax", "playground"] = "brax"
    """Whose environments: Brax's, azjax's own, or those of MuJoCo Playground, an extra: docs/environments.md."""
    json: bool = False
    """Print JSON instead of a table."""


def run(args: Sequence[str], prog: str) -> int:
    """Lists the environments."""
    options = parse(EnvsOptions, args, prog=prog)
    facts = _FACTS[options.suite]()
    if options.json:
        print(json.dumps(facts))
        return 0
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # a narrow terminal wraps lines, which is better than to lose their ends
    console.print(table_of(facts))
    if options.suite == "brax":
        console.print("azjax's own tasks: azjax envs --suite azjax; MuJoCo Playground's: azjax envs --suite playground")
    return 0


def table_of(facts: list[dict[str, Any]]) -> Table:
    """One row for each environment."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for key in facts[0]:
        numbers = key in ("observation_size", "action_size", "seconds_per_step")
        table.add_column(_HEADS.get(key, key), no_wrap=True, justify="right" if numbers else "left")
    for fact in facts:
        table.add_row(*map(_cell, fact.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(name: str) -> dict[str, Any]:
    """Sizes and backends of an environment."""
    env = make_env(name)
    sizes = [leaf.size for leaf in jax.tree.leaves(env.observation_spec)]
    return {
        "name": name,
        "observation_size": sum(sizes),
        "action_size": env.action_spec.size,
        "seconds_per_step": round(getattr(env, "dt", 0.0), 6),
        "backends": list(backends_of(name)),
        "preset": bool(load_preset(name)),
    }


def playground_tasks() -> list[dict[str, Any]]:
    """The tasks of MuJoCo Playground, which need not be installed for this."""
    return [
        {
            "name": PREFIX + task,
            "suite": suite,
            "needs": "" if suite == DM_CONTROL else "robot models of MuJoCo Menagerie",
            "preset": bool(load_preset(PREFIX + task)),
        }
        for task, suite in TASKS.items()
    ]


_FACTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "brax": lambda: [describe(name) for name in SUPPORTED],
    "azjax": lambda: [describe(locomotion.PREFIX + task) for task in locomotion.TASKS],
    "playground": playground_tasks,
}
