"""Whole texts by the spans of the first two blocks' inputs (DAGER).

First, which token can stand at which position: its embedding lies in the row space of the gradients
of the first block's query, key and value. Then, which of them make a text: the second block's
inputs lie in that of the second block's. Labels follow in closed form from the head (head.py), and
with them the batch, which the harness derives again.
Source: Petrov, Dimitrov, Baader, Müller, Vechev 2024, arXiv:2405.15586.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from auditor.text.attacks.assembly import Assembled, decoder_texts, encoder_batch
from auditor.text.attacks.base import Watch
from auditor.text.attacks.combinations import CLEAR, combine
from auditor.text.attacks.prefixes import grow
from auditor.text.candidates import Candidates, candidates_of
from auditor.text.embedding import entered_tokens, longest_of
from auditor.text.problem import longest_text
from auditor.text.records import Projection, TextProblem, TextRecovery
from auditor.text.span import Span, log_chance, span_of, stacked

_LIVE = 256  # prefixes of a decoder that are followed, when the batch size is unknown
_NONE = "no text was found whose every position fits"
_SPARE = 8  # for each text of the batch, when it is known


@dataclass(frozen=True)
class Spans:
    """Checks tokens against spans, then texts; exact or nothing."""

    longest: int = 128  # tokens of a text, when neither the dump nor anybody says
    most_tried: int = 40_000  # texts of an encoder that are checked
    name: str = "text.spans"
    title: str = "Texts by the spans of the first two blocks' inputs (DAGER)"

    def blocked_by(self, problem: TextProblem) -> str | None:
        matrix = stacked(problem.gradient, problem.layout.first)
        if matrix is None:
            return "the dump does not hold the gradients of the first block's projections"
        span = span_of(matrix, precision=problem.precision)
        return span if isinstance(span, str) else None

    def run(self, problem: TextProblem, *, seed: int, watch: Watch) -> TextRecovery:
        first = _span(problem, problem.layout.first)
        assert isinstance(first, Span), "blocked_by was not asked"
        second = _span(problem, problem.layout.second)
        if isinstance(second, Span) and second.rank < first.rank:
            second = "the second block's gradient holds fewer inputs than the first one's"
        length = min(longest_of(problem) or self.longest, longest_text(problem.module))
        words = entered_tokens(problem)
        if words is None:
            words = torch.arange(problem.layout.vocabulary)
        candidates = candidates_of(problem, first, words, length, watch.expired)
        if problem.layout.causal:
            return _decoder(problem, first, second, candidates, length, watch)
        return self._encoder(problem, second, candidates, length, seed, watch)

    def _encoder(
        self,
        problem: TextProblem,
        second: Span | str,
        candidates: Candidates,
        length: int,
        seed: int,
        watch: Watch,
    ) -> TextRecovery:
        if isinstance(second, str):
            return TextRecovery(expired=watch.expired(), notes=(_unordered(second),))
        found = combine(
            problem,
            second,
            candidates,
            longest=length,
            seed=seed,
            most_tried=self.most_tried,
            watch=watch,
        )
        batch, notes = encoder_batch(problem, found.found)
        notes = notes if found.found else (_NONE,)
        chance = log_chance(second, found.tried)
        return TextRecovery(
            sequences=found.found,
            chances=(chance,) * len(found.found),
            margins=tuple(_margin(worst, found.nearest) for worst in found.worst),
            batch=batch,
            evaluations=found.tried,
            expired=watch.expired(),
            notes=notes,
        )


def _span(problem: TextProblem, projections: tuple[Projection, ...]) -> Span | str:
    matrix = stacked(problem.gradient, projections)
    if matrix is None:
        return "the dump does not hold the gradients of the second block's projections"
    return span_of(matrix, precision=problem.precision)


def _decoder(
    problem: TextProblem,
    first: Span,
    second: Span | str,
    candidates: Candidates,
    length: int,
    watch: Watch,
) -> TextRecovery:
    size = problem.knowledge.batch_size
    span = second if isinstance(second, Span) else None
    most = _LIVE if size is None else _SPARE * size
    grown = grow(problem, span, candidates, longest=length, most=most, watch=watch)
    notes = [_unordered(second)] if isinstance(second, str) else []
    if grown.crowded:
        notes.append("more beginnings passed than can be followed: none was")
    texts = _clear(decoder_texts(problem, grown), grown.nearest, size)
    if not texts.texts:
        notes.append(_NONE)
    tried = grown.tried if span else candidates.tried
    chance = log_chance(span or first, tried)
    return TextRecovery(
        sequences=tuple(torch.tensor(text) for text in texts.texts),
        chances=(chance,) * len(texts.texts),
        margins=tuple(_margin(worst, grown.nearest) for worst in texts.worst),
        batch=texts.batch,
        evaluations=grown.tried,
        expired=watch.expired(),
        notes=(*notes, *texts.notes),
    )


def _clear(found: Assembled, nearest: float, size: int | None) -> Assembled:
    """Without texts that are hardly nearer to the span than what was rejected."""
    if found.batch is None and size is not None and len(found.texts) > size:
        return Assembled((), (), None, (*found.notes, "more texts passed than the batch holds"))
    if any(worst > CLEAR * nearest for worst in found.worst):
        return Assembled((), (), None, (*found.notes, "right and wrong tokens lie equally near"))
    return found


def _unordered(reason: str) -> str:
    return f"texts could not be checked at the second block: {reason}"


def _margin(worst: float, nearest: float) -> float:
    return worst / max(nearest, 1e-30)
