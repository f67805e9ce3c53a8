"""Which tokens can stand at which position: the first check, without any context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.text.hidden import input_of, reader_of
from auditor.text.records import TextProblem
from auditor.text.span import Span

_PIECE = 1 << 23  # numbers that are made at a time


@dataclass(frozen=True, eq=False)
class Candidates:
    """The tokens that pass at each position; one position for all when there are no positions."""

    tokens: tuple[Tensor, ...]  # each (M_t,) int64, sorted
    tried: int  # (token, position) pairs
    worst: float  # the largest distance that passed
    nearest: float  # what the distances that did not pass are at least

    def at(self, position: int) -> Tensor:
        return self.tokens[min(position, len(self.tokens) - 1)]


def candidates_of(
    problem: TextProblem,
    span: Span,
    vocabulary: Tensor,
    length: int,
    expired: Callable[[], bool] = lambda: False,
) -> Candidates:
    """Check every token of `vocabulary` (M,) at each of `length` positions.

    A token that occurs passes. Another one may pass as well: sums of token and position embeddings
    can add up to it.
    """
    positions = length if problem.layout.positions is not None else 1
    reader = reader_of(problem.layout.first)
    found: list[Tensor] = []
    worst, nearest = 0.0, 1.0
    rows = max(1, _PIECE // (positions * span.width))
    for piece in torch.split(vocabulary, rows):
        if expired():
            break
        inputs = input_of(problem, reader, piece[:, None].expand(-1, positions))
        bounds = span.bounds(inputs)
        hopeful = bounds <= 2 * span.tolerance
        bounds[hopeful] = span.distances(inputs[hopeful])
        passed = bounds <= span.tolerance
        worst = max(worst, float(bounds[passed].max()) if bool(passed.any()) else 0.0)
        nearest = min(nearest, float(bounds[~passed].min()) if not bool(passed.all()) else 1.0)
        where = passed.nonzero()
        found.append(torch.stack([piece[where[:, 0].cpu()], where[:, 1].cpu()]))
    pairs = torch.cat(found, dim=1) if found else torch.zeros(2, 0, dtype=torch.long)
    tokens = tuple(pairs[0, pairs[1] == place].sort().values for place in range(positions))
    return Candidates(tokens, len(vocabulary) * positions, worst, nearest)
