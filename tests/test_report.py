"""azjax report and azjax compare: what the page and the tables hold, and what a real browser makes of the page."""

from __future__ import annotations

import html.parser
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_cli
from browser import Browser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from run_folders import DEVICES, VERSIONS, make_run

from azjax.cli import main
from azjax.config import ConfigError
from azjax.runs import charts
from azjax.runs.charts import Series
from azjax.runs.comparison import compare_folders
from azjax.runs.markup import Html, element, join
from azjax.runs.replay import read_replay
from azjax.runs.report import report_page
from azjax.runs.tables import aggregate_table, compact, machine_table, number, option_table, run_table, task_tables
from azjax.statistics import summarize_curves

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


class Page(html.parser.HTMLParser):
    """What a browser would find in a page: elements with their attributes, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "wbr", "input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*paths: Path) -> Page:
    page = Page(report_page(compare_folders(paths)))
    assert page.open == []
    return page


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two configurations with two seeds each on two environments."""
    folder = tmp_path / "runs"
    for env in ("ant", "hopper"):
        for seed in (0, 1):
            make_run(folder / f"{env}-{seed}-low", (0.0, 30.0, 60.0 + 20 * seed), env=env, seed=seed, gamma=0.5)
            returns = (10.0, 70.0, 90.0 + 10 * seed)
            make_run(folder / f"{env}-{seed}-high", returns, env=env, seed=seed, gamma=0.9, replay=True)
    return folder


# ---- pieces


def test_text_is_escaped_and_markup_is_not() -> None:
    made = element("p", HOSTILE, element("b", "x"), title=HOSTILE, class_="note", data_x="1")
    assert made.count("<") == 4
    page = Page(made)
    assert page.elements[0] == ("p", {"title": HOSTILE, "class": "note", "data-x": "1"})
    assert page.text == HOSTILE + "x"
    assert join("<", Html("<br>"), "&") == "&lt;<br>&amp;"
    assert isinstance(join("a"), Html)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")))
def test_any_text_comes_back_from_an_element(text: str) -> None:
    page = Page(element("p", text, title=text))
    assert page.elements == [("p", {"title": text})]
    assert page.text == text


def test_numbers_have_the_digits_that_matter() -> None:
    values = [0.0, 0.12345, 1.5, 12.345, 123.456, 1234.5, -80.04, 5_670_000.0]
    assert [number(v) for v in values] == ["0", "0.123", "1.5", "12.3", "123.5", "1,234", "-80.0", "5,670,000"]
    assert number(None) == "–"
    steps = [0, 5, 999, 1000, 16_384, 999_900, 3_014_656, 2.5e9]
    assert [compact(v) for v in steps] == ["0", "5", "999", "1k", "16.4k", "1000k", "3.01M", "2.5G"]


def test_a_chart_draws_what_it_is_given() -> None:
    one = summarize_curves([([10.0, 20.0], [0.0, 100.0]), ([10.0, 20.0], [0.0, 50.0])])
    two = summarize_curves([([5.0, 40.0], [50.0, 25.0])])
    drawn = charts.draw([Series(0, "a <b>", one), Series(9, "c", two)], x_label="steps", y_label="return", marks=True)
    page = Page(drawn)
    paths = [attributes for attributes in page.all("path") if attributes.get("class") in ("line", "band", "seed")]
    assert [attributes["class"] for attributes in paths] == ["band", "seed", "seed", "line", "line"]
    assert [a["class"] for a in page.all("g") if a.get("class")] == ["c0", "c1"]
    assert paths[-1]["stroke-dasharray"] != paths[-2]["stroke-dasharray"]  # colours begin anew, so lines are dashed
    lines = [[tuple(map(float, p.split())) for p in re.split("[ML]", a["d"])[1:]] for a in paths[-2:]]  # type: ignore[arg-type]
    (x0, y0), (x1, y1) = lines[0]
    (x2, _), (x3, _) = lines[1]
    # Along x as 5 : 10 : 20 : 40 from the axis, and down as the return grows.
    assert (x1 - x0) / (x0 - x2) == pytest.approx(2.0, abs=0.02)
    assert (x3 - x1) / (x1 - x0) == pytest.approx(2.0, abs=0.02)
    assert y1 < y0
    assert page.text.startswith("0")
    assert "a <b>" in page.text
    assert "return" in page.text


