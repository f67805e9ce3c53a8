"""One count of local steps, tried on an update: how well can any pictures explain it?

With T steps fixed, the unknowns are the pictures and, where nobody said it, the learning rate. The
residual is that of T simulated steps. Its Jacobian is taken from one gradient in their place, at
`midway` between the weights before and after: near enough for a search, at the same cost whatever
T is. Where no count is known, that one gradient stands in for the steps altogether (it differs from
their mean in second order), and its place is an unknown.
Source: a stand-in on the line between the weights is from Zhu, Yao, Blaschko 2023,
arXiv:2306.00127; which place belongs to which count, and its use as a Jacobian, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks.residuals import MatchingResidual, matching_residual, stand_in
from auditor.local_training import midway
from auditor.problem import read_as
from auditor.records import LocalTraining, Problem
from auditor.solve import LinearMap, levenberg_marquardt

_STALLED = 0.97  # of the residual two steps ago
_LATEST_PLACE = 0.5  # no count lies beyond


@dataclass(frozen=True)
class Trial:
    """Where the search for one count ended."""

    steps: int | None  # of one epoch; None: one gradient stood in for all
    lr: float  # of the stand-in: of all steps together
    place: float  # between the weights before and after
    pictures: Tensor  # (1, n) of all pictures, model units
    residual: float  # relative, root of the mean square over tensors
    vector: Tensor  # (m,) the residual itself

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.residual)


@dataclass(frozen=True)
class Hypothesis:
    """What is held fixed in a trial."""

    problem: Problem
    labels: Tensor  # (N,)
    steps: int | None  # of one epoch; None: one gradient stands in
    lr: float | None  # None: searched
    moving: bool = True  # False: the pictures are known

    @property
    def tail(self) -> int:
        """Unknowns besides the pictures: log learning rate, and place of the stand-in."""
        return int(self.lr is None) + int(self.steps is None)

    def training(self, tail: Tensor) -> LocalTraining:
        """What the unknowns (`tail`,) make of the training."""
        local = self.problem.knowledge.local
        assert local is not None
        lr = math.exp(float(tail[0])) if self.lr is None else self.lr
        if self.steps is None:
            return LocalTraining(lr, 1, len(self.labels), weight_decay=local.weight_decay)
        return replace(local, lr=lr, steps=self.steps)

    def residual(self, tail: Tensor) -> MatchingResidual:
        """As a function of the pictures."""
        read = read_as(self.problem, self.training(tail))
        return self._of(read if self.steps is not None else stand_in(read, float(tail[-1])))

    def cheap(self, tail: Tensor) -> MatchingResidual:
        """One gradient in the steps' place, for its Jacobian."""
        if self.steps is None:
            return self.residual(tail)
        training = self.training(tail)
        return self._of(stand_in(read_as(self.problem, training), midway(training) or 0.0))

    def _of(self, problem: Problem) -> MatchingResidual:
        return matching_residual(problem, self.labels, size=len(self.labels), short=False)


def try_out(
    hypothesis: Hypothesis,
    pictures: Tensor,
    tail: Tensor,
    *,
    steps: int,
    expired: Callable[[], bool],
) -> Trial:
    """Search from `pictures` (1, n), model units, and `tail`, by at most `steps` steps."""
    search = _Search(hypothesis, pictures)
    width = pictures.shape[1] if hypothesis.moving else 0
    start = torch.cat([pictures[0, :width], tail.to(pictures)])[None]
    if not start.shape[1]:
        return search.trial(start)
    lower, upper = torch.full_like(start, -math.inf), torch.full_like(start, math.inf)
    if hypothesis.steps is None:
        lower[0, -1], upper[0, -1] = 0.0, _LATEST_PLACE
    course: list[float] = []

    def see(_: int, __: Tensor, value: Tensor) -> bool:
        course.append(float(value.sqrt()))
        return len(course) > 4 and not course[-1] < _STALLED * course[-3]

    found = levenberg_marquardt(
        search.linearise,
        search.residual,
        start,
        lower=lower,
        upper=upper,
        max_steps=steps,
        goal=(hypothesis.problem.precision / 2) ** 2,
        watch=see,
        expired=expired,
    )
    return search.trial(found.x)


class _Search:
    """The residual of a hypothesis and its Jacobian; rows (1, n) hold what is searched."""

    def __init__(self, hypothesis: Hypothesis, pictures: Tensor) -> None:
        self.hypothesis, self.given = hypothesis, pictures
        self.step = torch.finfo(pictures.dtype).eps ** (1 / 3)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        width = rows.shape[1] - self.hypothesis.tail
        return (rows[:, :width] if self.hypothesis.moving else self.given), rows[0, width:]

    def residual(self, rows: Tensor) -> Tensor:
        pictures, tail = self.split(rows)
        residual: Tensor = self.hypothesis.residual(tail)(pictures).detach()
        return residual

    def linearise(self, rows: Tensor) -> tuple[Tensor, LinearMap]:
        pictures, tail = self.split(rows)
        here = self.residual(rows)
        columns = [self._along(rows, place) for place in range(-len(tail), 0)]
        beside = torch.stack(columns, 1) if columns else here.new_zeros(here.shape[1], 0)
        if not self.hypothesis.moving:
            return here, LinearMap(lambda v: v @ beside.mT, lambda u: u @ beside)
        products = self.hypothesis.cheap(tail).linear_map(pictures)
        width = pictures.shape[1]

        def forward(v: Tensor) -> Tensor:
            return products.forward(v[:, :width]) + v[:, width:] @ beside.mT

        return here, LinearMap(
            forward, lambda u: torch.cat([products.adjoint(u), u @ beside], dim=1)
        )

    def _along(self, rows: Tensor, place: int) -> Tensor:
        """The derivative (m,) by one entry of the tail, from differences."""
        aside = torch.zeros_like(rows)
        aside[0, place] = self.step
        apart = self.residual(rows + aside) - self.residual(rows - aside)
        column: Tensor = apart[0] / (2 * self.step)
        return column

    def trial(self, rows: Tensor) -> Trial:
        pictures, tail = self.split(rows)
        hypothesis = self.hypothesis
        training, vector = hypothesis.training(tail), self.residual(rows)[0]
        place = float(tail[-1]) if hypothesis.steps is None else midway(training)
        assert training.lr is not None
        return Trial(
            hypothesis.steps,
            training.lr,
            place or 0.0,
            pictures.detach(),
            float(vector.norm()),
            vector,
        )
