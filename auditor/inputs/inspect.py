"""Says what a file holds without loading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from auditor.errors import InputError
from auditor.inputs.allowlist import unsafe_names
from auditor.inputs.claims import claim_of
from auditor.inputs.files import Kind, file_ref, kind_of
from auditor.inputs.pickles import PICKLE_BYTES, Call, Name, globals_of
from auditor.inputs.safety import ArrayClaim, npz_claims, safetensors_claims
from auditor.inputs.torchfiles import check, look_into
from auditor.inputs.wording import listed
from auditor.records import FileRef

_LIMIT = 100_000  # tensors listed
_PROGRAM = "this is a program: loading it runs it, and only --trust-model does so"


@dataclass(frozen=True)
class TensorLine:
    """One tensor as the file describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Description:
    """What a file holds. Nothing of it was built, run or unpacked."""

    kind: Kind
    file: FileRef
    tensors: tuple[TensorLine, ...]
    classes: tuple[str, ...]  # network classes and other names that loading would need
    unsafe: tuple[str, ...]  # those among them that are refused
    notes: tuple[str, ...]
    refused: bool = False  # it would run code when loaded, or asks for what is not on the list


def describe(path: Path) -> Description:
    """Look into a model or a dump; names of tensors and classes come from headers alone.

    Raises InputError when the file is missing, empty or damaged, UnsafeFileError when even its
    archive is hostile. A file that would be refused as a model is described, with a note.
    """
    kind = kind_of(path)
    if kind in {"torch", "torch legacy"}:
        return _torch(path, kind)
    tensors: tuple[ArrayClaim, ...] = ()
    unsafe: tuple[str, ...] = ()
    notes: list[str] = []
    if kind == "npz":
        tensors = npz_claims(path)
    elif kind == "safetensors":
        tensors, texts = safetensors_claims(path)
        notes = [f"metadata keys: {listed(sorted(texts))}"] if texts else []
    elif kind in {"TorchScript", "pt2"}:
        notes = [_PROGRAM]
    elif kind == "pickle":
        with path.open("rb") as stream:
            unsafe = globals_of(stream.read(PICKLE_BYTES))
        notes = ["a plain pickle, which is never loaded"]
    lines = tuple(TensorLine(claim.name, claim.shape, claim.dtype) for claim in tensors)
    refused = kind in {"TorchScript", "pt2", "pickle"}
    return Description(kind, file_ref(path, kind), lines, unsafe, unsafe, tuple(notes), refused)


def _torch(path: Path, kind: Kind) -> Description:
    file = look_into(path, legacy=kind == "torch legacy")
    notes, refused = [], False
    try:
        check(file, classes=True, todo="Do not load it.")
    except InputError as error:
        refused = True
        notes.append(f"would be refused: {error.found}")
    value = file.outline.value
    if isinstance(value, Call) and value.new and isinstance(value.target, Name):
        notes.append(f"a whole model of class {value.target.path}")
    lines = tuple(line for line, _ in zip(_lines(value), range(_LIMIT), strict=False))
    names = sorted(file.outline.names)
    classes = tuple(name for name in names if unsafe_names([name], classes=False))
    unsafe = unsafe_names(names, classes=True)
    refused = refused or bool(unsafe)
    return Description(kind, file_ref(path, kind), lines, classes, unsafe, tuple(notes), refused)


def _lines(value: object) -> Iterator[TensorLine]:
    """Tensors below `value` with dotted names; each record is entered once."""
    left: list[tuple[str, object]] = [("", value)]
    entered: set[int] = set()
    while left:
        name, node = left.pop()
        line = _line(name, node)
        if line is not None:
            yield line
        elif isinstance(node, dict | list | tuple | Call) and id(node) not in entered:
            entered.add(id(node))
            left += reversed(list(_children(name, node)))


def _line(name: str, node: object) -> TensorLine | None:
    try:
        claim = claim_of(node)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None  # already told: check() refused it
    return TensorLine(name, claim.shape, claim.dtype) if claim is not None else None


def _children(name: str, node: object) -> Iterator[tuple[str, object]]:
    """Parts of a record by name; the bookkeeping of a module adds nothing to it."""
    if isinstance(node, Call):
        state = node.state if isinstance(node.state, Mapping) else {}
        for field in ("_parameters", "_buffers", "_modules"):
            inner = state.get(field)
            yield from _children(name, inner) if isinstance(inner, dict) else ()
    elif isinstance(node, Mapping):
        for key, part in node.items():
            yield (f"{name}.{key}" if name else str(key)), part
    elif isinstance(node, list | tuple):
        for place, part in enumerate(node):
            yield (f"{name}.{place}" if name else str(place)), part
