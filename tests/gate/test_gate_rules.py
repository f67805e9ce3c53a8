"""Limits, suppressions and baselines: what the gate answers, and that it is always the same."""

import random
from dataclasses import replace
from datetime import date, timedelta

import pytest

from auditor.errors import InputError, UsageError
from auditor.gate import Accepted, GateRules, Limits, Reference, judge, judged
from auditor.records import (
    SCHEMA_VERSION,
    AttackReport,
    Audit,
    Bound,
    Caveat,
    DumpSummary,
    FileRef,
    Finding,
    GateResult,
    Measure,
    ModelSummary,
    Provenance,
    Severity,
    Trust,
    Verdict,
)
from auditor.severity import band_of

FILE = FileRef("a.pt", "torch", 1, "00")


def finding(code, score, *measures):
    severity = Severity(score, band_of(score))
    return Finding(code, "A leak", severity, "verified", "", "images.lm", measures, (), "")


def attack(name, outcome="leak", reason=""):
    return AttackReport(name, name, outcome, reason, "", 0.0, 0, (), ())


LOOKED = (attack("labels.head"), attack("images.lm"))
PICTURE = finding("GA201", 9.8)
SEEN = finding("GA203", 9.5, Measure("PSNR, worst-protected sample (measured)", 31.5, "dB"))
LABELS = finding("GA101", 6.0, Measure("labels proved", 8.0, "of 8"))
SOME = finding("GA102", 2.0, Measure("labels proved", 4.0, "of 8"))


def audit_of(*findings, attacks=LOOKED, caveats=(), model="Net", day="2026-06-15", **trust):
    told = trust.get("bound")
    if told is not None:
        trust["bound"] = Bound(0.1, "rounding of the dump", "dense", 1, 1.0, None, told, told, ())
    score = max((f.severity.score for f in findings), default=0.0)
    status = "leak" if findings else "no leak shown"
    return Audit(
        SCHEMA_VERSION,
        Verdict(status, Severity(score, band_of(score)), "A sentence.", ()),
        GateResult(None, None, "no gate", 0, ""),
        findings,
        attacks,
        caveats,
        (),
        ModelSummary(FILE, model, 100, 10, (1, 8, 8), "eval", ()),
        DumpSummary(FILE, "dict", 4, (), 1e-7, 8),
        "none",
        (),
        Trust(**trust),
        Provenance("0", f"{day}T12:00:00+00:00", 1.0, (), 0, "fast", "cpu", "float64", {}),
    )


def answer(audit, **rules):
    gate = judged(audit, GateRules(**rules)).gate
    return gate.outcome, gate.exit_code


@pytest.mark.parametrize("fail_on", [None, "low", "medium", "high", "critical", "9.5"])
@pytest.mark.parametrize("waived", [False, True])
def test_without_more_rules_it_is_the_judge_of_the_threshold(fail_on, waived):
    """The older function is the oracle; both must agree on every audit."""
    dice = random.Random(0)
    for _ in range(60):
        found = dice.sample([PICTURE, SEEN, LABELS, SOME], dice.randrange(4))
        outcomes = ("leak", "nothing shown", "failed", "skipped", "not selected")
        attacks = tuple(
            attack(a.name, dice.choice(outcomes), dice.choice(("", "why"))) for a in LOOKED
        )
        void = (Caveat("GA301", "no", True),) * dice.randrange(2)
        audit = audit_of(*found, attacks=attacks, caveats=void)
        expected = judge(
            audit.verdict,
            audit.findings,
            audit.attacks,
            audit.caveats,
            fail_on=fail_on,
            allow_inconclusive=waived,
        )
        rules = GateRules(fail_on=fail_on, allow_inconclusive=waived)
        gate = judged(audit, rules).gate
        assert (gate.outcome, gate.exit_code) == (expected.outcome, expected.exit_code)
        assert gate.threshold == expected.threshold


