"""Values from earlier work (SPEC §2), shown beside what is measured and never used in a calculation."""

from __future__ import annotations

from dataclasses import dataclass

LABEL = "earlier work, Mimi 512-d"


@dataclass(frozen=True)
class Reference:
    """One published figure: what it is of, its value in words, and what must be known to read it."""

    what: str
    value: str
    caution: str = ""


LAG_COSINE = {1: 0.73, 2: 0.44, 4: 0.15, 8: 0.06}
"""Direction cosine of the vMF model by lag; its κ and σ were saturated."""

CLUSTERING = (
    Reference("variance ratio of clustered contexts", "0.99–1.00", "clusters told nothing"),
    Reference("the ratio that would have passed", "below 0.6"),
)

PREDICTABILITY = (
    Reference(
        "lag 1: ΔNLL_B0",
        "−185 nats/frame",
        "white noise alone gives −177 at D = 512 (−(D/2)·ln 2), because Δ holds −z",
    ),
    Reference("lag 1: direction cosine", "0.61", "white noise alone gives 0.707"),
    Reference("lag 1: log-magnitude R²", "below 0", "a constant does better"),
    Reference(
        "direction cosine, vMF, lag 1, 2, 4, 8", "0.73, 0.44, 0.15, 0.06", "from a head whose κ and σ were saturated"
    ),
    Reference("PCA-32 of Mimi, mode A: cosine, ΔNLL_B0", "0.71, −14 nats", "printed without its floor"),
    Reference("EnCodec 128-d at 75 Hz, mode A: cosine, ΔNLL_B0", "0.57, −80 nats", "printed without its floor"),
)

INJECTION = (
    Reference("mixture model, mode A / D at step 16: cosine", "0.61 / 0.07", "no ceiling was given"),
    Reference("the same: ΔNLL_B0", "−154 / +40 nats", "against B0, not B5"),
    Reference("the same: state error", "0 / 79"),
    Reference("EnCodec 128-d at 75 Hz: cosine, ΔNLL_B0, state error", "0.57 / 0.09, −80 / +0.6, 0 / 13.9"),
    Reference("PCA-32 of Mimi: cosine, ΔNLL_B0, state error", "0.71 / 0.10, −14 / +40, 0 / 48"),
    Reference(
        "modes B, C, D with a broken magnitude head", "state error ≈ 5e13 at step 2", "step length exp(μ + σ²/2)"
    ),
)

RECONSTRUCTION = (
    Reference("CALM VAE, 32-d at 12.5 Hz: PESQ / STOI", "2.42 / 0.90", "printed without floor, interval or band"),
    Reference("Mimi, 8 levels, 12.5 Hz: PESQ / STOI", "2.13 / 0.87", "likewise; measure it on your own recordings"),
)

TRAP = (
    "Lyra V2 latents of real speech (64-d at 50 Hz), linear VAR: from horizon 1 to 8, ΔNLL_B0 goes from −21.6 to −29.6 nats "
    "and the cosine from 0.63 to 0.65, while the information −ΔNLL_B5 falls from 6.2 to 0.5 nats."
)
