"""How coarsely the numbers of a dump are rounded, and whether they are numbers at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_PIECE = 1 << 18  # elements looked at together, so that no large copy is made
_COARSEST_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def coarsest_spacing(tensors: Iterable[Tensor]) -> float:
    """`eps` of the coarsest of bfloat16, float16, float32, float64 that holds all values."""
    left = list(_COARSEST_FIRST)
    for tensor in tensors:
        left = [dtype for dtype in left if _holds(dtype, tensor)]
        if len(left) == 1:
            break
    return torch.finfo(left[0]).eps


def not_finite(tensor: Tensor) -> bool:
    """Whether there is a NaN or an infinity in `tensor` (any shape, floating point)."""
    return any(not bool(torch.isfinite(piece).all()) for piece in _pieces(tensor))


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    if dtype in {tensor.dtype, torch.float64}:
        return True
    return all(bool((piece.to(dtype).to(piece.dtype) == piece).all()) for piece in _pieces(tensor))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    yield from torch.split(tensor.detach().reshape(-1), _PIECE)