def test_ten_times_out_of_ten():
    audit = audit_of(SEEN, LABELS)
    rules = GateRules("high", limits=Limits(30.0), accepted=(Accepted("GA101", "x", "2026-12-31"),))
    answers = {judged(judged(audit, rules), rules).gate for _ in range(10)}
    assert len(answers) == 1


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("found", "limits", "outcome", "code"),
    [
        ((SEEN,), Limits(psnr=31.5), "passed", 0),
        ((SEEN,), Limits(psnr=31.4), "failed", 1),
        ((PICTURE,), Limits(psnr=31.4), "inconclusive", 4),  # rebuilt, and nobody knows how well
        ((), Limits(psnr=0.0), "passed", 0),
        ((SOME,), Limits(labels=0.5), "passed", 0),
        ((SOME,), Limits(labels=0.49), "failed", 1),
        ((LABELS,), Limits(labels=0.99), "failed", 1),
        ((PICTURE,), Limits(labels=0.99), "failed", 1),  # a rebuilt input has its label
        ((finding("GA102", 2.0, Measure("labels proved", 4.0, "")),), Limits(labels=0.9),
         "inconclusive", 4),
        ((finding("GA103", 1.0, Measure("labels proved", 0.0, "")),), Limits(labels=0.0),
         "passed", 0),
        ((SEEN, SOME), Limits(psnr=40.0, labels=0.1), "failed", 1),
    ],
)  # fmt: skip
def test_limits(found, limits, outcome, code):
    assert answer(audit_of(*found), limits=limits) == (outcome, code)


def test_without_truth_an_estimate_can_exceed_a_limit_but_only_a_bound_keeps_it():
    limits = Limits(psnr=40.0)
    assert answer(audit_of(PICTURE, fidelity=41.0), limits=limits) == ("failed", 1)
    assert answer(audit_of(PICTURE, fidelity=39.0), limits=limits) == ("inconclusive", 4)
    assert answer(audit_of(PICTURE, fidelity=39.0, bound=39.9), limits=limits) == ("passed", 0)
    assert answer(audit_of(PICTURE, fidelity=39.0, bound=40.1), limits=limits) == (
        "inconclusive",
        4,
    )
    # and neither replaces what was measured
    assert answer(audit_of(SEEN, fidelity=50.0, bound=60.0), limits=limits) == ("passed", 0)


@pytest.mark.parametrize("outcome", ["failed", "skipped", "leak"])
def test_a_limit_is_not_kept_while_its_attacks_did_not_look(outcome):
    unsure = (attack("labels.head"), attack("images.lm", outcome, "the budget ended"))
    audit = audit_of(SOME, attacks=unsure)
    assert answer(audit, limits=Limits(psnr=30.0)) == ("inconclusive", 4)
    assert answer(audit, limits=Limits(labels=0.9)) == ("passed", 0)
    assert answer(audit, limits=Limits(labels=0.1)) == ("failed", 1)


def test_a_limit_that_nothing_looked_at_is_not_kept():
    audit = audit_of(attacks=(attack("labels.head"), attack("images.lm", "not selected", "why")))
    assert answer(audit, limits=Limits(psnr=30.0)) == ("inconclusive", 4)
    waived = answer(audit, limits=Limits(psnr=30.0), allow_inconclusive=True)
    assert waived == ("passed", 0)


def test_untrusted_figures_neither_fail_nor_pass():
    void = (Caveat("GA301", "not one", True),)
    audit = audit_of(SEEN, caveats=void)
    for waived in (False, True):
        got = answer(audit, limits=Limits(psnr=1.0), allow_inconclusive=waived)
        assert got == ("inconclusive", 4)


@pytest.mark.parametrize(
    "limits", [{"psnr": -1.0}, {"psnr": float("nan")}, {"labels": 1.0}, {"labels": -0.1}]
)
def test_limits_that_mean_nothing_are_refused(limits):
    with pytest.raises(UsageError, match="--max-"):
        Limits(**limits)


# --------------------------------------------------------------------------- suppressions


def accepted(code, day):
    return Accepted(code, "known and agreed", day)


