"""The space that the rows of a matrix span, as far as it stands out of the matrix' rounding.

With a bound on the rank, from a few random combinations of rows (Halko, Martinsson, Tropp 2011,
arXiv:0909.4061); else from the products of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 16.0  # times the expected norm of independent errors of the size of the precision
_GRAM = 1e-7  # of the largest value: below, products in double precision hold nothing
_MORE = 8  # combinations beyond the bound
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class RowSpace:
    """What the rows span."""

    basis: Tensor  # (n, R) orthonormal columns, float64
    sizes: Tensor  # (R,) singular values, descending
    rank: int  # R; one above the bound when it was passed

    def distances(self, rows: Tensor) -> Tensor:
        """How far rows (L, n) lie outside, relative to their norms, (L,)."""
        given = rows.to(self.basis)
        outside = given - (given @ self.basis) @ self.basis.mT
        apart: Tensor = outside.norm(dim=1) / given.norm(dim=1).clamp_min(_TINY)
        return apart


def row_space(matrix: Tensor, precision: float, most: int | None = None) -> RowSpace:
    """The row space of `matrix` (m, n), whose entries carry relative errors of `precision`.

    `most`: a bound on the rank; when there is more, no more than one direction beyond it is given.
    """
    exact = matrix.double()
    side = min(exact.shape)
    spread = _ROUNDING * precision * float(exact.norm()) / max(side, 1) ** 0.5
    if most is not None and most + _MORE < side:
        sizes, basis = _few(exact, most + _MORE)
    else:
        sizes, basis = _all(exact)
    above = int((sizes > max(spread, _GRAM * float(sizes.amax()) if most is None else 0)).sum())
    rank = above if most is None else min(above, most + 1)
    return RowSpace(basis[:, :rank], sizes[:rank], rank)


def _few(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(matrix.shape[1], count, generator=generator, dtype=torch.float64)
    span = torch.linalg.qr(matrix @ drawn.to(matrix.device)).Q
    for _ in range(2):  # singular values of rounding fade
        span = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ span).Q).Q
    _, sizes, basis = torch.linalg.svd(span.mT @ matrix, full_matrices=False)
    return sizes, basis.mT


def _all(matrix: Tensor) -> tuple[Tensor, Tensor]:
    wide = matrix.shape[0] < matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    sizes, vectors = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    if wide:  # vectors of the rows' combinations: the rows' own are behind them
        vectors = matrix.mT @ vectors / sizes.clamp_min(_TINY)
    return sizes, vectors
