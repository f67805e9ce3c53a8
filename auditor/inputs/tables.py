"""Reads rows of a table, for `simulate`: a CSV with a header, .npz, safetensors or a torch file.

An error names a line and a column, never what stands there: it may end up in a log.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from auditor.errors import InputError, UsageError
from auditor.inputs.files import kind_of
from auditor.inputs.safety import require_at_most
from auditor.inputs.truth import labels_of, rows_of, tensors_in
from auditor.inputs.wording import listed, quoted

_CSV_BYTES = 1 << 28
_SEPARATORS = ",;\t"
_NO_CATEGORIES = (
    "Make numbers of it, as for training: one column of 0 and 1 for each category. Columns of "
    "categories cannot be audited (docs/tables.md)."
)


@dataclass(frozen=True)
class Table:
    """Rows as they stand in a file."""

    rows: Tensor  # (N, D) float64, columns in their own units
    labels: Tensor | None  # (N,) int64; None: the file does not hold them
    columns: tuple[str, ...] = ()  # (D,) names, of a CSV

    def chosen(self, indices: Sequence[int]) -> Table:
        """Some rows, in this order; all when none is named. Raises InputError outside the file."""
        outside = [index for index in indices if not 0 <= index < len(self.rows)]
        if outside:
            raise InputError(
                expected=f"rows from 0 to {len(self.rows) - 1}",
                found=f"{len(outside)} of {len(indices)} outside",
                todo="Mend --index; the first row below the header is number 0.",
            )
        if not indices:
            return self
        places = torch.tensor(list(indices))
        labels = None if self.labels is None else self.labels[places]
        return Table(self.rows[places], labels, self.columns)


def load_table(path: Path, *, label_column: str | None = None) -> Table:
    """All rows of a file; `label_column` names the labels of a CSV. Raises InputError, UsageError.

    Other files hold `inputs` (N, D), and `labels` (N,) if they like.
    """
    if kind_of(path) == "unknown":
        return _read_csv(path, label_column)
    if label_column is not None:
        raise UsageError(
            expected="--label-column with a CSV",
            found=f"{quoted(path.name)}, which has no header",
            todo="Leave it out: this file holds its labels as the tensor 'labels'.",
        )
    tensors = tensors_in(path)
    if not isinstance(tensors.get("inputs"), Tensor):
        raise InputError(
            expected=f"a tensor 'inputs' of shape (N, D) in {quoted(path.name)}",
            found="none" if not tensors else listed(list(tensors)),
            todo="Save numpy.savez(path, inputs=rows, labels=labels), or a CSV with a header.",
        )
    labels = tensors.get("labels")
    found = Table(rows_of(tensors["inputs"]), None if labels is None else labels_of(labels))
    if found.labels is not None and len(found.labels) != len(found.rows):
        raise InputError(
            expected="one label for each row",
            found=f"{len(found.rows)} rows and {len(found.labels)} labels",
            todo="Save as many labels as rows.",
        )
    return found


def _read_csv(path: Path, label_column: str | None) -> Table:
    lines = _lines(path)
    header = [name.strip() for name in next(lines, [])]
    _check_header(path, header, label_column)
    place = None if label_column is None else header.index(label_column)
    rows, labels = list[list[float]](), list[int]()
    for number, cells in enumerate(lines, start=2):
        if not cells or not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise _wrong(path, number, f"{len(header)} cells", f"{len(cells)}")
        if place is not None:
            labels.append(_label(path, number, header[place], cells[place]))
        rows.append([
            _number(path, number, name, cell)
            for column, (name, cell) in enumerate(zip(header, cells, strict=True))
            if column != place
        ])  # fmt: skip
    if not rows:
        raise _wrong(path, 2, "at least one row below the header", "none")
    names = tuple(name for column, name in enumerate(header) if column != place)
    told = None if place is None else torch.tensor(labels)
    return Table(torch.tensor(rows, dtype=torch.float64), told, names)


def _lines(path: Path) -> Iterator[list[str]]:
    require_at_most(path.stat().st_size, _CSV_BYTES, path.name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            expected="a CSV in UTF-8",
            found=f"{quoted(path.name)}, which is no text, or in another encoding",
            todo="Save it as CSV UTF-8.",
        ) from error
    first = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except csv.Error as error:
        raise InputError(
            expected="a CSV that can be read",
            found=f"{quoted(path.name)}: {error}",
            todo="Check its quotation marks.",
        ) from error


def _check_header(path: Path, header: list[str], label_column: str | None) -> None:
    twins = sorted({name for name in header if header.count(name) > 1})
    if not header or all(_is_number(name) for name in header):
        raise _wrong(path, 1, "a header, the names of the columns", "numbers or nothing")
    if twins or "" in header:
        what = f"{listed(twins)} more than once" if any(twins) else "a column without one"
        raise _wrong(path, 1, "a name of its own for each column", what)
    if label_column is not None and label_column not in header:
        raise UsageError(
            expected=f"a column of {quoted(path.name)} that holds the labels",
            found=f"no column {quoted(label_column)} among {listed(header)}",
            todo="Mend --label-column.",
        )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, column: str, cell: str) -> float:
    text = cell.strip()
    if not text:
        raise _wrong(
            path,
            line,
            f"a number in column {quoted(column)}",
            "an empty cell",
            "Fill it as for training, or leave the row out.",
        )
    if not _is_number(text) or not math.isfinite(float(text)):
        wanted = f"a finite number in column {quoted(column)}"
        raise _wrong(path, line, wanted, "something else", _NO_CATEGORIES)
    return float(text)


def _label(path: Path, line: int, column: str, cell: str) -> int:
    text = cell.strip()
    whole = _is_number(text) and math.isfinite(float(text)) and float(text) == int(float(text))
    if not whole or float(text) < 0:
        raise _wrong(
            path,
            line,
            f"a class number of at least 0 in column {quoted(column)}",
            "something else",
            "Write the number that the model was trained with.",
        )
    return int(float(text))


def _wrong(path: Path, line: int, expected: str, found: str, todo: str = "") -> InputError:
    return InputError(
        expected=f"{expected} in line {line} of {quoted(path.name)}",
        found=found,
        todo=todo or "Mend the file.",
    )
