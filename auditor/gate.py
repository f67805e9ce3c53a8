"""From a verdict to an exit code. Plain data in, plain data out; no torch.

The gate passes only when something looked and nothing that could have reached the threshold
was left unlooked at. What cannot be told is exit 4, never exit 0, unless the user waives it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

from auditor.records import AttackReport, Caveat, Finding, GateResult, Verdict
from auditor.severity import EVERY_LABEL, TOKEN_SET, band_of, parse_threshold


class ExitCode(IntEnum):
    """What the process returns. Nothing but a failed gate may be 1."""

    PASS = 0
    LEAK = 1
    USAGE = 2
    INPUT = 3
    INCONCLUSIVE = 4
    INTERNAL = 5
    INTERRUPTED = 130


_Outcome = Literal["no gate", "passed", "failed", "inconclusive"]
_CODES: dict[_Outcome, ExitCode] = {
    "no gate": ExitCode.PASS,
    "passed": ExitCode.PASS,
    "failed": ExitCode.LEAK,
    "inconclusive": ExitCode.INCONCLUSIVE,
}
_WAIVED = "waived by --allow-inconclusive: "


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
