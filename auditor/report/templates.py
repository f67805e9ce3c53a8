"""Finds the templates of the report: the checkout's while one works there, else the wheel's."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from auditor.report.words import printable


def environment() -> Environment:
    """Jinja2 over our templates; everything that is no markup of our own gets escaped.

    Raises FileNotFoundError when the package was installed without its templates.
    """
    return Environment(
        loader=DictLoader(sources()),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_final,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def sources() -> dict[str, str]:
    """Text of every template by its name. Raises FileNotFoundError when there are none."""
    folder = _folder(Path(__file__).resolve().parents[2], files("auditor"))
    # from a Traversable and not from a path: the package may be inside a zip
    found = {name: entry.read_text(encoding="utf-8") for name, entry in _html_in(folder)}
    if not found:
        raise FileNotFoundError("gradaudit was installed without its report templates")
    return found


def _folder(root: Path, package: Traversable) -> Traversable:
    checkout = root / "reports" / "templates"
    if (root / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return package / "_templates"


def _html_in(folder: Traversable) -> Iterator[tuple[str, Traversable]]:
    if folder.is_dir():
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        yield from ((entry.name, entry) for entry in entries if entry.name.endswith(".html"))


def _final(value: object) -> Markup | str:
    """What a template prints. Nothing at all is a mistake of the template, not an empty text."""
    if value is None:
        raise TypeError("a template printed None")
    return value if isinstance(value, Markup) else printable(str(value), limit=1500)
