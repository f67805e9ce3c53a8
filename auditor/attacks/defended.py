"""Images from a defended gradient: the likeliest ones, given what was done to it.

Noise, clipping, dropped entries, signs or rounding lie between the client's gradient and the dump
(`Problem.channel`). The most probable pictures (maximum a posteriori; Balunovic et al. 2022,
arXiv:2111.04706) minimise the misfit of `likelihood.py` plus that of `picture_prior.py`, a sum of
squares for Levenberg-Marquardt. The noise starts large, so that far from the answer each tensor
counts alike, and falls with the residual.

Two priors are asked, from different starts. Where they lead to the same pictures it was the dump
that chose; elsewhere the prior helped, and the claim says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.defended_starts import label_candidates, read_start
from auditor.attacks.images import Film, Search
from auditor.attacks.likelihood import Likelihood, likelihood
from auditor.attacks.picture_prior import Kind, PicturePrior, picture_prior
from auditor.problem import why_not_simulated
from auditor.records import Course, Problem, Recovery
from auditor.solve import LinearMap, Status, jacobian_products, levenberg_marquardt

_NOISE = 0.3  # of z at the start: gray pictures
_ALIKE = 1e-3  # mean squared difference, pixels 0..1: 30 dB
_CHOOSING = 0.1  # blur down to which each candidate of the labels is followed
_DENSE = 256  # unknowns up to which the Jacobian is formed
_FIRST_DAMPING = 1e-3  # the prior holds the steps back already: its curvature is 1
_IDLE, _PATIENCE = 0.999, 2  # a run ends when two blurs in turn leave so much of the misfit
_FLOOR = 1.2  # squared residual per entry, in units of the noise: no more is there to explain
_ASSUMED = (
    "the dump was changed as listed under defences",
    "pictures vary smoothly, as those of cameras do",
)


@dataclass(frozen=True)
class Defended:
    """Follows the most probable pictures from much noise to that of the dump."""

    starts: int = 2  # tried under the prior of waves until the residual is the noise's
    stage_steps: int = 3
    last_steps: int = 12
    name: str = "images.defended"
    title: str = "Images from a defended gradient (maximum a posteriori)"

    def blocked_by(self, problem: Problem) -> str | None:
        if problem.channel.is_clear:
            return "nothing in the dump asks for it: no defence was seen"
        if problem.knowledge.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        if len(problem.knowledge.input_shape) != 3:
            return "its priors are about neighbouring places, and the columns of a table have none"
        if not any(bool(sent.any()) for sent in problem.gradient.values()):
            return "every entry of the dump is zero"
        return why_not_simulated(problem)

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        return _Run(self, problem, seed, watch).recovery()


@dataclass(frozen=True)
class _End:
    """Where one descent ended."""

    z: Tensor  # (n,)
    labels: Tensor  # (N,)
    value: float  # minus twice the logarithm of the posterior at the last blur
    misfit: float  # squared residual per entry, in units of the noise
    course: Course


class _Run:
    """The state of one call of `Defended.run`."""

    def __init__(self, attack: Defended, problem: Problem, seed: int, watch: Watch) -> None:
        self.attack, self.problem, self.watch = attack, problem, watch
        self.prior = picture_prior(problem)
        self.generator = torch.Generator().manual_seed(seed)
        self.like = next(iter(problem.gradient.values()))
        size = problem.knowledge.batch_size
        assert size is not None, "blocked_by was not asked"
        self.shape = (size, *problem.knowledge.input_shape)
        self.evaluations = 0

    def recovery(self) -> Recovery:
        ends = self._ends()
        none = self.like.new_zeros(0, *self.shape)
        inputs = torch.stack([self.prior.inputs(end.z) for end in ends]) if ends else none
        labels = (
            torch.stack([end.labels for end in ends])
            if ends
            else none.new_zeros(0, self.shape[0], dtype=torch.int64)
        )
        guided = not self._alike(ends)
        return Recovery(
            inputs=inputs,
            input_labels=labels,
            courses=tuple(end.course for end in ends),
            evaluations=self.evaluations,
            expired=self.watch.expired(),
            guided=guided,
            smooth=True,
            assumed=_ASSUMED if guided else _ASSUMED[:1],
        )

    def _ends(self) -> list[_End]:
        """The best under the prior of waves, then one under that of pixels from another start."""
        if self.watch.expired():
            return []
        labels = self._labels()
        first: _End | None = None
        for place in range(self.attack.starts):
            if first is not None and (first.misfit <= _FLOOR or self.watch.expired()):
                break
            end = self._descend(likelihood(self.problem, labels), "waves", self._start(place == 0))
            first = end if first is None or end.value < first.value else first
        assert first is not None
        if self.problem.channel.signs or self.watch.expired():
            return [first]  # signs leave too much open for any two priors to agree
        second = self._descend(likelihood(self.problem, labels), "pixels", self._start(False))
        return [first, second]

    def _labels(self) -> Tensor:
        """Of several candidates the one under which pictures explain the dump best."""
        candidates = label_candidates(self.problem)
        if len(candidates) == 1:
            return candidates[0]
        start = self._start(True)
        ends = [
            self._descend(likelihood(self.problem, labels), "waves", start, least=_CHOOSING)
            for labels in candidates
        ]
        return min(ends, key=lambda end: end.value).labels

    def _start(self, reading: bool) -> Tensor:
        """z (n,): what the first layer gives away, or a random gray picture."""
        drawn = torch.randn(math.prod(self.shape), generator=self.generator, dtype=torch.float64)
        read = read_start(self.problem) if reading else None
        return (_NOISE * drawn).to(self.like) if read is None else self.prior.of(read)

    def _descend(self, match: Likelihood, kind: Kind, start: Tensor, *, least: float = 0.0) -> _End:
        """From a start z down to a blur of `least`, or until the noise explains what is left."""
        descent = _Descent(match, self.prior, kind, self.watch, self._film())
        z, status, before, idle = start[None], Status.EXHAUSTED, math.inf, 0
        blur = descent.blur_at(z, 1.0)
        while True:
            last = blur <= least or blur == 0
            steps = self.attack.last_steps if last else self.attack.stage_steps
            z, value = descent.stage(z, blur, steps)
            misfit = descent.misfit(z, 0.0)
            idle = idle + 1 if misfit > _IDLE * before else 0
            before = misfit
            if not self.problem.channel.signs and misfit <= 1:
                status = Status.CONVERGED
            elif idle == _PATIENCE:
                status = Status.STALLED
            elif self.watch.expired():
                status = Status.STOPPED
            if last or status is not Status.EXHAUSTED:
                break
            blur = max(descent.blur_at(z, blur), least)
        self.evaluations += descent.evaluations
        course = descent.film.courses(z, (status,))[0]
        return _End(z[0], match.labels, value, misfit, course)

    def _film(self) -> Film:
        return Film(
            self.problem,
            lambda rows: torch.stack([self.prior.inputs(row) for row in rows]),
            Search(max_steps=60),
            self.attack.name,
            self.watch,
            0,
        )

    def _alike(self, ends: list[_End]) -> bool:
        """Whether both priors lead to the same pictures, in whatever order."""
        if len(ends) < 2:
            return False
        one, other = (self.prior.pixels(end.z).clamp(0, 1).flatten(1) for end in ends)
        apart = (one[:, None] - other[None]).square().mean(2)
        return bool(apart.amin(0).max() <= _ALIKE) and bool(apart.amin(1).max() <= _ALIKE)


class _Descent:
    """Levenberg-Marquardt on one posterior, blur after blur."""

    def __init__(
        self,
        match: Likelihood,
        prior: PicturePrior,
        kind: Kind,
        watch: Watch,
        film: Film,
    ) -> None:
        self.match, self.prior, self.kind = match, prior, kind
        self.watch, self.film = watch, film
        self.evaluations, self.steps = 0, 0

    def misfit(self, z: Tensor, blur: float) -> float:
        """Squared residual per entry, in units of the noise with the blur."""
        with torch.enable_grad():
            return float(
                self.match.residual(self.prior.inputs(z[0]), blur).detach().square().mean()
            )

    def blur_at(self, z: Tensor, blur: float) -> float:
        """The next blur: as much as the residual needs, 0 once the dump's own noise is larger."""
        needed = 2 * blur * math.sqrt(min(self.misfit(z, blur), 1.0))
        following = min(max(needed, blur / 30), blur / 3) if self.evaluations else needed
        return following if following > self.match.sharpest else 0.0

    def stage(self, z: Tensor, blur: float, max_steps: int) -> tuple[Tensor, float]:
        """At most `max_steps` steps from z (1, n) at one blur; the end and its value."""
        found = levenberg_marquardt(
            lambda rows: self._linearised(rows, blur),
            lambda rows: self._terms(rows, blur).detach(),
            z,
            max_steps=max_steps,
            damping=_FIRST_DAMPING,
            watch=lambda step, rows, _: self._see(step, rows),
            expired=self.watch.expired,
        )
        self.evaluations += found.evaluations
        self.steps += found.steps
        return found.x, float(found.value)

    def _see(self, step: int, rows: Tensor) -> bool:
        value = rows.new_tensor([self.misfit(rows, 1.0)])
        return self.film.see(self.steps + step, rows, value)

    def _terms(self, rows: Tensor, blur: float) -> Tensor:
        """(R, n) to (R, m)."""
        with torch.enable_grad():
            return torch.stack(
                [
                    torch.cat(
                        [
                            self.match.residual(self.prior.inputs(row), blur),
                            self.prior.terms(row, self.kind),
                        ]
                    )
                    for row in rows
                ]
            )

    def _linearised(self, rows: Tensor, blur: float) -> tuple[Tensor, Tensor | LinearMap]:
        return linearised(lambda leaf: self._terms(leaf, blur), rows)


def linearised(
    terms: Callable[[Tensor], Tensor], rows: Tensor
) -> tuple[Tensor, Tensor | LinearMap]:
    """Residuals (R, m) at rows (R, n), and their Jacobian: a matrix of a few columns, or a map."""
    values, products = jacobian_products(terms, rows)
    width = rows.shape[1]
    if width > _DENSE:
        return values, products
    units = torch.eye(width, dtype=rows.dtype, device=rows.device)
    return values, torch.stack([products.forward(unit.expand_as(rows)) for unit in units], 2)
