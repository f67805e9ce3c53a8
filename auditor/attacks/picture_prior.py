"""What is known of pictures before a dump is seen: two normal distributions of pixels 0..1.

"pixels": independent, mean 1/2, variance 1/12, that of a uniform pixel. It knows nothing of
pictures; the van Trees bound holds for an attacker who believes it.

"waves": the waves of the cosine transform (Strang 1999, SIAM Review 41(1)) are independent, and
their power falls with frequency as in the pictures of cameras (Field 1987, J. Opt. Soc. Am. A 4),
0.1 / (0.01 + q)^1.5 with q the sum of squared differences between neighbours in a wave of length
one; what differs between the channels has a tenth of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditor.attacks.smoothness import cosine_waves
from auditor.problem import to_model_units
from auditor.records import Problem

Kind = Literal["waves", "pixels"]

_POWER, _LOWEST, _FALL = 0.1, 0.01, 1.5
_COLOUR = 0.1  # of the power, for differences between channels
_PIXEL = math.sqrt(12)  # one over the standard deviation of a uniform pixel
_OUTSIDE = 100.0  # the same for how far a pixel may lie beyond black or white


@dataclass(frozen=True)
class PicturePrior:
    """Rows z (N * C * H * W,), of unit variance under "waves", to N pictures and back."""

    shape: tuple[int, ...]  # (C, H, W)
    black: Tensor  # (C, 1, 1) in model units
    contrast: Tensor  # (C, 1, 1), white less black
    mix: Tensor  # (C, C) orthonormal; its first row is the mean of the channels
    down: Tensor  # (H, H), rows are waves
    across: Tensor  # (W, W)
    deviation: Tensor  # (C, H, W), of each wave

    def inputs(self, z: Tensor) -> Tensor:
        """(N, C, H, W) in model units."""
        return self.black + self.contrast * self.pixels(z)

    def pixels(self, z: Tensor) -> Tensor:
        """(N, C, H, W), not clipped."""
        waves = (z.view(-1, *self.shape) * self.deviation).movedim(1, -1) @ self.mix
        return 0.5 + self.down.mT @ waves.movedim(-1, 1) @ self.across

    def of(self, inputs: Tensor) -> Tensor:
        """The inverse of `inputs`."""
        apart = (inputs - self.black) / self.contrast - 0.5
        waves = (self.down @ apart @ self.across.mT).movedim(1, -1) @ self.mix.mT
        return (waves.movedim(-1, 1) / self.deviation).flatten()

    def terms(self, z: Tensor, kind: Kind) -> Tensor:
        """Their squares sum to minus twice the logarithm of the density, up to a constant."""
        pixels = self.pixels(z).flatten()
        known = z if kind == "waves" else _PIXEL * (pixels - 0.5)
        return torch.cat([known, _OUTSIDE * (pixels - pixels.clamp(0, 1))])


def picture_prior(problem: Problem) -> PicturePrior:
    """For a problem whose inputs are (C, H, W)."""
    like = next(iter(problem.gradient.values()))
    channels, *sides = shape = problem.knowledge.input_shape
    black = to_model_units(problem, like.new_zeros(channels, 1, 1))
    white = to_model_units(problem, like.new_ones(channels, 1, 1))
    (down, rough_down), (across, rough_across) = (cosine_waves(side, like) for side in sides)
    mix, _ = cosine_waves(channels, like)
    power = _POWER / (_LOWEST + rough_down[:, None] + rough_across) ** _FALL
    share = like.new_full((channels, 1, 1), _COLOUR)
    share[0] = 1.0
    return PicturePrior(shape, black, white - black, mix, down, across, (share * power).sqrt())
