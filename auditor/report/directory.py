"""Whether a directory may take a report: never one that holds something else."""

from __future__ import annotations

import os
from pathlib import Path

from auditor.errors import UsageError

OURS = frozenset({"audit.json", "report.html", "evidence"})


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises UsageError unless `out` is new, empty, or an older audit that may be replaced."""
    _require_writable(out.absolute())
    if not out.exists():
        return
    inside = {entry.name for entry in out.iterdir()}
    if not inside <= OURS:
        raise UsageError(
            expected=f"nothing but an older audit in {out.name!r}",
            found=f"{min(inside - OURS)!r}, which is not ours to replace",
            todo="Name another --out.",
        )
    if inside and not overwrite:
        raise UsageError(
            expected="an empty or new directory for the report",
            found=f"an older audit in {out.name!r}",
            todo="Name another --out, or say --overwrite to replace it.",
        )


def _require_writable(out: Path) -> None:
    """The directory, or the nearest one above it that is there, must take a new file."""
    near = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not near.is_dir():
        raise UsageError(
            expected="a directory for --out",
            found=f"a file, {near.name!r}",
            todo="Name another one.",
        )
    if not os.access(near, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(
            expected="a directory for --out that can be written",
            found=f"no right to write in {near.name!r}",
            todo="Name another one.",
        )
