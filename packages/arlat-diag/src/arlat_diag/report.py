"""Q4: one report of any number of runs, as HTML that opens from disk and as Markdown; same inputs, same bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import atomic_write
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from arlat_diag import (
    anatomy_sections,
    appendix,
    clustering_sections,
    decision_sections,
    decomposition_sections,
    reconstruction_sections,
    rollout_sections,
    sections,
)
from arlat_diag.figures import colours
from arlat_diag.results import Results, merge_results, read_results
from arlat_diag.sections import Clip, Picture, Section

TITLE = "How predictable are these latents, and how do rollouts fail?"
SPECIAL = r"\`*_[]|#~$"


class Config(BaseConfig):
    """Settings of `arlat diag report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories (or results.json files), of any number of representations; calibration runs too."""
    out: Path = Path("report.html")
    """The HTML file; Markdown and plots are written beside it."""
    baseline: str = ""
    """The representation that the decisions are about (default: Mimi, else the first codec that wraps nothing)."""


@dataclass(frozen=True)
class Run:
    """Results and the folder that their audio lies in."""

    folder: Path
    results: Results


def open_run(path: Path) -> Run:
    """Reads a run directory or a results.json."""
    return Run(path if path.is_dir() else path.parent, read_results(path))


def read_clips(run: Run) -> tuple[list[Clip], list[str]]:
    """The audio of a run; a file that is missing, is no FLAC or lies outside the run is named in a note instead."""
    clips, notes = [], []
    inside = run.folder.resolve()
    for name, about in run.results.representations.items():
        for example in about.audio:
            path = (run.folder / example.path).resolve()
            label = f"{name}: {example.label}"
            if not path.is_relative_to(inside):
                notes.append(f"{label}: {example.path} lies outside the run and is not read.")
            elif not path.is_file():
                notes.append(f"{label}: {example.path} is missing.")
            elif (data := path.read_bytes())[:4] != b"fLaC":
                notes.append(f"{label}: {example.path} is no FLAC file.")
            else:
                clips.append(Clip(label, data))
    return clips, notes


def make_sections(runs: Sequence[Run], baseline: str = "") -> tuple[list[str], list[Section]]:
    """All pages of the report, and the remarks for its top.

    Synthetic stores prove the battery; they are subjects themselves only where there is nothing else.
    """
    results = merge_results([run.results for run in runs])
    synthetic = {name: values for name, values in results.results.items() if results.representations[name].truth}
    real = {name: values for name, values in results.results.items() if name not in synthetic}
    subjects = real or synthetic
    look = colours(list(subjects))
    heard = [read_clips(run) for run in runs]
    return results.notes, [
        sections.summary(results, subjects),
        decision_sections.decisions(results, baseline),
        decision_sections.hypotheses(results, baseline),
        sections.trap(subjects, look),
        sections.predictability(subjects, look),
        decomposition_sections.decompositions(subjects),
        clustering_sections.clustering(results, subjects),
        sections.geometry(results, subjects, look),
        rollout_sections.rollouts(subjects),
        rollout_sections.trained(subjects),
        anatomy_sections.anatomies(subjects),
        reconstruction_sections.reconstruction(subjects, look),
        rollout_sections.listening([c for clips, _ in heard for c in clips], [n for _, notes in heard for n in notes]),
        appendix.calibration(results, synthetic),
        appendix.material(results),
        appendix.provenance(results),
        appendix.definitions(),
    ]


def data_uri(kind: str, data: bytes) -> str:
    """A data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def markdown(value: object) -> object:
    """Text in which nothing is Markdown or HTML; `Markup` is left alone."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in SPECIAL else letter for letter in text)


def render_html(notes: list[str], pages: list[Section]) -> str:
    """The HTML report."""
    environment = Environment(
        loader=PackageLoader("arlat_diag"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flac"] = lambda clip: data_uri("audio/flac", clip.flac)
    environment.filters["svg"] = lambda picture: data_uri("image/svg+xml", picture.svg)
    return environment.get_template("report.html").render(title=TITLE, notes=notes, sections=pages) + "\n"


def render_markdown(notes: list[str], pages: list[Section], figures: dict[int, str], title: str = TITLE) -> str:
    """The Markdown report; `figures` gives the file of each picture by its id()."""
    environment = Environment(
        loader=PackageLoader("arlat_diag"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=markdown,
    )
    environment.filters["file"] = partial(picture_file, figures)
    return environment.get_template("report.md").render(title=title, notes=notes, sections=pages).rstrip() + "\n"


def picture_file(figures: dict[int, str], picture: Picture) -> Markup:
    """The relative path of a picture, made of safe characters only."""
    return Markup(figures[id(picture)])


def write_report(runs: Sequence[Path], out: Path, baseline: str = "") -> tuple[Path, Path]:
    """Writes `out` (HTML), the Markdown beside it and its plots in `<stem>_figures`; returns the two paths.

    A run of `arlat demo` brings its calibration runs with it.
    """
    if not runs:
        raise UserError("No run was given. Write `arlat diag report RUN… --out report.html`.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is {out}, but the report is HTML: give a name that ends in .html.")
    notes, pages = make_sections([open_run(path) for run in runs for path in (run, *proofs(run))], baseline)
    folder = out.with_name(f"{out.stem}_figures")
    figures = {}
    for page in pages:
        for index, picture in enumerate(page.pictures, 1):
            file = folder / f"{page.id}-{index}.svg"
            atomic_write(file, picture.svg)
            figures[id(picture)] = f"{url_name(folder.name)}/{file.name}"
    beside = out.with_suffix(".md")
    atomic_write(beside, render_markdown(notes, pages, figures))
    atomic_write(out, render_html(notes, pages))
    return out, beside


def proofs(run: Path) -> list[Path]:
    """The finished calibration runs inside a run directory."""
    return sorted(path.parent for path in run.glob("calibration/runs/*/results.json"))


def url_name(text: str) -> str:
    """A file name as it stands in a link."""
    from urllib.parse import quote

    return quote(text)


def main(arguments: list[str], prog: str) -> int:
    """`arlat diag report RUN… --out report.html`."""
    config = parse(Config, arguments, prog, "Writes one report of any number of runs, as HTML and Markdown.")
    page, beside = write_report(config.runs, config.out, config.baseline)
    print(f"{page}\n{beside}")
    return 0
