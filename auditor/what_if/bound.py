"""Bounds of a defended dump: from its Fisher information, and what DP promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from auditor.attacks.failures import told_of
from auditor.bounds.fisher import fisher_of, why_no_fisher
from auditor.bounds.noise import noise_of
from auditor.bounds.privacy import epsilon_of, gaussian_robustness, why_no_accountant
from auditor.bounds.statement import report_of
from auditor.problem import to_model_units
from auditor.records import Problem
from auditor.what_if.defended import Sent
from auditor.what_if.settings import Setting

_DELTA = 1e-5
_PRIOR = 1e-3  # kappa


def bound_of(sent: Sent, expired: Callable[[], bool]) -> float | None:
    """dB of the sample that is told best, to an attacker who knows of pixels their variance only.

    From the posterior variance of van Trees at the true samples (auditor/bounds/fisher.py), with
    the labels known. None when it cannot be computed, or not in time.
    """
    problem = _as_informative(sent)
    if why_no_fisher(problem) is not None:
        return None
    like = next(iter(problem.gradient.values()))
    inputs = to_model_units(problem, sent.truth.inputs.to(like))
    noise = {name: sigma / sent.factor for name, sigma in noise_of(problem).items()}
    labels = sent.truth.labels.to(like.device)
    try:
        fisher = fisher_of(problem, inputs, labels, noise=noise, expired=expired)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except (RuntimeError, ValueError) as error:
        if told_of(error) is None:
            raise
        return None
    if fisher is None:
        return None
    return report_of(fisher, "given noise", problem).worst_psnr


def _as_informative(sent: Sent) -> Problem:
    """Samples that were clipped one by one have no common factor: as if each one's were known."""
    problem = sent.problem
    if sent.factor < 1 and len(sent.truth.labels) > 1:
        return replace(problem, channel=replace(problem.channel, scaled=False))
    return problem


def privacy_of(setting: Setting) -> str:
    """What DP-SGD with this noise promises of one step with the whole batch; else nothing."""
    if setting.kind != "dp-sgd":
        return ""
    missing, multiplier = why_no_accountant(), setting.strength
    chance = gaussian_robustness(multiplier, steps=1, prior=_PRIOR)
    promise = (
        f"a picture that is guessed with a chance of {_PRIOR:g} before is rebuilt with one of "
        f"{chance:.3g} at most"
    )
    if missing is not None:
        return f"epsilon not computed: {missing}; {promise}"
    epsilon = epsilon_of(multiplier, sample_rate=1.0, steps=1, delta=_DELTA)
    return f"epsilon {epsilon:.3g} at delta {_DELTA:g} for this one step; {promise}"
