"""Everything that touches the outside: run folders, metrics, policy files, plots, replays."""

from azjax.runs.options import TrainOptions, load_preset, preset_options
from azjax.runs.policy import load_policy, save_policy
from azjax.runs.replay import write_replay
from azjax.runs.train import RunResult, train

__all__ = [
    "RunResult",
    "TrainOptions",
    "load_policy",
    "load_preset",
    "preset_options",
    "save_policy",
    "train",
    "write_replay",
]
