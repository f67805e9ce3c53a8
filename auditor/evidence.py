"""The claim re-checked: its gradient derived again, and restarts compared with one another.

An attack does not grade itself. What counts is the gradient of the inputs and hard labels that it
names, from the one definition in problem.py, and whether restarts that started elsewhere agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from auditor.metrics import match_batch, psnr
from auditor.problem import (
    gradient_of,
    is_in_range,
    relative_residual,
    residuals_of,
    to_pixels,
    tolerance_of,
)
from auditor.records import Evidence, Failed, Problem, Recovery
from auditor.samples.check import check_samples

# Restarts agree when their pictures differ by less than this, in dB: 3 % of the pixel range.
AGREE = 30.0
# Up to here a residual is small enough to be called consistent.
CONSISTENT = 1e-2
# An error below that of rounding pixels to 8 bits, in dB: a claim of the picture itself.
EXACT = 59.0
# Every tensor re-derived to four digits at least, from a dump that carries six or more. In trials
# readings that were right left 1e-6 to 5e-5, those that were wrong 1e-2 and more.
_DIGITS, _OWN_DIGITS, _PRECISE = 1e-4, 1e-3, 1e-6


def examine(
    problem: Problem, recovery: Recovery, *, attack: str, seconds: float
) -> Evidence | Failed:
    """Re-derive every claimed row. `Failed` when there is nothing to re-derive."""
    nothing = recovery.inputs is None and recovery.labels is None and recovery.samples is None
    if nothing and recovery.expired:
        return Failed(attack, where_it_ended(recovery))
    samples = check_samples(problem, recovery)
    if recovery.inputs is None:
        floor = problem.precision
        return Evidence(attack, recovery, (), (), floor, None, (), 0, {}, seconds, samples=samples)
    labels = recovery.input_labels
    if labels is None or len(recovery.inputs) == 0:
        return Failed(attack, "the budget ended before the first restart")
    rows = [
        gradient_of(problem, inputs, row_labels)
        for inputs, row_labels in zip(recovery.inputs, labels, strict=True)
    ]
    layers = [residuals_of(problem, row) for row in rows]
    worst = [max(_finite(value) for value in layer.values()) for layer in layers]
    best = int(torch.tensor(worst).argmin())
    agreement, agreeing = _agreement(problem, recovery.inputs, worst, best)
    if recovery.guided:
        agreement, agreeing = (), min(agreeing, 1)
    return Evidence(
        attack=attack,
        recovery=recovery,
        residuals=tuple(_finite(relative_residual(problem, row)) for row in rows),
        worst_residuals=tuple(worst),
        floor=problem.precision,
        best=best,
        agreement=agreement,
        agreeing=agreeing,
        layers=layers[best],
        seconds=seconds,
        own_residual=max(_own_residual(problem, recovery, row) for row in rows),
        samples=samples,
    )


def where_it_ended(recovery: Recovery) -> str:
    """How far an attack came whose time was over, in words."""
    if not recovery.links:
        return "the budget ended before anything was read"
    last = next((link for link in recovery.links if not link.solved), recovery.links[-1])
    return f"the budget ended before every layer was read; it came as far as {last.layer!r}"


def is_equal(problem: Problem, evidence: Evidence) -> bool:
    """Whether the best claim's gradient equals the dump in every tensor, within tolerance."""
    return evidence.best is not None and (
        evidence.worst_residuals[evidence.best] <= tolerance_of(problem)
    )


def is_verified(problem: Problem, evidence: Evidence) -> bool:
    """Equal to the dump, and an independent restart found the same picture for every sample."""
    return is_equal(problem, evidence) and evidence.agreeing >= 2


def is_proved(problem: Problem, evidence: Evidence) -> bool:
    """Whether the one picture follows from the dump, layer by layer, with nothing left to choose.

    Every layer's equations hold and determine its input; every reading re-derives to the dump; and
    readings with other rounding errors and other starts end within the rounding of a pixel.
    """
    links, readings = evidence.recovery.links, evidence.worst_residuals
    return (
        problem.knowledge.batch_size == 1
        and bool(links)
        and all(link.solved and not link.constrained for link in links)
        and len(readings) >= 2
        and problem.precision <= _PRECISE
        and max(readings) <= _DIGITS
        and evidence.own_residual <= _OWN_DIGITS
        and min(evidence.agreement, default=0.0) >= EXACT
    )


def best_pixels(problem: Problem, evidence: Evidence) -> Tensor:
    """The claim's pictures (N, C, H, W), pixels 0..1, on the CPU."""
    assert evidence.best is not None
    assert evidence.recovery.inputs is not None
    return to_pixels(problem, evidence.recovery.inputs[evidence.best]).float().cpu()


def _agreement(
    problem: Problem, inputs: Tensor, worst: list[float], best: int
) -> tuple[tuple[float, ...], int]:
    """Per sample, how near the nearest other restart came; and how many agree on all samples.

    Only restarts with a small residual count: two that failed may fail alike.
    """
    limit = max(CONSISTENT, tolerance_of(problem))
    if worst[best] > limit:
        return (), 0
    mine = to_pixels(problem, inputs[best]).double().cpu()
    nearest: Tensor | None = None
    agreeing = 1
    for row, residual in enumerate(worst):
        if row == best or residual > limit:
            continue
        other = to_pixels(problem, inputs[row]).double().cpu()
        # The order within a batch means nothing.
        near = psnr(other[match_batch(mine, other)], mine).clamp_max(200.0)  # (N,)
        nearest = near if nearest is None else torch.maximum(nearest, near)
        agreeing += int(bool((near >= AGREE).all()))
    return (() if nearest is None else tuple(nearest.tolist())), agreeing


def _own_residual(problem: Problem, recovery: Recovery, gradient: Mapping[str, Tensor]) -> float:
    """The worst relative residual of the weights that layers were read from, with no floor.

    `residuals_of` forgives a tensor of pure rounding; what was read from one is worth nothing.
    Infinite for inputs outside the pixel range: clipped, different ones would look alike.
    """
    names = [link.layer for link in recovery.links if link.layer in problem.gradient]
    if recovery.inputs is None or not is_in_range(problem, recovery.inputs):
        return math.inf
    sent = problem.gradient
    apart = [float((gradient[n] - sent[n]).norm() / sent[n].norm()) for n in names]
    return max((_finite(value) for value in apart), default=math.inf)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
