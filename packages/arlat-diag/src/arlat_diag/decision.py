"""Q2: SPEC §13 as data, and what it says of results. `decide` is pure: results × rules → decision.

A rule that cannot be applied says why: undecided (an interval straddles a bar) or not run (and the command that is missing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from arlat_core.config import Config

from arlat_diag.casting import cast
from arlat_diag.conditions import (
    All,
    Any,
    Clearer,
    Compare,
    Condition,
    Figure,
    ForEach,
    ForSome,
    Given,
    HeadStartsWith,
    Not,
    Ratio,
    Scene,
    Seconds,
    Term,
)
from arlat_diag.results import Results
from arlat_diag.verdicts import Verdict

RATE = "p1.h1.information_rate"
INFO, MANIFOLD = "r1.horizon.info", "r1.horizon.manifold"
CURVE = "r1.horizon.info_curve"
"""Where the mean information of all starts ends: horizons of single starts are those of their noise where there is little."""
TEACHER_FORCED = {1: "p1.h1.cosine", 2: "p1.lag2.cosine", 4: "p1.lag4.cosine", 8: "p1.lag8.cosine"}
"""By lag: predicting the next step from the newest frame is lag 1 and horizon 1 at once."""


@dataclass(frozen=True)
class Rule:
    """If `condition` holds, `conclusion`. For each of `group`, called "it"; `beside` is shown and decides nothing."""

    name: str
    stage: int
    condition: Condition
    conclusion: str
    group: str = ""
    beside: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Story:
    """What the evidence tells as a whole."""

    name: str
    condition: Condition


class Outcome(Config):
    """A rule and what the results say of it; `conclusion` is drawn only where the verdict holds."""

    name: str
    stage: int
    subject: str
    conclusion: str
    verdict: Verdict
    beside: tuple[Verdict, ...] = ()

    @property
    def drawn(self) -> str:
        """The conclusion where it may be drawn."""
        return self.conclusion if self.verdict.state == "holds" else ""


class Told(Config):
    """A story and what the results say of it."""

    name: str
    verdict: Verdict


class Decision(Config):
    """All rules and stories with their verdicts; `story` is the one that holds, "not told yet" where none does."""

    baseline: str
    outcomes: tuple[Outcome, ...]
    stories: tuple[Told, ...]
    story: str
    attainable_story: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def more_rate(first: str, second: str, factor: float) -> Compare:
    """More than `factor` times the information rate."""
    return Compare(Ratio(Figure(first, RATE), Figure(second, RATE)), ">", factor)


def longer(first: str, second: str, key: str) -> Clearer:
    """A horizon whose interval, in seconds, lies wholly beyond the other's."""
    return Clearer(Seconds(first, key), Seconds(second, key))


def rule_one(word: str) -> Given:
    """Stage 1's first rule on a representation."""
    return Given(
        HeadStartsWith(word, "vmf"),
        All(
            "a vMF model trained on 16-step rollouts keeps its direction and its length",
            (
                Compare(Figure(word, "r2.k16.D.cosine[16]"), ">", 0.6),
                Compare(Figure(word, "r2.k16.D.magnitude_ratio[16]"), ">", 0.1),
            ),
        ),
    )


def attainable(word: str) -> Given:
    """The attainable form of rule 1: as good as one can be who has not seen the frames between."""
    kept = tuple(
        Compare(Ratio(Figure(word, f"r2.k16.D.cosine[{lag}]"), Figure(word, key)), "≥", 0.9)
        for lag, key in TEACHER_FORCED.items()
    )
    real = Compare(Ratio(Figure(word, "r4.k16.frechet[16]"), Figure(word, "r4.frechet_halves")), "≤", 1.2)
    text = "attainable form: 0.9 × the teacher-forced cosine, 1.2 × the Fréchet distance of real halves"
    return Given(HeadStartsWith(word, "vmf"), All(text, (*kept, real)))


