"""Does a claim's gradient differ from the dump by no more than the dump's own error?

Where the channel holds noise or intervals, the squared residual in units of the noise, over the
entries that were kept, is compared with its degrees of freedom: the entries less the unknowns that
were fitted. A fit with a prior may use fewer of them, so anything between the degrees of freedom
and the number of entries is at the floor, give or take five standard deviations, and what an
estimate of sigma from the head's column sums (auditor/checks.py) may be off.

Where nothing but rounding lies between, "at the floor" is what "equal" means everywhere else:
every tensor within `tolerance_of`. The ratio then says how far above rounding the fit is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.bounds.noise import kept_of, noise_of, whitened
from auditor.problem import scale_of, tolerance_of
from auditor.records import Problem

_DEVIATIONS = 5.0  # of the squared residual
_SIGMA_DEVIATIONS = 3.0  # of the estimate of sigma


@dataclass(frozen=True)
class Fit:
    """The residual of a claim against the noise floor of the dump."""

    ratio: float  # squared residual over its expectation; 1 expected of noise, inf of signs
    at_floor: bool  # no more is left than noise, or rounding, explains
    degrees: int  # of freedom; 0: as many unknowns as entries, and a fit says nothing
    scale: float = 1.0  # what the claim's gradient was multiplied with (Channel.scaled)


def fit_of(problem: Problem, gradient: Mapping[str, Tensor], unknowns: int) -> Fit:
    """Compare a claim's `gradient` (from `gradient_of`) with the dump.

    `unknowns`: how many numbers the claim chose, as a rule its pixels. The noise is that of
    `problem.channel`, and rounding. Signs have no such floor: never `at_floor`.
    """
    if problem.channel.signs:
        return Fit(math.inf, False, 0)
    claimed, sent = whitened(problem, gradient), whitened(problem, problem.gradient)
    scale = _scale(problem, claimed, sent)
    entries = len(sent)
    degrees = max(entries - unknowns - int(problem.channel.scaled), 0)
    square = float((scale * claimed - sent).square().sum())
    if degrees == 0 or not math.isfinite(square):
        return Fit(math.inf, False, degrees, scale)
    if problem.channel.sigma or problem.channel.steps:
        at_floor = _explained(problem, square, degrees, entries)
    else:
        at_floor = _equal(problem, gradient, scale)
    return Fit(square / degrees, at_floor, degrees, scale)


def noise_left(problem: Problem, fit: Fit) -> dict[str, float]:
    """`noise_of`, raised to what the fit left: what its predicted error has to allow for.

    An attack that stopped above the floor of rounding has an error of that size, not of rounding.
    """
    raised = math.sqrt(max(fit.ratio, 1.0)) if math.isfinite(fit.ratio) else math.inf
    return {name: raised * sigma for name, sigma in noise_in_claim(problem, fit).items()}


def noise_in_claim(problem: Problem, fit: Fit) -> dict[str, float]:
    """`noise_of` in units of the claim's own gradient: where a factor was found, over that."""
    scale = max(fit.scale, torch.finfo(torch.float32).tiny)
    return {name: sigma / scale for name, sigma in noise_of(problem).items()}


def _scale(problem: Problem, claimed: Tensor, sent: Tensor) -> float:
    """The positive factor that brings the claim nearest to the dump; 1 when scale is known."""
    square = float(claimed.square().sum())
    if not problem.channel.scaled or not square > 0:
        return 1.0
    return max(float(claimed @ sent) / square, 0.0)


def _explained(problem: Problem, square: float, degrees: int, entries: int) -> bool:
    """Whether noise explains the squared residual, in its own units."""
    high = (entries + _DEVIATIONS * math.sqrt(2 * entries)) * (1 + sigma_blur(problem))
    low = (degrees - _DEVIATIONS * math.sqrt(2 * degrees)) * (1 - sigma_blur(problem))
    # Intervals and rounding are at most so wide: small entries leave less.
    exact = not problem.channel.steps
    return square <= high and (square >= low or not exact)


def sigma_blur(problem: Problem) -> float:
    """How far sigma^2 may be off, relative, when it was estimated from the sums of the head."""
    if not problem.channel.sigma:
        return 0.0
    sums = problem.trace.head.features + 1
    return min(_SIGMA_DEVIATIONS * math.sqrt(2 / sums), 0.5)


def _equal(problem: Problem, gradient: Mapping[str, Tensor], scale: float) -> bool:
    """Whether every tensor is equal to the dump, on the entries that were kept."""
    scales, kept = scale_of(problem), kept_of(problem)
    tolerance = tolerance_of(problem)
    apart = [
        ((scale * gradient[name] - sent) * kept[name]).norm() / scales[name]
        for name, sent in problem.gradient.items()
    ]
    return bool((torch.stack(apart) <= tolerance).all())
