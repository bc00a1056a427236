"""`arlat diag decide`: the decision rules and the ledger on any number of runs, printed and written; same inputs, same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import tyro
from arlat_core.config import Config as BaseConfig
from arlat_core.config import UserError, parse
from arlat_core.files import atomic_write, write_json

from arlat_diag.casting import choose_baseline, subjects
from arlat_diag.decision import Decision, decide
from arlat_diag.decision_sections import decisions, hypotheses, reasons
from arlat_diag.ledger import Ledger, keep
from arlat_diag.report import open_run, render_markdown
from arlat_diag.results import Results, merge_results

SCHEMA: Final = "arlat-decision/1"


class Config(BaseConfig):
    """Settings of `arlat diag decide`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories (or results.json files), of any number of representations."""
    out: Path = Path("decision")
    """The folder that decision.json and decision.md are written into."""
    baseline: str = ""
    """The representation in question (default: Mimi, else the first codec that wraps nothing)."""


def write_decision(runs: Sequence[Path], out: Path, baseline: str = "") -> tuple[Decision, Ledger]:
    """Writes decision.json and decision.md into `out`; raises UserError where no representation can be judged."""
    if not runs:
        raise UserError("No run was given. Write `arlat diag decide RUN… --out FOLDER`.")
    results = merge_results([open_run(path).results for path in runs])
    check(results, baseline)
    decision, ledger = decide(results, baseline), keep(results, baseline)
    stores = {name: about.store_hash for name, about in subjects(results).items()}
    parts = {"decision": decision.model_dump(mode="json"), "ledger": ledger.model_dump(mode="json")}
    write_json(out / "decision.json", {"schema": SCHEMA, "stores": stores, **parts})
    pages = [decisions(results, baseline), hypotheses(results, baseline)]
    atomic_write(out / "decision.md", render_markdown([], pages, {}, "Decisions"))
    return decision, ledger


def check(results: Results, baseline: str) -> None:
    """Raises UserError where there is nothing to decide about."""
    known = subjects(results)
    if not known:
        raise UserError(
            "These runs hold synthetic stores only, which are never the subject of a decision. "
            "Give a run of `arlat diag battery` on real latents."
        )
    if choose_baseline(results, baseline) is None:
        raise UserError(
            f"Each of {', '.join(known)} wraps another codec, so that none is the baseline by itself. Name one with --baseline NAME."
        )


def lines(decision: Decision, ledger: Ledger) -> list[str]:
    """What is printed."""
    out = [*decision.notes, ""]
    for outcome in decision.outcomes:
        subject = f" ({outcome.subject})" if outcome.subject else ""
        out.append(f"[{outcome.verdict.state}] stage {outcome.stage}: {outcome.name}{subject}")
        out.append(f"    {reasons(outcome.verdict)}")
        out += [f"    beside it [{part.state}] {part.text}: {reasons(part)}" for part in outcome.beside]
        out += [f"    → {outcome.drawn}"] if outcome.drawn else []
    out += ["", f"story: {decision.story} (by the attainable form of rule 1: {decision.attainable_story})", ""]
    for entry in ledger.entries:
        prior = "no prior" if entry.prior is None else f"prior {entry.prior:.2f}"
        score = "" if entry.brier is None else f", Brier score {entry.brier:.4f}"
        out.append(f"[{entry.state}] {entry.name}: {prior}{score}")
    mean = "none is decided" if ledger.mean_brier is None else f"{ledger.mean_brier:.4f}"
    out.append(f"mean Brier score over {ledger.decided} decided: {mean} (always 0.5: {ledger.knowing_nothing:g})")
    return out + [f"to be run: {command}" for command in decision.missing]


def main(arguments: list[str], prog: str) -> int:
    """`arlat diag decide RUN… [--out FOLDER] [--baseline NAME]`."""
    config = parse(
        Config, arguments, prog, "Applies the decision rules and the hypothesis ledger to any number of runs."
    )
    print("\n".join(lines(*write_decision(config.runs, config.out, config.baseline))))
    print(f"{config.out / 'decision.json'}\n{config.out / 'decision.md'}")
    return 0
