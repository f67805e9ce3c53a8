"""Reads pictures and samples of data sets, for `simulate`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from auditor.errors import InputError, UsageError
from auditor.inputs.files import kind_of
from auditor.inputs.wording import quoted, shaped

# Formats that Pillow decodes itself: no external program, no vector graphics.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Name on the command line -> class in torchvision.datasets.
_SETS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def load_images(
    paths: Sequence[Path], *, input_shape: tuple[int, int, int]
) -> tuple[Tensor, tuple[str, ...]]:
    """Pictures as (N, C, H, W) float32 in pixel units 0..1, and notes on what was changed.

    They are converted to grey (C = 1) or RGB (C = 3) and resized (bilinear) to H x W. Raises
    InputError for files that are no pictures or far too large, UsageError for other C or no path.
    """
    channels = input_shape[0]
    if channels not in {1, 3} or not paths:
        raise UsageError(
            expected="at least one picture, and an input shape with 1 or 3 channels",
            found=f"{len(paths)} pictures for {shaped(input_shape)}",
            todo="Give --input FILE, and --input-shape CxHxW.",
        )
    notes: list[str] = []
    pictures = [_picture(path, input_shape, notes) for path in paths]
    return torch.stack(pictures), tuple(notes)


def load_dataset_samples(
    root: Path, dataset: str, indices: Sequence[int], *, split: Literal["train", "test"] = "train"
) -> tuple[Tensor, Tensor]:
    """Samples of a data set on disk: (N, C, H, W) float32 in 0..1, and (N,) int64 labels.

    `dataset`: mnist, fashion-mnist, cifar10 or cifar100, under `root` as torchvision keeps it.
    Nothing is downloaded. Raises UsageError for another name, InputError when it is not there
    or an index is out of range.
    """
    if dataset not in _SETS:
        raise UsageError(
            expected=f"one of {', '.join(_SETS)}", found=quoted(dataset), todo="Mend the name."
        )
    from torchvision import datasets

    try:
        samples = getattr(datasets, _SETS[dataset])(
            str(root), train=split == "train", download=False
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            expected=f"{dataset} on disk, as torchvision keeps it",
            found=f"no complete copy under {quoted(root)}",
            todo=f"Download it once: torchvision.datasets.{_SETS[dataset]}(root, download=True).",
        ) from error
    outside = [index for index in indices if not 0 <= index < len(samples)]
    if outside or not indices:
        raise InputError(
            expected=f"indices from 0 to {len(samples) - 1}",
            found=", ".join(str(index) for index in outside[:10]) or "none",
            todo="Choose others.",
        )
    pairs = [samples[index] for index in indices]
    pictures = torch.stack([_pixels(picture) for picture, _ in pairs])
    return pictures, torch.tensor([int(label) for _, label in pairs])


def _picture(path: Path, shape: tuple[int, int, int], notes: list[str]) -> Tensor:
    kind_of(path)  # missing, a folder, empty
    channels, height, width = shape
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            notes += _changes(image, path.name, (width, height))
            _require_eight_bits(image, path.name)
            converted = image.convert("L" if channels == 1 else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(path.name, "far too many pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(path.name, "no picture that can be read") from error
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return _pixels(converted)


def _changes(image: Image.Image, name: str, size: tuple[int, int]) -> list[str]:
    found = []
    if image.size != size:
        before, after = shaped(image.size[::-1]), shaped(size[::-1])
        found.append(f"{name} resized from {before} to {after}")
    if "A" in image.getbands() or "transparency" in image.info:
        found.append(f"transparency of {name} dropped")
    if getattr(image, "n_frames", 1) > 1:
        found.append(f"only the first frame of {name} taken")
    return found


def _require_eight_bits(image: Image.Image, name: str) -> None:
    if image.mode.startswith(("I", "F")):
        raise _unreadable(name, f"mode {image.mode}, more than eight bits a channel")


def _pixels(image: Image.Image) -> Tensor:
    array = np.array(image, dtype=np.float32) / np.float32(255)
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def _unreadable(name: str, what: str) -> InputError:
    return InputError(
        expected=f"a picture with eight bits a channel ({', '.join(_FORMATS)})",
        found=f"{quoted(name)}: {what}",
        todo="Convert it to PNG.",
    )
