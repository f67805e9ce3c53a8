"""The catalogue of what an audit can say: one `Rule` a code, findings first, then caveats.

Reference ids: NIST AI 100-2 E2025 (NISTAML.032 data reconstruction), MITRE ATLAS
(AML.T0024.001, the closest technique, written for inference interfaces), OWASP ML Top 10
(ML03:2023 model inversion).
"""

from __future__ import annotations

from collections.abc import Sequence

from auditor.records import Certainty, Finding, Measure, Severity
from auditor.rules.caveats import CAVEATS
from auditor.rules.findings import FINDINGS
from auditor.rules.rule import Rule

RULES: tuple[Rule, ...] = (*FINDINGS, *CAVEATS)

__all__ = ["RULES", "Rule", "finding_of", "rule"]


def finding_of(
    code: str,
    severity: Severity,
    certainty: Certainty,
    summary: str,
    attack: str,
    measures: Sequence[Measure],
    premises: Sequence[str] = (),
) -> Finding:
    """A finding with the title and the remedy of its code. Raises KeyError when there is none."""
    entry = rule(code)
    return Finding(
        entry.code,
        entry.title,
        severity,
        certainty,
        summary,
        attack,
        tuple(measures),
        tuple(premises),
        entry.remedy,
    )


def rule(code: str) -> Rule:
    """The rule with this code. Raises KeyError when there is none."""
    for entry in RULES:
        if entry.code == code:
            return entry
    raise KeyError(code)
