import itertools
from pathlib import Path

import pytest

from auditor.errors import UsageError
from auditor.gate import ExitCode, judge, reach
from auditor.records import AttackReport, Caveat, Finding, Severity, Verdict
from auditor.severity import band_of

VOID = (Caveat("GA301", "not one", voids=True),)
WEAK = (Caveat("GA304", "a hole", voids=False),)
OUTCOMES = ("leak", "nothing shown", "failed", "skipped", "not selected")


def verdict(score=0.0, status=None, reasons=()):
    severity = Severity(score, band_of(score))
    return Verdict(status or ("leak" if score else "no leak shown"), severity, "A.", reasons)


def attack(name, outcome, reason=None):
    """Skipped and failed attacks always have a reason; a leak has one when it may be larger."""
    if reason is None:
        reason = "because" if outcome in ("skipped", "failed", "not selected") else ""
    return AttackReport(name, name, outcome, reason, "", 0.0, 0, (), ())


def finding(score, code="GA201"):
    severity = Severity(score, band_of(score))
    return Finding(code, "A leak", severity, "verified", "", "images.dlg", (), (), "")


LOOKED = (attack("labels.head", "nothing shown"), attack("images.dlg", "nothing shown"))


def expected(fail_on, score, status, void, image, label, allow):
    """The rules once more, as one table read from top to bottom."""
    threshold = {"medium": 4.0, "high": 7.0}.get(fail_on)
    if fail_on is None:
        unsure = void or status == "inconclusive"
        if not unsure or allow:
            return "no gate", 0
        return "inconclusive", 4
    over = score >= threshold
    if over:
        return ("inconclusive", 4) if void else ("failed", 1)
    unsure = (
        void
        or status == "inconclusive"
        or {image, label}.isdisjoint({"leak", "nothing shown"})
        or image in ("failed", "skipped")
        or (label in ("failed", "skipped") and threshold <= 6.0)
    )
    if unsure and not allow:
        return "inconclusive", 4
    return "passed", 0


@pytest.mark.parametrize("fail_on", [None, "medium", "high"])
@pytest.mark.parametrize("score", [0.0, 3.9, 4.0, 6.9, 7.0])
@pytest.mark.parametrize("status", ["no leak shown", "inconclusive"])
@pytest.mark.parametrize("caveats", [(), WEAK, VOID], ids=["plain", "weak", "void"])
def test_truth_table(fail_on, score, status, caveats):
    for image, label, allow in itertools.product(OUTCOMES, OUTCOMES, (False, True)):
        result = judge(
            verdict(score, status),
            (finding(score),),
            (attack("labels.head", label), attack("images.dlg", image)),
            caveats,
            fail_on=fail_on,
            allow_inconclusive=allow,
        )
        row = expected(fail_on, score, status, caveats == VOID, image, label, allow)
        assert (result.outcome, result.exit_code) == row, (image, label, allow)
        assert result.fail_on == fail_on
        assert result.threshold == {"medium": 4.0, "high": 7.0}.get(fail_on)
        assert result.reason


@pytest.mark.parametrize("fail_on", [None, "low", "medium", "high", "critical", "0.1", "10"])
def test_only_a_trusted_score_at_the_threshold_exits_1(fail_on):
    for score, void in itertools.product([0.0, 0.1, 3.9, 4.0, 7.0, 9.0, 9.1, 10.0], [(), VOID]):
        result = judge(verdict(score), (), LOOKED, void, fail_on=fail_on)
        reached = result.threshold is not None and score >= result.threshold
        assert (result.exit_code == 1) == (reached and not void)


def test_the_worst_finding_counts_even_if_the_verdict_forgot_it():
    result = judge(verdict(0.0), (finding(1.0), finding(9.5)), LOOKED, (), fail_on="high")
    assert result.outcome == "failed"


def test_the_reason_of_a_failure_names_the_findings_over_the_threshold():
    findings = (finding(9.5, "GA201"), finding(9.1, "GA201"), finding(1.0, "GA103"))
    reason = judge(verdict(9.5), findings, LOOKED, (), fail_on="high").reason
    assert "9.5 (critical)" in reason
    assert "threshold 7.0 (high)" in reason
    assert "(GA201)" in reason
    assert "GA103" not in reason


