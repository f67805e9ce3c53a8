"""Where a search for pictures starts, and in which coordinates it walks.

A picture is half gray plus waves of the cosine transform (Strang 1999, SIAM Review 41(1)), each
with a gain that falls with its frequency as in the pictures of cameras. In these coordinates a step
of equal length in each moves what is large and smooth first. The first candidates: nearly gray, a
smooth random field, white noise, and a small random tile that fills the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditor.attacks.smoothness import cosine_waves
from auditor.problem import to_model_units
from auditor.records import Problem

Start = Literal["gray", "field", "noise", "tiles"]

_CONTRAST = 0.02  # of all pixels against differences between neighbours; larger is rougher
_FAINT, _STRONG = 0.01, 0.3  # standard deviations of the coordinates
_SPREAD = 0.03  # of white noise and of tiles, pixel units
_TILE = 4  # pixels


@dataclass(frozen=True)
class Coordinates:
    """Rows u (R, N * C * H * W) to rows of N images in model units, and back."""

    shape: tuple[int, ...]  # (C, H, W)
    low: Tensor  # (C, 1, 1), a black pixel in model units
    high: Tensor  # (C, 1, 1), a white one
    down: Tensor  # (H, H), rows are waves
    across: Tensor  # (W, W)
    gain: Tensor  # (H, W), of each wave

    def rows(self, u: Tensor) -> Tensor:
        """Images in model units."""
        waves = u.view(-1, *self.shape) * self.gain
        pixels = 0.5 + self.down.mT @ waves @ self.across
        return (self.low + pixels * (self.high - self.low)).view_as(u)

    def of(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        pixels = (rows.reshape(-1, *self.shape) - self.low) / (self.high - self.low)
        return (self.down @ (pixels - 0.5) @ self.across.mT / self.gain).view_as(rows)

    def boxed(self, rows: Tensor) -> Tensor:
        """Images with every pixel between black and white."""
        images = rows.view(-1, *self.shape)
        return torch.minimum(torch.maximum(images, self.low), self.high).view_as(rows)


def coordinates(problem: Problem) -> Coordinates:
    """For a problem whose inputs are (C, H, W)."""
    like = next(iter(problem.gradient.values()))
    shape = problem.knowledge.input_shape
    black = like.new_zeros(shape[0], 1, 1)
    (down, rough_down), (across, rough_across) = (cosine_waves(side, like) for side in shape[1:])
    gain = (1 + (rough_down[:, None] + rough_across) / _CONTRAST).rsqrt()
    low, high = to_model_units(problem, black), to_model_units(problem, black + 1)
    return Coordinates(shape, low, high, down, across, gain)


def first_row(
    problem: Problem, space: Coordinates, start: Start, generator: torch.Generator
) -> Tensor:
    """One row u (1, D) to start from."""
    like = next(iter(problem.gradient.values()))
    count = problem.knowledge.batch_size or 1
    shape = (count, *problem.knowledge.input_shape)
    if start in {"gray", "field"}:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return ((_FAINT if start == "gray" else _STRONG) * drawn).to(like).reshape(1, -1)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    if start == "tiles":
        drawn = drawn[..., _wrapped(shape[2]), :][..., _wrapped(shape[3])]
    pixels = (0.5 + _SPREAD * drawn).clamp(0, 1).to(like)
    return space.of(to_model_units(problem, pixels).reshape(1, -1))


def _wrapped(side: int) -> Tensor:
    return torch.arange(side) % _TILE
