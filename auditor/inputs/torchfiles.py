"""Opens files of torch.save: look at the pickle, check it, then load it with weights_only."""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from auditor.errors import InputError, UnsafeFileError
from auditor.inputs.allowlist import loadable, require_safe_names
from auditor.inputs.claims import check_outline
from auditor.inputs.pickles import (
    PICKLE_BYTES,
    Outline,
    bounded,
    globals_of,
    outline_of,
    require_short,
)
from auditor.inputs.safety import damaged, require_stored, zip_members
from auditor.inputs.wording import listed, quoted

# What the unpickler and the tensor rebuilders raise for a file that is broken or contrived.
_LOAD_FAULTS = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    MemoryError,
)


@dataclass(frozen=True)
class TorchFile:
    """A torch file that was looked at and not yet loaded."""

    path: Path
    outline: Outline
    members: dict[str, int] | None  # bytes by storage key; None for the old format


def look_into(path: Path, *, legacy: bool) -> TorchFile:
    """Read the description of a torch file; nothing is built.

    Raises InputError when it is damaged, UnsafeFileError when its archive is hostile.
    """
    return _look_into_legacy(path) if legacy else _look_into_zip(path)


def load_checked(file: TorchFile, *, classes: bool, todo: str) -> object:
    """Check a torch file and load it onto the CPU with `weights_only=True`.

    `classes`: whether trusted network classes may be in it; `todo`: what to do if others are.
    Raises UnsafeFileError for foreign names and bombs, InputError for what cannot be loaded.
    """
    check(file, classes=classes, todo=todo)
    try:
        with torch.serialization.safe_globals(loadable(file.outline.names if classes else ())):
            return torch.load(file.path, map_location="cpu", weights_only=True, mmap=False)
    except _LOAD_FAULTS as error:
        raise InputError(
            expected="a torch file that weights_only=True can load",
            found=f"{quoted(file.path.name)}, refused by torch ({type(error).__name__})",
            todo="Save it again with a current torch, or as safetensors.",
        ) from error


def check(file: TorchFile, *, classes: bool, todo: str) -> int:
    """The checks of `load_checked` alone; returns the bytes of all storages together."""
    name = file.path.name
    require_safe_names(file.outline.names, file=name, classes=classes, todo=todo)
    total = check_outline(file.outline, file=name, members=file.members)
    if total > file.path.stat().st_size:
        raise UnsafeFileError(
            expected="numbers that lie in the file",
            found=f"{quoted(name)}, which claims more than it holds",
            todo="Do not open this file with anything else; ask where it comes from.",
        )
    return total


def plain_pickle(path: Path, *, todo: str) -> UnsafeFileError:
    """The error for a file that pickle.dump wrote."""
    with path.open("rb") as stream:
        names = globals_of(stream.read(PICKLE_BYTES))
    asks = f", which asks to import and run {listed(names)}" if names else ""
    return UnsafeFileError(
        expected="a file of torch.save or safetensors",
        found=f"a plain pickle, {quoted(path.name)}{asks}",
        todo=todo,
    )


def _look_into_zip(path: Path) -> TorchFile:
    members = zip_members(path)
    require_stored(path, members)
    root, *others = {member.filename.partition("/")[0] for member in members}
    if others:
        raise damaged(path.name, "several folders in the archive of one object")
    sizes = {member.filename: member.file_size for member in members}
    require_short(sizes.get(f"{root}/data.pkl", 0), path.name)
    try:
        # torch's own reader, so that what is checked is what torch.load will see
        raw = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    except (RuntimeError, UnicodeDecodeError) as error:
        raise damaged(path.name, "torch cannot read the archive") from error
    prefix = f"{root}/data/"
    stored = {k.removeprefix(prefix): size for k, size in sizes.items() if k.startswith(prefix)}
    return TorchFile(path, outline_of(io.BytesIO(raw), path.name), stored)


def _look_into_legacy(path: Path) -> TorchFile:
    """Magic number, protocol, system, the object, and the list of storages: five pickles."""
    with path.open("rb") as stream:
        head = bounded(stream, path.name)
    outlines = [outline_of(head, path.name) for _ in range(5)]
    return TorchFile(path, outlines[3], None)
