"""The workspace itself: pins, members, what may not be in git."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = PYPROJECT["tool"]["uv"]["constraint-dependencies"]


def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: what git tracks cannot be told")
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_pin_is_exact() -> None:
    loose = [pin for pin in PINS if not re.match(r"^[A-Za-z0-9._\-\[\]]+==[A-Za-z0-9.+!]+(\s*;.*)?$", pin)]
    assert not loose
    assert len(PINS) > 80


def test_every_direct_dependency_is_pinned() -> None:
    pinned = {name_of(pin) for pin in PINS}
    members = [ROOT / "kernels", *sorted((ROOT / "packages").iterdir())]
    for folder in members:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        wanted = [
            *project["dependencies"],
            *(item for extra in project.get("optional-dependencies", {}).values() for item in extra),
        ]
        missing = {name_of(item) for item in wanted} - pinned
        assert not {name for name in missing if not name.startswith("arlat")}, folder.name
    groups = [item for group in PYPROJECT["dependency-groups"].values() for item in group]
    assert not {name_of(item) for item in groups} - pinned


def test_pins_are_what_the_lock_says() -> None:
    if not (ROOT / "uv.lock").exists() or shutil.which("uv") is None:
        pytest.skip("no uv.lock or no uv here: nothing to compare the pins with")
    command = "uv export --frozen --no-hashes --no-emit-workspace --all-packages --all-extras --all-groups --no-annotate --no-header --no-emit-index-url"
    output = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    exported = {line.replace('"', "'") for line in output.splitlines() if "==" in line}
    assert exported == set(PINS), "run `uv run nox -s lock` and commit pyproject.toml"


def test_git_holds_no_lock_and_no_host() -> None:
    names = tracked()
    assert "uv.lock" not in names
    hosts = re.compile("py" + r"pi\.org|python" + r"hosted|npm" + r"js\.(org|com)|deb\.deb" + r"ian\.")
    for name in names:
        path = ROOT / name
        if path.suffix in {".png", ".flac", ".safetensors"} or not path.exists():
            continue
        assert not hosts.search(path.read_text(encoding="utf-8", errors="replace")), name


def test_every_member_is_complete() -> None:
    for folder in [ROOT / "kernels", *sorted((ROOT / "packages").iterdir())]:
        for name in ("pyproject.toml", "README.md", "tests"):
            assert (folder / name).exists(), f"{folder.name} has no {name}"
        assert list((folder / "tests").glob("test_*.py")), f"{folder.name} has no tests"
