"""The score of a leak, 0.0 to 10.0, and its band. The reasons are in docs/severity.md.

A monotone function of what was recovered, how much of it, how faithfully and how certainly.
It is our own score, not a CVSS score. No torch here: the gate must start at once.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

from auditor.errors import UsageError
from auditor.records import Band, Certainty, Severity

# Lowest score of each band, worst first: the one list behind `band_of` and `parse_threshold`.
BANDS: tuple[tuple[Band, float], ...] = (
    ("critical", 9.1),
    ("high", 7.0),
    ("medium", 4.0),
    ("low", 0.1),
)

EVERY_LABEL = 6.0
SOME_LABELS = 3.9
ESTIMATED_LABELS = 1.0
UNKNOWN_SHARE = 0.5

BATCH_STATISTICS = 3.0

TOKEN_SET = 7.0
SOME_TOKENS = 5.0
ESTIMATED_TOKENS = 3.0

# How far a rebuilt input is believed. Proved, verified and measured: it is the client's input.
TRUST: dict[Certainty, float] = {
    "estimated": 0.5,
    "consistent": 0.9,
    "verified": 1.0,
    "measured": 1.0,
    "proved": 1.0,
}

# (dB, fidelity): straight lines between these points, flat outside.
FIDELITY: tuple[tuple[float, float], ...] = ((10.0, 0.0), (20.0, 0.8), (30.0, 1.0))

# (ROUGE-L, fidelity) of a rebuilt text, read in the same way.
LIKENESS: tuple[tuple[float, float], ...] = ((0.3, 0.0), (0.6, 0.7), (0.95, 1.0))


def band_of(score: float) -> Band:
    """The band of a score 0..10, after rounding to one decimal: 9.04 is high, 9.05 critical.

    Raises ValueError outside 0..10 and for nan.
    """
    rounded = _rounded(score)
    for band, lowest in BANDS:
        if rounded >= lowest:
            return band
    return "none"


def label_severity(*, proved_share: float | None, complete: bool, estimated: bool) -> Severity:
    """Severity of recovered labels.

    `proved_share`: proved labels as a share of the batch, 0..1; 0 when nothing is proved, None
    when something is proved and the batch size is unknown. `complete`: every label of the batch
    is proved. `estimated`: there is a best guess as well. Raises ValueError for another share.
    """
    if complete:
        return _severity(EVERY_LABEL)
    share = _share(UNKNOWN_SHARE if proved_share is None else proved_share)
    guessed = ESTIMATED_LABELS if estimated else 0.0
    proved = max(0.1, SOME_LABELS * share) if share > 0 else 0.0
    return _severity(max(proved, guessed))


def input_severity(*, certainty: Certainty, psnr: float, share: float) -> Severity:
    """Severity of rebuilt inputs: 10 * trust * fidelity * (0.95 + 0.05 * share).

    `psnr`: dB, measured or as the evidence supports it; inf is allowed. `share`: samples
    rebuilt as a share of the batch, above 0 and at most 1. Raises ValueError for another share
    and for a psnr that is nan.
    """
    if _share(share) == 0:
        raise ValueError("a share of 0 is not a recovered input")
    return _severity(10 * TRUST[certainty] * _fidelity(psnr) * (0.95 + 0.05 * share))


def text_severity(*, certainty: Certainty, likeness: float, share: float) -> Severity:
    """Severity of rebuilt texts: as of rebuilt inputs, the fidelity from their likeness.

    `likeness`: ROUGE-L 0..1, measured, or 1 for a claim of the exact text. `share`: sequences
    rebuilt as a share of the batch, above 0 and at most 1. Raises ValueError for another share or
    likeness.
    """
    if _share(share) == 0:
        raise ValueError("a share of 0 is not a recovered text")
    fidelity = _on(LIKENESS, _share(likeness))
    return _severity(10 * TRUST[certainty] * fidelity * (0.95 + 0.05 * share))


def token_severity(*, certainty: Certainty, complete: bool) -> Severity:
    """Severity of a set of tokens without their order; `complete`: no other token occurs."""
    if certainty == "estimated":
        return _severity(ESTIMATED_TOKENS)
    return _severity(TOKEN_SET if complete else SOME_TOKENS)


def statistics_severity() -> Severity:
    """Severity of the exact statistics of a batch: averages over it, not what is in it."""
    return _severity(BATCH_STATISTICS)


def parse_threshold(text: str) -> float:
    """The lowest score that fails the gate, from a band name or a number 0.1..10.0.

    Raises UsageError for anything else: a gate at 0 would fail every audit.
    """
    word = text.strip().lower()
    for band, lowest in BANDS:
        if word == band:
            return lowest
    if re.fullmatch(r"[0-9]{1,2}(\.[0-9]+)?", word) and 0.1 <= float(word) <= 10:
        return float(word)
    raise UsageError(
        expected="a band (low, medium, high, critical) or a score from 0.1 to 10.0",
        found=repr(text),
        todo="For example --fail-on high. Leave --fail-on out for an audit without a gate.",
    )


def _severity(score: float) -> Severity:
    return Severity(score=_rounded(score), band=band_of(score))


def _rounded(score: float) -> float:
    """One decimal, halves upward as on paper; the tiny term absorbs binary fractions."""
    if not 0 <= score <= 10:
        raise ValueError(f"a score is 0 to 10, not {score}")
    return math.floor(score * 10 + 0.5 + 1e-9) / 10


def _share(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"a share is 0 to 1, not {share}")
    return share


def _fidelity(psnr: float) -> float:
    if math.isnan(psnr):
        raise ValueError("a PSNR is a number of dB, not nan")
    return _on(FIDELITY, psnr)


def _on(points: tuple[tuple[float, float], ...], value: float) -> float:
    """Straight lines between the points, flat outside."""
    if value <= points[0][0]:
        return points[0][1]
    for (low, least), (high, most) in pairwise(points):
        if value <= high:
            return least + (most - least) * (value - low) / (high - low)
    return points[-1][1]
