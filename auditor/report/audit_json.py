"""`audit.json`: an `Audit` as text and back. The type hints of `records` are the one source.

A number that is not finite has no spelling in JSON. The fields in `_LOOSE` may hold one: it is
written as null and read back as NaN, so the sign of an infinity is lost. Anywhere else such a
number is a mistake of ours, and `to_json` raises.
"""

from __future__ import annotations

import functools
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from auditor.errors import InputError
from auditor.records import SCHEMA_VERSION, Audit, Curve, LinkReport, Measure


class _Loose(float):
    """The type of a number that need not be finite."""


_LOOSE: dict[tuple[type, str], object] = {
    (Measure, "value"): _Loose,
    (Curve, "values"): tuple[_Loose, ...],
    (LinkReport, "gap"): _Loose,
    (LinkReport, "residual"): _Loose,
    (LinkReport, "condition"): _Loose,
}
# Harmless in JSON, but not for whoever prints the file on a terminal: control characters of
# the upper half, and characters that turn around or hide text.
_RISKY = re.compile("[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_KINDS: dict[object, tuple[type, str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    bool: (bool, "true or false"),
}
_PNG = re.compile("iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")  # in base64
_HALF = re.compile("[\ud800-\udfff]")
_REMEDY = "Give the audit.json that `gradaudit scan` wrote, unchanged."
_OTHER = "Read it with the version of gradaudit that wrote it, or audit again."

_T = TypeVar("_T")


class _Shape(Exception):
    """Where a document departs from the records."""

    def __init__(self, path: str, expected: str, found: str, todo: str = "") -> None:
        super().__init__(path, expected, found)
        self.path, self.expected, self.found = path, expected, found
        self.todo = todo or _REMEDY


def to_json(audit: Audit) -> str:
    """The audit as JSON: fields in the order of the records, mappings sorted, one final newline.

    Half characters (lone surrogates) become U+FFFD, so that the text can be stored as UTF-8.
    Raises ValueError for an audit that `from_json` would refuse.
    """
    document = _plain(Audit, audit)
    try:
        _read(document)
    except _Shape as error:
        raise ValueError(f"{error.path}: {error.expected}, not {error.found}") from error
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    return _RISKY.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def from_json(text: str) -> Audit:
    """The audit in this text. Raises InputError when it is not one, or of another version."""
    try:
        document = json.loads(text, object_pairs_hook=_no_twins)
        return _read(document)
    except (ValueError, RecursionError) as error:
        raise InputError(
            expected="an audit.json", found=f"text that is no JSON ({error})", todo=_REMEDY
        ) from error
    except _Shape as error:
        raise InputError(
            expected=f"{error.expected} at {error.path} of audit.json",
            found=error.found,
            todo=error.todo,
        ) from error


