"""Every command on runs of ``azjax train --algorithm trpo``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_docs import documented_keys

from azjax.cli import main
from azjax.runs.folder import read_metrics
from azjax.runs.policy import load_policy

TRAIN = """
train inverted_pendulum --algorithm trpo --steps 2048 --lanes 32 --rollout-length 8 --action-repeat 1 --devices 2
--episode-length 30 --evaluations 2 --evaluation-episodes 4 --minibatches 4 --epochs 1 --policy-hidden 8
--value-hidden 8 --no-cache --quiet --fisher-subsampling 2 --max-kl 0.02 --no-tensorboard
""".split()  # noqa: SIM905 - easier to read, and to type into a shell


@pytest.fixture(scope="module", params=[pytest.param("adam", marks=pytest.mark.slow), "trust-region"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with either update of the values."""
    folder = tmp_path_factory.mktemp("trpo") / request.param
    assert main([*TRAIN, "--value-update", request.param, "--run", str(folder)]) == 0
    return folder


def test_the_folder_says_which_algorithm_it_was(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["algorithm"], config["trpo"]["max_kl"], config["trpo"]["value_update"]) == ("trpo", 0.02, run.name)
    assert "ppo" not in config
    assert "trpo" in json.loads((run / "policy.json").read_text())
    assert load_policy(run).description["algorithm"] == "trpo"


def test_the_step_is_reported_and_within_its_bound(run: Path) -> None:
    trained = [line for line in read_metrics(run / "metrics.jsonl") if "learner/kl" in line]
    assert trained
    for line in trained:
        assert 0 <= line["learner/kl"] <= 0.02 * (1 + 1e-5)
        assert 0 <= line["learner/accepted"] <= 1
        assert {"learner/cg_residual", "learner/cg_iterations", "learner/backtracks", "learner/entropy"} <= set(line)
        assert "learner/clip_fraction" not in line
    assert any(line["learner/accepted"] > 0 for line in trained)


def test_the_docs_name_every_key_of_the_metrics(run: Path) -> None:
    written = {key for line in read_metrics(run / "metrics.jsonl") for key in line} - {"env_steps", "time/seconds"}
    own = documented_keys(trpo=True)
    assert written <= own | documented_keys()
    if run.name == "trust-region":
        assert own <= written


def test_the_commands_take_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--episodes", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
    page, policy = run.parent / f"{run.name}.html", run.parent / f"{run.name}.stablehlo"
    assert main(["compare", str(run)]) == 0
    assert "trpo" in capsys.readouterr().out
    assert main(["report", str(run), "--output", str(page)]) == 0
    assert main(["render", str(run), "--output", str(run.parent / f"{run.name}-episode.html")]) == 0
    assert main(["export", str(run), "--output", str(policy)]) == 0
    assert page.stat().st_size > 10_000
    assert policy.stat().st_size > 1_000


@pytest.mark.parametrize("run", ["trust-region"], indirect=True)
def test_a_finished_run_is_made_longer_as_if_it_had_been_so_from_the_start(run: Path) -> None:
    longer, straight = run.parent / "longer", run.parent / "straight"
    shutil.copytree(run, longer)
    assert main(["resume", str(longer), "--steps", "4096", "--quiet"]) == 0
    options = [*TRAIN, "--value-update", run.name]
    options[options.index("2048")] = "4096"
    assert main([*options, "--evaluations", "4", "--run", str(straight)]) == 0
    digests = [json.loads((folder / "summary.json").read_text())["params_sha256"] for folder in (longer, straight)]
    assert digests[0] == digests[1]


def test_a_sweep_over_the_trust_region_has_a_step_and_a_line_search_for_each_member(tmp_path: Path) -> None:
    """Members of one program; what varies is a traced hyperparameter of TRPO alone."""
    words = [word if word != "0.02" else "0.001,0.05" for word in TRAIN if word != "train"]
    words[words.index("inverted_pendulum")] = "azjax:cartpole"
    assert main(["sweep", *words, "--damping", "0.1,0.2", "--run", str(tmp_path / "sweep")]) == 0
    members = sorted((tmp_path / "sweep" / "members").iterdir())
    largest = {}
    for member in members:
        own = yaml.safe_load((member / "config.yaml").read_text())["trpo"]
        trained = [line for line in read_metrics(member / "metrics.jsonl") if "learner/kl" in line]
        largest[own["max_kl"], own["damping"]] = max(line["learner/kl"] for line in trained)
        assert largest[own["max_kl"], own["damping"]] <= own["max_kl"] * (1 + 1e-5)
    assert set(largest) == {(kl, damping) for kl in (0.001, 0.05) for damping in (0.1, 0.2)}
    assert largest[0.05, 0.1] > 0.001
    assert main(["resume", str(members[0]), "--steps", "4096", "--quiet"]) == 0
