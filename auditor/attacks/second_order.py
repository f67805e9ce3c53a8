"""Images by second-order gradient matching.

Matching is a nonlinear least-squares problem, solved here by Levenberg-Marquardt on its residual
vector (four 16x16 pictures through the papers' LeNet: 10 to 18 steps). Labels are read off the
head's gradient as in iDLG (Zhao, Mopuri, Bilen 2020, arXiv:2001.02610); where that is impossible
they are searched with the images, as in DLG (Zhu, Liu, Han 2019, arXiv:1906.08935). Needs a smooth
network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.images import Film, Search, goal_of, starts
from auditor.attacks.labels import label_claim
from auditor.attacks.residuals import MatchingResidual, matching_residual
from auditor.records import Course, Problem, Recovery
from auditor.solve import LinearMap, Solution, Status, levenberg_marquardt


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Solves for the images by damped Gauss-Newton steps.

    One restart at a time. Up to `dense_limit_bytes` it forms the Jacobian and its normal matrix,
    beyond that it only multiplies with the Jacobian. Pixels are not kept within 0..1: clamping
    them made the search longer (LeNet, four 16x16 pictures).
    """

    search: Search = field(default_factory=lambda: Search(at_once=1))
    steps: int = 40  # of one restart; `search.max_steps` does not apply
    soft_labels: bool = False  # search the labels even when the head gives them away
    dense_limit_bytes: int = 1 << 26  # at 292 MiB products were 3 times faster (LeNet, CPU)
    name: str = "images.lm"
    title: str = "Images by second-order gradient matching (Levenberg-Marquardt)"

    def blocked_by(self, problem: Problem) -> str | None:
        if problem.knowledge.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        if isinstance(problem.module, torch.jit.ScriptModule):
            return "a TorchScript model cannot be differentiated twice in the way that this needs"
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        size = problem.knowledge.batch_size
        assert size is not None, "blocked_by was not asked"
        estimate = None if self.soft_labels else label_claim(problem).estimate
        device = next(iter(problem.gradient.values())).device
        labels = None if estimate is None else estimate.to(device)
        residual = matching_residual(problem, labels, size=size)
        generator = torch.Generator().manual_seed(seed)
        solved: list[Tensor] = []
        courses: list[Course] = []
        evaluations, arrived = 0, 0
        search = replace(self.search, max_steps=self.steps, weighting="layer")
        while len(solved) < search.restarts and arrived < search.enough and not watch.expired():
            start = _start(residual, search, generator)
            film = Film(problem, residual.images, search, self.name, watch, arrived)
            solution = self._restart(residual, start, film, watch)
            solved.extend(solution.x)
            courses.extend(film.courses(solution.x, solution.status))
            evaluations += solution.evaluations
            arrived += sum(status is Status.CONVERGED for status in solution.status)
        rows = torch.stack(solved) if solved else _start(residual, search, generator)[:0]
        return Recovery(
            inputs=residual.images(rows),
            input_labels=residual.hard_labels(rows),
            courses=tuple(courses),
            evaluations=evaluations,
            expired=watch.expired() and arrived < search.enough,
        )

    def is_dense(self, residual: MatchingResidual) -> bool:
        """Whether the Jacobian is formed."""
        return residual.dense_bytes <= self.dense_limit_bytes

    def _restart(
        self, residual: MatchingResidual, start: Tensor, film: Film, watch: Watch
    ) -> Solution:
        def linearise(rows: Tensor) -> tuple[Tensor, Tensor | LinearMap] | None:
            if not self.is_dense(residual):
                return residual(rows), residual.linear_map(rows)
            jacobian = residual.dense(rows, watch.expired)
            return None if jacobian is None else (residual(rows), jacobian)

        return levenberg_marquardt(
            linearise,
            residual,
            start,
            max_steps=self.steps,
            goal=goal_of(residual.problem, film.search),
            watch=film.see,
            expired=watch.expired,
        )


def _start(residual: MatchingResidual, search: Search, generator: torch.Generator) -> Tensor:
    """(1, n): random images, and random logits where the labels are searched."""
    images = starts(residual.problem, search, 1, generator).flatten(1)
    if residual.labels is not None:
        return images
    logits = residual.width - images.shape[1]
    drawn = torch.randn(1, logits, generator=generator, dtype=torch.float64)
    return torch.cat([images, drawn.to(images)], dim=1)
