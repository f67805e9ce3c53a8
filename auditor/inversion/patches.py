"""The picture from the gradients of a patch embedding and of the positions added to it.

Of one sample, the gradient of the positions is the gradient of the tokens: G (T, d), one row a
token. The patch embedding's weight gradient is G' X with X (T, P) the patches, so where G has rank
T, X = pinv(G') dL/dW, whatever the layers above do.
Lu et al. 2022 (APRIL), arXiv:2112.14087, read the position embedding's gradient in this way, and
solve at the first attention; here the equations are those of the patch embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.inversion.embedding import PatchEmbedding
from auditor.inversion.rounding import disturbed
from auditor.inversion.systems import Affine, Patches, patches_of
from auditor.records import LinkReport

# Singular values below so many times the errors' own size say nothing.
_MARGIN = 4.0
# A relative residual that the dump's precision still explains, and one that nothing explains.
_ROUNDINGS, _AT_LEAST, _AT_MOST = 100.0, 1e-5, 5e-2
_ENOUGH = 30  # surplus numbers from which the size of errors can be told
_NEAR = 1e-2  # relative distance of two readings, from which on something was not determined


@dataclass(frozen=True)
class Equations:
    """G' X = M of one dump, in double precision; g groups, almost always one."""

    tokens: Tensor  # (g, d, T) gradient of the operator's output, G'
    weights: Tensor  # (g, d, P) gradient of its weight, M

    def disturbed(self, noise: float, generator: torch.Generator) -> Equations:
        """With fresh errors of relative size `noise`, as rounding makes them."""
        return Equations(
            disturbed(self.tokens, noise, generator), disturbed(self.weights, noise, generator)
        )


@dataclass(frozen=True)
class Reading:
    """What the equations of one dump say."""

    picture: Tensor  # (pixels,) model units
    open: int  # unknowns that the equations leave open
    residual: float  # of the equations at this picture, relative
    condition: float  # of G


class PatchSystem:
    """The map from the picture to its patches, and what the positions say of their tokens."""

    def __init__(self, embedding: PatchEmbedding, like: Tensor) -> None:
        self.embedding = embedding
        self.before = Affine(embedding.source, embedding.before, like)
        self.after = Affine(embedding.operator.node, embedding.after, like)
        self.patches: Patches = patches_of(embedding.operator)
        self.pixels = math.prod(embedding.source.shape)
        self.shift = self._visited(self.before.offset)  # patches of a picture of zeros
        ones = like.new_ones(1, self.pixels)
        self.scales = self.linear(ones)  # of the pixel that each entry of a patch is
        self.weights = self._back(self.scales)  # (pixels,) sum of squares

    @property
    def layer(self) -> str:
        """For people: the weight that is read."""
        return self.embedding.weight.name

    @property
    def unseen(self) -> int:
        """Pixels in no patch."""
        return int((self.weights == 0).sum())

    def equations(self, gradient: Mapping[str, Tensor]) -> Equations:
        embedding, operator = self.embedding, self.embedding.operator
        total = embedding.positions.of(gradient[embedding.positions.name])
        tokens = self.after.adjoint(total.reshape(1, -1)).view(operator.node.shape)
        matrix = embedding.weight.of(gradient[embedding.weight.name])
        groups = self.patches.groups
        if operator.convolves:
            tokens = tokens.reshape(groups, -1, math.prod(tokens.shape[2:]))
        else:
            tokens = tokens.reshape(1, -1, tokens.shape[-1]).mT
            matrix = matrix if operator.node.operation == "linear" else matrix.mT
        rows = matrix.reshape(groups, tokens.shape[1], -1)
        return Equations(tokens.double(), rows.double())

    def solve(self, equations: Equations, start: Tensor, noise: float) -> Reading:
        """The least-squares patches, those nearest to the picture `start` where some are open."""
        known = self.shift.double() + self.linear(start[None]).double()  # (g, P, T)
        solved = least_squares(equations, known.mT, noise)
        picture = start.double() + self.pixels_of(solved.step.mT)
        left_open = min(self.pixels, solved.lost * equations.weights.shape[2]) or self.unseen
        return Reading(picture, left_open, self._residual(equations, picture), solved.condition)

    def pixels_of(self, patches: Tensor) -> Tensor:
        """Changes of patches (g, P, T) to those of the picture (pixels,); unseen pixels stay."""
        change = self._back(patches.to(self.scales)).double()
        return torch.where(self.weights > 0, change / self.weights, 0.0)

    def _residual(self, equations: Equations, picture: Tensor) -> float:
        patches = self.shift.double() + self.linear(picture[None].to(self.scales)).double()
        apart = equations.tokens @ patches.mT - equations.weights
        return float(apart.norm() / equations.weights.norm().clamp_min(1e-300))

    def _visited(self, rows: Tensor) -> Tensor:
        """Rows (1, n) of the operator's input to its patches (groups, P, T)."""
        return self.patches.forward(rows)[0]

    def linear(self, rows: Tensor) -> Tensor:
        """Pictures (1, pixels) to patches, without the shift."""
        return self._visited(self.before.forward(rows.to(self.before.zero)))

    def _back(self, patches: Tensor) -> Tensor:
        """The transpose: (groups, P, T) to (pixels,)."""
        return self.before.adjoint(self.patches.adjoint(patches[None]))[0]


