"""The claim re-checked: its gradient derived again, and restarts compared with one another.

An attack does not grade itself. What counts is the gradient of the inputs and hard labels that it
names, from the one definition in problem.py, and whether restarts that started elsewhere agree.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.metrics import match_batch, psnr
from auditor.problem import gradient_of, relative_residual, residuals_of, to_pixels, tolerance_of
from auditor.records import Evidence, Failed, Problem, Recovery

# Restarts agree when their pictures differ by less than this, in dB: 3 % of the pixel range.
AGREE = 30.0
# Up to here a residual is small enough to be called consistent.
CONSISTENT = 1e-2


def examine(
    problem: Problem, recovery: Recovery, *, attack: str, seconds: float
) -> Evidence | Failed:
    """Re-derive every claimed row. `Failed` when there is nothing to re-derive."""
    if recovery.inputs is None:
        return Evidence(attack, recovery, (), (), problem.precision, None, (), 0, {}, seconds)
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
    )


def is_equal(problem: Problem, evidence: Evidence) -> bool:
    """Whether the best claim's gradient equals the dump in every tensor, within tolerance."""
    return evidence.best is not None and (
        evidence.worst_residuals[evidence.best] <= tolerance_of(problem)
    )


def is_verified(problem: Problem, evidence: Evidence) -> bool:
    """Equal to the dump, and an independent restart found the same picture for every sample."""
    return is_equal(problem, evidence) and evidence.agreeing >= 2


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


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
