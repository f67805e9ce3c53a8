"""The sentences of a finished audit, said of rows where the model takes rows of a table.

Attacks, checks and findings speak of pictures, because pictures are what most of them were made
for; the names of attacks stay (`images.layers`). Here, where all sentences come together, the nouns
are exchanged. What stands in quotation marks is a name of the user's and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from auditor.records import Audit, Bound, Trust, WhatIf

# The first that fits counts; nothing that follows a word is taken for a part of it.
_NOUNS = (
    ("people and objects are", "most columns are"),
    ("the pixel range", "the width of a column"),
    ("neighbouring pixels are alike", "columns are alike"),
    ("gray pictures", "average rows"),
    ("gray picture", "average row"),
    ("pictures", "rows"),
    ("picture", "row"),
    ("images", "rows"),
    ("image", "row"),
    ("pixels", "values"),
    ("pixel", "value"),
)
_WORDS = re.compile(
    r"'[^']*'|\"[^\"]*\"|\b(" + "|".join(noun for noun, _ in _NOUNS) + r")\b(?!\.\w)",
    re.IGNORECASE,
)
_ROWS = dict(_NOUNS)


def of_rows(text: str) -> str:
    """The sentence with the nouns of rows; quoted names and names of attacks stay."""
    return _WORDS.sub(_exchanged, text)


def _exchanged(found: re.Match[str]) -> str:
    noun = found[1]
    if noun is None:
        return found[0]
    word = _ROWS[noun.lower()]
    return word[0].upper() + word[1:] if noun[0].isupper() else word


def said_of_rows(audit: Audit) -> Audit:
    """The same audit with its own sentences about rows. Numbers, names and settings stay."""
    return replace(
        audit,
        verdict=replace(
            audit.verdict,
            sentence=of_rows(audit.verdict.sentence),
            reasons=_each(audit.verdict.reasons),
        ),
        gate=replace(audit.gate, reason=of_rows(audit.gate.reason)),
        findings=tuple(
            replace(f, summary=of_rows(f.summary), premises=_each(f.premises))
            for f in audit.findings
        ),
        attacks=tuple(
            replace(a, title=of_rows(a.title), reason=of_rows(a.reason)) for a in audit.attacks
        ),
        caveats=tuple(replace(c, message=of_rows(c.message)) for c in audit.caveats),
        trust=_trust(audit.trust),
    )


def _trust(trust: Trust) -> Trust:
    control, canaries = trust.control, trust.canaries
    return replace(
        trust,
        bound=None if trust.bound is None else _bound(trust.bound),
        control=control and replace(control, summary=of_rows(control.summary)),
        canaries=canaries and replace(canaries, summary=of_rows(canaries.summary)),
        what_if=None if trust.what_if is None else _what_if(trust.what_if),
        unsaid=_each(trust.unsaid),
    )


def _bound(bound: Bound) -> Bound:
    return replace(bound, assumptions=_each(bound.assumptions))


def _what_if(found: WhatIf) -> WhatIf:
    rows = tuple(replace(row, note=of_rows(row.note)) for row in found.rows)
    reference = of_rows(found.reference)
    return replace(found, reference=reference, rows=rows, left_out=_each(found.left_out), paper="")


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(of_rows(text) for text in texts)
