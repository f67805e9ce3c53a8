"""The first line of the report, drawn from findings, attacks and caveats. Plain data only."""

from __future__ import annotations

from auditor.records import AttackReport, Caveat, Finding, Severity, Verdict
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
