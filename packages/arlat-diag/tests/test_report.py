from __future__ import annotations

import html
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from arlat_core.config import UserError
from arlat_core.types import Value
from arlat_diag import report
from arlat_diag.results import AudioExample, Results, Skipped, write_results

Maker = Callable[..., Results]
HOSTILE = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> $\\frac{a}{b}$ {{ 7*7 }} [x](javascript:alert(3)) |_a\n# b"


class Page(HTMLParser):
    """Every tag, attribute and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def save(path: Path, results: Results) -> Path:
    write_results(path / "results.json", results)
    return path


def written(runs: list[Path], out: Path) -> tuple[str, str]:
    page, beside = report.write_report(runs, out)
    return page.read_text(encoding="utf-8"), beside.read_text(encoding="utf-8")


def test_a_run_brings_its_calibration_with_it(tmp_path: Path, real_results: Maker, synthetic_results: Maker) -> None:
    run = save(tmp_path / "run", real_results({"lyra": 64}))
    proof = save(run / "calibration" / "runs" / "white", synthetic_results())
    (run / "calibration" / "runs" / "unfinished").mkdir()
    bare = save(tmp_path / "bare", real_results({"lyra": 64}))
    whole = written([run], tmp_path / "report.html")
    assert whole == written([bare, proof], tmp_path / "apart" / "report.html")
    assert whole != written([bare], tmp_path / "alone" / "report.html")


def test_a_whole_report_asks_every_question_and_shows_figures_with_floors(
    tmp_path: Path, real_results: Maker, synthetic_results: Maker
) -> None:
    runs = [
        save(tmp_path / "r", real_results({"stack:8|mel": 640, "lyra": 64})),
        save(tmp_path / "c", synthetic_results()),
    ]
    text, markdown = written(runs, tmp_path / "report.html")
    page = Page(text)
    questions = [section.question for section in report.make_sections([report.open_run(run) for run in runs])[1]]
    assert len(questions) == 17
    for question in questions:
        assert question in page.text
        assert f"## {question}" in markdown
    for needed in ("lyra", "−4.0", "[−4.3, −3.7]", "floor −22.2", "earlier work, Mimi 512-d", "33 speakers", "0.84"):
        assert needed in page.text, needed
    assert (
        page.tags.count("img") == markdown.count("![") == len(list((tmp_path / "report_figures").glob("*.svg"))) == 14
    )
    assert "Not run" not in page.text.replace("Not run. No audio came with these results.", "")


def test_the_first_figure_is_the_trap_and_says_what_falls(tmp_path: Path, real_results: Maker) -> None:
    text, _ = written([save(tmp_path / "r", real_results({"stack:8|mel": 640}))], tmp_path / "report.html")
    first = text.index("<figure>")
    assert text.rindex("<h2>", 0, first) == text.index("<h2>Does a longer horizon look easier than it is?")
    assert "network: ΔNLL_B0 −150.4 → −239.8, information 4.0 → 0.2 nats" in html.unescape(text)


def test_clusters_are_held_against_earlier_work_and_p1(tmp_path: Path, real_results: Maker) -> None:
    text, markdown = written([save(tmp_path / "r", real_results({"lyra": 64}))], tmp_path / "report.html")
    page = Page(text)
    for needed in (
        "0.99–1.00",
        "lyra, lag 1, the same frames: a ratio of 0.710 is worth −11.0 nats per frame",  # 32·ln 0.71
        "lyra, lag 2, the same frames: a ratio of 0.985 is worth −0.5 nats per frame to Gaussian steps, and P1's network has "
        "ΔNLL_B2 −1.0",
        "Both find something.",
        "The network finds what clusters do not",  # lag 4: the ratio's interval holds 1
    ):
        assert needed in page.text, needed
    (row,) = (line for line in markdown.splitlines() if line.startswith("| lyra, lag 4"))
    assert row.startswith(
        "| lyra, lag 4 | 1.000 \\[0.996, 1.004\\] | 1.000 \\[0.997, 1.003\\] |"
    )  # the control beside it


def test_direction_and_length_stand_apart_with_what_their_law_promises(tmp_path: Path, real_results: Maker) -> None:
    save(tmp_path, real_results({"lyra": 64, "mel": 32}))
    _, pages = report.make_sections([report.open_run(tmp_path)])
    page = next(page for page in pages if page.id == "decomposition")
    assert len(page.pictures) == 2
    rows = {row[0].small: row[1:] for table in page.tables for row in table.rows}
    assert (rows["p2.cosine"][0].text, rows["p2.cosine"][0].floor) == ("0.680", "floor 0.660")
    assert rows["p2.dnll_dir_uniform"][0].floor == "floor −13.3"  # 0.6·32·ln 2
    assert rows["p2.calibration.kappa_error"][1].text == "0.012"


def test_a_model_trained_on_rollouts_stands_beside_the_one_step_predictor(tmp_path: Path, real_results: Maker) -> None:
    save(tmp_path, real_results({"mel": 32}))
    _, pages = report.make_sections([report.open_run(tmp_path)])
    page = next(page for page in pages if page.id == "trained")
    assert len(page.pictures) == 1
    (row,) = [row for row in page.tables[0].rows if row[0].small.endswith("horizon.info")]
    assert (row[1].text, row[2].text) == ("14", "2")


def test_the_anatomy_says_its_verdict_in_words(tmp_path: Path, real_results: Maker) -> None:
    save(tmp_path, real_results({"mel": 32}))
    _, pages = report.make_sections([report.open_run(tmp_path)])
    page = next(page for page in pages if page.id == "anatomy")
    assert len(page.pictures) == 1
    assert page.pictures[0].caption.startswith(
        "70 [68, 72] % of the squared error of all steps could not have been known"
    )
    assert page.tables[0].rows[0][1].text == "drifts on-manifold"
    (row,) = [row for row in page.tables[1].rows if row[0].small == "r4.error.root[s]"]
    assert [cell.text for cell in row[1:]] == ["4.02", "5.20", "6.32", "7.20", "8.11"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, real_results: Maker, synthetic_results: Maker) -> None:
    runs = [save(tmp_path / "r", real_results({"a": 16})), save(tmp_path / "c", synthetic_results())]
    first = written(runs, tmp_path / "one" / "report.html")
    figures = {path.name: path.read_bytes() for path in (tmp_path / "one" / "report_figures").iterdir()}
    assert written(runs, tmp_path / "two" / "report.html") == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "two" / "report_figures").iterdir()} == figures


def test_hostile_names_are_text_everywhere(tmp_path: Path, real_results: Maker) -> None:
    base = real_results({HOSTILE: 16, "_hidden": 16})
    about = base.representations[HOSTILE]
    about = about.model_copy(
        update={
            "spec": about.spec.model_copy(update={"codec": HOSTILE, "space": HOSTILE}),
            "skipped": [Skipped(path=HOSTILE, reason=HOSTILE)],
            "worst": [frame.model_copy(update={"utterance": HOSTILE}) for frame in about.worst],
            "notes": [HOSTILE],
            "audio": [AudioExample(label=HOSTILE, path="../../etc/passwd")],
        }
    )
    values = dict(base.results[HOSTILE])
    values["p1.h1.cosine"] = Value(value=None, n=values["p1.h1.cosine"].n, status=HOSTILE)
    results = base.model_copy(
        update={
            "results": {**base.results, HOSTILE: values},
            "representations": {**base.representations, HOSTILE: about},
            "notes": [HOSTILE],
            "provenance": [{"config": {HOSTILE: HOSTILE}, "inputs": {HOSTILE: HOSTILE}}],
        }
    )
    text, markdown = written([save(tmp_path / "r", results)], tmp_path / "report.html")
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all((value or "").startswith("data:") for name, value in page.attributes if name == "src")
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "{{ 7*7 }}" in page.text
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert "](javascript" not in markdown.replace("\\](javascript", "").replace("\\]\\(javascript", "")
    assert "\n# b" not in markdown
    for path in (tmp_path / "report_figures").iterdir():
        tree = ElementTree.fromstring(path.read_bytes())
        assert not [node for node in tree.iter() if node.tag.endswith("script")]


def test_markdown_tables_keep_their_columns(tmp_path: Path, real_results: Maker) -> None:
    _, markdown = written(
        [save(tmp_path / "r", real_results({HOSTILE: 16, "stack:8|mel": 8}))], tmp_path / "report.html"
    )
    lines = markdown.splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) > 8
    for i in tables:
        columns = lines[i].count("|")
        rows = [lines[i - 1], *lines[i + 1 : i + 3]]
        for row in rows:
            assert row.replace("\\\\", "").replace("\\|", "").count("|") == columns, row


def test_a_page_is_self_contained_and_says_so_to_the_browser(tmp_path: Path, real_results: Maker) -> None:
    text, _ = written([save(tmp_path / "r", real_results({"a": 16}))], tmp_path / "report.html")
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    assert ("content", policy) in Page(text).attributes
    assert "http://" not in text
    assert "https://" not in text
    assert "file:" not in text


def test_audio_is_embedded_and_what_is_missing_is_named(tmp_path: Path, real_results: Maker) -> None:
    base = real_results({"lyra": 64})
    run = tmp_path / "r"
    (run / "audio").mkdir(parents=True)
    soundfile.write(run / "audio" / "a.flac", np.sin(np.arange(1600) / 20) / 4, 16000)
    (run / "audio" / "b.flac").write_bytes(b"no sound")
    soundfile.write(tmp_path / "outside.flac", np.zeros(1600), 16000)
    paths = ["audio/a.flac", "audio/b.flac", "audio/c.flac", "../outside.flac"]
    about = base.representations["lyra"].model_copy(
        update={"audio": [AudioExample(label=path, path=path) for path in paths]}
    )
    save(run, base.model_copy(update={"representations": {"lyra": about}}))
    text, _ = written([run], tmp_path / "report.html")
    page = Page(text)
    assert page.tags.count("audio") == 1
    assert ("src", report.data_uri("audio/flac", (run / "audio" / "a.flac").read_bytes())) in page.attributes
    for sentence in ("audio/b.flac is no FLAC file", "audio/c.flac is missing", "../outside.flac lies outside the run"):
        assert sentence in page.text


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        ("p0.", "--only p0"),
        ("p1.", "--only p1"),
        ("p2.", "--only p2"),
        ("p4.", "--only p4"),
        ("r1.", "--only r1"),
        ("", "arlat diag calibrate"),
    ],
)
def test_what_was_not_run_is_said_and_nothing_fails(tmp_path: Path, real_results: Maker, left: str, asked: str) -> None:
    base = real_results({"a": 16})
    values = {key: value for key, value in base.results["a"].items() if not left or not key.startswith(left)}
    run = save(tmp_path / "r", base.model_copy(update={"results": {"a": values}}))
    text, markdown = written([run], tmp_path / "report.html")
    assert asked in Page(text).text
    assert "**Not run.**" in markdown


def test_an_empty_result_still_makes_a_report(tmp_path: Path, real_results: Maker) -> None:
    base = real_results({"a": 16})
    run = save(tmp_path / "r", base.model_copy(update={"results": {"a": {}}}))
    text, _ = written([run], tmp_path / "report.html")
    assert Page(text).text.count("Not run.") == 11
    assert "not run" in Page(text).text


def test_values_that_could_not_be_had_do_not_stop_a_report(tmp_path: Path, real_results: Maker) -> None:
    base = real_results({"a": 16})
    gone = {
        key: Value(value=None, n=value.n, status="not finite") if "1" in key else value.model_copy(update={"low": None})
        for key, value in base.results["a"].items()
    }
    run = save(tmp_path / "r", base.model_copy(update={"results": {"a": gone}}))
    text, _ = written([run], tmp_path / "report.html")
    assert "not finite" in text


def test_calibration_names_every_figure_that_does_not_hold(tmp_path: Path, synthetic_results: Maker) -> None:
    bad = ("p1.h1.dnll_b5", "r1.D.cosine[4]")
    runs = [
        save(tmp_path / "good", synthetic_results("white D=8")),
        save(tmp_path / "bad", synthetic_results(wrong=bad)),
    ]
    text, _ = written(runs, tmp_path / "report.html")
    page = Page(text)
    assert page.text.count("does not hold") == len(bad)
    assert "p1.h1.dnll_b5, r1.D.cosine[4]" in page.text
    total = sum(value.truth is not None for value in synthetic_results().results["ar1 rho=0.8 D=8"].values())
    assert f"{2 * total - len(bad)} of {2 * total} figures hold" in page.text


def test_runs_with_the_same_name_are_refused(tmp_path: Path, real_results: Maker) -> None:
    runs = [save(tmp_path / name, real_results({"a": 16})) for name in ("x", "y")]
    with pytest.raises(UserError, match="'a' is in run 1 and in run 2"):
        report.write_report(runs, tmp_path / "report.html")


def test_a_name_that_is_no_html_is_refused(tmp_path: Path, real_results: Maker) -> None:
    run = save(tmp_path / "r", real_results({"a": 16}))
    with pytest.raises(UserError, match=r"ends in \.html"):
        report.main([str(run), "--out", str(tmp_path / "report.md")], "arlat diag report")


def test_the_command_takes_runs_and_prints_where_it_wrote(
    tmp_path: Path, real_results: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [save(tmp_path / name, real_results({name: 16})) for name in ("x", "y")]
    out = tmp_path / "deep" / "report.html"
    assert report.main([*map(str, runs), "--out", str(out)], "arlat diag report") == 0
    assert capsys.readouterr().out.split() == [str(out), str(out.with_suffix(".md"))]
    assert out.exists()


def test_a_browser_opens_the_report_without_a_message(tmp_path: Path, real_results: Maker) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    written([save(tmp_path / "r", real_results({HOSTILE: 16, "lyra": 64}))], tmp_path / "report.html")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet,
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
            f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,3000", (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
