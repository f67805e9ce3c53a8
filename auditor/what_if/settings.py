"""Which defences are tried, at which strengths."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.records import DefenceKind
from auditor.severity import band_of, parse_threshold

DEFAULT_GATE = "high"


@dataclass(frozen=True)
class Setting:
    """One defence at one strength."""

    kind: DefenceKind
    strength: float
    words: str


NO_DEFENCE = Setting("none", 0.0, "no defence")

# In the order in which they are tried, cheap and usual ones first: a budget may end before the
# last. Within a kind, `force` sorts by strength.
SETTINGS: tuple[Setting, ...] = (
    NO_DEFENCE,
    Setting("noise", 1e-2, "noise, sigma 1e-2"),
    Setting("noise", 1e-3, "noise, sigma 1e-3"),
    Setting("dp-sgd", 1.0, "DP-SGD, clip 1, noise multiplier 1"),
    Setting("top-k", 0.9, "top-k, 90 % dropped"),
    Setting("withheld head bias", 1.0, "the classifier's bias not sent"),
    Setting("larger batch", 8.0, "batch 8 times as large"),
    Setting("secure aggregation", 10.0, "sum over 10 clients"),
    Setting("int8", 8.0, "8 bits an entry (int8)"),
    Setting("sign", 1.0, "signs only"),
    Setting("noise", 1e-1, "noise, sigma 1e-1"),
    Setting("noise", 1e-4, "noise, sigma 1e-4"),
    Setting("top-k", 0.99, "top-k, 99 % dropped"),
    Setting("frozen layer", 1.0, "classifier frozen"),
    Setting("frozen layer", 2.0, "first layer frozen"),
    Setting("clipping", 0.1, "clipped to a tenth of its norm"),
    Setting("dp-sgd", 0.1, "DP-SGD, clip 1, noise multiplier 0.1"),
    Setting("dp-sgd", 0.01, "DP-SGD, clip 1, noise multiplier 0.01"),
    Setting("local steps", 5.0, "5 times as many local steps"),
    Setting("fp16", 16.0, "16 bits an entry (fp16)"),
    Setting("bf16", 16.0, "16 bits an entry (bf16)"),
    Setting("top-k", 0.5, "top-k, 50 % dropped"),
    Setting("clipping", 0.5, "clipped to half of its norm"),
    Setting("larger batch", 2.0, "batch twice as large"),
    Setting("local steps", 20.0, "20 times as many local steps"),
    Setting("secure aggregation", 100.0, "sum over 100 clients"),
)

# Of these a smaller number is the stronger defence.
_FALLING = frozenset({"clipping"})


def force(kind: DefenceKind, strength: float) -> float:
    """What orders the settings of one kind from weak to strong."""
    return -strength if kind in _FALLING else strength


def gate_words(gate: str | None) -> tuple[str, float]:
    """The threshold that a row has to stay under, in words and as a score."""
    threshold = parse_threshold(gate or DEFAULT_GATE)
    return f"a score under {threshold} ({band_of(threshold)})", threshold
