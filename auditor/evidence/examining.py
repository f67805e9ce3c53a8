"""The claim re-checked: its gradient derived again, and restarts compared with one another.

An attack does not grade itself. What counts is the gradient of the inputs and hard labels that it
names, from the one definition in the room `problem`, and whether restarts that started elsewhere
agree.

Of a dump that was defended (`Problem.channel`), "equal" means at the floor: the noise explains what
is left (auditor/bounds/fit.py), what was dropped is smaller than what was kept, and a gray picture
in the place of any sample would not do as well. Where it would in some places, the dump says
nothing of those samples, and the others are told by themselves (`Evidence.told`).

Of any dump but a noised one, pictures that are unlike the claim's are tried in their place. A
network may send the same gradient whatever it sees, to rounding; then any claim equals the dump.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from auditor.attacks.failures import told_of
from auditor.attacks.likelihood import thresholds
from auditor.batch_statistics import distances
from auditor.bounds.fit import Fit, fit_of
from auditor.evidence.standing import CONSISTENT, where_it_ended
from auditor.metrics import match_batch, psnr
from auditor.problem import (
    gradient_of,
    is_in_range,
    relative_residual,
    residuals_of,
    scale_of,
    statistics_apart,
    to_model_units,
    to_pixels,
    tolerance_of,
)
from auditor.records import Certainty, Evidence, Failed, Problem, Recovery
from auditor.samples.check import check_samples
from auditor.samples.deflation import stand_alone

# Restarts agree when their pictures differ by less than this, in dB: 3 % of the pixel range.
AGREE = 30.0
# Under noise a prior draws two answers towards gray alike. They agree where they are so much nearer
# to one another than to gray, as a ratio of mean squared differences.
_TOLD = 0.01
# Where it is asked whether the dump tells the contrast of a claim: what is left of it, and how many
# tolerances are its equal. A tenth more or less is then within one, and 30 dB away.
_LESS, _TWICE = 0.8, 2.0
# Pictures further apart than this, in dB, are unlike.
UNLIKE = 15.0


def examine(
    problem: Problem, recovery: Recovery, *, attack: str, seconds: float
) -> Evidence | Failed:
    """Re-derive every claimed row. `Failed` when there is nothing to re-derive."""
    nothing = recovery.inputs is None and recovery.labels is None and recovery.samples is None
    if nothing and recovery.expired:
        return Failed(attack, where_it_ended(recovery))
    if recovery.inputs is None:
        floor, samples = problem.precision, check_samples(problem, recovery)
        return Evidence(attack, recovery, (), (), floor, None, (), 0, {}, seconds, samples=samples)
    if recovery.input_labels is None or len(recovery.inputs) == 0:
        return Failed(attack, "the budget ended before the first restart")
    return _with_inputs(problem, recovery, attack, seconds)


def _with_inputs(problem: Problem, recovery: Recovery, attack: str, seconds: float) -> Evidence:
    assert recovery.inputs is not None
    assert recovery.input_labels is not None
    samples, labels = check_samples(problem, recovery), recovery.input_labels
    rows = [
        gradient_of(problem, inputs, row_labels)
        for inputs, row_labels in zip(recovery.inputs, labels, strict=True)
    ]
    fits = _fits(problem, recovery.inputs, rows)
    told = [
        _told(problem, inputs, row_labels)
        if fit.at_floor and _drops(problem, row, fit)
        else (False,) * len(inputs)
        for fit, row, inputs, row_labels in zip(fits, rows, recovery.inputs, labels, strict=False)
    ]
    at_floor = [all(samples) for samples in told]
    if fits:
        rows = [_as_sent(problem, row, fit) for row, fit in zip(rows, fits, strict=True)]
    layers = [residuals_of(problem, row) for row in rows]
    worst = [max(_finite(value) for value in layer.values()) for layer in layers]
    statistics = _statistics(problem, recovery.inputs)
    best = _best(_as_batch(worst, statistics), fits, at_floor)
    limit = max(CONSISTENT, tolerance_of(problem))
    close = at_floor if fits else [value <= limit for value in _as_batch(worst, statistics)]
    agreement, agreeing = _agreement(problem, recovery.inputs, close, best)
    contrast_open = close[best] and _is_contrast_open(problem, recovery, best)
    if recovery.guided or contrast_open:
        agreement, agreeing = (), min(agreeing, 1)
    if recovery.samples is None and fits and not at_floor[best]:
        recovery, samples = _one_by_one(problem, recovery, best)
    residuals = tuple(_finite(relative_residual(problem, row)) for row in rows)
    counts = close[best] or min(worst[best], residuals[best]) <= limit
    return Evidence(
        attack=attack,
        recovery=recovery,
        residuals=residuals,
        worst_residuals=tuple(worst),
        floor=problem.precision,
        best=best,
        agreement=agreement,
        agreeing=agreeing,
        layers=layers[best],
        seconds=seconds,
        statistics=statistics,
        contrast_open=contrast_open,
        own_residual=max(_own_residual(problem, recovery, row) for row in rows),
        samples=samples,
        misfits=tuple(_finite(fit.ratio) for fit in fits),
        at_floor=tuple(at_floor),
        told=told[best] if told else (),
        ceiling=_ceiling(problem, recovery, best, worst[best]) if counts else math.inf,
    )


def _one_by_one(
    problem: Problem, recovery: Recovery, best: int
) -> tuple[Recovery, tuple[Certainty | None, ...]]:
    """The claim with those of its pictures named that stand although the whole of it does not."""
    assert recovery.inputs is not None
    alone, where = stand_alone(problem, recovery.inputs[best])
    if not any(alone):
        return recovery, ()
    pictures, ones = recovery.inputs[best], (1,) * len(alone)
    named = replace(recovery, samples=pictures, witnesses=ones, read_from=where)
    return named, tuple("verified" if stands else None for stands in alone)


def _fits(problem: Problem, inputs: Tensor, rows: list[dict[str, Tensor]]) -> list[Fit]:
    """Of every row against the floor of a defended dump; empty when the channel is clear."""
    if problem.channel.is_clear:
        return []
    unknowns = inputs[0].numel()
    return [fit_of(problem, row, unknowns) for row in rows]


def _as_sent(problem: Problem, gradient: Mapping[str, Tensor], fit: Fit) -> dict[str, Tensor]:
    """A claim's gradient with the factor of the dump, and what was dropped from it dropped."""
    scaled = {name: fit.scale * part for name, part in gradient.items()}
    if not problem.channel.masked:
        return scaled
    return {name: torch.where(problem.gradient[name] != 0, p, 0.0) for name, p in scaled.items()}


