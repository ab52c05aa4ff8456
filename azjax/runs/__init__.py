"""Everything that touches the outside: run folders, metrics, policy files, plots, replays, reports."""

from azjax.runs.comparison import compare_folders
from azjax.runs.options import TrainOptions, load_preset, preset_options
from azjax.runs.policy import load_policy, save_policy
from azjax.runs.replay import write_replay
from azjax.runs.report import write_report
from azjax.runs.signals import RunInterrupted
from azjax.runs.train import RunResult, resume, train

__all__ = [
    "RunInterrupted",
    "RunResult",
    "TrainOptions",
    "compare_folders",
    "load_policy",
    "load_preset",
    "preset_options",
    "resume",
    "save_policy",
    "train",
    "write_replay",
    "write_report",
]
