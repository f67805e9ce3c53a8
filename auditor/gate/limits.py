"""Limits on single measures: `--max-psnr` and `--max-labels`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from auditor.errors import UsageError
from auditor.records import Audit, Finding, Limit, Measure
from auditor.report.words import LIMIT_FLAG

# Findings that claim a rebuilt picture, and those of them whose labels are then known as well.
_PICTURES = frozenset({"GA201", "GA202", "GA203", "GA204"})
_WITH_LABELS = frozenset({"GA201", "GA501"})
# Which attacks could have led to a higher figure.
_LOOKING: dict[str, tuple[str, ...]] = {
    "PSNR": ("images.",),
    "labels": ("labels.", "text.labels"),
}


@dataclass(frozen=True)
class Limits:
    """What is allowed at most; None is no limit. Raises UsageError when a limit means nothing."""

    psnr: float | None = None  # dB, of the worst-protected picture
    labels: float | None = None  # proved labels as a share of the batch, 0..1

    def __post_init__(self) -> None:
        if self.psnr is not None and not 0 <= self.psnr < math.inf:
            raise _meaningless("--max-psnr", "a number of dB from 0", self.psnr)
        if self.labels is not None and not 0 <= self.labels < 1:
            raise _meaningless("--max-labels", "a share from 0 to below 1", self.labels)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is limited."""
        return self.psnr is None and self.labels is None


def checked(limits: Limits, audit: Audit, counted: tuple[Finding, ...]) -> tuple[Limit, ...]:
    """Each limit beside what the counted findings show."""
    found = []
    if limits.psnr is not None:
        found.append(_limit("PSNR", limits.psnr, *_psnr(audit, counted, limits.psnr)))
    if limits.labels is not None:
        found.append(_limit("labels", limits.labels, *_labels(counted)))
    return tuple(found)


def doubts_of(limits: tuple[Limit, ...], audit: Audit, unfinished: list[str]) -> list[str]:
    """Why a limit that is not exceeded cannot be called kept. `unfinished`: names of attacks."""
    found = []
    for limit in limits:
        flag = LIMIT_FLAG[limit.measure]
        if limit.outcome == "not known":
            found.append(f"{flag}: what was recovered has no such figure")
        looking = _LOOKING[limit.measure]
        ours = [attack for attack in audit.attacks if attack.name.startswith(looking)]
        if not any(attack.outcome in ("leak", "nothing shown") for attack in ours):
            found.append(f"{flag}: no attack that it is about looked")
        if open_ := [name for name in unfinished if name.startswith(looking)]:
            found.append(f"{flag}: {', '.join(open_)} did not look to the end")
    return found


def _limit(
    measure: Literal["PSNR", "labels"], most: float, found: float | None, known: bool
) -> Limit:
    if found is not None and found > most:
        return Limit(measure, most, found, "exceeded")
    return Limit(measure, most, found, "kept" if known else "not known")


def _psnr(audit: Audit, counted: tuple[Finding, ...], most: float) -> tuple[float | None, bool]:
    """The highest PSNR in dB, and whether a limit of `most` dB is kept if it is not above.

    Measured against the truth where there is one. Else the estimate without truth, which can
    exceed a limit, but is cautious: it keeps one only where no attack could do better.
    """
    pictures = [finding for finding in counted if finding.code in _PICTURES]
    values = [m.value for f in pictures for m in f.measures if m.name.startswith("PSNR")]
    if not pictures or (values and not any(math.isnan(value) for value in values)):
        return max(values, default=None), True
    trust = audit.trust
    return trust.fidelity, trust.bound is not None and trust.bound.worst_psnr <= most


def _labels(counted: tuple[Finding, ...]) -> tuple[float | None, bool]:
    """The highest share of proved labels, and whether the share is known at all."""
    if any(finding.code in _WITH_LABELS for finding in counted):
        return 1.0, True
    proved = [m for f in counted for m in f.measures if m.name == "labels proved"]
    shares = [_share(measure) for measure in proved]
    known = [share for share in shares if share is not None]
    return max(known, default=None), len(known) == len(shares)


def _share(measure: Measure) -> float | None:
    of = re.fullmatch(r"of ([1-9][0-9]*)", measure.unit)
    if of is None:
        return 0.0 if measure.value == 0 else None
    return measure.value / int(of[1])


def _meaningless(flag: str, expected: str, found: float) -> UsageError:
    return UsageError(expected=f"{expected} for {flag}", found=f"{found:g}", todo=f"Mend {flag}.")
