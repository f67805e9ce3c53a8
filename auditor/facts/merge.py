"""Facts taken one after the other, each with where it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from auditor.errors import UsageError
from auditor.records import Assumption, Origin


@dataclass
class Merge:
    """Takes one fact after the other and remembers where each came from."""

    assumptions: list[Assumption] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)

    def take(
        self,
        what: str,
        flag: Any,
        metadata: Any,
        default: Any,
        *,
        show: Callable[[Any], str] | None = None,
    ) -> tuple[Any, Origin]:
        show = show or text_of
        if flag is not None and metadata is not None and flag != metadata:
            self.overrides.append(f"{what} {show(flag)} instead of {show(metadata)}")
        origin: Origin = "flag" if flag is not None else "metadata"
        value = flag if flag is not None else metadata
        if value is None:
            value, origin = default, "assumed"
        if value is not None:
            self.note(what, show(value), origin)
        return value, origin

    def note(self, what: str, value: Any, origin: Origin) -> None:
        self.assumptions.append(Assumption(what, text_of(value), origin))


def usage(expected: str, found: object, flag: str) -> UsageError:
    return UsageError(expected=expected, found=str(found), todo=f"Mend {flag}.")


def text_of(value: Any) -> str:
    if isinstance(value, tuple):
        separator = "x" if all(isinstance(v, int) for v in value) else ", "
        return separator.join(str(v) for v in value)
    return str(value)
