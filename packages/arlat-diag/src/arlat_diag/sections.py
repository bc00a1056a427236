"""What a report says, as data: one question per section, what its figures mean, and the figures. No markup here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from arlat_core.types import Value

from arlat_diag import figures, reference_values
from arlat_diag.figures import Look
from arlat_diag.reference_values import Reference
from arlat_diag.results import Representation, Results
from arlat_diag.series import horizons
from arlat_diag.tables import Cell, Table, behind, cell, count, name, number, plain

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Picture:
    """A plot: SVG bytes, the text for who cannot see it, and its caption."""

    svg: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Clip:
    """A FLAC file to listen to."""

    label: str
    flac: bytes


@dataclass(frozen=True)
class Section:
    """One question of the report. `missing` says how to get the answer where there is none."""

    id: str
    question: str
    meaning: list[str]
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: str = ""

    @property
    def folders(self) -> list[tuple[str, list[Table]]]:
        """The tables in order, neighbours of one folder together."""
        return [(title, list(tables)) for title, tables in groupby(self.tables, key=lambda table: table.folder)]


def has(results: Mapping[str, Values], prefix: str) -> dict[str, Values]:
    """The representations that have any figure under `prefix`."""
    return {item: values for item, values in results.items() if any(key.startswith(prefix) for key in values)}


def summary(results: Results, subjects: Mapping[str, Values]) -> Section:
    """The headline table, one row per representation."""
    head = [
        "representation",
        "information rate, bit/s",
        "ΔNLL_B5, nats",
        "… of the VAR",
        "cosine",
        "horizon, steps",
        "speakers / utterances / frames",
    ]
    rows = []
    for item, values in subjects.items():
        about = results.representations[item]
        spec = about.spec
        n = about.counts.get("eval")
        heard = f"{count(n.speakers)} / {count(n.utterances)} / {count(n.frames)}" if n else "–"
        rows.append(
            [
                name(item, f"{spec.dim} dimensions at {spec.frame_rate:g} Hz"),
                cell(values.get("p1.h1.information_rate")),
                cell(values.get("p1.h1.dnll_b5"), floor=True),
                cell(values.get("p1.h1.var_dnll_b5")),
                cell(values.get("p1.h1.cosine"), floor=True),
                cell(values.get("r1.horizon.info_curve") or values.get("r1.horizon.info")),
                Cell(heard),
            ]
        )
    return Section(
        "summary",
        "How predictable is each representation?",
        [
            "The information rate says how many bits per second the last frames tell about the next one. It does not change under "
            "an invertible linear map of the latents. It grows with the frame rate by itself, since a shorter step is easier to know: "
            "compare codecs that are stacked to one rate (stack:N|CODEC loses nothing). It grows, too, where latents repeat what they held, "
            "which is no news: leaky:A|CODEC is the control. ΔNLL_B5 is the same in nats per frame: negative is better, 0 means that "
            "the past tells nothing.",
            "The horizon is the first step at which the network's own rollout no longer knows more than the marginal does. Small "
            "print: 95 % intervals. A cosine means nothing without its floor.",
        ],
        tables=[Table("Headline figures on held-out speakers", head, rows)],
    )


def trap(subjects: Mapping[str, Values], look: Look) -> Section:
    """The report's first figure: B0 and B5 against the horizon."""
    question = "Does a longer horizon look easier than it is?"
    known = {item: values for item, values in has(subjects, "p1.h").items() if len(horizons(values)) > 0}
    meaning = [
        "Upper row: against B0, a Gaussian of the displacement that does not know the last frame. It tends to improve with the "
        "horizon, because at a long horizon the displacement is mostly −z, which anyone can see. Lower row: against B5, which knows "
        "where frames lie but nothing of the past. Where it reaches 0, nothing is predicted any more, however good the upper row looks.",
        "Only the lower row is predictability.",
    ]
    if not known:
        return Section("trap", question, meaning, missing="Run `arlat diag battery … --only p1`.")
    pictures = [
        Picture(
            figures.trap(dict(part), look),
            f"ΔNLL against B0 and B5 by horizon for {', '.join(item for item, _ in part)}",
            "Network (solid, band: 95 % interval) and linear VAR (dashed; its B5 is the Gaussian one).",
        )
        for part in groups(known, 5)
    ]
    return Section(
        "trap", question, meaning, pictures, notes=[*trap_sentences(known), f"Measured before: {reference_values.TRAP}"]
    )


def trap_sentences(known: Mapping[str, Values]) -> list[str]:
    """One sentence per representation on what happens from the first to the last horizon."""
    out = []
    for item, values in known.items():
        first, last = horizons(values)[0], horizons(values)[-1]
        told = []
        for model, prefix in (("network", ""), ("linear VAR", "var_")):
            four = [values.get(f"p1.h{h}.{prefix}{key}") for key in ("dnll_b0", "dnll_b5") for h in (first, last)]
            numbers = [v.value for v in four if v is not None and v.value is not None]
            if len(numbers) == 4:
                b0, b0_last, b5, b5_last = (number(x, 1) for x in (*numbers[:2], -numbers[2], -numbers[3]))
                told.append(f"{model}: ΔNLL_B0 {b0} → {b0_last}, information {b5} → {b5_last} nats")
        if told:
            out.append(f"{item}, horizon {first} → {last}. " + "; ".join(told) + ".")
    return out


