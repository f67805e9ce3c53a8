"""One attack on a dump that we made ourselves, within a time of its own."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from auditor.attacks import Attack, Watch
from auditor.attacks.failures import told_of
from auditor.evidence import examine
from auditor.records import Evidence, Problem


def within(watch: Watch, seconds: float) -> Watch:
    """A silent watch that ends after so many seconds, but never later than `watch`."""
    ends = time.monotonic() + seconds
    return replace(
        watch,
        deadline=ends if watch.deadline is None else min(ends, watch.deadline),
        progress=None,
    )


def dice(seed: int, purpose: str) -> torch.Generator:
    """Random numbers that have nothing to do with those that attacks draw from the same seed."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def attempt(problem: Problem, attack: Attack, *, seed: int, watch: Watch) -> Evidence | None:
    """What the harness makes of the attack's claim; None when there is no claim.

    Raises what `told_of` does not know: a mistake of ours.
    """
    if attack.blocked_by(problem) is not None:
        return None
    begun = time.monotonic()
    try:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            recovery = attack.run(problem, seed=seed, watch=watch)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except (RuntimeError, ValueError) as error:
        if told_of(error) is None:
            raise
        return None
    found = examine(problem, recovery, attack=attack.name, seconds=time.monotonic() - begun)
    return found if isinstance(found, Evidence) else None
