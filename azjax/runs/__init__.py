"""Everything that touches the outside: run folders, metrics, policy files, plots, replays, exported policies."""

from azjax.runs.export import export_act, export_policy, load_exported
from azjax.runs.options import TrainOptions, load_preset, preset_options
from azjax.runs.policy import load_policy, save_policy
from azjax.runs.render import RenderOptions, render_episode
from azjax.runs.replay import write_replay
from azjax.runs.train import RunResult, train

__all__ = [
    "RenderOptions",
    "RunResult",
    "TrainOptions",
    "export_act",
    "export_policy",
    "load_exported",
    "load_policy",
    "load_preset",
    "preset_options",
    "render_episode",
    "save_policy",
    "train",
    "write_replay",
]
