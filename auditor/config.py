"""The project's own settings: `gradaudit.toml`, or `[tool.gradaudit]` in `pyproject.toml`.

A flag goes before an environment variable, a variable before the file, the file before the
default. What can run code, and what names the client's data, is said on the command line only: a
file that came with somebody's repository must not decide it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from auditor.errors import UsageError
from auditor.gate import Accepted
from auditor.rules import RULES

PREFIX = "GRADAUDIT_"
# Never in a file or a variable.
SPOKEN = frozenset(
    {
        *("model", "grads", "arch", "trust-model", "truth", "before", "after", "save-dump"),
        *("input", "label", "text", "data", "dataset", "index", "overwrite", "help"),
    }
)
_FILES = ("gradaudit.toml", "pyproject.toml")
_SUPPRESS = "suppress"
_ENTRY = ("code", "reason", "expires")

Value = str | int | float | bool


@dataclass(frozen=True)
class Configuration:
    """What a file says."""

    file: str | None = None  # its name
    options: Mapping[str, Value] | None = None  # by the name of the option, without its dashes
    accepted: tuple[Accepted, ...] = ()


def read_configuration(folder: Path, options: Collection[str]) -> Configuration:
    """The settings in `folder`; `options` are the names that may stand there.

    `gradaudit.toml` goes before `pyproject.toml`; without both, nothing is set. Raises UsageError
    for a file that is not TOML, an unknown key, a value of the wrong kind, and a suppression
    without a reason, without a day, or of an unknown code.
    """
    for name in _FILES:
        table = _table(folder / name)
        if table is not None:
            entries = table.pop(_SUPPRESS, [])
            known = [option for option in options if option not in SPOKEN]
            return Configuration(name, _options(table, known, name), _accepted(entries, name))
    return Configuration()


def check_environment(environment: Iterable[str], options: Collection[str]) -> None:
    """Raises UsageError for a variable that is nearly one of ours: a gate must not fall silent."""
    known = [variable(option) for option in options if option not in SPOKEN]
    for name in environment:
        if not name.startswith(PREFIX) or name in known:
            continue
        near = difflib.get_close_matches(name, known, 1, 0.85)
        if near:
            raise UsageError(
                expected=f"the variable {near[0]}",
                found=repr(name),
                todo="Mend its name, or unset it.",
            )


def variable(option: str) -> str:
    """`GRADAUDIT_FAIL_ON` of `fail-on`."""
    return PREFIX + option.replace("-", "_").upper()


def _table(path: Path) -> dict[str, object] | None:
    if not path.is_file():
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise UsageError(
            expected=f"TOML in {path.name}", found=f"{error}", todo="Mend the file."
        ) from error
    if path.name == "pyproject.toml":
        tools = document.get("tool")
        own = tools.get("gradaudit") if isinstance(tools, dict) else None
        if own is None:
            return None
        document = own
    if not isinstance(document, dict):
        raise _wrong(path.name, "tool.gradaudit", "a table", document)
    return dict(document)


def _options(table: Mapping[str, object], known: list[str], file: str) -> dict[str, Value]:
    return {key: _value(key, value, known, file) for key, value in table.items()}


def _value(key: str, value: object, known: list[str], file: str) -> Value:
    if key in SPOKEN:
        raise UsageError(
            expected=f"--{key} on the command line only",
            found=f"{key!r} in {file}",
            todo="Take it out of the file.",
        )
    if key not in known:
        raise _unknown(key, [*known, _SUPPRESS], f"a setting in {file}")
    if key == "evidence" and value == "embed":
        raise UsageError(
            expected="--evidence embed on the command line only",
            found=f"it in {file}",
            todo="Take it out of the file: it puts recovered data into the report.",
        )
    if isinstance(value, list) and all(_is_scalar(each) for each in value):
        return ",".join(str(each) for each in value)
    if not _is_scalar(value):
        raise _wrong(file, key, "a text, a number, true or false, or a list of them", value)
    return value  # type: ignore[return-value]


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float)


def _accepted(entries: object, file: str) -> tuple[Accepted, ...]:
    if not isinstance(entries, list):
        raise _wrong(file, _SUPPRESS, f"tables, each headed [[{_SUPPRESS}]]", entries)
    return tuple(
        _one(entry, f"{_SUPPRESS} number {i + 1}", file) for i, entry in enumerate(entries)
    )


def _one(entry: object, where: str, file: str) -> Accepted:
    if not isinstance(entry, dict):
        raise _wrong(file, where, "a table", entry)
    for key in entry:
        if key not in _ENTRY:
            raise _unknown(key, list(_ENTRY), f"a key of {where} in {file}")
    code, reason = entry.get("code"), entry.get("reason")
    codes = [rule.code for rule in RULES if not rule.code.startswith("GA3")]
    if code not in codes:
        raise _unknown(str(code), codes, f"the code of a finding in {where} of {file}")
    if not isinstance(reason, str) or not reason.strip():
        raise _wrong(file, f"{where}, reason", "why the finding is accepted", reason)
    return Accepted(str(code), reason.strip(), _day(entry.get("expires"), where, file))


def _day(value: object, where: str, file: str) -> str:
    try:
        # a TOML date is a date; a text must look like one
        return (
            value.isoformat() if type(value) is date else date.fromisoformat(str(value)).isoformat()
        )
    except ValueError as error:
        raise _wrong(
            file, f"{where}, expires", "its last day, such as 2027-01-31", value
        ) from error


def _unknown(found: str, known: list[str], expected: str) -> UsageError:
    near = difflib.get_close_matches(found, known, 1, 0.0)
    return UsageError(
        expected=expected, found=repr(found[:80]), todo=f"The nearest is {near[0]!r}."
    )


def _wrong(file: str, where: str, expected: str, found: object) -> UsageError:
    shown = "nothing" if found is None else repr(found)[:80]
    return UsageError(expected=f"{expected} at {where} of {file}", found=shown, todo="Mend it.")
