"""What lands on disk: one directory an audit, written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from auditor.audit import Result, most_telling
from auditor.evidence import best_inputs
from auditor.exhibits import certainty_of, column_names, png_of, shown_inputs
from auditor.problem import is_table
from auditor.records import Evidence, Problem
from auditor.report.audit_json import to_json
from auditor.report.directory import OURS, check_target
from auditor.report.files import unwritable
from auditor.report.html import to_html
from auditor.report.words import printable
from auditor.text.audit import TextResult
from auditor.text.exhibits import text_evidence

_FORMULAS = "=+-@"  # a name that begins so is run by a spreadsheet


def write_audit(result: Result | TextResult, out: Path, *, overwrite: bool = False) -> None:
    """Write audit.json, report.html and, with separate evidence, evidence/ into `out`.

    Everything is made in a hidden directory and moved at the end, so that two audits are never
    mixed. A directory that is there already stays: it may be a mount or a link. Raises UsageError
    as `check_target` does, and when the disk is full.
    """
    check_target(out, overwrite=overwrite)
    try:
        _write(result, out.resolve())
    except OSError as error:
        raise unwritable(error, out) from error


def _write(result: Result | TextResult, out: Path) -> None:
    home = out if out.exists() else out.parent
    home.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=home))
    try:
        _fill(fresh, result)
        if home == out:
            _replace(out, fresh)
        else:
            fresh.chmod(0o700 if result.audit.evidence == "embed" else 0o755)
            fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fill(folder: Path, result: Result | TextResult) -> None:
    for name, text in (
        ("audit.json", to_json(result.audit)),
        ("report.html", to_html(result.audit)),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        if result.audit.evidence == "embed":
            (folder / name).chmod(0o600)
    if result.audit.evidence == "separate":
        if isinstance(result, TextResult):
            _write_text(result, folder / "evidence")
        else:
            _write_evidence(result, folder / "evidence")


def _replace(out: Path, fresh: Path) -> None:
    """Move what is in `fresh` into `out`, after all of the older audit is out of the way."""
    made = list(fresh.iterdir())
    old = fresh / "old"
    old.mkdir()
    for name in OURS:
        if (out / name).exists():
            (out / name).rename(old / name)
    for entry in made:
        entry.rename(out / entry.name)


def _write_evidence(result: Result, folder: Path) -> None:
    """Recovered labels and inputs, readable by their owner only. Nothing, if nothing leaked."""
    labels = _labels(result)
    pictures = _leaked_pictures(result)
    if labels is None and pictures is None:
        return
    folder.mkdir(mode=0o700)
    tensors: dict[str, Tensor] = {}
    table = is_table(result.problem)
    told = {"units": "of each column" if table else "pixels 0..1"}
    if labels is not None:
        tensors["labels"] = labels
    if pictures is not None:
        tensors["inputs"], told["certainty"] = _inputs(result.problem, pictures)
        if table:
            named = None if pictures.best is None else labels
            lines = csv_of(column_names(result.problem), tensors["inputs"], named)
            _private(folder / "rows.csv", lines.encode())
        else:
            for index, picture in enumerate(tensors["inputs"]):
                _private(folder / f"sample-{index:03d}.png", png_of(picture))
    _private(folder / "evidence.safetensors", save(tensors, metadata=told))


def csv_of(columns: tuple[str, ...], rows: Tensor, labels: Tensor | None) -> str:
    """Rows (M, D) with a header, and the label (M,) as last column where each row has one.

    A name that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [f"'{name}" if name[:1] in _FORMULAS else name for name in map(printable, columns)]
    writer.writerow([*names, *(["label"] if labels is not None else [])])
    for index, row in enumerate(rows.tolist()):
        own = [int(labels[index])] if labels is not None else []
        writer.writerow([*(f"{value:.7g}" for value in row), *own])
    return stream.getvalue()


def _write_text(result: TextResult, folder: Path) -> None:
    """Recovered tokens and their text, readable by their owner only. Nothing, if nothing leaked."""
    tensors, lines = text_evidence(result.problem, result.evidence)
    if not tensors:
        return
    folder.mkdir(mode=0o700)
    if lines:
        text = "".join(f"{printable(line, limit=1 << 20)}\n" for line in lines)
        _private(folder / "text.txt", text.encode())
    _private(folder / "evidence.safetensors", save(tensors, metadata={"units": "token numbers"}))


def _inputs(problem: Problem, evidence: Evidence) -> tuple[Tensor, str]:
    """Pictures (M, C, H, W), pixels 0..1, or rows (M, D), and how certain they are."""
    if evidence.best is not None:
        return best_inputs(problem, evidence), certainty_of(problem, evidence)
    words = [word for word in evidence.samples if word is not None]
    return shown_inputs(problem, evidence), ", ".join(words)


def _private(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)


def _leaked_pictures(result: Result) -> Evidence | None:
    leaked = {report.name for report in result.audit.attacks if report.outcome == "leak"}
    shown = tuple(e for e in result.evidence if e.attack in leaked)
    telling = most_telling(result.problem, shown)
    if telling is None or (telling.best is None and not any(telling.samples)):
        return None
    return telling


def _labels(result: Result) -> Tensor | None:
    """(N,) int64: those of the leaked pictures, else the best guess, else the proved ones."""
    pictures = _leaked_pictures(result)
    if pictures is not None and pictures.recovery.input_labels is not None:
        return pictures.recovery.input_labels[pictures.best or 0].cpu().clone()
    for entry in result.evidence:
        claim = entry.recovery.labels
        if claim is not None and claim.statements:
            if claim.estimate is not None:
                return claim.estimate
            return torch.repeat_interleave(torch.arange(len(claim.lower)), claim.lower)
    return None
