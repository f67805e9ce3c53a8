"""The claim about a text re-checked: its gradient derived again, its tokens laid beside the dump.

An attack does not grade itself. A batch is verified when its gradient equals the dump in every
tensor, when the dump holds more numbers than it has tokens, and when the nearest other token in the
place where that is nearest does not do as well. A sequence without a batch around it is consistent
at most: what it makes the first two blocks read lies in what their gradients span.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from auditor.records import Certainty, Failed
from auditor.text.checks import head_sums_vanish
from auditor.text.classes import classes_are_proved
from auditor.text.hidden import input_of, reader_of
from auditor.text.problem import (
    gradient_of,
    longest_text,
    relative_residual,
    residuals_of,
    tolerance_of,
)
from auditor.text.records import (
    IGNORED,
    TextEvidence,
    TextProblem,
    TextRecovery,
    TokenBatch,
    TokenSet,
)
from auditor.text.span import Span, log_chance, span_of, stacked

# Up to here a residual is small enough to be called consistent, as for pictures.
CONSISTENT = 1e-2
# Numbers in the dump for each token of the batch, at least: fewer would fit several texts.
_NUMBERS = 4
# Zeros among the numbers of a row that has a gradient: pruned or flushed to zero, from here on.
_ZEROS = 0.01
# log10 of the chance that noise passes the span check: one in a million, for a whole sequence.
_CHANCE = -6.0


def examine_text(
    problem: TextProblem, recovery: TextRecovery, *, attack: str, seconds: float
) -> TextEvidence | Failed:
    """Re-derive what is claimed. `Failed` when there is nothing to re-derive."""
    empty = (
        recovery.batch is None
        and recovery.tokens is None
        and recovery.labels is None
        and not recovery.sequences
    )
    if empty:
        ended = "the budget ended before anything was read"
        return Failed(attack, ended if recovery.expired else _notes(recovery))
    claimed, words = _by_spans(problem, recovery)
    found = TextEvidence(
        attack,
        recovery,
        residual=None,
        worst=None,
        sequences=words,
        tokens=None if recovery.tokens is None else _token_certainty(problem, recovery.tokens),
        labels=_label_certainty(problem, recovery),
        seconds=seconds,
        claimed=claimed,
    )
    if recovery.batch is None or not _is_sound(problem, recovery.batch):
        return found
    return _with_batch(problem, found, recovery.batch)


def is_verified_text(evidence: TextEvidence) -> bool:
    """Whether the whole batch was re-derived."""
    return evidence.whole and bool(evidence.sequences) and set(evidence.sequences) == {"verified"}


def sequences_of(batch: TokenBatch) -> tuple[Tensor, ...]:
    """The sequences of a batch without their padding, each (T_n,), on the CPU."""
    pairs = zip(batch.tokens.cpu(), batch.attention.cpu(), strict=True)
    return tuple(tokens[attention] for tokens, attention in pairs)


def shown_sequences(evidence: TextEvidence) -> tuple[Tensor, ...]:
    """The sequences that stood the check, each (T_n,) int64, on the CPU."""
    pairs = zip(evidence.claimed, evidence.sequences, strict=True)
    return tuple(text.cpu() for text, word in pairs if word is not None)


def readable(evidence: TextEvidence) -> tuple[Tensor, ...]:
    """The sequences that stood the check; of a masked model, with the hidden tokens filled in."""
    batch = evidence.recovery.batch
    if batch is None or not evidence.whole:
        return shown_sequences(evidence)
    return sequences_of(filled(batch))


def filled(batch: TokenBatch) -> TokenBatch:
    """The batch with the tokens that a masked model had to guess; others are as they were."""
    if batch.labels.shape != batch.tokens.shape:
        return batch
    return replace(batch, tokens=torch.where(batch.labels == IGNORED, batch.tokens, batch.labels))


def _notes(recovery: TextRecovery) -> str:
    return "; ".join(recovery.notes) or "nothing was found; an attack that failed proves nothing"


# --------------------------------------------------------------------------- whole batches


def _with_batch(problem: TextProblem, found: TextEvidence, batch: TokenBatch) -> TextEvidence:
    """The same evidence with what the batch's gradient says."""
    gradient = gradient_of(problem, batch)
    layers = {name: _finite(value) for name, value in residuals_of(problem, gradient).items()}
    worst = max(layers.values())
    found = replace(
        found, residual=_finite(relative_residual(problem, gradient)), worst=worst, layers=layers
    )
    if worst > max(CONSISTENT, tolerance_of(problem)):
        return found
    sure = worst <= tolerance_of(problem) and _is_told_apart(problem, batch)
    word: Certainty = "verified" if sure else "consistent"
    claimed = sequences_of(batch)
    return replace(found, sequences=(word,) * len(claimed), claimed=claimed, whole=True)


def _is_sound(problem: TextProblem, batch: TokenBatch) -> bool:
    """A batch that a client can have: its size is the one said, its padding is on the right."""
    size, known = len(batch.tokens), problem.knowledge.batch_size
    inside = (batch.tokens >= 0) & (batch.tokens < problem.layout.vocabulary)
    ordered = (batch.attention[:, 1:] <= batch.attention[:, :-1]).all()
    return bool(
        size > 0
        and known in {None, size}
        and batch.tokens.shape[1] <= longest_text(problem.module)
        and inside.all()
        and ordered
        and batch.attention[:, 0].all()
    )


