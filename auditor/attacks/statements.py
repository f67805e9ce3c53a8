"""What the head's gradient proves about the labels, statement by statement.

g (K,) is the gradient of the head's bias, G (K, E) that of its weight, N samples, lambda_c the
number of samples of class c. Under premise A0 (see checks.py) and mean reduction
g_c = mean_i p_ic - lambda_c / N with p a softmax, so that an absent class can only have g_c >= 0.
T1 is iDLG's observation (Zhao, Mopuri, Bilen 2020, arXiv:2001.02610) without its condition on the
activation, which iDLG needs for the rows of the weight (T2) only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linprog
from torch import Tensor

# Relative errors that rounding may leave. Rank one is tight, because a saturated network gives
# different pictures features that differ by very little.
_RANK_ONE = 2e-6
_MATCH = 1e-3
_WORST_MATCH = 1e-2
# Up to this precision one sample can be told from several of one class: their features differ.
_FINE = 1e-6
# T9: singular values below so many roundings are none, and above so many of those are beyond doubt.
_SPAN_ROUNDING, _CLEAR = 8.0, 1e3
_FINEST = 2 * torch.finfo(torch.float32).eps  # the client computed in single precision
_SOFTMAX = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class SingleSample:
    """The label of the only sample, with the statement that proved it."""

    label: int
    statement: str
    proves_single: (
        bool  # the statement shows one sample, or several that the head cannot tell apart
    )


def presence_by_bias(g: Tensor, *, margin: float | Tensor, smoothing: float) -> Tensor:
    """T1: classes (K,) bool that occur, since g_c < 0. Any activation, batch, mode.

    `smoothing` is the label smoothing times the sum of the samples' weights: under it an absent
    class can go down to -smoothing / K.
    """
    return g < -(margin + smoothing / g.shape[-1])


def presence_by_weight(weight: Tensor, *, margin: float | Tensor) -> Tensor:
    """T2: classes (K,) bool that occur, since a row of G has a negative entry.

    Only for features that cannot be negative: then an absent class has a non-negative row.
    """
    return weight.amin(-1) < -margin


def single_by_bias(
    weight: Tensor, g: Tensor, head: Tensor, offset: Tensor, *, precision: float, smoothing: float
) -> SingleSample | None:
    """T3: one sample. Its features are e = G'g / |g|^2, its probabilities p = softmax(We + b).

    `head` (K, E) and `offset` (K,) are the parameters W and b. g must be s (p - y) with y the
    label's (smoothed) one-hot vector and a scale s > 0; if it is for exactly one label, then label,
    scale and "one sample" hold together. With two classes, or two that take everything, some s
    always fits: then s must be 1, as it is for one sample unless the dump was rescaled.
    """
    size = g.square().sum()
    if not size > 0:
        return None
    features = weight.mT @ g / size
    apart = (weight - g[:, None] * features).norm()
    if not apart <= max(_RANK_ONE, 8 * precision) * weight.norm():
        return None
    probability = torch.softmax(head @ features + offset, 0)
    # The label has the lowest entry, or, smoothed and overconfident, the highest.
    candidates = {int(g.argmin()), int(g.argmax()), int(probability.argmax())}
    fits = {c: _fits(probability, g, c, precision, smoothing) for c in candidates}
    fitting = [c for c in candidates if fits[c].fits]
    if len(fitting) != 1:
        return None
    return SingleSample(fitting[0], "T3", proves_single=fits[fitting[0]].tells)


@dataclass(frozen=True)
class _Fit:
    """Whether a vector fits a label, and whether a batch of several could have fitted as well."""

    fits: bool
    tells: bool


def _fits(p: Tensor, a: Tensor, label: int, precision: float, smoothing: float) -> _Fit:
    """Compare a with s (p - y) for the (smoothed) one-hot vector y of `label` and some s > 0."""
    target = torch.full_like(p, smoothing / len(p))
    target[label] += 1 - smoothing
    gap = p - target
    size = gap.square().sum()
    if not size > 0:
        return _Fit(fits=False, tells=False)
    scale = (a @ gap) / size
    rest = torch.arange(len(p)) != label
    expected, found = gap[rest], a[rest] / scale
    norm = float(expected.norm().clamp_min(1e-30))
    # p and a carry the absolute rounding of a softmax in single precision
    blur = _SOFTMAX / norm
    allowed = min(max(_MATCH, 8 * precision, blur), _WORST_MATCH)
    fits = bool(scale > 0) and float((expected - found).norm()) <= allowed * norm
    # With one large entry beside the label's, some scale fits whatever was sent.
    several = int((expected.abs() > 4 * allowed * norm).sum()) >= 2
    unscaled = float((scale - 1).abs()) <= min(16 * precision + blur, _MATCH)
    return _Fit(fits, fits and precision <= _FINE and (several or unscaled))


def single_without_bias(
    weight: Tensor, head: Tensor, offset: Tensor | None, *, precision: float, told_single: bool
) -> SingleSample | None:
    """T4: one sample, no bias gradient. G = a v' has rank one, and a is the only unknown scale.

    T4' (sign structure): with three classes or more, the label's entry of a is the one whose sign
    differs from all others; needs to be told that there is one sample. T4 (scale search): for some
    scale t, softmax(t W v + b) - a / t is one-hot, which proves one sample as well.
    """
    a, v = _rank_one(weight, precision)
    if a is None or v is None:
        return None
    label = int(a.abs().argmax())
    others = a[torch.arange(len(a)) != label]
    tiny = 8 * precision * float(a.abs().max())
    opposite = (others * a[label] < 0) & (others.abs() > tiny)
    if int(opposite.sum()) < 2 or bool((~opposite & (others.abs() > tiny)).any()):
        return None  # with two classes either may be the odd one out
    logits = head @ v
    shift = torch.zeros_like(logits) if offset is None else offset
    fit = _one_scale(a, logits, shift, label, precision)
    if fit is not None and fit.tells:
        return SingleSample(label, "T4", proves_single=True)
    return SingleSample(label, "T4'", proves_single=False) if told_single else None


def _rank_one(weight: Tensor, precision: float) -> tuple[Tensor | None, Tensor | None]:
    row = weight[int(weight.norm(dim=1).argmax())]
    v = row / row.norm()
    a = weight @ v
    if (weight - a[:, None] * v).norm() > max(_RANK_ONE, 8 * precision) * weight.norm():
        return None, None
    return a, v


def _one_scale(
    a: Tensor, logits: Tensor, offset: Tensor, label: int, precision: float
) -> _Fit | None:
    """How softmax(t * logits + offset) - a / t is one-hot, if it is for exactly one scale t."""
    sign = -1.0 if a[label] > 0 else 1.0
    grid = sign * torch.logspace(-4, 5, 600, dtype=a.dtype)

    def miss(t: Tensor) -> Tensor:
        p = torch.softmax(t[:, None] * logits + offset, 1)
        return p[:, label] - a[label] / t - 1

    values = miss(grid)
    crossing = (values[:-1] * values[1:] < 0).nonzero().flatten()
    roots = [_bisect(miss, grid[i], grid[i + 1]) for i in crossing.tolist()]
    fits = [
        _fits(torch.softmax(t * logits + offset, 0), a / t, label, precision, 0.0) for t in roots
    ]
    fitting = [fit for fit in fits if fit.fits]
    return fitting[0] if len(fitting) == 1 else None


def _bisect(miss: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    for _ in range(80):
        middle = (low + high) / 2
        same = bool(miss(middle[None])[0] * miss(low[None])[0] > 0)
        low, high = (middle, high) if same else (low, middle)
    return (low + high) / 2


def counts_below(
    g: Tensor, *, samples: int, slack: float, smoothing: float, reduction: str
) -> Tensor:
    """T5: lambda_c >= -N g_c, (K,) int64 lower bounds; `samples` may be a lower bound of N.

    Under sum reduction the factor N drops out. With label smoothing the label's share is
    1 - smoothing, and smoothing / K comes off everywhere.
    """
    factor = samples if reduction == "mean" else 1
    spread = samples * smoothing / g.shape[-1]
    below = (-factor * g - spread) / (1 - smoothing)
    return torch.ceil(below - slack).clamp_min(0).long()


def counts_above(lower: Tensor, samples: int) -> Tensor:
    """T7: lambda_c <= N - sum of the other classes' lower bounds, (K,) int64."""
    return samples - (lower.sum() - lower)


