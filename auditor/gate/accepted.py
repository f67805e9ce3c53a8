"""What is accepted: suppressions with a reason and a last day, and the findings of a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.errors import InputError
from auditor.records import Audit, Baseline, Finding, Suppression
from auditor.report.words import printable

# Findings that say the same of the client's data, more or less surely: their worst score counts.
_KINDS: tuple[tuple[str, str], ...] = (("GA1", "labels"), ("GA2", "pictures"), ("GA50", "text"))
_ALONE = frozenset({"GA504"})  # the words without their order


@dataclass(frozen=True)
class Accepted:
    """A finding that somebody accepts, until a day."""

    code: str
    reason: str
    expires: str  # ISO 8601: the last day on which it holds


@dataclass(frozen=True)
class Reference:
    """An earlier audit to compare with."""

    audit: Audit
    sha256: str  # of its audit.json


def suppressions_of(audit: Audit, accepted: tuple[Accepted, ...]) -> tuple[Suppression, ...]:
    """What each acceptance is worth on the day of the audit (UTC)."""
    day = audit.provenance.started[:10]
    codes = {finding.code for finding in audit.findings}
    found = []
    for each in accepted:
        state = "expired" if each.expires < day else "active" if each.code in codes else "unused"
        found.append(Suppression(each.code, each.reason, each.expires, state))  # type: ignore[arg-type]
    return tuple(found)


def compared(audit: Audit, reference: Reference) -> Baseline:
    """What is new or worse than in the reference. Raises InputError for another model's."""
    require_same_model(audit.model.architecture, audit.model.parameters, reference)
    before = _worst(reference.audit)
    new, worse = [], []
    for finding in audit.findings:
        known = before.get(kind_of(finding.code))
        if known is None:
            new.append(finding.code)
        elif finding.severity.score > known:
            worse.append(finding.code)
    started = reference.audit.provenance.started
    codes = (tuple(dict.fromkeys(each)) for each in (new, worse))
    return Baseline(reference.sha256, started, *codes)


def counted_findings(
    audit: Audit, suppressions: tuple[Suppression, ...], reference: Reference | None
) -> tuple[Finding, ...]:
    """The findings that the gate has to judge: not suppressed, and new or worse."""
    hidden = {each.code for each in suppressions if each.state == "active"}
    left = tuple(finding for finding in audit.findings if finding.code not in hidden)
    if reference is None:
        return left
    before = _worst(reference.audit)
    return tuple(f for f in left if f.severity.score > before.get(kind_of(f.code), -1.0))


def kind_of(code: str) -> str:
    """What a finding is about: codes of one kind differ in how sure they are."""
    if code in _ALONE:
        return code
    return next((kind for start, kind in _KINDS if code.startswith(start)), code)


def require_same_model(architecture: str, parameters: int, reference: Reference) -> None:
    """Raises InputError unless the reference has the same architecture; weights may differ."""
    other = reference.audit.model
    if (architecture, parameters) != (other.architecture, other.parameters):
        ours, theirs = printable(architecture, limit=80), printable(other.architecture, limit=80)
        raise InputError(
            expected=f"a baseline of the audited model ({ours}, {parameters} parameters)",
            found=f"one of another model ({theirs}, {other.parameters} parameters)",
            todo="Give the audit.json of an earlier audit of this model.",
        )


def _worst(audit: Audit) -> dict[str, float]:
    """The worst score of each kind."""
    found: dict[str, float] = {}
    for finding in audit.findings:
        kind = kind_of(finding.code)
        found[kind] = max(found.get(kind, 0.0), finding.severity.score)
    return found
