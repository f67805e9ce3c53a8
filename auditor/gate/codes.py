"""What the process returns."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns. Nothing but a failed gate may be 1."""

    PASS = 0
    LEAK = 1
    USAGE = 2
    INPUT = 3
    INCONCLUSIVE = 4
    INTERNAL = 5
    INTERRUPTED = 130
