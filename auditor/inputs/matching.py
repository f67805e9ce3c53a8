"""Fits names and shapes from a file to those of a model: wrapper prefixes, then order."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from auditor.errors import InputError
from auditor.inputs.wording import joined, listed, quoted, shaped

# DataParallel and DDP, Opacus, torch.compile, FSDP, Lightning, and what people write themselves
PREFIXES = (
    *("module.", "_module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "net."),
    "base_model.",  # of peft
)
_INNER = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module)\.")
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)")

Shape = tuple[int, ...]


def bare_name(name: str, wanted: Collection[str]) -> str:
    """`name` without wrapper prefixes if that makes it one of `wanted`, else `name` itself."""
    rest = name
    while rest not in wanted:
        prefix = next((p for p in PREFIXES if rest.startswith(p)), None)
        if prefix is None:
            inner = _INNER.sub("", name)
            return name if inner == name else _restored(name, inner, wanted)
        rest = rest[len(prefix) :]
    return rest


def bare_names(names: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Each of `names` to the name that fits the model, see `bare_name`.

    Raises InputError when two names become one.
    """
    fitted = {name: bare_name(name, wanted) for name in names}
    seen: dict[str, str] = {}
    for name, bare in fitted.items():
        if bare in seen:
            raise InputError(
                expected="each tensor once",
                found=f"{quoted(seen[bare])} and {quoted(name)}, both for {quoted(bare)}",
                todo="Save one of the two.",
            )
        seen[bare] = name
    return fitted


def removed_prefixes(fitted: Mapping[str, str]) -> str:
    """A clause that says which prefixes `bare_names` took away; empty when none."""
    removed = {
        name.removesuffix(bare) if name.endswith(bare) else "_orig_mod. or _fsdp_wrapped_module."
        for name, bare in fitted.items()
        if name != bare
    }
    return f"prefix {listed(sorted(removed))} removed" if removed else ""


def differences(
    found: Mapping[str, Shape], wanted: Mapping[str, Shape], *, missing_too: bool
) -> tuple[str, ...]:
    """Missing, unexpected and misshapen names, one clause for each group."""
    missing = [name for name in wanted if name not in found] if missing_too else []
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{quoted(name)} ({shaped(shape)} instead of {shaped(wanted[name])})"
        for name, shape in found.items()
        if name in wanted and tuple(shape) != tuple(wanted[name])
    ]
    groups = (
        (f"{len(missing)} missing: {listed(missing)}", missing),
        (f"{len(unexpected)} unexpected: {listed(unexpected)}", unexpected),
        (f"{len(misshapen)} of another shape: {joined(misshapen)}", misshapen),
    )
    return tuple(text for text, names in groups if names)


def numbered_order(names: Sequence[str]) -> list[str] | None:
    """`names` sorted by their numbers when they differ in a number only (`arr_0`, `arr_1`)."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    parts = [(match["stem"], int(match["number"]), match.string) for match in found if match]
    if len(parts) < len(names) or len({stem for stem, _, _ in parts}) != 1:
        return None
    return [name for _, _, name in sorted(parts)]


def places_by_shape(found: Sequence[Shape], wanted: Sequence[Shape]) -> tuple[int, list[int]]:
    """In how many ways `found` runs through `wanted` in order, and the first of those ways.

    The count stops at two: more ways than one are ambiguous, however many there are.
    """
    rows, columns = len(found), len(wanted)
    if rows > columns:
        return 0, []
    ways = [[0] * (columns + 1) for _ in range(rows)] + [[1] * (columns + 1)]
    for row in reversed(range(rows)):
        for column in reversed(range(columns)):
            taken = ways[row + 1][column + 1] if found[row] == wanted[column] else 0
            ways[row][column] = min(2, ways[row][column + 1] + taken)
    places: list[int] = []
    column = 0
    for row in range(rows if ways[0][0] else 0):
        while found[row] != wanted[column] or not ways[row + 1][column + 1]:
            column += 1
        places.append(column)
        column += 1
    return ways[0][0], places


def _restored(name: str, inner: str, wanted: Collection[str]) -> str:
    """The name without wrappers inside it, if the model knows that one."""
    bare = bare_name(inner, wanted)
    return bare if bare in wanted else name
