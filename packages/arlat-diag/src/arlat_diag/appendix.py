"""The report's back pages: calibration, what was read, provenance, definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from arlat_core.run import flatten
from arlat_core.types import Value

from arlat_diag import figures
from arlat_diag.agreement import TOLERANCE, agrees
from arlat_diag.results import Results
from arlat_diag.sections import Picture, Section, Values, description
from arlat_diag.tables import Cell, Table, cell, count, name, number, plain

AGREES = Cell("holds", tone="good")
DIFFERS = Cell("does not hold", tone="bad")


def calibration(results: Results, synthetic: Mapping[str, Values]) -> Section:
    """P3: what the battery measures on processes whose answers are known."""
    question = "Can the battery be trusted?"
    meaning = [
        "On synthetic processes the right answer is known in closed form. A figure holds when the truth lies in its own 95 % interval "
        f"or within {100 * TOLERANCE:g} % of it. Of many intervals, about one in twenty misses by chance.",
    ]
    judged = {
        item: [(key, v, verdict) for key, v in sorted(values.items()) if (verdict := agrees(v)) is not None]
        for item, values in synthetic.items()
    }
    judged = {item: entries for item, entries in judged.items() if entries}
    if not judged:
        return Section(
            "calibration",
            question,
            meaning,
            missing="No calibration run was given to this report, so nothing here proves the battery. "
            "Run `arlat diag calibrate --out DIR` and give its runs to `arlat diag report` too.",
        )
    every = [entry for entries in judged.values() for entry in entries]
    good = sum(verdict for _, _, verdict in every)
    picture = Picture(
        figures.calibration(every),
        "measured against true values on synthetic processes",
        f"{good} of {len(every)} figures hold. On the diagonal: right.",
    )
    rows = [verdict_row(item, entries) for item, entries in judged.items()]
    head = ["process", "figures with a known answer", "hold", "do not hold"]
    tables = [Table("Calibration", head, rows)]
    tables += [proof(item, entries) for item, entries in judged.items()]
    return Section("calibration", question, meaning, [picture], tables)


def verdict_row(item: str, entries: list[tuple[str, Value, bool]]) -> list[Cell]:
    """How many figures of a process hold, and which do not."""
    bad = [key for key, _, verdict in entries if not verdict]
    good = len(entries) - len(bad)
    share = f"{good} ({100 * good / len(entries):.{1 if bad else 0}f} %)"
    told = ", ".join(bad[:6]) + (f" and {len(bad) - 6} more" if len(bad) > 6 else "")
    return [
        name(item),
        Cell(count(len(entries))),
        Cell(share, tone="" if bad else "good"),
        Cell(told or "none", tone="bad" if bad else "muted"),
    ]


def proof(item: str, entries: list[tuple[str, Value, bool]]) -> Table:
    """Every judged figure of a process."""
    rows = []
    for key, v, verdict in entries:
        off = "–" if v.value is None or not v.truth else f"{number(100 * (v.value / v.truth - 1), 1)} %"
        rows.append([name(key), cell(v), plain(v.truth, v), Cell(off, tone="muted"), AGREES if verdict else DIFFERS])
    return Table(
        f"{item}: every figure with a known answer",
        ["key", "measured", "truth", "off by", ""],
        rows,
        folder=f"{item}: every figure with a known answer",
    )


def material(results: Results) -> Section:
    """What was read, what was not, and which frames are worst."""
    rows, worst, notes = [], [], []
    left_out: dict[tuple[str, str], list[str]] = {}
    for item, about in results.representations.items():
        both = [about.counts[split] for split in ("train", "eval") if split in about.counts]
        shown = [" / ".join(count(getattr(n, what)) for n in both) for what in ("speakers", "utterances", "frames")]
        minutes = " / ".join(f"{n.frames / about.spec.frame_rate / 60:.1f}" for n in both)
        rows.append([name(item, description(about)), *(Cell(text) for text in (*shown, minutes))])
        for file in about.skipped:
            left_out.setdefault((file.path, file.reason), []).append(item)
        worst += [
            [name(item), Cell(w.key), Cell(w.utterance), Cell(count(w.frame)), plain(w.value)] for w in about.worst
        ]
        notes += [f"{item}: {note}" for note in about.notes]
    skipped = [
        [name(path), Cell(reason, tone="text"), Cell(", ".join(who), tone="text")]
        for (path, reason), who in left_out.items()
    ]
    tables = [
        Table("Read", ["train / eval", "speakers", "utterances", "frames", "minutes"], rows),
        Table(
            "Files that were skipped",
            ["file", "reason", "left out of"],
            skipped,
            [] if skipped else ["None."],
            folder="Files that were skipped" if len(skipped) > 10 else "",
        ),
        Table(
            "Worst frames", ["representation", "figure", "utterance", "frame", "value"], worst, folder="Worst frames"
        ),
    ]
    return Section(
        "material",
        "What was read?",
        ["Speakers of the evaluation split are in no training split. A skipped file is in no figure."],
        tables=[table for table in tables if table.rows or table.notes],
        notes=notes,
    )


def provenance(results: Results) -> Section:
    """What it takes to repeat the runs."""
    tables = []
    for manifest in results.provenance:
        inputs = manifest.get("inputs", {})
        title = ", ".join(map(str, inputs)) if isinstance(inputs, dict) and inputs else "run"
        rows = [[name(key), Cell(told(value), tone="text")] for key, value in sorted(flatten(manifest).items())]
        tables.append(Table(f"Manifest of {title}", ["key", "value"], rows, folder=f"Manifest of {title}"))
    rows = [
        [name(item), Cell(about.spec.fingerprint, tone="text"), Cell(about.store_hash, tone="text")]
        for item, about in results.representations.items()
    ]
    tables.insert(0, Table("Latents", ["representation", "codec fingerprint", "store hash"], rows))
    return Section(
        "provenance",
        "How can it be repeated?",
        ["The same seed, versions, store and configuration give the same figures to 1e-6 on a CPU."],
        tables=tables,
        missing="" if results.provenance else "No manifest came with these results.",
    )


def told(value: Any) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


DEFINITIONS = (
    ("z, Δ, h", "latent frame; displacement z(t+h) − z(t), predicted from frames up to t; horizon in frames"),
    ("NLL", "negative log-likelihood of the true Δ in nats per frame, a density over all D dimensions in the latents' units"),
    ("ΔNLL_b", "NLL of the model minus NLL of baseline b on the same frames; negative is better"),
    ("B0, B0f, B1, B2", "laws of Δ that know nothing: diagonal Gaussian; uniform direction × LogNormal length; full Gaussian; mixture"),
    ("B3, B4", "linear Gaussian given the last frame (mean reversion); given the context (VAR)"),
    ("B5", "the marginal density of z at z + Δ: knows where frames lie, nothing of the past"),
    ("information rate", "−ΔNLL_B5 at h = 1 × frame rate ÷ ln 2, in bit/s"),
    ("direction cosine", "mean cosine of predicted and true Δ where ‖Δ‖ is above 5 % of its median"),
    ("log-magnitude R²", "1 − squared error of log(predictive median ‖Δ‖) ÷ that of the training mean"),
    ("magnitude ratio", "sum of predicted ÷ sum of true step lengths"),
    ("state error", "distance from the truth of the state that enters a step"),
    ("horizons", "first step per start (median): error > 100 median steps; farther than random frames; cosine at chance; ΔNLL_B5 ≥ 0; off the manifold"),
    ("recovery gain", "(B − D) ÷ (A − D) at step 5, right after B's first true frame"),
    ("interval", "95 %, bootstrap over speakers, over utterances where there are fewer than 20 speakers"),
)  # fmt: skip


def definitions() -> Section:
    """Every word of the report in one line."""
    rows = [[name(word), Cell(text, tone="text")] for word, text in DEFINITIONS]
    return Section(
        "definitions", "What do the words mean?", [], tables=[Table("Definitions", ["word", "meaning"], rows)]
    )
