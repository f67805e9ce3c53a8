"""Whether a directory may take a report: never one that holds something else."""

from __future__ import annotations

from pathlib import Path

from auditor.errors import UsageError

OURS = frozenset({"audit.json", "report.html", "evidence"})


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises UsageError unless `out` is new, empty, or an older audit that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(
            expected="a directory for --out",
            found=f"a file, {out.name!r}",
            todo="Name another one.",
        )
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
