"""Gradient matching where the dump leaves pictures open: among its answers, a smooth one.

Neighbouring pixels of a picture are alike. The pixels are 0.5 + T u with T such that |u|^2 is the
sum of squared differences between neighbours, plus a little contrast:

    c |u|^2 = sum (difference down, across)^2 + c sum (pixel - 0.5)^2

T is diagonal in the discrete cosine transform (Strang 1999, SIAM Review 41(1)). The objective
|r|^2 + w mean(u^2) is followed from large w to small by Levenberg-Marquardt steps. In u conjugate
gradients find what varies slowly first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.residuals import MatchingResidual
from auditor.problem import to_model_units
from auditor.solve import LinearMap, Solution, Status, levenberg_marquardt
from auditor.solve.lbfgs import Watcher

_CONTRAST = 0.1  # c
_NOISE = 0.3  # of u at the start
STAGE_STEPS = 3  # for each w


@dataclass(frozen=True)
class SmoothPixels:
    """Rows u (R, n) to rows of N images in model units, and back. Make one with `smooth_pixels`."""

    shape: tuple[int, ...]  # (C, H, W)
    gray: Tensor  # (C, H, W), pixels 0.5 in model units
    contrast: Tensor  # (C, 1, 1), model units of one pixel unit
    down: Tensor  # (H, H), cosine transform: rows are waves
    across: Tensor  # (W, W)
    gain: Tensor  # (H, W), of each wave

    def rows(self, u: Tensor) -> Tensor:
        """(R, n) to (R, n): images in model units."""
        return self.along(u) + self.gray.flatten().repeat(u.shape[1] // self.gray.numel())

    def along(self, u: Tensor) -> Tensor:
        """The linear part of `rows`."""
        waves = u.view(-1, *self.shape) * self.gain
        return (self.contrast * (self.down.mT @ waves @ self.across)).view_as(u)

    def adjoint(self, rows: Tensor) -> Tensor:
        """The transpose of `along`."""
        pictures = self.contrast * rows.reshape(-1, *self.shape)
        return ((self.down @ pictures @ self.across.mT) * self.gain).view_as(rows)


def smooth_pixels(residual: MatchingResidual) -> SmoothPixels:
    """For the images of one problem, which has three-dimensional inputs (C, H, W)."""
    problem = residual.problem
    shape = problem.knowledge.input_shape
    half = residual.target.new_full(shape, 0.5)
    gray = to_model_units(problem, half)
    contrast = 2 * (to_model_units(problem, 2 * half) - gray)[:, :1, :1]
    (down, rough_down), (across, rough_across) = (cosine_waves(side, half) for side in shape[1:])
    rough = rough_down[:, None] + rough_across
    return SmoothPixels(shape, gray, contrast, down, across, (1 + rough / _CONTRAST).rsqrt())


def cosine_waves(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The orthonormal cosine transform (side, side), and each wave's sum of squared differences."""
    steps = torch.arange(side, dtype=torch.float64)
    waves = (math.pi / side * steps[:, None] * (steps + 0.5)).cos()
    waves = waves / waves.norm(dim=1, keepdim=True)
    return waves.to(like), (2 - 2 * (math.pi / side * steps).cos()).to(like)


def match_smoothly(
    residual: MatchingResidual,
    generator: torch.Generator,
    *,
    weights: tuple[float, ...],
    max_steps: int,
    goal: float,
    watch: Watcher,
    expired: Callable[[], bool],
) -> Solution:
    """One restart, from a smooth gray start: `weights` are those of the prior, stage by stage.

    Labels have to be known. It has arrived when |r|^2 without the prior is at most `goal`; `value`
    of the answer is that |r|^2, its x are images (1, n) in model units. A stage takes at most
    `max_steps` steps. `watch` sees images and |r|^2.
    """
    pixels = smooth_pixels(residual)
    drawn = torch.randn(1, residual.width, generator=generator, dtype=torch.float64)
    run = _Stages(residual, pixels, goal, watch, _NOISE * drawn.to(residual.target))
    for weight in weights:
        if run.ended or expired():
            break
        run.stage(weight, min(STAGE_STEPS, max_steps), expired)
    return run.solution(expired())


class _Stages:
    """The state of one call of `match_smoothly`."""

    def __init__(
        self,
        residual: MatchingResidual,
        pixels: SmoothPixels,
        goal: float,
        watch: Watcher,
        start: Tensor,
    ) -> None:
        self.residual, self.pixels, self.goal, self.watch = residual, pixels, goal, watch
        self.u = start
        self.steps, self.evaluations = 0, 0
        self.ended = self._see(0, start)

    def _value(self, u: Tensor) -> Tensor:
        return self.residual(self.pixels.rows(u)).square().sum(1)

    def _see(self, step: int, u: Tensor) -> bool:
        value = self._value(u)
        self.evaluations += 1
        stopped = self.watch(step, self.pixels.rows(u), value)
        # Said this way round, a value that is not a number ends the run.
        return stopped or not float(value) > self.goal

    def stage(self, weight: float, max_steps: int, expired: Callable[[], bool]) -> None:
        """Minimise |r|^2 + weight * mean(u^2)."""
        root = math.sqrt(weight / self.u.shape[1])

        def joined(u: Tensor) -> Tensor:
            return torch.cat([self.residual(self.pixels.rows(u)), root * u], 1)

        def linearise(u: Tensor) -> tuple[Tensor, LinearMap]:
            return joined(u), self._map(u, root)

        def see(step: int, u: Tensor, _: Tensor) -> bool:
            self.ended = self.ended or (step > 0 and self._see(self.steps + step, u))
            return self.ended

        found = levenberg_marquardt(
            linearise,
            joined,
            self.u,
            max_steps=max_steps,
            damping=root**2,  # the prior's own: it is what holds the steps back
            watch=see,
            expired=expired,
        )
        self.u = found.x
        self.steps += found.steps
        self.evaluations += found.evaluations

    def _map(self, u: Tensor, root: float) -> LinearMap:
        images = self.residual.linear_map(self.pixels.rows(u))
        split = len(self.residual.target)

        def forward(v: Tensor) -> Tensor:
            return torch.cat([images.forward(self.pixels.along(v)), root * v], 1)

        def adjoint(r: Tensor) -> Tensor:
            return self.pixels.adjoint(images.adjoint(r[:, :split])) + root * r[:, split:]

        return LinearMap(forward, adjoint)

    def solution(self, expired: bool) -> Solution:
        value = self._value(self.u)
        status = Status.STOPPED if expired or self.ended else Status.EXHAUSTED
        if not value.isfinite().all():
            status = Status.DIVERGED
        elif float(value) <= self.goal:
            status = Status.CONVERGED
        return Solution(
            self.pixels.rows(self.u), value, (status,), self.steps, self.evaluations + 1
        )
