"""What changed from one audit to another, in lines for people. Plain data; no torch."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.records import Audit, Finding, Measure
from auditor.report.words import gate_words, printable, quantity, score_words, verdict_word


def changes(old: Audit, new: Audit) -> list[str]:
    """One line a change, worst first; one line that says so when there is none.

    Times and residual curves are left out: they differ from run to run.
    """
    lines = [*_verdict(old, new), *_findings(old, new), *_attacks(old, new), *_caveats(old, new)]
    lines = [printable(line) for line in [*_frame(old, new), *lines]]
    return lines or ["nothing changed"]


def _frame(old: Audit, new: Audit) -> Iterator[str]:
    """What makes the two hard to compare."""
    before, after = old.model, new.model
    if (before.architecture, before.parameters) != (after.architecture, after.parameters):
        yield f"another model: {before.architecture} -> {after.architecture}"
    elif before.file.sha256 != after.file.sha256:
        yield "the weights differ"
    if old.dump.file.sha256 != new.dump.file.sha256:
        yield "the dumps differ"
    for name in ("version", "preset", "seed", "device", "dtype"):
        was, now = getattr(old.provenance, name), getattr(new.provenance, name)
        if was != now:
            yield f"{name}: {was} -> {now}"


def _verdict(old: Audit, new: Audit) -> Iterator[str]:
    was, now = (f"{verdict_word(audit)} ({score_words(audit)})" for audit in (old, new))
    if was != now:
        yield f"verdict: {was} -> {now}"
    if old.gate.outcome != new.gate.outcome:
        yield f"gate: {old.gate.outcome} -> {gate_words(new)}"


def _findings(old: Audit, new: Audit) -> Iterator[str]:
    before, after = _by_place(old), _by_place(new)
    for place, finding in after.items():
        if place not in before:
            yield f"new: {_named(finding)}"
        elif changed := list(_within(before[place], finding)):
            yield f"changed: {finding.code} {finding.title}: {'; '.join(changed)}"
    yield from (
        f"gone: {_named(finding)}" for place, finding in before.items() if place not in after
    )


def _within(was: Finding, now: Finding) -> Iterator[str]:
    if was.severity != now.severity:
        yield f"score {was.severity.score:.1f} -> {now.severity.score:.1f} {now.severity.band}"
    if was.certainty != now.certainty:
        yield f"{was.certainty} -> {now.certainty}"
    if was.attack != now.attack:
        yield f"by {was.attack} -> by {now.attack}"
    known = {measure.name: measure for measure in was.measures}
    yield from (
        _measure(known.get(m.name), m) for m in now.measures if _moved(known.get(m.name), m)
    )


def _moved(was: Measure | None, now: Measure) -> bool:
    return was is None or quantity(was) != quantity(now)


def _measure(was: Measure | None, now: Measure) -> str:
    return f"{now.name} {'none' if was is None else quantity(was)} -> {quantity(now)}"


def _attacks(old: Audit, new: Audit) -> Iterator[str]:
    before = {attack.name: attack.outcome for attack in old.attacks}
    for attack in new.attacks:
        was = before.get(attack.name, "not in the list")
        if was != attack.outcome:
            why = f" ({attack.reason})" if attack.reason else ""
            yield f"{attack.name}: {was} -> {attack.outcome}{why}"


def _caveats(old: Audit, new: Audit) -> Iterator[str]:
    before, after = ({(c.code, c.message) for c in audit.caveats} for audit in (old, new))
    yield from (f"new caveat: {code} {message}" for code, message in sorted(after - before))
    yield from (f"caveat gone: {code} {message}" for code, message in sorted(before - after))


def _by_place(audit: Audit) -> dict[tuple[str, int], Finding]:
    """Findings by their code, and by their rank among those of the same code."""
    found: dict[tuple[str, int], Finding] = {}
    for finding in audit.findings:
        rank = sum(code == finding.code for code, _ in found)
        found[finding.code, rank] = finding
    return found


def _named(finding: Finding) -> str:
    severity = finding.severity
    return f"{finding.code} {finding.title} ({severity.score:.1f} {severity.band})"
