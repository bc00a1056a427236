"""The report's page on direction and magnitude apart."""

from __future__ import annotations

from collections.abc import Mapping

from arlat_diag.decomposition_figures import decomposition
from arlat_diag.sections import Picture, Section, Values, has
from arlat_diag.tables import Table, behind, cell, name

PARTS = (
    ("dnll_dir_uniform", "direction against uniform"),
    ("var_dnll_dir_uniform", "… of the linear VAR, with one κ"),
    ("dnll_dir_expected", "… that κ promises"),
    ("dnll_dir_marginal", "direction against the marginal vMF law"),
    ("dnll_mag_marginal", "length against the marginal LogNormal law"),
    ("dnll_b0f", "both against both marginals (B0f)"),
    ("dnll_b5", "both against no dynamics (B5)"),
    ("nll_dir", "NLL of the direction"),
    ("nll_mag", "NLL of the length"),
    ("jacobian", "(D − 1)·log m"),
    ("nll", "NLL, their sum"),
)
SHAPE = (
    ("cosine", "direction cosine"),
    ("var_cosine", "… of the linear VAR"),
    ("cosine_expected", "… that κ promises, mean A(κ)"),
    ("cosine_null", "… spread of unrelated directions, 1/√D"),
    ("kappa_q25", "κ, lower quartile"),
    ("kappa_median", "κ, median"),
    ("kappa_q75", "κ, upper quartile"),
    ("sigma_median", "σ of log length, median"),
    ("logmag_r2", "R² of the log length"),
    ("saturated_fraction", "parameters near their bounds"),
    ("still_fraction", "frames that do not move, left out"),
)
CALIBRATION = (
    ("kappa_error", "cosine: mean |found − promised| over bins of κ"),
    ("cosine.ks", "cosine: Kolmogorov–Smirnov distance of its law"),
    ("sigma_error", "log length: mean |variance ÷ σ² − 1| over bins of σ"),
    ("length.ks", "log length: Kolmogorov–Smirnov distance of its law"),
)


def decompositions(subjects: Mapping[str, Values]) -> Section:
    """P2: direction and length apart, and calibration."""
    question = "Which way, how far, and does the model know how sure it is?"
    meaning = [
        "The next step is split into a direction and a length, each with a law of its own: von Mises–Fisher with concentration κ, and "
        "LogNormal with spread σ. Their likelihoods and the factor (D − 1)·log m add up to one in the coordinates of all other "
        "figures. Against uniform directions even mean reversion scores: that floor stands in small print.",
        "κ promises a mean cosine A(κ). On the diagonal it keeps its word on average. Where the truth falls in the forecast too often "
        "at both ends, cosines vary more than any von Mises–Fisher law allows: errors lie in few dimensions, and a law that is "
        "round in all of them loses likelihood for it.",
    ]
    known = has(subjects, "p2.")
    if not known:
        return Section("decomposition", question, meaning, missing="Run `arlat diag battery … --only p2`.")
    pictures = [
        Picture(
            decomposition(item, values),
            f"direction and length of {item} apart, and their calibration",
            "Negative is better; thin lines and bands: intervals.",
        )
        for item, values in known.items()
    ]
    tables = [
        Table(
            caption,
            ["", *known],
            [
                [name(text, f"{prefix}.{key}"), *(cell(v.get(f"{prefix}.{key}"), floor=True) for v in known.values())]
                for key, text in keys
            ],
        )
        for caption, prefix, keys in (
            ("Direction and length, nats per frame", "p2", PARTS),
            ("Cosine, concentration and spread", "p2", SHAPE),
            ("Calibration: 0 is perfect", "p2.calibration", CALIBRATION),
        )
    ]
    tables[0].notes.extend(
        f"{item}: {behind(some)}." for item, values in known.items() if (some := values.get("p2.nll")) is not None
    )
    return Section("decomposition", question, meaning, pictures, tables)
