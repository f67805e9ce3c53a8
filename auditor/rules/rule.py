"""One entry of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One code: what it means, why it matters, what to do."""

    code: str
    title: str
    meaning: str
    matters: str
    remedy: str
    references: tuple[str, ...] = ()
