"""What is known of the client's training: flags, the dump's metadata, deduction, assumption."""

from auditor.facts.inputs import deduce_input_shape
from auditor.facts.local import LocalFlags
from auditor.facts.settle import (
    Flags,
    flags_from_text,
    per_channel,
    settle,
)

__all__ = [
    "Flags",
    "LocalFlags",
    "deduce_input_shape",
    "flags_from_text",
    "per_channel",
    "settle",
]
