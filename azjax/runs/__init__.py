"""Everything that touches the outside: run folders, metrics, policy files, pictures, replays, reports, exports."""

from azjax.runs.comparison import compare_folders
from azjax.runs.export import export_act, export_policy, load_exported
from azjax.runs.options import TrainOptions, load_preset, preset_options
from azjax.runs.policy import load_policy, save_policy
from azjax.runs.render import RenderOptions, render_episode
from azjax.runs.replay import write_replay
from azjax.runs.report import write_report
from azjax.runs.signals import RunInterrupted
from azjax.runs.train import RunResult, resume, train

__all__ = [
    "RenderOptions",
    "RunInterrupted",
    "RunResult",
    "TrainOptions",
    "compare_folders",
    "export_act",
    "export_policy",
    "load_exported",
    "load_policy",
    "load_preset",
    "preset_options",
    "render_episode",
    "resume",
    "save_policy",
    "train",
    "write_replay",
    "write_report",
]
