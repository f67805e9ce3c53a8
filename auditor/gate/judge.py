"""The judgement: which exit code an audit leads to under the user's rules, and why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from auditor.gate.accepted import (
    Accepted,
    Reference,
    compared,
    counted_findings,
    suppressions_of,
)
from auditor.gate.codes import ExitCode
from auditor.gate.limits import Limits, checked, doubts_of
from auditor.records import (
    AttackReport,
    Audit,
    Caveat,
    Finding,
    GateResult,
    Limit,
    Suppression,
    Verdict,
)
from auditor.report.words import limit_words
from auditor.severity import EVERY_LABEL, TOKEN_SET, band_of, parse_threshold

_Outcome = Literal["no gate", "passed", "failed", "inconclusive"]
_CODES: dict[_Outcome, ExitCode] = {
    "no gate": ExitCode.PASS,
    "passed": ExitCode.PASS,
    "failed": ExitCode.LEAK,
    "inconclusive": ExitCode.INCONCLUSIVE,
}
_WAIVED = "waived by --allow-inconclusive: "
_ANYTHING = 0.1  # a baseline without --fail-on: whatever is new or worse fails


@dataclass(frozen=True)
class GateRules:
    """What the gate is asked."""

    fail_on: str | None = None  # a band or a score
    allow_inconclusive: bool = False
    limits: Limits = field(default_factory=Limits)
    accepted: tuple[Accepted, ...] = ()
    reference: Reference | None = None

    @property
    def is_gate(self) -> bool:
        """Whether anything can fail."""
        return not (self.fail_on is None and self.limits.is_empty and self.reference is None)


def judged(audit: Audit, rules: GateRules) -> Audit:
    """The same audit with the gate's answer to these rules.

    The same audit and rules give the same answer, whatever the day. Raises UsageError for a
    threshold that is neither band nor score, and InputError for a baseline of another model.
    """
    return replace(audit, gate=_judge_all(audit, rules))


def _judge_all(audit: Audit, rules: GateRules) -> GateResult:
    suppressions = suppressions_of(audit, rules.accepted)
    if not rules.is_gate:
        plain = judge(
            audit.verdict,
            audit.findings,
            audit.attacks,
            audit.caveats,
            fail_on=None,
            allow_inconclusive=rules.allow_inconclusive,
        )
        return replace(plain, suppressions=suppressions)
    counted = counted_findings(audit, suppressions, rules.reference)
    limits = checked(rules.limits, audit, counted)
    threshold = _threshold(rules)
    failures = _failures(audit, counted, threshold, limits, suppressions)
    outcome, reason = _outcome(audit, rules, counted, threshold, limits, failures)
    return GateResult(
        fail_on=rules.fail_on,
        threshold=threshold,
        outcome=outcome,
        exit_code=int(_CODES[outcome]),
        reason=reason,
        limits=limits,
        suppressions=suppressions,
        baseline=None if rules.reference is None else compared(audit, rules.reference),
    )


def _threshold(rules: GateRules) -> float | None:
    if rules.fail_on is not None:
        return parse_threshold(rules.fail_on)
    return None if rules.reference is None else _ANYTHING


def _failures(
    audit: Audit,
    counted: tuple[Finding, ...],
    threshold: float | None,
    limits: tuple[Limit, ...],
    suppressions: tuple[Suppression, ...],
) -> list[str]:
    """Every reason to fail, before it is asked whether the audit can be trusted."""
    found = []
    score = _score(audit, counted)
    if threshold is not None and score >= threshold:
        found.append(_leak_reason(score, threshold, counted))
    found += [limit_words(limit) for limit in limits if limit.outcome == "exceeded"]
    codes = {finding.code for finding in audit.findings}
    found += [
        f"the suppression of {each.code} expired on {each.expires}"
        for each in suppressions
        if each.state == "expired" and each.code in codes
    ]
    return found


def _score(audit: Audit, counted: tuple[Finding, ...]) -> float:
    """The worst that counts; the verdict's own score, unless some findings do not count."""
    whole = [audit.verdict.severity.score] if len(counted) == len(audit.findings) else []
    return max([*whole, *(finding.severity.score for finding in counted)], default=0.0)


def _outcome(
    audit: Audit,
    rules: GateRules,
    counted: tuple[Finding, ...],
    threshold: float | None,
    limits: tuple[Limit, ...],
    failures: list[str],
) -> tuple[_Outcome, str]:
    void = tuple(caveat.code for caveat in audit.caveats if caveat.voids)
    if failures and not void:
        return "failed", "; ".join(failures)
    doubts = _inconclusive(audit.verdict, void)
    if threshold is not None:
        doubts += _unlooked(audit.attacks, threshold)
    doubts += doubts_of(limits, audit, [a.name for a in audit.attacks if _unfinished(a)])
    if failures:
        doubts.append(f"{'; '.join(failures)}: but nothing here can be trusted")
        return "inconclusive", "; ".join(doubts)
    if doubts:
        waived = rules.allow_inconclusive
        return (
            ("passed", _WAIVED + "; ".join(doubts))
            if waived
            else ("inconclusive", "; ".join(doubts))
        )
    reasons = [limit_words(limit) for limit in limits]
    if threshold is not None:
        score = _score(audit, counted)
        scope = _uncounted(audit, counted, rules)
        reasons.insert(0, _pass_reason(score, threshold, audit.attacks) + scope)
    return "passed", "; ".join(reasons)


