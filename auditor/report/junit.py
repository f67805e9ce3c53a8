"""JUnit XML, as Jenkins and GitLab read it: one test case a finding, an attack, and the gate.

The file never contradicts the exit code: exit 1 has a failure in it, exit 4 an error, and with a
gate that passed there is neither. Without a gate every finding is a failure, because nobody said
what is acceptable. Nothing recovered gets here.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from auditor.records import AttackReport, Audit, Finding
from auditor.report.words import (
    gate_lines,
    gate_words,
    printable,
    quantity,
    suppression_words,
    verdict_word,
)

# What XML 1.0 cannot hold, even as a reference; `printable` has spelled out the rest.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(audit: Audit) -> str:
    """The audit as one test suite. Same audit, same text."""
    cases = [
        _gate(audit),
        *(_finding(audit, each, i) for i, each in enumerate(audit.findings)),
        *(_attack(audit, each) for each in audit.attacks if each.outcome != "leak"),
    ]
    counts = {
        "tests": len(cases),
        "failures": _count(cases, "failure"),
        "errors": _count(cases, "error"),
        "skipped": _count(cases, "skipped"),
    }
    suite = Element("testsuite", {"name": "gradaudit"})
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    suite.set("time", _seconds(audit.provenance.seconds))
    suite.set("timestamp", audit.provenance.started[:19])
    suite.extend(cases)
    suites = Element("testsuites")
    suites.append(suite)
    indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suites, "unicode") + "\n"


def _gate(audit: Audit) -> Element:
    case = _case("gate", f"verdict of {audit.model.file.name} and {audit.dump.file.name}", 0.0)
    if audit.gate.exit_code == 1:
        _child(case, "failure", "gate failed", gate_words(audit))
    elif audit.gate.exit_code != 0:
        _child(case, "error", "inconclusive", gate_words(audit))
    lines = [
        f"Verdict: {verdict_word(audit)}",
        audit.verdict.sentence,
        f"Gate: {gate_words(audit)}",
    ]
    lines += gate_lines(audit)
    lines += [f"{caveat.code}: {caveat.message}" for caveat in audit.caveats]
    _out(case, lines)
    return case


def _finding(audit: Audit, finding: Finding, index: int) -> Element:
    case = _case("findings", f"{index + 1}. {finding.code} {finding.title}", 0.0)
    accepted = [s for s in audit.gate.suppressions if s.code == finding.code]
    severity = f"{finding.severity.score:.1f} {finding.severity.band}, {finding.certainty}"
    if active := [s for s in accepted if s.state == "active"]:
        _child(case, "skipped", suppression_words(active[0]), "")
    elif _fails(audit, finding):
        _child(case, "failure", f"{finding.title} ({severity})", finding.summary)
    lines = [f"Severity: {severity}", finding.summary, f"Attack: {finding.attack}"]
    lines += [f"{measure.name}: {quantity(measure)}" for measure in finding.measures]
    _out(case, [*lines, f"What to do: {finding.remedy}"])
    return case


def _fails(audit: Audit, finding: Finding) -> bool:
    """Whether this finding is why the gate failed; without a gate, each is."""
    gate = audit.gate
    if gate.outcome == "no gate":
        return True
    if gate.outcome != "failed":
        return False
    known = gate.baseline is not None and finding.code not in (
        *gate.baseline.new,
        *gate.baseline.worse,
    )
    over = gate.threshold is not None and finding.severity.score >= gate.threshold
    lapsed = any(s.code == finding.code and s.state == "expired" for s in gate.suppressions)
    return (over and not known) or lapsed


def _attack(audit: Audit, attack: AttackReport) -> Element:
    case = _case("attacks", f"{attack.name}: {attack.title}", attack.seconds)
    if attack.outcome == "not selected":
        _child(case, "skipped", attack.reason, "")
    elif attack.outcome in ("failed", "skipped"):
        # what could not look is an error, unless the gate says that it does not matter
        word = "error" if audit.gate.exit_code == 4 else "skipped"
        _child(case, word, f"{attack.outcome}: {attack.reason}", "")
    return case


def _case(group: str, name: str, seconds: float) -> Element:
    attributes = {"classname": f"gradaudit.{group}", "name": _text(name), "time": _seconds(seconds)}
    return Element("testcase", attributes)


def _child(case: Element, tag: str, message: str, text: str) -> None:
    child = SubElement(case, tag, {"message": _text(message), "type": tag})
    child.text = _text(text)


def _out(case: Element, lines: list[str]) -> None:
    SubElement(case, "system-out").text = "\n".join(_text(line) for line in lines)


def _count(cases: list[Element], tag: str) -> int:
    return sum(case.find(tag) is not None for case in cases)


def _seconds(value: float) -> str:
    return f"{max(value, 0.0):.3f}"


def _text(text: str) -> str:
    return _ILLEGAL.sub(lambda found: f"\\u{ord(found[0]):04x}", printable(text))
