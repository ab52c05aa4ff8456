"""``azjax envs``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from azjax.cli.parsing import parse
from azjax.envs import SUPPORTED, make_env
from azjax.runs.options import load_preset


@dataclasses.dataclass(frozen=True)
class EnvsOptions:
    """Options of the list of environments."""

    json: bool = False
    """Print JSON instead of a table."""


def run(args: Sequence[str], prog: str) -> int:
    """Lists the environments."""
    options = parse(EnvsOptions, args, prog=prog)
    facts = [describe(name) for name in SUPPORTED]
    if options.json:
        print(json.dumps(facts))
        return 0
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("environment", "observation", "action", "s/step", "backends", "preset"):
        table.add_column(
            column, no_wrap=True, justify="right" if column in ("observation", "action", "s/step") else "left"
        )
    for fact in facts:
        table.add_row(
            fact["name"],
            str(fact["observation_size"]),
            str(fact["action_size"]),
            f"{fact['seconds_per_step']:g}",
            " ".join(fact["backends"]),
            "yes" if fact["preset"] else "",
        )
    console = Console()
    console.width = max(console.width, 110)  # a narrow terminal wraps lines, which is better than to lose their ends
    console.print(table)
    return 0


def describe(name: str) -> dict[str, Any]:
    """Sizes and backends of an environment."""
    env = make_env(name)
    sizes = [leaf.size for leaf in jax.tree.leaves(env.observation_spec)]
    return {
        "name": name,
        "observation_size": sum(sizes),
        "action_size": env.action_spec.size,
        "seconds_per_step": round(getattr(env, "dt", 0.0), 6),
        "backends": list(SUPPORTED[name]),
        "preset": bool(load_preset(name)),
    }