def _uncounted(audit: Audit, counted: tuple[Finding, ...], rules: GateRules) -> str:
    """What a pass did not count, so that nobody takes it for more than it is."""
    codes = dict.fromkeys(finding.code for finding in audit.findings if finding not in counted)
    why = "suppressed" if rules.reference is None else "suppressed, or no worse than the baseline"
    return f"; not counted, {why}: {', '.join(codes)}" if codes else ""


def judge(
    verdict: Verdict,
    findings: tuple[Finding, ...],
    attacks: tuple[AttackReport, ...],
    caveats: tuple[Caveat, ...],
    *,
    fail_on: str | None,
    allow_inconclusive: bool = False,
) -> GateResult:
    """The answer to `--fail-on`, with the reason in one sentence.

    `fail_on`: a band, a score, or None for no gate. `allow_inconclusive` turns "cannot tell"
    into a pass, but not when untrusted findings reach the threshold. Raises UsageError when
    `fail_on` is neither.
    """
    void = tuple(caveat.code for caveat in caveats if caveat.voids)
    if fail_on is None:
        return _ungated(_inconclusive(verdict, void), allow_inconclusive)
    threshold = parse_threshold(fail_on)
    score = max([verdict.severity.score, *(f.severity.score for f in findings)])
    if score >= threshold and not void:
        return _result(fail_on, threshold, "failed", _leak_reason(score, threshold, findings))
    doubts = _inconclusive(verdict, void) + _unlooked(attacks, threshold)
    if not doubts:
        return _result(fail_on, threshold, "passed", _pass_reason(score, threshold, attacks))
    if score >= threshold:
        doubts.append(f"findings of {score} reach the threshold but cannot be trusted")
    elif allow_inconclusive:
        return _result(fail_on, threshold, "passed", _WAIVED + "; ".join(doubts))
    return _result(fail_on, threshold, "inconclusive", "; ".join(doubts))


def reach(attack: str) -> float:
    """The highest score that an attack of this name could have led to."""
    if attack == "text.tokens":
        return TOKEN_SET
    return EVERY_LABEL if attack == "text.labels" or attack.startswith("labels.") else 10.0


def _ungated(doubts: list[str], allow_inconclusive: bool) -> GateResult:
    if not doubts:
        return _result(None, None, "no gate", "no --fail-on was given")
    if allow_inconclusive:
        return _result(None, None, "no gate", _WAIVED + "; ".join(doubts))
    return _result(None, None, "inconclusive", "; ".join(doubts))


def _inconclusive(verdict: Verdict, void: tuple[str, ...]) -> list[str]:
    """Why the verdict itself does not answer; empty when it does."""
    if void:
        return [f"{', '.join(void)} voids the verdict"]
    if verdict.status == "inconclusive":
        return ["the audit is inconclusive" + _because(verdict.reasons)]
    return []


def _unlooked(attacks: tuple[AttackReport, ...], threshold: float) -> list[str]:
    """What could have reached the threshold and did not look; empty when all did."""
    nobody = not any(attack.outcome in ("leak", "nothing shown") for attack in attacks)
    return ["no attack looked"] * nobody + [
        f"{attack.name} {attack.outcome}" + _because((attack.reason,))
        for attack in attacks
        if _unfinished(attack) and reach(attack.name) >= threshold
    ]


def _unfinished(attack: AttackReport) -> bool:
    """A leak that gives a reason is one that may be larger than shown."""
    return attack.outcome in ("failed", "skipped") or (
        attack.outcome == "leak" and attack.reason != ""
    )


def _pass_reason(score: float, threshold: float, attacks: tuple[AttackReport, ...]) -> str:
    left_out = [
        attack.name
        for attack in attacks
        if attack.outcome == "not selected" and reach(attack.name) >= threshold
    ]
    scope = f"; not selected, so not looked at: {', '.join(left_out)}" if left_out else ""
    return f"worst severity {score} ({band_of(score)}) is below {_named(threshold)}{scope}"


def _leak_reason(score: float, threshold: float, findings: tuple[Finding, ...]) -> str:
    codes = dict.fromkeys(f.code for f in findings if f.severity.score >= threshold)
    found = f" ({', '.join(codes)})" if codes else ""
    return f"worst severity {score} ({band_of(score)}) reaches {_named(threshold)}{found}"


def _result(
    fail_on: str | None, threshold: float | None, outcome: _Outcome, reason: str
) -> GateResult:
    return GateResult(fail_on, threshold, outcome, int(_CODES[outcome]), reason)


def _because(reasons: tuple[str, ...]) -> str:
    told = [reason for reason in reasons if reason]
    return f" ({'; '.join(told)})" if told else ""


def _named(threshold: float) -> str:
    return f"the threshold {threshold} ({band_of(threshold)})"
