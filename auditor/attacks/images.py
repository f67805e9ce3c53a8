"""What iDLG and DLG share: restarts in waves, starts, snapshots, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditor.attacks.base import Milestone, Watch
from auditor.problem import to_model_units, to_pixels, tolerance_of
from auditor.records import Course, Problem
from auditor.solve import Status, ValueAndGradient, minimize

_PICTURES = 10  # snapshots on the way of one restart


@dataclass(frozen=True)
class Search:
    """Settings of a search over restarts. The defaults are ours; `PAPER` holds the papers'."""

    restarts: int = 4
    at_once: int = 2  # rows of one batch
    max_steps: int = 6000
    start: Literal["uniform", "normal"] = "uniform"  # pixels U(0, 1), or model units N(0, 1)
    weighting: Literal["layer", "none"] = "layer"
    line_search: bool = True
    memory: int = 100
    enough: int = 2  # restarts that arrived: then the answer is known


# 300 outer steps of 20 inner ones, step length 1, one start. As in the papers, a run ends when
# the plain squared distance falls below 1e-6.
PAPER = Search(
    restarts=1,
    at_once=1,
    max_steps=6000,
    start="normal",
    weighting="none",
    line_search=False,
    enough=1,
)
_PAPER_GOAL = 1e-6


@dataclass(frozen=True)
class Found:
    """All restarts of a search."""

    rows: Tensor  # (R, D)
    courses: tuple[Course, ...]
    evaluations: int
    expired: bool


def goal_of(problem: Problem, search: Search) -> float:
    """The objective at which a restart has arrived.

    The mean of L squared layer residuals below (t/2)^2 / L keeps each of them below t/2.
    """
    if search.weighting == "none":
        return _PAPER_GOAL
    return (tolerance_of(problem) / 2) ** 2 / len(problem.gradient)


def starts(problem: Problem, search: Search, count: int, generator: torch.Generator) -> Tensor:
    """Random first candidates (count, N, C, H, W) in model units."""
    like = next(iter(problem.gradient.values()))
    known = problem.knowledge
    shape = (count, known.batch_size or 1, *known.input_shape)
    draw = torch.randn if search.start == "normal" else torch.rand
    drawn = draw(shape, generator=generator, dtype=torch.float64).to(like)
    return drawn if search.start == "normal" else to_model_units(problem, drawn)


def run_search(
    problem: Problem,
    objective: ValueAndGradient,
    first: Callable[[int], Tensor],
    inputs_of: Callable[[Tensor], Tensor],
    *,
    search: Search,
    name: str,
    watch: Watch,
) -> Found:
    """Run restarts, `at_once` rows a batch, until `enough` of them arrived.

    `first(count)` draws starting rows (count, D); `inputs_of` turns rows (R, D) into inputs
    (R, N, C, H, W).
    """
    rows: list[Tensor] = []
    courses: list[Course] = []
    evaluations, arrived = 0, 0
    while len(rows) < search.restarts and arrived < search.enough and not watch.expired():
        count = min(search.at_once, search.restarts - len(rows))
        film = Film(problem, inputs_of, search, name, watch, arrived)
        solution = minimize(
            objective,
            first(count),
            max_steps=search.max_steps,
            goal=goal_of(problem, search),
            memory=search.memory,
            line_search=search.line_search,
            watch=film.see,
            expired=watch.expired,
        )
        rows.extend(solution.x)
        courses.extend(film.courses(solution.x, solution.status))
        evaluations += solution.evaluations
        arrived += sum(status is Status.CONVERGED for status in solution.status)
    found = torch.stack(rows) if rows else first(0)
    return Found(found, tuple(courses), evaluations, watch.expired() and arrived < search.enough)


class Film:
    """Watches one wave: keeps curves and pictures, shows progress, stops when enough is known."""

    def __init__(
        self,
        problem: Problem,
        inputs_of: Callable[[Tensor], Tensor],
        search: Search,
        name: str,
        watch: Watch,
        arrived: int,
    ) -> None:
        self.problem, self.inputs_of, self.search = problem, inputs_of, search
        self.name, self.watch, self.arrived = name, watch, arrived
        self.goal = goal_of(problem, search)
        self.steps: list[int] = []
        self.values: list[Tensor] = []  # (R,) each
        self.picture_steps: list[int] = []
        self.pictures: list[Tensor] = []  # (R, N, C, H, W) each
        self.due = _due_steps(search.max_steps)

    def see(self, step: int, rows: Tensor, values: Tensor) -> bool:
        self.steps.append(step)
        self.values.append(values.detach().cpu())
        if step in self.due:
            self.picture_steps.append(step)
            self.pictures.append(self.inputs_of(rows).detach().float().cpu())
        if step % 20 == 0:
            self.watch.tell(
                Milestone(self.name, step, self.search.max_steps, self._residual(values))
            )
        there = self.arrived + int((values <= self.goal).sum())
        return there >= self.search.enough or self.watch.expired()

    def _residual(self, values: Tensor) -> float:
        return math.sqrt(max(float(values.min()), 0.0))

    def courses(self, rows: Tensor, status: tuple[Status, ...]) -> list[Course]:
        last = self.inputs_of(rows).detach().float().cpu()
        kept = _thin(len(self.steps))
        return [
            Course(
                steps=tuple(self.steps[i] for i in kept),
                objective=tuple(float(self.values[i][row]) for i in kept),
                snapshot_steps=(*self.picture_steps, self.steps[-1]),
                snapshots=torch.stack([p[row] for p in self.pictures] + [last[row]]),
                status=status[row].value,
            )
            for row in range(len(rows))
        ]


def _due_steps(max_steps: int) -> set[int]:
    """Steps of which a picture is kept: 0, then evenly on a logarithmic scale."""
    ratio = max(max_steps, 2) ** (1 / (_PICTURES + 4))
    return {0} | {round(ratio**k) for k in range(3, _PICTURES + 5)}


def _thin(count: int) -> list[int]:
    """At most about 200 indices of `count`, the first and the last among them."""
    stride = max(1, count // 200)
    return sorted({*range(0, count, stride), count - 1})


def best_pixels(problem: Problem, inputs: Tensor) -> Tensor:
    """(..., C, H, W) model units to pixels on the CPU, for people."""
    return to_pixels(problem, inputs).float().cpu()