POINTS = st.tuples(st.integers(0, 2**63), st.floats(-1e39, 1e39))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(POINTS, min_size=1, max_size=4, unique_by=lambda point: point[0] >> 12))
@example([(0, 0.0)])
@example([(5, 3.0), (2**40, 3.0)])
@example([(1, 0.0), (2**13, 5e-324)])
@example([(1, 1e39), (2**62, -1e39)])
def test_charts_of_odd_curves_are_finite(points: list[tuple[int, float]]) -> None:
    x, values = zip(*sorted(points), strict=True)
    summary = summarize_curves([(x, values)])
    drawn = charts.draw([Series(0, "x", summary)], x_label="x", y_label="y", marks=True)
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", " ".join(a["d"] or "" for a in Page(drawn).all("path")))]
    assert not re.search(r"nan|inf\b", drawn)
    assert all(-10.0 <= n <= 450.0 for n in numbers)


# ---- tables


def test_the_tables_hold_the_figures(runs: Path) -> None:
    comparison = compare_folders([runs])
    final, stability, efficiency = task_tables(comparison.tasks[0])
    high, low = final.rows
    assert high[:5] == ("gamma=0.9", "2", "95.0", "7.07", "95.0")
    assert low[:5] == ("gamma=0.5", "2", "70.0", "14.1", "70.0")
    assert low[6:] == ("0.00", "0.00 to 0.00")
    assert "first configuration, gamma=0.9" in final.note
    assert stability.rows[1] == ("gamma=0.5", "14.1", "60.0", "80.0", "0 (0 %)", "0 (0 %)", "0.0 %")
    assert efficiency.columns[2:] == ("return ≥ 25", "return ≥ 50", "return ≥ 75", "return ≥ 90")
    assert efficiency.rows[1][2:4] == ("1.83k · 1.83 s", "2.53k · 2.53 s")
    assert efficiency.rows[1][4:] == ("1 of 2 seeds", "never")
    assert aggregate_table(comparison).rows[0][:4] == ("gamma=0.9", "4", "0.950", "0.950")
    assert option_table(comparison.tasks[0]).rows == (("gamma", "0.9", "0.5"),)
    assert [row[0][-12:] for row in run_table(comparison).rows][:2] == ["s/ant-0-high", "s/ant-1-high"]
    for table in (final, stability, efficiency, aggregate_table(comparison), run_table(comparison)):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_differences_of_versions_and_devices_are_marked(tmp_path: Path) -> None:
    for seed in range(3):
        odd = seed == 1
        make_run(
            tmp_path / str(seed),
            seed=seed,
            versions=VERSIONS | ({"jax": "0.12.0"} if odd else {}),
            devices=DEVICES | ({"kind": "H100"} if odd else {}),
        )
    table, common = machine_table(compare_folders([tmp_path]).runs)
    assert table.columns == ("run", "kind", "jax")
    assert [row[1:] for row in table.rows] == [("cpu", "0.10.1"), ("H100", "0.12.0"), ("cpu", "0.10.1")]
    assert table.marked == {(1, 1), (1, 2)}
    assert ("python", "3.11.7") in common
    page = page_of(tmp_path)
    assert len(page.all("mark")) == 2


# ---- the page


def test_the_page_shows_everything(runs: Path) -> None:
    page = page_of(runs)
    assert [a["id"] for a in page.all("section")] == ["all", "task-0", "task-1", "runs"]
    assert {f"#{a['id']}" for a in page.all("section")} == {a["href"] for a in page.all("a")}
    assert len(page.all("figure")) == 8
    charts_drawn = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(charts_drawn) == 8
    for text in ("ant (spring)", "hopper (spring)", "Final return", "Stability", "Sample efficiency", "normalised by"):
        assert text in page.text
    assert "Without a replay: gamma=0.5." in page.text
    assert [a["title"] for a in page.all("iframe")] == [
        "3D replay: ant (spring), gamma=0.9, seed 1",
        "3D replay: hopper (spring), gamma=0.9, seed 1",
    ]


