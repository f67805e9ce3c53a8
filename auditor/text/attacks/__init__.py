"""The attacks on text, cheapest and most exact first. A new one is one file and one line here."""

from __future__ import annotations

from auditor.text.attacks.base import Milestone, TextAttack, Watch
from auditor.text.attacks.labels import Labels
from auditor.text.attacks.matching import Matching
from auditor.text.attacks.spans import Spans
from auditor.text.attacks.tokens import Tokens

TEXT_ATTACKS: tuple[TextAttack, ...] = (Tokens(), Labels(), Spans(), Matching())

__all__ = [
    "TEXT_ATTACKS",
    "Labels",
    "Matching",
    "Milestone",
    "Spans",
    "TextAttack",
    "Tokens",
    "Watch",
]
