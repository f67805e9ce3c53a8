"""From texts to the batch that the harness derives again: the labels that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.text.attacks.prefixes import Prefixes
from auditor.text.head import LabelsAt, Places, class_labels, labels_at, places_of
from auditor.text.records import IGNORED, TextProblem, TokenBatch

_HEAD = "the dump does not hold the gradient of the head: last tokens and labels are open"
_OPEN = "not every label could be read off the head: the batch is not whole"


@dataclass(frozen=True)
class Assembled:
    """The texts of a decoder, and the batch when it is whole."""

    texts: tuple[tuple[int, ...], ...]
    worst: tuple[float, ...]  # the largest distance in each
    batch: TokenBatch | None
    notes: tuple[str, ...] = ()


def padded(problem: TextProblem, texts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Tokens and attention (N, T), padded on the right."""
    filler = problem.knowledge.padding or 0
    longest = max(map(len, texts))
    tokens = torch.tensor([[*text] + [filler] * (longest - len(text)) for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    return tokens, torch.arange(longest) < lengths[:, None]


def decoder_texts(problem: TextProblem, grown: Prefixes) -> Assembled:
    """Where the texts end, and with which last token: that one enters nothing and is a label only.

    What cannot be read off the head leaves the longest prefixes, and no batch.
    """
    if not grown.found:
        return Assembled((), (), None)
    leaves = Assembled(grown.leaves, tuple(grown.worst[leaf] for leaf in grown.leaves), None)
    places = _places(problem, grown)
    if problem.knowledge.task == "classification":
        found = class_labels(problem, places)
        return leaves if found is None else _classified(problem, grown, found)
    read = _next_tokens(problem, grown, places)
    if read is None:
        return replace(leaves, notes=(_HEAD,))
    texts = _endings(grown, read)
    if not texts or not read.complete:
        return replace(leaves, notes=(_OPEN,))
    tokens, attention = padded(problem, texts)
    labels = tokens.masked_fill(~attention, IGNORED)
    worst = tuple(grown.worst[text[:-1]] for text in texts)
    return Assembled(tuple(texts), worst, TokenBatch(tokens, attention, labels))


def encoder_batch(
    problem: TextProblem, texts: tuple[Tensor, ...]
) -> tuple[TokenBatch | None, tuple[str, ...]]:
    """The batch of an encoder's texts (each (T_n,)) with their labels, or why there is none."""
    if not texts:
        return None, ()
    tokens, attention = padded(problem, [tuple(text.tolist()) for text in texts])
    if problem.knowledge.task == "classification":
        at = torch.stack([torch.arange(len(tokens)), torch.zeros(len(tokens)).long()], dim=1)
        found = class_labels(problem, places_of(problem, tokens, attention, at))
        if found is None:
            return None, (_OPEN,)
        rows = torch.tensor([place for place, labels in found.items() for _ in labels])
        labels = torch.tensor([label for several in found.values() for label in several])
        return TokenBatch(tokens[rows], attention[rows], labels), ()
    at = attention.nonzero()
    places = places_of(problem, tokens, attention, at)
    read = labels_at(problem, places, entered=torch.unique(tokens[attention]), next_place={})
    if read is None or not read.complete or max(read.totals) > 1:
        return None, (_OPEN,)
    labels = torch.full_like(tokens, IGNORED)
    for place, token in read.counts:
        labels[tuple(at[place])] = token
    return TokenBatch(tokens, attention, labels), ()


def _places(problem: TextProblem, grown: Prefixes) -> Places:
    """One place for each prefix: its last position."""
    tokens, attention = padded(problem, list(grown.leaves))
    within = {leaf[:n]: (i, n - 1) for i, leaf in enumerate(grown.leaves) for n in _lengths(leaf)}
    at = torch.tensor([within[prefix] for prefix in grown.found])
    return places_of(problem, tokens, attention, at)


def _lengths(text: tuple[int, ...]) -> range:
    return range(1, len(text) + 1)


def _next_tokens(problem: TextProblem, grown: Prefixes, places: Places) -> LabelsAt | None:
    index = {prefix: place for place, prefix in enumerate(grown.found)}
    longer = [prefix for prefix in grown.found if len(prefix) > 1]
    next_place = {(index[prefix[:-1]], prefix[-1]): index[prefix] for prefix in longer}
    roots = tuple(index[prefix] for prefix in grown.found if len(prefix) == 1)
    entered = torch.unique(torch.tensor([token for leaf in grown.leaves for token in leaf]))
    return labels_at(problem, places, entered=entered, next_place=next_place, roots=roots)


def _endings(grown: Prefixes, read: LabelsAt) -> list[tuple[int, ...]]:
    """The texts, each as often as it occurs: labels that no longer prefix accounts for."""
    totals = dict(zip(grown.found, read.totals, strict=True))
    texts = []
    for (place, token), count in sorted(read.counts.items()):
        text = (*grown.found[place], token)
        texts += [text] * (count - totals.get(text, 0))
    return texts


def _classified(
    problem: TextProblem, grown: Prefixes, found: Mapping[int, tuple[int, ...]]
) -> Assembled:
    texts = [grown.found[place] for place, labels in found.items() for _ in labels]
    tokens, attention = padded(problem, texts)
    labels = torch.tensor([label for several in found.values() for label in several])
    worst = tuple(grown.worst[text] for text in texts)
    return Assembled(tuple(texts), worst, TokenBatch(tokens, attention, labels))
