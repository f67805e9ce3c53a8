"""The words that records are written in."""

from __future__ import annotations

from typing import Literal

SCHEMA_VERSION = "1.0"

Modality = Literal["images", "features"]  # pictures (C, H, W), or rows of a table (D,)
Mode = Literal["eval", "train"]
Reduction = Literal["mean", "sum"]
Task = Literal["causal", "masked", "classification"]  # what a language model was trained for
Kind = Literal["gradient", "update"]  # an update: the client's weights after training less before
Origin = Literal["flag", "metadata", "deduced", "assumed"]
Certainty = Literal["proved", "verified", "consistent", "measured", "estimated"]
Band = Literal["none", "low", "medium", "high", "critical"]
