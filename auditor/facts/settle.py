"""What is known of the client's training: flags first, then the dump's metadata, then deduction.

Whatever is left is assumed, and listed as assumed.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from auditor.errors import InputError, UsageError
from auditor.facts.local import (
    NOTHING_LOCAL,
    LocalFlags,
    check_local,
    local_training,
    samples_of,
    with_batches,
)
from auditor.facts.merge import Merge, text_of, usage
from auditor.records import GradientDump, Knowledge, Mode, Reduction

_LARGEST_SIDE = 320
_LARGEST_INPUT = 1 << 28  # numbers
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
) -> Flags:
    """Flags as they stand on a command line. Raises UsageError."""
    if mode not in {None, "eval", "train"}:
        raise usage("eval or train", repr(mode), "--mode")
    if reduction not in {None, "mean", "sum"}:
        raise usage("mean or sum", repr(reduction), "--reduction")
    flags = Flags(
        input_shape=None if input_shape is None else _shape_from(input_shape),
        mean=None if mean is None else _numbers_from(mean, "--mean"),
        std=None if std is None else _numbers_from(std, "--std"),
        batch_size=batch_size,
        mode=mode,  # type: ignore[arg-type]
        reduction=reduction,  # type: ignore[arg-type]
        label_smoothing=label_smoothing,
        local=local,
    )
    _check_flags(flags)
    return flags


def _shape_from(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise usage("three sizes such as 3x32x32", repr(text), "--input-shape")
    return tuple(int(part) for part in parts)


def _numbers_from(text: str, flag: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise usage("numbers such as 0.485,0.456,0.406", repr(text), flag) from error


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
    shape = _input_shape(merge, flags, meta.input_shape, module)
    mean, std = _normalisation(merge, flags, dump, shape[0])
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
    )


def _check_flags(flags: Flags) -> None:
    check_local(flags.local)
    if flags.batch_size is not None and not 1 <= flags.batch_size <= _LARGEST_BATCH:
        raise usage(f"a batch size from 1 to {_LARGEST_BATCH}", flags.batch_size, "--batch-size")
    if flags.label_smoothing is not None and not 0 <= flags.label_smoothing < 1:
        raise usage(
            "a label smoothing from 0 to below 1", flags.label_smoothing, "--label-smoothing"
        )
    if flags.std is not None and not (
        flags.std and all(math.isfinite(s) and s > 0 for s in flags.std)
    ):
        raise usage("positive standard deviations", text_of(flags.std), "--std")
    if flags.mean is not None and not (flags.mean and all(math.isfinite(m) for m in flags.mean)):
        raise usage("finite means", text_of(flags.mean), "--mean")
    if flags.input_shape is not None and not _is_picture(flags.input_shape):
        raise usage(
            f"three positive sizes such as 3x32x32, at most {_LARGEST_INPUT} numbers",
            text_of(flags.input_shape),
            "--input-shape",
        )


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and min(shape) >= 1 and math.prod(shape) <= _LARGEST_INPUT


def _input_shape(
    merge: Merge, flags: Flags, metadata: tuple[int, ...] | None, module: nn.Module
) -> tuple[int, ...]:
    shape, _ = merge.take("input shape", flags.input_shape, metadata, None)
    if shape is None:
        shape = deduce_input_shape(module)
        merge.note("input shape", shape, "deduced")
    return tuple(shape)


def _normalisation(
    merge: Merge, flags: Flags, dump: GradientDump, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    said_mean = None if flags.mean is None else _spread(flags.mean, channels)
    said_std = None if flags.std is None else _spread(flags.std, channels)
    mean, _ = merge.take("mean", said_mean, dump.metadata.mean, None)
    std, _ = merge.take("std", said_std, dump.metadata.std, None)
    if mean is None and std is None:
        merge.note("normalisation", "none: pixels 0..1 go in as they are", "assumed")
    elif mean is None:
        merge.note("mean", 0.0, "assumed")
    elif std is None:
        merge.note("std", 1.0, "assumed")
    return (
        per_channel(mean, channels, default=0.0, flag="--mean"),
        per_channel(std, channels, default=1.0, flag="--std"),
    )


def per_channel(
    values: tuple[float, ...] | None, channels: int, *, default: float, flag: str
) -> tuple[float, ...]:
    """One number a channel, from none, one or all of them. Raises UsageError for another count."""
    spread = _spread(values or (default,), channels)
    if len(spread) != channels:
        raise UsageError(
            expected=f"one number or {channels}, one for each channel of the input shape",
            found=f"{len(spread)} for {flag[2:]}",
            todo=f"Mend {flag} or --input-shape.",
        )
    return spread


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def deduce_input_shape(module: nn.Module) -> tuple[int, ...]:
    """The only (C, S, S) that the model takes. Raises UsageError when none or several do."""
    channels = _channels(module)
    fitting: list[tuple[int, ...]] = []
    shadow = copy.deepcopy(module).to("meta").eval()  # shapes only: no memory, no arithmetic
    for side in range(1, _LARGEST_SIDE + 1):
        for count in channels:
            if _takes(shadow, (count, side, side)):
                fitting.append((count, side, side))
        if len(fitting) > 1:
            raise UsageError(
                expected="an input shape: it is neither in the dump nor on the command line, and "
                "the layers leave it open",
                found=f"that both {text_of(fitting[0])} and {text_of(fitting[1])} fit",
                todo="Say it, for example --input-shape 3x32x32.",
            )
    if not fitting:
        raise UsageError(
            expected="an input shape: it is neither in the dump nor on the command line",
            found=f"no square picture of up to {_LARGEST_SIDE} pixels a side that the model takes",
            todo="Say it, for example --input-shape 3x32x32.",
        )
    return fitting[0]


def _channels(module: nn.Module) -> tuple[int, ...]:
    for inner in module.modules():
        if isinstance(inner, nn.Conv2d):
            return (inner.in_channels,)
        if isinstance(inner, nn.Linear):
            break
    return (1, 3)


def _takes(shadow: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            output = shadow(torch.empty(2, *shape, device="meta"))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
    return isinstance(output, torch.Tensor) and output.ndim == 2
