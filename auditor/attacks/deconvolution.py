"""One picture of a residual network, from a convolution that gives both its factors away.

Below a pooled head nothing says where features were active, and sums of branches hide the rest:
there layer-by-layer reading ends. But a convolution with at least as many channels as places has a
weight gradient from which its input and its cotangent follow, both at once (inversion/blind.py).
From there the features below are read one by one through all branches (peel.py), and near the
picture, where channels are few, the picture is searched from the features above (descent.py).

The walk down is that of R-GAP (Zhu and Blaschko 2021, arXiv:2010.07733); the factorisation and the
walk through branches are our own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from auditor.attacks.base import Milestone, Watch
from auditor.attacks.closed_form import read_alone, why_not_one_sample
from auditor.attacks.labels import label_claim
from auditor.graph import Recording
from auditor.inversion.accounts import Account, compared, factorised, read_off, searched
from auditor.inversion.blind import factorise
from auditor.inversion.deconvolve import begin, candidates_of
from auditor.inversion.descent import Steps, find_picture
from auditor.inversion.features import Features, features_of
from auditor.inversion.layers import Broken
from auditor.inversion.peel import Peeling
from auditor.inversion.peel_solver import Settings, read_feature
from auditor.inversion.rounding import disturbed
from auditor.inversion.targets import targets_of
from auditor.problem import gradient_of, residuals_of, to_model_units
from auditor.records import Course, LinkReport, Problem, Recovery

_DIGITS = 1e-5  # relative precision of a dump; float16 and bfloat16 are coarser
_FITS = 300.0  # times the precision: a factorisation whose taps fit worse is none
_ENOUGH = 30.0  # times the precision: a residual at which no unit was misread
_HOLDS = 1e-3  # relative residual of a feature's equations: above, it was not read
_LAST = 6  # pictures of which the nearest is taken
_PICTURES = 10  # snapshots on the way of one reading


@dataclass(frozen=True)
class Deconvolution:
    """Factorises one convolution's gradient, reads what is below it, searches the rest.

    The dump is read twice: as it is, from a grey picture, and with fresh rounding errors, from a
    random one.
    """

    readings: int = 2
    steps: Steps = field(default_factory=lambda: Steps(rough=400, coarse=300, fine=30))
    solver_steps: int = 2000  # of least squares, for one feature
    name: str = "images.deconvolution"
    title: str = "Images of residual networks (blind deconvolution of one layer)"

    def blocked_by(self, problem: Problem) -> str | None:
        unsuited = _unsuited(problem)
        if unsuited is not None:
            return unsuited
        found = _features(problem)
        if isinstance(found, Broken):
            return found.reason
        if not any(True for _ in candidates_of(found, _shifts(problem), problem.gradient)):
            return (
                "no convolution of the network has at least as many channels as places, an input "
                "that an activation made, and a bias (or batch norm) with a gradient after it"
            )
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        features = _features(problem)
        labels = label_claim(problem).estimate
        assert isinstance(features, Features), "blocked_by was not asked"
        assert labels is not None, "blocked_by was not asked"
        generator = torch.Generator().manual_seed(seed)
        found: list[_Reading] = []
        for number in range(self.readings):
            if watch.expired() or (found and found[-1].picture is None):
                break
            found.append(self._read(problem, features, number, generator, watch))
        links = compared([reading.links for reading in found])
        pictures = [reading for reading in found if reading.picture is not None]
        if not pictures:
            return Recovery(expired=watch.expired(), links=links)
        like = next(iter(problem.gradient.values()))
        inputs = torch.stack([torch.as_tensor(r.picture).to(like) for r in pictures])
        return Recovery(
            inputs=inputs,
            input_labels=labels.to(like.device).expand(len(inputs), -1),
            courses=tuple(reading.course for reading in pictures if reading.course is not None),
            evaluations=sum(reading.evaluations for reading in pictures),
            expired=watch.expired() and len(pictures) < self.readings,
            links=links,
        )

    def _read(
        self,
        problem: Problem,
        features: Features,
        number: int,
        generator: torch.Generator,
        watch: Watch,
    ) -> _Reading:
        """One reading, without a picture where no convolution could be factorised."""
        gradient = {name: sent.double() for name, sent in problem.gradient.items()}
        if number:
            gradient = {n: disturbed(g, problem.precision, generator) for n, g in gradient.items()}
        peeling = Peeling(features, gradient)
        first = _begun(peeling, problem, watch)
        if not first.report.solved:
            return _Reading((first,))
        drawn = generator if number else None
        links = [first, *self._peel(peeling, problem.precision, drawn, watch)]
        return self._search(problem, peeling, number, generator, watch, links)

    def _peel(
        self,
        peeling: Peeling,
        precision: float,
        generator: torch.Generator | None,
        watch: Watch,
    ) -> Iterator[Account]:
        """Read feature after feature, as long as its equations hold."""
        settings = Settings(
            tolerance=max(precision / 100, 1e-13),
            steps=self.solver_steps,
            enough=_ENOUGH * precision,
            expired=watch.expired,
            generator=generator,
        )
        for feature in reversed(peeling.features.each):
            if watch.expired():
                return
            if feature.node in peeling.handed or not peeling.is_ready(feature):
                continue
            if feature.node not in peeling.values:
                solved = read_feature(peeling, feature, settings)
                if solved is None or not solved.residual <= _HOLDS:
                    return
                peeling.know(feature, solved.value)
                yield Account(read_off(feature, solved), feature.node, solved.value)
            if feature.pre is not None:
                peeling.hand_down(feature)

    def _search(
        self,
        problem: Problem,
        peeling: Peeling,
        number: int,
        generator: torch.Generator,
        watch: Watch,
        links: list[Account],
    ) -> _Reading:
        given = peeling.features.recording.given
        if given in peeling.values:
            film = _Film(problem, self, number, watch)
            film.see(0, peeling.values[given], 0.0)
            return film.reading(peeling.values[given], tuple(links), "read layer by layer", 1)
        targets = targets_of(peeling)
        if targets is None:
            return _Reading(tuple(links))
        start = _start(problem, number, generator).to(next(iter(peeling.gradient.values())))
        film = _Film(problem, self, number, watch)
        solution = find_picture(
            targets,
            start,
            steps=self.steps,
            goal=problem.precision**2,
            watch=film.see,
            expired=watch.expired,
        )
        links.append(Account(searched(targets, solution)))
        picture = film.nearest(solution.x.view_as(start))
        return film.reading(picture, tuple(links), solution.status[0].value, solution.evaluations)


@dataclass(frozen=True, eq=False)
class _Reading:
    links: tuple[Account, ...]
    picture: Tensor | None = None  # (1, C, H, W), model units
    course: Course | None = None
    evaluations: int = 0


class _Film:
    """Snapshots and values of one search, and progress."""

    def __init__(self, problem: Problem, attack: Deconvolution, number: int, watch: Watch) -> None:
        self.problem, self.attack, self.watch, self.number = problem, attack, watch, number
        self.steps: list[int] = []
        self.values: list[float] = []
        self.snapshots: list[tuple[int, Tensor]] = []
        self.last: list[Tensor] = []

    def see(self, step: int, picture: Tensor, value: float) -> None:
        attack = self.attack
        every = attack.steps.total
        self.steps.append(step)
        self.values.append(value)
        if step in {0, 10, 30, 100, 200, 400} or step > attack.steps.rough + attack.steps.coarse:
            self.snapshots.append((step, picture.detach().float().cpu().clone()))
        self.last = [*self.last[1 - _LAST :], picture.detach()]
        if step % 10 == 0:
            done = self.number * every + min(step, every)
            self.watch.tell(Milestone(attack.name, done, attack.readings * every, value**0.5))

    def nearest(self, picture: Tensor) -> Tensor:
        """Of the end and the last steps, what makes the dump best: a unit that is on in one and off
        in the next, by rounding, shows in a whole tensor.
        """
        labels = label_claim(self.problem).estimate
        assert labels is not None, "blocked_by was not asked"
        like = next(iter(self.problem.gradient.values()))

        def worst(candidate: Tensor) -> float:
            inputs = candidate.to(like)
            made = gradient_of(self.problem, inputs, labels.to(like.device))
            return max(residuals_of(self.problem, made).values())

        return min([picture, *self.last], key=worst)

    def reading(
        self, picture: Tensor, links: tuple[Account, ...], status: str, evaluations: int
    ) -> _Reading:
        shown = [*self.snapshots[: _PICTURES - 1], (self.steps[-1], picture.float().cpu())]
        course = Course(
            tuple(self.steps),
            tuple(self.values),
            tuple(step for step, _ in shown),
            torch.stack([snapshot for _, snapshot in shown]),
            status,
        )
        return _Reading(links, picture, course, evaluations)


def _unsuited(problem: Problem) -> str | None:
    """What about the dump, whatever the network, keeps this from working."""
    if problem.precision > _DIGITS:
        return "the dump carries too few digits: a factorisation makes rounding errors grow"
    if problem.knowledge.mode == "train" and problem.trace.batch_norm:
        return "batch norm in training mode ties all places of a channel together"
    return why_not_one_sample(problem)


def _features(problem: Problem) -> Features | Broken:
    """The network in double precision, as its features."""
    module = problem.module
    if any(p.dtype != torch.float64 for p in module.parameters()):
        if isinstance(module, torch.jit.ScriptModule):
            return Broken("a TorchScript model is not taken apart")
        module = copy.deepcopy(module).double()

    def read(recording: Recording) -> Features | Broken:
        if recording.writes_through_views or recording.reads_values:
            return Broken("the model writes into views or turns tensors into plain numbers")
        return features_of(recording)

    return read_alone(problem, module, read)


def _shifts(problem: Problem) -> dict[str, str]:
    """The batch norm's shift right after each layer, by the layer's weight."""
    return {n.weight: n.shift for n in problem.trace.normalised if n.shift and not n.rectified}


def _begun(peeling: Peeling, problem: Problem, watch: Watch) -> Account:
    """Factorise the lowest convolution that can be, and take what it gives for known.

    Where none can be, the report of the one that came nearest.
    """
    failed: list[LinkReport] = []
    limit = _FITS * problem.precision
    for candidate in candidates_of(peeling.features, _shifts(problem), peeling.gradient):
        sent = peeling.gradient[candidate.weight]
        factors = factorise(sent, *candidate.grid, limit=limit, expired=watch.expired)
        link = factorised(candidate, sent, 1.0 if factors is None else factors.misfit)
        fits = factors is not None and factors.misfit <= limit
        if factors is not None and fits and begin(peeling, candidate, factors, limit=_HOLDS):
            return Account(link, candidate.source.node, peeling.values[candidate.source.node])
        failed.append(replace(link, solved=False, status="no factors of full rank fit"))
        if watch.expired():
            break
    return Account(min(failed, key=lambda link: link.residual))


def _start(problem: Problem, number: int, generator: torch.Generator) -> Tensor:
    """A grey picture first, then random ones; (1, C, H, W) in model units."""
    shape = (1, *problem.knowledge.input_shape)
    grey = torch.full(shape, 0.5, dtype=torch.float64)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return to_model_units(problem, drawn if number else grey)
