"""The report's pages on rollouts: injection curves, horizons, recovery, and what they sound like."""

from __future__ import annotations

from collections.abc import Mapping

from arlat_diag import figures, reference_values
from arlat_diag.sections import Clip, Picture, Section, Values, has, references
from arlat_diag.tables import Cell, Table, behind, cell, name, number

STEPS = (1, 2, 4, 8, 16)
HORIZONS = (
    ("info_curve", "knows no more than the marginal (curve)"),
    ("info", "… per start, median"),
    ("dir", "direction is chance (curve)"),
    ("decor", "as far off as a random frame"),
    ("manifold", "sample rollout leaves the data"),
    ("manifold_truth", "… the same test on true frames"),
    ("seed", "error > 100 × median step"),
)


SOURCES = {
    **{f"r1.{mode}": mode for mode in figures.MODES},
    "r1.var.D": "VAR, D",
    "r3.analog": "analog",
    "r3.persistence": "persistence",
    "r3.climatology": "climatology",
}
NAMES = {
    "cosine": "cosine",
    "magnitude_ratio": "length ratio",
    "state_error": "state error",
    "dnll_b0": "ΔNLL_B0",
    "dnll_b5": "ΔNLL_B5",
}


def rollouts(subjects: Mapping[str, Values]) -> Section:
    """R1: curves of the injection modes, horizons, recovery gain."""
    question = "What happens when the model is fed its own output, and what does one true frame mend?"
    meaning = [
        "The model predicts 16 steps. The truth is put back after every step (A), after steps 4, 8 and 12 (B), after step 1 (C) or "
        "never (D); S draws each step instead of taking the most likely one; E sees true frames with noise as large as D's error: "
        "where D does worse than E, the structure of its error matters, not its size alone. A mean rollout decays by nature: what counts is its "
        "distance from the dashed line, the linear VAR rolled out alike, which for a linear process is the best possible.",
        "Grey lines in the state error: persistence says that nothing moves, the analog says what followed the ten training contexts "
        "that are most alike. A rollout that is worse than both knows nothing worth having.",
        "The recovery gain is 1 where one true frame mends all that the free rollout had lost by step 5, and 0 where it mends nothing.",
    ]
    known = has(subjects, "r1.")
    if not known:
        return Section("rollouts", question, meaning, missing="Run `arlat diag battery … --only r1`.")
    pictures = [
        Picture(
            figures.rollout(item, values),
            f"rollout curves of {item}",
            "Bands: 95 % intervals; grey: directions that have nothing to do with each other.",
        )
        for item, values in has(known, "r1.D.").items()
    ]
    rows = [
        [name(text, f"r1.horizon.{key}"), *(horizon_cell(values, key) for values in known.values())]
        for key, text in HORIZONS
        if any(f"r1.horizon.{key}" in values for values in known.values())
    ]
    for key, text in (("r1.recovery_gain", "recovery gain, cosine"), ("r1.recovery_gain.nll", "recovery gain, NLL")):
        if any(key in values for values in known.values()):
            rows.append([name(text, key), *(cell(values.get(key)) for values in known.values())])
    tables = [
        Table(
            "Horizons (first step that is lost; small print: interval, quartiles of starts) and recovery",
            ["", *known],
            rows,
        )
    ]
    tables += [step_table(item, values) for item, values in known.items()]
    tables.append(references("Injection in earlier work", reference_values.INJECTION))
    return Section("rollouts", question, meaning, pictures, [table for table in tables if table.rows])


