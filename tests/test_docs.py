"""README, docs and notebook: every name, flag, file, key and link in them exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import test_cli
import yaml

import azjax
from azjax.cli import reason
from azjax.cli.main import BROKEN, COMMANDS, INTERRUPTED, WRONG_INPUT
from azjax.cli.parsing import flags_of, parse
from azjax.cli.sweep import read_sweep
from azjax.cli.train import FLAGS, read_options
from azjax.cli.tune import read_search
from azjax.envs.registry import backends_of
from azjax.runs.options import TrainOptions, resolve

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RUNNING = ROOT / "docs" / "running.md"
PAGES = sorted([README, *(ROOT / "docs").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPTIONS = {name: options for name, options in test_cli.OPTIONS.items() if name != "train"}
REASON = {
    "train": reason.FLAGS["ppo"],
    "evaluate": reason.EvaluateOptions,
    "solve": reason.SolveOptions,
    "propose": reason.ProposeOptions,
}
name_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> test_cli.Run:
    """The training run that the tests of the command line look at, too."""
    return test_cli.train_once(tmp_path_factory)


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [line.strip().strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def commands(page: Path) -> list[list[str]]:
    """The calls of azjax in the shell blocks of a page."""
    found = []
    for block in blocks(page.read_text(), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line.partition("#")[0]):
                words = shlex.split(part)
                if words[:1] == ["azjax"]:
                    found.append(words[1:])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves behind
# ---------------------------------------------------------------------------------------------------------------------


def documented_keys(*, trpo: bool = False) -> set[str]:
    """The keys in the table of metrics, those that TRPO alone has or all others.

    `_min` behind a key stands for that key with another ending.
    """
    keys: set[str] = set()
    for first, meaning in table_rows(RUNNING.read_text(), "Metrics"):
        if meaning.startswith("TRPO: ") != trpo:
            continue
        base = ""
        for word in in_code(first):
            if word.startswith("_"):
                keys.add(base + word)
            else:
                keys.add(word)
                base = word.removesuffix("_mean")
    return keys


def test_the_docs_name_every_file_of_a_run_and_no_other(run: test_cli.Run) -> None:
    documented = [name for first, *_ in table_rows(RUNNING.read_text(), "A run's folder") for name in in_code(first)]
    assert sorted(documented) == sorted(path.name + "/" * path.is_dir() for path in run.folder.iterdir())
    assert {name for name in documented if f"`{name}`" not in README.read_text()} == set()


def test_the_docs_name_every_key_of_the_metrics_and_no_other(run: test_cli.Run) -> None:
    written = {key for record in run.metrics for key in record}
    assert documented_keys() | {"env_steps", "time/seconds"} == written
    assert {"`env_steps`", "`time/seconds`"} <= set(re.findall(r"`[^`\n]+`", RUNNING.read_text()))


def test_the_docs_name_what_is_in_the_summary(run: test_cli.Run) -> None:
    summary = run.json("summary.json")
    (row,) = [rest for first, *rest in table_rows(RUNNING.read_text(), "A run's folder") if "summary.json" in first]
    assert "params_sha256" in summary
    assert "`params_sha256`" in row[0]
    for word in ("compilation", "training", "evaluation"):
        assert word in row[0]
        assert word in summary["seconds"]
    for word in ("devices", "versions"):
        assert word in row[0]
        assert word in summary


def test_the_configuration_of_a_run_holds_every_option(run: test_cli.Run) -> None:
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    flags = {flag[2:].replace("-", "_") for flag in flags_of(TrainOptions) if not flag.startswith("--no-")}
    assert set(config) - {"schema", "ppo", "env"} | set(config["ppo"]) == flags


def test_the_docs_give_the_exit_codes() -> None:
    codes = {int(code) for first, *_ in table_rows(RUNNING.read_text(), "Exit codes") for code in first.split(", ")}
    assert codes == {0, BROKEN, WRONG_INPUT, INTERRUPTED, 128 + signal.SIGHUP, 128 + signal.SIGTERM}


# ---------------------------------------------------------------------------------------------------------------------
# Commands and flags
# ---------------------------------------------------------------------------------------------------------------------

COMMAND_LINES = [(page, words) for page in PAGES for words in commands(page)]


def test_the_readme_shows_every_command() -> None:
    assert {words[0] for page, words in COMMAND_LINES if page == README} == set(COMMANDS)


@pytest.mark.parametrize(
    ("page", "words"), COMMAND_LINES, ids=[f"{page.name}: {' '.join(words)}" for page, words in COMMAND_LINES]
)
def test_the_commands_in_the_docs_are_valid(page: Path, words: list[str]) -> None:
    command, *rest = words
    for flag in ("--preset", "--axes"):  # files that the page describes
        if flag in rest:
            del rest[rest.index(flag) : rest.index(flag) + 2]
    if command == "train":
        options = resolve(read_options(rest, "azjax train"))
        options.validate()
        assert options.fits(1)
        assert options.fits(2)
    elif command == "sweep":
        _, members, *_ = read_sweep(rest, "azjax sweep")
        assert len(members) > 1
    elif command == "reason":
        action, *rest = rest
        parse(REASON[action], rest, prog=command)
    elif command == "tune":
        read_search(rest, "azjax tune")[0].validate()
    else:
        parse(OPTIONS[command], rest, prog=command)


@name_of
def test_the_flags_in_the_docs_exist(page: Path) -> None:
    known = {"--help", "--version", "--samples", "--axes", "--halvings", "--trials", "--batch"} | flags_of(FLAGS["ppo"])
    for options in (*OPTIONS.values(), *REASON.values()):
        known |= flags_of(options)
    text = page.read_text()
    own = [
        word
        for code in in_code(text)
        # Flags of azjax stand alone or behind its name; flags of other programs behind theirs.
        if code.startswith("--") or code.startswith("azjax ")
        for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", code)
    ]
    assert {flag for flag in own if flag not in known} == set()


def test_the_first_two_commands_of_the_readme() -> None:
    first, second, *_ = blocks(README.read_text(), "sh")
    assert first == "pip install . && azjax train\n"
    assert second == 'pip install -e ".[test]" && pytest\n'


@name_of
def test_environments_named_in_the_docs_exist(page: Path) -> None:
    for words in commands(page):
        if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-"):
            assert backends_of(words[1])


# ---------------------------------------------------------------------------------------------------------------------
# Links, names, code
# ---------------------------------------------------------------------------------------------------------------------


@name_of
def test_links_in_the_docs_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"", text):
        path = next(filter(None, target)).partition("#")[0]
        if path and not re.match(r"https?://", path):
            assert (page.parent / path).exists(), path


@name_of
def test_files_named_in_the_docs_exist(page: Path) -> None:
    for code in in_code(page.read_text()):
        if re.fullmatch(r"(azjax|tests|docs|constraints|notebooks|experiments|benchmarks|\.ci)/[\w./-]*", code):
            assert (ROOT / code).exists(), code


@name_of
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    text = re.sub(r"(?s)```.*?```|`[^`]*`", "", page.read_text())
    assert re.findall(r"\b[A-Z]+_[A-Z_]+\b|\bTODO\b|\bFIXME\b|\bTBD\b|\?\?\?", text) == []
    # A word in capitals that is a paragraph of its own is a place to be filled, too.
    assert re.findall(r"(?m)^[A-Z]{3,}$", text) == []


def resolved(dotted: str) -> Any:
    """The object behind ``azjax.x.y``."""
    value: Any = azjax
    path = "azjax"
    for part in dotted.split(".")[1:]:
        path += f".{part}"
        if not hasattr(value, part):
            value = importlib.import_module(path)
        else:
            value = getattr(value, part)
    return value


@name_of
def test_names_in_the_docs_exist(page: Path) -> None:
    for code in in_code(page.read_text()):
        match = re.match(r"(azjax(?:\.[A-Za-z_]\w*)+)", code)
        if match and not code.endswith((".md", ".py", ".yaml")):
            resolved(match.group(1))


def check_code(source: str) -> None:
    """The source compiles, and what it takes from azjax exists."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "azjax":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "azjax":
            assert hasattr(azjax, node.attr), f"azjax has no {node.attr}"


