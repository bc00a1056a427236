"""Q3: the hypotheses of SPEC §14, their priors beside the evidence, scored where decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from arlat_core.config import Config

from arlat_diag.casting import cast
from arlat_diag.conditions import All, Any, Clearer, Compare, Condition, Figure, ForEach, ForSome, FrameRate, Ratio
from arlat_diag.decision import CURVE, MANIFOLD, RATE, STORIES, WORKS, longer, more_rate
from arlat_diag.results import Results
from arlat_diag.verdicts import State, Verdict

KNOWING_NOTHING: Final = 0.25
"""The Brier score of always saying 0.5."""
Truth = Literal["true", "false", "undecided", "not run"]
TRUTH: Final[dict[State, Truth]] = {"holds": "true", "fails": "false", "undecided": "undecided", "not run": "not run"}


@dataclass(frozen=True)
class Hypothesis:
    """A claim, the probability that it was given beforehand, and what makes it true."""

    name: str
    prior: float | None
    evidence: Condition


class Entry(Config):
    """A hypothesis with its evidence; `brier` is (prior − outcome)² where both are known."""

    name: str
    prior: float | None
    state: Truth
    brier: float | None
    verdict: Verdict


class Ledger(Config):
    """All hypotheses; `mean_brier` over the `decided` ones that had a prior. Always saying 0.5 scores `knowing_nothing`."""

    entries: tuple[Entry, ...]
    decided: int
    mean_brier: float | None
    knowing_nothing: float = KNOWING_NOTHING


def better_than(first: str, second: str, factor: float) -> Any:
    """More than `factor` times the information rate, or a clearly longer horizon."""
    return Any("information rate or horizon", (more_rate(first, second, factor), longer(first, second, CURVE)))


TWICE = more_rate("it", "baseline", 2)
HYPOTHESES: Final = (
    Hypothesis("vMF keeps direction under rollout", 0.50, WORKS),
    Hypothesis(
        "a representation change brings > 2×",
        0.60,
        Any(
            "twice the information rate",
            tuple(ForSome("it", group, TWICE) for group in ("codecs", "β-VAEs", "AR-loss VAEs")),
        ),
    ),
    Hypothesis(
        "β-VAE alone improves much over Mimi",
        0.55,
        ForSome("it", "β-VAEs", better_than("it", "reference", 2)),
    ),
    Hypothesis(
        "explicit AR losses help beyond it",
        0.35,
        ForSome("it", "AR-loss VAEs", ForEach("plain", "β-VAEs", better_than("it", "plain", 1))),
    ),
    Hypothesis(
        "score correction improves stability",
        0.35,
        Any(
            "a clearly longer horizon with correction",
            tuple(
                Clearer(Figure("baseline", key.replace("r1.", "s3.")), Figure("baseline", key))
                for key in (CURVE, MANIFOLD)
            ),
        ),
    ),
    Hypothesis(
        "linear readout rivals a nonlinear z_dyn",
        0.45,
        ForSome(
            "it",
            "readouts",
            ForEach(
                "other",
                "nonlinear dynamics latents",
                Compare(Ratio(Figure("it", RATE), Figure("other", RATE)), "≥", 0.9),
            ),
        ),
    ),
    Hypothesis("memory-as-basis helps", 0.20, Compare(Figure("baseline", "y6.basis.dnll"), "<", 0)),
    Hypothesis(
        "the problem is fundamental at 12.5 Hz",
        None,
        All(
            "an informative negative at 12.5 Hz",
            (
                Compare(FrameRate("baseline"), "≤", 12.5),
                Compare(FrameRate("baseline"), "≥", 12.5),
                STORIES[3].condition,
            ),
        ),
    ),
)


def keep(results: Results, baseline: str = "") -> Ledger:
    """Holds the hypotheses against results: pure, as `decide`."""
    scene, _ = cast(results, baseline)
    entries = []
    for hypothesis in HYPOTHESES:
        verdict = hypothesis.evidence.judge(scene)
        entries.append(
            Entry(
                name=hypothesis.name,
                prior=hypothesis.prior,
                state=TRUTH[verdict.state],
                brier=brier(hypothesis.prior, verdict.state),
                verdict=verdict,
            )
        )
    scores = [entry.brier for entry in entries if entry.brier is not None]
    return Ledger(entries=tuple(entries), decided=len(scores), mean_brier=sum(scores) / len(scores) if scores else None)


def brier(prior: float | None, state: State) -> float | None:
    """(prior − outcome)², None where the prior or the outcome is not known.

    >>> brier(0.5, "holds"), brier(0.2, "undecided")
    (0.25, None)
    """
    outcomes: dict[State, float] = {"holds": 1.0, "fails": 0.0}
    return (prior - outcomes[state]) ** 2 if prior is not None and state in outcomes else None