def test_a_suppression_holds_through_its_last_day():
    audit = audit_of(PICTURE, LABELS, day="2026-06-15")
    last = date(2026, 6, 15)
    for days, expected in ((0, ("passed", 0)), (1, ("passed", 0)), (-1, ("failed", 1))):
        day = (last + timedelta(days=days)).isoformat()
        got = answer(audit, fail_on="high", accepted=(accepted("GA201", day),))
        assert got == expected


def test_an_expired_suppression_fails_even_below_the_threshold_and_says_so():
    audit = audit_of(LABELS)
    rules = GateRules("critical", accepted=(accepted("GA101", "2026-06-14"),))
    gate = judged(audit, rules).gate
    assert (gate.outcome, gate.exit_code) == ("failed", 1)
    assert "GA101 expired on 2026-06-14" in gate.reason
    # nothing to accept any more: the entry is idle, not a failure
    assert answer(audit_of(), fail_on="critical", accepted=rules.accepted) == ("passed", 0)


def test_a_suppression_hides_its_own_code_only():
    rules = {"fail_on": "medium", "accepted": (accepted("GA201", "2026-12-31"),)}
    assert answer(audit_of(PICTURE, LABELS), **rules) == ("failed", 1)
    assert answer(audit_of(PICTURE, SOME), **rules) == ("passed", 0)
    gate = judged(audit_of(PICTURE, SOME), GateRules(**rules)).gate
    assert "not counted, suppressed: GA201" in gate.reason
    assert [(s.code, s.state) for s in gate.suppressions] == [("GA201", "active")]


def test_a_suppression_does_not_make_an_audit_look():
    unsure = (attack("labels.head"), attack("images.lm", "failed", "out of memory"))
    rules = {"fail_on": "high", "accepted": (accepted("GA101", "2026-12-31"),)}
    assert answer(audit_of(LABELS, attacks=unsure), **rules) == ("inconclusive", 4)


def test_the_verdict_and_the_findings_stay():
    audit = audit_of(PICTURE)
    rules = GateRules("low", accepted=(accepted("GA201", "2026-12-31"),))
    after = judged(audit, rules)
    assert replace(after, gate=audit.gate) == audit


# --------------------------------------------------------------------------- baseline


def against(*before, model="Net"):
    return Reference(audit_of(*before, model=model), "ab" * 32)


@pytest.mark.parametrize(
    ("before", "now", "new", "worse", "code"),
    [
        ((PICTURE, LABELS), (PICTURE, LABELS), (), (), 0),
        ((LABELS,), (PICTURE, LABELS), ("GA201",), (), 1),
        ((SOME,), (LABELS,), (), ("GA101",), 1),
        ((LABELS,), (SOME,), (), (), 0),
        ((PICTURE,), (SEEN,), (), (), 0),  # the same picture, measured now
        ((SEEN,), (PICTURE,), (), ("GA201",), 1),
        ((finding("GA401", 5.0),), (finding("GA402", 5.0),), ("GA402",), (), 1),
        ((finding("GA501", 9.0),), (finding("GA504", 7.0),), ("GA504",), (), 1),
        ((), (), (), (), 0),
    ],
)
def test_only_what_is_new_or_worse_counts(before, now, new, worse, code):
    gate = judged(audit_of(*now), GateRules(reference=against(*before))).gate
    assert (gate.baseline.new, gate.baseline.worse, gate.exit_code) == (new, worse, code)


def test_with_a_threshold_the_new_must_reach_it():
    reference = against(PICTURE)
    assert answer(audit_of(PICTURE, LABELS), fail_on="high", reference=reference) == ("passed", 0)
    assert answer(audit_of(PICTURE, LABELS), fail_on="medium", reference=reference) == ("failed", 1)


def test_a_baseline_does_not_make_an_audit_look():
    unsure = (attack("labels.head"), attack("images.lm", "failed", "out of memory"))
    audit = audit_of(LABELS, attacks=unsure)
    assert answer(audit, reference=against(LABELS)) == ("inconclusive", 4)


def test_another_models_baseline_is_refused():
    other = against(PICTURE, model="Other\x1b[2J" + "x" * 10_000)
    with pytest.raises(InputError, match="another model") as refused:
        judged(audit_of(PICTURE), GateRules(reference=other))
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 400