@name_of
def test_python_in_the_docs_uses_what_exists(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        check_code(block)


def test_the_readme_has_the_python_interface_in_ten_lines() -> None:
    (block,) = blocks(README.read_text(), "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    for name in ("make_env", "ppo", "make_trainer", "compile"):
        assert f"azjax.{name}(" in block


def test_the_python_interface_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """On an environment and a number of lanes that compile and run quickly."""
    (block,) = blocks(README.read_text(), "python")
    small = block
    for large, little in (
        ('"ant"', '"inverted_pendulum"'),
        ("1024", "64"),
        ("updates_per_call=10", "updates_per_call=2"),
    ):
        assert large in small
        small = small.replace(large, little)
    exec(compile(small, "README.md", "exec"), {})
    steps = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [(n + 1) * 2 * 64 * 16 for n in range(8)]


# ---------------------------------------------------------------------------------------------------------------------
# Notebooks
# ---------------------------------------------------------------------------------------------------------------------


def test_there_is_a_quickstart() -> None:
    assert "quickstart.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_without_outputs_and_its_code_compiles(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert notebook["nbformat_minor"] >= 5
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", identifier) for identifier in identifiers)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert isinstance(cell["metadata"], dict)
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        assert source.strip()
        if cell["cell_type"] == "markdown":
            assert set(cell) <= {"cell_type", "id", "metadata", "source", "attachments"}
            continue
        assert set(cell) == {"cell_type", "id", "metadata", "source", "outputs", "execution_count"}
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        check_code(source)


def test_the_quickstart_opens_on_colab_and_keeps_its_cuda_whole() -> None:
    notebook = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
    text = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert "https://colab.research.google.com/" in text[0]
    assert "notebooks/quickstart.ipynb" in text[0]
    (install,) = [source for source in text if "pip" in source and "subprocess" in source]
    assert "azjax[cuda12]" in install
    assert "restart" in install.lower()
    assert any("doctor" in source for source in text)
