"""Texts of a decoder, token by token from the front.

A position sees only those before it, so the second block's input there tells whether the prefix up
to it is one of the client's.
Source: Petrov et al. 2024 (DAGER), arXiv:2405.15586, the greedy search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.text.candidates import Candidates
from auditor.text.hidden import input_of, reader_of
from auditor.text.records import TextProblem
from auditor.text.span import Span

_PIECE = 1 << 13  # tokens that go through the first block at a time
_LONGEST_RUN = 4  # of one token at the front of a text, without positions


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Every prefix that passed, the longest of each branch at the end of its branch."""

    found: tuple[tuple[int, ...], ...]  # all of them, shortest first
    worst: dict[tuple[int, ...], float]  # the largest distance on the way to each
    nearest: float  # the smallest distance that did not pass
    tried: int
    crowded: bool  # more prefixes passed than are followed: nothing is told apart

    @property
    def leaves(self) -> tuple[tuple[int, ...], ...]:
        inner = {prefix[:-1] for prefix in self.found}
        return tuple(prefix for prefix in self.found if prefix not in inner)


def grow(
    problem: TextProblem,
    span: Span | None,
    candidates: Candidates,
    *,
    longest: int,
    most: int,
    watch: Watch,
) -> Prefixes:
    """Follow at most `most` prefixes at a time, up to `longest` tokens.

    Without a `span` of the second block's inputs a position has to have one candidate only.
    """
    found: list[tuple[int, ...]] = []
    worst: dict[tuple[int, ...], float] = {(): candidates.worst}
    live: list[tuple[int, ...]] = [()]
    nearest, tried = candidates.nearest, 0
    for place in range(longest):
        choices = candidates.at(place).tolist()
        longer = [(*prefix, token) for prefix in live for token in choices]
        if problem.layout.positions is None:
            longer = [text for text in longer if len(text) <= _LONGEST_RUN or len({*text}) > 1]
        if not longer or watch.expired() or (span is None and len(longer) > 1):
            break
        tried += len(longer)
        distances = _last_distances(problem, span, longer)
        passed = [d <= (span.tolerance if span else 1.0) for d in distances]
        pairs = list(zip(longer, distances, passed, strict=True))
        nearest = min([nearest, *(d for _, d, good in pairs if not good)])
        live = [prefix for prefix, _, good in pairs if good]
        if len(live) > most:
            return Prefixes((), worst, nearest, tried, crowded=True)
        worst |= {p: max(worst[p[:-1]], d) for p, d, good in pairs if good}
        found += live
    if problem.layout.positions is None:
        found = _without_runs(found)
    return Prefixes(tuple(found), worst, nearest, tried, crowded=False)


def _without_runs(prefixes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Without prefixes that repeat their first token and lead nowhere.

    Without positions, attention to equal tokens is attention to one: a token passes again behind
    itself, whatever was there. Only what follows can tell.
    """
    led = {prefix[:n] for prefix in prefixes if len({*prefix}) > 1 for n in range(len(prefix) + 1)}
    return [prefix for prefix in prefixes if len(prefix) == 1 or prefix in led]


def _last_distances(
    problem: TextProblem, span: Span | None, prefixes: list[tuple[int, ...]]
) -> list[float]:
    """The distance of the second block's input at the last position of each prefix."""
    if span is None:
        return [0.0] * len(prefixes)
    reader = reader_of(problem.layout.second)
    tokens = torch.tensor(prefixes)
    pieces: list[Tensor] = []
    for piece in torch.split(tokens, max(1, _PIECE // tokens.shape[1])):
        pieces.append(span.distances(input_of(problem, reader, piece)[:, -1]))
    return torch.cat(pieces).tolist()
