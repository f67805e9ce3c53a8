"""Checks what a pickle would make, call by call, before any of it is made.

Every storage must be as long as the bytes that lie in the file for it, every tensor must lie
within its storage, and constructors are not called: a network object is filled with its saved
state, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from auditor.errors import InputError, UnsafeFileError
from auditor.inputs.allowlist import (
    ELEMENT_BYTES,
    INERT,
    PARAMETERS,
    PARTIAL,
    PLAIN_TENSORS,
    TYPED,
    dtype_named,
    module_class,
)
from auditor.inputs.pickles import Call, Name, Outline, Stored
from auditor.inputs.wording import quoted, shaped, sized

_FAULTS = (ValueError, TypeError, IndexError, KeyError, AttributeError)
_DIMENSIONS = 64
_SHARING = 16  # tensors may share storages (tied weights), but not without bound
_SLACK = 16 << 20


@dataclass(frozen=True)
class TensorClaim:
    """A tensor as the pickle describes it; sizes in elements of `item` bytes."""

    storage: str  # key
    available: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    item: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements between the first and the last, both counted."""
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((size - 1) * step for size, step in steps) if self.count else 0


def check_outline(outline: Outline, *, file: str, members: Mapping[str, int] | None) -> int:
    """Check all storages and calls; returns the bytes of all storages together.

    `members` gives the bytes that lie in the file for each storage key; None for the old format,
    where storages follow the pickle. Raises UnsafeFileError for what claims more than there is
    or would call more than data needs, InputError for what makes no sense.
    """
    try:
        storages = _check_storages(outline, file, members)
        for call in outline.calls:
            _check_call(call, file)
        claims = [claim for call in outline.calls if (claim := claim_of(call)) is not None]
    except _FAULTS as error:
        raise InputError(
            expected="a torch file",
            found=f"{quoted(file)}, whose description of its tensors makes no sense",
            todo="Write it again with torch.save.",
        ) from error
    total = sum(storages.values())
    claimed = sum(claim.count * claim.item for claim in claims)
    if claimed > _SHARING * total + _SLACK:
        raise _hostile(file, f"tensors of {sized(claimed)} over {sized(total)} of numbers")
    return total


def claim_of(value: object) -> TensorClaim | None:
    """The tensor that a record of the pickle stands for; None when it stands for none."""
    for _ in range(_DIMENSIONS):
        if not isinstance(value, Call) or not isinstance(value.target, Name):
            return None
        path, arguments = value.target.path, value.arguments
        if path in PLAIN_TENSORS:
            return _claim(path, arguments)
        if path in PARAMETERS:
            value = arguments[0]
        elif path == TYPED:
            value = Call(arguments[0], _tuple(arguments[2]), new=False)
        else:
            return None
    return None


def _claim(path: str, arguments: tuple[object, ...]) -> TensorClaim:
    stored, offset, shape, stride = arguments[:4]
    if not isinstance(stored, Stored) or (len(arguments) > 5 and arguments[5]):
        raise TypeError("a tensor with hooks or without a storage")
    kind, key, count = _storage(stored)
    dtype, item = _storage_dtype(kind), ELEMENT_BYTES[kind]
    if path.endswith("_v3"):
        named = dtype_named(arguments[6].path) if isinstance(arguments[6], Name) else None
        if named is None:
            raise TypeError("no dtype")
        dtype, count, item = str(named), count * item // named.itemsize, named.itemsize
    return TensorClaim(
        storage=key,
        available=count,
        offset=_size(offset),
        shape=_sizes(shape),
        stride=_sizes(stride),
        dtype=dtype.removeprefix("torch."),
        item=item,
    )


def _check_storages(
    outline: Outline, file: str, members: Mapping[str, int] | None
) -> dict[str, int]:
    storages: dict[str, int] = {}
    for stored in outline.stored:
        kind, key, count = _storage(stored)
        claimed = count * ELEMENT_BYTES[kind]
        there = storages.setdefault(key, claimed) if members is None else members.get(key, -1)
        if claimed != there:
            raise _hostile(file, f"a storage that claims {sized(claimed)} and has other bytes")
        storages[key] = claimed
    return storages


def _check_call(call: Call, file: str) -> None:
    path = call.target.path if isinstance(call.target, Name) else ""
    if call.new:
        allowed = module_class(path) is not None and not call.arguments
        if not allowed or not isinstance(call.state, dict):
            raise _hostile(file, f"an object of {quoted(path)} made in an unusual way")
    elif path == PARTIAL:
        _check_partial(call, file)
    elif call.built or not (_is_inert(path, call) or _check_tensor(call, file)):
        raise _hostile(file, f"a call of {quoted(path)}")


def _is_inert(path: str, call: Call) -> bool:
    """Small plain values: sizes, devices, sets, bytes. Other codecs could inflate what they get."""
    known = path != "_codecs.encode" or call.arguments[1:] in {("latin1",), ("utf-8",)}
    return path in INERT and known


def _check_partial(call: Call, file: str) -> None:
    """A preset constructor, as vision transformers keep it; it may only make a network."""
    target = call.arguments[0] if len(call.arguments) == 1 else None
    trusted = isinstance(target, Name) and module_class(target.path) is not None
    if not trusted or not isinstance(call.state, tuple) or call.state[0] != target:
        raise _hostile(file, f"a functools.partial of {quoted(getattr(target, 'path', target))}")


def _check_tensor(call: Call, file: str) -> bool:
    claim = claim_of(call)
    if claim is None:
        return False
    if len(claim.shape) != len(claim.stride) or len(claim.shape) > _DIMENSIONS:
        raise ValueError("shape and stride differ")
    if claim.count > claim.extent:
        raise UnsafeFileError(
            expected="tensors that hold every number they show",
            found=f"an expanded tensor of shape {shaped(claim.shape)} over "
            f"{sized(claim.available * claim.item)} in {quoted(file)}",
            todo="Save tensor.contiguous() instead.",
        )
    if claim.offset + claim.extent > claim.available:
        raise _hostile(file, f"a tensor of shape {shaped(claim.shape)} beyond its storage")
    return True


def _storage(stored: Stored) -> tuple[str, str, int]:
    """Type, key and number of elements of a storage reference."""
    if stored.reference[0] == "module":
        raise InputError(
            expected="weights, or a whole model in the present torch format",
            found="a whole model in the format of torch before 1.6",
            todo="Save it again with a current torch, or save model.state_dict().",
        )
    tag, kind, key, _, count, *view = stored.reference
    if tag != "storage" or not isinstance(kind, Name) or not isinstance(key, str) or any(view):
        raise TypeError("not a storage")
    return kind.path, key, _size(count)


def _storage_dtype(kind: str) -> str:
    names = {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
    }
    return names.get(kind.removeprefix("torch.").removesuffix("Storage"), "bytes")


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a size must be a whole number")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    inner = value.arguments[0] if isinstance(value, Call) else value
    return tuple(_size(size) for size in _tuple(inner))


def _tuple(value: object) -> tuple[object, ...]:
    if not isinstance(value, tuple):
        raise TypeError("a tuple is expected")
    return value


def _hostile(file: str, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        expected="a file as torch.save writes it",
        found=f"{quoted(file)} with {what}",
        todo="Do not open this file with anything else; ask where it comes from.",
    )
