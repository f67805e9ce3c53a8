"""Texts of an encoder: one token of each position's candidates, until every position fits.

Each position sees all others, so only a whole text can be checked. The sum of the squared distances
of the second block's inputs falls as more of the tokens are right, and single exchanges lead down.
Petrov et al. 2024 (DAGER), arXiv:2405.15586, enumerate; we descend, from several starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.text.candidates import Candidates
from auditor.text.hidden import input_of, reader_of
from auditor.text.records import TextKnowledge, TextProblem
from auditor.text.span import Span

_PIECE = 1 << 12  # tokens that go through the first block at a time
_STARTS = 6  # for each text that may be there
_MOST_EXCHANGES = 4096  # in one step
CLEAR = 0.1  # what passes is this much nearer than what does not, or it is not told apart


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts whose every position passed."""

    found: tuple[Tensor, ...]  # each (T_n,) int64
    worst: tuple[float, ...]  # the largest distance in each
    nearest: float  # the least of the largest distances of texts that did not pass
    tried: int


@dataclass(frozen=True)
class _End:
    """Where a descent ended."""

    text: tuple[int, ...]
    worst: float  # its largest distance
    nearest: float  # the least of the largest distances of texts that differ in one token


@dataclass
class _Search:
    """One length: its choices and what was found so far."""

    problem: TextProblem
    span: Span
    choices: list[Tensor]  # each (k_t,)
    most_tried: int
    tried: int = 0
    nearest: float = 1.0

    def distances(self, texts: Tensor) -> Tensor:
        """(M, T) for texts (M, T)."""
        reader = reader_of(self.problem.layout.second)
        self.tried += len(texts)
        pieces = torch.split(texts, max(1, _PIECE // texts.shape[1]))
        return torch.cat([self.span.distances(input_of(self.problem, reader, p)) for p in pieces])

    def is_over(self, watch: Watch) -> bool:
        return self.tried >= self.most_tried or watch.expired()

    def descend(self, text: Tensor, watch: Watch) -> _End:
        """Exchange tokens one at a time, the best first, until none helps."""
        here, nearest = self.distances(text[None])[0], 1.0
        while not self.is_over(watch):
            changed = _exchanges(text, self.choices)
            if not len(changed):
                break
            there = self.distances(changed)
            nearest = float(there.amax(1).min())
            best = int(there.square().sum(1).argmin())
            if there[best].square().sum() >= here.square().sum():
                break
            text, here = changed[best], there[best]
        return _End(tuple(text.tolist()), float(here.max()), nearest)


def _exchanges(text: Tensor, choices: list[Tensor]) -> Tensor:
    """Every text (M, T) that differs from `text` (T,) in one position."""
    changed = []
    for place, tokens in enumerate(choices):
        for token in tokens[tokens != text[place]].tolist():
            other = text.clone()
            other[place] = token
            changed.append(other)
    return torch.stack(changed[:_MOST_EXCHANGES]) if changed else text.new_zeros(0, len(text))


def combine(
    problem: TextProblem,
    span: Span,
    candidates: Candidates,
    *,
    longest: int,
    seed: int,
    most_tried: int,
    watch: Watch,
) -> Texts:
    """Search at every length that a text may have, the longest first; check `most_tried` texts."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], float] = {}
    nearest, tried, most = 1.0, 0, problem.knowledge.batch_size
    lengths = [
        (length, choices)
        for length in range(longest, 0, -1)
        if all(map(len, choices := _choices(problem.knowledge, candidates, length)))
    ]
    for place, (_, choices) in enumerate(lengths):
        share = (most_tried - tried) // (len(lengths) - place)
        search = _Search(problem, span, choices, share)
        _search_length(search, found, most, generator, watch)
        nearest, tried = min(nearest, search.nearest), tried + search.tried
    texts = tuple(torch.tensor(text) for text in found)
    return Texts(texts, tuple(found.values()), nearest, tried)


def _search_length(
    search: _Search,
    found: dict[tuple[int, ...], float],
    most: int | None,
    generator: torch.Generator,
    watch: Watch,
) -> None:
    """Descend from several starts; tokens that no text holds yet come first in a start."""
    widest = max(len(tokens) for tokens in search.choices)
    for _ in range(1 if widest == 1 else _STARTS * widest):
        if search.is_over(watch) or (len(found) == most if most else _covered(search, found)):
            return
        used = [
            {text[place] for text in found if place < len(text)}
            for place in range(len(search.choices))
        ]
        start = [_draw(t, used[place], generator) for place, t in enumerate(search.choices)]
        end = search.descend(torch.tensor(start), watch)
        if end.worst > search.span.tolerance:
            search.nearest = min(search.nearest, end.worst)
        elif end.worst <= CLEAR * end.nearest:
            search.nearest = min(search.nearest, end.nearest)
            found.setdefault(end.text, end.worst)


def _covered(search: _Search, found: dict[tuple[int, ...], float]) -> bool:
    """Whether the texts that were found account for every candidate of this length."""
    return all(
        {*tokens.tolist()} <= {text[place] for text in found if place < len(text)}
        for place, tokens in enumerate(search.choices)
    )


def _draw(tokens: Tensor, used: set[int], generator: torch.Generator) -> int:
    every: list[int] = tokens.tolist()
    fresh = [token for token in every if token not in used] or every
    return fresh[int(torch.randint(len(fresh), (1,), generator=generator))]


def _choices(known: TextKnowledge, candidates: Candidates, length: int) -> list[Tensor]:
    """The candidates of each position in a text of this length: start and end are known."""
    choices = [candidates.at(place) for place in range(length)]
    choices = [t[t != known.padding] if known.padding is not None else t for t in choices]
    if known.start is not None:
        choices[0] = choices[0][choices[0] == known.start]
    if known.end is not None:
        choices[-1] = choices[-1][choices[-1] == known.end]
    return choices
