"""The folder of finished parts beside the report, readable by its owner alone.

It is foreign when it is read again. So a part counts only under the key of the same audit and when
it is whole; a claim is checked again like any other; and what only an attack itself can vouch for,
what is proved of the labels, is never taken from a file. A folder that others could have written or
read is not used at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from auditor.records import WhatIfRow
from auditor.report.files import write_aside
from auditor.unfinished.parts import Claim, Part, name_of, read_part, to_bytes

_SUFFIX = ".safetensors"
_OPEN = "others than you could write or read it"


class Unfinished:
    """The finished parts of one audit: those of an interrupted one, and what is added to them."""

    def __init__(self, path: Path, key: str, *, recovered: bool) -> None:
        """`recovered`: whether claims may be written and read, which hold recovered values."""
        self.path, self._key, self._recovered = path, key, recovered
        self.trouble = ""  # why nothing can be kept, or what is there is not used
        self.damaged = 0
        self.since = ""  # when the newest part was finished, ISO 8601, UTC
        self._parts: dict[tuple[str, str], Part] = {}
        self._read()

    @classmethod
    def beside(cls, out: Path, key: str, *, recovered: bool) -> Unfinished:
        """The one that belongs to the report directory `out`."""
        out = out.absolute()
        return cls(out.parent / f".{out.name}-unfinished", key, recovered=recovered)

    @property
    def claims(self) -> dict[str, Claim]:
        """By attack, what those that ran to their end came to. Unchecked."""
        return {p.attack: p for p in self._parts.values() if isinstance(p, Claim)}

    @property
    def rows(self) -> dict[str, WhatIfRow]:
        """By setting, the finished rows of the what-if."""
        return {p.setting: p for p in self._parts.values() if isinstance(p, WhatIfRow)}

    def keep(self, part: Part) -> None:
        """Write the part, whole or not at all. What cannot be kept is no reason to end an audit."""
        if self.trouble or not self._is_kept(part):
            return
        content = to_bytes(part, self._key)
        name = hashlib.sha256(content).hexdigest() + _SUFFIX
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(self.path):
                write_aside(self.path / name, content, 0o600)
                self._parts[name_of(part)] = part
            else:  # a file system without rights
                self.path.rmdir()
                self.trouble = _OPEN
        except OSError as error:
            self.trouble = error.strerror or type(error).__name__

    def clear(self, *, rows: bool) -> None:
        """Remove all parts at the end of the audit; with `rows`, the what-if's stay."""
        if self.trouble == _OPEN:  # not ours to remove
            return
        left = self.rows if rows else {}
        self._parts = {}
        shutil.rmtree(self.path, ignore_errors=True)
        for row in left.values():
            self.keep(row)

    def _is_kept(self, part: Part) -> bool:
        if not isinstance(part, Claim) or part.recovery is None:
            return True
        return self._recovered and part.recovery.labels is None

    def _read(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not _is_private(self.path):
            self.trouble = _OPEN
            return
        try:
            files = sorted(_files(self.path), key=lambda each: each[1])
        except OSError as error:
            self.trouble = error.strerror or type(error).__name__
            return
        for path, seconds in files:
            try:
                _require_whole(path)
                part = read_part(path, self._key)
            except ValueError:
                self.damaged += 1
                continue
            if part is not None and self._is_kept(part):
                self._parts[name_of(part)] = part
                self.since = datetime.fromtimestamp(seconds, UTC).isoformat(" ", "minutes")


def _is_private(folder: Path) -> bool:
    """Whether it is a folder of this user's that nobody else can read or write."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return False
    return os.name != "posix" or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)


def _files(folder: Path) -> Iterator[tuple[Path, float]]:
    for path in folder.glob(f"*{_SUFFIX}"):
        yield path, path.stat().st_mtime


def _require_whole(path: Path) -> None:
    """Raises ValueError unless the file holds what was written."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(path.name) from error
    if path.name != found + _SUFFIX:
        raise ValueError(path.name)
