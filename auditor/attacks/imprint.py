"""The pictures that a layer made to catch them has caught.

The rows of an imprint layer are parallel and sorted by their thresholds t_j, and what stands behind
them treats them alike. Row j sees the samples with v.x > t_j, so neighbouring rows differ by those
in between: a bin. With one sample x in it, and c_j what the next layer makes of row j,

    x = (dW_j / c_j - dW_j+1 / c_j+1) / (db_j / c_j - db_j+1 / c_j+1)

A trap's row fires for few samples; with one, x = dW_j / db_j. Both are exact up to rounding.
Sources: Fowl et al. 2021, arXiv:2110.13057; Boenisch et al. 2021, arXiv:2112.02918.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.attacks.base import Watch
from auditor.attacks.closed_form import recorded_or_why
from auditor.graph import Recording
from auditor.planted.layers import LinearLayer, follower, linear_layers
from auditor.planted.statistics import Bins, imprint_bins, trap_halves
from auditor.planted.way import Way, way_to
from auditor.problem import has_grid, is_in_range, to_pixels
from auditor.records import Problem, Recovery

_SIGNAL = 64.0  # times the rounding of the largest row: below, a difference is no sample
_BLUR = 16.0  # roundings that a sum over a batch may add up to
_ALIKE = 1e-2  # pixels, root mean square: readings of one sample are nearer, of two farther apart
_ON_GRID = 0.15  # grey levels, rms; pixels that know no grid are at 0.29, the rms of a fraction
_SHARP = 0.1  # grey levels: with an error below, 8-bit pixels would be on their grid
_PARALLEL = 1e-3
_NEGATIVE = 1e-2  # of the largest value: so much below zero is more than error


@dataclass(frozen=True, eq=False)
class Caught:
    """A layer made to catch samples, what was sent of it, and the way of a picture to it."""

    layer: LinearLayer
    bins: Bins | None  # None: trap weights
    behind: Tensor | None  # (p, m) weights of the linear layer that follows
    weight: Tensor  # (m, n) float64, the gradient sent
    bias: Tensor  # (m,)
    way: Way


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may be inputs of the layer."""

    inputs: Tensor  # (M, n)
    blur: Tensor  # (M,) relative error that the dump's rounding explains
    rows: Tensor  # (M,) row of the layer

    def __getitem__(self, chosen: Tensor) -> Candidates:
        return Candidates(self.inputs[chosen], self.blur[chosen], self.rows[chosen])


@dataclass(frozen=True)
class Imprint:
    """Reads the inputs that imprint layers and trap weights isolate in the dump."""

    name: str = "images.imprint"
    title: str = "Images caught by layers made for it (imprint layers, trap weights)"

    def blocked_by(self, problem: Problem) -> str | None:
        found = _find(problem)
        return found if isinstance(found, str) else None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:  # noqa: ARG002
        if watch.expired():
            return Recovery(expired=True)
        caught = _find(problem)
        assert isinstance(caught, Caught), "blocked_by was not asked"
        with torch.no_grad():
            found = (
                _from_rows(problem, caught)
                if caught.bins is None
                else _from_bins(problem, caught, caught.bins)
            )
            if caught.way.nonnegative:  # mixtures with negative shares are not worth a search
                found = found[found.inputs.amin(1) >= -_NEGATIVE * found.inputs.amax(1)]
            pictures, fits = _pictures(problem, caught, found, watch)
            chosen, witnesses = _chosen(problem, caught, pictures, found[fits])
        expired = watch.expired()
        read_from = caught.layer.weight or ""
        if not witnesses:
            return Recovery(read_from=read_from, expired=expired)
        return Recovery(
            samples=pictures[chosen], witnesses=witnesses, read_from=read_from, expired=expired
        )


# --------------------------------------------------------------------------- finding the layer


def _find(problem: Problem) -> Caught | str:
    """The first layer of the kind that can be read, or why there is none."""
    recording = recorded_or_why(problem)
    if isinstance(recording, str):
        return recording
    layers, why = linear_layers(recording), "the model holds no imprint layer and no trap weights"
    for layer in layers:
        if layer.weight == problem.trace.head.weight:
            continue
        with torch.no_grad():
            bins = imprint_bins(layer.rows, layer.offsets)
            made_for_it = bins is not None or trap_halves(layer.rows).planted
        if made_for_it:
            found = _readable(problem, recording, layer, layers)
            if not isinstance(found, str):
                return replace(found, bins=bins)
            why = f"{layer.name!r} is made to catch inputs, but {found}"
    return why


def _readable(
    problem: Problem, recording: Recording, layer: LinearLayer, layers: Sequence[LinearLayer]
) -> Caught | str:
    sent = problem.gradient
    if layer.weight is None or layer.weight not in sent or layer.uses != 1:
        return "the dump holds no gradient of its rows"
    if layer.bias is None or layer.bias not in sent:
        return "the dump holds no gradient of its bias"
    way = way_to(layer, recording, next(problem.module.parameters()).detach())
    if way is None or not way.keeps_everything():
        return "what stands before it cannot be undone"
    weight, next_one = sent[layer.weight].double(), follower(layer, layers)
    return Caught(
        layer=layer,
        bins=None,
        behind=None if next_one is None else next_one.rows.double(),
        weight=weight.T if layer.turned else weight,
        bias=sent[layer.bias].double(),
        way=way,
    )


# --------------------------------------------------------------------------- reading the dump