def test_a_leak_is_not_undone_by_a_sibling_that_failed():
    attacks = (attack("images.newton", "leak"), attack("images.dlg", "failed"))
    assert judge(verdict(9.5), (), attacks, (), fail_on="high").exit_code == 1


def test_a_failed_sibling_counts_while_the_leak_is_below_the_threshold():
    attacks = (attack("images.newton", "leak"), attack("images.dlg", "failed", "no budget"))
    result = judge(verdict(6.0), (), attacks, (), fail_on="high")
    assert result.exit_code == 4
    assert "images.dlg failed (no budget)" in result.reason
    assert "images.newton" not in result.reason


def test_a_leak_that_may_be_larger_than_shown_does_not_pass():
    attacks = (attack("images.dlg", "leak", "the search ended early"),)
    result = judge(verdict(6.0), (), attacks, (), fail_on="high")
    assert result.exit_code == 4
    assert "images.dlg leak (the search ended early)" in result.reason
    assert judge(verdict(6.0), (), attacks, (), fail_on="medium").exit_code == 1
    assert (
        judge(verdict(6.0), (), (attack("images.dlg", "leak"),), (), fail_on="high").exit_code == 0
    )


def test_labels_cannot_reach_high():
    attacks = (attack("labels.head", "skipped"), attack("images.dlg", "nothing shown"))
    assert judge(verdict(), (), attacks, (), fail_on="6.0").exit_code == 4
    assert judge(verdict(), (), attacks, (), fail_on="6.1").exit_code == 0


@pytest.mark.parametrize(
    ("name", "highest"),
    [
        ("labels.head", 6.0),
        ("text.labels", 6.0),
        ("text.tokens", 7.0),
        ("text.spans", 10.0),
        ("images.dlg", 10.0),
        ("tokens.new", 10.0),
    ],
)
def test_reach(name, highest):
    assert reach(name) == highest


def test_what_was_not_selected_is_named_in_a_pass():
    attacks = (attack("labels.head", "nothing shown"), attack("images.dlg", "not selected"))
    result = judge(verdict(), (), attacks, (), fail_on="high")
    assert result.outcome == "passed"
    assert "images.dlg" in result.reason
    assert "images.dlg" not in judge(verdict(), (), LOOKED, (), fail_on="high").reason


@pytest.mark.parametrize("attacks", [(), (attack("images.dlg", "not selected"),)])
def test_nobody_looked_is_not_a_pass(attacks):
    result = judge(verdict(), (), attacks, (), fail_on="high")
    assert (result.outcome, result.exit_code) == ("inconclusive", 4)
    assert "no attack looked" in result.reason


def test_a_waiver_says_what_it_waived():
    attacks = (*LOOKED, attack("images.idlg", "skipped", "no batch size"))
    result = judge(
        verdict(status="inconclusive", reasons=("the budget ended",)),
        (),
        attacks,
        (),
        fail_on="high",
        allow_inconclusive=True,
    )
    assert (result.outcome, result.exit_code) == ("passed", 0)
    for part in ("waived", "the budget ended", "images.idlg skipped (no batch size)"):
        assert part in result.reason


def test_a_waiver_does_not_cover_untrusted_findings_over_the_threshold():
    result = judge(verdict(9.5), (), LOOKED, VOID, fail_on="high", allow_inconclusive=True)
    assert (result.outcome, result.exit_code) == ("inconclusive", 4)
    assert "GA301" in result.reason
    assert "9.5" in result.reason


@pytest.mark.parametrize("fail_on", ["", "none", "0", "nan", "11", "hihg"])
@pytest.mark.parametrize("caveats", [(), VOID])
def test_an_invalid_threshold_is_a_usage_error(fail_on, caveats):
    with pytest.raises(UsageError):
        judge(verdict(), (), LOOKED, caveats, fail_on=fail_on)


def test_exit_codes_of_the_page():
    page = (Path(__file__).parents[1] / "docs" / "ci.md").read_text(encoding="utf-8")
    table = page.split("## Exit codes")[1].split("##")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    rows = {row[1]: int(row[0]) for row in cells if row[0].isdigit()}
    assert rows == {code.name.lower(): code.value for code in ExitCode}
