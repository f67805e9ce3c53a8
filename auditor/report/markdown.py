"""Markdown for a step summary or a merge request: short, and nothing in it is obeyed.

Names and messages come from files that a stranger may have made: all punctuation that Markdown or
HTML could take for its own is escaped. Nothing recovered gets here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from auditor.records import Audit
from auditor.report.words import (
    gate_lines,
    gate_words,
    printable,
    quantity,
    score_words,
    verdict_word,
)

_MOST = 100  # rows of a table or a list: GitHub takes a summary of 1 MiB at most
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~&@$:=^\"'/])")
_NUMBERED = re.compile(r"^(\d+)([.)])")
_ADDRESS = re.compile(r"\b(www)\.", re.IGNORECASE)


def to_markdown(audit: Audit) -> str:
    """The audit in a page or two. Same audit, same text."""
    files = f"{audit.model.file.name} and {audit.dump.file.name}"
    parts = [
        f"## Gradient leakage audit: {verdict_word(audit)} ({score_words(audit)})",
        _text(audit.verdict.sentence),
        f"Model and dump: {_text(files)}, audited {_text(audit.provenance.started)}.",
        f"**Gate:** {_text(gate_words(audit))}",
        _list(gate_lines(audit)),
        *_titled("Why, and what could not be looked at", _list(audit.verdict.reasons)),
        *_titled("Findings", _findings(audit)),
        *_titled("Caveats", _list(_caveats(audit))),
        *_titled("Assumed, nobody said so", _list(_assumed(audit))),
        *_titled("Attacks", _attacks(audit)),
        *_titled("What to do", _list(_remedies(audit))),
        "No finding is no proof of safety: other attacks may show more. "
        f"Written by gradaudit {_text(audit.provenance.version)}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _findings(audit: Audit) -> str:
    rows = []
    for finding in audit.findings:
        score = f"{finding.severity.score:.1f} {finding.severity.band}"
        numbers = "; ".join(f"{measure.name} {quantity(measure)}" for measure in finding.measures)
        rows.append((finding.code, score, finding.certainty, finding.title, numbers))
    return _table(("Code", "Score", "Certainty", "What", "Measures"), rows)


def _attacks(audit: Audit) -> str:
    rows = [(attack.name, attack.outcome, attack.reason) for attack in audit.attacks]
    return _table(("Attack", "Outcome", "Why"), rows)


def _caveats(audit: Audit) -> list[str]:
    void = {True: " (voids the verdict)", False: ""}
    return [f"{caveat.code} {caveat.message}{void[caveat.voids]}" for caveat in audit.caveats]


def _assumed(audit: Audit) -> list[str]:
    return [f"{f.what}: {f.value}" for f in audit.assumptions if f.origin == "assumed"]


def _remedies(audit: Audit) -> list[str]:
    return list(dict.fromkeys(finding.remedy for finding in audit.findings))


def _titled(title: str, body: str) -> tuple[str, ...]:
    return (f"### {title}", body) if body else ()


def _list(lines: Iterable[str]) -> str:
    every = list(lines)
    shown = [f"- {_text(line)}" for line in every[:_MOST]]
    return "\n".join(shown + _rest(len(every), "- {}"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows[:_MOST]]
    return "\n".join(lines + _rest(len(rows), "| {} |"))


def _rest(count: int, line: str) -> list[str]:
    left = count - _MOST
    return [line.format(f"{left} more are in audit.json")] if left > 0 else []


def _text(text: str) -> str:
    """Foreign text as Markdown that shows exactly this text, on one line."""
    escaped = _PUNCTUATION.sub(r"\\\1", printable(text).strip())
    escaped = _ADDRESS.sub(r"\1\\.", escaped)
    return _NUMBERED.sub(r"\1\\\2", escaped)
