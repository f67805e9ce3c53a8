"""The command line as a report may show it: no directories, no labels, no text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

# What follows these is truth about the client's data, or tells what its table is about.
_TRUTH = frozenset({"--label", "--label-column", "--index", "--text"})
# Of a table they are statistics of people; of pictures, three or one.
_STATISTICS = frozenset({"--mean", "--std"})
_MOST = 4  # numbers
REMOVED = "[removed]"


def public_command(arguments: Iterable[str]) -> tuple[str, ...]:
    """argv without the program, paths reduced to base names and truth removed."""
    shown: list[str] = []
    hide, before = False, ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if hide or (before in _STATISTICS and argument.count(",") >= _MOST):
            shown.append(REMOVED)
        elif equals and (option in _TRUTH or (option in _STATISTICS and value.count(",") >= _MOST)):
            shown.append(f"{option}={REMOVED}")
        elif option.startswith("--") and equals:
            shown.append(f"{option}={_base(value)}")
        else:
            shown.append(_base(argument))
        hide, before = not hide and option in _TRUTH and not equals, argument
    return ("gradaudit", *shown)


def _base(text: str) -> str:
    return PurePath(text.replace("\\", "/")).name or text