def mimi_ratio(key: str, relation: str, bar: float) -> Compare:
    """A figure of "it" over that of Mimi decoded from 8 levels."""
    return Compare(Ratio(Figure("it", key), Figure("8-level Mimi", key)), relation, bar)


WORKS = rule_one("baseline")
BETTER = Any(
    "more than twice the information rate, or a clearly longer horizon",
    (more_rate("it", "baseline", 2), longer("it", "baseline", CURVE)),
)
BETTER_CODEC = ForSome("it", "codecs", BETTER)
BETTER_AT_ITS_RATE = ForSome("it", "codecs at the baseline's frame rate", BETTER)
READOUT_HELPS = ForSome(
    "it",
    "readouts",
    Any("rule 1 holds on the readout, or a clearly longer horizon", (rule_one("it"), longer("it", "baseline", CURVE))),
)
LEARNED = All(
    "twice Mimi's information rate, horizons above 10 steps, and 8-level Mimi's sound",
    (
        more_rate("it", "reference", 2),
        Compare(Figure("it", INFO), ">", 10),
        Compare(Figure("it", MANIFOLD), ">", 10),
        mimi_ratio("l2.pesq_wb", "≥", 0.9),
        mimi_ratio("l2.stoi", "≥", 0.9),
        mimi_ratio("l2.mel_distance", "≤", 1.1),
    ),
)
PREDICTS_MORE = ForEach("plain", "β-VAEs", more_rate("it", "plain", 1))
STABLER = ForEach(
    "plain",
    "β-VAEs",
    Any("a clearly longer horizon", (longer("it", "plain", CURVE), longer("it", "plain", MANIFOLD))),
)


def sounds_worse(key: str, relation: str, bar: float) -> Compare:
    """A figure of "it" over that of a β-VAE."""
    return Compare(Ratio(Figure("it", key), Figure("plain", key)), relation, bar)


LOSES_SOUND = ForSome(
    "plain",
    "β-VAEs",
    Any(
        "reconstruction is worse than the β-VAE's",
        (
            sounds_worse("l2.pesq_wb", "<", 0.9),
            sounds_worse("l2.stoi", "<", 0.9),
            sounds_worse("l2.mel_distance", ">", 1.1),
        ),
    ),
)


def audible(metric: str) -> Clearer:
    """Reduced magnitude sounds clearly better than frozen."""
    first: Term = Figure("baseline", f"l1.reduced.{metric}")
    return Clearer(first, Figure("baseline", f"l1.frozen.{metric}"))


RULES: Final = (
    Rule(
        "K-step training keeps a vMF rollout on course",
        1,
        WORKS,
        "Dynamics-side factorisation works: go on with directions, archetypes, listening.",
        beside=(attainable("baseline"),),
    ),
    Rule(
        "That fails, and another codec is better",
        1,
        All("rule 1 fails, and another codec is better", (Not(WORKS), BETTER_CODEC)),
        "The gap belongs to this codec: change the representation.",
        beside=(BETTER_AT_ITS_RATE,),
    ),
    Rule(
        "That fails, codecs are alike, and a linear readout helps",
        1,
        All("rule 1 fails, no codec is better, a readout helps", (Not(WORKS), Not(BETTER_CODEC), READOUT_HELPS)),
        "Dimensionality is the matter: train a low-dimensional VAE.",
    ),
    Rule(
        "That fails, codecs are alike, and no readout helps",
        1,
        All("rule 1 fails, no codec is better, no readout helps", (Not(WORKS), Not(BETTER_CODEC), Not(READOUT_HELPS))),
        "It may be fundamental at this frame rate: frame-rate study, score correction, or a negative result.",
    ),
    Rule(
        "Reduced-magnitude audio is clearly better than frozen audio",
        1,
        audible("mos"),
        "Direction matters more than magnitude to the ear, whatever the NLL says.",
    ),
    Rule(
        "An AR-loss VAE is predictable, stable, and sounds as good",
        2,
        LEARNED,
        "AR-friendly representations can be learned.",
        group="AR-loss VAEs",
        beside=(Compare(Figure("it", CURVE), ">", 10),),
    ),
    Rule(
        "It helps predictability, not stability",
        2,
        All("predicts more than every β-VAE, no longer horizon", (PREDICTS_MORE, Not(STABLER))),
        "Combine with rollout training.",
        group="AR-loss VAEs",
    ),
    Rule(
        "It loses reconstruction without gaining stability",
        2,
        All("sounds worse than a β-VAE, no longer horizon", (LOSES_SOUND, Not(STABLER))),
        "The tension is the finding.",
        group="AR-loss VAEs",
    ),
    Rule(
        "It is no better than a β-VAE alone",
        2,
        All("neither more predictable nor stabler than every β-VAE", (Not(PREDICTS_MORE), Not(STABLER))),
        "KL and low dimension are the whole story.",
        group="AR-loss VAEs",
    ),
)
LEVER = Any(
    "another representation is better",
    (BETTER_CODEC, READOUT_HELPS, ForSome("it", "AR-loss VAEs", LEARNED)),
)