def _drops(problem: Problem, gradient: Mapping[str, Tensor], fit: Fit) -> bool:
    """Whether the entries that were dropped are smaller than those that were kept."""
    scales, tolerance = scale_of(problem), tolerance_of(problem)
    for name, threshold in thresholds(problem).items():
        dropped = fit.scale * gradient[name][problem.gradient[name] == 0]
        over = (dropped.abs() - threshold - 5 * problem.channel.sigma).clamp_min(0)
        if not bool(over.norm() <= tolerance * scales[name]):
            return False
    return True


def _told(problem: Problem, inputs: Tensor, labels: Tensor) -> tuple[bool, ...]:
    """Of each sample (N, C, H, W): whether a gray picture in its place leaves more than noise."""
    gray = to_model_units(problem, torch.full_like(inputs[:1], 0.5))
    found = []
    for place in range(len(inputs)):
        other = torch.cat([inputs[:place], gray, inputs[place + 1 :]])
        fit = fit_of(problem, gradient_of(problem, other, labels), inputs.numel())
        found.append(not fit.at_floor)
    return tuple(found)


def _ceiling(problem: Problem, recovery: Recovery, best: int, left: float) -> float:
    """dB that the claim is worth at most: as far away as its residual `left` may be an error.

    Errors grow with the residual: what unlike pictures leave in the worst tensor, and how far away
    they are, is the measure. Infinite where noise is most of the residual.
    """
    if problem.channel.sigma or problem.channel.steps or problem.channel.signs:
        return math.inf
    assert recovery.inputs is not None
    assert recovery.input_labels is not None
    pixels, found = to_pixels(problem, recovery.inputs[best]), math.inf
    half = torch.where(pixels < 0.5, pixels + 0.5, pixels - 0.5)  # 6 dB, whatever the claim is
    for other in (half, torch.full_like(pixels, 0.5)):
        near = float(psnr(other.double(), pixels.double()).max())
        apart = _left_by(problem, to_model_units(problem, other), recovery.input_labels[best])
        if near < UNLIKE and apart > 0:
            found = min(found, near + 20 * math.log10(apart / max(left, problem.precision)))
    return max(found, 0.0)


