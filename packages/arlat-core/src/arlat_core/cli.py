"""`arlat`: a table of commands that each package adds to by one entry point, imported only when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points

GROUPS = {  # top-level word -> (what it does, the distribution that brings it)
    "demo": ("the whole line: speech to a report, in one command", "arlat-diag"),
    "data": (
        "extract, synth, surrogate, read out, fetch, verify, show and list latent stores and codecs",
        "arlat-data",
    ),
    "dynamics": ("train dynamics models and roll them out", "arlat-dynamics"),
    "vae": ("train VAEs whose latents are made to be predicted", "arlat-vae"),
    "score": ("train score models and correct rollouts", "arlat-score"),
    "diag": ("measure a store with the battery, and write the report", "arlat-diag"),
    "runs": ("list run directories", "arlat-core"),
    "plugins": ("list codecs, models, diagnostics and correctors", "arlat-core"),
}


def commands(group: str) -> dict[str, tuple[str, str]]:
    """Sub-command -> (help line, "module:function") of one top-level word; the word itself stands under ''.

    Raises LookupError when the package that brings the word is not installed.
    """
    for point in entry_points(group="arlat.commands", name=group):
        table: dict[str, dict[str, tuple[str, str]]] = importlib.import_module(point.value).COMMANDS
        return table[group]
    raise LookupError(group)


def usage() -> str:
    """The text of `arlat --help`."""
    lines = [
        "usage: arlat COMMAND …",
        "",
        "Why do rollouts of continuous audio latents fall apart: the dynamics, the representation, or both?",
        "",
    ]
    installed = {point.name for point in entry_points(group="arlat.commands")}
    for name, (text, distribution) in GROUPS.items():
        absent = "" if name in installed else f"  (not installed: pip install {distribution})"
        lines.append(f"  {name:<10} {text}{absent}")
    return "\n".join([*lines, "", "arlat COMMAND --help says more. Documentation: docs/ in the repository."])


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status (2 for a user's mistake, 130 after Ctrl-C)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    group, *rest = argv
    if group == "--version":
        from importlib.metadata import version

        print(f"arlat {version('arlat-core')}")
        return 0
    if group not in GROUPS:
        print(f"arlat has no command {group!r}. Commands: {', '.join(GROUPS)}.", file=sys.stderr)
        return 2
    try:
        table = commands(group)
    except LookupError:
        print(
            f"`arlat {group}` belongs to {GROUPS[group][1]}, which is not installed: pip install {GROUPS[group][1]}",
            file=sys.stderr,
        )
        return 2
    if not table:
        print(f"{GROUPS[group][1]} has no commands yet: this version holds only their place.", file=sys.stderr)
        return 2
    if "" not in table:
        if not rest or rest[0] in ("-h", "--help"):
            print(
                "\n".join(
                    [
                        f"usage: arlat {group} COMMAND …",
                        "",
                        *(f"  {name:<10} {text}" for name, (text, _) in table.items()),
                    ]
                )
            )
            return 0
        name, *rest = rest
        if name not in table:
            print(f"`arlat {group}` has no command {name!r}. Commands: {', '.join(table)}.", file=sys.stderr)
            return 2
        group = f"{group} {name}"
    else:
        name = ""
    return run(table[name][1], rest, f"arlat {group}")


def run(target: str, arguments: list[str], prog: str) -> int:
    """Imports "module:function" and calls it as function(arguments, prog), turning a UserError into one message."""
    from arlat_core.config import UserError

    # Threads that spin while they wait make a busy machine many times slower; this must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    module, function = target.split(":")
    try:
        status = getattr(importlib.import_module(module), function)(arguments, prog)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{prog}: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
