"""A convolution's input and cotangent from its weight gradient alone, for one sample.

With P places, the gradient of tap k is M S_k X': M (O, P) is the cotangent of the output, X (I, P)
the input, S_k the known matrix that shifts the grid by k and fills with zeros. Neither factor is
known, and yet, where M has full column rank:

1. A tap and its neighbours in one line give N = M S M^-1 for a shift S along the other line,
   because shifts along different lines commute:  N [A_0, A_h, A_-h] = [A_v, A_vh, A_v-h].
2. The sum of the shifts to all four neighbours, the two directions weighted differently, is a
   symmetric matrix K with known, distinct eigenvalues and eigenvectors Q. The eigenvectors of the
   same sum of the N are M Q, each with a factor of its own.
3. The shifts themselves, seen in those eigenvectors, give the ratios of the factors.

Only matrices that commute with all shifts are left open, and those are multiples of one. So M and X
follow but for one number. Where X has full rank and M has not, the same is done for the transposed
taps. What the activations do is of no matter; neither is what stands above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.solve import LinearMap, least_squares

_SLANT = 0.6180339887  # weight of the second direction: keeps the eigenvalues of a grid apart
_ROUNDS = 4  # of fitting the factors to each other, at most
_WORTH = 1e-4  # relative misfit: what is worse than a hundred of it has nothing to do with factors
_CLOSE = 100.0  # a misfit so far below the limit is the dump's rounding
_SLOW = 0.9  # a round that leaves more of the misfit than this was the last
_HOPELESS = 0.1  # the same before the limit is met: factors that there are converge at once
_TOLERANCE, _STEPS = 1e-4, 500  # of the least squares inside a round


@dataclass(frozen=True, eq=False)
class Factors:
    """Both up to one common number: the cotangent times it, the input divided by it."""

    cotangent: Tensor  # (O, P)
    inputs: Tensor  # (I, P)
    misfit: float  # of all taps, relative to the gradient


def factorise(
    sent: Tensor,
    height: int,
    width: int,
    *,
    limit: float,
    expired: Callable[[], bool] = lambda: False,
) -> Factors | None:
    """The factors of `sent` (O, I, k, k), k odd and at least 3, of a convolution over a zero-padded
    grid that keeps its size. None where neither factor can have full rank, or nothing finite comes.

    A first answer that misses the gradient by more than a hundred times `limit` is not improved.
    """
    places, taps = height * width, _taps(sent)
    found = []
    if sent.shape[0] >= places:
        cotangent = _left_factor(taps, height, width)
        found.append(_fitted(taps, cotangent, None, (height, width), limit, expired))
    if sent.shape[1] >= places:
        turned = {(-a, -b): tap.mT for (a, b), tap in taps.items()}
        inputs = _left_factor(turned, height, width)
        found.append(_fitted(taps, None, inputs, (height, width), limit, expired))
    kept = [factors for factors in found if factors is not None and math.isfinite(factors.misfit)]
    return min(kept, key=lambda factors: factors.misfit, default=None)


def _taps(sent: Tensor) -> dict[tuple[int, int], Tensor]:
    """(O, I) by its shift; the tap in the middle is (0, 0)."""
    half = sent.shape[2] // 2
    sides = range(-half, half + 1)
    return {(a, b): sent[:, :, a + half, b + half].double() for a in sides for b in sides}


def _shifts(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(P, P): one place down and one to the right, (S x)[p] = x[p + 1]."""

    def step(size: int) -> Tensor:
        return torch.diag(like.new_ones(size - 1), 1)

    across = torch.eye(width, dtype=like.dtype, device=like.device)
    down = torch.eye(height, dtype=like.dtype, device=like.device)
    return torch.kron(step(height), across), torch.kron(down, step(width))


