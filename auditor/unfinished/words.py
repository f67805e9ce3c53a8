"""What is said of an interrupted audit, in one line each."""

from __future__ import annotations

from auditor.unfinished.folder import Unfinished


def taken_from(unfinished: Unfinished | None) -> list[str]:
    """What this audit starts with; nothing when there was no other before it."""
    if unfinished is None:
        return []
    name, lines = unfinished.path.name, list[str]()
    if unfinished.trouble:
        lines.append(f"{name} is not used: {unfinished.trouble}.")
    if unfinished.damaged:
        lines.append(f"{_counted(unfinished.damaged, 'file')} of {name} damaged: not used.")
    if parts_of(unfinished):
        lines.append(
            f"{parts_of(unfinished)} taken from the interrupted audit of {unfinished.since}."
        )
    return lines


def left_by(unfinished: Unfinished | None) -> str:
    """What an interrupted audit leaves, and how to go on; None: it keeps nothing."""
    if unfinished is None:
        return "Interrupted. The same command begins anew."
    kept, name = parts_of(unfinished), unfinished.path.name
    if kept:
        return f"Interrupted. {kept} kept in {name}; the same command goes on from there."
    why = f" Nothing could be kept in {name}: {unfinished.trouble}." if unfinished.trouble else ""
    return f"Interrupted.{why} The same command begins anew."


def parts_of(unfinished: Unfinished) -> str:
    """How many attacks and rows are there: "3 attacks and 5 what-if rows"; empty for none."""
    counts = ((len(unfinished.claims), "attack"), (len(unfinished.rows), "what-if row"))
    return " and ".join(_counted(count, what) for count, what in counts if count)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
