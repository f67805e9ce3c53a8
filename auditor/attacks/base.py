"""What every attack is: settings in the constructor, the problem in the call, a claim as answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from auditor.records import Problem, Recovery


@dataclass(frozen=True)
class Milestone:
    """How far an attack is, for whoever shows progress."""

    attack: str
    done: int
    total: int
    residual: float  # root of the attack's objective, relative


@dataclass(frozen=True)
class Watch:
    """The clock and the listener of an attack."""

    deadline: float | None = None  # in time.monotonic() seconds
    progress: Callable[[Milestone], None] | None = None

    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def tell(self, milestone: Milestone) -> None:
        if self.progress is not None:
            self.progress(milestone)


class Attack(Protocol):
    """Takes a problem, returns an unchecked claim. The harness re-checks it, never the attack."""

    @property
    def name(self) -> str:
        """What it recovers, then how: `labels.head`, `images.idlg`."""

    @property
    def title(self) -> str:
        """For people."""

    def blocked_by(self, problem: Problem) -> str | None:
        """Why the attack cannot look at this problem; None when it can."""

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        """Look. The same seed gives the same claim, unless the deadline cuts it short."""
