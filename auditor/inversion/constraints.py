"""Least squares under inequalities, for links whose equations leave their input open.

What is known besides the equations: bounds of the input (an output of ReLU is not negative), units
that were off (their pre-activation is not positive), and for pictures that neighbours are alike.
Violations are punished by their squares; each round solves the least-squares problem of the bounds
violated at that moment, which is Newton's method on the piecewise quadratic penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.inversion.systems import LinkSystem
from auditor.solve import LinearMap, LinearSolution, least_squares

_ROUNDS = 40
# Weights of the differences between neighbours, relative to the equations, stage by stage.
_SMOOTH = (1e-2, 1e-3, 1e-4, 1e-5)
# How far below zero a unit that was off shall stay, relative to the pre-activations: a unit that is
# a little on changes its slope from 0 to 1.
_OFF = 1e-4
_STEPS = 300  # a round


@dataclass(frozen=True)
class Bounds:
    """Where values lie; numbers, or tensors that broadcast against (B, n)."""

    low: float | Tensor = -math.inf
    high: float | Tensor = math.inf

    @property
    def width(self) -> float:
        """Of the widest value; 0 where there are no bounds."""
        apart = torch.as_tensor(self.high) - torch.as_tensor(self.low)
        return float(apart.max()) if bool(apart.isfinite().all()) else 0.0

    def clamp(self, values: Tensor) -> Tensor:
        return torch.minimum(
            torch.maximum(values, self._like(self.low, values)), self._like(self.high, values)
        )

    @staticmethod
    def _like(bound: float | Tensor, values: Tensor) -> Tensor:
        return torch.as_tensor(bound, dtype=values.dtype, device=values.device)


def constrained(
    system: LinkSystem,
    start: Tensor,
    *,
    bounds: Bounds,
    off: Tensor | None,
    smooth: tuple[int, ...] | None,
    tolerance: float,
    expired: Callable[[], bool],
) -> LinearSolution:
    """Solve `system` for rows (B, n) near `start` inside `bounds`.

    `off` (B, m): units whose pre-activation is not positive; `smooth`: the (C, H, W) of a picture
    whose neighbours shall be alike, less and less so from stage to stage. The residual in the
    answer is that of the system alone.
    """
    run = _Penalised(system, bounds, off, smooth)
    solution = None
    for weight in _SMOOTH if smooth is not None else (0.0,):
        run.smoothness = weight
        run.look(start if solution is None else solution.x)
        solution = _solve(run, start if solution is None else solution.x, tolerance, expired)
        for _ in range(_ROUNDS):
            before = run.violated
            run.look(solution.x)
            same = all(torch.equal(a, b) for a, b in zip(before, run.violated, strict=True))
            if same or expired():
                break
            solution = _solve(run, solution.x, tolerance, expired)
    assert solution is not None
    apart = (system.forward(solution.x) - system.rhs).norm(dim=1)
    return replace(solution, residual=apart / system.rhs.norm(dim=1).clamp_min(1e-300))


def _solve(
    run: _Penalised, start: Tensor, tolerance: float, expired: Callable[[], bool]
) -> LinearSolution:
    return least_squares(
        LinearMap(run.forward, run.adjoint),
        run.rhs(),
        start,
        tolerance=tolerance,
        max_steps=_STEPS,
        expired=expired,
    )


class _Penalised:
    """The equations of a system, the violated bounds, and the differences between neighbours."""

    def __init__(
        self,
        system: LinkSystem,
        bounds: Bounds,
        off: Tensor | None,
        smooth: tuple[int, ...] | None,
    ) -> None:
        self.system, self.bounds, self.off, self.smooth = system, bounds, off, smooth
        rows, width = len(system.rhs), system.operator.unknowns
        like = system.rhs
        none = like.new_zeros(rows, width)
        self.violated = (
            [none, none] if off is None else [none, none, torch.zeros_like(off).to(like)]
        )
        probe = system.adjoint(system.rhs)
        gain = system.forward(probe).square().sum() / probe.square().sum().clamp_min(1e-300)
        self.weight = float(gain.sqrt())
        self.smoothness = 0.0
        self.below = 0.0

    def look(self, values: Tensor) -> None:
        """Note which inequalities `values` violate."""
        clamped = self.bounds.clamp(values)
        self.violated = [(clamped > values).to(values), (clamped < values).to(values)]
        if self.off is not None:
            operator = self.system.operator
            pre = operator.forward(values) + operator.offset
            self.below = _OFF * float(pre.abs().mean())
            self.violated.append((self.off & (pre > -self.below)).to(values))

    def rhs(self) -> Tensor:
        parts = [self.system.rhs]
        for mask, bound in zip(self.violated, (self.bounds.low, self.bounds.high), strict=False):
            value = torch.as_tensor(bound, dtype=mask.dtype, device=mask.device)
            parts.append(self.weight * torch.where(mask > 0, value, 0.0))
        if self.off is not None:
            target = -self.below - self.system.operator.offset
            parts.append(self.weight * self.violated[2] * target)
        if self.smooth is not None:
            parts.append(torch.zeros_like(_differences(self.violated[0], self.smooth)))
        return torch.cat(parts, 1)

    def forward(self, values: Tensor) -> Tensor:
        parts = [self.system.forward(values)]
        parts += [self.weight * mask * values for mask in self.violated[:2]]
        if self.off is not None:
            parts.append(self.weight * self.violated[2] * self.system.operator.forward(values))
        if self.smooth is not None:
            parts.append(self.smoothness * self.weight * _differences(values, self.smooth))
        return torch.cat(parts, 1)

    def adjoint(self, outputs: Tensor) -> Tensor:
        width = self.violated[0].shape[1]
        sizes = [self.system.rhs.shape[1], width, width]
        if self.off is not None:
            sizes.append(self.off.shape[1])
        rest = outputs.shape[1] - sum(sizes)
        parts = torch.split(outputs, [*sizes, rest] if rest else sizes, 1)
        found = self.system.adjoint(parts[0])
        for mask, part in zip(self.violated[:2], parts[1:3], strict=True):
            found = found + self.weight * mask * part
        if self.off is not None:
            found = found + self.system.operator.adjoint(self.weight * self.violated[2] * parts[3])
        if self.smooth is not None:
            found = found + self.smoothness * self.weight * _gathered(parts[-1], self.smooth)
        return found


def _differences(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Between neighbours, down and across: (B, n) to (B, d)."""
    picture = rows.view(len(rows), *shape)
    return torch.cat([picture.diff(dim=-2).flatten(1), picture.diff(dim=-1).flatten(1)], 1)


def _gathered(parts: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transpose of `_differences`."""
    channels, height, width = shape
    down = parts[:, : channels * (height - 1) * width].reshape(
        len(parts), channels, height - 1, width
    )
    across = parts[:, channels * (height - 1) * width :].reshape(
        len(parts), channels, height, width - 1
    )
    picture = parts.new_zeros(len(parts), *shape)
    picture[:, :, 1:] += down
    picture[:, :, :-1] -= down
    picture[..., 1:] += across
    picture[..., :-1] -= across
    return picture.flatten(1)
