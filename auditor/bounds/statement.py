"""The bound as the report states it, with what it takes for granted."""

from __future__ import annotations

import math
from typing import Literal

from auditor.bounds.fisher import Fisher, overall_noise
from auditor.bounds.noise import noise_of
from auditor.problem import is_one_gradient, is_table
from auditor.records import Bound, Problem

_ALWAYS = (
    "The errors of the dump's entries are independent and normal, with the standard deviation that "
    "is named.",
    "The labels, the number of samples, and how the client trained are known to the attacker.",
    "The Fisher information is that of the rebuilt (or given) pictures. For the true ones it is "
    "the same as far as the gradient is linear in the pixels between the two.",
    "The unbiased bound (Cramer-Rao) is one for attacks that add nothing of their own. An attack "
    "that favours some pictures can beat it.",
    "The bound with a prior (van Trees) is one for attacks that know of a pixel no more than a "
    "normal prior around mid-grey with the variance of a uniform pixel, 1/12. An attack that knows "
    "how pictures look can beat it.",
)
_COLUMNS = (
    "The bound with a prior (van Trees) is one for attacks that know of a column no more than a "
    "normal prior with its mean and its deviation. An attack that knows how columns go together, "
    "or that one holds whole numbers or yes and no, can beat it."
)
_LANCZOS = (
    "The figures with a prior come from random probes of a large matrix and are given on the side "
    "of the attacker: up to {error:.1f} dB too high."
)
_MASK = "Entries that were dropped say nothing. That each was small does say a little."
_STEPS = "The error of a quantised entry is uniform; normal errors of that variance stand in."
_FACTOR = "The gradient was multiplied with a factor that the attacker does not know."
_RAISED = (
    "The search ended above the level of rounding. The standard deviation that is named is what it "
    "left: an attack that fits the dump better is not bound by these figures."
)
_HIGHER = 1.05  # times the rounding: then it is not rounding that the figures hold for
_LOCAL = "The client's local steps are known in number and order."


def report_of(
    fisher: Fisher,
    origin: Literal["estimated noise", "given noise", "rounding of the dump"],
    problem: Problem,
) -> Bound:
    """The bound as plain data. PSNR in dB, of the mean squared error that is expected."""
    means = fisher.posterior.flatten(1).mean(1).double()
    unbiased = None if math.isinf(fisher.unbiased) else _decibels(fisher.unbiased)
    return Bound(
        sigma=fisher.sigma,
        origin=origin,
        method=fisher.method,
        unknowns=fisher.unknowns,
        effective=fisher.effective,
        unbiased_psnr=unbiased,
        prior_psnr=_decibels(float(means.mean())),
        worst_psnr=_decibels(float(means.min())),
        assumptions=_assumptions(fisher, problem) + _raised(fisher, origin, problem),
    )


def _raised(fisher: Fisher, origin: str, problem: Problem) -> tuple[str, ...]:
    own = overall_noise(problem, noise_of(problem))
    higher = origin == "rounding of the dump" and fisher.sigma > _HIGHER * own
    return (_RAISED,) if higher else ()


def _assumptions(fisher: Fisher, problem: Problem) -> tuple[str, ...]:
    channel, more = problem.channel, []
    if channel.masked:
        more.append(_MASK)
    if channel.steps:
        more.append(_STEPS)
    if channel.scaled:
        more.append(_FACTOR)
    if not is_one_gradient(problem):
        more.append(_LOCAL)
    if fisher.method == "Lanczos":
        more.append(_LANCZOS.format(error=fisher.error))
    always = (*_ALWAYS[:-1], _COLUMNS) if is_table(problem) else _ALWAYS
    return (*always, *more)


def _decibels(squared: float) -> float:
    return -10 * math.log10(squared)
