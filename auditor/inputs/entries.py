"""Finds the tensors of a dump in whatever people put around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from auditor.errors import InputError
from auditor.inputs.wording import joined, quoted
from auditor.records import Kind

GRADIENT_KEYS = ("grads", "gradients", "grad", "gradient")
UPDATE_KEYS = ("delta", "deltas", "update", "updates", "weight_delta", "weight_diff", "diff")
_KEYS: dict[Kind, tuple[str, ...]] = {"gradient": GRADIENT_KEYS, "update": UPDATE_KEYS}
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "optimizer", "optimizer_state_dict")
_REMEDY = "Save {name: parameter.grad} or the result of torch.autograd.grad; see auditor.capture."


@dataclass(frozen=True)
class Entries:
    """The tensors of a dump as they were found; None stands for "no gradient here"."""

    names: tuple[str, ...] | None  # None: a list, only the order is known
    tensors: tuple[Tensor | None, ...]
    form: str  # "dict of 8 tensors under 'grads'"


def entries_of(raw: object, *, kind: Kind = "gradient", depth: int = 2) -> Entries:
    """The tensors in `raw`: a tensor, a list or tuple, a dict, or a dict under a usual key.

    Raises InputError for weights, what is not of the `kind`, several rounds, a whole model, and
    anything that is not a tensor.
    """
    if isinstance(raw, nn.Module):
        raise _wrong("a whole model")
    if isinstance(raw, Mapping):
        return _of_mapping(raw, kind, depth)
    if isinstance(raw, Tensor | np.ndarray):
        return Entries(None, (_tensor(raw, "the dump"),), "one tensor")
    if isinstance(raw, list | tuple):
        return _of_sequence(raw, kind)
    raise _wrong(f"an object of type {quoted(type(raw).__name__)}")


def _of_mapping(raw: Mapping[object, object], kind: Kind, depth: int) -> Entries:
    keys = {str(key): value for key, value in raw.items()}
    ours, others = _KEYS[kind], _KEYS["gradient" if kind == "update" else "update"]
    for key in ours if depth else ():
        if isinstance(keys.get(key), Mapping | list | tuple | Tensor):
            inner = entries_of(keys[key], kind=kind, depth=depth - 1)
            return Entries(inner.names, inner.tensors, f"{inner.form} under {key!r}")
    other = next((key for key in others if _holds_tensors(keys.get(key))), None)
    if other is not None:
        raise _other_kind(other, kind)
    if any(_holds_tensors(keys.get(key)) for key in WEIGHT_KEYS):
        raise _wrong("a training checkpoint: weights, not gradients")
    tensors = tuple(_optional(value, quoted(key)) for key, value in keys.items())
    return Entries(tuple(keys), tensors, f"dict of {_counted(tensors)}")


def _other_kind(key: str, kind: Kind) -> InputError:
    if kind == "update":
        return InputError(
            expected="an update: weights after training minus weights before",
            found=f"the key {key!r}, which people use for gradients",
            todo="Leave --kind update out, or rename the key to 'update' if it is one.",
        )
    return InputError(
        expected="a gradient",
        found=f"the key {key!r}, which people use for weight updates",
        todo="Say --kind update if it holds weights after training minus weights before, or "
        "rename the key to 'grads' if it is a gradient.",
    )


def _of_sequence(raw: Sequence[object], kind: Kind) -> Entries:
    if raw and all(_is_pair(item) for item in raw):
        return _of_mapping(dict(raw), kind, 0)  # type: ignore[arg-type]
    if raw and all(isinstance(item, Mapping | list | tuple) for item in raw):
        raise _wrong(f"{len(raw)} rounds or samples in one list")
    tensors = tuple(_optional(item, f"number {place}") for place, item in enumerate(raw))
    form = "tuple" if isinstance(raw, tuple) else "list"
    return Entries(None, tensors, f"{form} of {_counted(tensors)}")


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _holds_tensors(value: object) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    if isinstance(items, Tensor | np.ndarray):
        return False  # a parameter may well be called `delta`
    if isinstance(value, nn.Module):
        return True
    return isinstance(value, Mapping | list | tuple) and len(value) > 0


def _counted(tensors: Sequence[Tensor | None]) -> str:
    holes = sum(tensor is None for tensor in tensors)
    count = len(tensors) - holes
    text = f"{count} tensor{'' if count == 1 else 's'}"
    return f"{text} and {holes} empty places" if holes else text


def _optional(value: object, where: str) -> Tensor | None:
    return None if value is None else _tensor(value, where)


def _tensor(value: object, where: str) -> Tensor:
    if isinstance(value, np.ndarray):
        return tensors_of({where: value})[where].clone()
    if isinstance(value, Tensor):
        return value.detach()
    raise _wrong(f"{quoted(type(value).__name__)} instead of a tensor at {where}")


def tensors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """NumPy arrays as tensors over the same memory where that is possible.

    Raises InputError for element types that torch does not have.
    """
    odd = [f"{quoted(n)} ({a.dtype})" for n, a in arrays.items() if not _is_known(a.dtype)]
    if odd:
        raise InputError(
            expected="arrays of numbers of at most 64 bits",
            found=joined(odd),
            todo="Convert them: array.astype(numpy.float32).",
        )
    return {name: _shared(array) for name, array in arrays.items()}


def _is_known(dtype: np.dtype) -> bool:
    return (dtype.kind in "fiub" and dtype.itemsize <= 8) or dtype.kind == "c"


def _shared(array: np.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native))


def require_floats(names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Raise InputError unless all tensors are dense floats of 16 to 64 bits with numbers."""
    problems = [
        f"{quoted(name)} ({problem})"
        for name, tensor in zip(names, tensors, strict=True)
        if tensor is not None and (problem := _unfit(tensor))
    ]
    if problems:
        raise InputError(
            expected="dense tensors of float16, bfloat16, float32 or float64",
            found=joined(problems),
            todo="Save the gradients themselves, before they are quantised, counted or packed.",
        )


def _unfit(tensor: Tensor) -> str:
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized or tensor.dtype not in floats:
        return str(tensor.dtype).removeprefix("torch.")
    return "no numbers" if tensor.is_meta else ""


def _wrong(found: str) -> InputError:
    return InputError(expected="a dump of gradients", found=found, todo=_REMEDY)
