"""The report's page on the anatomy of a rollout."""

from __future__ import annotations

from collections.abc import Mapping

from arlat_diag.anatomy_figures import anatomy
from arlat_diag.sections import Picture, Section, Values
from arlat_diag.tables import Cell, Table, behind, cell, name
from arlat_diag.verdict import THRESHOLDS, decide

STEPS = (1, 2, 4, 8, 16)
WHOLE = (
    ("share.intrinsic", "part of the error that nobody could know"),
    ("share.one_step", "… errors of single steps that last"),
    ("share.amplification", "… made longer by the model's map"),
    ("share.collapse", "… movement that is missing"),
    ("lyapunov", "finite-time Lyapunov exponent, per step"),
    ("lyapunov_error", "growth of its own error, per step"),
    ("singular[1]", "largest singular value of the map over all steps"),
    ("frechet_halves", "Fréchet distance, truth to truth"),
    ("spectral_distance", "log spectral distance of samples"),
    ("spectral_halves", "… of two halves of the truth"),
)
PER_STEP = (
    ("error.root", "root mean squared error"),
    ("error.total", "mean squared error"),
    ("error.intrinsic", "… intrinsic"),
    ("error.one_step", "… single steps"),
    ("error.amplification", "… amplification"),
    ("error.collapse", "… collapse"),
    ("movement", "movement along the ideal"),
    ("S.energy_score", "energy score of samples"),
    ("spread_skill", "spread ÷ skill"),
    ("knn_ratio", "kNN distance ÷ that of the truth"),
    ("frechet", "Fréchet distance"),
    ("frechet_ratio", "… ÷ that of two halves of the truth"),
)
MEANING = (
    "The grey part of the error is what the best known forecast misses too: a direct regression on the same context, mixed with "
    "the model's own. It is an upper bound on what cannot be known; what stands on it is a lower bound on what the model does "
    "wrong. Blue: errors of single steps that last. Red: what the model's own map adds by making errors longer. Purple: movement "
    "that should have been and was not.",
    "A perfect model is all grey, has spread ÷ error 1, and its samples are as far from true frames as true frames of other "
    "speakers are.",
    f"Verdict: *explodes* where the squared error at the last step is more than {THRESHOLDS.far:g} times that of the training "
    f"mean, or where amplification is more than {100 * THRESHOLDS.main:g} % of the avoidable error; *merely uncertain* where less "
    f"than {100 * THRESHOLDS.excess:g} % of the error is avoidable; *collapses* where missing movement is more than "
    f"{100 * THRESHOLDS.main:g} % of that; else it drifts: *on-manifold* where samples lie at most {THRESHOLDS.near:g} times as "
    "far from training frames as true ones. Where an interval straddles a bar that decides, it is *undecided*.",
)


def anatomies(subjects: Mapping[str, Values], prefix: str = "r4") -> Section:
    """R4: the verdict, where the error comes from, and whether samples look like the data."""
    question = "Why does the rollout fall apart?"
    meaning = [text.replace("*", "") for text in MEANING]
    known = {
        item: (values, found) for item, values in subjects.items() if (found := decide(values, prefix)) is not None
    }
    if not known:
        return Section("anatomy", question, meaning, missing="Run `arlat diag battery … --only r4`.")
    pictures = [
        Picture(
            anatomy(item, values, found.word, prefix),
            f"anatomy of the rollout of {item}",
            f"{found.why} Dashed: the best known forecast, or what true frames of other speakers show.",
        )
        for item, (values, found) in known.items()
    ]
    rows = [[name("verdict"), *(Cell(found.word) for _, found in known.values())]]
    for key, text in WHOLE:
        full = f"{prefix}.{key}"
        if any(full in values for values, _ in known.values()):
            rows.append([name(text, full), *(cell(values.get(full)) for values, _ in known.values())])
    tables = [Table("Anatomy over all steps", ["", *known], rows)]
    tables += [step_table(item, values, prefix) for item, (values, _) in known.items()]
    return Section("anatomy", question, meaning, pictures, tables)


def step_table(item: str, values: Values, prefix: str) -> Table:
    """Figures per step, with floor and ceiling."""
    rows = [
        [name(text, f"{prefix}.{key}[s]"), *(cell(values.get(f"{prefix}.{key}[{s}]")) for s in STEPS)]
        for key, text in PER_STEP
        if f"{prefix}.{key}[1]" in values
    ]
    some = values.get(f"{prefix}.error.total[1]")
    notes = [f"Behind these figures: {behind(some)}."] if some is not None else []
    return Table(
        f"{item}: anatomy per step", ["", *(f"step {s}" for s in STEPS)], rows, notes, folder="Anatomy per step"
    )
