"""The report's pages on decisions: which rule holds on what evidence, which story is told, and the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from arlat_diag.casting import choose_baseline, subjects
from arlat_diag.decision import NOT_TOLD, Decision, Outcome, decide
from arlat_diag.ledger import KNOWING_NOTHING, keep
from arlat_diag.results import Results
from arlat_diag.sections import Section
from arlat_diag.tables import Cell, Table, name, number
from arlat_diag.verdicts import Verdict

TONES = {"holds": "good", "true": "good", "fails": "bad", "false": "bad", "undecided": "", "not run": "muted"}
EVIDENCE = "Evidence for the decisions"


def decisions(results: Results, baseline: str = "") -> Section:
    """Q2: the rules, the stories, the evidence."""
    question = "What do the rules written down before the experiment say?"
    meaning = [
        "Every rule compares figures with their 95 % intervals. It holds or fails where the whole interval lies on one side of the "
        "bar, is undecided where the interval straddles it, and not run where a figure is missing. A conclusion is drawn only where "
        "its rule holds.",
        "The first rule asks more of a mean rollout than a perfect model of most processes can do, since mean rollouts decay by "
        "nature: its attainable form stands beside it and decides nothing. A rate in bit/s grows with the frame rate by itself: the second "
        "rule stands beside itself for codecs that are brought to the baseline's.",
    ]
    if not subjects(results):
        return Section("decisions", question, meaning, missing="Synthetic stores are never the subject of a decision.")
    if choose_baseline(results, baseline) is None:
        why = "Every representation here wraps another one: name the one in question with --baseline NAME."
        return Section("decisions", question, meaning, missing=why)
    found = decide(results, baseline)
    tables = [
        rules(found),
        story_table(found),
        *(evidence(outcome) for outcome in found.outcomes),
    ]
    notes = [*found.notes, *(f"To be run: {command}." for command in found.missing)]
    return Section("decisions", question, [*meaning, told(found)], tables=tables, notes=notes)


def told(found: Decision) -> str:
    """Which story the evidence tells, in one sentence."""
    beside = f"By the attainable form of rule 1: {found.attainable_story}."
    if found.story == NOT_TOLD:
        return f"Of the four stories, none is told yet: what is open is in the second table. {beside}"
    return f"The evidence tells of four stories this one: {found.story}. {beside}"


def state(word: str, small: str = "") -> Cell:
    """A state in its colour."""
    return Cell(word, small, tone=TONES[word])


def rules(found: Decision) -> Table:
    """One row per rule and representation."""
    rows = []
    for outcome in found.outcomes:
        rows.append(
            [
                name(outcome.name, f"stage {outcome.stage}"),
                Cell(outcome.subject or "–"),
                state(outcome.verdict.state),
                Cell(outcome.drawn or "–", tone="text"),
                Cell(reasons(outcome.verdict), tone="text"),
            ]
        )
        rows += [
            [
                name(f"beside it: {part.text}"),
                Cell(outcome.subject or "–"),
                state(part.state),
                Cell("–", tone="text"),
                Cell(reasons(part), tone="text"),
            ]
            for part in outcome.beside
        ]
    return Table("Rules", ["rule", "representation", "state", "conclusion", "on what evidence"], rows)


def story_table(found: Decision) -> Table:
    """The four stories."""
    rows = [
        [name(story.name), state(story.verdict.state), Cell(reasons(story.verdict), tone="text")]
        for story in found.stories
    ]
    return Table("Four stories", ["story", "state", "on what evidence"], rows)


def distinct(leaves: Iterable[Verdict]) -> list[Verdict]:
    """Each comparison once."""
    return list({leaf.text: leaf for leaf in leaves}.values())


def reasons(verdict: Verdict, at_most: int = 3) -> str:
    """The comparisons that make a verdict what it is, and how many more stand behind it."""
    leaves, first = distinct(verdict.leaves()), distinct(verdict.decisive())
    told = "; ".join(sentence(leaf) for leaf in first[:at_most])
    more = len(leaves) - min(len(first), at_most)
    return f"{told}; and {more} more" if more else told


def sentence(leaf: Verdict) -> str:
    """A comparison with its evidence."""
    return f"{leaf.text} ({leaf.evidence or leaf.state})"


def evidence(outcome: Outcome) -> Table:
    """Every comparison behind one outcome."""
    leaves = distinct(leaf for verdict in (outcome.verdict, *outcome.beside) for leaf in verdict.leaves())
    rows = [
        [name(leaf.text), state(leaf.state), Cell(leaf.evidence, tone="text"), Cell(leaf.command, tone="text")]
        for leaf in leaves
    ]
    caption = f"{outcome.name}{f' ({outcome.subject})' if outcome.subject else ''}"
    return Table(caption, ["comparison", "state", "evidence", "what would make it"], rows, folder=EVIDENCE)


def hypotheses(results: Results, baseline: str = "") -> Section:
    """Q3: priors beside the evidence, scored."""
    question = "How good were the guesses?"
    meaning = [
        "Each hypothesis was given a probability before the experiment. Where the evidence decides it, its Brier score is "
        f"(prior − outcome)²: 0 is a perfect guess, {KNOWING_NOTHING:g} is that of always saying 0.5."
    ]
    if not subjects(results) or choose_baseline(results, baseline) is None:
        return Section("hypotheses", question, meaning, missing="There is no decision to hold the priors against.")
    ledger = keep(results, baseline)
    rows = [
        [
            name(entry.name),
            Cell("none given" if entry.prior is None else number(entry.prior, 2)),
            state(entry.state),
            Cell("–" if entry.brier is None else number(entry.brier, 4)),
            Cell(reasons(entry.verdict), tone="text"),
        ]
        for entry in ledger.entries
    ]
    mean = "none is decided" if ledger.mean_brier is None else number(ledger.mean_brier, 4)
    notes = [f"Mean Brier score over {ledger.decided} decided: {mean}; always saying 0.5: {ledger.knowing_nothing:g}."]
    head = ["hypothesis", "prior", "state", "Brier score", "on what evidence"]
    return Section("hypotheses", question, meaning, tables=[Table("Hypothesis ledger", head, rows, notes)])
