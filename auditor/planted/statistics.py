"""What weights look like that were made to extract data: one statistic a family.

Each has a threshold with a chance level: how often weights that are drawn at random, each on its
own, would reach it. What trained weights do is measured by benchmarks/planted.py.
Sources: imprint layers, Fowl et al. 2021, arXiv:2110.13057; trap weights and kernels that pass
their input on, Boenisch et al. 2021, arXiv:2112.02918; class fishing, Wen et al. 2022,
arXiv:2202.00580; the ratio of a kernel's largest weight, Garov et al. 2023, arXiv:2306.03013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows that differ by less than this angle (radians) point the same way. Two random rows of 16
# numbers do with a chance below 1e-30. Small starts make training condense neurons: in our trials
# the nearest eight were 0.048 apart. Rounding a weight to bfloat16 turns it by 0.0012.
_ANGLE = 3e-3
_SAME = 1e-6  # of the largest threshold: what lies closer is one threshold, up to rounding
_FEWEST_BINS = 8
_FEWEST_NUMBERS = 16  # in a row: with fewer, two may point the same way by chance
_ROWS_AT_ONCE, _SKETCH = 4096, 64
_ROWS_LOOKED_AT = 512  # of a layer's rows, evenly spread: a trap needs many
_RARE = math.log(1e-9)  # chance, for one layer
_UNBALANCED = 1e-4  # bases of waves and the like have equal halves: their rows sum to zero
_SILENT = 10.0  # times the number of classes: see `fishes`
_SATURATED = 50.0  # logits: e^-50 is zero beside one in any format that gradients are sent in


@dataclass(frozen=True, eq=False)
class Bins:
    """Rows w_j = c_j v of an imprint layer. Row j fires when v.x > threshold_j."""

    rows: Tensor  # (k,) int64, places in the layer, by rising threshold
    thresholds: Tensor  # (k,) float64
    spread: float  # second singular value of the unit rows, relative to the first
    count: int  # thresholds that differ


def imprint_bins(rows: Tensor, offsets: Tensor | None) -> Bins | None:
    """The largest group of parallel rows with thresholds of their own; None when there is none.

    `rows` (m, n), `offsets` (m,). Equal rows with equal offsets are no bins: they see the same.
    """
    if offsets is None or rows.shape[1] < _FEWEST_NUMBERS:
        return None
    group = _parallel(rows)
    if len(group) < _FEWEST_BINS:
        return None
    chosen = rows[group].double()
    thresholds = -offsets[group].double() / chosen.norm(dim=1)
    order = thresholds.argsort()
    group, thresholds = group[order], thresholds[order]
    size = float(torch.maximum(thresholds.abs().max(), thresholds[-1] - thresholds[0]))
    count = 1 + int((thresholds.diff() > _SAME * size).sum())
    return Bins(group, thresholds, _spread(chosen), count) if count >= _FEWEST_BINS else None


def _parallel(rows: Tensor) -> Tensor:
    """Places (k,) of the rows that point the same way, of the direction with most of them.

    Angles are first seen in a random projection: it keeps them, and a wide layer becomes small.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows.shape[1], _SKETCH, generator=generator, dtype=torch.float64)
    seen = rows @ drawn.to(rows) if rows.shape[1] > _SKETCH else rows
    sizes = seen.norm(dim=1)
    alive: Tensor = (sizes > 1e-6 * sizes.max()).nonzero()[:, 0]
    if len(alive) == 0:
        return alive
    alive = alive[:: -(-len(alive) // _ROWS_AT_ONCE)]
    seen = F.normalize(seen[alive])
    near = seen @ seen.T > math.cos(2 * _ANGLE)
    centre = int(near.sum(1).argmax())
    group: Tensor = alive[near[centre]]
    exact = F.normalize(rows[group].double()) @ F.normalize(rows[alive[centre]].double(), dim=0)
    chosen: Tensor = group[exact > math.cos(_ANGLE)]
    return chosen


def _spread(rows: Tensor) -> float:
    unit = rows / rows.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(unit @ unit.T).clamp_min(0).sqrt()
    return float(values[-2] / values[-1])


@dataclass(frozen=True)
class Halves:
    """Rows of which exactly half the weights are negative, and which do not sum to zero."""

    share: float  # of the layer's rows
    chance: float  # expected share for signs drawn at random
    log_chance: float  # natural logarithm of the chance of that many rows; a bound

    @property
    def planted(self) -> bool:
        """Whether there are far more of them than chance makes."""
        return self.share > self.chance and self.log_chance < _RARE


def trap_halves(rows: Tensor) -> Halves:
    """The statistic of trap weights, `rows` (m, n).

    A trap's row is made of two halves, one negative, the other a smaller copy of it with the sign
    turned; so its signs balance exactly and its sum does not. Signs drawn at random balance in
    a share sqrt(2 / (pi n)) of the rows. Chernoff's bound (Hoeffding 1963, theorem 1) for the rest.
    """
    rows = rows[:: -(-len(rows) // _ROWS_LOOKED_AT)]
    negative, positive = (rows < 0).sum(1), (rows > 0).sum(1)
    weights = negative + positive
    size = rows.abs().sum(1)
    lopsided = rows.sum(1).abs() > _UNBALANCED * size
    hit = ((negative - positive).abs() <= weights % 2) & lopsided & (size > 0)
    share = float(hit.double().mean())
    expected = float(_balanced(weights.double()).mean())
    return Halves(share, expected, -len(rows) * _divergence(share, expected))


def _balanced(count: Tensor) -> Tensor:
    """The chance that as many of `count` signs are negative as positive, or one more or less."""
    half = (count / 2).floor()
    log = torch.lgamma(count + 1) - torch.lgamma(half + 1) - torch.lgamma(count - half + 1)
    odd = 1 + count % 2
    return (odd * (log - count * math.log(2)).exp()).clamp_max(1.0)


def _divergence(share: float, expected: float) -> float:
    """Kullback-Leibler, of two chances of one event, in nats; 0 when `share` is not above."""
    if share <= expected or expected <= 0:
        return 0.0
    rest = (1 - share) * math.log((1 - share) / (1 - expected)) if share < 1 else 0.0
    return share * math.log(share / expected) + rest


def fishes(weight: Tensor, bias: Tensor | None) -> float | None:
    """How far one class of a head stands apart; None when none does. (K, E) and (K,).

    Either the rows of all other classes are next to nothing: a ratio of norms above 10 K. (A head
    that began at zero and saw one sample has a ratio of K - 1, and trained heads stay below 10.) Or
    one bias is more than 50 from all others: then softmax leaves nothing to the rest.
    With two classes a row of zeros is a choice of reference.
    """
    classes = len(weight)
    if classes < 3:
        return None
    largest, *others = weight.double().norm(dim=1).sort(descending=True).values.tolist()
    if largest > _SILENT * classes * others[0]:
        return float(largest / others[0]) if others[0] > 0 else math.inf
    if bias is None:
        return None
    gaps = bias.double().sort().values.diff()
    apart = float(torch.maximum(gaps[0], gaps[-1]))
    return apart if apart > _SATURATED else None


def passed_on(kernels: Tensor, groups: int = 1) -> Tensor:
    """Which input channel each output channel hands on: (O,) int64, -1 for none.

    `kernels` (O, I, ...). One weight outweighs all others together by a factor t. Of n uniform
    weights that happens with a chance of t^(1-n) / (n-1)!; here it is one in a million for all
    kernels together.
    """
    flat = kernels.detach().double().abs().flatten(1)
    count, width = flat.shape
    largest, place = flat.max(dim=1)
    rest = flat.sum(1) - largest
    ratio = largest / rest.clamp_min(torch.finfo(rest.dtype).tiny)
    log_chance = math.log(count) - (width - 1) * ratio.log() - math.lgamma(width)
    chosen = (ratio > 1) & (largest > 0) & (log_chance < math.log(1e-6))
    inner = kernels.shape[1]
    channel = place // max(width // inner, 1)
    first = torch.arange(count, device=flat.device) // (count // groups) * inner
    return torch.where(chosen, first + channel, -1)
