"""Reads what the client really had, for a measured audit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from auditor.errors import InputError
from auditor.inputs.entries import tensors_of
from auditor.inputs.files import kind_of
from auditor.inputs.safety import (
    damaged,
    read_npz,
    require_at_most,
    safetensors_claims,
)
from auditor.inputs.torchfiles import check, load_checked, look_into
from auditor.inputs.wording import listed, quoted, shaped
from auditor.records import Truth

_LIMIT = 1 << 30  # bytes; a client's batch is far below
_NO_LABELS = (torch.bool, torch.uint64)
_TEXT_BYTES = 16 << 20
_SLACK = 1e-3  # rounding of a normalisation and its inverse
_REMEDY = (
    "Save two tensors: numpy.savez(path, inputs=images, labels=labels), images (N, C, H, W) in "
    "uint8 0..255 or float 0..1, or rows of a table (N, D). Of a CSV say --label-column."
)


def load_texts(path: Path) -> tuple[str, ...]:
    """The texts in a UTF-8 file, one a line; empty lines are left out. Raises InputError."""
    kind_of(path)
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _TEXT_BYTES else ""
    except UnicodeDecodeError:
        text = ""
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise InputError(
            expected="the client's texts, one a line, in UTF-8",
            found=f"{quoted(path.name)}, which holds none, or far too many",
            todo="Write each text of the batch on a line of its own.",
        )
    return lines


def load_truth(path: Path) -> Truth:
    """Read `inputs` (N, C, H, W) or (N, D) and `labels` (N,) from .npz, safetensors or torch files.

    Pictures are uint8 0..255 or float 0..1 and come back as float in pixel units 0..1; rows of a
    table keep their units; labels come back as int64. Raises InputError for other shapes, values
    and counts, UnsafeFileError for hostile files.
    """
    tensors = tensors_in(path)
    absent = [name for name in ("inputs", "labels") if not isinstance(tensors.get(name), Tensor)]
    if absent:
        raise _wrong("tensors 'inputs' and 'labels'", f"no {listed(absent)} in {quoted(path.name)}")
    inputs, labels = _inputs(tensors["inputs"]), labels_of(tensors["labels"])
    if len(inputs) != len(labels):
        raise _wrong("one label for each input", f"{len(inputs)} inputs and {len(labels)} labels")
    return Truth(inputs=inputs, labels=labels)


def tensors_in(path: Path) -> Mapping[str, Tensor]:
    """What an .npz, safetensors or torch file holds. Raises InputError, UnsafeFileError."""
    kind = kind_of(path)
    if kind == "npz":
        return tensors_of(read_npz(path, limit=_LIMIT))
    if kind == "safetensors":
        require_at_most(
            sum(claim.bytes for claim in safetensors_claims(path)[0]), _LIMIT, path.name
        )
        try:
            return load_file(path)
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise damaged(path.name, "safetensors cannot read it") from error
    if kind in {"torch", "torch legacy"}:
        return _read_torch(path, legacy=kind == "torch legacy")
    raise _wrong("an .npz, safetensors or torch file", f"{quoted(path.name)} of another kind")


def _read_torch(path: Path, *, legacy: bool) -> Mapping[str, Tensor]:
    file = look_into(path, legacy=legacy)
    require_at_most(check(file, classes=False, todo=_REMEDY), _LIMIT, path.name)
    loaded = load_checked(file, classes=False, todo=_REMEDY)
    if not isinstance(loaded, dict):
        raise _wrong("a dict", f"an object of type {quoted(type(loaded).__name__)}")
    return loaded


def rows_of(raw: Tensor) -> Tensor:
    """Rows of a table (N, D) in their own units, in double precision. Raises InputError."""
    if raw.dim() != 2 or min(raw.shape) < 1 or raw.is_complex() or raw.layout is not torch.strided:
        raise _wrong("rows of shape (N, D)", f"shape {shaped(raw.shape)}")
    rows = raw.detach().double()
    if not bool(rows.isfinite().all()):
        raise _wrong("finite numbers in every column", "values that are missing or infinite")
    return rows


def _inputs(raw: Tensor) -> Tensor:
    if raw.dim() == 2:
        return rows_of(raw)
    if raw.dim() != 4 or min(raw.shape) < 1:
        raise _wrong("inputs of shape (N, C, H, W)", f"shape {shaped(raw.shape)}")
    if raw.shape[1] not in {1, 3}:
        order = "; the channels seem to come last" if raw.shape[3] in {1, 3} else ""
        raise _wrong("1 or 3 channels at the second place", f"shape {shaped(raw.shape)}{order}")
    if raw.dtype is torch.uint8:
        return raw.float() / 255
    if not raw.is_floating_point() or raw.layout is not torch.strided:
        raise _wrong("inputs in uint8 0..255 or float 0..1", f"{raw.dtype} values")
    pixels = raw.detach() if raw.dtype in {torch.float32, torch.float64} else raw.float()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise _wrong("float inputs in 0..1, not normalised", f"values {low:.4g} to {high:.4g}")
    return pixels


def labels_of(raw: Tensor) -> Tensor:
    """Labels (N,) as int64. Raises InputError."""
    if raw.dim() != 1:
        raise _wrong("labels of shape (N,)", f"shape {shaped(raw.shape)}")
    if raw.is_floating_point() or raw.is_complex() or raw.dtype in _NO_LABELS:
        raise _wrong("whole numbers as labels", f"{raw.dtype} values")
    labels = raw.to(torch.int64)
    if len(labels) and int(labels.min()) < 0:
        raise _wrong("labels of at least 0", "a negative label")
    return labels


def _wrong(expected: str, found: str) -> InputError:
    return InputError(expected=f"{expected} in the truth file", found=found, todo=_REMEDY)
