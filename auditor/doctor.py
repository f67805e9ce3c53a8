"""What an audit finds on this machine: versions, devices, extras, folders. For `gradaudit doctor`.

torch is imported here and looked at, never changed; nothing is measured and nothing is sent.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from auditor import __version__

_PYTHON = (3, 11)
# What an audit cannot do without, and the oldest version that is fit for it; see SECURITY.md.
_NEEDED = (
    ("torch", "2.10"),
    ("torchvision", "0.25"),
    ("numpy", "1.26"),
    ("scipy", "1.11"),
    ("pillow", "10"),
    ("safetensors", "0.4.5"),
    ("jinja2", "3.1"),
    ("typer", "0.20"),
    ("rich", "13"),
)
_EXTRAS = (
    ("text", "transformers", "4.57", "language models"),
    ("dp", "opacus", "1.5", "privacy parameters of noise"),
)


@dataclass(frozen=True)
class Look:
    """One thing that was looked at; `todo` is empty unless something has to be done."""

    what: str
    state: Literal["ok", "missing", "optional"]
    found: str
    todo: str = ""


def look_around(folder: Path) -> tuple[Look, ...]:
    """Everything that an audit with its report in `folder` needs, and what it could use beside."""
    needed = [_package(name, oldest) for name, oldest in _NEEDED]
    return (
        Look("gradaudit", "ok", __version__),
        _python(),
        *needed,
        *(_devices() if needed[0].state == "ok" else ()),
        *(_extra(*extra) for extra in _EXTRAS),
        _writable("folder for temporary files", Path(tempfile.gettempdir()), "Set TMPDIR."),
        _writable("folder for the report", folder, "Go elsewhere, or name --out."),
    )


def is_fit(looks: Iterable[Look]) -> bool:
    """Whether an audit can run here."""
    return all(look.state != "missing" for look in looks)


def _python() -> Look:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= _PYTHON:
        return Look("python", "ok", found)
    return Look("python", "missing", found, "Use Python 3.11 or newer.")


def _package(name: str, oldest: str) -> Look:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Look(name, "missing", "not installed", f'pip install "{name}>={oldest}"')
    if _numbers(version) < _numbers(oldest):
        return Look(name, "missing", f"{version}, too old", f'pip install "{name}>={oldest}"')
    return Look(name, "ok", version)


def _numbers(version: str) -> tuple[int, ...]:
    """The release as numbers: (2, 10, 0) of "2.10.0+cpu"; at least three of them."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in release[0].split(".")] if release else []
    return tuple(parts + [0] * (3 - len(parts)))


def _devices() -> tuple[Look, ...]:
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        todo = "Install torch again; a library that it needs may be missing."
        return (Look("torch", "missing", f"cannot be loaded ({type(error).__name__})", todo),)
    cpu = Look("cpu", "ok", f"{torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
        return (cpu, *(Look(f"cuda:{at}", "ok", name) for at, name in enumerate(names)))
    if torch.backends.mps.is_available():
        return (cpu, Look("mps", "ok", "Apple GPU"))
    return (cpu, Look("gpu", "optional", "none that this torch can use; audits run on the CPU"))


def _extra(name: str, package: str, oldest: str, purpose: str) -> Look:
    look = _package(package, oldest)
    if look.state == "ok":
        return Look(f"extra {name}", "ok", f"{package} {look.found}")
    todo = f'pip install "gradaudit[{name}]"'
    return Look(f"extra {name}", "optional", f"{package} {look.found}: no {purpose}", todo)


def _writable(what: str, folder: Path, todo: str) -> Look:
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Look(what, "ok", "can be written")
    return Look(what, "missing", "cannot be written", todo)
