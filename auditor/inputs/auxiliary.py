"""Reads labelled pictures of the auditor's own, which resemble those of the client."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from auditor.errors import InputError
from auditor.inputs.entries import tensors_of
from auditor.inputs.files import kind_of
from auditor.inputs.images import load_images
from auditor.inputs.safety import read_npz
from auditor.inputs.wording import listed, quoted, shaped
from auditor.records import Auxiliary

_LIMIT = 1 << 30  # bytes
_MOST = 20_000  # pictures
_NO_LABELS = (torch.bool, torch.uint64)
_REMEDY = (
    "Give a folder with one folder of pictures for each class, or "
    "numpy.savez(path, images=images, labels=labels), images (M, C, H, W) in uint8 or float 0..1."
)


def load_auxiliary(path: Path, *, input_shape: tuple[int, int, int]) -> Auxiliary:
    """Labelled pictures from a folder of folders, or from an .npz with `images` and `labels`.

    Folders whose names are whole numbers are those classes; others are classes 0, 1, ... in
    alphabetical order. Their pictures are resized to `input_shape` (C, H, W); those of an .npz,
    (M, C, H, W), (M, H, W, C) or (M, H, W), have to have it. Raises InputError for anything else.
    """
    return _of_folders(path, input_shape) if path.is_dir() else _of_archive(path, input_shape)


def _of_folders(path: Path, shape: tuple[int, int, int]) -> Auxiliary:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    numbered = all(p.name.isdecimal() for p in folders)
    labels = [int(p.name) if numbered else place for place, p in enumerate(folders)]
    files: list[Path] = []
    named: list[int] = []
    for label, folder in zip(labels, folders, strict=True):
        inside = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        files += inside
        named += [label] * len(inside)
    if not 1 <= len(files) <= _MOST:
        found = f"{len(files)} in {len(folders)} folders under {quoted(path.name)}"
        raise _wrong(f"1 to {_MOST} pictures", found)
    return Auxiliary(load_images(files, input_shape=shape)[0], torch.tensor(named))


def _of_archive(path: Path, shape: tuple[int, int, int]) -> Auxiliary:
    if kind_of(path) != "npz":
        raise _wrong("a folder, or an .npz file", f"{quoted(path.name)} of another kind")
    arrays = read_npz(path, limit=_LIMIT)
    absent = [name for name in ("images", "labels") if name not in arrays]
    if absent:
        raise _wrong("arrays 'images' and 'labels'", f"no {listed(absent)} in {quoted(path.name)}")
    tensors = tensors_of({name: arrays[name] for name in ("images", "labels")})
    images, labels = _pixels(tensors["images"], shape), _labels(tensors["labels"])
    if not 1 <= len(images) <= _MOST or len(images) != len(labels):
        raise _wrong(
            f"1 to {_MOST} pictures with a label each", f"{len(images)} and {len(labels)} labels"
        )
    return Auxiliary(images, labels)


def _pixels(raw: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(M, C, H, W) float32, pixels 0..1."""
    channels, height, width = shape
    found = raw.unsqueeze(-1) if raw.dim() == 3 and channels == 1 else raw
    if found.dim() == 4 and tuple(found.shape[1:]) == (height, width, channels) != shape:
        found = found.permute(0, 3, 1, 2)
    if found.dim() != 4 or tuple(found.shape[1:]) != shape:
        raise _wrong(f"pictures of shape {shaped(shape)}", f"an array {shaped(raw.shape)}")
    if found.dtype is torch.uint8:
        return found.float().contiguous() / 255
    if not found.is_floating_point():
        raise _wrong("pixels in uint8 0..255 or float 0..1", f"{raw.dtype} values")
    if len(found) and not bool(((found >= 0) & (found <= 1)).all()):
        low, high = float(found.min()), float(found.max())
        raise _wrong("float pixels in 0..1, not normalised", f"values {low:.4g} to {high:.4g}")
    return found.float().contiguous()


def _labels(raw: Tensor) -> Tensor:
    if raw.dim() != 1 or raw.is_floating_point() or raw.is_complex() or raw.dtype in _NO_LABELS:
        raise _wrong("whole numbers (M,) as labels", f"{raw.dtype} values {shaped(raw.shape)}")
    labels = raw.to(torch.int64)
    if len(labels) and int(labels.min()) < 0:
        raise _wrong("labels of at least 0", "a negative label")
    return labels


def _wrong(expected: str, found: str) -> InputError:
    return InputError(expected=f"{expected} as auxiliary data", found=found, todo=_REMEDY)