def groups(items: Mapping[str, Values], size: int) -> list[list[tuple[str, Values]]]:
    """Splits representations into groups of nearly equal size, at most `size` each."""
    rows = list(items.items())
    parts = -(-len(rows) // size) if rows else 0
    return [rows[len(rows) * i // parts : len(rows) * (i + 1) // parts] for i in range(parts)]


LADDER = (
    ("dnll_b0", "B0 diagonal Gaussian of Δ"),
    ("dnll_b0f", "B0f uniform direction × LogNormal length"),
    ("dnll_b1", "B1 full Gaussian of Δ"),
    ("dnll_b2", "B2 unconditional mixture"),
    ("dnll_b3", "B3 mean reversion (linear, last frame)"),
    ("dnll_b4", "B4 linear VAR over the context"),
    ("dnll_b5", "B5 no dynamics (mixture of z)"),
    ("dnll_b5_gaussian", "B5 no dynamics (Gaussian of z)"),
    ("var_dnll_b0", "the VAR itself against B0"),
    ("var_dnll_b5", "the VAR itself against Gaussian B5"),
    ("nll", "NLL of the network"),
)
SHAPE = (
    ("cosine", "direction cosine"),
    ("var_cosine", "… of the linear VAR"),
    ("cosine_floor", "… of mean reversion (floor)"),
    ("cosine_null", "… of unrelated directions (spread 1/√D)"),
    ("logmag_r2", "log-magnitude R²"),
    ("magnitude_ratio", "predicted ÷ true length"),
    ("var_magnitude_ratio", "… of the linear VAR"),
    ("magnitude_ratio_median", "median of per-frame ratios"),
    ("information_rate", "information rate, bit/s"),
)
LAGS = (("dnll_b0", "ΔNLL_B0"), ("dnll_b1", "ΔNLL_B1"), ("dnll_b2", "ΔNLL_B2"), ("cosine", "direction cosine"))


def predictability(subjects: Mapping[str, Values], look: Look) -> Section:
    """P1: information rates, the ladder, cosine and length, the lag form with reference values."""
    question = "How much better than what is the prediction?"
    meaning = [
        "Every likelihood is a difference from a baseline, in nats per frame; negative is better. B0 to B2 know nothing of the last "
        "frame, B3 and B4 are linear, B5 knows only where frames lie. A network that does not beat B4 has found nothing but a linear "
        "model; one that does not beat B5 has found nothing.",
        "Floors in small print: what white noise scores against B0, −(D/2)·ln 2, and 0 against those that use the last frame. "
        "The floor of the cosine is that of mean reversion.",
    ]
    known = has(subjects, "p1.")
    if not known:
        return Section("predictability", question, meaning, missing="Run `arlat diag battery … --only p1`.")
    pictures = []
    if has(known, "p1.h1.information_rate"):
        pictures.append(
            Picture(
                figures.rates(known, look),
                "information rate of each representation",
                "Information rate at horizon 1; thin line: interval.",
            )
        )
    pictures += [
        Picture(
            figures.cosines(dict(part), look),
            f"direction cosine by horizon for {', '.join(item for item, _ in part)}",
            "Direction cosine beside the linear VAR, its floor and the spread of unrelated directions.",
        )
        for part in groups(has(known, "p1.h"), 5)
    ]
    tables = [
        table
        for i, (item, values) in enumerate(known.items())
        for table in ladder_tables(item, values, item if i > 0 else "")
    ]
    tables += [tails(known), slices(known)]
    tables.append(references("The lag form in earlier work", reference_values.PREDICTABILITY))
    return Section("predictability", question, meaning, pictures, [table for table in tables if table.rows])


def ladder_tables(item: str, values: Values, folder: str) -> list[Table]:
    """The ladder, cosine and length of one representation by horizon, and its lag form."""
    steps, lags = horizons(values), horizons(values, "lag")
    some = next(iter(values.values()))
    head = [*(f"h = {h}" for h in steps)]
    notes = [f"Behind these figures: {behind(values.get('p1.h1.dnll_b5') or some)}."]
    out = []
    for caption, keys in ((f"{item}: ΔNLL, nats per frame", LADDER), (f"{item}: direction and length", SHAPE)):
        rows = [
            [name(text), *(cell(values.get(f"p1.h{h}.{key}"), floor=True) for h in steps)]
            for key, text in keys
            if any(f"p1.h{h}.{key}" in values for h in steps)
        ]
        out.append(Table(caption, ["", *head], rows, notes, folder))
    lag_rows = [
        [name(text), *(cell(values.get(f"p1.lag{k}.{key}"), floor=True) for k in lags)]
        for key, text in LAGS
        if any(f"p1.lag{k}.{key}" in values for k in lags)
    ]
    if lag_rows:
        known = (
            Cell(number(reference_values.LAG_COSINE[k], 2) if k in reference_values.LAG_COSINE else "–") for k in lags
        )
        lag_rows.append([name(f"cosine, {reference_values.LABEL} (vMF)", "κ and σ were saturated"), *known])
        caption = f"{item}: lag form (one step, from frames k earlier; only B0–B2 make sense)"
        out.append(Table(caption, ["", *(f"lag {k}" for k in lags)], lag_rows, folder=folder))
    return out


def tails(known: Mapping[str, Values]) -> Table:
    """Mean beside median and trimmed mean, for heavy tails."""
    rows = []
    for item, values in known.items():
        for key, text in (("p1.h1.dnll_b5", "ΔNLL_B5"), ("p1.h1.dnll_b0", "ΔNLL_B0"), ("p1.h1.nll", "NLL")):
            value = values.get(key)
            if value is not None and (value.median is not None or value.trimmed_mean is not None):
                rows.append(
                    [name(item), Cell(text), cell(value), plain(value.median, value), plain(value.trimmed_mean, value)]
                )
    head = ["representation", "figure (h = 1)", "mean", "median", "1 %-trimmed mean"]
    return Table(
        "Heavy tails: do a few frames decide the mean?", head, rows, folder="Heavy tails, and frames with speech"
    )


def slices(known: Mapping[str, Values]) -> Table:
    """ΔNLL_B5 at horizon 1 on all, loud and medial frames."""
    rows = [
        [
            name(item),
            cell(values.get("p1.h1.dnll_b5")),
            cell(values.get("p1.slice.high_energy.h1.dnll_b5")),
            cell(values.get("p1.slice.medial.h1.dnll_b5")),
        ]
        for item, values in has(known, "p1.slice.").items()
    ]
    head = ["representation", "all frames", "high energy", "utterance-medial"]
    return Table("ΔNLL_B5 at horizon 1 where there is speech", head, rows, folder="Heavy tails, and frames with speech")


def references(caption: str, rows: Sequence[Reference]) -> Table:
    """Earlier work's values, labelled as such."""
    cells = [[name(row.what), Cell(row.value), Cell(row.caution, tone="muted")] for row in rows]
    return Table(
        f"{caption} ({reference_values.LABEL})",
        ["figure", "value", "how to read it"],
        cells,
        folder=f"{caption} ({reference_values.LABEL})",
    )


GEOMETRY = (
    ("p4.rho[1]", "ρ₁"),
    ("p4.effective_dim", "effective dimension"),
    ("p4.directions_90", "directions for 90 % of the variance"),
    ("p4.directions_99", "directions for 99 %"),
    ("p4.step_median", "median step ‖Δ‖"),
    ("p4.distance_median", "median distance of random frames"),
    ("p4.lipschitz.median", "expansion of near pairs (median)"),
    ("p4.lipschitz.q95", "expansion of near pairs (95 %)"),
    ("p4.curvature", "cosine of successive steps"),
)


def geometry(results: Results, subjects: Mapping[str, Values], look: Look) -> Section:
    """P4: memory, dimension, roughness."""
    question = "What shape do the trajectories have?"
    meaning = [
        "Autocorrelation says how long a frame is remembered; the spectrum says whether the latents move slowly (power at the left) "
        "or jump like white noise (flat at 1). Successive steps of white noise have the cosine −1/2: it turns back at once. Near "
        "pairs that expand as much as random ones (the floor) mean that the state does not decide what comes next.",
    ]
    known = has(subjects, "p4.")
    if not known:
        return Section("geometry", question, meaning, missing="Run `arlat diag battery … --only p4`.")
    abouts = {item: results.representations[item] for item in known}
    bins = {item: list(about.settings.get("p4", {}).get("spectrum_hz", [])) for item, about in abouts.items()}
    rates_hz = {item: about.spec.frame_rate for item, about in abouts.items()}
    picture = Picture(
        figures.geometry(known, look, rates_hz, bins),
        "autocorrelation against lag, and power spectrum of the latents",
        "Left: memory. Right: spectrum of the standardised latents. Bands: 95 % intervals.",
    )
    rows = [
        [name(text), *(cell(values.get(key), floor=True) for values in known.values())]
        for key, text in GEOMETRY
        if any(key in values for values in known.values())
    ]
    return Section("geometry", question, meaning, [picture], [Table("Geometry", ["", *known], rows)])


def description(about: Representation) -> str:
    """A representation's spec in words."""
    spec = about.spec
    causal = "causal" if spec.causal else "not causal"
    audio = f"audio at {count(spec.sample_rate)} Hz" if spec.sample_rate else "no audio"
    return f"{spec.codec}, {spec.space}, {spec.dim} dimensions at {spec.frame_rate:g} Hz, {audio}, {causal}"
