"""What a file is, told by its first bytes and never by its name; its size and its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from auditor.errors import InputError
from auditor.inputs.safety import zip_members
from auditor.inputs.wording import quoted
from auditor.records import FileRef

Kind = Literal[
    "torch",
    "torch legacy",
    "TorchScript",
    "pt2",
    "npz",
    "npy",
    "safetensors",
    "pickle",
    "picture",
    "zip",
    "tar",
    "unknown",
]

# Magic number of torch.save before 1.6: a pickle of protocol 2 that holds one long integer.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"
_PICTURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_SAFETENSORS_HEADER = 100_000_000  # the format's own limit


def kind_of(path: Path) -> Kind:
    """The kind of the file at `path`.

    Raises InputError when it is missing, a folder, empty, unreadable or a damaged zip file, and
    UnsafeFileError when its zip directory is hostile.
    """
    _require_file(path)
    head = _head(path)
    if head.startswith(_ZIP):
        return _zip_kind([member.filename for member in zip_members(path)])
    return _plain_kind(head)


def file_ref(path: Path, form: str) -> FileRef:
    """Base name, size and SHA-256 of `path`; the file is read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    count = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            count += len(piece)
    return FileRef(name=path.name, format=form, bytes=count, sha256=digest.hexdigest())


def _require_file(path: Path) -> None:
    wanted = "a file"
    if not path.exists():
        raise InputError(
            expected=wanted, found=f"no such file: {quoted(path)}", todo="Check the path."
        )
    if path.is_dir():
        raise InputError(
            expected=wanted,
            found=f"a directory: {quoted(path.name)}",
            todo="Name the file inside it.",
        )
    if not path.is_file():
        raise InputError(
            expected=wanted,
            found=f"{quoted(path.name)}, a pipe, socket or device",
            todo="Copy it into a regular file first.",
        )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise InputError(
            expected="a file that can be read",
            found=f"{quoted(path.name)}: {error.strerror}",
            todo="Check its permissions.",
        ) from error
    if not head:
        raise InputError(
            expected="a file with content",
            found=f"an empty file: {quoted(path.name)}",
            todo="Write it again; the program that made it may have been stopped.",
        )
    return head


def _plain_kind(head: bytes) -> Kind:
    if head.startswith(_LEGACY):
        return "torch legacy"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "picture"
    if int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    return "tar" if head[257:262] == b"ustar" else "unknown"


def _zip_kind(names: list[str]) -> Kind:
    inner = [name.partition("/")[2] for name in names]
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "TorchScript"
    if any(_exported(name) for name in [*names, *inner]):
        return "pt2"
    if "data.pkl" in inner:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "zip"


def _exported(name: str) -> bool:
    model = name.startswith("models/") and name.endswith(".json")
    return model or name in {"archive_format", "serialized_exported_program.json"}
