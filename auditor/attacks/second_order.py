"""Images by second-order gradient matching.

Matching is a nonlinear least-squares problem, solved here by Levenberg-Marquardt on its residual
vector (four 16x16 pictures through the papers' LeNet: 10 to 18 steps). Labels are read off the
head's gradient as in iDLG (Zhao, Mopuri, Bilen 2020, arXiv:2001.02610); where that is impossible
they are searched with the images, as in DLG (Zhu, Liu, Han 2019, arXiv:1906.08935). Where restarts
do not arrive or do not agree, smoothness chooses (`smoothness.py`). Needs a smooth network.

Statistics of the batch that were sent along are equations like the others. Should a restart with
them not arrive, the next one goes without, and only from its end on with them; if they cannot hold
there, it stays: the momentum of the model may not be the client's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.images import Film, Search, starts
from auditor.attacks.labels import label_claim
from auditor.attacks.residuals import MatchingResidual, approximated, matching_residual
from auditor.attacks.smoothness import STAGE_STEPS, match_smoothly
from auditor.problem import is_table, to_model_units, to_pixels, why_not_simulated
from auditor.records import Course, Problem, Recovery
from auditor.solve import Linearise, Solution, Status, levenberg_marquardt
from auditor.solve.lbfgs import Watcher

# Mean squared difference, pixels 0..1, up to which two restarts found the same pictures: 30 dB.
_ALIKE = 1e-3
# With a Jacobian that is only near, a search is slow when so many steps take less than a tenth off.
_PATIENT, _SLOW = 3, 0.9


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Solves for the images by damped Gauss-Newton steps.

    One restart at a time. Up to `dense_limit_bytes` it forms the Jacobian and its normal matrix,
    beyond that it only multiplies with the Jacobian. Pixels are not kept within 0..1: clamping
    them made the search longer (LeNet, four 16x16 pictures).

    With known labels, a prior is tried once: when a restart that multiplies has used up `patience`
    steps, or in the end, when fewer than `search.enough` arrived or those that did disagree.
    """

    search: Search = field(default_factory=lambda: Search(at_once=1))
    steps: int = 40  # of one restart; with_search takes fewer when `search.max_steps` is lower
    soft_labels: bool = False  # search the labels even when the head gives them away
    dense_limit_bytes: int = 1 << 26  # at 292 MiB products were 3 times faster (LeNet, CPU)
    patience: int = 20
    # Weights of the prior, stage by stage; empty: no prior.
    smoothness: tuple[float, ...] = tuple(10.0**-k for k in range(11))
    name: str = "images.lm"
    title: str = "Images by second-order gradient matching (Levenberg-Marquardt)"

    def blocked_by(self, problem: Problem) -> str | None:
        if problem.knowledge.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        missing = why_not_simulated(problem)
        if missing is not None:
            return missing
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
        plain, guided = self._search(residual, generator, watch)
        chosen = plain
        if guided is not None and (guided.arrived or guided.lowest < plain.lowest):
            chosen = guided
        needed = 1 if chosen is guided else self.search.enough
        form = "formed" if self.is_dense(residual) else "as products"
        rows = (
            torch.stack(chosen.rows)
            if chosen.rows
            else residual.target.new_empty(0, residual.width)
        )
        return Recovery(
            inputs=residual.images(rows),
            input_labels=residual.hard_labels(rows),
            courses=tuple(
                replace(course, status=f"{course.status} (Jacobian {form})")
                for course in chosen.courses
            ),
            evaluations=plain.evaluations + (0 if guided is None else guided.evaluations),
            expired=watch.expired() and chosen.arrived < needed,
            guided=chosen is guided,
        )

    def is_dense(self, residual: MatchingResidual) -> bool:
        """Whether the Jacobian is formed."""
        return residual.dense_bytes <= self.dense_limit_bytes

    def _search(
        self, residual: MatchingResidual, generator: torch.Generator, watch: Watch
    ) -> tuple[_Restarts, _Restarts | None]:
        """The restarts without a prior, and the one with it, if it was tried."""
        search, plain = self.search, _Restarts()
        guided: _Restarts | None = None
        may = self._may_guide(residual)
        early = may and not self.is_dense(residual)
        alone = _without_statistics(residual)
        which = residual
        while len(plain.rows) < search.restarts and plain.arrived < search.enough:
            if watch.expired():
                return plain, guided
            steps = min(self.steps, self.patience) if early and guided is None else self.steps
            self._restart(which, _start(residual, search, generator), steps, plain, watch)
            if which is not residual and plain.status[-1] is Status.CONVERGED:
                self._go_on(residual, steps, plain, watch)
            if plain.status[-1] is not Status.CONVERGED:
                which = alone if which is residual else residual
            if early and guided is None and plain.is_tiring():
                guided = self._guided(residual, generator, watch)
                if guided.arrived:
                    return plain, guided
        if may and guided is None and not (plain.agree(residual, search.enough) or watch.expired()):
            guided = self._guided(residual, generator, watch)
        return plain, guided

    def _may_guide(self, residual: MatchingResidual) -> bool:
        pictures = len(residual.problem.knowledge.input_shape) == 3
        return bool(self.smoothness) and residual.labels is not None and pictures

    def _film(self, residual: MatchingResidual, steps: int, arrived: int, watch: Watch) -> Film:
        search = replace(self.search, max_steps=steps, weighting="layer")
        return Film(residual.problem, residual.images, search, self.name, watch, arrived)

    def _restart(
        self,
        residual: MatchingResidual,
        start: Tensor,
        steps: int,
        found: _Restarts,
        watch: Watch,
    ) -> None:
        film = self._film(residual, steps, found.arrived, watch)
        found.add(self._solved(residual, start, steps, film, watch), film)

    def _solved(
        self, residual: MatchingResidual, start: Tensor, steps: int, film: Film, watch: Watch
    ) -> Solution:
        """With the Jacobian of one gradient while that helps; then, of several steps, their own."""
        near, dense, before, taken = approximated(residual), self.is_dense(residual), 0, 0
        if near is not residual:
            first = levenberg_marquardt(
                _linearised(near, dense, watch.expired),
                residual,
                start,
                max_steps=steps,
                goal=film.goal,
                watch=_until_slow(film),
                expired=watch.expired,
            )
            start, before, taken = first.x, first.steps, first.evaluations
            if first.status[0] is Status.CONVERGED or watch.expired():
                return first
        solution = levenberg_marquardt(
            _linearised(residual, dense, watch.expired),
            residual,
            start,
            max_steps=steps,
            goal=film.goal,
            watch=lambda step, rows, values: film.see(before + step, rows, values),
            expired=watch.expired,
        )
        return replace(solution, evaluations=taken + solution.evaluations)

    def _go_on(
        self, residual: MatchingResidual, steps: int, found: _Restarts, watch: Watch
    ) -> None:
        """From the last end to where the statistics hold as well; if they cannot, it stays."""
        more = _Restarts()
        self._restart(residual, found.rows[-1][None], steps, more, watch)
        found.evaluations += more.evaluations
        if more.arrived:
            found.replace_last(more)

    def _guided(
        self, residual: MatchingResidual, generator: torch.Generator, watch: Watch
    ) -> _Restarts:
        film = self._film(residual, STAGE_STEPS * len(self.smoothness), 0, watch)
        solution = match_smoothly(
            approximated(residual),
            generator,
            weights=self.smoothness,
            max_steps=self.steps,
            goal=film.goal,
            watch=film.see,
            expired=watch.expired,
        )
        found = _Restarts()
        found.add(solution, film)
        return found


