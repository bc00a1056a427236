"""Conditions as data: terms that read figures, comparisons of them, and what joins comparisons.

A condition speaks of representations by a word ("it", "baseline"); `Scene` says which representation each word and each
group ("codecs", "readouts") stands for. `judge` gives a `Verdict`; no condition looks at anything but the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from arlat_diag.results import Results
from arlat_diag.verdicts import OPPOSITE, Estimate, Verdict, against, clearly_above, estimate, every, some
from arlat_diag.verdicts import ratio as ratio_of

LISTEN = "arlat diag listen"
BATTERY = "arlat diag battery data.latents_dir=STORE --out RUN --only {}"
L2 = "arlat diag battery data.latents_dir=STORE data.audio_dir=DIR --out RUN --only l2"
COMMANDS = {
    **{name: BATTERY.format(name) for name in ("p0", "p1", "p2", "p4", "r1", "r2", "r3", "r4")},
    "l2": L2,
    "l1": LISTEN,
}
"""What makes the figures of each family of keys."""


@dataclass(frozen=True)
class Scene:
    """Results with words for representations: one each in `words`, several each in `groups`."""

    results: Results
    words: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_word(self, word: str, name: str) -> Scene:
        """The same scene with one more word."""
        return replace(self, words={**self.words, word: name})


class Term(Protocol):
    """Something that has an estimate."""

    def estimate(self, scene: Scene) -> Estimate: ...


class Condition(Protocol):
    """Something that holds, fails, is undecided or was not run."""

    def judge(self, scene: Scene) -> Verdict: ...


@dataclass(frozen=True)
class Figure:
    """The figure `key` of the representation that `word` stands for."""

    word: str
    key: str

    def estimate(self, scene: Scene) -> Estimate:
        """The figure with its interval; missing where the word stands for nothing, or the figure is not there."""
        name = scene.words.get(self.word)
        if name is None:
            return Estimate(name=self.key, missing=f"no representation is the {self.word}", command=WANTED[self.word])
        made_by = COMMANDS.get(self.key.split(".")[0], "")
        why = f"{made_by}, for {name}" if made_by else f"a run that measures {self.key}, for {name}"
        return estimate(f"{self.key} of {name}", scene.results.results[name].get(self.key), why)


@dataclass(frozen=True)
class FrameRate:
    """Frames per second of a representation, exactly."""

    word: str

    def estimate(self, scene: Scene) -> Estimate:
        """The frame rate in Hz, without uncertainty."""
        name = scene.words.get(self.word)
        if name is None:
            return Estimate(
                name="frame rate", missing=f"no representation is the {self.word}", command=WANTED[self.word]
            )
        rate = scene.results.representations[name].spec.frame_rate
        return Estimate(f"frame rate of {name}", rate, (rate, rate), (rate, rate), f"{rate:g} Hz")


@dataclass(frozen=True)
class Seconds:
    """A horizon in seconds: steps at 75 Hz and at 12.5 Hz are not the same.

    What is lost at step s of f per second was lost after (s − 1)/f and by s/f: the interval has both ends, so that a slow
    frame rate alone makes no horizon longer.
    """

    word: str
    key: str

    def estimate(self, scene: Scene) -> Estimate:
        """The figure divided by the representation's frame rate."""
        found = Figure(self.word, self.key).estimate(scene)
        rate = FrameRate(self.word).estimate(scene).value
        return found if rate is None or found.missing else found.in_seconds(rate)


@dataclass(frozen=True)
class Ratio:
    """The quotient of two figures."""

    first: Term
    second: Term

    def estimate(self, scene: Scene) -> Estimate:
        """The quotient with the interval of `verdicts.ratio`."""
        return ratio_of(self.first.estimate(scene), self.second.estimate(scene))


@dataclass(frozen=True)
class Compare:
    """A term against a number."""

    term: Term
    relation: str
    bar: float

    def judge(self, scene: Scene) -> Verdict:
        """Holds or fails where the whole interval lies on one side."""
        return against(self.term.estimate(scene), self.relation, self.bar)


@dataclass(frozen=True)
class Clearer:
    """The interval of one term lies wholly above the other's."""

    first: Term
    second: Term

    def judge(self, scene: Scene) -> Verdict:
        """Holds where the intervals are apart in this direction, fails where they are not."""
        return clearly_above(self.first.estimate(scene), self.second.estimate(scene))


