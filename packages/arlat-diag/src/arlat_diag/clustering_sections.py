"""The report's page on clusters of contexts, beside earlier work's figure and P1 on the same frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

from arlat_core.types import Value

from arlat_diag import reference_values
from arlat_diag.results import Results
from arlat_diag.sections import Section, Values, has, references
from arlat_diag.tables import Table, behind, cell, decimals, name, number

RATIOS = (
    ("variance_ratio", "clusters of contexts"),
    ("permuted", "… ids permuted (control: 1.00 ± 0.01)"),
    ("mean_reversion", "clusters of the newest frame"),
    ("linear_variance_ratio", "linear, newest frame"),
    ("cross_speaker_loss", "lost on new speakers"),
)


def clustering(results: Results, subjects: Mapping[str, Values]) -> Section:
    """P0: variance ratios by lag, the control beside them, and what P1 finds on the same frames."""
    question = "Do clusters of contexts tell the next step?"
    meaning = [
        "Contexts are put into clusters by k-means, and each frame's step is guessed by the mean step of its cluster. The variance "
        "ratio is the squared error that remains: 1 means that clusters tell nothing, and below 0.6 passes. Steps are one frame "
        "long, and the newest frames, as many as the lag less one, are hidden.",
        "At lag 1 a latent that turns back to its mean scores below 1 for that alone: clusters of the newest frame and the linear "
        "regression show how far it goes, and white noise can reach 0.5 by it.",
    ]
    known = has(subjects, "p0.")
    if not known:
        return Section("clustering", question, meaning, missing="Run `arlat diag battery … --only p0`.")
    rows = [
        [name(f"{item}, lag {lag}"), *(cell(values.get(f"p0.lag{lag}.{key}")) for key, _ in RATIOS)]
        for item, values in known.items()
        for lag in lags(values)
    ]
    some = next(value for values in known.values() for key, value in values.items() if key.startswith("p0."))
    table = Table(
        "Squared error that remains, of the whole, on held-out speakers",
        ["", *(text for _, text in RATIOS)],
        rows,
        [f"Behind these figures: {behind(some)}."],
    )
    notes = [
        sentence
        for item, values in known.items()
        for lag in lags(values)
        if (sentence := reconciled(item, values, lag, results.representations[item].spec.dim))
    ]
    earlier = references("Clusters of contexts in earlier work", reference_values.CLUSTERING)
    return Section("clustering", question, meaning, tables=[table, earlier], notes=notes)


def lags(values: Values) -> list[int]:
    """The lags that P0 was run at."""
    return sorted({int(key.split(".")[1][3:]) for key in values if key.startswith("p0.lag")})


def reconciled(item: str, values: Values, lag: int, dim: int) -> str:
    """One sentence that holds the variance ratio against P1's network on the same frames; "" where either is missing.

    A Gaussian step whose variance falls to the share r in each of D dimensions is worth (D/2)·ln r nats of ΔNLL.
    """
    key = "p1.h1.dnll_b2" if lag == 1 else f"p1.lag{lag}.dnll_b2"  # horizon 1 and lag 1 are the same windows
    ratio, network = values.get(f"p0.lag{lag}.variance_ratio"), values.get(key)
    if ratio is None or network is None or not ratio.value or ratio.value <= 0 or network.value is None:
        return ""
    worth = number(dim / 2 * math.log(ratio.value), 1)
    nats = number(network.value, decimals(network.value, network.low, network.high))
    found = (ratio.high is not None and ratio.high < 1, network.high is not None and network.high < 0)
    verdict = {
        (True, True): "Both find something.",
        (False, True): "The network finds what clusters do not: their silence does not mean that there is nothing.",
        (True, False): "Clusters find what the network does not: look for a fit that failed.",
        (False, False): "Neither finds anything.",
    }[found]
    return (
        f"{item}, lag {lag}, the same frames: a ratio of {rounded(ratio)} is worth {worth} nats per frame to Gaussian steps, and "
        f"P1's network has ΔNLL_B2 {nats}. {verdict}"
    )


def rounded(value: Value) -> str:
    """A figure in text, rounded by its interval."""
    return "–" if value.value is None else number(value.value, decimals(value.value, value.low, value.high))
