"""What a dump says of itself: one JSON object under the safetensors key `gradaudit`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from auditor.errors import InputError
from auditor.inputs.wording import joined, quoted
from auditor.records import Kind, Metadata, Modality, Mode, Reduction

KEY = "gradaudit"
_TEXT_LIMIT = 100_000
_LARGEST = 1e6  # a learning rate is far below
_FARTHEST = 1e30  # means and deviations of columns have units of their own
_PIXELS = 1 << 28
FEW = 4  # numbers that an error may repeat
_V = TypeVar("_V")


def metadata_from_json(text: str) -> Metadata:
    """Read and check the metadata; unknown fields are ignored, for newer versions may add some.

    Raises InputError that names the field.
    """
    try:
        fields = json.loads(text) if len(text) <= _TEXT_LIMIT else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InputError(
            expected=f"a JSON object under the metadata key {KEY!r}",
            found=quoted(text),
            todo="Write the dump with auditor.capture, or without metadata.",
        )
    return metadata_from(fields)


def metadata_from(fields: Mapping[str, object]) -> Metadata:
    """`fields` checked one by one and against each other; None and absent mean "not said".

    Raises InputError that names the field.
    """
    shape = _optional(fields, "input_shape", _shape)
    mean, std = _optional(fields, "mean", _numbers), _optional(fields, "std", _positive)
    modality = _optional(fields, "modality", _modality)
    if shape and modality and (len(shape) == 1) != (modality == "features"):
        raise _wrong("modality", "'features' for (D,), 'images' for (C, H, W)", modality)
    channels = shape[0] if shape else len(mean or std or ())
    each = "columns" if modality == "features" else "channels"
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise _wrong(name, f"one number for each of {channels} {each}", values, brief(values))
    return Metadata(
        batch_size=_optional(fields, "batch_size", _count),
        input_shape=shape,
        loss=_optional(fields, "loss", _text),
        reduction=_optional(fields, "reduction", _reduction),
        label_smoothing=_optional(fields, "label_smoothing", _fraction),
        mode=_optional(fields, "mode", _mode),
        mean=mean,
        std=std,
        versions=_optional(fields, "versions", _versions) or {},
        kind=_optional(fields, "kind", _kind),
        lr=_optional(fields, "lr", _rate),
        local_steps=_optional(fields, "local_steps", _count),
        local_batch=_optional(fields, "local_batch", _count),
        local_epochs=_optional(fields, "local_epochs", _count),
        momentum=_optional(fields, "momentum", _fraction),
        weight_decay=_optional(fields, "weight_decay", _fraction),
        modality=modality,
    )


def metadata_to_json(metadata: Metadata) -> str:
    """The JSON object that `metadata_from_json` reads; fields that are None are left out."""
    fields = {name: value for name, value in vars(metadata).items() if value is not None}
    return json.dumps(fields | {"versions": dict(metadata.versions)}, sort_keys=True)


def _optional(
    fields: Mapping[str, object], name: str, read: Callable[[str, object], _V]
) -> _V | None:
    value = fields.get(name)
    return None if value is None else read(name, value)


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise _wrong(name, "a whole number of at least 1", value)
    return value


def _shape(name: str, value: object) -> tuple[int, ...]:
    sizes = value if isinstance(value, list | tuple) else ()
    if len(sizes) not in {1, 3} or not all(type(size) is int and size >= 1 for size in sizes):
        raise _wrong(name, "three whole numbers C, H, W of at least 1, or one, D", value)
    if math.prod(sizes) > _PIXELS:
        raise _wrong(name, "at most 2**28 numbers", value)
    return tuple(sizes)


def _numbers(name: str, value: object) -> tuple[float, ...]:
    items = value if isinstance(value, list | tuple) else ()
    good = [float(x) for x in items if type(x) in {int, float} and -_FARTHEST < x < _FARTHEST]
    if not items or len(good) < len(items):
        raise _wrong(name, "a list of finite numbers", value, brief(items))
    return tuple(good)


def _positive(name: str, value: object) -> tuple[float, ...]:
    numbers = _numbers(name, value)
    if min(numbers) <= 0:
        raise _wrong(name, "positive numbers", value, brief(numbers, [x <= 0 for x in numbers]))
    return numbers


def brief(values: Sequence[object], bad: Sequence[bool] = ()) -> str:
    """How many there are, and which are bad, where there are many: they are statistics of people.

    Empty for few, which an error may repeat.
    """
    if len(values) <= FEW:
        return ""
    if not any(bad):
        return f"{len(values)} numbers"
    places = [str(place) for place, wrong in enumerate(bad) if wrong]
    return (
        f"others at places {joined(places)} of {len(values)} (a column that never varies has none: "
        "say 1)"
    )


def _fraction(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise _wrong(name, "a number of at least 0 and below 1", value)
    return float(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise _wrong(name, "the name of a loss, such as 'cross_entropy'", value)
    return value


def _reduction(name: str, value: object) -> Reduction:
    if value == "mean":
        return "mean"
    if value == "sum":
        return "sum"
    raise _wrong(name, "'mean' or 'sum'", value)


def _mode(name: str, value: object) -> Mode:
    if value == "eval":
        return "eval"
    if value == "train":
        return "train"
    raise _wrong(name, "'eval' or 'train'", value)


def _modality(name: str, value: object) -> Modality:
    if value == "images":
        return "images"
    if value == "features":
        return "features"
    raise _wrong(name, "'images' or 'features'", value)


def _kind(name: str, value: object) -> Kind:
    if value == "gradient":
        return "gradient"
    if value == "update":
        return "update"
    raise _wrong(name, "'gradient' or 'update'", value)


def _rate(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _LARGEST:
        raise _wrong(name, "a number above 0", value)
    return float(value)


def _versions(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
        raise _wrong(name, "names with versions", value)
    return {str(key): text for key, text in value.items()}


def _wrong(name: str, expected: str, value: object, told: str = "") -> InputError:
    return InputError(
        expected=f"{expected} in the metadata field '{name}'",
        found=told or quoted(repr(value)),
        todo="Mend the field or leave it out; flags of the command line can say it instead.",
    )
