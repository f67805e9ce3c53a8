"""One feature from its equations, with units above it read again where these do not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.inversion.features import Feature
from auditor.inversion.peel import Block, Peeling, blocks_of, is_doubtful, margin_of
from auditor.solve import LinearMap, Status, least_squares

_DOUBT = 10.0  # a value within this factor of the margin may be on either side of zero
_TURNS, _CANDIDATES = 4, 40  # units that are turned for one feature, and tried for each
_FEW = 100  # steps of least squares to tell units apart
_BETTER = 0.5  # of the residual: left by turning a unit that was misread
_FAR = 10.0  # sizes of what the equations tell
_DISTINCT = 1e-8  # relative squared singular value: below it the inverse would blow up


@dataclass(frozen=True)
class Settings:
    """How hard to solve one feature."""

    tolerance: float  # of least squares
    steps: int
    enough: float  # relative residual at which no unit can be misread
    expired: Callable[[], bool] = lambda: False
    generator: torch.Generator | None = None  # None: start from zero


@dataclass(frozen=True, eq=False)
class Solved:
    """What came of one feature."""

    value: Tensor
    residual: float  # relative, of all equations
    equations: int
    condition: float  # of what was solved: a lower bound
    steps: int
    status: Status


def read_feature(peeling: Peeling, feature: Feature, settings: Settings) -> Solved | None:
    """Solve for a feature; None where its equations are fewer than its unknowns.

    One misread unit of a ReLU above spoils the equations of its channel. Where the residual says
    so, units whose values are next to nothing are turned, one by one, as long as that helps.
    """
    found = _attempt(peeling, feature, settings)
    if found is None:
        return None
    for _ in range(_TURNS):
        if found.residual <= settings.enough or settings.expired():
            break
        better = _turned(peeling, feature, settings, found)
        if better is None:
            break
        found = better
    return found


def _attempt(peeling: Peeling, feature: Feature, settings: Settings) -> Solved | None:
    blocks = blocks_of(peeling, feature)
    if sum(block.count for block in blocks) < torch.Size(feature.node.shape).numel():
        return None
    return solve(blocks, feature.node.shape, settings)


def _turned(
    peeling: Peeling, feature: Feature, settings: Settings, before: Solved
) -> Solved | None:
    """The solution with one unit above turned that leaves the least; None when none helps.

    Which one is found out with few steps.
    """
    few = replace(settings, steps=min(_FEW, settings.steps))
    plain = _attempt(peeling, feature, few)
    reached = before.residual if plain is None else plain.residual
    best: tuple[float, Feature, Tensor] | None = None
    for user, unit in candidates(peeling, peeling.features.users(feature.node)):
        peeling.turn(user, unit)
        found = _attempt(peeling, feature, few)
        peeling.turn(user, unit)
        if found is not None and (best is None or found.residual < best[0]):
            best = (found.residual, user, unit)
        if settings.expired() or (best is not None and best[0] <= settings.enough):
            break
    if best is None or best[0] > _BETTER * reached:
        return None
    peeling.turn(best[1], best[2])
    return _attempt(peeling, feature, settings)


def candidates(peeling: Peeling, users: tuple[Feature, ...]) -> list[tuple[Feature, Tensor]]:
    """Units (1, n) of the patterns of some features, those nearest to their margin first."""
    found: list[tuple[float, Feature, int]] = []
    for user in users:
        if not is_doubtful(user) or user.node not in peeling.values:
            continue
        value = peeling.values[user.node].flatten()
        apart = (value.abs() / max(margin_of(peeling.values[user.node]), 1e-300)).log().abs()
        for place in apart.argsort()[:_CANDIDATES].tolist():
            if float(apart[place]) <= float(torch.tensor(_DOUBT).log()):
                found.append((float(apart[place]), user, place))
    units = []
    for _, user, place in sorted(found, key=lambda entry: entry[0])[:_CANDIDATES]:
        unit = torch.zeros_like(peeling.undone[user.node].known)
        unit[0, place] = True
        units.append((user, unit))
    return units


def solve(blocks: list[Block], shape: tuple[int, ...], settings: Settings) -> Solved:
    """Least squares over all blocks, by conjugate gradients."""
    with torch.enable_grad():
        leaf = blocks[0].told.new_zeros(shape).requires_grad_()
        made = [block.function(leaf) for block in blocks]
    sizes = [part.numel() for part in made]
    zero = [part.detach() for part in made]

    def forward(rows: Tensor) -> Tensor:
        each = zip(blocks, zero, strict=True)
        parts = [b.counted * (b.function(rows.view(shape)) - z) for b, z in each]
        return torch.cat([part.flatten() for part in parts])[None]

    def adjoint(rows: Tensor) -> Tensor:
        each = zip(blocks, torch.split(rows[0], sizes), zero, strict=True)
        weighted = [block.counted * piece.view_as(part) for block, piece, part in each]
        (found,) = torch.autograd.grad(made, leaf, weighted, retain_graph=True)
        return found.flatten()[None]

    each = zip(blocks, zero, strict=True)
    rhs = torch.cat([(b.counted * (b.told - z)).flatten() for b, z in each])[None]
    solution = least_squares(
        LinearMap(forward, adjoint),
        rhs,
        _start(blocks, leaf.detach(), settings.generator),
        tolerance=settings.tolerance,
        max_steps=settings.steps,
        precondition=_inverse(blocks, shape),
        expired=settings.expired,
    )
    return Solved(
        solution.x.view(shape),
        float(solution.residual),
        sum(block.count for block in blocks),
        float(solution.condition),
        solution.steps,
        solution.status[0],
    )


def _start(blocks: list[Block], zero: Tensor, generator: torch.Generator | None) -> Tensor:
    """(1, n): zero, or random and far away, so that what the equations leave open shows."""
    if generator is None:
        return zero.flatten()[None]
    drawn = torch.randn(zero.shape, generator=generator, dtype=torch.float64).to(zero)
    told = next((b for b in blocks if b.weight is None), None)
    size = 1.0 if told is None else float((told.counted * told.told).abs().mean())
    return _FAR * max(size, 0.1) * drawn.flatten()[None]


def _inverse(blocks: list[Block], shape: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """A preconditioner for rows (1, n): the inverse of the gradient blocks' normal matrix, which is
    the same for every channel, with the mean diagonal entry of the others'.
    """
    grams = [gram for block in blocks if (gram := _gram(block)) is not None]
    if not grams:
        return None
    rest = sum(_mean_diagonal(block, shape) for block in blocks if block.weight is None)
    sizes, basis = torch.linalg.eigh(torch.stack(grams).sum(0))
    floor = _DISTINCT * float(sizes[-1])
    inverse = (basis / (sizes.clamp_min(floor) + rest)) @ basis.mT

    def apply(rows: Tensor) -> Tensor:
        found: Tensor = rows.view(shape[1], -1) @ inverse
        return found.view_as(rows)

    return apply


def _gram(block: Block) -> Tensor | None:
    """B'B (P, P) of a gradient block whose B (O k k, P) is the same for each channel."""
    if block.spots is None:
        return None
    spots, cotangent = block.spots  # (P, k k, L), (O, L)
    seen = torch.einsum("ol,pkl->okp", cotangent * block.counted.flatten(1), spots).flatten(0, 1)
    gram: Tensor = seen.mT @ seen
    return gram


def _mean_diagonal(block: Block, shape: tuple[int, ...]) -> float:
    """Of a block's normal matrix, by one random vector (Hutchinson 1990)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(block.told)
    made = block.function(drawn) - block.function(torch.zeros_like(drawn))
    return float((block.counted * made).square().sum() / drawn.square().sum())
