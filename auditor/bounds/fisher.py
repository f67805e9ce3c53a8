"""Fisher information of the dump about the pixels, and the best that any attack could do with it.

With independent normal noise, F = J'J of the whitened Jacobian (jacobian.py). From it follow
- the Cramer-Rao bound: the variance of a pixel in any unbiased estimate is at least (F^-1)_pp;
- the posterior variance ((F + 12)^-1)_pp of an attacker whose prior on every pixel is normal with
  the variance of a uniform pixel, 1/12: the form of van Trees (1968), with F taken at this point.
Fisher information as a measure of leakage: Hannun, Guo, van der Maaten 2021, arXiv:2102.11673.

The Gauss-Newton step from the point to the likeliest pictures under that prior says how far a
search is from its end.

Small inputs: orthogonal factors of J, which is never squared. Large ones: Lanczos (lanczos.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from auditor.bounds.factor import inverse_of, posterior_root, unbiased
from auditor.bounds.jacobian import Sensitivity, sensitivity_of
from auditor.bounds.lanczos import probe_inverse
from auditor.bounds.noise import kept_of
from auditor.problem import why_not_simulated
from auditor.records import Problem
from auditor.solve import LinearMap, least_squares

PRIOR = 1 / 12  # variance of a uniform pixel 0..1
_SMALL, _DENSE_UNKNOWNS = 1100, 3200  # dense at once; dense where Lanczos is not close enough
_DENSE_BYTES = 1 << 29
_PROBES, _STEPS = 12, 400
_BASIS_BYTES = 1 << 29  # of Lanczos, which keeps a vector a step
_FURTHEST = 3.0  # dB between the rules of Lanczos: beyond that nothing is said


@dataclass(frozen=True, eq=False)
class Fisher:
    """What the dump tells of each pixel at one point. Variances in pixel units squared."""

    variance: Tensor | None  # (N, C, H, W) Cramer-Rao, inf where undetermined; None: mean only
    posterior: Tensor  # (N, C, H, W), at most 1/12; by Lanczos with the noise of its probes
    unbiased: float  # mean over all pixels of `variance`; inf where some pixel is undetermined
    effective: float  # sum over directions of what the dump adds to the prior, 0..unknowns
    unknowns: int
    sigma: float  # of one entry, root mean square over the kept ones
    method: Literal["dense", "Lanczos"]
    error: float  # dB: how far the figures from `posterior` may be off
    apart: Tensor | None = None  # (N, C, H, W) squared Gauss-Newton step to the likeliest pictures
    factor: Tensor | None = None  # (min(m, n), n) R of the whitened Jacobian; None: by Lanczos


def fisher_of(
    problem: Problem,
    inputs: Tensor,
    labels: Tensor,
    *,
    noise: float | Mapping[str, float],
    expired: Callable[[], bool] = lambda: False,
    dense: bool | None = None,
) -> Fisher | None:
    """The information about `inputs` (N, C, H, W) in model units, labels (N,) known.

    `noise`: the standard deviation of an entry, for all tensors or by name (noise.py). `dense`:
    None lets the size decide; True gives large inputs, too, a map of single pixels that is worth
    looking at. None is the answer when the budget ended, or Lanczos was not close enough at its
    end. Raises ValueError where `why_no_fisher` gives a reason.
    """
    reason = why_no_fisher(problem)
    if reason is not None:
        raise ValueError(f"no Fisher information: {reason}")
    by_name = noise if isinstance(noise, Mapping) else dict.fromkeys(problem.gradient, noise)
    sigma = overall_noise(problem, by_name)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        found = sensitivity_of(problem, inputs, labels, by_name)
        fits = _fits(found)
        if dense or (dense is None and fits and found.unknowns <= _SMALL):
            return _dense(found, sigma, expired)
        answer = _lanczos(found, sigma, expired)
        if answer is None and dense is None and fits:
            return _dense(found, sigma, expired)
        return answer


def why_no_fisher(problem: Problem) -> str | None:
    """Why there is no Fisher information of this dump, for people; None when there is."""
    if problem.channel.signs:
        return "of signs alone no smooth likelihood is left"
    if isinstance(problem.module, torch.jit.ScriptModule):
        return "a TorchScript model cannot be differentiated twice in the way that this needs"
    if problem.statistics:
        return "statistics of the batch were sent along, and tell more than the gradient"
    return why_not_simulated(problem)


def predicted_psnr(fisher: Fisher) -> Tensor:
    """(N,) dB: what an attack with that prior reaches on each sample, where it is at the floor.

    From the posterior variance, less the error of its estimate. The truth itself is as far from the
    likeliest pictures, on average; what a claim is further away than that, by one Gauss-Newton
    step, counts as its error where it is more. Says nothing of a claim whose residual is not at the
    noise floor (fit.py).
    """
    mean = fisher.posterior.flatten(1).mean(1).double().cpu()
    if fisher.apart is not None:
        apart = fisher.apart.flatten(1).mean(1).double().cpu()
        mean = torch.maximum(mean, apart - mean)
    return -10 * mean.log10() - fisher.error


def _fits(found: Sensitivity) -> bool:
    size = found.unknowns * found.entries * found.inputs.element_size()
    return found.unknowns <= _DENSE_UNKNOWNS and size <= _DENSE_BYTES


def overall_noise(problem: Problem, noise: Mapping[str, float]) -> float:
    """The root mean square over all kept entries of their standard deviations, by tensor."""
    kept = {name: int(part.sum()) for name, part in kept_of(problem).items()}
    total = max(sum(kept.values()), 1)
    return math.sqrt(sum(noise[name] ** 2 * count for name, count in kept.items()) / total)


def _dense(found: Sensitivity, sigma: float, expired: Callable[[], bool]) -> Fisher | None:
    transposed = found.dense(expired)
    if transposed is None:
        return None
    pull = (0.5 - found.pixels()) / PRIOR  # of the prior, towards mid-grey
    descent = pull - (transposed @ found.residual()[0])
    factor = torch.linalg.qr(transposed.mT, mode="r").R  # (min(m, n), n), R'R = F
    del transposed
    if expired():
        return None
    return _from_factor(factor, found.inputs, sigma, descent)


def _from_factor(factor: Tensor, like: Tensor, sigma: float, descent: Tensor | None) -> Fisher:
    """All that R says. `like` has the shape of inputs; `descent` (n,): of the squared misfit."""
    inverse = inverse_of(factor)
    root = posterior_root(factor, inverse, math.sqrt(1 / PRIOR))
    posterior, apart = root.square().sum(1), None
    if descent is not None:
        apart = (root @ (root.mT @ descent)).square().view_as(like)
    del root
    variance = unbiased(factor, inverse)
    return Fisher(
        variance=variance.view_as(like),
        posterior=posterior.view_as(like),
        unbiased=float(variance.mean()),
        effective=like.numel() - float(posterior.sum()) / PRIOR,
        unknowns=like.numel(),
        sigma=sigma,
        method="dense",
        error=0.0,
        apart=apart,
        factor=factor,
    )


def at_noise(fisher: Fisher, sigma: float) -> Fisher | None:
    """The same information with all noise as many times as large as `sigma` is to `fisher.sigma`.

    None where it has to be computed anew (Lanczos). `apart` is not said of it.
    """
    if fisher.factor is None:
        return None
    return _from_factor(fisher.factor * (fisher.sigma / sigma), fisher.posterior, sigma, None)


def _lanczos(found: Sensitivity, sigma: float, expired: Callable[[], bool]) -> Fisher | None:
    map = found.products()

    def product(v: Tensor) -> Tensor:
        return map.adjoint(map.forward(v[None]))[0]

    probed = probe_inverse(
        product,
        found.inputs.flatten(),
        1 / PRIOR,
        probes=_PROBES,
        max_steps=min(_STEPS, max(_BASIS_BYTES // (8 * found.unknowns), 1)),
        seed=0,
        expired=expired,
    )
    if probed is None:
        return None
    error = 10 * math.log10((probed.high + probed.deviation) / probed.low)
    if not error <= _FURTHEST:
        return None
    # Noise of the probes can lead out of the range that a variance has.
    posterior = probed.diagonal.clamp(probed.low / found.unknowns / 100, PRIOR)
    posterior = posterior * (probed.low / float(posterior.sum()))
    return Fisher(
        variance=None,
        posterior=posterior.view_as(found.inputs),
        unbiased=probed.bare / found.unknowns,
        effective=found.unknowns - probed.high / PRIOR,
        unknowns=found.unknowns,
        sigma=sigma,
        method="Lanczos",
        error=error,
        apart=_step(found, map, expired).square().view_as(found.inputs),
    )


def _step(found: Sensitivity, map: LinearMap, expired: Callable[[], bool]) -> Tensor:
    """(n,) the Gauss-Newton step to the likeliest pictures: |J s + r|^2 + 12 |s - pull|^2 least.

    By conjugate gradients, which come from below: too few steps make it too short.
    """
    pull = (0.5 - found.pixels())[None]
    residual = found.residual()
    solution = least_squares(
        map,
        -residual - map.forward(pull),
        torch.zeros_like(pull),
        tolerance=1e-3,
        max_steps=_STEPS,
        damping=1 / PRIOR,
        expired=expired,
    )
    return (solution.x + pull)[0]
