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


@pytest.mark.parametrize("command", shown())
def test_command_exists_with_its_flags(command: str) -> None:
    words = command.split()[1:]
    place = []
    for word in words[:2]:
        if not re.fullmatch(r"[a-z]+", word):
            break
        place.append(word)
    group = place[:1] if place[0] in ("demo", "runs", "plugins", "vae", "score") else place[:2]
    arguments = [*group, "--help"] if group not in (["vae"], ["score"]) else group
    done = subprocess.run(
        [sys.executable, "-m", "arlat_core.cli", *arguments], capture_output=True, text=True, check=False
    )
    if group in (["vae"], ["score"]):
        assert "no commands yet" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    for flag in re.findall(r"--[a-z][a-z-]*", command):
        if flag != "--help":
            assert flag in done.stdout, f"{command}: {flag} is not in `arlat {' '.join(group)} --help`"
    for key in re.findall(r"\b([a-z_]+\.[a-z_.]+)=", command):
        assert f"--{key.replace('_', '-')}" in done.stdout


def test_the_readme_shows_commands() -> None:
    assert len(shown()) >= 8