def _left_factor(taps: dict[tuple[int, int], Tensor], height: int, width: int) -> Tensor | None:
    """M (O, P) up to a factor, where it has full column rank."""
    places = height * width
    every = torch.cat(list(taps.values()), 1)
    basis, sizes, _ = torch.linalg.svd(every, full_matrices=False)
    if sizes[places - 1] <= torch.finfo(sizes.dtype).eps * sizes[0]:
        return None
    basis = basis[:, :places]
    within = {shift: basis.mT @ tap for shift, tap in taps.items()}
    moves = [_conjugate(within, shift) for shift in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    down, right = _shifts(height, width, every)
    plain = [down, down.mT, right, right.mT]
    weights = (1.0, 1.0, _SLANT, _SLANT)
    mixed = sum(w * move for w, move in zip(weights, moves, strict=True))
    grid = sum(w * shift for w, shift in zip(weights, plain, strict=True))
    assert isinstance(mixed, Tensor)
    assert isinstance(grid, Tensor)
    values, vectors = torch.linalg.eig(mixed)
    order = values.real.argsort()
    seen = vectors.real[:, order]
    known = torch.linalg.eigh(grid).eigenvectors
    ratios = _ratios(seen, known, moves, plain)
    return None if ratios is None else basis @ (seen / ratios) @ known.mT


def _conjugate(taps: dict[tuple[int, int], Tensor], shift: tuple[int, int]) -> Tensor:
    """M S M^-1 for a shift by one place along one line."""
    along = [(0, j) if shift[0] else (j, 0) for j in (-1, 0, 1)]
    before = torch.cat([taps[place] for place in along], 1)
    after = torch.cat([taps[a + shift[0], b + shift[1]] for a, b in along], 1)
    return _solved(before.mT, after.mT).mT


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Least squares, of least norm where something is left open."""
    driver = "gelsd" if matrix.device.type == "cpu" else "gels"  # all that a GPU has
    solution: Tensor = torch.linalg.lstsq(matrix, right, driver=driver).solution
    return solution


def _ratios(seen: Tensor, known: Tensor, moves: list[Tensor], plain: list[Tensor]) -> Tensor | None:
    """The factor (P,) of each eigenvector, along the tree of the surest ratios."""
    inverse, failed = torch.linalg.inv_ex(seen)
    if failed.item() or not inverse.isfinite().all():
        return None
    product, weight = torch.zeros_like(seen), torch.zeros_like(seen)
    for move, shift in zip(moves, plain, strict=True):
        found, true = inverse @ move @ seen, known.mT @ shift @ known
        product += found * true
        weight += true.square()
    ratios = seen.new_zeros(len(seen))
    ratios[0] = 1.0
    reached = torch.zeros_like(ratios, dtype=torch.bool)
    reached[0] = True
    for _ in range(len(seen) - 1):
        edges = weight * reached[:, None] * ~reached
        one, other = divmod(int(edges.argmax()), len(seen))
        ratios[other] = ratios[one] * product[one, other] / weight[one, other]
        reached[other] = True
    return ratios if bool((ratios != 0).all()) else None


def _fitted(
    taps: dict[tuple[int, int], Tensor],
    cotangent: Tensor | None,
    inputs: Tensor | None,
    grid: tuple[int, int],
    limit: float,
    expired: Callable[[], bool],
) -> Factors | None:
    """The other factor, and both fitted to each other: rounding errors grew on the way."""
    height, width = grid
    if cotangent is None and inputs is None:
        return None
    turned = {(-a, -b): tap.mT for (a, b), tap in taps.items()}
    if inputs is None:
        assert cotangent is not None
        inputs = _other(turned, cotangent, height, width)
    if cotangent is None:
        cotangent = _other(taps, inputs, height, width)
    best = Factors(cotangent, inputs, _misfit(taps, cotangent, inputs, height, width))
    if not best.misfit <= 100 * max(limit, _WORTH):
        return best
    for _ in range(_ROUNDS):
        if best.misfit <= limit / _CLOSE:
            break
        found = _improved(taps, best, height, width, expired)
        enough = _SLOW if best.misfit <= limit else _HOPELESS
        if expired() or not found.misfit <= enough * best.misfit:
            break
        best = found
    return best


def _improved(
    taps: dict[tuple[int, int], Tensor],
    near: Factors,
    height: int,
    width: int,
    expired: Callable[[], bool],
) -> Factors:
    """A Gauss-Newton step for both factors at once."""
    grid, (outputs, places) = (height, width), near.cotangent.shape
    size = float(near.cotangent.norm() / near.inputs.norm())
    left, right = near.cotangent / size**0.5, near.inputs * size**0.5  # of equal size

    def made(one: Tensor, other: Tensor) -> Tensor:
        parts = [one @ _shifted(other, shift, *grid).mT for shift in taps]
        return torch.stack(parts)

    def forward(rows: Tensor) -> Tensor:
        d_left, d_right = torch.split(rows.view(-1, places), [outputs, len(right)])
        return (made(d_left, right) + made(left, d_right)).flatten()[None]

    def adjoint(rows: Tensor) -> Tensor:
        each = rows.view(len(taps), outputs, -1)
        pairs = list(zip(taps, each, strict=True))
        to_left = sum(part @ _shifted(right, shift, *grid) for shift, part in pairs)
        to_right = sum(
            _shifted(part.mT @ left, (-shift[0], -shift[1]), *grid) for shift, part in pairs
        )
        return torch.cat([torch.as_tensor(to_left), torch.as_tensor(to_right)]).flatten()[None]

    apart = (torch.stack(list(taps.values())) - made(left, right)).flatten()[None]
    start = torch.zeros(1, left.numel() + right.numel(), dtype=left.dtype, device=left.device)
    solution = least_squares(
        LinearMap(forward, adjoint),
        apart,
        start,
        tolerance=_TOLERANCE,
        max_steps=_STEPS,
        expired=expired,
    )
    d_left, d_right = torch.split(solution.x.view(-1, places), [outputs, len(right)])
    left, right = left + d_left, right + d_right
    return Factors(left * size**0.5, right / size**0.5, _misfit(taps, left, right, *grid))


def _shifted(rows: Tensor, shift: tuple[int, int], height: int, width: int) -> Tensor:
    """S_k applied to each row (n, P) of a grid."""
    grid = rows.view(-1, height, width)
    moved = torch.zeros_like(grid)
    (to_rows, from_rows), (to_columns, from_columns) = (
        (slice(max(0, -s), size - max(0, s)), slice(max(0, s), size - max(0, -s)))
        for s, size in zip(shift, (height, width), strict=True)
    )
    moved[:, to_rows, to_columns] = grid[:, from_rows, from_columns]
    return moved.view(len(rows), -1)


def _other(taps: dict[tuple[int, int], Tensor], known: Tensor, height: int, width: int) -> Tensor:
    """The left factor (O, P) of taps (O, I) whose right factor is `known` (I, P)."""
    columns = torch.cat([_shifted(known, shift, height, width) for shift in taps])  # (k I, P)
    told = torch.cat(list(taps.values()), 1)  # (O, k I)
    return _solved(columns, told.mT).mT


def _misfit(
    taps: dict[tuple[int, int], Tensor], cotangent: Tensor, inputs: Tensor, height: int, width: int
) -> float:
    apart = size = 0.0
    for shift, tap in taps.items():
        made = cotangent @ _shifted(inputs, shift, height, width).mT
        apart += float((made - tap).square().sum())
        size += float(tap.square().sum())
    return math.sqrt(apart / size) if size else math.inf
