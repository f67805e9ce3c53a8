"""What each step of a reading says of its layer, and how far two readings are apart in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.graph import Node
from auditor.inversion.deconvolve import Candidate
from auditor.inversion.features import Feature
from auditor.inversion.link_solver import HIDDEN
from auditor.inversion.peel_solver import Solved
from auditor.inversion.targets import Targets
from auditor.records import LinkReport
from auditor.solve import Solution


@dataclass(frozen=True, eq=False)
class Account:
    """What one step says of its layer, and the feature that it gave, if it gave one."""

    report: LinkReport
    node: Node | None = None
    value: Tensor | None = None


def compared(readings: Sequence[Sequence[Account]]) -> tuple[LinkReport, ...]:
    """The reports of the first reading, each with its distance to the second one's.

    The second began elsewhere, with other rounding errors: a feature that is not the same in both
    was not determined, or its errors grew.
    """
    if len(readings) < 2:
        return tuple(link.report for reading in readings for link in reading)
    others = {link.node: link.value for link in readings[1] if link.value is not None}
    reports = []
    for link in readings[0]:
        report, other = link.report, others.get(link.node)
        if link.value is not None:
            gap = 1.0 if other is None else _apart(other, link.value)
            report = replace(report, gap=gap, solved=report.solved and gap <= HIDDEN)
        reports.append(report)
    return tuple(reports)


def _apart(other: Tensor, value: Tensor) -> float:
    return float((other - value).norm() / value.norm().clamp_min(torch.finfo(value.dtype).tiny))


def factorised(candidate: Candidate, sent: Tensor, misfit: float) -> LinkReport:
    """Of the convolution that the reading began at."""
    places = candidate.grid[0] * candidate.grid[1]
    return LinkReport(
        layer=candidate.weight,
        unknowns=(sent.shape[0] + sent.shape[1]) * places,
        equations=sent.numel(),
        undetermined=0,
        gap=0.0,
        residual=misfit,
        condition=1.0,
        steps=0,
        status="factorised",
        constrained=False,
        solved=True,
    )


def read_off(feature: Feature, solved: Solved) -> LinkReport:
    """Of a feature that its equations gave."""
    return LinkReport(
        layer=f"output of {feature.name}",
        unknowns=solved.value.numel(),
        equations=solved.equations,
        undetermined=0,
        gap=0.0,
        residual=solved.residual,
        condition=solved.condition,
        steps=solved.steps,
        status=solved.status.value,
        constrained=False,
        solved=True,
    )


def searched(targets: Targets, solution: Solution) -> LinkReport:
    """The last link: searched, so it is not said that nothing is left open."""
    picture = targets.hidden[0].node.shape
    return LinkReport(
        layer="picture",
        unknowns=math.prod(picture),
        equations=targets.residuals(solution.x.view(picture)).numel(),
        undetermined=0,
        gap=0.0,
        residual=float(solution.value) ** 0.5,
        condition=1.0,
        steps=solution.steps,
        status="searched",
        constrained=False,
        solved=False,
    )
