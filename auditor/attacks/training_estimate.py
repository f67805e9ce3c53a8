"""Learning rate and local steps of an update, where nobody said them: found in the dump.

They leave two traces. The size of the update is learning rate times steps, as measured by pictures
that explain its direction: with the learning rate known, the steps follow. And every step takes its
gradient where those before it led: T steps differ from one of the same size by (1 - 1/T) / 2 times
a term of second order. So the residual of the best pictures for a count grows with its distance in
1/T from the true count, and the smallest decides. What is found is an estimate: nothing is proved
by it, and every claim that rests on it is derived again with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.failures import told_of
from auditor.attacks.first_layer import FirstLayer
from auditor.attacks.labels import label_claim, single_step
from auditor.attacks.step_counts import (
    ALIKE,
    EXPLAINS,
    USABLE,
    Case,
    first_pictures,
    level,
    one_step,
    random_pictures,
    scale_of_steps,
    size_of,
    tried_counts,
)
from auditor.attacks.step_trial import Trial
from auditor.checks import head_gradients
from auditor.labels.estimate import UNCALIBRATED, estimate_labels
from auditor.local_training import LONGEST, schedule
from auditor.problem import read_as, tolerance_of
from auditor.records import Assumption, LabelClaim, LocalEstimate, Problem

RATE, STEPS = "learning rate", "local steps"
_SHARE = 1 / 3  # of the time that is left
_READ = 1e-2  # relative residual of pictures that were read, up to which they explain the update
_OTHERS = 4  # classes that are tried in the place of one that was guessed


def with_estimated_training(problem: Problem, *, seed: int, watch: Watch) -> Problem:
    """The problem with what its dump says of learning rate and local steps, or why it says nothing.

    As it is when it is no update, when both are known, or when that was tried before.
    """
    local = problem.knowledge.local
    if local is None or schedule(local) is not None or local.estimate is not None:
        return problem
    blocked = _blocked(problem)
    if blocked is not None:
        return _without(problem, blocked)
    try:
        return _estimated(problem, seed, watch)
    except (torch.OutOfMemoryError, MemoryError):
        return _without(problem, "out of memory")
    except (RuntimeError, ValueError) as error:
        reason = told_of(error)
        if reason is None:
            raise
        return _without(problem, reason)


def _estimated(problem: Problem, seed: int, watch: Watch) -> Problem:
    claim = label_claim(problem, seed=seed, watch=watch)
    if claim.estimate is None:
        return _without(problem, "the head's gradient gives no labels to start from")
    now = time.monotonic()
    if watch.deadline is not None:
        watch = replace(watch, deadline=now + _SHARE * max(watch.deadline - now, 0.0))
    case = _case(problem, claim, seed, watch)
    started = first_pictures(case)
    case, first = (case, None) if started is None else started
    trials = [] if first is None or first.residual > USABLE else tried_counts(case, first)
    found = _decided(case, trials) or _by_the_head(case)
    if found is None:
        return _without(problem, _why_not(case, first, trials))
    return _with(problem, found, _with_labels(claim, case.labels))


def _with_labels(claim: LabelClaim, labels: Tensor) -> LabelClaim:
    """The claim with the estimate that the search used."""
    if claim.complete:
        return claim
    estimate = labels.sort().values.cpu()
    return replace(
        claim, estimate=estimate, probabilities=None, undetermined=None, calibration=UNCALIBRATED
    )


def _blocked(problem: Problem) -> str | None:
    local, known = problem.knowledge.local, problem.knowledge
    assert local is not None
    if known.batch_size is None:
        return "the batch size is unknown: say it with --batch-size"
    if isinstance(problem.module, torch.jit.ScriptModule):
        return "local steps of a TorchScript model are not simulated"
    if not problem.channel.is_clear:
        return "the update was defended"
    if local.steps is not None and local.steps * local.epochs > LONGEST:
        return f"{local.steps * local.epochs} local steps are more than are simulated ({LONGEST})"
    return None


def _case(problem: Problem, claim: LabelClaim, seed: int, watch: Watch) -> Case:
    known, local = problem.knowledge, problem.knowledge.local
    assert local is not None
    assert claim.estimate is not None
    assert known.batch_size is not None
    device = next(iter(problem.gradient.values())).device
    batches = -(-known.batch_size // (local.batch_size or known.batch_size))
    case = Case(
        replace(problem, labels=claim),
        claim.estimate.to(device),
        (),
        local.lr,
        local.steps,
        _read_pictures(problem, seed, watch),
        fewest=-(-batches // local.epochs),
        most=max(LONGEST // local.epochs, 1),
        seed=seed,
        expired=watch.expired,
    )
    if claim.complete:
        return case
    case = replace(case, labels=_labels_at_size(case, claim))
    return replace(case, others=_other_labels(case, claim))


def _other_labels(case: Case, claim: LabelClaim) -> tuple[Tensor, ...]:
    """Labels (N,) with one that is not proved exchanged for a class that is likely, too."""
    bias = head_gradients(case.problem)[1]
    if bias is None:
        return ()
    counts = torch.bincount(case.labels.cpu(), minlength=len(bias))
    guessed = (counts > claim.lower).nonzero().flatten()
    if not len(guessed):
        return ()
    counts[guessed[bias[guessed].argmax()]] -= 1  # the least likely of them
    found = []
    for place in bias.argsort().tolist()[:_OTHERS]:
        changed = counts.clone()
        changed[place] += 1
        labels = torch.repeat_interleave(torch.arange(len(bias)), changed)
        if not torch.equal(labels, case.labels.cpu().sort().values):
            found.append(labels.to(case.labels.device))
    return tuple(found)


def _read_pictures(problem: Problem, seed: int, watch: Watch) -> Tensor | None:
    """A picture (1, n) that the first layer gives whatever the steps were."""
    if FirstLayer().blocked_by(problem) is not None:
        return None
    found = FirstLayer().run(problem, seed=seed, watch=watch)
    if found.samples is None or found.witnesses[0] < 2:
        return None
    return found.samples.reshape(1, -1)


def _labels_at_size(case: Case, claim: LabelClaim) -> Tensor:
    """Labels (N,) estimated again, from the gradient in its right size, about."""
    known = case.problem.knowledge
    size = known.batch_size or 1
    upper = torch.full_like(claim.lower, size) if claim.upper is None else claim.upper
    start = random_pictures(case, torch.Generator().manual_seed(case.seed))
    read = read_as(case.problem, one_step(case, size_of(case, start)))
    found = estimate_labels(
        replace(read, labels=None), claim.lower, upper, None, seed=case.seed, expired=case.expired
    )
    return found.labels.to(case.labels.device)


# --------------------------------------------------------------------------- what is said


@dataclass(frozen=True)
class _Found:
    lr: float
    steps: int
    estimate: LocalEstimate


def _decided(case: Case, trials: list[Trial]) -> _Found | None:
    """The count with the smallest residual; of several that fit equally, the fewest steps."""
    if not trials:
        return None
    levels = {trial.steps or 1: level(case, trial) for trial in trials}
    lowest = min(levels.values())
    alike = sorted(steps for steps, value in levels.items() if value <= ALIKE * lowest)
    enough = EXPLAINS if case.pinned is None else _READ  # of a picture that was read nothing moves
    sure = len(alike) == 1 and lowest <= enough and (len(levels) > 1 or case.steps is not None)
    if not sure and lowest > tolerance_of(case.problem):
        return None
    chosen = next(trial for trial in trials if trial.steps == alike[0])
    others = [value for steps, value in levels.items() if steps not in alike]
    rest = LocalEstimate(_what(case), chosen.residual, min(others, default=None), tuple(alike[1:]))
    return _Found(chosen.lr, alike[0], rest)


def _what(case: Case) -> tuple[str, ...]:
    return (RATE,) * (case.lr is None) + (STEPS,) * (case.steps is None)


def _by_the_head(case: Case) -> _Found | None:
    """One sample whose head's gradient is that of a single step in some size, through this model.

    For networks that no search opens.
    """
    size = single_step(read_as(case.problem, one_step(case, 1.0)))
    if size is None:
        return None
    steps = case.steps or max(case.fewest, 1)
    if case.lr is not None:
        lr = case.lr
        every = range(case.fewest, case.most + 1)
        steps = case.steps or min(every, key=lambda n: abs(scale_of_steps(case, n, lr) - size))
        if abs(scale_of_steps(case, steps, lr) - size) > 0.5 * lr:
            return None
    rate = case.lr or size / scale_of_steps(case, steps, 1.0)
    return _Found(rate, steps, LocalEstimate(_what(case)))


def _why_not(case: Case, first: Trial | None, trials: list[Trial]) -> str:
    if case.expired():
        return "the budget ended before"
    if first is None:
        return "no search ended in a finite number"
    if not trials:
        return (
            "no pictures were found that explain the update, whatever the steps (relative residual "
            f"{first.residual:.1e})"
        )
    return (
        f"{trials[0].steps} steps explain it best, but hardly better than others (relative "
        f"residual {trials[0].residual:.1e})"
    )


def _without(problem: Problem, reason: str) -> Problem:
    known, local = problem.knowledge, problem.knowledge.local
    assert local is not None
    local = replace(local, estimate=LocalEstimate((), reason=reason))
    return replace(problem, knowledge=replace(known, local=local))


def _with(problem: Problem, found: _Found, claim: LabelClaim) -> Problem:
    """The update read with the estimate, which is noted where all that is known is noted."""
    known, local = problem.knowledge, problem.knowledge.local
    assert local is not None
    training = replace(local, lr=found.lr, steps=found.steps, estimate=found.estimate)
    values = {RATE: f"{found.lr:.6g}", STEPS: str(found.steps)}
    noted = [
        Assumption(what, f"{values[what]} (estimated)", "deduced") for what in found.estimate.what
    ]
    read = read_as(replace(problem, labels=claim), training)
    assumptions = (*known.assumptions, *noted)
    return replace(read, knowledge=replace(read.knowledge, assumptions=assumptions))