def _left_by(problem: Problem, inputs: Tensor, labels: Tensor) -> float:
    """What pictures leave of the dump in the worst tensor; infinite where that is not known."""
    try:
        row = gradient_of(problem, inputs, labels)
    except (RuntimeError, ValueError) as error:
        if told_of(error) is None:
            raise
        return math.inf
    if problem.channel.scaled or problem.channel.masked:
        row = _as_sent(problem, row, fit_of(problem, row, inputs.numel()))
    return max(_finite(value) for value in residuals_of(problem, row).values())


def _statistics(problem: Problem, inputs: Tensor) -> tuple[float, ...]:
    """Of each row (R, N, C, H, W), how far its worst batch norm is from what was sent along.

    Empty when nothing was, and through a defence, which the buffers may have passed as well.
    """
    if not problem.statistics or not problem.channel.is_clear:
        return ()
    with torch.no_grad():
        rows = [distances(statistics_apart(problem, each)) for each in inputs]
    return tuple(max(_finite(value) for value in row.values()) for row in rows)


def _is_contrast_open(problem: Problem, recovery: Recovery, best: int) -> bool:
    """Whether the claim with less contrast is its equal, as after batch norm in training mode.

    Less contrast: nearer to zero, or nearer to the mean of each channel over the batch; a first
    convolution with padding tells the second, one without tells neither.
    """
    if problem.knowledge.mode != "train" or not problem.trace.batch_norm or problem.statistics:
        return False
    assert recovery.inputs is not None
    assert recovery.input_labels is not None
    inputs, labels = recovery.inputs[best], recovery.input_labels[best]
    means = inputs.mean((0, 2, 3), keepdim=True) if inputs.ndim == 4 else inputs.mean(0)
    for centre in (torch.zeros_like(means), means):
        other = gradient_of(problem, centre + _LESS * (inputs - centre), labels)
        left = max(_finite(value) for value in residuals_of(problem, other).values())
        if left <= _TWICE * tolerance_of(problem):
            return True
    return False


def _as_batch(worst: list[float], statistics: tuple[float, ...]) -> list[float]:
    """Residuals of the rows; infinite for those whose batch statistics are not those sent along.

    If they all are, what they leave of the gradient decides.
    """
    if not any(value <= CONSISTENT for value in statistics):
        return worst
    pairs = zip(worst, statistics, strict=True)
    return [left if value <= CONSISTENT else math.inf for left, value in pairs]


def _best(worst: list[float], fits: list[Fit], at_floor: list[bool]) -> int:
    """The row of the claim: the first at the floor, else the one that comes nearest."""
    if any(at_floor):
        return at_floor.index(True)
    values = [_finite(fit.ratio) for fit in fits]
    apart = values if values and min(values) < math.inf else worst
    return int(torch.tensor(apart).argmin())


def _agreement(
    problem: Problem, inputs: Tensor, close: list[bool], best: int
) -> tuple[tuple[float, ...], int]:
    """Per sample, how near the nearest other restart came; and how many agree on all samples.

    Only restarts with a small residual count: two that failed may fail alike.
    """
    if not close[best]:
        return (), 0
    mine = to_pixels(problem, inputs[best]).double().cpu()
    nearest: Tensor | None = None
    agreeing = 1
    for row, counts in enumerate(close):
        if row == best or not counts:
            continue
        other = to_pixels(problem, inputs[row]).double().cpu()
        # The order within a batch means nothing.
        other = other[match_batch(mine, other)]
        near = psnr(other, mine).clamp_max(200.0)  # (N,)
        nearest = near if nearest is None else torch.maximum(nearest, near)
        agreeing += int(bool((near >= AGREE).all()) and _from_dump(problem, mine, other))
    return (() if nearest is None else tuple(nearest.tolist())), agreeing


def _from_dump(problem: Problem, one: Tensor, other: Tensor) -> bool:
    """Whether two answers (N, C, H, W), pixels, agree by more than what a prior makes of noise."""
    if problem.channel.is_clear:
        return True
    apart = (one - other).square().flatten(1).mean(1)
    from_gray = torch.minimum((one - 0.5).square(), (other - 0.5).square()).flatten(1).mean(1)
    return bool((apart <= _TOLD * from_gray).all())


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
