"""The factor of a low-rank matrix whose columns have many exact zeros.

Given D P = L with D (M, R) sparse and P (R, R) invertible, find D up to order and scale: column i
of P^-1 is the one direction q, up to scale, that is orthogonal to every row of L in which D_i is
zero. R - 1 rows drawn at random are all of that kind with a chance of about 2^(1-R) when half of D
is zero; their kernel is then q, and as many further rows vanish as D_i has zeros.
Source: Dimitrov, Baader, Müller, Vechev 2024 (SPEAR), arXiv:2403.03945. There the sparsest
directions are kept. Here a direction counts when the rows that vanish determine it, and still do
without the few that matter most: a mixture of two columns needs the row that was drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_LOOSE = 64.0  # times the error of a row: a kernel of few rows carries their errors, magnified
_LOOSEST = 0.01  # of the row
_TIGHT = 4.0
_SAME = 1e-3  # sine of the angle of two readings of one direction
_ROUNDS = 2
_SPARE = 3  # rows that may be taken away without setting a direction free
_WAVE, _NUMBERS = 8192, 4_000_000  # draws at once, and numbers that they may take


@dataclass(frozen=True)
class SparseFactors:
    """What was found, and by how many draws."""

    directions: Tensor  # (R, F) unit columns, F <= R of them
    zeros: Tensor  # (M, F) bool: rows that vanish
    draws: int
    expired: bool


def expected_draws(rank: int) -> float:
    """Draws until every column was hit once when half of the entries are zero, independently.

    2^(R-1) for one column, times the harmonic number of R for all (coupon collector).
    """
    return float(2.0 ** (rank - 1) * sum(1 / k for k in range(1, rank + 1)))


def sparse_factors(
    rows: Tensor,
    error: Tensor,
    generator: torch.Generator,
    *,
    max_draws: int,
    expired: Callable[[], bool],
    accepts: Callable[[Tensor], bool] = lambda zeros: True,  # noqa: ARG005
) -> SparseFactors:
    """Directions (R, F) that make a column of `rows` (M, R) sparse, float64.

    `error` (M,): what rounding leaves of a product of each row with a unit vector where it should
    vanish; rows of no use have been left out. `accepts` takes the rows (M,) bool that vanish for a
    direction: columns of D that depend on one another where they are not zero have mixtures with
    many zeros as well. Ends when R directions were accepted, after `max_draws` draws, or when
    `expired`.
    """
    count, rank = rows.shape
    unit = rows / rows.norm(dim=1, keepdim=True)
    error = error / rows.norm(dim=1)
    seen = _Directions(rows.new_zeros(rank, 0), rows.new_zeros(count, 0).bool())
    kept = list[bool]()
    wave = max(16, min(2 ** (rank + 5), _WAVE, _NUMBERS // max(count, rank**2)))
    draws, late = 0, expired()
    while sum(kept) < rank and draws < max_draws and not late:
        picked = torch.randint(count, (wave, rank - 1), generator=generator).to(rows.device)
        draws += wave
        for vanish in _candidates(unit, error, picked, generator):
            late = late or expired()
            more = None if late or sum(kept) == rank else _more(seen, unit, error, vanish)
            if more is not None:
                seen = more
                kept.append(accepts(seen.zeros[:, -1]))
        late = late or expired()
    chosen = torch.tensor(kept, dtype=torch.bool, device=rows.device)
    late = late and sum(kept) < rank
    return SparseFactors(seen.vectors[:, chosen], seen.zeros[:, chosen], draws, late)


@dataclass(frozen=True)
class _Directions:
    """Those that were met, accepted or not."""

    vectors: Tensor  # (R, F)
    zeros: Tensor  # (M, F)


def _candidates(
    unit: Tensor, error: Tensor, picked: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Rows (M,) bool that vanish together for a draw of `picked` (D, R-1); the most rows first."""
    kernels = _kernels(unit[picked], generator)  # (D, R)
    loose = (_LOOSE * error).clamp_max(_LOOSEST)
    vanish = (kernels @ unit.mT).abs() <= loose  # (D, M); false where a kernel is no number
    zeros = vanish.sum(1)
    worth = (zeros >= _enough(unit.shape[1])).nonzero().flatten()
    order = worth[zeros[worth].argsort(descending=True, stable=True)]
    return list(vanish[order])


def _enough(rank: int) -> int:
    """Rows that have to vanish: R - 1 do so for any draw, and as many again by structure."""
    return 2 * (rank - 1) + _SPARE


def _kernels(systems: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors (D, R) orthogonal to R - 1 rows each, (D, R-1, R)."""
    count, _, rank = systems.shape
    border = torch.randn(count, 1, rank, generator=generator, dtype=torch.float64).to(systems)
    right = systems.new_zeros(count, rank, 1)
    right[:, -1] = 1
    solved, _ = torch.linalg.solve_ex(torch.cat([systems, border], 1), right)
    kernels: Tensor = solved[:, :, 0]
    return F.normalize(kernels, dim=1, eps=0)


def _more(seen: _Directions, unit: Tensor, error: Tensor, vanish: Tensor) -> _Directions | None:
    """`seen` and one direction more, if the rows that vanish determine one and it is new."""
    if bool(((vanish[:, None] & ~seen.zeros).sum(0) <= _SPARE).any()):
        return None  # rows of one that is known, and too few more to decide anything
    direction = _kernel_of_many(unit, error, vanish)
    for _ in range(_ROUNDS):  # a better direction shows more of the rows that vanish
        if direction is None:
            return None
        direction = _kernel_of_many(unit, error, _vanishing(unit, error, direction))
    if direction is None or bool((_sines(seen.vectors, direction) < _SAME).any()):
        return None
    zeros = _vanishing(unit, error, direction)
    return _Directions(
        torch.cat([seen.vectors, direction[:, None]], 1), torch.cat([seen.zeros, zeros[:, None]], 1)
    )


def _vanishing(unit: Tensor, error: Tensor, direction: Tensor) -> Tensor:
    return (unit @ direction).abs() <= (_TIGHT * error).clamp_max(_LOOSEST)


def _sines(directions: Tensor, other: Tensor) -> Tensor:
    """Of the angles between unit columns (R, F) and one more, (F,)."""
    sines: Tensor = (directions - other[:, None] * (directions.mT @ other)).norm(dim=0)
    return sines


def _kernel_of_many(unit: Tensor, error: Tensor, chosen: Tensor) -> Tensor | None:
    """The direction (R,) orthogonal to the `chosen` rows; None when few of them decide it.

    The row that was drawn to vanish, and one or two that vanish with it by chance, could decide
    which mixture of two columns this is: without them there has to be one direction still.
    """
    weighted = unit[chosen] / error[chosen, None]
    if len(weighted) < _enough(unit.shape[1]):
        return None
    left, sizes, directions = torch.linalg.svd(weighted, full_matrices=False)
    # In units of the error: the last value is chance alone. Over the one before it, that is the
    # angle by which chance turns the direction.
    alone = _TIGHT * len(weighted) ** 0.5
    leverage = left[:, :-1].square().sum(1)
    rest = weighted[leverage.argsort(stable=True)[:-_SPARE]]
    if sizes[-1] > alone or alone > _SAME / 4 * torch.linalg.svdvals(rest)[-2]:
        return None
    direction: Tensor = directions[-1]
    return direction
