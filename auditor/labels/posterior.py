"""The estimate of a batch's labels, and how often such an estimate is right.

Simulated clients teach how to weigh the rules against each other: a ridge regression, with weights
that all classes share, from the scores of a class to its count beyond the proved one. Half of the
pictures make the class posteriors, the other half the batches, and the other way round. On the
batches that were not used for the weights, the same estimator is run, and an isotonic map takes the
margin of each label of its estimates to the share of them that were right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from auditor.labels.reference import Reference
from auditor.labels.rules import (
    Heads,
    Layer,
    LeastVariance,
    Posterior,
    least_variance,
    posterior_of,
    scores,
)
from auditor.labels.simulation import Bounds, Client, counts_of, draw, heads_of

_RIDGE = 1e-6  # relative to the scores' own scatter
_DUMPS, _FEWEST = 150, 40  # simulated clients of one half of the pictures
_WORK = 3_000_000_000  # multiplications that one half may cost beyond the fewest
_AT_ONCE = 20_000_000  # multiplications of one chunk


@dataclass(frozen=True)
class Isotonic:
    """A step function that never falls: P(right) by margin."""

    margins: Tensor  # (J,) sorted
    shares: Tensor  # (J,) non-decreasing

    def __call__(self, margins: Tensor) -> Tensor:
        if len(self.margins) == 0:
            return torch.full_like(margins, 0.5)
        place = torch.searchsorted(self.margins, margins.contiguous(), right=True) - 1
        return self.shares[place.clamp_min(0)]


def isotonic(margins: Tensor, right: Tensor) -> Isotonic:
    """The non-decreasing map with the least squared error: pool adjacent violators.

    `margins` (J,), `right` (J,) of 0 and 1. Each pool is drawn towards one half by one trial of
    either outcome, so that nothing is called certain by a small count.
    """
    order = margins.argsort(stable=True)
    pools: list[tuple[float, float, float]] = []  # right, trials, lowest margin
    for margin, hit in zip(margins[order].tolist(), right[order].tolist(), strict=True):
        hits, trials, low = float(hit), 1.0, margin
        while pools and pools[-1][0] * trials >= hits * pools[-1][1]:
            before = pools.pop()
            hits, trials, low = hits + before[0], trials + before[1], before[2]
        pools.append((hits, trials, low))
    shares = [(hits + 1) / (trials + 2) for hits, trials, _ in pools]
    lows = torch.tensor([low for _, _, low in pools], dtype=torch.float64)
    return Isotonic(lows, torch.tensor(shares, dtype=torch.float64).cummax(0).values)


@dataclass(frozen=True)
class Weights:
    """The ridge regression."""

    center: Tensor  # (F,)
    scale: Tensor  # (F,)
    factors: Tensor  # (F,)
    constant: float

    def __call__(self, found: Tensor) -> Tensor:
        return ((found - self.center) / self.scale) @ self.factors + self.constant


def ridge(found: Tensor, wanted: Tensor) -> Weights:
    """Weights from scores (..., F) to counts (...)."""
    flat = found.reshape(-1, found.shape[-1])
    center, scale = flat.mean(0), flat.std(0).clamp_min(1e-9)
    normed, constant = (flat - center) / scale, float(wanted.mean())
    system = normed.mT @ normed + _RIDGE * len(flat) * torch.eye(flat.shape[1], dtype=flat.dtype)
    right = normed.mT @ (wanted.reshape(-1) - constant)
    return Weights(center, scale, torch.linalg.solve(system, right), constant)


@dataclass(frozen=True)
class Estimator:
    """A rule for this model and batch size, learnt from simulated clients."""

    layer: Layer
    bounds: Bounds
    posterior: Posterior
    linear: LeastVariance
    weights: Weights | None  # None: nothing is gained over an even spread
    map: Isotonic
    typical: Tensor  # (3,) mean of `_looks` over simulated dumps
    scatter: Tensor  # (3, 3)

    def expected(self, heads: Heads) -> Tensor:
        """Expected counts (S, K)."""
        if self.weights is None:
            return evenly(heads, round(self.linear.share * len(self.linear.gain)))
        lower = self.bounds(heads)
        found = scores(heads, lower, self.layer, self.posterior, self.linear)
        return lower + self.weights(found)

    def unlikeness(self, heads: Heads) -> float:
        """Squared distance of one dump from the simulated ones, in standard deviations."""
        apart = _looks(heads, self.posterior, self.linear)[0] - self.typical
        return float(apart @ torch.linalg.solve(self.scatter, apart))


def evenly(heads: Heads, size: int) -> Tensor:
    """Equal expected counts (S, K), a little more for rows with the lowest entries.

    The order of GradInversion (Yin et al. 2021, arXiv:2104.07586); without weights, that of the
    bias. On a trained ResNet-20 it is right a little more often than that of row sums
    (benchmarks/labels.py).
    """
    rows = heads.bias if heads.weight is None else heads.weight.amin(-1)
    assert rows is not None
    rank = rows.argsort(-1).argsort(-1).double()
    return size / rows.shape[-1] - 1e-3 * rank / rows.shape[-1]


def spread_out(expected: Tensor, lower: Tensor, upper: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which labels to add to the proved counts `lower` (K,) so that they add up to `size`.

    The label with the largest expected count left is added, again and again, up to `upper`. Gives
    the labels that were added, and the margin of each: what was left of its expected count.
    """
    left = size - int(lower.sum())
    table = (expected - lower)[:, None] - torch.arange(left)
    table = torch.where(torch.arange(left) < (upper - lower)[:, None], table, -torch.inf)
    margins, places = table.flatten().topk(left)
    return places // max(left, 1), margins


