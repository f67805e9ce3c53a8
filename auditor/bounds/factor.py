"""Variances of pixels from R, the triangular factor of a whitened Jacobian: F = R'R, never formed.

Where R can be inverted with digits to spare, one triangular solve gives everything. Else a ridge is
stacked below R and an orthogonal factor taken of both, which costs several times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SPARE = 1e-6  # squared: what a ridge at the level of rounding may change, relatively
_LARGEST = 1e10  # condition of a matrix that is factored by Cholesky


def inverse_of(factor: Tensor) -> Tensor | None:
    """R^-1 (n, n) of R (m, n); None unless rounding leaves three digits of every pixel at least."""
    if factor.shape[0] != factor.shape[1] or not bool((factor.diagonal() != 0).all()):
        return None
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, unit, upper=True)
    hidden = _rounding(factor) * float(inverse.norm())
    return inverse if hidden**2 <= _SPARE else None  # also of infinities and nan


def posterior_root(factor: Tensor, inverse: Tensor | None, ridge: float) -> Tensor:
    """X (n, n) with XX' = (R'R + ridge^2)^-1. `inverse`: of R, where `inverse_of` gives one."""
    if inverse is None or not (ridge * float(inverse.norm())) ** 2 <= _LARGEST:
        return _stacked(factor, ridge)
    # R'R + r^2 = R'(1 + r^2 S'S)R with S = R^-1, and the middle is LL': X = S L'^-1.
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    lower = torch.linalg.cholesky(unit + ridge**2 * (inverse.mT @ inverse))
    found: Tensor = torch.linalg.solve_triangular(lower, inverse.mT, upper=False)
    return found.mT


def unbiased(factor: Tensor, inverse: Tensor | None) -> Tensor:
    """(n,): the diagonal of (R'R)^-1; inf where rounding hides what determines the pixel.

    Without `inverse`, a ridge at the level of rounding takes the place of what is hidden. A pixel
    is undetermined when a share of its variance is due to that ridge.
    """
    if inverse is not None:
        return inverse.square().sum(1)
    ridge = _rounding(factor)
    if ridge == 0:
        return factor.new_full((factor.shape[1],), torch.inf)
    root = _stacked(factor, ridge)
    whole = root @ root.mT
    variance = whole.diagonal()
    share = ridge**2 * whole.square().sum(1) / variance
    return torch.where(share > 0.5, torch.inf, variance)


def _rounding(factor: Tensor) -> float:
    return torch.finfo(factor.dtype).eps * float(factor.norm())


def _stacked(factor: Tensor, ridge: float) -> Tensor:
    """X (n, n) with XX' = (R'R + ridge^2)^-1, by another orthogonal factor."""
    unit = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    stacked = torch.linalg.qr(torch.cat([factor, ridge * unit]), mode="r").R
    found: Tensor = torch.linalg.solve_triangular(stacked, unit, upper=True)
    return found