def read_audit(path: Path) -> tuple[Audit, str]:
    """The audit in a file, and the file's text. Raises InputError as `from_json` does."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            expected="an audit.json",
            found=f"{path.name!r}, which cannot be read ({type(error).__name__})",
            todo="Name the file that scan wrote.",
        ) from error
    return from_json(text), text


def _read(document: object) -> Audit:
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version is not None and version != SCHEMA_VERSION:
        words = f"version {SCHEMA_VERSION}", f"version {_show(version)}"
        raise _Shape("schema_version", *words, todo=_OTHER)
    audit = _record(Audit, document, "the top level")
    _check_whole(audit)
    return audit


def _check_whole(audit: Audit) -> None:
    """What type hints cannot say."""
    if audit.exhibits and audit.evidence != "embed":
        raise _Shape("exhibits", 'none without evidence "embed"', f"{len(audit.exhibits)}")
    for i, exhibit in enumerate(audit.exhibits):
        _check_equal(f"exhibits[{i}]", len(exhibit.strip_steps), len(exhibit.strip))
        for values in (exhibit.values, exhibit.true_values):
            if values and len(values) != len(exhibit.columns):
                words = f"a value for each column ({len(exhibit.columns)})"
                raise _Shape(f"exhibits[{i}]", words, f"{len(values)}")
        for picture in (*exhibit.strip, exhibit.truth, exhibit.error_bar):
            if picture is not None and not _PNG.fullmatch(picture):
                raise _Shape(f"exhibits[{i}]", "PNG pictures in base64", "something else")
    for i, attack in enumerate(audit.attacks):
        for j, curve in enumerate(attack.curves):
            _check_equal(f"attacks[{i}].curves[{j}]", len(curve.steps), len(curve.values))
    severities = [("verdict", audit.verdict.severity)]
    severities += [(f"findings[{i}]", each.severity) for i, each in enumerate(audit.findings)]
    for path, severity in severities:
        if not 0.0 <= severity.score <= 10.0:
            raise _Shape(f"{path}.severity.score", "a score from 0 to 10", str(severity.score))


def _check_equal(path: str, steps: int, values: int) -> None:
    if steps != values:
        raise _Shape(path, f"as many steps as values ({values})", f"{steps}")


@functools.cache
def _hints(record: Callable[..., object]) -> dict[str, object]:
    hints: dict[str, object] = get_type_hints(record)
    return hints | {name: loose for (owner, name), loose in _LOOSE.items() if owner is record}


def _present(options: tuple[object, ...]) -> object:
    """`X` of `X | None`, the only kind of union in the records."""
    return next(option for option in options if option is not types.NoneType)


# --------------------------------------------------------------------------- writing


def _plain(hint: object, value: Any) -> object:
    """The value in terms of JSON, cast to what the hint says."""
    origin, inside = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return {name: _plain(h, getattr(value, name)) for name, h in _hints(hint).items()}
    if origin in (Union, types.UnionType):
        return None if value is None else _plain(_present(inside), value)
    if origin is tuple:
        return [_plain(inside[0], each) for each in value]
    if origin is Mapping:
        return {_whole(key): _whole(value[key]) for key in sorted(value)}
    return _plain_scalar(hint, value)


def _plain_scalar(hint: object, value: Any) -> object:
    if hint is _Loose and not math.isfinite(value):
        return None
    if hint is float or hint is _Loose:
        return float(value)
    return _whole(value) if isinstance(value, str) else value


def _whole(text: str) -> str:
    return _HALF.sub("\ufffd", text)


# --------------------------------------------------------------------------- reading


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


def _record(record: Callable[..., _T], value: object, path: str) -> _T:
    hints = _hints(record)
    if not isinstance(value, dict):
        raise _Shape(path, "an object", _show(value))
    if odd := _difference(hints, value):
        raise _Shape(path, f"keys {', '.join(hints)}", odd)
    prefix = "" if record is Audit else f"{path}."
    return record(**{name: _value(h, value[name], prefix + name) for name, h in hints.items()})


def _difference(expected: Iterable[str], found: Iterable[str]) -> str:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    parts = [f"no {_show(name)}" for name in missing] + [f"unknown {_show(n)}" for n in unknown]
    return ", ".join(parts[:5]) + (", …" if len(parts) > 5 else "")


def _value(hint: object, value: object, path: str) -> object:
    origin, inside = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, value, path)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(_present(inside), value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise _Shape(path, "a list", _show(value))
        return tuple(_value(inside[0], each, f"{path}[{i}]") for i, each in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _Shape(path, "an object", _show(value))
        return {key: _value(inside[1], each, f"{path}.{key}") for key, each in value.items()}
    if origin is Literal:
        if not isinstance(value, str) or value not in inside:
            raise _Shape(path, f"one of {', '.join(map(repr, inside))}", _show(value))
        return value
    return _scalar(hint, value, path)


def _scalar(hint: object, value: object, path: str) -> object:
    if hint is _Loose and value is None:
        return math.nan
    if hint is float or hint is _Loose:
        return _finite(value, path)
    kind, words = _KINDS[hint]
    # bool is an int to Python, but not to a reader of JSON
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Shape(path, words, _show(value))
    return value


def _finite(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Shape(path, "a number", _show(value))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Shape(path, "a finite number", "one that is not")
    return number


def _show(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:40]}…"
