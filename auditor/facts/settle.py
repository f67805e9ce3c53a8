"""What is known of the client's training: flags first, then the dump's metadata, then deduction.

Whatever is left is assumed, and listed as assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from auditor.errors import InputError, UsageError
from auditor.facts.inputs import check_shape, column_scales, input_shape
from auditor.facts.local import (
    NOTHING_LOCAL,
    LocalFlags,
    check_local,
    local_training,
    samples_of,
    with_batches,
)
from auditor.facts.merge import Merge, text_of, usage
from auditor.inputs.metadata import FEW, brief
from auditor.records import GradientDump, Knowledge, Modality, Mode, Reduction

_LARGEST_BATCH = 1 << 16


@dataclass(frozen=True)
class Flags:
    """What the caller said. None: nothing."""

    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: int | None = None
    mode: Mode | None = None
    reduction: Reduction | None = None
    label_smoothing: float | None = None
    local: LocalFlags = NOTHING_LOCAL
    modality: Modality | None = None
    columns: tuple[str, ...] = ()  # names, of rows of a table


def flags_from_text(
    *,
    input_shape: str | None,
    mean: str | None,
    std: str | None,
    batch_size: int | None,
    mode: str | None,
    reduction: str | None,
    label_smoothing: float | None,
    local: LocalFlags = NOTHING_LOCAL,
    modality: str | None = None,
) -> Flags:
    """Flags as they stand on a command line. Raises UsageError."""
    if mode not in {None, "eval", "train"}:
        raise usage("eval or train", repr(mode), "--mode")
    if reduction not in {None, "mean", "sum"}:
        raise usage("mean or sum", repr(reduction), "--reduction")
    if modality not in {None, "images", "features"}:
        raise usage("images or features", repr(modality), "--modality")
    flags = Flags(
        input_shape=None if input_shape is None else _shape_from(input_shape),
        mean=None if mean is None else _numbers_from(mean, "--mean"),
        std=None if std is None else _numbers_from(std, "--std"),
        batch_size=batch_size,
        mode=mode,  # type: ignore[arg-type]
        reduction=reduction,  # type: ignore[arg-type]
        label_smoothing=label_smoothing,
        local=local,
        modality=modality,  # type: ignore[arg-type]
    )
    _check_flags(flags)
    return flags


def _shape_from(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) not in {1, 3} or not all(part.strip().isdecimal() for part in parts):
        raise usage(
            "three sizes such as 3x32x32, or one number of columns such as 30",
            repr(text),
            "--input-shape",
        )
    return tuple(int(part) for part in parts)


def _numbers_from(text: str, flag: str) -> tuple[float, ...]:
    """Numbers with commas between them, or a text file of such numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        pass
    try:
        words = Path(text).read_text(encoding="utf-8").replace(",", " ").split()
        return tuple(float(word) for word in words)
    except (OSError, ValueError) as error:
        wanted = "numbers such as 0.485,0.456,0.406, or a text file that holds them"
        count = text.count(",") + 1
        found = repr(text) if count <= FEW else f"something else among {count} parts"
        raise usage(wanted, found, flag) from error


