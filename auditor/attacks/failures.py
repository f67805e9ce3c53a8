"""What an error of torch means for an attack."""

from __future__ import annotations

# torch has no types of its own for these: what it says, and what it means for an attack.
_TOLD = {
    "not implemented": "an operation of this model has no second derivative in torch",
    "allocate memory": "out of memory",
    "cannot be simulated": "the update cannot be simulated: learning rate or steps are not known",
    "more than 1 value per channel": "batch norm in training mode needs more than one sample",
    "linalg.": "a linear system of the attack could not be solved",
}


def told_of(error: Exception) -> str | None:
    """What an error of torch means for an attack, in words; None when it is a mistake of ours."""
    return next((why for words, why in _TOLD.items() if words in str(error)), None)