@dataclass(frozen=True)
class Lessons:
    """Simulated dumps, as far as they are learnt from: S of them."""

    found: Tensor  # (S, K, F) scores
    lower: Tensor  # (S, K) proved counts
    counts: Tensor  # (S, K) true counts
    even: Tensor  # (S, K) expected counts of an even spread
    looks: Tensor  # (S, 3)


def learn(
    client: Client,
    reference: Reference,
    layer: Layer,
    bounds: Bounds,
    *,
    generator: torch.Generator,
    expired: Callable[[], bool],
) -> Estimator | None:
    """Simulate clients like this one, and learn from them. None when the time is over."""
    halves = torch.randperm(len(reference.features), generator=generator).chunk(2)
    folds: list[Lessons] = []
    for learnt, drawn_from in (halves, halves[::-1]):
        rule = (layer, *_posterior(client, reference, learnt))
        taken = _lessons(client, reference, drawn_from, rule, bounds, generator, expired)
        if taken is None:
            return None
        folds.append(taken)
    weighed, even = Tally([], [], []), Tally([], [], [])
    for mine, other in ((folds[0], folds[1]), (folds[1], folds[0])):
        expected = mine.lower + ridge(other.found, other.counts - other.lower)(mine.found)
        for row in range(len(expected)):
            truth = client.size, mine.lower[row], mine.counts[row]
            weighed.take(expected[row], *truth)
            even.take(mine.even[row], *truth)
    useful = weighed.beats(even)
    margins, right = (weighed if useful else even).margins, (weighed if useful else even).right
    every = Lessons(
        *(torch.cat([getattr(fold, f.name) for fold in folds]) for f in fields(Lessons))
    )
    blur = 1e-4 * torch.eye(every.looks.shape[1], dtype=torch.float64)
    # As many other pictures would have given other dumps: more so, the larger the batch.
    unknown = 1 + 2 * client.size / len(reference.features)
    return Estimator(
        layer,
        bounds,
        *_posterior(client, reference, torch.arange(len(reference.features))),
        ridge(every.found, every.counts - every.lower) if useful else None,
        isotonic(torch.tensor(margins).double(), torch.tensor(right).double()),
        every.looks.mean(0),
        unknown * torch.cov(every.looks.mT) + blur,
    )


