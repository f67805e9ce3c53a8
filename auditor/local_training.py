"""What local training does to a client's weights, and what an update of them says.

SGD with learning rate lr, momentum m (from zero, no dampening, not Nesterov's) and weight decay w
is linear in the weights and in the gradients g_1 ... g_T of its steps:

    after - before = -decayed * before - lr * sum_t C_t g_t

with numbers that depend on lr, m, w and T alone. So the decay comes out exactly, whatever T is, and
what is left is a weighted sum of gradients. Divided by lr * sum_t C_t it is their weighted mean, of
the size of one gradient: the pseudo-gradient. For T = 1 it is the gradient.
Source: McMahan et al. 2017 (federated averaging), arXiv:1602.05629; matching of simulated steps as
in Geiping et al. 2020, arXiv:2003.14053.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from auditor.records import LocalTraining

LONGEST = 100  # steps; more are not simulated: each keeps its graph

# Weights by name and one batch, to the gradient of its loss by name.
StepGradient = Callable[[Mapping[str, Tensor], Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Schedule:
    """How the steps of one local training add up."""

    shares: tuple[float, ...]  # (T,) C_t / sum C, of each step's gradient
    scale: float  # lr * sum C
    decayed: float  # the share of the weights before that decay took away


def total_steps(training: LocalTraining) -> int | None:
    """T, steps of all epochs; None when the steps are not known."""
    return None if training.steps is None else training.steps * training.epochs


def schedule(training: LocalTraining) -> Schedule | None:
    """The numbers of a training; None when learning rate or steps are not known."""
    steps = total_steps(training)
    if training.lr is None or steps is None:
        return None
    moved = _response(training, steps, weight=0.0, gradient=1.0)
    left = _response(training, steps, weight=1.0, gradient=0.0)
    counts = [-value / training.lr for value in reversed(moved)]  # C_t: T - t + 1 steps to go
    whole = sum(counts)
    return Schedule(tuple(c / whole for c in counts), training.lr * whole, 1.0 - left[-1])


def midway(training: LocalTraining) -> float | None:
    """Where on the line from the weights before to those after the steps' gradients lie, 0 ... 1/2.

    Up to second order in the learning rate the pseudo-gradient is the gradient at before + midway *
    (after - before): the weighted mean of the steps' places. (1 - 1/T) / 2 without momentum. None
    when learning rate or steps are not known.
    Source: Zhu, Yao, Blaschko 2023, arXiv:2306.00127, search that place; the formula is ours.
    """
    plan = schedule(training)
    if plan is None:
        return None
    places = [0.0, *accumulate(reversed(plan.shares))]  # of equal gradients, before each step
    return sum(share * place for share, place in zip(plan.shares, places[:-1], strict=True))


def _response(
    training: LocalTraining, steps: int, *, weight: float, gradient: float
) -> list[float]:
    """One weight after 1 ... `steps` steps, with a gradient in the first step only."""
    assert training.lr is not None
    speed, course = 0.0, []
    for step in range(steps):
        force = gradient if step == 0 else 0.0
        speed = training.momentum * speed + training.weight_decay * weight + force
        weight -= training.lr * speed
        course.append(weight)
    return course


def pseudo_gradient(
    update: Mapping[str, Tensor], before: Mapping[str, Tensor], training: LocalTraining
) -> dict[str, Tensor]:
    """The weighted mean of the steps' gradients, by name, from weights after minus before.

    Without learning rate or steps it is known up to a positive factor, and decay stays in it.
    """
    plan = schedule(training)
    if plan is None:
        return {name: -change / (training.lr or 1.0) for name, change in update.items()}
    return {
        name: -(change + plan.decayed * before[name]) / plan.scale
        for name, change in update.items()
    }


def simulate(
    training: LocalTraining,
    start: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    gradient: StepGradient,
) -> dict[str, Tensor]:
    """The pseudo-gradient that a client with these data would have sent, differentiable.

    `inputs` (N, ...) and `targets` (N, ...) are cut into batches in order, which the steps take in
    turn: one batch serves every step, as many batches as steps serve one each. Raises ValueError
    when learning rate or steps are not known.
    """
    plan = schedule(training)
    if plan is None or training.lr is None:
        raise ValueError("the update cannot be simulated without learning rate and local steps")
    size = training.batch_size or len(inputs)
    cuts = range(0, len(inputs), size)
    batches = [(inputs[cut : cut + size], targets[cut : cut + size]) for cut in cuts]
    weights, speed, mean = dict(start), dict[str, Tensor](), dict[str, Tensor]()
    for step, share in enumerate(plan.shares):
        found = gradient(weights, *batches[step % len(batches)])
        mean = {n: share * g + mean[n] if mean else share * g for n, g in found.items()}
        decay, momentum = training.weight_decay, training.momentum
        pull = {n: g + decay * weights[n] if decay else g for n, g in found.items()}
        speed = {n: momentum * speed[n] + p if speed else p for n, p in pull.items()}
        weights = {n: weight - training.lr * speed[n] for n, weight in weights.items()}
    return mean


def heaviest_weight(training: LocalTraining, samples: int, *, mean: bool) -> float | None:
    """The largest weight of a sample in the pseudo-gradient, relative to that in one gradient.

    `mean`: each step's loss is the mean over its batch. 1 when all samples count alike; None when
    the weights are not known.
    """
    plan = schedule(training)
    if plan is None:
        return None
    size = min(training.batch_size or samples, samples)
    sizes = [min(size, samples - first) for first in range(0, samples, size)]
    weights = [0.0] * len(sizes)
    for step, share in enumerate(plan.shares):
        place = step % len(sizes)
        weights[place] += share * samples / sizes[place] if mean else share
    return max(weights)
