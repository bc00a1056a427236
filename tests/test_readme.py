"""Every arlat command that the README shows exists, with the flags that it is shown with."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def shown() -> list[str]:
    code = re.findall(r"```\n(.*?)```", README, re.S)
    lines = [line for block in code for line in block.splitlines()] + re.findall(r"`(arlat [^`]*)`", README)
    found = [
        match[1].split("#")[0].strip()
        for line in lines
        for match in [re.search(r"(?:uv run )?(arlat .*)", line)]
        if match
    ]
    return sorted(set(found))


def groups() -> dict[tuple[str, ...], list[str]]:
    """Sub-command -> the ways in which the README shows it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for command in shown():
        words = command.split()[1:]
        alone = words[0] in ("demo", "runs", "plugins", "score")
        found.setdefault(tuple(words[:1] if alone else words[:2]), []).append(command)
    return found


@pytest.mark.parametrize("group", sorted(set(groups()) - {("score",)}), ids=" ".join)
def test_command_exists_with_its_flags(group: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "arlat_core.cli", *group, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in groups()[group]:
        for flag in re.findall(r"--[a-z][a-z-]*", text):
            assert flag in done.stdout, f"{text}: {flag} is not in its --help"
        for key in re.findall(r"\b([a-z_]+\.[a-z_.]+)=", text):
            assert f"--{key.replace('_', '-')}" in done.stdout, f"{text}: {key} is not in its --help"


def test_the_readme_shows_commands() -> None:
    assert len(shown()) >= 8
