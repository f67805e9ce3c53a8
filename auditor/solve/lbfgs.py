"""L-BFGS over independent rows (Liu and Nocedal 1989).

The direction uses the compact form of the inverse Hessian (Byrd, Nocedal, Schnabel 1994, eq. 3.13):
with S, Y the last m steps and gradient changes, R the upper triangle of S'Y and D its diagonal,
H = g I + [S, gY] [[R^-T (D + g Y'Y) R^-1, -R^-T], [-R^-1, 0]] [S, gY]'. It takes a dozen batched
operations where the two-loop recursion takes 4m small ones. The line search bisects for the weak
Wolfe conditions (Lewis and Overton 2013), which keep every s'y positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.solve.rows import Solution, Status, ValueAndGradient

_ARMIJO = 1e-4
_CURVATURE = 0.9
_TRIALS = 25

# (step, x (R, D), values (R,)) -> True to stop all rows.
Watcher = Callable[[int, Tensor, Tensor], bool]


def minimize(
    value_and_gradient: ValueAndGradient,
    start: Tensor,
    *,
    max_steps: int,
    goal: float = 0.0,
    memory: int = 100,
    line_search: bool = True,
    watch: Watcher | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> Solution:
    """Minimise every row of `start` (R, D) until its value is at most `goal`.

    Without `line_search` every step has length 1 after a cautious first one, as in
    `torch.optim.LBFGS` with its default settings (which DLG and iDLG used). The answer holds the
    best point that each row met. `watch` sees every step and may stop the whole run; `expired` is
    asked between the trials of a line search too, which can be long.
    """
    run = _Run(value_and_gradient, start, memory, goal, line_search, expired)
    steps = 0
    stopped = watch is not None and watch(0, run.x, run.value)
    while steps < max_steps and not stopped and run.moving.any() and not expired():
        run.step()
        steps += 1
        stopped = watch is not None and watch(steps, run.x, run.value)
    last = Status.EXHAUSTED if steps >= max_steps and not stopped else Status.STOPPED
    status = tuple(last if one is None else one for one in run.status)
    return Solution(run.best_x, run.best_value, status, steps, run.evaluations)


class _Run:
    """The state of one call of `minimize`."""

    def __init__(
        self,
        f: ValueAndGradient,
        start: Tensor,
        memory: int,
        goal: float,
        line_search: bool,
        expired: Callable[[], bool],
    ) -> None:
        self.f, self.goal, self.line_search, self.expired = f, goal, line_search, expired
        self.x = start.detach().clone()
        self.status: list[Status | None] = [None] * len(start)
        self.moving = torch.ones(len(start), dtype=torch.bool, device=start.device)
        self.evaluations = 0
        self.young = True  # no step was taken yet
        self.value, self.gradient = self.evaluate(self.x, self.moving)
        self.best_x, self.best_value = self.x.clone(), self.value.clone()
        self.pairs = _Pairs(start, memory)
        self._settle(torch.zeros_like(self.moving))

    def evaluate(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients of the chosen rows; the others are zero."""
        value, gradient = x.new_zeros(len(x)), torch.zeros_like(x)
        if rows.any():
            self.evaluations += int(rows.sum())
            value[rows], gradient[rows] = self.f(x[rows])
        return value, gradient

    def step(self) -> None:
        """One direction, one step length, one new pair, for every moving row."""
        direction = self.pairs.direction(self.gradient)
        slope = (direction * self.gradient).sum(1)
        first = (1 / self.gradient.abs().sum(1).clamp_min(1e-300)).clamp_max(1)
        fresh = self.pairs.empty if self.line_search else torch.full_like(self.moving, self.young)
        length = torch.where(fresh, first, torch.ones_like(first))
        self.young = False
        if self.line_search:
            uphill = slope >= 0
            direction = torch.where(uphill[:, None], -self.gradient, direction)
            slope = torch.where(uphill, -self.gradient.square().sum(1), slope)
            moved, value, gradient, stuck = self._search(direction, slope, length)
        else:
            stuck = self.moving & (slope > -1e-9)  # the reference's tolerance_change
            moved = self.x + length[:, None] * direction
            value, gradient = self.evaluate(moved, self.moving & ~stuck)
        self._accept(moved, value, gradient, self.moving & ~stuck)
        self._settle(stuck)

    def _search(
        self, direction: Tensor, slope: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bisect each row's step length for the weak Wolfe conditions."""
        low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
        moved, value, gradient = self.x.clone(), self.value.clone(), self.gradient.clone()
        searching = self.moving.clone()
        for _ in range(_TRIALS):
            trial = self.x + length[:, None] * direction
            trial_value, trial_gradient = self.evaluate(trial, searching)
            too_far = ~(trial_value <= self.value + _ARMIJO * length * slope)  # NaN is too far
            too_near = ~too_far & ((trial_gradient * direction).sum(1) < _CURVATURE * slope)
            keep = (searching & ~too_far)[:, None]
            moved = torch.where(keep, trial, moved)
            value = torch.where(keep[:, 0], trial_value, value)
            gradient = torch.where(keep, trial_gradient, gradient)
            searching = searching & (too_far | too_near)
            if not searching.any() or self.expired():
                break
            high = torch.where(searching & too_far, length, high)
            low = torch.where(searching & too_near, length, low)
            halved, doubled = (low + high) / 2, low * 2
            length = torch.where(searching, torch.where(high.isinf(), doubled, halved), length)
        return moved, value, gradient, self.moving & ~(value < self.value)

    def _accept(self, x: Tensor, value: Tensor, gradient: Tensor, rows: Tensor) -> None:
        mask = rows[:, None]
        change = torch.where(mask, gradient - self.gradient, 0.0)
        self.pairs.push(torch.where(mask, x - self.x, 0.0), change)
        self.x = torch.where(mask, x, self.x)
        self.value = torch.where(rows, value, self.value)
        self.gradient = torch.where(mask, gradient, self.gradient)

    def _settle(self, stuck: Tensor) -> None:
        """Note new best points, end rows that arrived, diverged or cannot move."""
        better = self.value < self.best_value
        self.best_x = torch.where(better[:, None], self.x, self.best_x)
        self.best_value = torch.where(better, self.value, self.best_value)
        finite = self.value.isfinite() & self.gradient.isfinite().all(1)
        # A search that fails forgets the row's history once; if it fails again, the row has ended.
        forget = stuck & ~self.pairs.empty & finite & self.line_search
        self.pairs.clear(forget)
        for row in self.moving.nonzero().flatten().tolist():
            if not finite[row]:
                self.status[row] = Status.DIVERGED
            elif self.value[row] <= self.goal:
                self.status[row] = Status.CONVERGED
            elif stuck[row] and not forget[row]:
                self.status[row] = Status.STALLED
        ended = torch.tensor([s is not None for s in self.status], device=self.moving.device)
        self.moving = self.moving & ~ended


class _Pairs:
    """The last m steps S and gradient changes Y of every row, each row in a ring of its own."""

    def __init__(self, like: Tensor, memory: int) -> None:
        rows, width = like.shape
        self.s, self.y = like.new_zeros(2, rows, memory, width)
        self.sy, self.yy = like.new_zeros(2, rows, memory, memory)
        self.gamma = like.new_ones(rows)
        self.next, self.count = torch.zeros(2, rows, dtype=torch.int64, device=like.device)

    @property
    def empty(self) -> Tensor:
        """Rows (R,) whose memory holds nothing."""
        none: Tensor = self.count == 0
        return none

    def push(self, step: Tensor, change: Tensor) -> None:
        """Take a pair (R, D) each, except where its curvature is not clearly positive."""
        curvature, size = (step * change).sum(1), change.square().sum(1)
        rows = (curvature > 1e-10 * size.clamp_max(1)).nonzero().flatten()
        if len(rows) == 0:
            return
        slot, memory = self.next[rows], self.s.shape[1]
        self.next[rows] = (slot + 1) % memory
        self.count[rows] = (self.count[rows] + 1).clamp_max(memory)
        self.s[rows, slot], self.y[rows, slot] = step[rows], change[rows]
        held = int(self.count.max())
        # Products for all rows, kept for some: picking rows first would copy the whole memory.
        cross = torch.einsum("rmd,rd->rm", self.y[:, :held], change)[rows]
        self.sy[rows, slot, :held] = torch.einsum("rmd,rd->rm", self.y[:, :held], step)[rows]
        self.sy[rows, :held, slot] = torch.einsum("rmd,rd->rm", self.s[:, :held], change)[rows]
        self.yy[rows, slot, :held] = cross
        self.yy[rows, :held, slot] = cross
        self.gamma[rows] = curvature[rows] / size[rows]

    def clear(self, rows: Tensor) -> None:
        """Forget everything about these rows."""
        if rows.any():
            for part in (self.s, self.y, self.sy, self.yy, self.next, self.count):
                part[rows] = 0
            self.gamma = torch.where(rows, 1.0, self.gamma)

    def direction(self, gradient: Tensor) -> Tensor:
        """-H g, (R, D)."""
        held = int(self.count.max())
        if held == 0:
            return -gradient
        # Oldest first. Rows that hold fewer have empty slots, wherever those come to stand.
        order = torch.arange(held, device=gradient.device).expand(len(gradient), -1)
        order = (order + self.next[:, None]) % held if held == self.s.shape[1] else order
        s, y = self.s[:, :held], self.y[:, :held]
        sy, yy = _reordered(self.sy, order), _reordered(self.yy, order)
        diagonal = sy.diagonal(dim1=1, dim2=2)
        # An empty slot has a zero step: any positive pivot leaves it without influence.
        r = sy.triu() + torch.diag_embed((diagonal == 0).to(sy.dtype))
        gamma = self.gamma[:, None, None]
        s_g = torch.einsum("rmd,rd->rm", s, gradient).gather(1, order)[..., None]
        y_g = torch.einsum("rmd,rd->rm", y, gradient).gather(1, order)[..., None]
        a = torch.linalg.solve_triangular(r, s_g, upper=True)
        inner = (torch.diag_embed(diagonal) + gamma * yy) @ a - gamma * y_g
        b = torch.linalg.solve_triangular(r.mT, inner, upper=False)
        back = order.argsort(1)
        step = torch.einsum("rm,rmd->rd", b[..., 0].gather(1, back), s)
        step = step - self.gamma[:, None] * torch.einsum("rm,rmd->rd", a[..., 0].gather(1, back), y)
        return -(self.gamma[:, None] * gradient + step)


def _reordered(square: Tensor, order: Tensor) -> Tensor:
    """(R, m, m) with rows and columns in the order (R, h)."""
    width = order.shape[1]
    rows = square.gather(1, order[..., None].expand(-1, -1, square.shape[2]))
    return rows.gather(2, order[:, None, :].expand(-1, width, -1))