def test_the_page_asks_for_nothing_and_runs_nothing_of_its_own(runs: Path) -> None:
    text = report_page(compare_folders([runs]))
    page = Page(text)
    assert page.all("script") == []
    addresses = {a.get(name) for _, a in page.elements for name in ("src", "href", "action", "data") if a.get(name)}
    assert all(address is not None and address.startswith(("#", "data:,")) for address in addresses)
    assert not any(name.startswith("on") or name == "style" for _, a in page.elements for name in a)
    assert not re.search(r"@import|url\(", text.partition("</style>")[0])
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for frame in page.all("iframe"):
        assert frame["sandbox"] == "allow-scripts"
        assert frame["loading"] == "lazy"
        assert "src" not in frame


def test_the_same_runs_give_the_same_page(runs: Path) -> None:
    assert report_page(compare_folders([runs])) == report_page(compare_folders([runs]))


def test_text_of_a_stranger_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    config = {"env": HOSTILE, "backend": HOSTILE, HOSTILE: HOSTILE, "algorithm": HOSTILE}
    versions, devices = VERSIONS | {HOSTILE: HOSTILE}, DEVICES | {"cpu": HOSTILE, HOSTILE: HOSTILE}
    make_run(folder, config=config, versions=versions, devices=devices, replay=True)
    other = config | {HOSTILE: "other" + HOSTILE}
    make_run(tmp_path / "other", config=other, versions=VERSIONS, seed=1, finished=False)
    page = page_of(tmp_path)
    assert page.all("script") == page.all("img") == []
    assert page.text.count(HOSTILE) > 10
    (frame,) = page.all("iframe")
    inner = Page(frame["srcdoc"] or "")
    assert inner.all("img") == []
    assert len(inner.all("script")) == 2


def hostile_replay(page: str, script: str) -> str:
    """A page that looks like a replay and holds a script of its own, in every place where there might be one."""
    inserted = f"<script>{script}</script><img src=x onerror='{script}'>"
    page = page.replace("</body>", f"{inserted}</body>").replace("</head>", f"{inserted}</head>")
    return page.replace("</footer>", f"{inserted}</footer>").replace(
        '"torso"', json.dumps(inserted).replace("<", "\\u003c")
    )


def test_of_a_strangers_replay_only_the_data_are_taken(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", replay=True)
    sound = (folder / "replay.html").read_text()
    (folder / "replay.html").write_text(hostile_replay(sound, "parent.hacked = 1"))
    text = report_page(compare_folders([folder]))
    (frame,) = Page(text).all("iframe")
    assert frame["srcdoc"] is not None
    inner = Page(frame["srcdoc"])
    assert inner.all("img") == []
    assert len(inner.all("script")) == len(Page(sound).all("script"))
    assert "parent.hacked" in frame["srcdoc"], "as the name of a link, which is data"
    data = read_replay(frame["srcdoc"])
    assert "parent.hacked" in data["links"][0]
    assert data | {"links": 0} == read_replay(sound) | {"links": 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda page: "hello", "it is no replay page"),
        (lambda page: re.sub('id="data">.*?</script>', 'id="data">{</script>', page), "Expecting property name"),
        (lambda page: re.sub('id="data">.*?</script>', 'id="data">[]</script>', page), "not those of a replay"),
        (lambda page: page.replace('"steps":100', '"steps":"100"'), "not those of a replay"),
        (lambda page: page.replace('"dt":0.05', '"dt":NaN'), "NaN is no JSON"),
        (lambda page: page.replace('"dt":0.05', '"dt":1e999'), "1e999 is no JSON"),
        (lambda page: page.replace('"geoms":[', '"geoms":' + "[" * 100_000), "nested too deeply"),
        (lambda page: page + " " * (1 << 24), "larger than"),
    ],
)
def test_a_replay_that_cannot_be_shown_is_told(tmp_path: Path, change: Callable[[str], str], reason: str) -> None:
    folder = make_run(tmp_path / "run", replay=True)
    (folder / "replay.html").write_text(change((folder / "replay.html").read_text()))
    page = page_of(folder)
    assert page.all("iframe") == []
    assert re.search(f"The replay of .*run can't be shown: .*{reason}", page.text)


