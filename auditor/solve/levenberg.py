"""Nonlinear least squares over independent rows (Levenberg 1944, Marquardt 1963).

A step d solves (J'J + mu) d = -J'r, by Cholesky when the Jacobian J is given as a matrix and by
damped conjugate gradients when it is given as a map. The damping mu follows the ratio of the true
to the predicted decrease (Nielsen 1999), but may fall to a tenth in one step where he has a third.
Bounds are kept by projection (Kanzow, Yamashita, Fukushima 2004, section 2): variables that press
against a bound are held, the others are clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.solve.lbfgs import Watcher
from auditor.solve.least_squares import LinearMap, least_squares
from auditor.solve.rows import Solution, Status

_FIRST = 1e-1  # damping at the start, in units of the mean diagonal entry of J'J
_ENOUGH = 1e-3  # share of the predicted decrease that a step must keep
_TRIALS = 20  # dampings tried at one point: the last is 2^190 times the first
_BLOCK = 512  # columns of J'J made at once
_INNER_STEPS = 1000

# (R, n) -> residuals (R, m).
Residual = Callable[[Tensor], Tensor]
# (R, n) -> residuals (R, m) and their Jacobian (R, m, n); None when the budget ended meanwhile.
Linearise = Callable[[Tensor], tuple[Tensor, Tensor | LinearMap] | None]


def levenberg_marquardt(
    linearise: Linearise,
    residual: Residual,
    start: Tensor,
    *,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    max_steps: int,
    goal: float = 0.0,
    damping: float | None = None,
    watch: Watcher | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> Solution:
    """Minimise |r(x)|^2 of every row of `start` (R, n) until it is at most `goal`.

    `lower` and `upper` (n,) or (R, n) bound x; a start outside is clamped. `value` of the answer
    is |r|^2. `damping` is the first mu; None: a tenth of the mean diagonal entry of J'J. One step
    is one Jacobian, with as many trials of the damping as it takes. `watch` sees every step and may
    stop the run; `expired` is asked between the parts of a step.
    `evaluations` counts calls for residuals and for Jacobians alike.
    """
    run = _Run(linearise, residual, start, (lower, upper), goal, damping, expired)
    steps = 0
    stopped = watch is not None and watch(0, run.x, run.value)
    while steps < max_steps and not stopped and run.moving.any() and not expired():
        if not run.step():
            stopped = True
            break
        steps += 1
        stopped = watch is not None and watch(steps, run.x, run.value)
    last = Status.EXHAUSTED if steps >= max_steps and not stopped else Status.STOPPED
    status = tuple(last if one is None else one for one in run.status)
    return Solution(run.x, run.value, status, steps, run.evaluations)


class _Run:
    """The state of one call of `levenberg_marquardt`."""

    def __init__(
        self,
        linearise: Linearise,
        residual: Residual,
        start: Tensor,
        bounds: tuple[Tensor | None, Tensor | None],
        goal: float,
        damping: float | None,
        expired: Callable[[], bool],
    ) -> None:
        self.linearise, self.residual, self.expired = linearise, residual, expired
        self.goal = goal
        lower, upper = bounds
        low = start.new_tensor(-torch.inf) if lower is None else lower
        high = start.new_tensor(torch.inf) if upper is None else upper
        self.lower, self.upper = low.expand_as(start), high.expand_as(start)
        self.x = start.detach().clamp(self.lower, self.upper)
        self.evaluations = len(start)
        self.value = self.residual(self.x).square().sum(1)
        self.first = self.value.clone()
        self.status: list[Status | None] = [None] * len(start)
        # NaN is replaced at the first Jacobian.
        self.damping = torch.full_like(self.value, torch.nan if damping is None else damping)
        self.growth = torch.full_like(self.value, 2.0)
        self.moving = torch.ones_like(self.value, dtype=torch.bool)
        self._settle(~self.value.isfinite(), torch.zeros_like(self.moving))

    def step(self) -> bool:
        """One Jacobian, and one step of every moving row. False: the budget ended."""
        rows = self.moving.nonzero().flatten()
        found = self.linearise(self.x[rows])
        if found is None:
            return False
        self.evaluations += len(rows)
        model = _model(*found, accuracy=(self.value / self.first)[rows].sqrt(), stop=self.expired)
        if model is None:
            return False
        del found  # a dense Jacobian is not needed any more, and large
        broken = ~model.gradient.isfinite().all(1)
        fresh = self.damping[rows].isnan()
        self.damping[rows] = torch.where(fresh, _FIRST * model.scale, self.damping[rows])
        x, down = self.x[rows], model.gradient
        held = ((x <= self.lower[rows]) & (down > 0)) | ((x >= self.upper[rows]) & (down < 0))
        stuck = self._try(rows, model, ~held, ~broken)
        if stuck is None:
            return False
        everywhere = torch.zeros_like(self.moving)
        self._settle(everywhere.index_put((rows,), broken), everywhere.index_put((rows,), stuck))
        return True

    def _try(
        self, rows: Tensor, model: _Dense | _Product, free: Tensor, wanted: Tensor
    ) -> Tensor | None:
        """Raise the damping until each wanted row descends; those (len(rows),) that never do."""
        idle = torch.zeros_like(wanted)
        for _ in range(_TRIALS):
            left = wanted.nonzero().flatten()  # positions in `rows`
            if len(left) == 0:
                break
            if self.expired():
                return None
            here = rows[left]
            step = model.step(left, self.damping[here], free[left])
            if self.expired():  # perhaps within the step, which then says nothing
                return None
            trial = (self.x[here] + step).clamp(self.lower[here], self.upper[here])
            predicted = model.decrease(left, trial - self.x[here])
            value = self.residual(trial).square().sum(1)
            self.evaluations += len(left)
            before = self.value[here]
            gain = (before - value) / predicted
            good = (predicted > 0) & (gain > _ENOUGH)  # false for NaN
            self._adapt(here, gain, good)
            kept = (here[good],)  # new tensors: a watcher may still hold the old ones
            self.x = self.x.index_put(kept, trial[good])
            self.value = self.value.index_put(kept, value[good])
            wanted[left[good]] = False
            # A model that promises next to nothing is believed, kept or not.
            hopeless = predicted.abs() <= torch.finfo(value.dtype).eps ** 0.5 * before
            wanted[left[hopeless]] = False
            idle[left[hopeless]] = True
        return idle | wanted

    def _adapt(self, rows: Tensor, gain: Tensor, good: Tensor) -> None:
        factor = (1 - (2 * gain - 1) ** 3).clamp(0.1, 2)
        self.damping[rows] *= torch.where(good, factor, self.growth[rows])
        self.growth[rows] = torch.where(good, 2.0, 2 * self.growth[rows])

    def _settle(self, broken: Tensor, stuck: Tensor) -> None:
        """End the rows that arrived, diverged or cannot move."""
        for row in self.moving.nonzero().flatten().tolist():
            if broken[row]:
                self.status[row] = Status.DIVERGED
            elif self.value[row] <= self.goal:
                self.status[row] = Status.CONVERGED
            elif stuck[row]:
                self.status[row] = Status.STALLED
        ended = torch.tensor([s is not None for s in self.status], device=self.moving.device)
        self.moving = self.moving & ~ended


@dataclass(frozen=True)
class _Dense:
    """The quadratic model of each row from the matrix J'J."""

    normal: Tensor  # (R, n, n)
    gradient: Tensor  # (R, n), J'r

    @property
    def scale(self) -> Tensor:
        return _positive(self.normal.diagonal(dim1=1, dim2=2).mean(1))

    def step(self, rows: Tensor, damping: Tensor, free: Tensor) -> Tensor:
        """(len(rows), n); NaN where the damped matrix is not positive definite."""
        matrix = self.normal[rows]  # a copy
        matrix.mul_(free[:, :, None]).mul_(free[:, None, :])
        matrix.diagonal(dim1=1, dim2=2).add_(torch.where(free, damping[:, None], 1.0))
        failed = torch.empty(len(rows), dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
        step = torch.cholesky_solve(-(self.gradient[rows] * free)[..., None], matrix)[..., 0]
        return torch.where((failed == 0)[:, None], step, torch.nan)

    def decrease(self, rows: Tensor, step: Tensor) -> Tensor:
        """What the model promises for the steps (len(rows), n): |r|^2 - |r + J d|^2."""
        curved = torch.stack([self.normal[row] @ d for row, d in zip(rows, step, strict=True)])
        return -((2 * self.gradient[rows] + curved) * step).sum(1)


@dataclass(frozen=True)
class _Product:
    """The same from products with J and J'."""

    map: LinearMap
    residual: Tensor  # (R, m)
    gradient: Tensor  # (R, n)
    accuracy: Tensor  # (R,)
    stop: Callable[[], bool]

    @property
    def scale(self) -> Tensor:
        """|J'z|^2 / n for one random z: on average the mean diagonal entry (Hutchinson 1990)."""
        generator = torch.Generator().manual_seed(0)
        width = self.residual.shape[1]
        z = torch.randn(1, width, generator=generator, dtype=torch.float64).to(self.residual)
        image = self.map.adjoint(z.expand_as(self.residual))
        return _positive(image.square().mean(1))

    def step(self, rows: Tensor, damping: Tensor, free: Tensor) -> Tensor:
        """(len(rows), n), by damped conjugate gradients, more exact as |r| falls."""
        chosen = _restricted(self.map, rows, free, len(self.residual))
        return least_squares(
            chosen,
            -self.residual[rows],
            torch.zeros_like(self.gradient[rows]),
            tolerance=self.accuracy[rows].clamp(1e-6, 1e-1),
            max_steps=_INNER_STEPS,
            damping=damping,
            expired=self.stop,
        ).x

    def decrease(self, rows: Tensor, step: Tensor) -> Tensor:
        image = _restricted(self.map, rows, torch.ones_like(step), len(self.residual)).forward(step)
        return -(2 * self.gradient[rows] * step).sum(1) - image.square().sum(1)


def _model(
    residual: Tensor, jacobian: Tensor | LinearMap, *, accuracy: Tensor, stop: Callable[[], bool]
) -> _Dense | _Product | None:
    if isinstance(jacobian, LinearMap):
        gradient = jacobian.adjoint(residual)
        return _Product(jacobian, residual, gradient, accuracy, stop)
    normal = _normal_matrix(jacobian, stop)
    gradient = (jacobian.mT @ residual[..., None])[..., 0]
    return None if normal is None else _Dense(normal, gradient)


def _normal_matrix(jacobian: Tensor, stop: Callable[[], bool]) -> Tensor | None:
    """J'J (R, n, n) in blocks of rows, the lower half only computed; None when stopped."""
    rows, _, width = jacobian.shape
    normal = jacobian.new_empty(rows, width, width)
    for low in range(0, width, _BLOCK):
        if stop():
            return None
        high = min(low + _BLOCK, width)
        normal[:, low:high, :high] = jacobian[:, :, low:high].mT @ jacobian[:, :, :high]
        normal[:, :low, low:high] = normal[:, low:high, :low].mT
    return normal


def _restricted(map: LinearMap, rows: Tensor, free: Tensor, count: int) -> LinearMap:
    """The map on some of its `count` rows, with the variables that are not free left out."""

    def full(part: Tensor) -> Tensor:
        return part.new_zeros(count, part.shape[1]).index_copy(0, rows, part)

    if len(rows) == count:
        return LinearMap(lambda x: map.forward(x * free), lambda r: map.adjoint(r) * free)
    return LinearMap(
        lambda x: map.forward(full(x * free))[rows], lambda r: map.adjoint(full(r))[rows] * free
    )


def _positive(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)
