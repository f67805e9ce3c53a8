"""How close a claim is to what the client had, in dB, without knowing what the client had.

Three sources:

- The prediction: the error that the dump's noise or rounding leaves around the claim, by its
  Fisher information (auditor/bounds). It holds only when the claim's residual is at the floor: a
  search that is stuck elsewhere has a Fisher information, too, and it means nothing. Pixels are
  taken for independent; of a search in which a prior on pictures spoke, that prior may count
  instead (smooth_prediction.py). Where it falls below what any search gets, that counts.
- The agreement of independent restarts: what they do not share is no property of the dump.
- The residual, where it is above the floor: a function of it that was fitted to graded leaks with
  known pictures (benchmarks/trust.py), and that never exceeds 20 dB.

Agreement brings both of the others down, and never up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.bounds.fisher import Fisher, predicted_psnr
from auditor.bounds.fit import Fit
from auditor.evidence import EXACT, left_of_features, samples_told, shows_pictures
from auditor.problem import is_dropped_from
from auditor.records import Evidence, Problem
from auditor.samples.deflation import ALONE

UNCONFIRMED = 30.0  # dB: equal to the dump, and nothing else speaks for it
CLOSED = 20.0  # dB: at most so much is said of a residual above the floor
_BEYOND_CHANCE, _LITTLE = 3.0, 0.1  # of what pure noise gives and leaves
_HIGHEST = 200.0  # dB: beyond it a number is no JSON number


@dataclass(frozen=True)
class Calibration:
    """The PSNR of the nearest sample as a function of the relative residual, in dB."""

    at_one: float  # of one sample, where the residual is as large as the dump, or larger
    decade: float  # more for each power of ten that the residual is smaller
    doubling: float  # more for each doubling of the batch: the nearest of more samples is nearer

    def at(self, residual: float, size: int) -> float:
        """Never rises with the residual; 0 to `CLOSED`. Not a number or infinite: 0."""
        if not math.isfinite(residual):
            return 0.0
        decades = -math.log10(min(max(residual, 1e-300), 1.0))
        value = self.at_one + self.decade * decades + self.doubling * math.log2(size)
        return min(max(value, 0.0), CLOSED)


# Least squares over claims above the floor, LeNet and ResNet-20 (benchmarks/trust.py). A search in
# which a prior chose ends on something like a picture, whatever the dump says.
PLAIN = Calibration(at_one=7.8, decade=4.0, doubling=0.4)
GUIDED = Calibration(at_one=12.0, decade=3.6, doubling=0.8)


@dataclass(frozen=True)
class Fidelity:
    """The PSNR in dB that speaks for each sample of a claim, and where it comes from."""

    decibels: Tensor  # (N,) float64; of inputs that were read one by one, one for each that stood
    basis: str

    @property
    def best(self) -> float:
        """Of the worst-protected sample."""
        return float(self.decibels.max())


def fidelity_of(
    problem: Problem,
    evidence: Evidence,
    fisher: Fisher | None,
    fit: Fit | None,
    smooth: Tensor | None = None,
) -> Fidelity | None:
    """The fidelity of the best claim; None where nothing is claimed.

    `fisher`: at the claim, with the noise that its error comes from (`appraisal.appraise`); None
    when it could not be computed. `fit`: of the claim's gradient; None counts as above the floor.
    `smooth`: (N,) dB of `smooth_psnr` at a claim for which a prior on pictures spoke.
    """
    if evidence.best is None:
        return _of_single_inputs(evidence)
    size = problem.knowledge.batch_size or 1
    predicted = _predicted(fisher, smooth)
    there = fit is not None and fit.at_floor and explains(problem, evidence)
    at_floor = [there and told for told in samples_told(problem, evidence)]
    residual = evidence.residuals[evidence.best]
    closed = (GUIDED if evidence.recovery.guided else PLAIN).at(residual, size)
    closed = max(closed, of_features(left_of_features(evidence)))
    closed = CLOSED if shows_pictures(problem, evidence) else closed
    values = [
        supported(
            closed,
            at_floor=at_floor[sample],
            predicted=None if predicted is None else predicted[sample],
            agreement=_agreement(problem, evidence, sample, predicted is not None),
        )
        for sample in range(size)
    ]
    for place, word in enumerate(evidence.samples):  # those that stand by themselves
        values[place] = max(values[place], ALONE if word == "verified" else 0.0)
    values = [min(value, ceiling_of(problem, evidence)) for value in values]
    basis = _basis(any(at_floor), predicted is not None, bool(evidence.agreement))
    return Fidelity(torch.tensor(values, dtype=torch.float64), basis)


def of_features(residual: float | None) -> float:
    """dB of a picture that makes features, which were read off the dump, up to this residual.

    Layers near the picture keep distances about as they are, relative to its size; at most `CLOSED`
    is said, since the picture is still above the floor. None: no features were read.
    """
    if residual is None or not 0 < residual < 1:
        return CLOSED if residual == 0 else 0.0
    return min(-20 * math.log10(residual), CLOSED)


def explains(problem: Problem, evidence: Evidence) -> bool:
    """Whether the best claim explains more of a defended dump than it would of pure noise.

    As many free numbers as the claim has pixels explain their share of noise, and at most five
    standard deviations more. Three times that is asked for, since noise that differs between layers
    can be fitted where it is largest; or that every layer is left with a tenth of what chance
    leaves, since three times a large share is more than there is. A noise that is estimated too
    large makes any claim equal.
    """
    if problem.channel.is_clear or evidence.best is None or evidence.recovery.inputs is None:
        return True
    entries = sum(int((sent != 0).sum()) for sent in problem.gradient.values())
    unknowns = evidence.recovery.inputs[evidence.best].numel()
    by_chance = (unknowns + 5 * math.sqrt(2 * unknowns)) / max(entries, 1)
    explained = 1 - evidence.residuals[evidence.best] ** 2
    left = evidence.worst_residuals[evidence.best] ** 2
    return explained > _BEYOND_CHANCE * by_chance or left < _LITTLE * (1 - by_chance)


def ceiling_of(problem: Problem, evidence: Evidence) -> float:
    """The dB that no claim of this evidence exceeds, however well it fits.

    What a layer left open is taken for noise, uniform over the pixel range. Fewer numbers than
    pixels fit many pictures, and so does a dump that unlike pictures explain about as well. Behind
    dropout the mask is in the claim.
    """
    known = problem.knowledge
    unknowns = (known.batch_size or 1) * math.prod(known.input_shape)
    if sum(sent.numel() for sent in problem.gradient.values()) < unknowns:
        return 0.0
    links = evidence.recovery.links
    share = max((link.undetermined / link.unknowns for link in links), default=0.0)
    open_ = -10 * math.log10(share / 12) if share > 0 else math.inf
    masked = CLOSED if is_dropped_from(problem) else math.inf
    return min(open_, evidence.ceiling, masked)


def supported(
    closed: float, *, at_floor: bool, predicted: float | None, agreement: float | None
) -> float:
    """The dB that a claim's evidence supports: it never falls with any of them.

    `closed`: what the residual is worth by itself (`Calibration.at`). `predicted`, `agreement`: dB;
    None: not known.
    """
    agreed = _HIGHEST if agreement is None else min(agreement, _HIGHEST)
    if not at_floor:
        return min(closed, agreed)
    if predicted is None:
        return UNCONFIRMED if agreement is None else agreed
    return min(max(predicted, closed), agreed)


def _agreement(problem: Problem, evidence: Evidence, sample: int, predicted: bool) -> float | None:
    """Of this sample with its nearest restart; where they share unknown noise, capped."""
    if not evidence.agreement:
        return None
    found = evidence.agreement[sample]
    return found if predicted or problem.channel.is_clear else min(found, UNCONFIRMED)


def _predicted(fisher: Fisher | None, smooth: Tensor | None) -> Sequence[float] | None:
    """dB of each sample (N,), by whichever prior leaves less open."""
    found = [] if fisher is None else [predicted_psnr(fisher)]
    found += [] if smooth is None else [smooth]
    return torch.stack(found).amax(0).tolist() if found else None


def _of_single_inputs(evidence: Evidence) -> Fidelity | None:
    """Inputs that were read one by one: exact, or not told from a mixture for certain."""
    worth = {"verified": EXACT, "consistent": UNCONFIRMED}
    values = [worth[word] for word in evidence.samples if word is not None]
    if not values:
        return None
    return Fidelity(torch.tensor(values, dtype=torch.float64), "each input was checked by itself")


def _basis(at_floor: bool, predicted: bool, agreement: bool) -> str:
    """What the number rests on, in words."""
    if not at_floor:
        told = "the residual is above the floor: a calibrated function of it"
    elif predicted:
        told = "predicted from the Fisher information at the claim, whose residual is at the floor"
    elif agreement:
        return "agreement of independent restarts; no error could be predicted"
    else:
        return "the claim equals the dump, and no error could be predicted"
    return f"{told}; no more than independent restarts agree to" if agreement else told
