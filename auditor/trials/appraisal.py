"""What the best claim is worth: its fit, the bound around it, its fidelity, in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.failures import told_of
from auditor.bounds.fisher import Fisher, fisher_of, why_no_fisher
from auditor.bounds.fit import Fit, fit_of, noise_left
from auditor.bounds.noise import noise_of
from auditor.evidence import samples_told
from auditor.problem import gradient_of
from auditor.records import Evidence, Problem
from auditor.trials.fidelity import Fidelity, explains, fidelity_of
from auditor.trials.smooth_prediction import smooth_psnr


@dataclass(frozen=True)
class Appraisal:
    """What is said of a claim without knowing the truth, and why the rest is not said."""

    fidelity: Fidelity | None
    fit: Fit | None
    fisher: Fisher | None  # with the noise of the dump; above rounding, of what the fit left
    unsaid: tuple[str, ...]


def appraise(
    problem: Problem, evidence: Evidence, *, expired: Callable[[], bool] = lambda: False
) -> Appraisal:
    """Fit, Fisher information and fidelity of the best claim of one attack."""
    labels = evidence.recovery.input_labels
    if evidence.best is None or evidence.recovery.inputs is None or labels is None:
        return Appraisal(fidelity_of(problem, evidence, None, None), None, None, ())
    inputs, named = evidence.recovery.inputs[evidence.best], labels[evidence.best]
    fit = fit_of(problem, gradient_of(problem, inputs, named), inputs.numel())
    fisher, smooth, reason = None, None, "its residual is above the floor of the dump"
    told = any(samples_told(problem, evidence))
    if fit.at_floor and told and explains(problem, evidence):
        fisher, smooth, reason = _predictions(problem, evidence, fit, expired)
    unsaid = () if fisher is not None else (f"no bound at the claim: {reason}",)
    return Appraisal(fidelity_of(problem, evidence, fisher, fit, smooth), fit, fisher, unsaid)


def _predictions(
    problem: Problem, evidence: Evidence, fit: Fit, expired: Callable[[], bool]
) -> tuple[Fisher | None, Tensor | None, str]:
    """The information at the claim, what smoothness adds to it, and why there is none."""
    inputs, labels = evidence.recovery.inputs, evidence.recovery.input_labels
    assert evidence.best is not None
    assert inputs is not None
    assert labels is not None
    point, named, noise = inputs[evidence.best], labels[evidence.best], _noise(problem, fit)
    reason = why_no_fisher(problem)
    if reason is not None:
        return None, None, reason
    try:
        smooth = None
        if evidence.recovery.guided or evidence.recovery.smooth:  # first: it takes less time
            smooth = smooth_psnr(problem, point, named, noise=noise, expired=expired)
        fisher = fisher_of(problem, point, named, noise=noise, expired=expired)
    except (torch.OutOfMemoryError, MemoryError):
        return None, None, "out of memory"
    except (RuntimeError, ValueError) as error:
        told = told_of(error)
        if told is None:
            raise
        return None, None, told
    return fisher, smooth, "it could not be computed in the time"


def _noise(problem: Problem, fit: Fit) -> Mapping[str, float]:
    """What the claim's error comes from: the noise, or the residual that a search ended with.

    At the floor of noise the residual is noise: a prior, which spends fewer degrees of freedom than
    there are pixels, leaves more of it.
    """
    noisy = (problem.channel.sigma or problem.channel.steps) and not problem.channel.scaled
    return noise_of(problem) if noisy else noise_left(problem, fit)
