"""How coarsely the numbers of a dump are rounded, and whether they are numbers at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

_PIECE = 1 << 18  # elements looked at together, so that no large copy is made
_FEW = 16  # such pieces, of a tensor that is looked at here and there
_SMALL = 1 / 16  # of its weight: a change that says on which grid the sum lies
_MOST, _ENOUGH = 0.99, 100
_DIFFERENT = 64  # sizes of entries; of fewer, a coarse grid may be how they are made
_COUNTS = 1e-2  # of the update's norm: a tensor whose own rounding matters
_COARSE = 1e-4  # of the dump's largest entry: a tensor whose grid says how the dump was rounded
_COARSEST_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def coarsest_spacing(tensors: Iterable[Tensor]) -> float:
    """`eps` of the coarsest of bfloat16, float16, float32, float64 that holds all values."""
    left = list(_COARSEST_FIRST)
    for tensor in tensors:
        left = [dtype for dtype in left if _holds(dtype, tensor)]
        if len(left) == 1:
            break
    return torch.finfo(left[0]).eps


def dump_spacing(tensors: Iterable[Tensor]) -> float:
    """The relative rounding of a dump: that of its coarsest tensor that tells.

    Mixed precision leaves some tensors in 16 bits, or on their grid once the loss scale is taken
    out, and others in single precision. A tensor of 32 bits tells by many different entries, and
    only if these are of the dump's size: what sums to zero leaves rounding errors, which lie on a
    grid as well.
    """
    every = list(tensors)
    largest = max((_largest(tensor) for tensor in every), default=0.0)
    counted = [tensor for tensor in every if _largest(tensor) >= _COARSE * largest]
    told = [spacing for tensor in counted if (spacing := _told_spacing(tensor))]
    return max([coarsest_spacing(every), *told])


def _largest(tensor: Tensor) -> float:
    return max((float(piece.abs().max()) for piece in _pieces(tensor) if len(piece)), default=0.0)


def _told_spacing(tensor: Tensor) -> float | None:
    """`eps` of a 16-bit type on whose grid all entries lie, whatever their range; None: of none."""
    if not bool(tensor.any()):
        return None
    for dtype in _COARSEST_FIRST[:2]:
        eps = torch.finfo(dtype).eps
        if tensor.dtype == dtype or (_all_on_grid(tensor, eps) and _many(tensor)):
            return eps
    return None


def _all_on_grid(tensor: Tensor, eps: float) -> bool:
    """Whether the mantissa (half to one) of every entry is a multiple of eps / 2."""
    scale = 2 / eps
    return all(
        bool((mantissa * scale == (mantissa * scale).round()).all())
        for piece in _pieces(tensor)
        for mantissa in [torch.frexp(piece.double()).mantissa]
    )


def _many(tensor: Tensor) -> bool:
    first = tensor.detach().reshape(-1)
    first = first[first != 0][:_PIECE]
    return int(torch.unique(first.abs()).numel()) >= _DIFFERENT


def update_spacing(update: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> float:
    """The relative errors of an update, by name, of the weights `before`.

    Weights that were rounded and then subtracted leave eps |weight| in every change, however small
    that is. It shows: weight plus change is a number of the weights' own type.
    """
    own = coarsest_spacing(update.values())
    names = [name for name, change in update.items() if bool(change.any())]
    if not names or not _was_subtracted([(update[n], before[n].detach()) for n in names]):
        return own
    changes = torch.tensor([float(update[n].double().norm()) for n in names])
    weights = torch.tensor([float(before[n].detach().double().norm()) for n in names])
    counted = changes >= _COUNTS * changes.norm()
    worst = max(float((weights / changes)[counted].max()), float(weights.norm() / changes.norm()))
    return max(own, worst * torch.finfo(before[names[0]].dtype).eps)


def is_difference(dump: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether weight plus entry is a float32 number nearly everywhere, as after a subtraction.

    A gradient's own last digits lie below those of the weights: of its entries that are small
    beside their weights, one in sixteen can fit by chance. Entries of 16 bits always fit and say
    nothing.
    """
    if any(weights[name].dtype != torch.float32 for name in dump):
        return False
    told, fitting = _on_grid(
        ((part, weights[name].detach()) for name, part in dump.items()), only=_fine
    )
    return told >= _ENOUGH and fitting >= _MOST * told


def _fine(tensor: Tensor) -> Tensor:
    """The tensor with zeros for what 16 bits hold."""
    coarse = [tensor.to(dtype).to(tensor.dtype) == tensor for dtype in _COARSEST_FIRST[:2]]
    return tensor.masked_fill(coarse[0] | coarse[1], 0)


def _was_subtracted(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    told, fitting = _on_grid(pairs)
    return told == 0 or fitting >= _MOST * told


def _on_grid(
    pairs: Iterable[tuple[Tensor, Tensor]], only: Callable[[Tensor], Tensor] = lambda change: change
) -> tuple[int, int]:
    """Changes that are small beside their weights, and how many lead to a number of their type.

    Of a tensor at most `_FEW` pieces, evenly spread: a subtraction leaves its trace everywhere.
    """
    told = fitting = 0
    for update, weights in pairs:
        every = zip(_pieces(update), _pieces(weights.to(update.device)), strict=True)
        apart = -(-update.numel() // (_FEW * _PIECE)) or 1
        for piece, weight in islice(every, 0, None, apart):
            change = only(piece)
            after = weight.double() + change.double()
            small = (change != 0) & (change.abs() < _SMALL * weight.abs())
            told += int(small.sum())
            fitting += int((after.to(weight.dtype).double() == after)[small].sum())
    return told, fitting


def not_finite(tensor: Tensor) -> bool:
    """Whether there is a NaN or an infinity in `tensor` (any shape, floating point)."""
    return any(not bool(torch.isfinite(piece).all()) for piece in _pieces(tensor))


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    if dtype in {tensor.dtype, torch.float64}:
        return True
    return all(bool((piece.to(dtype).to(piece.dtype) == piece).all()) for piece in _pieces(tensor))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    yield from torch.split(tensor.detach().reshape(-1), _PIECE)
