"""SPEC §13 and §14, rule by rule, on results that are made to fit each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from arlat_core.config import UserError
from arlat_core.types import Count, LatentSpec, Value
from arlat_diag import decision_command, report
from arlat_diag.casting import cast, choose_baseline
from arlat_diag.decision import NOT_TOLD, RULES, STORIES, Decision, Outcome, decide
from arlat_diag.ledger import Ledger, keep
from arlat_diag.results import Representation, Results, merge_results, write_results

N = Count(speakers=33, utterances=70, frames=4123)
WORKS = {"r2.k16.D.cosine[16]": 0.7, "r2.k16.D.magnitude_ratio[16]": 0.5}
FAILS = {"r2.k16.D.cosine[16]": 0.1, "r2.k16.D.magnitude_ratio[16]": 0.5}
P1 = {
    "p1.h1.information_rate": 40.0,
    "p1.h1.cosine": 0.8,
    "r1.horizon.info": 4,
    "r1.horizon.info_curve": 4,
    "r1.horizon.manifold": 5,
}
SOUND = {"l2.pesq_wb": 2.1, "l2.stoi": 0.87, "l2.mel_distance": 1.0}
GOOD_VAE = (
    P1
    | SOUND
    | {"p1.h1.information_rate": 120.0, "r1.horizon.info": 13, "r1.horizon.info_curve": 13, "r1.horizon.manifold": 14}
)


def value(number: float | None) -> Value:
    """A figure ± 2 %, or a horizon that was never reached."""
    if number is None:
        return Value(value=None, n=N, unit="steps", status="> 16")
    return Value(value=number, low=number - abs(number) / 50, high=number + abs(number) / 50, n=N)


def one(codec: str, figures: dict[str, Any], rate: float = 12.5, name: str = "", **more: Any) -> Results:
    """Results of one representation; a figure is a number, None for a horizon beyond 16 steps, or a Value."""
    spec = LatentSpec(codec=codec, space="x", dim=32, frame_rate=rate, sample_rate=24000, fingerprint="0" * 16)
    values = {key: made if isinstance(made, Value) else value(made) for key, made in figures.items()}
    about = Representation(spec=spec, store_hash=f"hash of {name or codec}", **more)
    return Results(results={name or codec: values}, representations={name or codec: about})


def several(*parts: Results) -> Results:
    return merge_results(parts)


def states(found: Decision) -> list[str]:
    return [outcome.verdict.state for outcome in found.outcomes]


def outcome(found: Decision, rule: int, subject: str | None = None) -> Outcome:
    return next(o for o in found.outcomes if o.name == RULES[rule].name and (subject is None or o.subject == subject))


def entries(ledger: Ledger) -> dict[str, str]:
    return {entry.name: entry.state for entry in ledger.entries}


BASE = one("mimi", P1 | FAILS)
CODEC = one("encodec", P1 | {"p1.h1.information_rate": 45.0, "r1.horizon.info_curve": 10}, rate=75.0)
BETTER = one("encodec", P1 | {"p1.h1.information_rate": 100.0}, rate=75.0)
READOUT = one("readout:32|mimi", P1 | FAILS)
HELPING = one("readout:32|mimi", P1 | WORKS)


def test_nothing_is_decided_of_nothing_and_every_rule_names_what_is_missing() -> None:
    found = decide(one("mimi", {}))
    assert set(states(found)) == {"not run"}
    assert [o.drawn for o in found.outcomes] == [""] * len(RULES)
    assert found.story == found.attainable_story == NOT_TOLD
    for part in ("--only r2", "on latents of EnCodec", "arlat diag listen", "arlat vae sweep", "linear readout"):
        assert any(part in command for command in found.missing), part


def test_rule_1_asks_for_direction_and_length() -> None:
    assert outcome(decide(one("mimi", P1 | WORKS)), 0).drawn == RULES[0].conclusion
    assert outcome(decide(BASE), 0).verdict.state == "fails"
    short = WORKS | {"r2.k16.D.magnitude_ratio[16]": 0.05}
    assert outcome(decide(one("mimi", short)), 0).verdict.state == "fails"
    near = WORKS | {"r2.k16.D.cosine[16]": 0.605}
    assert outcome(decide(one("mimi", near)), 0).verdict.state == "undecided"
    half = {"r2.k16.D.cosine[16]": 0.7}
    assert outcome(decide(one("mimi", half)), 0).verdict.state == "not run"
    assert (
        outcome(
            decide(one("mimi", FAILS | {"r2.k16.D.magnitude_ratio[16]": Value(value=None, n=N, status="?")})), 0
        ).verdict.state
        == "fails"
    )


@pytest.mark.parametrize(("head", "state"), [("vmf", "fails"), ("vmf_mixture", "fails"), ("gaussian", "not run")])
def test_rule_1_speaks_of_a_vmf_model_only(head: str, state: str) -> None:
    assert outcome(decide(one("mimi", FAILS, settings={"r2": {"head": head}})), 0).verdict.state == state


def test_the_attainable_form_stands_beside_rule_1_and_decides_nothing() -> None:
    curve = {f"r2.k16.D.cosine[{s}]": c for s, c in ((1, 0.79), (2, 0.5), (4, 0.3), (8, 0.2))}
    forced = {f"p1.lag{k}.cosine": c for k, c in ((2, 0.5), (4, 0.3), (8, 0.2))}
    real = {"r4.k16.frechet[16]": 10.5, "r4.frechet_halves": 10.0}
    every = P1 | FAILS | curve | forced | real
    for change, state in (
        ({}, "holds"),
        ({"r2.k16.D.cosine[8]": 0.1}, "fails"),
        ({"r4.k16.frechet[16]": 20.0}, "fails"),
        ({"r4.k16.frechet[16]": 11.9}, "undecided"),
    ):
        found = outcome(decide(one("mimi", every | change)), 0)
        assert (found.verdict.state, found.beside[0].state) == ("fails", state)
    assert outcome(decide(one("mimi", P1 | FAILS | curve)), 0).beside[0].state == "not run"


def test_rule_2_wants_a_codec_with_twice_the_rate_or_a_longer_horizon_in_seconds() -> None:
    assert outcome(decide(several(BASE, BETTER)), 1).drawn == RULES[1].conclusion
    assert (
        outcome(decide(several(BASE, CODEC)), 1).verdict.state == "fails"
    )  # 10 steps at 75 Hz are shorter than 4 at 12.5
    slow = one("lyra", P1 | {"r1.horizon.info_curve": 10}, rate=12.5)
    assert outcome(decide(several(BASE, slow)), 1).verdict.state == "holds"
    near = one("encodec", P1 | {"p1.h1.information_rate": 80.5}, rate=75.0)
    assert outcome(decide(several(BASE, near)), 1).verdict.state == "undecided"
    assert outcome(decide(BASE), 1).verdict.state == "not run"
    works = one("mimi", P1 | WORKS)
    assert outcome(decide(several(works, BETTER)), 1).verdict.state == "fails"  # the rule is for where rule 1 fails
    both = several(BASE, near, one("lyra", P1 | {"p1.h1.information_rate": 200.0}))
    assert outcome(decide(both), 1).verdict.state == "holds"


def test_rule_2_stands_beside_itself_at_the_baselines_frame_rate() -> None:
    stacked, pooled = one("stack:6|encodec", P1), one("pool:6|encodec", P1 | {"p1.h1.information_rate": 900.0})
    own = one("stack:6|mimi", P1 | {"p1.h1.information_rate": 900.0})
    fast = one("stack:3|encodec", P1 | {"p1.h1.information_rate": 900.0}, rate=25.0)
    found = outcome(decide(several(BASE, BETTER, stacked, pooled, own, fast)), 1)
    assert found.verdict.state == "holds"
    assert [part.state for part in found.beside] == ["fails"]
    assert [part.state for part in outcome(decide(several(BASE, BETTER)), 1).beside] == ["not run"]
    rich = one("stack:6|encodec", P1 | {"p1.h1.information_rate": 90.0})
    assert [part.state for part in outcome(decide(several(BASE, BETTER, rich)), 1).beside] == ["holds"]


def test_rules_3_and_4_ask_whether_a_readout_helps_where_codecs_are_alike() -> None:
    assert states(decide(several(BASE, CODEC, HELPING)))[:4] == ["fails", "fails", "holds", "fails"]
    assert states(decide(several(BASE, CODEC, READOUT)))[:4] == ["fails", "fails", "fails", "holds"]
    assert states(decide(several(BASE, CODEC)))[:4] == ["fails", "fails", "not run", "not run"]
    assert states(decide(several(BASE, BETTER, HELPING)))[:4] == ["fails", "holds", "fails", "fails"]
    assert states(decide(several(BASE, READOUT)))[:4] == ["fails", "not run", "fails", "not run"]
    longer = one("readout:32|mimi", P1 | FAILS | {"r1.horizon.info_curve": None})
    assert states(decide(several(BASE, CODEC, longer)))[2] == "holds"
    richer = one("readout:32|mimi", P1 | FAILS | {"p1.h1.information_rate": 500.0})
    assert states(decide(several(BASE, CODEC, richer)))[2] == "fails"  # no readout has more information than its source
    foreign = one("readout:32|encodec", P1 | WORKS)
    windows = one("readout:32,context_frames=4|mimi", P1 | WORKS)
    assert states(decide(several(BASE, CODEC, foreign)))[2] == "not run"
    assert states(decide(several(BASE, CODEC, windows)))[2] == "not run"  # windows overlap


def test_rule_5_compares_what_is_heard() -> None:
    for reduced, state in ((3.5, "holds"), (3.05, "fails"), (2.0, "fails")):
        heard = {"l1.reduced.mos": reduced, "l1.frozen.mos": 3.0}
        assert outcome(decide(one("mimi", heard)), 4).verdict.state == state


MIMI_8 = one("mimi:levels=8", SOUND)
PLAIN = one("vae:ar_loss=none", P1 | SOUND | {"p1.h1.information_rate": 60.0})


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "holds"),
        ({"p1.h1.information_rate": 70.0}, "fails"),
        ({"p1.h1.information_rate": 80.5}, "undecided"),
        ({"r1.horizon.manifold": 9}, "fails"),
        ({"r1.horizon.info": None}, "holds"),
        ({"l2.pesq_wb": 1.5}, "fails"),
        ({"l2.stoi": 0.6}, "fails"),
        ({"l2.mel_distance": 1.3}, "fails"),
        ({"l2.stoi": Value(value=None, n=N, status="silent")}, "not run"),
    ],
)
def test_stage_2_rule_1_needs_rate_horizons_and_sound(change: dict[str, Any], state: str) -> None:
    vae = one("vae:ar_loss=pred", GOOD_VAE | change)
    assert outcome(decide(several(BASE, MIMI_8, PLAIN, vae)), 5, "vae:ar_loss=pred").verdict.state == state


def test_a_vae_of_latents_is_a_vae() -> None:
    inner = one("inner:16,beta=0.01,ar_loss=pred|mimi", GOOD_VAE)
    found = decide(several(BASE, MIMI_8, PLAIN, inner))
    assert outcome(found, 5, "inner:16,beta=0.01,ar_loss=pred|mimi").verdict.state == "holds"


def test_stage_2_asks_what_an_ar_loss_adds_to_a_beta_vae() -> None:
    def judged(change: dict[str, Any]) -> list[str]:
        vae = one(
            "vae=FOLDER", P1 | SOUND | {"p1.h1.information_rate": 60.0} | change, settings={"vae": {"ar_loss": "both"}}
        )
        return states(decide(several(BASE, PLAIN, vae)))[6:]

    assert judged({}) == ["undecided", "fails", "undecided"]  # as good as the β-VAE: which is more is open
    assert judged({"p1.h1.information_rate": 90.0}) == ["holds", "fails", "fails"]
    assert judged({"p1.h1.information_rate": 50.0}) == ["fails", "fails", "holds"]
    assert judged({"p1.h1.information_rate": 50.0, "l2.pesq_wb": 1.2}) == ["fails", "holds", "holds"]
    assert judged({"p1.h1.information_rate": 90.0, "r1.horizon.info_curve": 12}) == ["fails", "fails", "fails"]
    alone = several(BASE, one("vae:ar_loss=both", GOOD_VAE))
    assert states(decide(alone))[6:] == ["not run"] * 3


def test_each_vae_has_its_own_rows_and_one_that_does_not_say_its_loss_has_none() -> None:
    vaes = [one(f"vae:ar_loss={loss}", GOOD_VAE) for loss in ("smooth", "pred")]
    found = decide(several(BASE, PLAIN, *vaes, one("vae", GOOD_VAE)))
    assert [o.subject for o in found.outcomes if o.name == RULES[5].name] == ["vae:ar_loss=smooth", "vae:ar_loss=pred"]
    assert any(note.startswith("No part in the decisions: vae (") for note in found.notes)


def test_the_four_stories_exclude_each_other() -> None:
    poor = one("vae:ar_loss=pred", P1 | SOUND)
    base = {"works": one("mimi", P1 | WORKS), "fails": BASE}
    told = {
        (work, codec): decide(several(base[work], other, READOUT, MIMI_8, poor)).story
        for work in base
        for codec, other in (("better", BETTER), ("alike", CODEC))
    }
    assert told == {
        ("fails", "better"): "representation is the lever",
        ("works", "alike"): "factorised directions are enough",
        ("works", "better"): "a mixture of both",
        ("fails", "alike"): "an informative negative",
    }
    assert set(told.values()) == {story.name for story in STORIES}
    assert decide(several(BASE, CODEC, READOUT)).story == NOT_TOLD  # no VAE was tried
    assert decide(several(BASE, BETTER)).story == "representation is the lever"  # one better is enough


def test_the_ledger_scores_what_is_decided() -> None:
    ledger = keep(several(BASE, BETTER))
    known = entries(ledger)
    assert known["vMF keeps direction under rollout"] == "false"
    assert known["a representation change brings > 2×"] == "true"
    assert known["score correction improves stability"] == "not run"
    scores = {entry.name: entry.brier for entry in ledger.entries}
    assert scores["vMF keeps direction under rollout"] == pytest.approx(0.25)
    assert scores["a representation change brings > 2×"] == pytest.approx(0.16)
    assert ledger.decided == 2
    assert ledger.mean_brier == pytest.approx((0.25 + 0.16) / 2)
    assert (keep(one("mimi", {})).mean_brier, keep(one("mimi", {})).knowing_nothing) == (None, 0.25)
    assert [entry.prior for entry in ledger.entries] == [0.50, 0.60, 0.55, 0.35, 0.35, 0.45, 0.20, None]


def test_each_hypothesis_has_evidence_that_makes_it_true_and_that_makes_it_false() -> None:
    more = {"s3.horizon.info_curve": 9, "s3.horizon.manifold": 5, "y6.basis.dnll": -0.5}
    less = {"s3.horizon.info_curve": 4, "s3.horizon.manifold": 5, "y6.basis.dnll": 0.5}
    better = one("vae:ar_loss=pred", GOOD_VAE)
    strong = one("vae:ar_loss=none", P1 | {"p1.h1.information_rate": 100.0, "r1.horizon.info_curve": 6})
    hidden, full = (one("rssm|mimi", {"p1.h1.information_rate": rate}) for rate in (30.0, 60.0))
    yes = entries(keep(several(one("mimi", P1 | WORKS | more), BETTER, strong, better, READOUT, hidden)))
    no_vae = one("vae:ar_loss=pred", P1 | {"p1.h1.information_rate": 20.0})
    weak = one("vae:ar_loss=none", P1 | {"p1.h1.information_rate": 30.0})
    no = entries(keep(several(one("mimi", P1 | FAILS | less), CODEC, weak, no_vae, READOUT, full, MIMI_8)))
    names = list(yes)
    assert [yes[name] for name in names] == ["true"] * 7 + ["false"]
    assert [no[name] for name in names[:7]] == ["false"] * 7
    poor = one("vae:ar_loss=pred", P1 | SOUND)
    assert entries(keep(several(BASE, CODEC, READOUT, MIMI_8, poor)))[names[7]] == "true"
    fast = one("mimi", P1 | FAILS, rate=25.0)
    assert entries(keep(several(fast, CODEC, READOUT, MIMI_8, poor)))[names[7]] == "false"


def test_the_baseline_is_mimi_or_the_first_codec_that_wraps_nothing() -> None:
    lyra, wrapped, pca = one("lyra", P1), one("stack:8|mel", P1), one("pca:24", P1)
    assert choose_baseline(several(wrapped, lyra, BASE)) == "mimi"
    assert choose_baseline(several(wrapped, pca, lyra)) == "lyra"
    assert choose_baseline(several(wrapped, pca)) is None
    assert choose_baseline(several(wrapped, BASE), "stack:8|mel") == "stack:8|mel"
    with pytest.raises(UserError, match="mimi"):
        choose_baseline(BASE, "mimmi")
    scene, _ = cast(several(BASE, lyra, wrapped, pca, READOUT))
    assert scene.groups["codecs"] == ("lyra", "pca:24")
    assert scene.groups["readouts"] == ("readout:32|mimi",)
    again = one("mimi", P1 | {"p1.h1.information_rate": 500.0}, name="mimi, other seed")
    stacked = one("stack:2|mimi", P1)
    assert cast(several(BASE, again, lyra))[0].groups["codecs"] == ("lyra",)
    assert cast(several(stacked, BASE, lyra), "stack:2|mimi")[0].groups["codecs"] == ("lyra",)


def test_synthetic_stores_are_never_judged() -> None:
    rich = one("ar1", P1 | {"p1.h1.information_rate": 900.0}, truth={"rho": 0.9})
    assert states(decide(several(BASE, rich)))[1] == "not run"
    assert choose_baseline(rich) is None
    with pytest.raises(UserError, match="ar1"):
        choose_baseline(several(BASE, rich), "ar1")


def saved(folder: Path, results: Results) -> Path:
    write_results(folder / "results.json", results)
    return folder


def test_the_command_merges_runs_and_writes_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(saved(tmp_path / name, part)) for name, part in (("a", BASE), ("b", BETTER), ("c", READOUT))]
    for out in ("one", "two"):
        assert decision_command.main([*runs, "--out", str(tmp_path / out)], "arlat diag decide") == 0
    printed = capsys.readouterr().out
    assert "[holds] stage 1: That fails, and another codec is better (mimi)" in printed
    assert "→ The gap belongs to this codec: change the representation." in printed
    assert "story: representation is the lever" in printed
    for file in ("decision.json", "decision.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    text = (tmp_path / "one" / "decision.md").read_text(encoding="utf-8")
    assert "# Decisions" in text
    assert "The evidence tells of four stories this one: representation is the lever." in text
    assert "Mean Brier score over 2 decided: 0.2050; always saying 0.5: 0.25." in text


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    synthetic = saved(tmp_path / "s", one("ar1", P1, truth={"rho": 0.9}))
    wrapped = saved(tmp_path / "w", one("stack:8|mel", P1))
    for runs, words in (([], "No run"), ([synthetic], "synthetic"), ([wrapped], "--baseline")):
        with pytest.raises(UserError, match=words):
            decision_command.write_decision(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    decision_command.write_decision([wrapped], tmp_path / "out", "stack:8|mel")
    assert (tmp_path / "out" / "decision.json").exists()


def test_the_report_shows_rules_evidence_story_and_ledger(tmp_path: Path) -> None:
    run = saved(tmp_path / "r", several(BASE, BETTER, READOUT))
    _, pages = report.make_sections([report.open_run(run)])
    page, ledger = (next(p for p in pages if p.id == name) for name in ("decisions", "hypotheses"))
    rules = {row[0].text: row for row in page.tables[0].rows}
    row = rules[RULES[1].name]
    assert (row[1].text, row[2].text, row[2].tone, row[3].text) == ("mimi", "holds", "good", RULES[1].conclusion)
    assert "p1.h1.information_rate of encodec ÷ p1.h1.information_rate of mimi > 2 (2.50 [2.4" in row[4].text
    assert (rules[RULES[0].name][2].text, rules[RULES[0].name][3].text) == ("fails", "–")
    assert [row[1].text for row in page.tables[1].rows].count("holds") == 1
    assert any(note.startswith("To be run: arlat vae sweep") for note in page.notes)
    assert [row[2].text for row in ledger.tables[0].rows[:2]] == ["false", "true"]
    html, beside = report.write_report([run], tmp_path / "report.html")
    for text in (html.read_text(encoding="utf-8"), beside.read_text(encoding="utf-8")):
        assert "What do the rules written down before the experiment say?" in text
        assert "That fails, and another codec is better" in text
