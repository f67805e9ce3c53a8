"""Recovered texts for people: spelled out by the tokenizer, or as token numbers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from auditor.records import Exhibit
from auditor.text.evidence import (
    filled,
    is_verified_text,
    readable,
    sequences_of,
    shown_sequences,
)
from auditor.text.findings import bare
from auditor.text.metrics import matched
from auditor.text.records import TextEvidence, TextProblem, TextTruth


def most_telling_text(evidence: tuple[TextEvidence, ...]) -> TextEvidence | None:
    """The evidence with a whole batch that was re-derived, else with most sequences shown."""
    shown = [e for e in evidence if any(e.sequences)]
    return max(
        shown,
        key=lambda e: (is_verified_text(e), len(e.sequences) - e.sequences.count(None)),
        default=None,
    )


def text_evidence(
    problem: TextProblem, evidence: tuple[TextEvidence, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """What leaked, for its owner alone, all int64: `tokens` (N, T), `lengths` (N,), `labels`, and
    the set of `present` tokens; and one text a sequence. Empty when nothing leaked."""
    tensors: dict[str, Tensor] = {}
    telling, lines = most_telling_text(evidence), list[str]()
    if telling is not None:
        texts = shown_sequences(telling)
        tensors["tokens"] = pad_sequence(
            list(texts), batch_first=True, padding_value=problem.knowledge.padding or 0
        )
        tensors["lengths"] = torch.tensor([len(text) for text in texts])
        lines = [spelled(problem, text) for text in readable(telling)]
        if telling.whole and telling.recovery.batch is not None:
            tensors["labels"] = telling.recovery.batch.labels.cpu().clone()
    for entry in evidence:
        if entry.recovery.tokens is not None and entry.tokens is not None:
            tensors["present"] = entry.recovery.tokens.present.cpu().clone()
        if entry.recovery.labels is not None and "labels" not in tensors:
            tensors["labels"] = entry.recovery.labels.cpu().clone()
    return tensors, lines


def text_exhibits(
    problem: TextProblem, evidence: TextEvidence, truth: TextTruth | None
) -> tuple[Exhibit, ...]:
    """One text a sequence that stood the check, beside the true one when that was given."""
    texts = readable(evidence)
    words = [word for word in evidence.sequences if word is not None]
    true = [None] * len(texts) if truth is None else _beside(problem, texts, truth)
    labels = _labels(problem, evidence, len(texts))
    return tuple(
        Exhibit(place, label, word, (), (), None, text=spelled(problem, tokens), true_text=near)
        for place, (tokens, word, label, near) in enumerate(
            zip(texts, words, labels, true, strict=True)
        )
    )


def spelled(problem: TextProblem, tokens: Tensor) -> str:
    """The text of tokens (T,): what the tokenizer makes of them, else their numbers.

    Bytes that are no character become U+FFFD; special tokens stay visible.
    """
    numbers = [int(token) for token in tokens]
    if problem.tokenizer is None:
        return " ".join(str(number) for number in numbers)
    return str(cast(Any, problem.tokenizer).decode(numbers, clean_up_tokenization_spaces=False))


def _labels(problem: TextProblem, evidence: TextEvidence, count: int) -> list[str]:
    batch = evidence.recovery.batch
    if problem.knowledge.task != "classification":
        return ["no class"] * count
    if batch is None or not evidence.whole:
        return ["not read"] * count
    return [f"class {int(label)}" for label in batch.labels]


def _beside(problem: TextProblem, texts: tuple[Tensor, ...], truth: TextTruth) -> list[str | None]:
    """For each claim the true text that goes with it; None where there is none left."""
    true = sequences_of(filled(truth.batch))
    ours = [bare(problem, text) for text in texts]
    near = matched([bare(problem, each) for each in true], ours)
    return [None if place is None else spelled(problem, true[place]) for place in near]