def test_a_replay_that_is_no_file_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "replay.html").symlink_to("/dev/zero")
    assert "is no file" in page_of(folder).text


def test_a_page_of_a_run_that_has_measured_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [], finished=False)
    page = page_of(tmp_path)
    assert page.text.count("No data yet.") == 4
    assert "it has no evaluation" in page.text


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> test_cli.Run:
    """The training run that the tests of the command line look at, too."""
    return test_cli.train_once(tmp_path_factory)


def test_a_real_run_is_reported(real: test_cli.Run) -> None:
    page = page_of(real.folder)
    assert "inverted_pendulum (spring)" in page.text
    (frame,) = page.all("iframe")
    assert read_replay(frame["srcdoc"] or "") == read_replay((real.folder / "replay.html").read_text())
    assert len(page.all("figure")) == 4
    assert "No data yet" not in page.text


# ---- on the command line


def test_a_report_is_written(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.html"
    assert main(["report", str(runs), "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"{output}: 8 runs" in captured.out
    assert output.read_text() == report_page(compare_folders([runs]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "runs"]
    assert main(["report", str(runs), "--output", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_glob_may_hold_other_things(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "table.md").write_text("")
    paths = [str(path) for path in sorted(runs.iterdir())]
    assert main(["report", *paths, "--output", str(tmp_path / "x.html"), "--thresholds", "-5", "77"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"azjax report: warning: passed over, being no folders: {runs / 'table.md'}\n"
    text = (tmp_path / "x.html").read_text()
    assert "return ≥ -5" in text
    assert "return ≥ 77" in text
    assert "table.md" not in text


def test_compare_prints_the_same_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    comparison = compare_folders([runs])
    tables = [table for result in comparison.tasks for table in [*task_tables(result), option_table(result)]]
    printed = [" ".join(line.split()) for line in captured.out.splitlines()]
    for table in [*tables, aggregate_table(comparison)]:
        assert " ".join(table.columns) in printed
        assert table.title in printed
        for row in table.rows:
            assert " ".join(" ".join(row).split()) in printed


def test_compare_prints_json_only(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    data = json.loads(captured.out, parse_constant=pytest.fail)
    assert [task["env"] for task in data["tasks"]] == ["ant", "hopper"]
    assert [c["mean"] for c in data["tasks"][0]["configurations"]] == [95.0, 70.0]
    assert [c["label"] for c in data["all_tasks"]] == ["gamma=0.9", "gamma=0.5"]


def test_what_looks_like_markup_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", config={"note": "[bold red]x[/]"})
    make_run(tmp_path / "b", config={"note": "[link=file:///etc/passwd]y"})
    assert main(["compare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "note=[bold red]x[/]" in out
    assert "note=[link=file:///etc/passwd]y" in out


# ---- what a browser makes of it


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, real: test_cli.Run) -> Path:
    """A page with a real run, made-up ones, hostile text and a hostile replay."""
    folder = tmp_path_factory.mktemp("pages")
    for seed in range(3):
        make_run(folder / f"a{seed}", (0.0, 40.0 + 9 * seed, 80.0 + 5 * seed), seed=seed, replay=True)
        make_run(folder / f"b{seed}", (5.0, 20.0, 60.0 + 9 * seed), seed=seed, gamma=0.5, config={"note": HOSTILE})
    evil = folder / "b2" / "replay.html"
    script = (
        "try { top.document.title = parent.document.title = 'hacked' } finally { location = 'http://127.0.0.1:9/' }"
    )
    evil.write_text(hostile_replay((folder / "a0" / "replay.html").read_text(), script))
    page = folder / "report.html"
    page.write_text(report_page(compare_folders([folder, real.folder])))
    return page


def coloured(browser: Browser, left: float, top: float, width: float, height: float) -> np.ndarray:
    """Which pixels of a part of the screen are neither grey nor nearly so."""
    picture = browser.picture().astype(int)[max(0, int(top)) : int(top + height), int(left) : int(left + width)]
    return np.ptp(picture, axis=-1) > 60


@pytest.mark.parametrize(("width", "height", "dark"), [(1200, 900, False), (390, 844, True)])
def test_a_browser_shows_it(browser: Browser, opened: Path, width: int, height: int, dark: bool) -> None:
    browser.open(opened, width, height, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.title").startswith("azjax report: ant (spring)")
    back = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == dark
    boxes = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) == 8
    assert all(box["left"] >= 0 and box["right"] <= width and box["height"] > 150 for box in boxes)
    sizes = browser.evaluate("[...document.querySelectorAll('figure text')].map(e => e.getBoundingClientRect().height)")
    assert min(size for size in sizes if size) >= 9
    browser.evaluate("document.querySelector('figure').scrollIntoView()")
    box = browser.evaluate("document.querySelector('figure svg').getBoundingClientRect().toJSON()")
    curves = coloured(browser, box["x"], box["y"], box["width"], box["height"])
    assert 0.005 < curves.mean() < 0.5
    # Wide tables scroll inside their own boxes.
    scrolls = "[...document.querySelectorAll('.scroll')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    assert browser.evaluate(scrolls)
    assert browser.complaints() == []
    assert browser.requests() == [opened.as_uri()]


def test_a_browser_plays_the_replays_and_a_strangers_script_never_runs(browser: Browser, opened: Path) -> None:
    browser.open(opened, 1200, 900)
    frames = browser.evaluate("document.querySelectorAll('iframe').length")
    assert frames == 3
    for number_of_frame in range(frames):
        frame = f"document.querySelectorAll('iframe')[{number_of_frame}]"
        browser.evaluate(f"{frame}.scrollIntoView({{block: 'center'}})")
        box = browser.evaluate(f"{frame}.getBoundingClientRect().toJSON()")
        view = (box["x"] + 10, box["y"] + 80, box["width"] - 20, 200)

        def robot(view: tuple[Any, ...] = view) -> np.ndarray:
            return coloured(browser, *view)

        for _ in range(200):
            first = robot()
            if first.mean() > 0.003:
                break
            time.sleep(0.05)
        assert first.mean() > 0.003, "the robot is there"
        assert any((time.sleep(0.1), (robot() != first).any())[1] for _ in range(50)), "it moves"
    assert "hacked" not in browser.evaluate("document.title")
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(("about:", "data:"))] == [opened.as_uri()]


def test_sandbox_and_policy_hold_even_if_a_strangers_page_got_into_a_frame(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run", replay=True)
    script = "parent.document.title = 'hacked'; location = 'http://127.0.0.1:9/'"
    hostile = f"<script>{script}</script><img src='http://127.0.0.1:9/x.png' onerror=\"{script}\"><p>loaded</p>"
    hostile += (
        "<meta http-equiv=refresh content='0; url=http://127.0.0.1:9/'><iframe src='http://127.0.0.1:9/'></iframe>"
    )
    monkeypatch.setattr("azjax.runs.report.replay_page", lambda title, data: hostile)
    page = tmp_path / "report.html"
    page.write_text(report_page(compare_folders([folder])))
    browser.open(page, 1200, 900)
    browser.evaluate("document.querySelector('iframe').scrollIntoView()")
    for _ in range(100):
        said = json.dumps(browser.complaints())
        if "script-src" in said and "img-src" in said:
            break
        time.sleep(0.05)
        browser.evaluate("0")
    assert "violates the following Content Security Policy directive" in said
    time.sleep(0.5)
    assert "hacked" not in browser.evaluate("document.title")
    sent = [url for url in browser.requests() if "127.0.0.1" in url]
    blocked = [c for c in browser.complaints() if c.get("blockedReason") == "csp"]
    assert len(blocked) >= len(sent), "what was asked for went nowhere"


def test_nothing_is_written_if_a_run_is_malformed(runs: Path, tmp_path: Path) -> None:
    (runs / "ant-0-low" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ant-0-low/summary\.json is not the summary"):
        compare_folders([runs])
    assert main(["report", str(runs), "-o", str(tmp_path / "report.html")]) == 2
    assert not (tmp_path / "report.html").exists()
