"""The report's page on reconstruction: what is left of speech after encoding and decoding, between floor and ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from arlat_diag import reference_values
from arlat_diag.conditions import L2
from arlat_diag.figures import INK, Look, canvas, svg
from arlat_diag.sections import Picture, Section, Values, has
from arlat_diag.series import label
from arlat_diag.tables import Cell, Table, behind, cell, name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {
    "pesq_wb": "PESQ-WB, MOS-LQO",
    "stoi": "STOI",
    "estoi": "eSTOI",
    "si_sdr": "SI-SDR, dB",
    "mel_distance": "mel distance (lower is better)",
    "mos": "predicted MOS",
}
SOUNDS = {
    "": "",
    "other_speaker.": "… another speaker's utterance, decoded",
    "mean_latent.": "… the mean latent, decoded",
    "original.": "… the original itself",
}


def reconstruction(subjects: Mapping[str, Values], look: Look) -> Section:
    """L2: the metrics of each representation with floors and ceilings."""
    question = "What is left of the speech after encoding and decoding?"
    meaning = [
        "Stored latents of held-out speakers are decoded and held against the original at 16 kHz: what is predicted well but "
        "sounds like nothing is no representation of speech. PESQ and STOI rate speech as listeners did, SI-SDR and the mel "
        "distance measure signals, the predicted MOS hears the decoded sound alone.",
        "The ceiling is the original itself, the floor what is scored without knowing the utterance: the better of another "
        "speaker's decoded utterance and the decoded mean latent. A mean counts the utterances that have a score; those without, "
        "and why, are named below.",
    ]
    known = has(subjects, "l2.")
    if not known:
        return Section("reconstruction", question, meaning, missing=f"Run `{L2}`.")
    measured = {item: values for item, values in known.items() if any(value(values, key) for key in METRICS)}
    caption = "Dots: mean with its 95 % interval; dotted line: floor; dashed line: ceiling."
    pictures = [Picture(dots(measured, look), "reconstruction metrics by representation", caption)] if measured else []
    rows = [
        [name(text or item), *(cell(values.get(f"l2.{kind}{key}"), floor=True) for key in METRICS)]
        for item, values in known.items()
        for kind, text in SOUNDS.items()
        if any(f"l2.{kind}{key}" in values for key in METRICS)
    ]
    valid = [[name(item), *(counted(values, key) for key in METRICS)] for item, values in measured.items()]
    some = next((found for values in measured.values() if (found := values.get("l2.stoi"))), None)
    notes = [f"Behind these figures: {behind(some)}."] if some else []
    tables = [
        Table("Reconstruction of held-out speakers", ["", *METRICS.values()], rows, notes),
        Table("Utterances with a score", ["", *METRICS.values()], valid, folder="Utterances with a score"),
        published(),
    ]
    told = [
        f"{item}: {text}, {found.status}."
        for item, values in known.items()
        for key, text in METRICS.items()
        if (found := values.get(f"l2.{key}")) is not None and found.status != "ok"
    ]
    return Section("reconstruction", question, meaning, pictures, [table for table in tables if table.rows], notes=told)


def published() -> Table:
    """Figures of other work, which are of other recordings."""
    rows = [
        [name(row.what), Cell(row.value), Cell(row.caution, tone="muted")] for row in reference_values.RECONSTRUCTION
    ]
    caption = "Published figures of other recordings"
    return Table(caption, ["figure", "value", "how to read it"], rows, folder=caption)


def value(values: Values, key: str) -> bool:
    """Whether a metric has a value."""
    found = values.get(f"l2.{key}")
    return found is not None and found.value is not None


def counted(values: Values, key: str) -> Cell:
    """How many utterances have a score, of how many."""
    found = values.get(f"l2.{key}.n_valid")
    if found is None or found.value is None:
        return Cell("–", tone="muted")
    return Cell(f"{found.value:.0f}", "" if found.ceiling is None else f"of {found.ceiling:.0f}")


def dots(known: Mapping[str, Values], look: Look) -> bytes:
    """One panel per metric, one row per representation: mean, interval, floor and ceiling."""
    with canvas(2, 3, 11.0, 1.9 + 0.5 * len(known), sharey=True) as (figure, grid):
        panels = [axes for row in grid for axes in row]
        for axes, (key, text) in zip(panels, METRICS.items(), strict=True):
            panel(axes, known, key, look)
            axes.set_title(text)
            axes.set_yticks(range(len(known)), [label(item, 26) for item in reversed(list(known))])
            axes.set_ylim(-0.6, len(known) - 0.4)
            axes.grid(axis="y", visible=False)
        return svg(figure)


def panel(axes: Axes, known: Mapping[str, Values], key: str, look: Look) -> None:
    """The rows of one metric, the first at the top."""
    for row, (item, values) in enumerate(known.items()):
        y, found = len(known) - 1 - row, values.get(f"l2.{key}")
        if found is None or found.value is None:
            continue
        colour, marker = look[item]
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [y, y], color=colour, linewidth=2.2, alpha=0.5, zorder=3)
        axes.plot(found.value, y, marker, color=colour, markersize=6, zorder=4)
        for end, style in ((found.floor, ":"), (found.ceiling, "--")):
            if end is not None:
                axes.plot([end, end], [y - 0.38, y + 0.38], style, color=INK, linewidth=1.4, zorder=2)
    axes.margins(x=0.08)
