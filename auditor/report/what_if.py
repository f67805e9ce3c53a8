"""How the rows of the what-if are written, and the remedies that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from auditor.records import Audit, DefenceKind, WhatIf, WhatIfRow
from auditor.report.what_if_chart import RECOGNISABLE
from auditor.report.words import number
from auditor.rules import rule

# Words by which a remedy of the catalogue names a defence.
_NAMED: dict[DefenceKind, str] = {
    "secure aggregation": "secure aggregation",
    "dp-sgd": "DP-SGD",
    "larger batch": "arger batches",
}


@dataclass(frozen=True)
class Remedy:
    """One thing to do, and the codes of all that it answers."""

    text: str
    codes: tuple[str, ...]


def decibels(value: float | None) -> str:
    """A PSNR, or a dash where there is none."""
    return "–" if value is None else f"{number(value)} dB"


def share(value: float | None) -> str:
    """A share of the labels in percent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def cosine(value: float | None) -> str:
    """Three figures, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def gate(row: WhatIfRow) -> str:
    """Whether a row passes, in words."""
    if row.passes is None:
        return "no answer"
    return "passes" if row.passes else "fails"


def remedies_of(audit: Audit) -> list[Remedy]:
    """What helped on this very dump first, the cheapest before; then what the catalogue says."""
    pairs = [(finding.remedy, finding.code) for finding in audit.findings]
    for caveat in audit.caveats:
        try:
            pairs.append((rule(caveat.code).remedy, caveat.code))
        except KeyError:  # an audit.json of a later version may know more codes
            continue
    tried = audit.trust.what_if
    found = [Remedy(text, codes) for text, codes in gathered(pairs).items()]
    if tried is None:
        return found
    measured = [Remedy(_measured(row), ()) for row in passing(tried)]
    ours = [_corrected(remedy, refuted(tried)) for remedy in found]
    return [*measured, *(remedy for remedy in ours if remedy is not None)]


def passing(tried: WhatIf) -> list[WhatIfRow]:
    """Of each defence the weakest setting that passes, least change of the gradient first.

    Where the bound leaves room for a better attack, a setting comes after those where it does not.
    """
    named = {line.partition(":")[0] for line in tried.weakest}
    rows = [row for row in tried.rows if row.passes and row.setting in named]
    return sorted(rows, key=lambda row: (has_room(row), row.cosine is None, -(row.cosine or 0.0)))


def has_room(row: WhatIfRow) -> bool:
    """Whether the dump tells enough of the picture for a better attack to recognise it."""
    return row.bound_psnr is None or row.bound_psnr >= RECOGNISABLE


def refuted(tried: WhatIf) -> frozenset[DefenceKind]:
    """Defences of which no setting that was tried passes, and one at least fails."""
    kinds = {row.defence for row in tried.rows if row.passes is False}
    return frozenset(kinds - {row.defence for row in tried.rows if row.passes})


def _measured(row: WhatIfRow) -> str:
    reached = "no input was rebuilt" if row.psnr is None else f"{decibels(row.psnr)} were reached"
    bound = "" if row.bound_psnr is None else f" (bound {decibels(row.bound_psnr)})"
    cost = (
        "" if row.cosine is None else f"; cosine with the gradient as it was {cosine(row.cosine)}"
    )
    return (
        f"{row.setting[0].upper()}{row.setting[1:]}: tried on this step, {reached}{bound}, score "
        f"{row.score:.1f} ({row.band}){cost}. Not broken by these attacks"
        + ("; what was sent may be enough for a better one." if has_room(row) else ".")
    )


def _corrected(remedy: Remedy, without: Iterable[DefenceKind]) -> Remedy | None:
    """The catalogue's remedy, less what was tried here in vain; None when nothing is left."""
    named = {kind for kind, words in _NAMED.items() if words in remedy.text}
    vain = [kind for kind in _NAMED if kind in named and kind in set(without)]
    if not vain:
        return remedy
    if len(vain) == len(named):
        return None
    told = " and ".join(_NAMED[kind].replace("arger", "larger") for kind in vain)
    return Remedy(f"{remedy.text} (Tried on this step, {told} did not suffice.)", remedy.codes)


def gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Codes by text, both in the order of their first appearance."""
    found: dict[str, list[str]] = {}
    for text, code in pairs:
        codes = found.setdefault(text, [])
        if text and code not in codes:
            codes.append(code)
    return {text: tuple(codes) for text, codes in found.items() if text}