def _is_told_apart(problem: TextProblem, batch: TokenBatch) -> bool:
    """Whether another text would have shown: enough numbers, and the nearest token does worse."""
    numbers = sum(sent.numel() for sent in problem.gradient.values())
    if numbers < _NUMBERS * int(batch.attention.sum()):
        return False
    other = gradient_of(problem, _neighbour(problem, batch))
    return max(residuals_of(problem, other).values()) > tolerance_of(problem)


def _neighbour(problem: TextProblem, batch: TokenBatch) -> TokenBatch:
    """The batch with one token replaced by another: the two whose embeddings are nearest."""
    table = dict(problem.module.named_parameters())[problem.layout.embedding].detach()
    there = torch.unique(batch.tokens[batch.attention]).to(table.device)
    apart = torch.cdist(table[there], table)
    apart[torch.arange(len(there)), there] = math.inf
    row, other = divmod(int(apart.argmin()), len(table))
    places = ((batch.tokens == int(there[row])) & batch.attention).nonzero()
    first = tuple(places[0].tolist())
    tokens, labels = batch.tokens.clone(), batch.labels.clone()
    if labels.shape == tokens.shape and int(labels[first]) == int(tokens[first]):
        labels[first] = other
    tokens[first] = other
    return replace(batch, tokens=tokens, labels=labels)


# --------------------------------------------------------------------------- parts


def _by_spans(
    problem: TextProblem, recovery: TextRecovery
) -> tuple[tuple[Tensor, ...], tuple[Certainty | None, ...]]:
    """The sequences, consistent where both first blocks read what their gradients span.

    The last token of a causal text is never read for the loss, only guessed: it is left out.
    """
    spans, claimed = _spans(problem), []
    words: list[Certainty | None] = []
    for tokens in recovery.sequences:
        fits = bool(spans) and len(tokens) <= longest_text(problem.module)
        stands = _standing(problem, spans, tokens) if fits else 0
        short = problem.knowledge.task == "causal" and stands == len(tokens) - 1 > 1
        claimed.append(tokens[:-1] if short else tokens)
        words.append("consistent" if stands and (short or stands == len(tokens)) else None)
    return tuple(claimed), tuple(words)


def _spans(problem: TextProblem) -> list[tuple[str, Span]]:
    """What the gradients of the first two blocks span, with the module that reads it."""
    spans = []
    for projections in (problem.layout.first, problem.layout.second):
        matrix = stacked(problem.gradient, projections) if projections else None
        span = None if matrix is None else span_of(matrix, precision=problem.precision)
        if span is None or isinstance(span, str):
            return []
        spans.append((reader_of(projections), span))
    return spans


def _standing(problem: TextProblem, spans: list[tuple[str, Span]], tokens: Tensor) -> int:
    """How many tokens, from the first one on, make both blocks read what is in the span."""
    candidates = float(problem.layout.vocabulary * len(tokens))
    inside = torch.ones(len(tokens), dtype=torch.bool)
    for reader, span in spans:
        if log_chance(span, candidates) > _CHANCE:
            return 0
        far = span.distances(input_of(problem, reader, tokens[None])[0])
        inside &= (far <= span.tolerance).cpu()
    return int(inside.long().cumprod(0).sum())


def _token_certainty(problem: TextProblem, claim: TokenSet) -> Certainty | None:
    """Proved when every claimed token shows by itself, and no other one does where all are claimed.

    None for a claim of no token, or of every one that there is: that is noise.
    """
    if len(claim.present) in {0, problem.layout.vocabulary}:
        return None
    rows, negative = _rows(problem), _negative(problem)
    shown = rows | negative
    named = torch.zeros_like(shown)
    named[claim.present.to(shown.device)] = True
    if not head_sums_vanish(problem) or bool((named & ~shown).any()):
        return "estimated"
    others = bool((rows & ~named).any())
    if claim.complete and (others or not bool(rows.any()) or _is_thinned(problem, rows)):
        return "estimated"
    return "proved"


def _rows(problem: TextProblem) -> Tensor:
    """Tokens (V,) whose row of the embedding has a gradient; none where that says nothing.

    An embedding that is the head as well has a gradient everywhere, and so has one with noise.
    """
    layout, sent = problem.layout, problem.gradient.get(problem.layout.embedding)
    if sent is None or layout.tied:
        device = next(iter(problem.gradient.values())).device
        return torch.zeros(layout.vocabulary, dtype=torch.bool, device=device)
    rows = sent.abs().amax(1) > 0
    return torch.zeros_like(rows) if bool(rows.all()) else rows


def _negative(problem: TextProblem) -> Tensor:
    """Tokens (V,) that a loss over tokens had as a label: p - y is negative there alone."""
    bias = problem.layout.head_bias
    sent = None if bias is None else problem.gradient.get(bias)
    if sent is None or problem.knowledge.task == "classification":
        return torch.zeros_like(_rows(problem))
    return torch.lt(sent, -problem.precision * sent.norm())


def _is_thinned(problem: TextProblem, rows: Tensor) -> bool:
    """Whether rows with a gradient have many zeros in them: then whole rows may be missing."""
    sent = problem.gradient[problem.layout.embedding][rows]
    return float((sent == 0).double().mean()) > _ZEROS


def _label_certainty(problem: TextProblem, recovery: TextRecovery) -> Certainty | None:
    if recovery.labels is None:
        return None
    return "proved" if classes_are_proved(problem, recovery.labels) else "estimated"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
