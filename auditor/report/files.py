"""Single files that an audit leaves: written to the side, then renamed, so none is half there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from auditor.errors import UsageError

STDOUT = Path("-")


def check_files(files: dict[str, Path], out: Path, inputs: Iterable[Path]) -> None:
    """Raises UsageError unless each file (by its flag) can be written and takes nothing's place.

    `out` is the directory of the report, `inputs` are files that are read.
    """
    seen: dict[Path, str] = {}
    read = {path.resolve() for path in inputs}
    for flag, path in files.items():
        as_it_is = path == STDOUT or _is_stream(path)
        target = path if as_it_is else path.resolve()
        if target in seen:
            raise UsageError(
                expected=f"different places for {seen[target]} and {flag}",
                found=f"{_name(path)} twice",
                todo="Name another file for one of them.",
            )
        seen[target] = flag
        if not as_it_is:
            _check_one(flag, path, target, out.resolve(), read)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 so that `path` holds all of the text or what it held before.

    A device or a pipe is written as it is. `private`: readable by its owner only. Raises
    UsageError when the disk is full or the place cannot be written.
    """
    content = text.encode()
    try:
        if _is_stream(path):
            path.write_bytes(content)
        else:
            write_aside(path.resolve(), content, 0o600 if private else 0o666)
    except OSError as error:
        raise unwritable(error, path) from error


def unwritable(error: OSError, path: Path) -> UsageError:
    """What to say when the system refuses to write `path`."""
    return UsageError(
        expected=f"to write {_name(path)}",
        found=f"{error.strerror or type(error).__name__}",
        todo="Name another place, or make room; what was there before is unchanged.",
    )


def _check_one(flag: str, path: Path, target: Path, out: Path, read: set[Path]) -> None:
    if target in read:
        found, todo = f"{_name(path)}, which is read", "Name another file."
    elif target == out or out in target.parents:
        found, todo = f"{_name(path)} in the report's own directory", "Name a file beside it."
    elif target.is_dir():
        found, todo = f"{_name(path)}, a directory", "Name a file in it."
    elif not target.parent.is_dir():
        found, todo = f"{_name(path)} in a directory that is not there", "Make it first."
    elif not os.access(target if target.exists() else target.parent, os.W_OK):
        found, todo = f"no right to write {_name(path)}", "Name another file."
    else:
        return
    raise UsageError(expected=f"a file that can be written for {flag}", found=found, todo=todo)


def _is_stream(path: Path) -> bool:
    """A pipe or a device: /dev/stdout, a process substitution of the shell."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_aside(target: Path, content: bytes, mode: int) -> None:
    """Write to the side, then rename. Raises OSError."""
    aside = target.with_name(f".{target.name[:60]}.{secrets.token_hex(6)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _name(path: Path) -> str:
    return repr(path.name or str(path))
