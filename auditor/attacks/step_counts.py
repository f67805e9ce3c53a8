"""Counts of local steps, tried one after the other on an update that does not say how many.

First one gradient stands in for all steps: it gives pictures, the size of the update and a first
guess of the count. Then counts are tried from these pictures. The residual vector of a count is
about straight in 1/T, so secant steps approach the best one; its neighbours are tried in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks.step_trial import Hypothesis, Trial, try_out
from auditor.local_training import midway, schedule
from auditor.problem import gradient_of, read_as, to_model_units
from auditor.records import LocalTraining, Problem

EXPLAINS = 0.1  # relative residual up to which pictures say something of the steps
USABLE = 0.3  # of a stand-in: up to here counts are tried
ALIKE = 2.0  # residuals within this factor decide nothing
_SEARCH_STEPS = 40  # of one trial
_MOST_TRIALS = 12
_SECANTS = 4
_MIDDLE = 0.25  # the first guess of the place


@dataclass(frozen=True)
class Case:
    """What all trials of one update share."""

    problem: Problem
    labels: Tensor  # (N,)
    others: tuple[Tensor, ...]  # (N,) each: labels to try where these lead nowhere
    lr: float | None
    steps: int | None  # of one epoch
    pinned: Tensor | None  # (1, n) pictures that were read already
    fewest: int  # steps of one epoch that go through all batches
    most: int
    seed: int
    expired: Callable[[], bool]


def one_step(case: Case, lr: float) -> LocalTraining:
    local = case.problem.knowledge.local
    assert local is not None
    return LocalTraining(lr, 1, len(case.labels), weight_decay=local.weight_decay)


def random_pictures(case: Case, generator: torch.Generator) -> Tensor:
    like = next(iter(case.problem.gradient.values()))
    shape = (len(case.labels), *case.problem.knowledge.input_shape)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64).to(like)
    return to_model_units(case.problem, drawn).reshape(1, -1)


def size_of(case: Case, pictures: Tensor) -> float:
    """Learning rate times steps, if these pictures (1, n) were the client's: median of tensors."""
    read = read_as(case.problem, one_step(case, 1.0))
    inputs = pictures.view(len(case.labels), *case.problem.knowledge.input_shape)
    mine = gradient_of(read, inputs, case.labels)
    ratios = [float(sent.norm() / mine[n].norm()) for n, sent in read.gradient.items()]
    usable = sorted(ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0)
    return usable[len(usable) // 2] if usable else 1.0


def first_pictures(case: Case) -> tuple[Case, Trial] | None:
    """Pictures, size and place of one gradient in the steps' place; the best of some starts.

    With the labels that gave them: what is not proved of those may be another class.
    """
    generator = torch.Generator().manual_seed(case.seed)
    best: tuple[Case, Trial] | None = None
    for labels in (case.labels, *case.others, case.labels):
        tried = replace(case, labels=labels)
        start = random_pictures(tried, generator) if case.pinned is None else case.pinned
        tail = torch.tensor([math.log(size_of(tried, start)), _MIDDLE], dtype=start.dtype)
        trial = _tried(tried, None, start, tail)
        if trial.is_finite and (best is None or trial.residual < best[1].residual):
            best = tried, trial
        if case.expired() or (best is not None and best[1].residual <= EXPLAINS):
            break
    return best


def _tried(case: Case, steps: int | None, pictures: Tensor, tail: Tensor) -> Trial:
    lr = None if steps is None else case.lr
    moving = case.pinned is None
    hypothesis = Hypothesis(case.problem, case.labels, steps, lr, moving)
    return try_out(hypothesis, pictures, tail, steps=_SEARCH_STEPS, expired=case.expired)


class _Counts:
    """Trials of counts of steps, each from the pictures of the nearest count before it."""

    def __init__(self, case: Case, first: Trial) -> None:
        self.case, self.first = case, first
        self.done: dict[int, Trial] = {}

    def of(self, steps: int) -> Trial | None:
        """The trial of a count; None for one that cannot be, or is one too many."""
        case, full = self.case, len(self.done) >= _MOST_TRIALS
        if steps in self.done or full or case.expired() or not _allows(case, steps):
            return self.done.get(steps)
        tried = self.done.values()
        near = min(tried, key=lambda t: abs((t.steps or 0) - steps), default=self.first)
        size = near.lr if near.steps is None else near.lr * self._scale(near.steps)
        tail = [] if case.lr is not None else [math.log(size / self._scale(steps))]
        like = near.pictures
        trial = _tried(case, steps, like, torch.tensor(tail, dtype=like.dtype))
        if trial.is_finite:
            self.done[steps] = trial
        return self.done.get(steps)

    def _scale(self, steps: int) -> float:
        """Of the update over the learning rate, about; exact without weight decay."""
        return scale_of_steps(self.case, steps, 1.0)

    @property
    def best(self) -> Trial:
        return min(self.done.values(), key=lambda trial: trial.residual)


def _allows(case: Case, steps: int) -> bool:
    """Whether a count goes through all batches and is short enough to be simulated."""
    return case.fewest <= steps <= case.most


def scale_of_steps(case: Case, steps: int, lr: float) -> float:
    local = case.problem.knowledge.local
    assert local is not None
    plan = schedule(replace(local, lr=lr, steps=steps, weight_decay=0.0))
    assert plan is not None
    return plan.scale


def tried_counts(case: Case, first: Trial) -> list[Trial]:
    """The counts that were tried, best first."""
    counts = _Counts(case, first)
    if case.steps is not None:
        counts.of(case.steps)
    else:
        counts.of(_guess(case, first))
        if case.lr is None:
            _approach(case, counts)
        _descend(counts)
        _fewer(counts)
    return sorted(counts.done.values(), key=lambda trial: trial.residual)


def _guess(case: Case, first: Trial) -> int:
    """The count that the stand-in says: by its size when the learning rate is known, or place."""
    local = case.problem.knowledge.local
    assert local is not None
    every = range(case.fewest, case.most + 1)
    if case.lr is not None:
        lr = case.lr
        return min(every, key=lambda steps: abs(scale_of_steps(case, steps, lr) - first.lr))
    places = {n: midway(replace(local, lr=1.0, steps=n, weight_decay=0.0)) or 0.0 for n in every}
    return min(every, key=lambda steps: abs(places[steps] - first.place))


def _approach(case: Case, counts: _Counts) -> None:
    """Secant steps in 1/T, in which the residual vector is straight to first order."""
    if not counts.done:
        return
    there = counts.best.steps or 1
    counts.of(max(case.fewest, 2) if there != max(case.fewest, 2) else there + 1)
    for _ in range(_SECANTS):
        if len(counts.done) < 2:
            return
        one, two = sorted(counts.done.values(), key=lambda trial: trial.residual)[:2]
        assert one.steps
        assert two.steps
        way = two.vector - one.vector
        share = -float(one.vector @ way) / max(float(way @ way), 1e-300)
        inverse = 1 / one.steps + share * (1 / two.steps - 1 / one.steps)
        steps = case.most if inverse * case.most <= 1 else max(round(1 / inverse), case.fewest)
        if steps in counts.done or counts.of(steps) is None:
            return


def _descend(counts: _Counts) -> None:
    """From the best count to its neighbours, until both are worse."""
    while counts.done:
        best = counts.best
        assert best.steps
        for steps in (best.steps - 1, best.steps + 1):
            counts.of(steps)
        if counts.best.steps == best.steps:
            return


def _fewer(counts: _Counts) -> None:
    """Below the best count, as long as fewer steps explain the dump as well."""
    while counts.done:
        lowest = level(counts.case, counts.best)
        fewest = min(n for n, t in counts.done.items() if level(counts.case, t) <= ALIKE * lowest)
        before = len(counts.done)
        counts.of(fewest - 1)
        if len(counts.done) == before:
            return


def level(case: Case, trial: Trial) -> float:
    """The residual of a trial, or what rounding of the dump alone may leave."""
    return max(trial.residual, case.problem.precision)
