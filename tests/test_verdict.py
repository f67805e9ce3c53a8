"""The first line of the report, as a table."""

import pytest

from auditor.records import AttackReport, Caveat, Finding, Severity
from auditor.severity import band_of
from auditor.verdict import draw_verdict

VOID = Caveat("GA301", "the dump was noised", voids=True)
WEAK = Caveat("GA304", "a hole", voids=False)


def attack(outcome, reason="because", name="images.dlg"):
    return AttackReport(name, name, outcome, reason, "", 0.0, 0, (), ())


def finding(score=9.5, certainty="verified", title="A leak"):
    severity = Severity(score, band_of(score))
    return Finding("GA201", title, severity, certainty, "", "images.dlg", (), (), "")


LEAK, CLEAN = attack("leak", ""), attack("nothing shown", "")
FAILED, SKIPPED, UNASKED = attack("failed"), attack("skipped"), attack("not selected")


@pytest.mark.parametrize(
    ("findings", "attacks", "caveats", "status"),
    [
        ((finding(),), (LEAK,), (), "leak"),
        ((finding(),), (LEAK,), (WEAK,), "leak"),
        ((finding(),), (LEAK, FAILED), (), "leak"),
        ((finding(),), (LEAK,), (VOID,), "inconclusive"),
        ((), (CLEAN,), (), "no leak shown"),
        ((), (CLEAN,), (WEAK,), "no leak shown"),
        ((), (CLEAN, UNASKED), (), "no leak shown"),
        ((), (CLEAN,), (VOID,), "inconclusive"),
        ((), (CLEAN, FAILED), (), "inconclusive"),
        ((), (CLEAN, SKIPPED), (), "inconclusive"),
        ((), (FAILED,), (), "inconclusive"),
        ((), (attack("failed", ""),), (), "inconclusive"),
        ((), (attack("skipped", ""),), (), "inconclusive"),
        ((), (), (), "inconclusive"),
        ((), (UNASKED,), (), "inconclusive"),
        ((), (UNASKED, UNASKED), (), "inconclusive"),
    ],
)
def test_status(findings, attacks, caveats, status):
    verdict = draw_verdict(findings, attacks, caveats)
    assert verdict.status == status
    assert verdict.sentence
    if status != "leak":
        assert verdict.severity == Severity(0.0, "none")
    if status == "inconclusive":
        assert "not a sign of safety" in verdict.sentence


def test_the_worst_finding_gives_severity_and_sentence():
    findings = (finding(9.5, title="The input"), finding(3.0, "proved", "Some labels"))
    verdict = draw_verdict(findings, (LEAK,), ())
    assert verdict.severity == Severity(9.5, "critical")
    assert verdict.sentence.startswith("The input (verified")


@pytest.mark.parametrize("certainty", ["proved", "verified", "consistent", "measured", "estimated"])
def test_every_certainty_has_words(certainty):
    sentence = draw_verdict((finding(certainty=certainty),), (LEAK,), ()).sentence
    assert certainty.rstrip("d") in sentence


def test_reasons_name_who_could_not_look():
    attacks = (attack("leak", ""), attack("failed", "no memory", "images.idlg"), UNASKED)
    assert draw_verdict((finding(),), attacks, ()).reasons == ("images.idlg: no memory",)
    reasons = draw_verdict((), attacks, (VOID,)).reasons
    assert reasons == ("the dump was noised", "images.idlg: no memory")


def test_no_leak_never_promises_safety():
    assert "Other attacks may show one" in draw_verdict((), (CLEAN,), ()).sentence
