"""The whole line on real speech, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

ARLAT = [sys.executable, "-m", "arlat_core.cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def arlat(*arguments: str, timeout: int = 1500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ARLAT, *arguments], capture_output=True, text=True, timeout=timeout, check=False, env=ENVIRONMENT
    )


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`arlat demo` on 12 speakers of real speech with a real pretrained codec, killed once on the way."""
    out = tmp_path_factory.mktemp("line") / "run"
    command = ["demo", "--audio", str(shared / "data" / "speech"), "--max-speakers", "12", "--quick", "--out", str(out)]
    command += ["--codec", f"lyra={shared / 'data' / 'codecs' / 'lyra_v2'}"]
    first = subprocess.Popen([*ARLAT, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    deadline = time.monotonic() + 600
    while not list(out.glob("runs/*/parts/p1.json")) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.2)
    assert first.poll() is None, "the demo ended before its first diagnostic was done"
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path: path.read_bytes() for path in out.glob("runs/*/parts/*.json")}
    assert kept
    second = arlat(*command)
    assert second.returncode == 0, second.stderr[-3000:]
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert "report.html" in second.stdout
    return out


def test_results_hold_every_representation_with_intervals_and_counts(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["schema"] == "arlat-results/1"
    names = list(results["results"])
    assert len(names) == 6
    assert "stack:8|mel" in names
    for name in names:
        values = results["results"][name]
        for key in (
            "p1.h1.dnll_b0",
            "p1.h1.dnll_b5",
            "p1.h1.cosine",
            "p1.h1.information_rate",
            "p4.rho[1]",
            "r1.D.cosine[16]",
        ):
            assert values[key]["value"] is not None, (name, key)
            assert values[key]["low"] <= values[key]["value"] <= values[key]["high"], (name, key)
            assert values[key]["n"]["speakers"] >= 2
            assert values[key]["n"]["utterances"] >= values[key]["n"]["speakers"]
        assert values["r1.A.state_error[1]"]["value"] == 0
        # a sentence about the direction of time: a frame eight steps ahead is harder to foresee than the next one
        assert values["p1.h1.dnll_b5"]["value"] < values["p1.h8.dnll_b5"]["value"] + 0.05 * abs(
            values["p1.h8.dnll_b5"]["value"]
        )


def test_the_trap_shows_on_real_latents(run: Path) -> None:
    """SPEC §2: against B0 a longer horizon looks easier, while the information about the future falls."""
    results = json.loads((run / "results.json").read_text())
    (name,) = [name for name in results["results"] if "lyra" in name]
    values = {key: value["value"] for key, value in results["results"][name].items()}
    assert values["p1.h8.var_dnll_b0"] < values["p1.h1.var_dnll_b0"] < 0
    assert values["p1.h1.var_dnll_b5"] < -1
    assert abs(values["p1.h8.var_dnll_b5"]) < 0.25 * abs(values["p1.h1.var_dnll_b5"])


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_file_that_loads_nothing(run: Path) -> None:
    page = Page()
    page.feed((run / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.tags.count("img") >= 4
    assert page.tags.count("audio") >= 2
    assert all(re.match(r"data:|#", address) for address in page.addresses)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "stack:8|mel" in text.replace("\\|", "|")


def test_the_same_results_give_the_same_report(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = arlat("diag", "report", str(run), "--out", str(tmp_path / f"{name}.html"))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_store_is_whole_and_can_be_shown(run: Path) -> None:
    stores = sorted((run / "stores").iterdir())
    assert len(stores) == 6
    for store in stores:
        verified = arlat("data", "verify", str(store))
        assert verified.returncode == 0, verified.stdout
    shown = arlat("data", "show", str(stores[0]))
    assert "12.5 Hz" in shown.stdout or "50 Hz" in shown.stdout
