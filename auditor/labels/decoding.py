"""The labels of a small batch by feature matching, and how far to believe them.

The search (search.py) tells the labels of the samples that can be seen in the dump. Those that
leave nothing are guessed: the model is sure of them, and with reference pictures the classes of
which the model is surest are the likeliest. How often such labels are right is counted on simulated
clients whose pictures the search did not begin from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.labels.matching import Fit, Rows, rows_of, strongest, with_pull
from auditor.labels.posterior import Isotonic, isotonic, right_in_order, spread_out
from auditor.labels.reference import Reference
from auditor.labels.rules import Heads, Layer
from auditor.labels.search import Limits, Starts, counts_of_guesses, search
from auditor.labels.simulation import Bounds, Client, counts_of, draw, heads_of

_LARGEST = 16  # batch
_WORK = 1_000_000  # K r^5, multiplications of one step of one guess
_ONE_MORE = 100.0  # roundings: a direction of that size beyond the N-th is one sample more
_DUMPS = 16  # simulated clients
_GUESSED = -2.0  # margins of labels that left no trace lie about here, those of others above nought


@dataclass(frozen=True)
class Decoded:
    """What to add to the proved counts, in the form of `spread_out`."""

    added: Tensor  # (J,) labels
    margins: Tensor  # (J,)
    seen: Tensor  # (J,) bool: found by the search; the others left no trace
    excess: float  # misfit of the best guess, per equation


@dataclass(frozen=True)
class Trust:
    """What simulated clients say of the search."""

    map: Isotonic
    overlap: float  # mean instance accuracy of the search
    rival: float  # that of the other estimate, on the same dumps


@dataclass(frozen=True)
class Decoder:
    """The search, with what it begins from."""

    layer: Layer
    size: int  # N
    precision: float
    reference: Reference
    pictures: Tensor  # (M',) rows of the reference that may be used

    def __call__(
        self, heads: Heads, limits: Limits, *, seed: int, expired: Callable[[], bool]
    ) -> Decoded | None:
        """None when the dump cannot be read this way."""
        rows = self._rows(heads)
        if rows is None:
            return None
        found = search(
            rows,
            limits,
            self._starts(),
            generator=torch.Generator().manual_seed(seed),
            expired=expired,
        )
        return None if found is None else self._decoded(found, rows, limits)

    def _rows(self, heads: Heads) -> Rows | None:
        """The directions of at most N samples; None when there are too many, or too few classes."""
        features = self.reference.features[self.pictures]
        rows = rows_of(
            heads, self.layer, precision=self.precision, typical=float(features.norm(dim=1).mean())
        )
        size, classes = self.size, len(self.layer.matrix)
        if rows.size > size and float(rows.values[size]) > _ONE_MORE:
            return None
        rows = strongest(rows, min(rows.size, size), clean=True)
        saturated = rows.size >= classes - int(rows.size < size)
        if rows.size == 0 or saturated or classes * rows.size**5 > _WORK:
            return None
        if self.reference.labels is None:
            return rows
        return with_pull(rows, features, self.reference.labels[self.pictures])

    def _starts(self) -> Starts:
        labels = self.reference.labels
        if labels is None:
            labels = self.reference.probabilities.argmax(1)
        return Starts(self.reference.features[self.pictures], labels[self.pictures])

    def _decoded(self, found: Fit, rows: Rows, limits: Limits) -> Decoded:
        counts = counts_of_guesses(found.labels, len(limits.lower))
        best, excess = counts[0], float(found.misfit[0]) / rows.target.numel()
        added = torch.repeat_interleave(torch.arange(len(best)), best - limits.lower)
        copy = torch.arange(len(added)) - torch.searchsorted(added, added)
        level = limits.lower[added] + copy  # other guesses have the label if they count more
        other = torch.where(counts[:, added] <= level, found.misfit[:, None], found.misfit.max())
        margins = torch.log1p((other.amin(0) - found.misfit[0]) / max(excess, 1.0))
        guessed, hopes = spread_out(best + self._share(rows.size), best, limits.upper, self.size)
        return Decoded(
            torch.cat([added, guessed]),
            torch.cat([margins, _GUESSED + hopes.clamp(-1, 1)]),
            torch.cat([torch.ones_like(added), torch.zeros_like(guessed)]).bool(),
            excess,
        )

    def _share(self, seen: int) -> Tensor:
        """Expected counts (K,) of the samples that left no trace: the model is sure of them."""
        classes, unseen = len(self.layer.matrix), self.size - seen
        even = torch.full((classes,), 1 / classes, dtype=torch.float64)
        labels = self.reference.labels
        if labels is None or unseen == 0:
            return unseen * even
        labels = labels[self.pictures]
        others = self.reference.probabilities[self.pictures].scatter(1, labels[:, None], 0.0)
        surest = others.sum(1).argsort()[: max(1, len(labels) * unseen // self.size)]
        counts = torch.bincount(labels[surest], minlength=classes)
        return unseen * (counts + 1) / (len(surest) + classes)


def readable(heads: Heads, size: int, smoothing: float) -> bool:
    """Whether the search applies at all."""
    return heads.weight is not None and 2 <= size <= _LARGEST and smoothing == 0


def trust(
    client: Client,
    reference: Reference,
    layer: Layer,
    bounds: Bounds,
    expected: Callable[[Heads], Tensor],
    *,
    seed: int,
    expired: Callable[[], bool],
) -> Trust | None:
    """Run the search on simulated clients, beside the counts (1, K) that a rival expects.

    None when it says nothing of most of them, or the time is over.
    """
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randperm(len(reference.features), generator=generator).chunk(2)
    margins: list[float] = []
    right: list[float] = []
    found: list[tuple[float, float]] = []
    for index in range(_DUMPS):
        known, unknown = halves[index % 2], halves[1 - index % 2]
        drawn = draw(client, reference, unknown, 1, generator)
        heads = heads_of(client, reference, drawn)
        lower = bounds(heads)[0].long()
        counts = counts_of(drawn.labels, client.classes)[0]
        upper = client.size - lower.sum() + lower
        decoder = Decoder(layer, client.size, client.precision, reference, known)
        answer = decoder(heads, Limits(lower, upper), seed=seed + index, expired=expired)
        if expired():
            return None
        if answer is None:
            continue
        rival, _ = spread_out(expected(heads)[0], lower, upper, client.size)
        found.append((_overlap(answer.added, lower, counts), _overlap(rival, lower, counts)))
        right_in_order(answer.added, answer.margins, lower, counts, margins, right)
    if 2 * len(found) < _DUMPS:
        return None
    mine, other = torch.tensor(found).mean(0).tolist()
    taught = isotonic(torch.tensor(margins).double(), torch.tensor(right).double())
    return Trust(taught, mine, other)


def _overlap(added: Tensor, lower: Tensor, counts: Tensor) -> float:
    """Instance accuracy of the proved and the added labels."""
    claimed = lower + torch.bincount(added, minlength=len(lower))
    return float(torch.minimum(claimed, counts).sum() / counts.sum())