def trained(subjects: Mapping[str, Values]) -> Section:
    """R2: rollouts of models that were trained on their own rollouts, beside the one-step predictor's."""
    question = "Does training on its own rollouts keep a model on course?"
    meaning = [
        "A model of its own is trained on rollouts of K steps and then rolled out K steps from held-out starts: under true windows "
        "(A), freely (D) and sampled (S), beside the one-step predictor's free rollout (dash-dotted). A mean rollout that gets more "
        "likely by hardly moving has collapsed: its step length falls below the dashed line, which is what a perfect linear model does.",
        "Whether sampled rollouts stay among real latents says more than the likelihood of the mean rollout.",
    ]
    known = has(subjects, "r2.")
    if not known:
        return Section("trained", question, meaning, missing="Run `arlat diag battery … --only r2`.")
    pictures, tables = [], []
    for item, values in known.items():
        for prefix in sorted({".".join(key.split(".")[:2]) for key in values if key.startswith("r2.k")}):
            steps = prefix.removeprefix("r2.k")
            if f"{prefix}.D.cosine[2]" in values:
                picture = figures.rollout(f"{item}, trained on {steps} steps", values, prefix)
                pictures.append(
                    Picture(picture, f"rollouts of {item} trained on {steps} steps", "Bands: 95 % intervals.")
                )
            tables.append(trained_table(item, values, prefix))
            shown = {f"{prefix}.{mode}": f"{mode}, K = {steps}" for mode in "ADS"} | {
                f"{prefix}.var.D": "VAR, D",
                "r1.D": "D, P1",
            }
            tables.append(step_table(f"{item}, K = {steps}", values, shown))
    return Section("trained", question, meaning, pictures, [table for table in tables if table.rows])


def trained_table(item: str, values: Values, prefix: str) -> Table:
    """Horizons of a model trained on rollouts beside those of the one-step predictor."""
    rows = [
        [name(text, f"{prefix}.horizon.{key}"), horizon_cell(values, key, prefix), horizon_cell(values, key)]
        for key, text in HORIZONS
        if f"{prefix}.horizon.{key}" in values
    ]
    if f"{prefix}.saturated_fraction" in values:
        rows.append(
            [
                name("saturated parameters", f"{prefix}.saturated_fraction"),
                cell(values[f"{prefix}.saturated_fraction"]),
                Cell("–"),
            ]
        )
    steps = prefix.removeprefix("r2.k")
    return Table(
        f"{item}: horizons (first step that is lost)", ["", f"trained on {steps} steps", "P1's predictor"], rows
    )


def horizon_cell(values: Values, key: str, prefix: str = "r1") -> Cell:
    """A horizon with its interval and, where it is one per start, its quartiles."""
    found = cell(values.get(f"{prefix}.horizon.{key}"))
    quartiles = [values.get(f"{prefix}.horizon.{key}.{end}") for end in ("q25", "q75")]
    if any(v is None for v in quartiles):
        return found
    ends = "–".join(v.status if v.value is None else number(v.value, 0) for v in quartiles if v is not None)
    return Cell(found.text, found.small, f"quartiles {ends}", found.title, found.tone)


def step_table(item: str, values: Values, sources: Mapping[str, str] = SOURCES) -> Table:
    """Figures under the keys of `sources` at some steps, with floor and ceiling."""
    rows = []
    for key, text in NAMES.items():
        for source, shown in sources.items():
            if f"{source}.{key}[1]" in values:
                rows.append([name(f"{text}, {shown}"), *(cell(values.get(f"{source}.{key}[{s}]")) for s in STEPS)])
    some = next((values[key] for source in sources if (key := f"{source}.cosine[1]") in values), None)
    notes = [f"Behind these figures: {behind(some)}."] if some is not None else []
    return Table(f"{item}: per step", ["", *(f"step {s}" for s in STEPS)], rows, notes, folder="Figures per step")


def listening(clips: list[Clip], notes: list[str]) -> Section:
    """Audio examples that came with the results."""
    missing = "" if clips else "No audio came with these results. `arlat demo` writes some."
    meaning = [
        "Held-out speech: a true beginning, and then true latents, one-step predictions from true latents, the mean rollout or a "
        "sampled one. All are decoded from latents, so that the codec alone makes no difference between them."
    ]
    return Section("listening", "What does it sound like?", meaning, clips=clips, notes=notes, missing=missing)
