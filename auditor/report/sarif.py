"""SARIF 2.1.0 (OASIS, 2020), for code scanning and whatever else reads it.

Findings are results of kind "fail". An audit without a verdict is a result of kind "open", so that
no reader takes an empty list for a pass. Caveats, and attacks that could not look, are
notifications of the invocation. Nothing recovered gets here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from auditor.records import Audit, Band, Certainty, FileRef, Finding, Suppression
from auditor.report.words import gate_words, printable, suppression_words, verdict_word
from auditor.rules import RULES, Rule

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
OPEN = "no-verdict"  # the id under which an audit without a verdict is told

_LEVEL: dict[Band, str] = {
    "critical": "error",
    "high": "error",
    "medium": "warning",
    "low": "note",
    "none": "none",
}
_PRECISION: dict[Certainty, str] = {
    "proved": "very-high",
    "verified": "very-high",
    "measured": "very-high",
    "consistent": "medium",
    "estimated": "low",
}
# Catalogues that rules refer to: the start of their ids, name, edition.
_CATALOGUES = (
    ("NISTAML", "NIST AI 100-2", "E2025"),
    ("AML.T", "MITRE ATLAS", "5.6.0"),
    ("ML", "OWASP Machine Learning Security Top 10", "2023"),
)


def to_sarif(audit: Audit) -> str:
    """The audit as one run. Same audit, same text; ASCII only."""
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(audit)]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _run(audit: Audit) -> dict[str, Any]:
    rules = _rules_of(audit)
    codes = [rule["id"] for rule in rules]
    return {
        "tool": {
            "driver": {
                "name": "gradaudit",
                "version": _clean(audit.provenance.version),
                "rules": rules,
            }
        },
        "automationDetails": {"id": f"gradaudit/{_clean(audit.dump.file.name)}/"},
        "invocations": [_invocation(audit)],
        "artifacts": [_artifact(audit.dump.file), _artifact(audit.model.file)],
        "taxonomies": [_taxonomy(i) for i in range(len(_CATALOGUES))],
        "results": [*_open(audit, codes), *(_result(audit, f, codes) for f in audit.findings)],
        "columnKind": "unicodeCodePoints",
    }


# --------------------------------------------------------------------------- rules


def _rules_of(audit: Audit) -> list[dict[str, Any]]:
    """A rule for each code of a finding or caveat, in the order of the catalogue."""
    scores: dict[str, float] = {}
    for finding in audit.findings:
        scores[finding.code] = max(scores.get(finding.code, 0.0), finding.severity.score)
    told = {*scores, *(caveat.code for caveat in audit.caveats)}
    known = [_rule(rule, scores.get(rule.code)) for rule in RULES if rule.code in told]
    other = sorted(told - {rule.code for rule in RULES})
    return [*known, *({"id": _clean(code)} for code in other), _OPEN_RULE]


_OPEN_RULE: dict[str, Any] = {
    "id": OPEN,
    "name": "NoVerdict",
    "shortDescription": {"text": "The audit came to no verdict"},
    "fullDescription": {"text": "What could not look proves nothing. This is not a pass."},
}


def _rule(rule: Rule, score: float | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"tags": ["privacy", *rule.references]}
    if score is not None:
        properties["tags"] = ["security", *properties["tags"]]
        properties["security-severity"] = _security_severity(score)
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.title.split() if word.isalnum()),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.meaning},
        "help": {"text": f"{rule.matters} What to do: {rule.remedy}"},
        "relationships": [_relationship(reference) for reference in rule.references],
        "properties": properties,
    }


def _security_severity(score: float) -> str:
    """As GitHub reads it: above 9.0 is critical there, from 9.1 on it is here."""
    return f"{min(score, 8.9) if score < 9.1 else score:.1f}"


def _relationship(reference: str) -> dict[str, Any]:
    place, ident = _catalogue_of(reference), reference.split(maxsplit=1)[0]
    taxa = _taxa(place)
    return {
        "target": {
            "id": ident,
            "index": taxa.index(ident),
            "toolComponent": {"name": _CATALOGUES[place][1], "index": place},
        },
        "kinds": ["relevant"],
    }


def _taxonomy(place: int) -> dict[str, Any]:
    _, name, edition = _CATALOGUES[place]
    return {"name": name, "version": edition, "taxa": [{"id": ident} for ident in _taxa(place)]}


def _taxa(place: int) -> list[str]:
    every = (reference for rule in RULES for reference in rule.references)
    ids = {ref.split()[0] for ref in every if _catalogue_of(ref) == place}
    return sorted(ids)


def _catalogue_of(reference: str) -> int:
    starts = [start for start, _, _ in _CATALOGUES]
    return next(i for i, start in enumerate(starts) if reference.startswith(start))


# --------------------------------------------------------------------------- results


def _result(audit: Audit, finding: Finding, codes: Sequence[str]) -> dict[str, Any]:
    code, score = _clean(finding.code), finding.severity.score
    measures = {_clean(m.name): _clean(f"{m.value:.6g} {m.unit}".strip()) for m in finding.measures}
    result: dict[str, Any] = {
        "ruleId": code,
        "ruleIndex": codes.index(code),
        "kind": "fail",
        "level": _LEVEL[finding.severity.band],
        "message": {"text": _clean(f"{finding.title}. {finding.summary}")},
        "locations": [_location(audit)],
        "partialFingerprints": {"gradauditFinding/v1": _fingerprint(audit, code)},
        "rank": min(score * 10, 100.0),
        "properties": {
            "score": score,
            "certainty": finding.certainty,
            "precision": _PRECISION[finding.certainty],
            "attack": _clean(finding.attack),
            "measures": measures,
        },
    }
    accepted = [_suppression(s) for s in audit.gate.suppressions if s.code == finding.code]
    result["suppressions"] = [each for each in accepted if each is not None]
    if audit.gate.baseline is not None:
        result["baselineState"] = _state(audit, finding.code)
    return result


def _open(audit: Audit, codes: Sequence[str]) -> list[dict[str, Any]]:
    """What stands where findings would, when there is no verdict."""
    if audit.verdict.status != "inconclusive" and audit.gate.outcome != "inconclusive":
        return []
    return [
        {
            "ruleId": OPEN,
            "ruleIndex": codes.index(OPEN),
            "kind": "open",
            "level": "none",
            "message": {"text": _clean(f"{audit.verdict.sentence} {audit.gate.reason}")},
            "locations": [_location(audit)],
            "partialFingerprints": {"gradauditFinding/v1": _fingerprint(audit, OPEN)},
        }
    ]


def _suppression(each: Suppression) -> dict[str, Any] | None:
    if each.state == "unused":
        return None
    status = "accepted" if each.state == "active" else "rejected"
    text = _clean(suppression_words(each))
    return {"kind": "external", "status": status, "justification": text}


def _state(audit: Audit, code: str) -> str:
    assert audit.gate.baseline is not None
    if code in audit.gate.baseline.new:
        return "new"
    return "updated" if code in audit.gate.baseline.worse else "unchanged"


def _location(audit: Audit) -> dict[str, Any]:
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(audit.dump.file), "index": 0},
        },
        "logicalLocations": [{"name": _clean(audit.model.architecture), "kind": "module"}],
    }


def _fingerprint(audit: Audit, code: str) -> str:
    """The same for every run on a dump and a model of these names."""
    parts = (code, audit.model.architecture, audit.model.file.name, audit.dump.file.name)
    text = "\0".join(parts).encode("utf-8", "replace")
    return hashlib.sha256(text).hexdigest()


# --------------------------------------------------------------------------- the run


def _invocation(audit: Audit) -> dict[str, Any]:
    return {
        "executionSuccessful": audit.verdict.status != "inconclusive",
        "exitCode": audit.gate.exit_code,
        "exitCodeDescription": _clean(gate_words(audit)),
        "arguments": [_clean(argument) for argument in audit.provenance.command],
        "toolExecutionNotifications": [*_caveats(audit), *_unlooked(audit)],
        "properties": {"verdict": verdict_word(audit), "score": audit.verdict.severity.score},
    }


def _caveats(audit: Audit) -> list[dict[str, Any]]:
    return [
        {
            "descriptor": {"id": _clean(caveat.code)},
            "level": "error" if caveat.voids else "warning",
            "message": {"text": _clean(caveat.message)},
        }
        for caveat in audit.caveats
    ]


def _unlooked(audit: Audit) -> list[dict[str, Any]]:
    return [
        {
            "level": "note" if attack.outcome == "not selected" else "warning",
            "message": {"text": _clean(f"{attack.name} {attack.outcome}: {attack.reason}")},
        }
        for attack in audit.attacks
        if attack.outcome in ("failed", "skipped", "not selected")
    ]


def _artifact(file: FileRef) -> dict[str, Any]:
    found: dict[str, Any] = {
        "location": {"uri": _uri(file)},
        "length": file.bytes,
        "roles": ["analysisTarget"],
        "description": {"text": _clean(file.format)},
    }
    return found | ({"hashes": {"sha-256": file.sha256}} if file.sha256 else {})


def _uri(file: FileRef) -> str:
    """The base name as a relative reference."""
    return quote(_clean(file.name) or "unnamed", safe="")


def _clean(text: str) -> str:
    return printable(text)
