"""What the head's gradient of one sample says of the step: scale, label smoothing, whose weights.

The gradient of the head's weight is then the outer product of that of its bias, g (K,), and the
features e, so that e = G'g / |g|^2, whatever scale and sign the dump has. The model makes its
prediction p of them, and p - g / s is the label, smoothed or not: over the classes that are not the
label, p_c is a straight line in g_c, with the slope 1 / s and the intercept smoothing / K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.problem import is_one_gradient
from auditor.records import Problem

_RANK_ONE = 2e-6  # relative, or 8 roundings
_FITS, _MISFITS = 1e-3, 0.1  # relative distance from the line
_SOFTMAX = 4 * torch.finfo(torch.float32).eps
_DIGITS = 32  # roundings, of logits too
_CLASSES = 5  # with fewer, a line fits anything


@dataclass(frozen=True)
class HeadFit:
    """The head's gradient beside the head's weights."""

    fits: bool | None  # these weights made it; None: cannot be told
    scale: float  # what the gradient was multiplied with; negative: turned around
    smoothing: float
    blur: float = 0.0  # what the scale may be off by, relatively
    haze: float = 0.0  # what the smoothing may be off by


@dataclass(frozen=True)
class _Line:
    """p_c = g_c / scale + level over all classes but the label."""

    apart: float  # relative distance
    allowed: float  # what single precision explains
    slope: float
    level: float
    several: bool  # more than one class stands out
    tilt: float  # what rounding may turn the slope by, relatively: much, if all classes are alike
    lift: float  # what that tilt changes the level by


def single_of(problem: Problem, spacing: float) -> HeadFit | None:
    """`spacing`: relative rounding of the head's entries.

    None when the head's gradient is not that of one sample, or lacks a part.
    """
    head, named = problem.trace.head, dict(problem.module.named_parameters())
    if head.bias is None or not {head.weight, head.bias} <= problem.gradient.keys():
        return None
    if problem.knowledge.batch_size not in {None, 1} or not is_one_gradient(problem):
        return None
    weight, g = (problem.gradient[n].detach().cpu().double() for n in (head.weight, head.bias))
    size = g.square().sum()
    if head.classes < _CLASSES or not size > 0:
        return None
    features = weight.mT @ g / size
    apart = (weight - g[:, None] * features).norm()
    if not apart <= max(_RANK_ONE, 8 * spacing) * weight.norm():
        return None
    matrix, offset = (named[n].detach().cpu().double() for n in (head.weight, head.bias))
    return _read(
        torch.softmax(matrix @ features + offset, 0), g, spacing, problem.knowledge.label_smoothing
    )


def _read(p: Tensor, g: Tensor, precision: float, smoothing: float) -> HeadFit:
    misfits = max(_MISFITS, _DIGITS * precision)
    lines = [_line(p, g, label, precision) for label in {int(g.argmin()), int(g.argmax())}]
    best = min(lines, key=lambda line: line.apart)
    if best.allowed > misfits or not abs(best.slope) > 0:  # saturated: nothing but rounding
        return HeadFit(None, 1.0, 0.0)
    if best.apart <= best.allowed and not best.several:
        # Two classes take everything: some scale always fits, and only the scale one shows a fit.
        lines = [line for line in lines if abs(line.slope - 1) <= best.allowed]
        return HeadFit(True if lines else None, 1.0, smoothing, best.allowed, best.allowed)
    if best.apart <= best.allowed:
        least = 8 * best.allowed
        soft = max(len(p) * best.level, 0.0)
        blur, haze = max(least, best.tilt), max(least, len(p) * best.lift)
        return HeadFit(True, 1 / best.slope, soft, blur, haze)
    return HeadFit(False if best.apart > misfits else None, 1.0, 0.0)


def _line(p: Tensor, g: Tensor, label: int, precision: float) -> _Line:
    rest = torch.arange(len(p)) != label
    x, y = g[rest], p[rest]
    away = x - x.mean()
    spread = away.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    slope = float((away * (y - y.mean())).sum() / spread)
    level = float(y.mean() - slope * x.mean())
    size = float((slope * x).norm().clamp_min(1e-30))
    rounding = 8 * (_SOFTMAX + precision * float(p.norm()))
    allowed = max(_FITS, rounding / size)
    tilt = rounding / max(abs(slope) * float(away.norm()), 1e-30)
    several = int(((slope * x).abs() > 4 * allowed * size).sum()) > 1
    apart = float((y - slope * x - level).norm()) / size
    lift = tilt * abs(slope * float(x.mean()))
    return _Line(apart, allowed, slope, level, several, tilt, lift)


def is_turned(problem: Problem, single: HeadFit | None) -> bool:
    """Whether the dump is a step against the gradient: a change of weights, say.

    Below zero is the bias's gradient for classes of the batch only, no more of them than samples.
    Smoothed labels that the model is surer of than they are look alike. To be asked of a clean dump
    only.
    """
    if single is not None and single.fits:
        return single.scale < 0
    bias = problem.trace.head.bias
    size = problem.knowledge.batch_size
    if bias is None or bias not in problem.gradient or problem.knowledge.label_smoothing:
        return False
    if size is None or not is_one_gradient(problem):
        return False
    g = problem.gradient[bias].detach().double()
    margin = 8 * max(problem.precision, _SOFTMAX) * float(g.abs().max())
    return int((g < -margin).sum()) > size >= int((g > margin).sum()) > 0