@dataclass(frozen=True)
class HeadStartsWith:
    """The step distribution that R2 trained is of a family; R2's own default is one of "vmf"."""

    word: str
    family: str

    def judge(self, scene: Scene) -> Verdict:
        """Holds, or says that no model of the family was run."""
        name = scene.words.get(self.word)
        text = f"the trained model's head is of the family {self.family}"
        if name is None:
            return Verdict(text=text, state="not run", command=WANTED[self.word])
        head = str(scene.results.representations[name].settings.get("r2", {}).get("head", self.family))
        if head.startswith(self.family):
            return Verdict(text=text, state="holds", evidence=f"{name}: {head}")
        return Verdict(
            text=text, state="not run", evidence=f"{name}: {head}", command=f"{COMMANDS['r2']} with its default head"
        )


@dataclass(frozen=True)
class All:
    """Every condition holds."""

    text: str
    parts: tuple[Condition, ...]

    def judge(self, scene: Scene) -> Verdict:
        """Kleene's "and"."""
        parts = tuple(part.judge(scene) for part in self.parts)
        return Verdict(text=self.text, state=every(part.state for part in parts), parts=parts)


@dataclass(frozen=True)
class Given:
    """A condition that speaks only of what `guard` admits: elsewhere it was not run, whatever the figures say."""

    guard: Condition
    part: Condition

    def judge(self, scene: Scene) -> Verdict:
        """The condition's verdict where the guard holds."""
        guard, inner = self.guard.judge(scene), self.part.judge(scene)
        state = inner.state if guard.state == "holds" else "not run"
        return Verdict(text=inner.text, state=state, parts=(guard, inner) if guard.state == "holds" else (guard,))


@dataclass(frozen=True)
class Any:
    """At least one condition holds."""

    text: str
    parts: tuple[Condition, ...]

    def judge(self, scene: Scene) -> Verdict:
        """Kleene's "or"."""
        parts = tuple(part.judge(scene) for part in self.parts)
        return Verdict(text=self.text, state=some(part.state for part in parts), parts=parts)


@dataclass(frozen=True)
class Not:
    """A condition fails."""

    part: Condition

    def judge(self, scene: Scene) -> Verdict:
        """Swaps holds and fails; what is open stays open."""
        inner = self.part.judge(scene)
        return Verdict(text=f"not: {inner.text}", state=OPPOSITE[inner.state], parts=(inner,))


@dataclass(frozen=True)
class ForSome:
    """A condition holds for one of a group, called `word` in it; with none in the group it was not run."""

    word: str
    group: str
    part: Condition

    def judge(self, scene: Scene) -> Verdict:
        """Kleene's "or" over the group."""
        parts = over(self.word, self.group, self.part, scene)
        return Verdict(text=f"one of the {self.group}", state=some(part.state for part in parts), parts=parts)


@dataclass(frozen=True)
class ForEach:
    """A condition holds for all of a group, called `word` in it; with none in the group it was not run."""

    word: str
    group: str
    part: Condition

    def judge(self, scene: Scene) -> Verdict:
        """Kleene's "and" over the group."""
        parts = over(self.word, self.group, self.part, scene)
        return Verdict(text=f"each of the {self.group}", state=every(part.state for part in parts), parts=parts)


def over(word: str, group: str, part: Condition, scene: Scene) -> tuple[Verdict, ...]:
    """The verdicts of a group's members, or the one that there is none."""
    members = scene.groups.get(group, ())
    if not members:
        return (Verdict(text=f"the {group}", state="not run", evidence="none in these runs", command=WANTED[group]),)
    return tuple(part.judge(scene.with_word(word, name)) for name in members)


ANY_STORE = "arlat diag battery data.latents_dir=STORE --out RUN"
WANTED = {
    "baseline": f"{ANY_STORE} on latents of Mimi (or name another with --baseline)",
    "reference": f"{ANY_STORE} on latents of Mimi",
    "8-level Mimi": f"{L2} on latents of mimi:levels=8=FOLDER, Mimi decoded from 8 quantiser levels",
    "codecs": f"{ANY_STORE} on latents of EnCodec or another codec",
    "codecs at the baseline's frame rate": f"{ANY_STORE} on another codec brought to the baseline's rate (stack:N|CODEC)",
    "readouts": f"{ANY_STORE} on a linear readout of the baseline (readout=FOLDER|CODEC)",
    "AR-loss VAEs": "arlat vae sweep, whose conditions end in a battery",
    "β-VAEs": "arlat vae sweep, whose conditions end in a battery",
    "nonlinear dynamics latents": f"{ANY_STORE} on the dynamics part of a factorised RSSM latent of the baseline",
}
"""What brings a representation for each word or group."""