def _until_slow(film: Film) -> Watcher:
    """The film's watch, ended as well where a step hardly helps."""
    course: list[float] = []

    def see(step: int, rows: Tensor, values: Tensor) -> bool:
        course.append(float(values.min()))
        slow = len(course) > _PATIENT and not course[-1] < _SLOW * course[-1 - _PATIENT]
        return film.see(step, rows, values) or slow

    return see


class _Restarts:
    """What restarts of one kind found."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # (n,) each
        self.courses: list[Course] = []
        self.status: list[Status] = []
        self.evaluations = 0
        self.lowest = torch.inf  # |r|^2

    def add(self, solution: Solution, film: Film) -> None:
        self.rows.extend(solution.x)
        self.courses.extend(film.courses(solution.x, solution.status))
        self.status.extend(solution.status)
        self.evaluations += solution.evaluations
        self.lowest = min([self.lowest, *solution.value.tolist()])

    def replace_last(self, other: _Restarts) -> None:
        """By the only one of another record."""
        self.rows[-1:], self.courses[-1:], self.status[-1:] = (
            other.rows,
            other.courses,
            other.status,
        )
        self.lowest = min(self.lowest, other.lowest)

    @property
    def arrived(self) -> int:
        return self.status.count(Status.CONVERGED)

    def is_tiring(self) -> bool:
        """The last restart went on and on."""
        return self.status[-1] is Status.EXHAUSTED

    def agree(self, residual: MatchingResidual, enough: int) -> bool:
        """Whether `enough` arrived, and two of them (if so many are asked for) look alike."""
        there = [
            to_pixels(residual.problem, residual.images(row[None])[0]).flatten(1)
            for row, status in zip(self.rows, self.status, strict=True)
            if status is Status.CONVERGED
        ]
        if len(there) < enough or enough < 2:
            return len(there) >= enough
        return any(
            _are_alike(one, other) for i, one in enumerate(there) for other in there[i + 1 :]
        )


def _without_statistics(residual: MatchingResidual) -> MatchingResidual:
    """The same equations but for those of statistics that were sent along."""
    if not residual.problem.statistics:
        return residual
    bare = replace(residual.problem, statistics={})
    return matching_residual(bare, residual.labels, size=residual.size)


def _are_alike(one: Tensor, other: Tensor) -> bool:
    """Whether every sample of a batch (N, D) has its like in the other: the order means nothing."""
    apart = torch.stack([(other - sample).square().mean(1) for sample in one])
    return bool(apart.amin(0).max() <= _ALIKE) and bool(apart.amin(1).max() <= _ALIKE)


def polish(
    problem: Problem,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    expired: Callable[[], bool],
) -> Tensor:
    """Improve a claim by at most `steps` Levenberg-Marquardt steps, without a prior.

    `inputs` (N, C, H, W) in model units, `labels` (N,) class indices. Pixels are kept within 0..1,
    the columns of a table are not.
    Gives (N, C, H, W) in the problem's dtype: the end, or the inputs as they are when the end's
    objective is not lower.
    """
    like = next(iter(problem.gradient.values()))
    residual = matching_residual(problem, labels.to(like.device), size=len(inputs))
    given = inputs.to(like).reshape(1, -1)
    black, white = (
        to_model_units(problem, like.new_full(inputs.shape, end)).flatten() for end in (0.0, 1.0)
    )
    solution = levenberg_marquardt(
        _linearised(residual, False, expired),
        residual,
        given,
        lower=None if is_table(problem) else black,
        upper=None if is_table(problem) else white,
        max_steps=steps,
        expired=expired,
    )
    better = bool(solution.value < residual(given).square().sum(1))
    return residual.images(solution.x if better else given)[0]


def _linearised(residual: MatchingResidual, dense: bool, expired: Callable[[], bool]) -> Linearise:
    """The residuals and their Jacobian, as a matrix or as a map."""
    if not dense:
        return lambda rows: (residual(rows), residual.linear_map(rows))

    def linearise(rows: Tensor) -> tuple[Tensor, Tensor] | None:
        jacobian = residual.dense(rows, expired)
        return None if jacobian is None else (residual(rows), jacobian)

    return linearise


def _start(residual: MatchingResidual, search: Search, generator: torch.Generator) -> Tensor:
    """(1, n): random images, and random logits where the labels are searched."""
    images = starts(residual.problem, search, 1, generator).flatten(1)
    if residual.labels is not None:
        return images
    logits = residual.width - images.shape[1]
    drawn = torch.randn(1, logits, generator=generator, dtype=torch.float64)
    return torch.cat([images, drawn.to(images)], dim=1)
