"""The error of a claim for which a prior on pictures spoke, too.

The bound on what an attack knows (auditor/bounds) takes pixels for independent. A search with a
prior on pictures does better, as far as pictures are what its prior says. At a claim with Jacobian
J, and under the prior of waves (attacks/picture_prior.py: pixels 0.5 + A z, z of unit variance),
the posterior covariance of pixels is A (A'J'JA + 1)^-1 A'. Its trace is probed with random signs
(Hutchinson 1990), each by conjugate gradients, which come from below, until they gain little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from auditor.attacks.picture_prior import PicturePrior, picture_prior
from auditor.bounds.jacobian import sensitivity_of
from auditor.records import Problem
from auditor.solve import LinearMap

_STEPS = 400
_CHECK, _GAIN = 20, 0.02  # a probe ends when so many steps add no more than this share
_EXACT = 1e-24  # of the squared residual
_MIXED = 0.05  # of the batch's mean: no sample's error is said to be smaller


@dataclass(frozen=True)
class _Posterior:
    """H = A'J'JA + 1 on z (n,)."""

    map: LinearMap  # J on pixels
    prior: PicturePrior

    def product(self, z: Tensor) -> Tensor:
        pixels = self.prior.pixels(z) - 0.5
        image = self.map.adjoint(self.map.forward(pixels.reshape(1, -1)))
        return self.back(image.view_as(pixels)) + z

    def back(self, pixels: Tensor) -> Tensor:
        """A' times pixels (N, C, H, W): the waves are orthonormal."""
        waves = self.prior.of(self.prior.black + self.prior.contrast * (pixels + 0.5))
        return (waves.view(len(pixels), *self.prior.shape) * self.prior.deviation**2).flatten()


def smooth_psnr(
    problem: Problem,
    inputs: Tensor,
    labels: Tensor,
    *,
    noise: Mapping[str, float],
    expired: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """(N,) dB at `inputs` (N, C, H, W) in model units, labels (N,) known.

    `noise`: standard deviation of an entry by tensor. None for inputs that are no pictures, and
    when not one probe came near its end, or the budget ended before.
    """
    if len(problem.knowledge.input_shape) != 3:
        return None
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        found = sensitivity_of(problem, inputs, labels, noise)
        posterior = _Posterior(found.products(), picture_prior(found.problem))
        generator = torch.Generator().manual_seed(0)
        errors = []
        for _ in range(probes_for(inputs.numel())):
            drawn = torch.randint(2, found.inputs.shape, generator=generator)
            one = _probe(posterior, (2.0 * drawn - 1).to(found.inputs), expired)
            if one is None:
                break
            errors.append(one)
    if not errors:
        return None
    mean = torch.stack(errors).mean(0) / inputs[0].numel()
    # Signs that chance to be alike on two samples mix their errors, and can end below zero.
    return -10 * mean.clamp_min(_MIXED * float(mean.mean())).log10().double().cpu()


def probes_for(unknowns: int) -> int:
    """How often random signs are drawn: the fewer pixels, the less each draw tells."""
    return min(max(4096 // unknowns, 2), 8)


def _probe(posterior: _Posterior, signs: Tensor, expired: Callable[[], bool]) -> Tensor | None:
    """Squared error of each sample (N,), as far as these signs tell; None when the budget ended."""
    start = posterior.back(signs)
    solved = torch.zeros_like(start)
    left, way = start.clone(), start.clone()
    first = square = float(left @ left)
    reached = 0.0
    for step in range(1, _STEPS + 1):
        if expired():
            return None
        image = posterior.product(way)
        length = square / float(way @ image)
        solved, left = solved + length * way, left - length * image
        before, square = square, float(left @ left)
        if square <= _EXACT * first:
            break
        way = left + square / before * way
        if step % _CHECK == 0:
            earlier, reached = reached, float(start @ solved)
            if reached <= (1 + _GAIN) * earlier:
                break
    answer = posterior.prior.pixels(solved) - 0.5
    return (signs * answer).flatten(1).sum(1)
