"""One finished part of an audit as a safetensors file, and back.

Tensors are tensors of the file, everything else is JSON in its metadata; the type hints of
`records` say how to read it. Nothing in such a file can run.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from auditor.errors import InputError
from auditor.inputs.safety import safetensors_claims
from auditor.records import Recovery, WhatIfRow

_R = TypeVar("_R")


@dataclass(frozen=True)
class Claim:
    """What an attack that ran to its end came to, unchecked."""

    attack: str
    seconds: float
    recovery: Recovery | None
    failure: str = ""  # why there is none


Part = Claim | WhatIfRow
_KINDS: dict[str, Callable[..., Part]] = {"attack": Claim, "what-if": WhatIfRow}
_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, InputError)


def name_of(part: Part) -> tuple[str, str]:
    """What tells it from the other parts of its audit: its kind, and a name."""
    return ("attack", part.attack) if isinstance(part, Claim) else ("what-if", part.setting)


def to_bytes(part: Part, key: str) -> bytes:
    """The part as a safetensors file, under the key of its audit."""
    tensors: dict[str, Tensor] = {}
    record = _plain(part, tensors)
    told = json.dumps({"key": key, "kind": name_of(part)[0], "record": record})
    return save(tensors, metadata={"part": told})


def read_part(path: Path, key: str) -> Part | None:
    """The part in a file; None under another key. Raises ValueError when it is none of ours."""
    try:
        told = json.loads(safetensors_claims(path)[1]["part"])
        if told["key"] != key:
            return None
        part: Part = _record(_KINDS[told["kind"]], told["record"], load_file(path))
    except (*_FAULTS, safetensors.SafetensorError) as error:
        raise ValueError(f"{path.name} is no part of an audit") from error
    return part


def _plain(value: Any, tensors: dict[str, Tensor]) -> object:
    """The value in terms of JSON; tensors are put aside, and named by their place there."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):04d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name, "device": str(value.device)}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), tensors) for f in fields(value)}
    return [_plain(each, tensors) for each in value] if isinstance(value, tuple) else value


def _value(hint: Any, plain: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_plain` was given. Raises ValueError, KeyError or TypeError where it departs."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        present = next(option for option in inside if option is not types.NoneType)
        return None if plain is None else _value(present, plain, tensors)
    if origin is tuple:
        _require(isinstance(plain, list))
        return tuple(_value(inside[0], each, tensors) for each in plain)
    if hint is Tensor:
        return tensors[plain["tensor"]].to(plain["device"])
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, plain, tensors)
    _require(plain in inside if origin is Literal else type(plain) is hint)
    return plain


def _record(record: Callable[..., _R], plain: Any, tensors: dict[str, Tensor]) -> _R:
    # Records name tensors without importing torch.
    hints = get_type_hints(record, localns={"Tensor": torch.Tensor})
    _require(isinstance(plain, dict) and plain.keys() == hints.keys())
    return record(**{name: _value(hint, plain[name], tensors) for name, hint in hints.items()})


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("not as our records are")
