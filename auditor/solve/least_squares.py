"""Linear least squares over independent rows, by conjugate gradients on the normal equations.

The form that keeps the residual instead of A'A (CGLS: Hestenes and Stiefel 1952, section 10;
Bjorck 1996, section 7.4), with an optional preconditioner. The coefficients of the iteration give
the Ritz values of the operator, and so a lower bound of its condition number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from auditor.solve.rows import Status

_CHECK = 10  # steps between two looks at the rows: each look makes a GPU wait


@dataclass(frozen=True)
class LinearMap:
    """A and its transpose as functions. Rows must not influence each other."""

    forward: Callable[[Tensor], Tensor]  # (R, n) -> (R, m)
    adjoint: Callable[[Tensor], Tensor]  # (R, m) -> (R, n)


def jacobian_products(
    function: Callable[[Tensor], Tensor], rows: Tensor
) -> tuple[Tensor, LinearMap]:
    """The values (R, m) of a function of rows (R, n), and its Jacobians there as a map.

    Holds the graph of the function's derivative.
    """
    leaf = rows.detach().requires_grad_()
    with torch.enable_grad():
        values = function(leaf)
        dual = torch.zeros_like(values, requires_grad=True)
        # J'u is linear in u: the derivative of its product with v is J v.
        (back,) = torch.autograd.grad(values, leaf, dual, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(back, dual, v, retain_graph=True)
        return image

    def adjoint(u: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(values, leaf, u, retain_graph=True)
        return image

    return values.detach(), LinearMap(forward, adjoint)


@dataclass(frozen=True)
class LinearSolution:
    """Where every row ended. The x of a row that DIVERGED is of no use."""

    x: Tensor  # (R, n)
    residual: Tensor  # (R,) |A x - b| / |b|; |A x| where b is zero
    condition: Tensor  # (R,) sqrt(largest / smallest Ritz value met); 1 where no step was taken
    status: tuple[Status, ...]
    steps: int


def least_squares(
    map: LinearMap,
    rhs: Tensor,
    start: Tensor,
    *,
    tolerance: float | Tensor,
    max_steps: int,
    damping: Tensor | float = 0.0,
    precondition: Callable[[Tensor], Tensor] | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> LinearSolution:
    """Minimise |A x - b|^2 + damping |x|^2 for every row of `rhs` (R, m), from `start` (R, n).

    `tolerance` and `damping` are one number, or one a row (R,). `precondition` applies a symmetric
    positive definite approximation of (A'A + damping)^-1 to rows (R, n). With s the negative
    gradient (half of it) and M^-1 the preconditioner, a row is CONVERGED when sqrt(s'M^-1 s) is at
    most `tolerance` times its value at x = 0, wherever the row started; STALLED when rounding hides
    any further progress.
    Without damping the part of `start` in the null space of A stays as it is.

    `condition` is that of what was solved, (M^-1 (A'A + damping))^(1/2), on the part of the
    space that the right-hand side reaches: a lower bound, up to rounding.
    """
    run = _Run(map, rhs, start, tolerance, damping, precondition)
    steps, stopped = 0, False
    while steps < max_steps and not stopped and (steps % _CHECK or run.any_moving()):
        stopped = expired()
        if not stopped:
            run.step()
            steps += 1
    run.any_moving()
    last = Status.STOPPED if stopped else Status.EXHAUSTED
    apart = (map.forward(run.x) - rhs).norm(dim=1)
    size = rhs.norm(dim=1)
    return LinearSolution(
        run.x,
        apart / torch.where(size > 0, size, 1.0),
        run.condition(),
        tuple(last if one is None else one for one in run.status),
        steps,
    )


class _Run:
    """The state of one call. Nothing in `step` waits for a value."""

    def __init__(
        self,
        map: LinearMap,
        rhs: Tensor,
        start: Tensor,
        tolerance: float | Tensor,
        damping: Tensor | float,
        precondition: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.map, self.precondition = map, precondition
        self.damping = _column(damping, start)
        self.x = start.detach().clone()
        self.residual = rhs - map.forward(self.x)
        descent, self.gamma = self._descent()
        self.direction = descent.clone()  # with A = 1 it would share memory with the residual
        at_zero = self._size_at_zero(rhs)
        # A zero right-hand side gives no scale: then the start itself is the scale.
        self.goal = tolerance**2 * torch.where(at_zero > 0, at_zero, self.gamma)
        self.rounding = torch.finfo(rhs.dtype).eps
        self.scale = torch.maximum(rhs.norm(dim=1), self.residual.norm(dim=1))
        self.largest = torch.zeros_like(self.gamma)  # largest diagonal entry of the Lanczos matrix
        self.status: list[Status | None] = [None] * len(start)
        self.moving = self.gamma > self.goal  # NaN never moves
        self.none = torch.zeros_like(self.gamma)
        # One tensor (R,) a step each.
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        self.gammas: list[Tensor] = []

    def _descent(self) -> tuple[Tensor, Tensor]:
        """M^-1 s (R, n) and s'M^-1 s (R,) at x."""
        s = self.map.adjoint(self.residual)
        if self.damping is not None:
            s = s - self.damping * self.x
        return self._sized(s)

    def _sized(self, s: Tensor) -> tuple[Tensor, Tensor]:
        z = s if self.precondition is None else self.precondition(s)
        return z, _dot(s, z)

    def _size_at_zero(self, rhs: Tensor) -> Tensor:
        if not self.x.any():
            return self.gamma
        return self._sized(self.map.adjoint(rhs))[1]

    def step(self) -> None:
        """One step of every moving row. The others get a step of length zero."""
        image = self.map.forward(self.direction)
        curvature = _dot(image, image)
        if self.damping is not None:
            curvature = curvature + self.damping[:, 0] * _dot(self.direction, self.direction)
        alpha = torch.where(self.moving & (curvature > 0), self.gamma / curvature, self.none)
        length = alpha[:, None]
        self.x.addcmul_(length, self.direction)
        self.residual.addcmul_(length, image, value=-1)
        descent, gamma = self._descent()
        self.gammas.append(self.gamma)
        self.moving = self.moving & (gamma > self.goal)
        beta = torch.where(self.moving, gamma / self.gamma, self.none)
        self.direction = torch.addcmul(descent, beta[:, None], self.direction)
        self.gamma = gamma
        self.alphas.append(alpha)
        self.betas.append(beta)

    def any_moving(self) -> bool:
        """End the rows that arrived, diverged or make no progress; whether any is left."""
        stalled = self._stalled() if self.alphas else torch.zeros_like(self.moving)
        finite = self.gamma.isfinite() & self.x.isfinite().all(1)
        for row, (ok, there, stuck) in enumerate(
            torch.stack([finite, self.gamma <= self.goal, stalled]).T.tolist()
        ):
            if self.status[row] is not None:
                continue
            if not ok:
                self.status[row] = Status.DIVERGED
            elif there:
                self.status[row] = Status.CONVERGED
            elif stuck:
                self.status[row] = Status.STALLED
        left = [one is None for one in self.status]
        self.moving = self.moving & torch.tensor(left, device=self.moving.device)
        return any(left)

    def _stalled(self) -> Tensor:
        """Rows (R,) whose steps all changed A x by less than the rounding of b, or whose s is none.

        None: no larger than what rounding leaves of A'r, |A| times |r| times epsilon.
        """
        alphas, gammas = torch.stack(self.alphas[-_CHECK:]), torch.stack(self.gammas[-_CHECK:])
        inverse = torch.where(alphas > 0, 1 / alphas, 0.0).amax(0)
        self.largest = torch.maximum(self.largest, inverse)
        unseen = (alphas * gammas).amax(0) <= (self.rounding * self.scale).square()
        floor = self.rounding * self.largest.sqrt() * self.residual.norm(dim=1)
        no_descent: Tensor = self.gamma.sqrt() <= floor
        return no_descent | unseen

    def condition(self) -> Tensor:
        """(R,) from the singular values of the bidiagonal factor of the Lanczos matrix."""
        if not self.alphas:
            return torch.ones_like(self.gamma)
        alphas, betas = torch.stack(self.alphas).T.double(), torch.stack(self.betas).T.double()
        found = [_spread(a, b) for a, b in zip(alphas.cpu(), betas.cpu(), strict=True)]
        return torch.tensor(found, dtype=self.gamma.dtype, device=self.gamma.device)


def _spread(alpha: Tensor, beta: Tensor) -> float:
    """Largest over smallest singular value of the bidiagonal factor L, T = L L', of one row.

    L holds 1 / sqrt(alpha_j) and below it sqrt(beta_j / alpha_j). Its singular values are
    the positive eigenvalues of the tridiagonal matrix with zero diagonal in which the entries of L
    alternate (Golub and Kahan 1965): squares, which would lose half of the digits, never arise.
    """
    usable = (alpha > 0) & alpha.isfinite() & beta.isfinite()
    taken = int(usable.long().cumprod(0).sum())
    if taken == 0:
        return 1.0
    entries = torch.stack([alpha[:taken].rsqrt(), (beta[:taken] / alpha[:taken]).sqrt()], 1)
    off = entries.flatten()[:-1].numpy()
    zero = entries.new_zeros(len(off) + 1).numpy()

    def at(index: int) -> float:
        found = eigvalsh_tridiagonal(
            zero, off, select="i", select_range=(index, index), lapack_driver="stebz"
        )
        return float(found[0])

    largest = at(2 * taken - 1)
    return largest / max(at(taken), torch.finfo(torch.float64).eps * largest)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)  # type: ignore[no-any-return]


def _column(damping: Tensor | float, like: Tensor) -> Tensor | None:
    """(R, 1), or None when nothing is damped."""
    if isinstance(damping, Tensor):
        return damping.to(like).expand(len(like))[:, None]
    return like.new_full((len(like), 1), damping) if damping else None
