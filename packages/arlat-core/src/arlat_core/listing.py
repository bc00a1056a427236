"""`arlat plugins` and `arlat runs`."""

from __future__ import annotations

import json
from pathlib import Path

from arlat_core import registry
from arlat_core.config import UserError


def plugins(arguments: list[str], prog: str) -> int:
    """Prints every plugin by kind, importing none."""
    if arguments in (["-h"], ["--help"]):
        print(f"usage: {prog}\n\nLists codecs, dynamics models, diagnostics and correctors.")
        return 0
    if arguments:
        raise UserError(f"{prog} takes no arguments, but got {' '.join(arguments)!r}.")
    for kind in registry.KINDS:
        print(f"{kind}:")
        for name, module in registry.names(kind).items():
            print(f"  {name:<12} {module}")
    return 0


def runs(arguments: list[str], prog: str) -> int:
    """Prints the run directories below a folder (default: here) with what they hold."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: {prog} [FOLDER]")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    root = Path(arguments[0] if arguments else ".")
    if not root.is_dir():
        raise UserError(f"{root} is no folder. Give the folder that holds the runs.")
    for config in sorted(root.rglob("config.json")):
        folder = config.parent
        if not (folder / "owner.json").exists():
            continue
        attempt = json.loads((folder / "owner.json").read_text())["attempt"]
        state = "finished" if (folder / "results.json").exists() else "unfinished"
        print(f"{folder}  {state}, attempt {attempt}")
    return 0
