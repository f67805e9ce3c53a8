"""Canaries: simulated dumps of the audited model, of which the truth is known.

How often the attacks succeed on a model can be counted where it can be checked: on dumps that a
client would have sent with other pictures, in the same mode, with the same batch size, through the
same defence. The interval of the share is that of Clopper and Pearson 1934, "The use of confidence
or fiducial limits illustrated in the case of the binomial", Biometrika 26.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks import Attack, Watch
from auditor.evidence import best_pixels
from auditor.metrics import flat_of, match_batch, psnr
from auditor.problem import to_pixels, why_not_simulated
from auditor.records import CanaryReport, Evidence, Problem
from auditor.trials.running import attempt, dice, within
from auditor.trials.stand_ins import dump_of, stand_ins, told_of_stand_ins

OPENED = 20.0  # dB of the worst-protected sample: from here on people and objects are recognisable
_ABOVE_FLAT = 3.0  # dB above the best single-coloured picture, or a resemblance means nothing
_LEAST = 3  # simulated dumps, or nothing is said
_WAVES = 6  # a dump gets this part of the time, so that _LEAST are sure to be done


@dataclass(frozen=True)
class _Canary:
    """A simulated dump and what its client had."""

    problem: Problem
    pixels: Tensor  # (N, C, H, W)


def canaries(
    problem: Problem, attacks: Sequence[Attack], *, seed: int, watch: Watch, most: int = 20
) -> CanaryReport | None:
    """Simulate up to `most` dumps and attack each, in the order of `attacks`, until one opens it.

    None when fewer than three could be attacked before `watch` ended, or none can be simulated.
    The pictures are the problem's auxiliary ones, or smooth random ones. A dump counts as opened
    when the harness's best claim of any attack is within 20 dB of a sample, and 3 dB nearer than
    the sample's best single colour. Each has a sixth of the time at most.
    """
    if problem.knowledge.batch_size is None or why_not_simulated(problem) is not None:
        return None
    generator = dice(seed, "canaries")
    limit = None
    if watch.deadline is not None:
        limit = max(watch.deadline - time.monotonic(), 0.0) / _WAVES
    opened = simulated = 0
    for index in range(most):
        if watch.expired():
            break
        own = watch if limit is None else within(watch, limit)
        opens = _opens(_canary(problem, generator), attacks, seed + index, own)
        # One that the end of all time cut short is not a fair trial.
        if opens or not watch.expired():
            opened, simulated = opened + opens, simulated + 1
    if simulated < _LEAST:
        return None
    return _report(opened, simulated, told_of_stand_ins(problem), limit)


def clopper_pearson(opened: int, simulated: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `opened` of `simulated` trials were counted."""
    from scipy.stats import binomtest

    found = binomtest(opened, simulated).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


def _report(opened: int, simulated: int, pictures: str, limit: float | None) -> CanaryReport:
    low, high = clopper_pearson(opened, simulated)
    each = "" if limit is None else f", in at most {limit:.2g} seconds each"
    summary = (
        f"{opened} of {simulated} simulated dumps of this model were opened{each}: one of their "
        f"pictures was rebuilt at {OPENED:.0f} dB or better. The share is between {100 * low:.0f} "
        f"and {100 * high:.0f} % (at 95 % confidence) for clients with such pictures: {pictures}."
    )
    return CanaryReport(opened, simulated, low, high, OPENED, pictures, summary)


def _canary(problem: Problem, generator: torch.Generator) -> _Canary:
    """Nothing that was read of the audited dump goes along, its labels least of all."""
    pixels, labels = stand_ins(problem, generator)
    made = dump_of(problem, pixels, labels, generator)
    other = replace(problem, gradient=made, labels=None, statistics={})
    return _Canary(other, pixels.double())


def _opens(canary: _Canary, attacks: Sequence[Attack], seed: int, watch: Watch) -> bool:
    """Whether an attack rebuilds a picture; each but the last has half of the time that is left."""
    problem = canary.problem
    for place, attack in enumerate(attacks):
        if watch.expired():
            return False
        found = attempt(problem, attack, seed=seed, watch=_half(watch, place == len(attacks) - 1))
        if found is None:
            continue
        if _is_opened(problem, found, canary.pixels):
            return True
        if found.recovery.labels is not None:
            problem = replace(problem, labels=found.recovery.labels)
    return False


def _half(watch: Watch, last: bool) -> Watch:
    if watch.deadline is None or last:
        return watch
    return within(watch, max(watch.deadline - time.monotonic(), 0.0) / 2)


def _is_opened(problem: Problem, found: Evidence, pixels: Tensor) -> bool:
    claimed, true = _pairs(problem, found, pixels)
    if not len(claimed):
        return False
    near = psnr(claimed, true)
    flat = psnr(flat_of(true), true)
    return bool(((near >= OPENED) & (near >= flat + _ABOVE_FLAT)).any())


def _pairs(problem: Problem, found: Evidence, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Claimed pictures (M, C, H, W), and beside each the client's that it goes with."""
    if found.best is not None:
        claimed = best_pixels(problem, found).double()
        if not bool(claimed.isfinite().all()):
            return claimed[:0], pixels[:0]
        return claimed, pixels[match_batch(claimed, pixels)]
    samples = found.recovery.samples
    if samples is None or not any(found.samples):
        return pixels[:0], pixels[:0]
    shown = [place for place, word in enumerate(found.samples) if word is not None]
    claimed = to_pixels(problem, samples[shown]).double().cpu()
    apart = torch.cdist(claimed.flatten(1), pixels.flatten(1))
    return claimed, pixels[apart.argmin(1)]
