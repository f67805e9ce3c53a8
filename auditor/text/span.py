"""The space that the inputs of a block span, read off the gradients of its projections.

A projection y = W z has the gradient dW = sum_t (dL/dy_t) z_t': its rows lie in the span of the
block's inputs z_t. With fewer tokens than dimensions, whether a vector lies in that span tells
which token was there.
Source: Petrov, Dimitrov, Baader, Müller, Vechev 2024 (DAGER), arXiv:2405.15586.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.text.records import Projection

# Coarser dumps (float16, bfloat16) leave errors as large as what tells two tokens apart.
FINEST_NEEDED = 1e-6
# Singular values below so many roundings of the largest are rounding. In trials with GPT-2, Llama
# and MiniLM the values of tokens ended above 1e-3, and those of rounding began below 1e-7.
_ROUNDINGS = 8.0
_GAP = 10.0  # between the two: without it the rank means nothing
# The distance of a token is about the rounding over its singular value. In those trials it was a
# tenth of what is allowed here at most, and what did not pass was ten thousand times further.
_ALLOWED = 4.0
_FINEST, _COARSEST = 1e-5, 1e-3
_FREE = 20  # dimensions that have to be left, as a chance needs them to be small
_SKETCH = 24
_SINGLE = torch.finfo(torch.float32).eps  # what the client computed with


@dataclass(frozen=True, eq=False)
class Span:
    """The row space of gradients, and what lies outside it."""

    basis: Tensor  # (d, r) orthonormal
    sketch: Tensor  # (d, k) orthonormal, inside the complement
    rank: int
    width: int  # d
    tolerance: float  # a relative distance below is that of a token

    def distances(self, inputs: Tensor) -> Tensor:
        """The distance of inputs (..., d) to the span, relative to their length: (...)."""
        lengths = inputs.norm(dim=-1)
        basis = self.basis.to(inputs)
        apart = inputs - (inputs @ basis) @ basis.mT
        return torch.where(lengths > 0, apart.norm(dim=-1) / lengths, 1.0)

    def bounds(self, inputs: Tensor) -> Tensor:
        """What the distance of inputs (..., d) is at least: (...).

        It looks at `k` directions of the complement only, which is cheap.
        """
        lengths = inputs.norm(dim=-1)
        seen = (inputs @ self.sketch.to(inputs)).norm(dim=-1)
        return torch.where(lengths > 0, seen / lengths, 1.0)


def stacked(gradient: Mapping[str, Tensor], projections: tuple[Projection, ...]) -> Tensor | None:
    """The gradients of the projections that the dump holds, (rows, d) float64; None without any."""
    parts = []
    for projection in projections:
        if projection.weight in gradient:
            matrix = gradient[projection.weight]
            matrix = matrix.mT if projection.turned else matrix
            parts.append(matrix[slice(*projection.rows)].cpu().double())
    return torch.cat(parts) if parts else None


def span_of(matrix: Tensor, *, precision: float, seed: int = 0) -> Span | str:
    """The row space of `matrix` (rows, d), or why it tells nothing, in words.

    `precision` is the relative spacing of the dump's numbers.
    """
    if precision > FINEST_NEEDED:
        return "the dump is rounded too coarsely: spans need six digits"
    width = matrix.shape[1]
    tall = len(matrix) > width
    core = torch.linalg.qr(matrix, mode="r").R if tall else matrix
    _, values, rows = torch.linalg.svd(core, full_matrices=not tall)
    if not values[0] > 0:
        return "the gradient of the projections is zero"
    rank = int((values > _ROUNDINGS * max(precision, _SINGLE) * values[0]).sum())
    if rank > width - min(_FREE, width // 4) or rank == len(matrix):
        return (
            f"the gradient of the projections has {rank} independent rows, of "
            f"{min(matrix.shape)} that it could have: too many tokens, or noise"
        )
    if rank < len(values) and values[rank - 1] < _GAP * values[rank]:
        return "the singular values of the projections' gradient end without a gap"
    generator = torch.Generator().manual_seed(seed)
    free = rows[rank:].mT
    mix = torch.randn(free.shape[1], _SKETCH, generator=generator, dtype=torch.float64)
    sketch = torch.linalg.qr(free @ mix).Q[:, : min(_SKETCH, free.shape[1])]
    dtype = torch.float32
    tolerance = _ALLOWED * max(precision, _SINGLE) * float(values[0] / values[rank - 1])
    tolerance = min(max(tolerance, _FINEST), _COARSEST)
    return Span(rows[:rank].mT.to(dtype), sketch.to(dtype), rank, width, tolerance)


def log_chance(span: Span, candidates: float) -> float:
    """log10 of the chance that one of `candidates` random directions is as near to the span.

    The squared distance of a random direction is Beta((d - r) / 2, r / 2); its distribution
    function at x is at most x^a / (a B(a, b)) times (1 - x)^(b - 1) where b < 1. Embeddings are no
    random directions: this is a strong hint, not a proof.
    """
    a, b, x = (span.width - span.rank) / 2, span.rank / 2, span.tolerance**2
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    log_tail = a * math.log(x) - math.log(a) - log_beta + min(b - 1, 0) * math.log1p(-x)
    return min(0.0, (log_tail + math.log(max(candidates, 1.0))) / math.log(10))
