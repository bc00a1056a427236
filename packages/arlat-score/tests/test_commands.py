"""The package holds its command's place and pretends nothing."""

import subprocess
import sys


def test_the_command_says_that_it_has_no_commands_yet() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arlat_core.cli", "score"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "arlat-score has no commands yet" in done.stderr
