"""What every attack on text is; see auditor/attacks/base.py for its twin on pictures."""

from __future__ import annotations

from typing import Protocol

from auditor.attacks.base import Milestone, Watch
from auditor.text.records import TextProblem, TextRecovery


class TextAttack(Protocol):
    """Takes a problem, returns an unchecked claim. The harness re-checks it, never the attack."""

    @property
    def name(self) -> str:
        """`text.` and what it uses: `text.tokens`, `text.spans`."""

    @property
    def title(self) -> str:
        """For people."""

    def blocked_by(self, problem: TextProblem) -> str | None:
        """Why the attack cannot look at this problem; None when it can."""

    def run(self, problem: TextProblem, *, seed: int, watch: Watch) -> TextRecovery:
        """Look. The same seed gives the same claim, unless the deadline cuts it short."""


__all__ = ["Milestone", "TextAttack", "Watch"]