def _lessons(
    client: Client,
    reference: Reference,
    rows: Tensor,
    rule: tuple[Layer, Posterior, LeastVariance],
    bounds: Bounds,
    generator: torch.Generator,
    expired: Callable[[], bool],
) -> Lessons | None:
    """Simulate clients with the pictures `rows`, a few at a time: gradients of heads are large."""
    size = client.size * client.classes * reference.features.shape[1]
    dumps = min(max(_WORK // size, _FEWEST), _DUMPS)
    at_once = max(1, _AT_ONCE // size)
    parts = []
    for start in range(0, dumps, at_once):
        if expired():
            return None
        drawn = draw(client, reference, rows, min(at_once, dumps - start), generator)
        heads = heads_of(client, reference, drawn)
        lower = bounds(heads)
        parts.append(
            (
                scores(heads, lower, *rule),
                lower,
                counts_of(drawn.labels, client.classes),
                evenly(heads, client.size),
                _looks(heads, rule[1], rule[2]),
            )
        )
    return Lessons(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _posterior(
    client: Client, reference: Reference, rows: Tensor
) -> tuple[Posterior, LeastVariance]:
    labels = None if reference.labels is None else reference.labels[rows]
    found = posterior_of(reference.features[rows], reference.probabilities[rows], labels)
    return found, least_variance(
        found, client.size, smoothing=client.smoothing, concentration=client.concentration
    )


@dataclass(frozen=True)
class Tally:
    """How a rule did on simulated batches."""

    margins: list[float]  # of every label that was not proved
    right: list[float]  # whether it was there, 0 or 1
    shares: list[float]  # right ones, for each batch

    def take(self, expected: Tensor, size: int, lower: Tensor, counts: Tensor) -> None:
        """Estimate one simulated batch from expected counts (K,)."""
        upper, before = torch.full_like(lower, size), len(self.right)
        labels, own = spread_out(expected, lower, upper, size)
        right_in_order(labels, own, lower, counts, self.margins, self.right)
        self.shares.append(sum(self.right[before:]) / size)

    def beats(self, other: Tally) -> bool:
        """By more than chance explains: two standard errors of the mean difference."""
        gain = torch.tensor(self.shares).double() - torch.tensor(other.shares).double()
        chance: float = 2 * float(gain.std()) / len(gain) ** 0.5
        return float(gain.mean()) > chance


def right_in_order(
    labels: Tensor,
    own: Tensor,
    lower: Tensor,
    counts: Tensor,
    margins: list[float],
    right: list[float],
) -> None:
    """Note the margin `own` of each label added to `lower`, and whether it was there.

    Of several of one class, those with the largest margins are the ones that were.
    """
    order = own.argsort(descending=True, stable=True)
    labels, own = labels[order], own[order]
    order = labels.argsort(stable=True)
    labels, own = labels[order], own[order]
    first = torch.searchsorted(labels, labels)
    place = torch.arange(len(labels)) - first
    margins += own.tolist()
    right += (counts[labels] > lower[labels] + place).double().tolist()


def _looks(heads: Heads, posterior: Posterior, linear: LeastVariance) -> Tensor:
    """Three numbers (S, 3) that tell one kind of client from another: two sizes, one unevenness."""
    g = heads.bias
    if g is None:
        assert heads.weight is not None
        g = heads.weight @ posterior.features / posterior.features.square().sum().clamp_min(1e-30)
    size = linear.share * g.shape[1]
    other = g if heads.weight is None else heads.weight
    uneven = linear(g).std(-1, correction=0).clamp_min(1e-12) / size
    sizes = [g.abs().sum(-1), other.flatten(1).norm(dim=1)]
    return torch.stack([torch.log(part.clamp_min(1e-12)) for part in sizes] + [uneven.log()], 1)
