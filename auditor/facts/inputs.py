"""What the model takes: pictures (C, H, W), or rows of a table (D,); and how wide its columns are.

Without a shape from anybody, the layers are asked. A picture is looked for first, because a model
that flattens a picture takes a row of as many numbers, too.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from auditor.errors import UsageError
from auditor.facts.merge import Merge, text_of, usage
from auditor.records import GradientDump, Modality

LARGEST_INPUT = 1 << 28  # numbers
_LARGEST_SIDE = 320


def check_shape(shape: tuple[int, ...] | None, modality: Modality | None) -> None:
    """Raise UsageError for a shape that no model here takes, or that is of the other modality."""
    if shape is None:
        return
    whole = all(side >= 1 for side in shape) and math.prod(shape) <= LARGEST_INPUT
    if not whole or len(shape) not in {1, 3}:
        raise usage(
            "three positive sizes such as 3x32x32, or one number of columns such as 30, at most "
            f"{LARGEST_INPUT} numbers",
            text_of(shape),
            "--input-shape",
        )
    if modality is not None and (len(shape) == 1) != (modality == "features"):
        wanted = "one number of columns" if modality == "features" else "three sizes"
        raise usage(f"{wanted} with --modality {modality}", text_of(shape), "--input-shape")


def input_shape(
    merge: Merge,
    said: tuple[int, ...] | None,
    metadata: tuple[int, ...] | None,
    modality: Modality | None,
    module: nn.Module,
) -> tuple[int, ...]:
    """The shape as it was said, else the only one that fits. Raises UsageError."""
    shape, _ = merge.take("input shape", said, metadata, None)
    if shape is None:
        shape = deduce_input_shape(module, modality)
        merge.note("input shape", shape, "deduced")
    check_shape(tuple(shape), modality)
    if len(shape) == 1:
        _refuse_categories(module)
    return tuple(shape)


def deduce_input_shape(module: nn.Module, modality: Modality | None = None) -> tuple[int, ...]:
    """The only (C, S, S) that the model takes, else (D,) as its first linear layer takes them.

    Raises UsageError when none or several do.
    """
    shadow = copy.deepcopy(module).to("meta").eval()  # shapes only: no memory, no arithmetic
    fitting = [] if modality == "features" else _squares(module, shadow)
    if len(fitting) > 1:
        raise UsageError(
            expected="an input shape: it is neither in the dump nor on the command line, and "
            "the layers leave it open",
            found=f"that both {text_of(fitting[0])} and {text_of(fitting[1])} fit",
            todo="Say it, for example --input-shape 3x32x32.",
        )
    if not fitting and modality != "images":
        _refuse_categories(module, modality)
        fitting = _row(module, shadow, flattens=modality is None)
    if not fitting:
        raise UsageError(
            expected="an input shape: it is neither in the dump nor on the command line",
            found=f"no square picture of up to {_LARGEST_SIDE} pixels a side that the model takes, "
            "and no linear layer that takes a row as it comes",
            todo="Say it, for example --input-shape 3x32x32, or --input-shape 30 for rows of a "
            "table with 30 columns.",
        )
    return fitting[0]


def _squares(module: nn.Module, shadow: nn.Module) -> list[tuple[int, ...]]:
    """The first two square pictures that the model takes."""
    channels = _channels(module)
    fitting: list[tuple[int, ...]] = []
    for side in range(1, _LARGEST_SIDE + 1):
        for count in channels:
            if _takes(shadow, (count, side, side)):
                fitting.append((count, side, side))
        if len(fitting) > 1:
            break
    return fitting


def _row(module: nn.Module, shadow: nn.Module, *, flattens: bool) -> list[tuple[int, ...]]:
    """(D,) of a model whose first layer is linear; behind nn.Flatten only when that was said."""
    for inner in module.modules():
        if isinstance(inner, nn.Linear):
            shape = (inner.in_features,)
            return [shape] if _takes(shadow, shape) else []
        if isinstance(inner, nn.Conv2d) or (flattens and isinstance(inner, nn.Flatten)):
            break
    return []


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


def _refuse_categories(module: nn.Module, modality: Modality | None = "features") -> None:
    """Columns of categories are numbers of rows of an embedding: no gradient reaches them."""
    if modality is None or not any(isinstance(m, nn.Embedding) for m in module.modules()):
        return
    raise UsageError(
        expected="columns that are numbers, one-hot columns among them",
        found="a model with an embedding: it takes categories by their number",
        todo="Such columns cannot be audited yet (docs/tables.md). Wrap the model so that it takes "
        "what stands behind the embedding, and dump the gradient of the rest.",
    )


def column_scales(
    merge: Merge, shape: tuple[int, ...], dump: GradientDump, module: nn.Module, *, said: bool
) -> tuple[float, ...]:
    """(D,) the deviation of each column in model units; () for pictures.

    `said`: the standard deviations are known, so every column has the deviation 1. Else the
    gradient of the first linear layer tells how large a column is (that of its weight over that
    of its bias; of one sample that is the number itself), and one is assumed where it is less than
    one, or less than columns are on average.
    """
    if len(shape) != 1:
        return ()
    sizes = None if said else _sizes(shape[0], dump, module)
    if sizes is None:
        merge.note("deviation of a column", "1, as columns go in", "deduced" if said else "assumed")
        return (1.0,) * shape[0]
    least = min(1.0, float(sizes.square().mean().sqrt()))
    merge.note("deviation of a column", "its size in the first layer's gradient", "deduced")
    return tuple(max(float(size), least) for size in sizes)


def _sizes(columns: int, dump: GradientDump, module: nn.Module) -> torch.Tensor | None:
    for name, inner in module.named_modules():
        if isinstance(inner, nn.Linear):
            prefix = f"{name}." if name else ""
            weight, bias = (dump.tensors.get(f"{prefix}{part}") for part in ("weight", "bias"))
            if inner.in_features != columns or weight is None or bias is None or not bias.any():
                return None
            sizes: torch.Tensor = weight.double().norm(dim=0) / bias.double().norm()
            return sizes if bool(sizes.isfinite().all() and sizes.any()) else None
    return None