def settle(dump: GradientDump, module: nn.Module, flags: Flags) -> Knowledge:
    """Merge all that is known. Raises UsageError or InputError where it makes no sense."""
    _check_flags(flags)
    meta = dump.metadata
    if meta.loss not in {None, "cross_entropy"}:
        raise InputError(
            expected="a dump of softmax cross-entropy (loss 'cross_entropy')",
            found=f"the loss {meta.loss!r} in its metadata",
            todo="gradaudit cannot audit this loss yet.",
        )
    if meta.batch_size is not None and meta.batch_size > _LARGEST_BATCH:
        raise InputError(
            expected=f"a dump of at most {_LARGEST_BATCH} samples",
            found=f"{meta.batch_size} in its metadata",
            todo="Dump a smaller batch.",
        )
    merge = Merge()
    modality, _ = merge.take("modality", flags.modality, meta.modality, None)
    shape = input_shape(merge, flags.input_shape, meta.input_shape, modality, module)
    mean, std = _normalisation(merge, flags, dump, shape)
    said = flags.std is not None or meta.std is not None
    scales = column_scales(merge, shape, dump, module, said=said)
    batch_size, _ = merge.take("batch size", flags.batch_size, meta.batch_size, None)
    local = local_training(merge, flags.local, dump, module)
    guessed = batch_size is None and local is not None
    if local is not None:
        batch_size = batch_size or samples_of(merge, local)
        local = with_batches(merge, local, batch_size)
    mode, _ = merge.take("mode", flags.mode, meta.mode, "eval")
    reduction, reduction_origin = merge.take("reduction", flags.reduction, meta.reduction, "mean")
    smoothing, _ = merge.take("label smoothing", flags.label_smoothing, meta.label_smoothing, 0.0)
    if meta.loss is None:
        merge.note("loss", "cross_entropy", "assumed")
    return Knowledge(
        input_shape=shape,
        mean=mean,
        std=std,
        batch_size=batch_size,
        mode=mode,
        reduction=reduction,
        # A batch size that was guessed may be too large, and then counts would be.
        reduction_declared=reduction_origin != "assumed" and not guessed,
        label_smoothing=smoothing,
        assumptions=tuple(merge.assumptions),
        overrides=tuple(merge.overrides),
        local=local,
        scales=scales,
        columns=_named(flags.columns, shape),
    )


def _named(columns: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    if columns and (len(shape) != 1 or len(columns) != shape[0]):
        raise UsageError(
            expected=f"one name for each of the model's inputs ({text_of(shape)})",
            found=f"{len(columns)} columns",
            todo="Give the columns that the model was trained on, in the same order.",
        )
    return columns


def _check_flags(flags: Flags) -> None:
    check_local(flags.local)
    if flags.batch_size is not None and not 1 <= flags.batch_size <= _LARGEST_BATCH:
        raise usage(f"a batch size from 1 to {_LARGEST_BATCH}", flags.batch_size, "--batch-size")
    if flags.label_smoothing is not None and not 0 <= flags.label_smoothing < 1:
        raise usage(
            "a label smoothing from 0 to below 1", flags.label_smoothing, "--label-smoothing"
        )
    wrong = [not (math.isfinite(s) and s > 0) for s in flags.std or ()]
    if flags.std is not None and (not flags.std or any(wrong)):
        raise usage("positive standard deviations", _told(flags.std, wrong), "--std")
    wrong = [not math.isfinite(m) for m in flags.mean or ()]
    if flags.mean is not None and (not flags.mean or any(wrong)):
        raise usage("finite means", _told(flags.mean, wrong), "--mean")
    check_shape(flags.input_shape, flags.modality)


def _normalisation(
    merge: Merge, flags: Flags, dump: GradientDump, shape: tuple[int, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels, show = shape[0], _brief if len(shape) == 1 else text_of
    said_mean = None if flags.mean is None else _spread(flags.mean, channels)
    said_std = None if flags.std is None else _spread(flags.std, channels)
    mean, _ = merge.take("mean", said_mean, dump.metadata.mean, None, show=show)
    std, _ = merge.take("std", said_std, dump.metadata.std, None, show=show)
    if mean is None and std is None:
        what = "columns" if len(shape) == 1 else "pixels 0..1"
        merge.note("normalisation", f"none: {what} go in as they are", "assumed")
    elif mean is None:
        merge.note("mean", 0.0, "assumed")
    elif std is None:
        merge.note("std", 1.0, "assumed")
    return (
        per_channel(mean, channels, default=0.0, flag="--mean"),
        per_channel(std, channels, default=1.0, flag="--std"),
    )


def _told(values: tuple[float, ...], wrong: list[bool]) -> str:
    return brief(values, wrong) or text_of(values)


def _brief(values: Any) -> str:
    """Statistics of a client's columns are not for a report."""
    return f"{len(values)} numbers, one a column"


def per_channel(
    values: tuple[float, ...] | None, channels: int, *, default: float, flag: str
) -> tuple[float, ...]:
    """One number a channel, from none, one or all of them. Raises UsageError for another count."""
    spread = _spread(values or (default,), channels)
    if len(spread) != channels:
        raise UsageError(
            expected=f"one number or {channels}, one for each channel or column of the input shape",
            found=f"{len(spread)} for {flag[2:]}",
            todo=f"Mend {flag} or --input-shape.",
        )
    return spread


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
