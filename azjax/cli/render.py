"""``azjax render``."""

from __future__ import annotations

from collections.abc import Sequence

from azjax.cli.parsing import parse
from azjax.runs.console import RunConsole
from azjax.runs.render import RenderOptions, render_episode


def run(args: Sequence[str], prog: str) -> int:
    """Renders an episode."""
    rendered = render_episode(parse(RenderOptions, args, prog=prog))
    RunConsole(0).summary(rendered.title, [("written", str(rendered.output))])
    return 0
