"""The error of a dump's entries, and which of them say anything.

Three sources add up: noise that was put in (`Channel.sigma`), the width of the intervals that a
quantised entry stands for (uniform: variance width^2 / 12), and rounding. Rounding to the type of
the dump leaves 0.21 of its relative precision in an entry (uniform within half a spacing, averaged
over the mantissas). The arithmetic before it leaves more: up to ten times the precision that it ran
in, for LeNet, MLP and ResNet-20 with one and eight pictures, derived again in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from auditor.problem import scale_of
from auditor.records import Problem

_CAST, _ARITHMETIC = 0.21, 10.0


def noise_of(problem: Problem) -> dict[str, float]:
    """The standard deviation of one entry, by tensor, from all that is known of the dump.

    Of a dump of signs it has no meaning: only rounding is in the answer.
    """
    channel = problem.channel
    return {
        name: math.hypot(rounding, channel.sigma, channel.steps.get(name, 0.0) / math.sqrt(12))
        for name, rounding in rounding_of(problem).items()
    }


def rounding_of(problem: Problem) -> dict[str, float]:
    """The standard deviation of one entry's rounding, by tensor: relative to its rms."""
    single = torch.finfo(torch.float32).eps
    working = torch.finfo(next(iter(problem.gradient.values())).dtype).eps
    arithmetic = _ARITHMETIC * max(min(problem.precision, single), working)
    relative = math.hypot(_CAST * problem.precision, arithmetic)
    kept = kept_of(problem)
    tiny = torch.finfo(torch.float32).tiny
    return {
        name: max(relative * float(scale) / math.sqrt(max(int(kept[name].sum()), 1)), tiny)
        for name, scale in scale_of(problem).items()
    }


def kept_of(problem: Problem) -> dict[str, Tensor]:
    """Which entries say what they are, by tensor, each of its shape: with a mask not the zeros."""
    sent = problem.gradient
    if not problem.channel.masked:
        return {name: torch.ones_like(part, dtype=torch.bool) for name, part in sent.items()}
    return {name: part != 0 for name, part in sent.items()}


def whitened(problem: Problem, gradient: Mapping[str, Tensor]) -> Tensor:
    """The kept entries of `gradient`, each over its standard deviation: (kept,) in float64."""
    noise, kept = noise_of(problem), kept_of(problem)
    parts = [gradient[name][kept[name]].double() / noise[name] for name in problem.gradient]
    return torch.cat(parts)