def mean_probabilities(g: Tensor, counts: Tensor, samples: int) -> Tensor:
    """T8: the mean prediction (K,) over the batch, once its counts are known: lambda / N + g.

    For mean reduction and hard labels; it says how sure the model is of the client's data.
    """
    return counts / samples + g


def absent_by_span(weight: Tensor, candidates: Tensor, *, samples: int, precision: float) -> Tensor:
    """T9: classes (K,) bool that cannot occur, by linear programming (Dang et al. 2021, RLG).

    When G has rank N, its columns span what the vectors p_i - y_i span, and each of those has one
    negative entry, at its label. A class is absent when no vector of the span is -1 there and
    nowhere else below zero, by more than the rounding of the span explains. Only `candidates` (K,)
    bool are asked for. Nothing is absent when the rank is not N beyond doubt.
    """
    absent = torch.zeros(len(weight), dtype=torch.bool)
    left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    if not samples < len(values):
        return absent
    # Each p_i - y_i sums to zero: what the columns sum to is rounding as well.
    rounding = _SPAN_ROUNDING * max(
        max(precision, _FINEST) * float(weight.norm()), float(weight.sum(0).norm())
    )
    if float(values[samples]) > rounding or float(values[samples - 1]) <= _CLEAR * rounding:
        return absent
    # p_i - y_i, divided by its size at the label, is no longer than the square root of two.
    slack = 8 * rounding / float(values[samples - 1])
    for label in candidates.nonzero().flatten().tolist():
        absent[label] = _least_dip(left[:, :samples], label) > slack
    return absent


def _least_dip(span: Tensor, label: int) -> float:
    """How far below zero a vector of the span (K, N) must go elsewhere to be -1 at `label`.

    Infinite when none can be.
    """
    rest = torch.arange(len(span)) != label
    dips = torch.cat([-span[rest], -torch.ones(int(rest.sum()), 1, dtype=span.dtype)], 1)
    goal = [0.0] * span.shape[1] + [1.0]
    found = linprog(
        goal,
        A_ub=dips.numpy(),
        b_ub=[0.0] * len(dips),
        A_eq=torch.cat([span[label], span.new_zeros(1)])[None].numpy(),
        b_eq=[-1.0],
        bounds=[(None, None)] * span.shape[1] + [(0, None)],
    )
    if found.status == 2:  # infeasible
        return float("inf")
    return float(found.fun) if found.status == 0 else 0.0


def counts_left(upper: Tensor, samples: int) -> Tensor:
    """The mirror of T7: lambda_c >= N - sum of the other classes' upper bounds, (K,) int64."""
    return (samples - (upper.sum() - upper)).clamp_min(0)


def samples_at_least(weight: Tensor, precision: float) -> int:
    """The numerical rank of G: no fewer samples can have made it."""
    values = torch.linalg.svdvals(weight.float())
    return int((values > max(1e-4, 20 * precision) * values[0]).sum())
