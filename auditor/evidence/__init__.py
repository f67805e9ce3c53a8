"""The claim re-checked."""

from __future__ import annotations

from auditor.evidence.examining import (
    AGREE,
    UNLIKE,
    examine,
)
from auditor.evidence.standing import (
    CONSISTENT,
    EXACT,
    best_inputs,
    best_pixels,
    equals_in_words,
    has_sent_statistics,
    is_close,
    is_close_to_few,
    is_equal,
    is_proved,
    is_verified,
    left_of_features,
    samples_told,
    shows_pictures,
    where_it_ended,
)

__all__ = [
    "AGREE",
    "CONSISTENT",
    "EXACT",
    "UNLIKE",
    "best_inputs",
    "best_pixels",
    "equals_in_words",
    "examine",
    "has_sent_statistics",
    "is_close",
    "is_close_to_few",
    "is_equal",
    "is_proved",
    "is_verified",
    "left_of_features",
    "samples_told",
    "shows_pictures",
    "where_it_ended",
]
