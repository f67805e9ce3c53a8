"""Loss scaling, undone: mixed-precision training multiplies the loss with a power of two.

A gradient that was dumped before it was unscaled is that power larger. The negative part of the
head's bias gradient is a mean of 1 - p over the samples, at most 1, and of the dump that times the
power. With one sample the head gives the factor itself (single.py); of a batch it is the scale that
GradScaler starts with, where that fits, or the smallest power of two that does: a guess, by which
nothing about counts may be proved.
Source: Micikevicius et al. 2018, arXiv:1710.03740.
"""

from __future__ import annotations

import math
from dataclasses import replace

from auditor.defences.single import single_of
from auditor.problem import is_one_gradient
from auditor.records import Assumption, Problem

_LEAST = 64.0  # below that a sum over samples or steps explains the size as well
_FIRST = 65536.0  # of GradScaler
_FAR = 64.0  # times smaller than the scale, the negative part is of a batch that is known by heart
_NEAR = 1e-2  # relative distance from a power of two


def loss_scale(problem: Problem) -> float | None:
    """The power of two that the dump was multiplied with; None when nothing speaks for one."""
    known, head = problem.knowledge, problem.trace.head
    bias = None if head.bias is None else problem.gradient.get(head.bias)
    if bias is None or known.local is not None or known.reduction != "mean":
        return None
    negative = float(-bias.double().clamp_max(0).sum())
    if not _LEAST < negative < math.inf or negative <= (known.batch_size or 1):
        return None
    single = single_of(problem, problem.precision) if is_one_gradient(problem) else None
    if single is not None and single.fits and single.scale > 0:
        power = 2.0 ** round(math.log2(single.scale))
        return power if abs(single.scale / power - 1) <= _NEAR + single.blur else None
    if known.batch_size is None or known.batch_size == 1:
        return None
    return _FIRST if _FIRST / _FAR < negative <= _FIRST else 2.0 ** math.ceil(math.log2(negative))


def without_loss_scale(problem: Problem) -> tuple[Problem, float | None]:
    """The problem with its gradient divided by the loss scale, and that scale, if there is one."""
    scale = loss_scale(problem)
    if scale is None:
        return problem, None
    known = problem.knowledge
    note = Assumption("loss scale", f"{scale:g}: the dump was divided by it", "deduced")
    known = replace(known, reduction_declared=False, assumptions=(*known.assumptions, note))
    gradient = {name: part / scale for name, part in problem.gradient.items()}
    return replace(problem, gradient=gradient, knowledge=known), scale
