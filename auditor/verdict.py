"""The verdict drawn from findings, attacks and caveats, and the audit around it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from auditor.gate import judge
from auditor.records import (
    SCHEMA_VERSION,
    Assumption,
    AttackReport,
    Audit,
    Caveat,
    DumpSummary,
    Exhibit,
    Finding,
    ModelSummary,
    Provenance,
    Severity,
    Trust,
    Verdict,
)
from auditor.severity import band_of

_CERTAINTY = {
    "proved": "proved",
    "verified": "verified by re-deriving the gradient and by independent restarts",
    "consistent": "consistent with the gradient, not confirmed",
    "measured": "measured against the truth you gave",
    "estimated": "an estimate",
}

# Inputs that were read one by one are checked otherwise.
_ONE_BY_ONE = {
    "verified": "each verified by itself against the rows of the gradient it was read from",
}
_TEXT = {"verified": "verified by re-deriving the gradient"}


def draw_verdict(
    findings: tuple[Finding, ...], attacks: tuple[AttackReport, ...], caveats: tuple[Caveat, ...]
) -> Verdict:
    """Leak, no leak shown, or inconclusive. `findings` come worst first.

    A caveat that voids, or nothing found while something could not look, is inconclusive: an
    attack that failed proves nothing.
    """
    void = [caveat.message for caveat in caveats if caveat.voids]
    unseen = [f"{a.name}: {a.reason or a.outcome}" for a in attacks if _unfinished(a)]
    if void:
        return Verdict(
            "inconclusive",
            _severity(()),
            "No verdict: a caveat voids it. This is not a sign of safety.",
            (*void, *unseen),
        )
    if findings:
        worst = findings[0]
        words = _CERTAINTY | {"GA204": _ONE_BY_ONE, "GA501": _TEXT}.get(worst.code, {})
        sentence = f"{worst.title} ({words[worst.certainty]})."
        return Verdict("leak", _severity(findings), sentence, tuple(unseen))
    if unseen or not any(attack.outcome in {"leak", "nothing shown"} for attack in attacks):
        return Verdict(
            "inconclusive",
            _severity(()),
            "No verdict: nothing was shown, and what "
            "could not look proves nothing. This is not a sign of safety.",
            tuple(unseen),
        )
    return Verdict(
        "no leak shown",
        _severity(()),
        "No leak was shown by the attacks that ran. Other attacks may show one.",
        (),
    )


def _unfinished(attack: AttackReport) -> bool:
    """A leak that gives a reason may be larger than shown."""
    return attack.outcome in {"failed", "skipped"} or (
        attack.outcome == "leak" and attack.reason != ""
    )


def _severity(findings: tuple[Finding, ...]) -> Severity:
    score = max((finding.severity.score for finding in findings), default=0.0)
    return Severity(score, band_of(score))


@dataclass(frozen=True)
class Shown:
    """What the attacks came to, before the verdict."""

    findings: tuple[Finding, ...]  # worst first
    reports: tuple[AttackReport, ...]
    caveats: tuple[Caveat, ...]


def conclude(
    shown: Shown,
    *,
    evidence: Literal["none", "separate", "embed"],
    fail_on: str | None,
    allow_inconclusive: bool,
    assumptions: tuple[Assumption, ...],
    model: ModelSummary,
    dump: DumpSummary,
    exhibits: tuple[Exhibit, ...],
    provenance: Provenance,
    trust: Trust = Trust(),  # noqa: B008 (frozen)
) -> Audit:
    """Draw the verdict, ask the gate, and lay down the record, for pictures and texts alike."""
    verdict = draw_verdict(shown.findings, shown.reports, shown.caveats)
    return Audit(
        schema_version=SCHEMA_VERSION,
        verdict=verdict,
        gate=judge(
            verdict,
            shown.findings,
            shown.reports,
            shown.caveats,
            fail_on=fail_on,
            allow_inconclusive=allow_inconclusive,
        ),
        findings=shown.findings,
        attacks=shown.reports,
        caveats=shown.caveats,
        assumptions=assumptions,
        model=model,
        dump=dump,
        evidence=evidence,
        exhibits=exhibits,
        trust=trust,
        provenance=provenance,
    )