def _from_bins(problem: Problem, caught: Caught, bins: Bins) -> Candidates:
    """Differences of neighbouring rows that fall into their own bin."""
    gains = _gains(caught, bins)
    alive = gains.abs() > _PARALLEL * gains.abs().max()
    rows, thresholds, gains = bins.rows[alive], bins.thresholds[alive], gains[alive]
    weight, bias = caught.weight[rows] / gains[:, None], caught.bias[rows] / gains
    found = _quotients(
        problem,
        -weight.diff(dim=0, append=weight.new_zeros(1, weight.shape[1])),
        -bias.diff(append=bias.new_zeros(1)),
        largest=float(bias.abs().max()),
    )
    place = found.rows
    above = torch.cat([thresholds[1:], thresholds.new_full((1,), torch.inf)])
    direction = F.normalize(caught.layer.rows[rows].double()).mean(0)
    seen, slack = found.inputs @ direction, found.blur * found.inputs.norm(dim=1)
    inside = (seen > thresholds[place] - slack) & (seen <= above[place] + slack)
    return Candidates(found.inputs, found.blur, rows[place])[inside]


def _gains(caught: Caught, bins: Bins) -> Tensor:
    """What the next layer makes of each row, (k,), up to one factor; ones where it is not known."""
    if caught.behind is None:
        return torch.ones_like(bins.thresholds)
    columns = caught.behind[:, bins.rows].T  # (k, p)
    longest = columns[int(columns.norm(dim=1).argmax())]
    gains = columns @ longest / longest.square().sum().clamp_min(1e-300)
    apart = (columns - gains[:, None] * longest).norm(dim=1)
    parallel = bool((apart <= _PARALLEL * longest.norm()).all()) and bool(gains.any())
    return gains if parallel else torch.ones_like(gains)


def _from_rows(problem: Problem, caught: Caught) -> Candidates:
    """Single rows, those that their own candidate fires."""
    largest = float(caught.bias.abs().max())
    found = _quotients(problem, caught.weight, caught.bias, largest=largest)
    offsets = caught.layer.offsets
    assert offsets is not None, "a bias was sent"
    before = (found.inputs * caught.layer.rows[found.rows].double()).sum(1) + offsets[found.rows]
    slack = found.blur * found.inputs.norm(dim=1) * caught.layer.rows[found.rows].norm(dim=1)
    return found[before > -slack]


def _quotients(problem: Problem, weight: Tensor, bias: Tensor, *, largest: float) -> Candidates:
    """weight / bias of the rows that rise above rounding: (k, n) and (k,)."""
    rounding = problem.precision * largest
    rows = (bias.abs() > _SIGNAL * rounding).nonzero()[:, 0]
    blur = _BLUR * rounding / bias[rows].abs()
    return Candidates(weight[rows] / bias[rows, None], blur, rows)


# --------------------------------------------------------------------------- choosing


def _pictures(
    problem: Problem, caught: Caught, found: Candidates, watch: Watch
) -> tuple[Tensor, Tensor]:
    """The pictures (M, C, H, W), model units, of those candidates that have one; which, (L,)."""
    flat, fits = caught.way.back(found.inputs, expired=watch.expired)
    pictures = flat.to(next(iter(problem.gradient.values())))
    pictures = pictures.view(-1, *problem.knowledge.input_shape)
    inside = [is_in_range(problem, picture) for picture in pictures]
    fits = fits & torch.tensor(inside, dtype=torch.bool, device=fits.device)
    return pictures[fits], fits


def _chosen(
    problem: Problem, caught: Caught, pictures: Tensor, found: Candidates
) -> tuple[Tensor, tuple[int, ...]]:
    """One picture a sample, and the independent rows that gave each.

    A mixture of samples lies between them, in the range of pixels too. When some pictures have
    8-bit pixels, those that could be seen to have such and do not are mixtures. When none has, k
    bins of N samples hold at least 2 k - N single ones: that must be half of the k, or none is
    claimed. A trap's row counts only with a second one, or with 8-bit pixels.
    """
    pixels = to_pixels(problem, pictures).double().flatten(1)
    on_grid = (_off_grid(pixels) < _ON_GRID) & has_grid(problem)
    sharp = 255 * found.blur * found.inputs.square().mean(1).sqrt() < _SHARP
    mixed = ~on_grid & sharp if bool(on_grid.any()) else torch.zeros_like(on_grid)
    size = problem.knowledge.batch_size
    mostly_single = caught.bins is not None and 3 * len(pixels) >= 2 * (size or math.inf)
    counts = bool(on_grid.any()) or mostly_single
    chosen, witnesses = list[int](), list[int]()
    left = ~mixed
    for place in found.blur.argsort().tolist():
        if not left[place]:
            continue
        alike = left & ((pixels - pixels[place]).square().mean(1).sqrt() < _ALIKE)
        left = left & ~alike
        count = _independent(caught, found.rows[alike])
        if count > 1 or on_grid[place] or (caught.bins is not None and counts):
            chosen.append(place)
            witnesses.append(count)
    return torch.tensor(chosen, dtype=torch.int64, device=pictures.device), tuple(witnesses)


def _off_grid(pixels: Tensor) -> Tensor:
    """Distance of pixels (M, D) from multiples of 1/255, root mean square, grey levels.

    Without those at the ends of the range: a mixture of pictures on black is black there, too.
    """
    levels = 255 * pixels
    inner = (levels > 0.5) & (levels < 254.5)
    apart = torch.where(inner, levels - levels.round(), 0.0).square().sum(1)
    return (apart / inner.sum(1).clamp_min(1)).sqrt()


def _independent(caught: Caught, rows: Tensor) -> int:
    """How many of these rows say the same independently.

    Rows that the next layer treats alike give the same mixture for the same samples, so they say
    nothing about one another.
    """
    if caught.bins is not None or caught.behind is None:
        return 1
    columns = F.normalize(caught.behind[:, rows].T)
    return 1 + int(((columns @ columns[0]).abs() < 1 - _PARALLEL).sum())
