"""The picture below the features that could be read: a search that ends in linear equations.

Near the picture there are fewer channels than places, and one feature's equations no longer
determine it. The picture has fewer unknowns still. It is searched by least squares: the features
above it have to come out as they were read, and the weight gradients as they were sent. With ReLU
the problem is linear in pieces, so that once the pattern is right a step solves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from auditor.inversion.peel_solver import candidates
from auditor.inversion.targets import Targets
from auditor.solve import LinearMap, Solution, levenberg_marquardt, minimize

_LENGTH, _LEAK = 0.1, 0.6  # of the first step, in model units; slope of units that are off
_BETTER = 0.5  # of |r|^2: left by turning a unit that was misread
_NEAR, _PATIENCE = 1e-9, 4  # |r|^2 from which on steps that hardly help are the dump's rounding
_AGAIN, _BESIDE = 3, 1e-5  # searches from where one ended, while |r|^2 is above
_TURNS = 4  # units that are turned, at most
_APART = 1e-6  # |r|^2 with the gradients below: more than that is another picture

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Steps:
    """How many of each method."""

    rough: int  # Adam
    coarse: int  # L-BFGS
    fine: int  # Levenberg-Marquardt

    @property
    def total(self) -> int:
        return self.rough + self.coarse + self.fine


def find_picture(
    targets: Targets,
    start: Tensor,
    *,
    steps: Steps,
    goal: float,
    watch: Callable[[int, Tensor, float], None],
    expired: Callable[[], bool],
) -> Solution:
    """Adam from `start` (1, C, H, W), with kinder slopes; then L-BFGS; then Levenberg-Marquardt.

    Until |r|^2 is at most `goal`. `watch` sees (step, picture, |r|^2). Last, where the gradients of
    the parameters below are missed, they join: they jump wherever a unit turns, so they are of use
    only near the end.
    """
    search = _Search(targets, start.shape, steps, goal, watch, expired)
    found = search.descend(start)
    for _ in range(_AGAIN):  # a search that ended beside the picture is shaken
        if float(found.value) <= _BESIDE or expired():
            break
        other = search.descend(found.x.view(start.shape))
        found = other if bool(other.value < found.value) else found
    if targets.below and not expired():
        apart = float(targets.with_gradients(found.x.view(start.shape)).detach().square().sum())
        if apart > _APART:
            found = search.close_in(found.x, targets.with_gradients)
    return replace(found, steps=search.step, evaluations=search.evaluations)


class _Search:
    """One search for the picture."""

    def __init__(
        self,
        targets: Targets,
        shape: torch.Size,
        steps: Steps,
        goal: float,
        watch: Callable[[int, Tensor, float], None],
        expired: Callable[[], bool],
    ) -> None:
        self.targets, self.shape, self.steps, self.goal = targets, shape, steps, goal
        self.watch, self.expired = watch, expired
        self.step = self.evaluations = 0
        self.seen: list[float] = []

    def descend(self, start: Tensor) -> Solution:
        """All three methods, one after the other, and units above turned where that helps."""
        found = self.close_in(self.coarsely(self.roughly(start)), self.targets.residuals)
        for _ in range(_TURNS):
            if float(found.value) <= self.goal or self.expired() or not self.turn_one(found.x):
                break
            found = self.close_in(found.x, self.targets.residuals)
        return found

    def roughly(self, start: Tensor) -> Tensor:
        """Adam while hidden units that are off have a slope too, less and less of one.

        Without it, units that are off and should not be have no say, and the search ends early.
        """
        leaf = start.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        adam = torch.optim.Adam([leaf], lr=_LENGTH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(self.steps.rough, 1))
        for step in range(self.steps.rough):
            if self.expired():
                break
            leak = _LEAK * (1 - step / self.steps.rough)
            kinder = partial(self.targets.residuals, leak=leak)
            value, leaf.grad = _value_and_gradient(kinder, leaf)
            self._see(leaf.detach(), float(value))
            adam.step()
            schedule.step()
        self.evaluations += self.steps.rough
        return leaf.detach()

    def coarsely(self, start: Tensor) -> Tensor:
        """L-BFGS; gives a row (1, n)."""

        def value_and_gradient(rows: Tensor) -> tuple[Tensor, Tensor]:
            value, found = _value_and_gradient(self.targets.residuals, rows.view(self.shape))
            return value[None], found.reshape(1, -1)

        solution = minimize(
            value_and_gradient,
            start.reshape(1, -1),
            max_steps=self.steps.coarse,
            goal=self.goal,
            watch=lambda _, rows, values: self._see(rows.view(self.shape), float(values)),
            expired=self.expired,
        )
        self.evaluations += solution.evaluations
        return solution.x

    def close_in(self, near: Tensor, function: Function) -> Solution:
        """Levenberg-Marquardt on a function of the picture, from a row (1, n)."""
        solution = levenberg_marquardt(
            lambda rows: _linearised(function, rows.view(self.shape)),
            lambda rows: function(rows.view(self.shape)).detach()[None],
            near,
            max_steps=self.steps.fine,
            goal=self.goal,
            watch=lambda _, rows, values: self._see(rows.view(self.shape), float(values)),
            expired=self.expired,
        )
        self.evaluations += solution.evaluations
        return solution

    def turn_one(self, row: Tensor) -> bool:
        """Turn the unit above that lets a picture miss by less, if one clearly does."""
        peeling, picture = self.targets.peeling, row.view(self.shape)
        before, best = self._missed(picture), None
        lowest = _BETTER * before
        for user, unit in candidates(peeling, self.targets.users):
            peeling.turn(user, unit)
            value = self._missed(picture)
            peeling.turn(user, unit)
            if value < lowest:
                lowest, best = value, (user, unit)
        if best is not None:
            peeling.turn(*best)
        return best is not None

    def _missed(self, picture: Tensor) -> float:
        with torch.no_grad():
            return float(self.targets.residuals(picture).square().sum())

    def _see(self, picture: Tensor, value: float) -> bool:
        """Tell, and say whether the steps hardly help any more."""
        self.watch(self.step, picture, value)
        self.step += 1
        self.seen.append(value)
        late = value <= _NEAR and len(self.seen) > _PATIENCE
        return late and value > 0.5 * self.seen[-_PATIENCE]


def _value_and_gradient(function: Function, picture: Tensor) -> tuple[Tensor, Tensor]:
    """|r|^2 and its gradient."""
    with torch.enable_grad():
        leaf = picture.detach().requires_grad_()
        value = function(leaf).square().sum()
        (found,) = torch.autograd.grad(value, leaf)
    return value.detach(), found


def _linearised(function: Function, picture: Tensor) -> tuple[Tensor, LinearMap]:
    """Residuals at a picture, and products with their Jacobian, forward by two reverse passes."""
    with torch.enable_grad():
        leaf = picture.detach().requires_grad_()
        residual = function(leaf)
        probe = torch.zeros_like(residual, requires_grad=True)
        (pulled,) = torch.autograd.grad(residual, leaf, probe, create_graph=True)

    def forward(change: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(pulled, probe, change.view_as(leaf), retain_graph=True)
        return found[None]

    def adjoint(row: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(residual, leaf, row[0], retain_graph=True)
        return found.reshape(1, -1)

    return residual.detach()[None], LinearMap(forward, adjoint)
