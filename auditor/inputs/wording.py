"""How names and sizes from a foreign file are put into a sentence: escaped, cut, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NAME_LIMIT = 80
_LIST_LIMIT = 10


def quoted(name: object) -> str:
    """`name` in quotes, control characters escaped, at most 80 characters."""
    text = str(name)
    cut = text if len(text) <= _NAME_LIMIT else text[:_NAME_LIMIT] + "..."
    return ascii(cut)


def listed(names: Iterable[object]) -> str:
    """`'a', 'b', 'c' and 4 more`: at most ten, then a count."""
    return joined([quoted(name) for name in names])


def joined(items: Sequence[str]) -> str:
    """Ready-made pieces with commas: at most ten, then a count."""
    head = ", ".join(items[:_LIST_LIMIT])
    rest = len(items) - _LIST_LIMIT
    return f"{head} and {rest} more" if rest > 0 else head


def sized(count: int) -> str:
    """A number of bytes for people: `512 bytes`, `1.5 MiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def shaped(shape: Sequence[int]) -> str:
    """`3x5x5`; `scalar` for no dimensions."""
    return "x".join(str(size) for size in shape) if shape else "scalar"
