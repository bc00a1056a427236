"""Draws README's picture from a run of the battery: `python docs/figures/first_figure.py RUN` writes first_figure.svg."""

from __future__ import annotations

import sys
from pathlib import Path

from arlat_diag.figures import colours, trap
from arlat_diag.results import read_results


def main(run: Path) -> None:
    """The first figure of the report on `run`, on white."""
    results = read_results(run / "results.json").results
    drawing = trap(results, colours(list(results))).decode()
    start = drawing.index(">", drawing.index("<svg")) + 1
    white = '<rect width="100%" height="100%" fill="white"/>'
    (Path(__file__).parent / "first_figure.svg").write_text(drawing[:start] + white + drawing[start:], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