@dataclass(frozen=True)
class Solved:
    """G' X = M, solved."""

    step: Tensor  # (g, T, P) from the X that was given
    lost: int  # rows of X that G leaves open
    condition: float


def least_squares(equations: Equations, known: Tensor, noise: float) -> Solved:
    """The way from `known` (g, T, P) to the nearest least-squares X."""
    left, sizes, right = torch.linalg.svd(equations.tokens, full_matrices=False)
    kept = sizes > _noise_floor(equations.tokens, noise)[:, None]
    inverse = torch.where(kept, 1 / sizes, 0.0)
    missing = equations.weights - equations.tokens @ known
    step = right.mT @ (inverse[..., None] * (left.mT @ missing))
    lost = known.shape[0] * known.shape[1] - int(kept.sum())
    return Solved(step, lost, float((sizes[:, 0] / sizes[:, -1].clamp_min(1e-300)).max()))


def errors_seen(reading: Reading, equations: Equations) -> float:
    """The relative errors of a dump, as its surplus equations show them; 0 without a surplus."""
    _, width, tokens = equations.tokens.shape
    surplus = (width - tokens) / width
    return reading.residual / math.sqrt(surplus) if surplus > 0 else 0.0


def errors_of(seen: float, equations: Equations, precision: float) -> float:
    """The relative errors to reckon with, from those seen and the dump's precision.

    The precision of an update is that of its worst tensor. Where enough surplus equations show the
    errors of these two, three times those are enough.
    """
    groups, width, tokens = equations.tokens.shape
    surplus = groups * (width - tokens) * equations.weights.shape[2]
    told = min(precision, 3 * seen) if surplus >= _ENOUGH else precision
    return max(told, seen)


def report_of(
    system: PatchSystem, readings: list[Reading], noise: float, equations: Equations
) -> LinkReport:
    """The embedding as a layer of the report."""
    first = readings[0].picture
    size = first.norm().clamp_min(1e-3 * math.sqrt(first.numel()))
    gap = max(float((other.picture - first).norm() / size) for other in readings)
    residual = max(reading.residual for reading in readings)
    left_open = max(reading.open for reading in readings)
    allowed = min(max(_ROUNDINGS * noise, _AT_LEAST), _AT_MOST)
    return LinkReport(
        layer=system.layer,
        unknowns=system.pixels,
        equations=equations.weights.numel(),
        undetermined=left_open,
        gap=gap,
        residual=residual,
        condition=max(reading.condition for reading in readings),
        steps=0,
        status="reached the goal",
        constrained=False,
        solved=left_open == 0 and residual <= allowed and gap <= _NEAR,
    )


def _noise_floor(tokens: Tensor, noise: float) -> Tensor:
    """About the largest singular value (g,) of errors of relative size `noise` in `tokens`."""
    _, width, count = tokens.shape
    each = noise * tokens.flatten(1).square().mean(1).sqrt()
    return _MARGIN * each * (math.sqrt(width) + math.sqrt(count))
