"""The picture from the gradients of an attention that reads the tokens themselves.

Where linear operations W_i are all that reads the tokens z (T, d), the gradient of z is
G = sum_i D_i W_i with D_i that of their outputs, and the weights' gradients are D_i' z, so

    G' z = sum_i W_i' dL/dW_i

has z for its only unknown when G, the gradient of the positions, was sent. From z the patches
follow by the patch embedding's own weight. Neither a shortcut around the attention nor a layer norm
before it may be there. Source: Lu et al. 2022 (APRIL), arXiv:2112.14087.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from auditor.graph import constant
from auditor.inversion.embedding import PatchEmbedding
from auditor.inversion.patches import Equations, PatchSystem, Reading, least_squares
from auditor.inversion.systems import Affine

_RANK = 1e-6  # of the embedding's weight, relative: below it a direction of the patches is lost


class AttentionSystem(PatchSystem):
    """The map from the picture to its tokens, and what the attention says of them."""

    def __init__(self, embedding: PatchEmbedding, like: Tensor) -> None:
        super().__init__(embedding, like)
        way = (*embedding.before, embedding.operator.node, *embedding.after, embedding.total)
        self.tokens = Affine(embedding.source, way, like)
        operator = embedding.operator
        matrix = constant(operator.matrix).detach().double()
        turned = not operator.convolves and operator.node.operation != "linear"
        self.matrix = (matrix.mT if turned else matrix).reshape(embedding.width, -1)  # (d, P)
        sizes = torch.linalg.svdvals(self.matrix)
        self.narrow = self.matrix.shape[1] - int((sizes > _RANK * sizes[0]).sum())
        ones = like.new_ones(1, self.after.zero.shape[1])
        self.factors = self.after.adjoint(self.after.forward(ones))  # sums of squares, (1, n)

    @property
    def layer(self) -> str:
        return self.embedding.readers[0].weight.name

    def equations(self, gradient: Mapping[str, Tensor]) -> Equations:
        embedding = self.embedding
        total = embedding.positions.of(gradient[embedding.positions.name])
        tokens = total.reshape(1, -1, embedding.total.shape[-1]).mT.double()
        found = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
        found = found.to(tokens.device)
        for reader in embedding.readers:
            weight = constant(reader.matrix).detach().double()
            change = reader.weight.of(gradient[reader.weight.name]).double()
            found += weight @ change.mT if reader.flips else weight.mT @ change
        return Equations(tokens, found[None])

    def solve(self, equations: Equations, start: Tensor, noise: float) -> Reading:
        rows = self.tokens.forward(start[None].to(self.tokens.zero)) + self.tokens.offset
        known = rows.double().view(1, -1, equations.weights.shape[2])  # (1, T, d)
        solved = least_squares(equations, known, noise)
        made = self.after.adjoint(solved.step.reshape(1, -1).to(self.factors)) / self.factors
        patches = self._by_token(made.double()) @ torch.linalg.pinv(self.matrix).mT  # (T, P)
        picture = start.double() + self.pixels_of(patches.mT[None])
        lost = solved.lost * self.matrix.shape[1] + self.narrow * self.embedding.tokens
        left_open = min(self.pixels, lost) or self.unseen
        return Reading(picture, left_open, self._misfit(equations, picture), solved.condition)

    def _by_token(self, made: Tensor) -> Tensor:
        """The operator's output (1, n) as (T, d)."""
        shaped = made.view(self.embedding.operator.node.shape)
        if self.embedding.operator.convolves:
            return shaped.reshape(-1, math.prod(shaped.shape[2:])).mT
        return shaped.reshape(-1, shaped.shape[-1])

    def _misfit(self, equations: Equations, picture: Tensor) -> float:
        rows = self.tokens.forward(picture[None].to(self.tokens.zero)) + self.tokens.offset
        known = rows.double().view(1, -1, equations.weights.shape[2])
        apart = equations.tokens @ known - equations.weights
        return float(apart.norm() / equations.weights.norm().clamp_min(1e-300))


def system_of(embedding: PatchEmbedding, like: Tensor) -> PatchSystem:
    """The equations of the patch embedding itself, or of what reads its tokens."""
    return (AttentionSystem if embedding.readers else PatchSystem)(embedding, like)
