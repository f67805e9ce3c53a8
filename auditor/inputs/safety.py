"""Sizes that a file claims, checked before anything of that size is allocated.

A zip directory, the header of a .npy member and the header of a safetensors file are small and
say how large the rest is. Each is read alone, compared with the file itself and with what the
model can need, and only then are the numbers read.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from auditor.errors import InputError, UnsafeFileError
from auditor.inputs.wording import listed, quoted, sized

_MEMBERS = 100_000
_DIRECTORY_BYTES = 32 << 20
_HEADER_BYTES = 16 << 20
_END = struct.Struct("<4s4H2LH")  # end of central directory
_LONG = struct.Struct("<Q")
_END64_BYTES = 56
_LOCATOR_BYTES = 20


_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # a member that asks for a password
)


@dataclass(frozen=True)
class ArrayClaim:
    """One tensor as a header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def byte_limit(values: int) -> int:
    """Bytes that a dump for a model of `values` parameters and buffers may hold."""
    return 4 * 8 * values + (16 << 20)


def require_at_most(total: int, limit: int | None, name: str) -> None:
    """Raise UnsafeFileError when the numbers of a file claim more than `limit` bytes."""
    if limit is not None and total > limit:
        raise UnsafeFileError(
            expected=f"at most {sized(limit)} of numbers, which is ample for this model",
            found=f"{quoted(name)}, which claims {sized(total)}",
            todo="Check that the file belongs to this model, and who made it.",
        )


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The directory of a zip file, nothing unpacked.

    Raises InputError when it is damaged, UnsafeFileError when it has encrypted or duplicate
    members, names that point outside, or an absurd number of entries.
    """
    _check_directory_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (*_ZIP_FAULTS, UnicodeDecodeError) as error:
        raise damaged(path.name, "a zip archive without a readable directory") from error
    names = [member.filename for member in members]
    if len(names) > _MEMBERS:
        raise _hostile(path.name, f"{len(names)} entries")
    if len(set(names)) < len(names):
        raise _hostile(path.name, "two members of the same name")
    outside = [name for name in names if _points_outside(name)]
    if outside:
        raise _hostile(path.name, f"names that point outside: {listed(outside)}")
    if any(member.flag_bits & 1 for member in members):
        raise _hostile(path.name, "encrypted members")
    return members


def require_stored(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise UnsafeFileError unless every member is stored as it is, as torch.save does it."""
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UnsafeFileError(
            expected="members that are stored uncompressed, as torch.save writes them",
            found=f"compressed members in {quoted(path.name)}: {listed(packed)}",
            todo="Save it again with torch.save; a repacked file may be a bomb.",
        )
    total = sum(member.file_size for member in members)
    if total > path.stat().st_size:
        raise _hostile(path.name, f"members of {sized(total)} in a smaller file")


def npz_claims(path: Path) -> tuple[ArrayClaim, ...]:
    """Names, shapes and dtypes of a .npz file, read from the header of each member.

    Raises UnsafeFileError when a member holds pickled objects or a header that does not fit the
    size of its member, InputError when a header cannot be read.
    """
    claims = []
    zip_members(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as stream:
                    claims.append(_npy_claim(path.name, member, stream))
            except _ZIP_FAULTS as error:
                raise damaged(path.name, f"member {quoted(member.filename)}") from error
    return tuple(claims)


def read_npz(path: Path, *, limit: int) -> dict[str, np.ndarray]:
    """All arrays of a .npz file by name; at most `limit` bytes together.

    Raises what `npz_claims` raises, and InputError for a damaged member.
    """
    claims = npz_claims(path)
    require_at_most(sum(claim.bytes for claim in claims), limit, path.name)
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for claim in claims:
            try:
                with archive.open(claim.name + ".npy") as stream:
                    array = npy_format.read_array(stream, allow_pickle=False)
            except (*_ZIP_FAULTS, ValueError) as error:
                raise damaged(path.name, f"member {quoted(claim.name)}") from error
            arrays[claim.name] = array
    return arrays


def safetensors_claims(path: Path) -> tuple[tuple[ArrayClaim, ...], dict[str, str]]:
    """Tensors and metadata of a safetensors file, read from its header alone.

    Raises InputError when the header is damaged or the file is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise damaged(path.name, f"a safetensors header of {sized(length)} in {sized(size)}")
        if length > _HEADER_BYTES:
            raise _hostile(path.name, f"a safetensors header of {sized(length)}")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        claims = tuple(_safetensors_claim(name, entry) for name, entry in header.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path.name, "a safetensors header that cannot be read") from error
    if 8 + length + sum(claim.bytes for claim in claims) > size:
        raise damaged(path.name, "fewer bytes than the safetensors header announces")
    return claims, metadata


def damaged(name: str, what: str) -> InputError:
    """The error for a file that is cut off or broken."""
    return InputError(
        expected="a complete file",
        found=f"{quoted(name)}, truncated or damaged: {what}",
        todo="Write or copy it again.",
    )


def _hostile(name: str, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        expected="an archive as torch.save or numpy.savez writes it",
        found=f"{quoted(name)} with {what}",
        todo="Do not open this file with anything else; ask where it comes from.",
    )


def _points_outside(name: str) -> bool:
    return name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name


def _check_directory_size(path: Path) -> None:
    """The directory is parsed in Python, so its size is bounded first."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - (1 << 16) - _END.size - _END64_BYTES - _LOCATOR_BYTES))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise damaged(path.name, "a zip archive without its directory")
    claimed = _END.unpack_from(tail, at)[5]
    at64 = at - _LOCATOR_BYTES - _END64_BYTES
    if at64 >= 0 and tail[at64 : at64 + 4] == b"PK\x06\x06":
        claimed = max(0 if claimed == 0xFFFFFFFF else claimed, *_LONG.unpack_from(tail, at64 + 40))
    if claimed > _DIRECTORY_BYTES:
        raise _hostile(path.name, f"a zip directory of {sized(claimed)}")


def _npy_claim(name: str, member: zipfile.ZipInfo, stream: IO[bytes]) -> ArrayClaim:
    inner = member.filename.removesuffix(".npy")
    try:
        version = npy_format.read_magic(stream)
        if version not in {(1, 0), (2, 0)}:
            raise damaged(name, f"member {quoted(inner)} of an unknown .npy version")
        first = version == (1, 0)
        read = npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise damaged(name, f"member {quoted(inner)} has no valid .npy header") from error
    if dtype.hasobject:
        raise UnsafeFileError(
            expected="arrays of numbers",
            found=f"{quoted(inner)} in {quoted(name)}, an array of pickled objects",
            todo="Save plain float arrays: numpy.savez(path, **{name: array}).",
        )
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != member.file_size - stream.tell():
        raise UnsafeFileError(
            expected="headers that fit the bytes behind them",
            found=f"{quoted(inner)} in {quoted(name)}, whose header claims {sized(claimed)}",
            todo="Write the file again; do not open it if you did not make it.",
        )
    return ArrayClaim(name=inner, shape=shape, dtype=str(dtype), bytes=claimed)


def _safetensors_claim(name: str, entry: dict[str, object]) -> ArrayClaim:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError(name)
    if not all(type(n) is int and n >= 0 for n in [*shape, *offsets]) or len(offsets) != 2:
        raise ValueError(name)
    count = offsets[1] - offsets[0]
    if count < 0:
        raise ValueError(name)
    return ArrayClaim(name=name, shape=tuple(shape), dtype=str(entry["dtype"]), bytes=count)
