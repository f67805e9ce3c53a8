"""Inverses of a large symmetric matrix that is known by products only: diagonal and trace.

Random signs z probe (A + c)^-1: z'(A + c)^-1 z is its trace on average (Hutchinson 1990), z times
(A + c)^-1 z its diagonal. Both come from the Lanczos matrix of A started at z (Ubaru, Chen, Saad
2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"). The Gauss rule of that
matrix lies below z'(A + c)^-1 z, the Gauss-Radau rule with a node at the lower end of the spectrum
above (Golub, Meurant 1994): together they say how far the steps that were taken may be off.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import t
from torch import Tensor

_CLOSE = 1.05  # upper over lower rule: a twentieth, or 0.2 dB
_HOPELESS = 2.0  # 3 dB: more probes would not help
_EARLY, _LOST = 100, 1e3  # after so many steps 30 dB apart: no number that is worth it would do
_FEWEST, _EXACT = 4, 0.02  # probes, and their relative standard error, that are enough
_CHECK = 10  # steps between two looks at the rules
_END = 1e-3  # of c: the node lies so far below zero, so that the shifted matrix stays definite


@dataclass(frozen=True, eq=False)
class Probed:
    """What probing tells of (A + c)^-1, A (n, n)."""

    diagonal: Tensor  # (n,), noisy; from below where the steps were too few
    low: float  # of its trace: the Gauss rule, on average over the probes
    high: float  # the Gauss-Radau rule
    deviation: float  # of both, from probe to probe: half of the 95 % interval of the mean
    bare: float  # the Gauss rule of the trace of A^-1, from below; inf where A looks singular
    probes: int
    steps: int  # of the longest probe


@dataclass(frozen=True, eq=False)
class _Probe:
    diagonal: Tensor  # (n,): z times (A + c)^-1 z
    low: float
    high: float
    bare: float
    steps: int


def probe_inverse(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    shift: float,
    *,
    probes: int,
    max_steps: int,
    seed: int,
    expired: Callable[[], bool],
) -> Probed | None:
    """Probe (A + shift)^-1, A positive semidefinite, `product` (n,) to A times it, shift > 0.

    `like` (n,) gives size, dtype and device. None when not a single probe was finished.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[_Probe] = []
    for _ in range(probes):
        signs = 2.0 * torch.randint(2, like.shape, generator=generator).double() - 1
        one = _probe(product, signs.to(like), shift, max_steps, expired)
        if one is None:
            break
        found.append(one)
        if one.high > _HOPELESS * one.low or _is_enough([one.low for one in found]):
            break
    if not found:
        return None
    lows = [one.low for one in found]
    return Probed(
        diagonal=torch.stack([one.diagonal for one in found]).mean(0),
        low=statistics.mean(lows),
        high=statistics.mean(one.high for one in found),
        deviation=_deviation(lows),
        bare=statistics.mean(one.bare for one in found),
        probes=len(found),
        steps=max(one.steps for one in found),
    )


def _deviation(values: list[float]) -> float:
    """Half of the 95 % interval of the mean (Student); of a single value the value itself."""
    if len(values) < 2:
        return values[0]
    return float(t.ppf(0.975, len(values) - 1)) * _standard_error(values)


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _is_enough(values: list[float]) -> bool:
    return len(values) >= _FEWEST and _standard_error(values) <= _EXACT * statistics.mean(values)


def _probe(
    product: Callable[[Tensor], Tensor],
    signs: Tensor,
    shift: float,
    max_steps: int,
    expired: Callable[[], bool],
) -> _Probe | None:
    """One start; None when the budget ended."""
    norm = float(signs.norm())
    basis = signs.new_empty(min(max_steps, len(signs)) + 1, len(signs))
    basis[0] = signs / norm
    alphas: list[float] = []
    betas: list[float] = []
    low = high = math.inf
    while len(alphas) < len(basis) - 1:
        if expired():
            return None
        image = product(basis[len(alphas)])
        alphas.append(float(image @ basis[len(alphas)]))
        met = basis[: len(alphas)]
        for _ in range(2):  # once is not orthogonal enough
            image = image - met.mT @ (met @ image)
        betas.append(float(image.norm()))
        basis[len(alphas)] = image / max(betas[-1], torch.finfo(image.dtype).tiny)
        closed = betas[-1] <= _END * _END * shift  # the whole space that z reaches
        if closed or len(alphas) % _CHECK == 0 or len(alphas) == len(basis) - 1:
            low, high = _rules(alphas, betas, shift)
            lost = len(alphas) == _EARLY and high > _LOST * low
            if closed or lost or high <= _CLOSE * low:
                break
    steps = len(alphas)
    matrix = _tridiagonal(alphas, betas[:-1])
    weights = norm * _first_column(matrix, shift)
    answer = basis[:steps].mT @ weights.to(signs)
    return _Probe(signs * answer, norm**2 * low, norm**2 * high, norm**2 * _bare(matrix), steps)


def _rules(alphas: list[float], betas: list[float], shift: float) -> tuple[float, float]:
    """e_1'(T + c)^-1 e_1 by Gauss, and by Gauss-Radau with a node just below the spectrum."""
    matrix = _tridiagonal(alphas, betas[:-1])
    gauss = float(_first_column(matrix, shift)[0])
    end = _END * shift
    last = torch.zeros(len(alphas), dtype=torch.float64)
    last[-1] = betas[-1] ** 2
    moved = matrix + end * torch.eye(len(alphas), dtype=torch.float64)
    corner = float(torch.linalg.solve(moved, last)[-1]) - end
    radau = float(_first_column(_tridiagonal([*alphas, corner], betas), shift)[0])
    return gauss, max(radau, gauss)


def _bare(matrix: Tensor) -> float:
    """e_1'T^-1 e_1, or inf where T is singular to the rounding of a double."""
    values = torch.linalg.eigvalsh(matrix)
    if float(values[0]) <= len(matrix) * torch.finfo(values.dtype).eps * float(values[-1]):
        return math.inf
    return float(_first_column(matrix, 0.0)[0])


def _tridiagonal(alphas: list[float], betas: list[float]) -> Tensor:
    off = torch.tensor(betas, dtype=torch.float64)
    middle = torch.tensor(alphas, dtype=torch.float64)
    return torch.diag(middle) + torch.diag(off, 1) + torch.diag(off, -1)


def _first_column(matrix: Tensor, shift: float) -> Tensor:
    """(T + c)^-1 e_1."""
    first = torch.zeros(len(matrix), dtype=torch.float64)
    first[0] = 1.0
    moved = matrix + shift * torch.eye(len(matrix), dtype=torch.float64)
    found: Tensor = torch.linalg.solve(moved, first)
    return found