def stories(works: Condition) -> tuple[Story, ...]:
    """The four stories: whether training the dynamics is enough × whether another representation is better."""
    either = (
        ("representation is the lever", (Not(works), LEVER)),
        ("factorised directions are enough", (works, Not(LEVER))),
        ("a mixture of both", (works, LEVER)),
        ("an informative negative", (Not(works), Not(LEVER))),
    )
    return tuple(Story(name, All(name, parts)) for name, parts in either)


STORIES: Final = stories(WORKS)
ATTAINABLE_STORIES: Final = stories(attainable("baseline"))
NOT_TOLD: Final = "not told yet"


def apply(rule: Rule, scene: Scene) -> list[Outcome]:
    """A rule's outcome, one for each of its group; one that was not run where the group is empty."""
    if rule.group and not scene.groups.get(rule.group):
        nobody = ForSome("it", rule.group, rule.condition).judge(scene)
        return [Outcome(name=rule.name, stage=rule.stage, subject="", conclusion=rule.conclusion, verdict=nobody)]
    scenes = {name: scene.with_word("it", name) for name in scene.groups.get(rule.group, ())} or {
        scene.words.get("baseline", ""): scene
    }
    return [
        Outcome(
            name=rule.name,
            stage=rule.stage,
            subject=name,
            conclusion=rule.conclusion,
            verdict=rule.condition.judge(own),
            beside=tuple(part.judge(own) for part in rule.beside),
        )
        for name, own in scenes.items()
    ]


def told(among: Sequence[Story], scene: Scene) -> tuple[tuple[Told, ...], str]:
    """The verdict of each story, and the name of the one that holds."""
    found = tuple(Told(name=story.name, verdict=story.condition.judge(scene)) for story in among)
    return found, next((story.name for story in found if story.verdict.state == "holds"), NOT_TOLD)


def decide(results: Results, baseline: str = "", rules: Sequence[Rule] = RULES) -> Decision:
    """Applies the rules to results; `baseline` names the representation in question (default: see `choose_baseline`).

    Raises UserError where `baseline` is not among the representations.
    """
    scene, notes = cast(results, baseline)
    found, story = told(STORIES, scene)
    _, by_attainable = told(ATTAINABLE_STORIES, scene)
    outcomes = tuple(outcome for rule in rules for outcome in apply(rule, scene))
    missing = dict.fromkeys(command for outcome in outcomes for command in outcome.verdict.commands())
    return Decision(
        baseline=scene.words.get("baseline", ""),
        outcomes=outcomes,
        stories=found,
        story=story,
        attainable_story=by_attainable,
        missing=tuple(missing),
        notes=tuple(notes),
    )
