"""The input of a first linear layer, read off a client's update.

In every step of SGD on one sample a linear layer z = W x + b gets the weight gradient d x' and the
bias gradient d, with a d of its own. Momentum and weight decay (taken out before) only weigh the
steps. So the update's rows are multiples of x still: W_j / b_j = x, over any number of steps and
whatever the layers above do.
Source: Phong et al. 2017; Geiping et al. 2020, arXiv:2003.14053; the sum over steps is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.labels import label_claim
from auditor.graph import record, same_program
from auditor.inversion.anchor import Anchored
from auditor.inversion.constraints import Bounds
from auditor.inversion.layers import Broken, Chain, chain_of
from auditor.inversion.link_solver import Settings
from auditor.inversion.walk import Walk, walk
from auditor.problem import (
    gradient_of,
    is_one_gradient,
    residuals_of,
    to_model_units,
    to_pixels,
    why_not_simulated,
)
from auditor.records import Course, Problem, Recovery

_FINEST, _COARSEST = 1e-13, 1e-6  # tolerance of the least-squares problems, as in layers.py
_ALIKE = 1e-3  # mean squared distance of two readings, pixels 0..1: 30 dB


@dataclass(frozen=True)
class FirstLayer:
    """Divides weight by bias changes of the first linear layer, twice, by different rows."""

    name: str = "images.first_layer"
    title: str = "Images read off the first linear layer of an update"

    def blocked_by(self, problem: Problem) -> str | None:
        if is_one_gradient(problem):
            return "the dump is one gradient: images.layers reads its first layer"
        size = problem.knowledge.batch_size
        if size is None:
            return "the batch size is unknown: say it with --batch-size"
        if size != 1:
            return "it reads one sample; the update is of several"
        local = problem.knowledge.local
        if local is not None and local.weight_decay and (local.lr is None or local.steps is None):
            return "weight decay cannot be taken out without --lr and --local-steps"
        chain = _chain(problem)
        return chain.reason if isinstance(chain, Broken) else None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        chain = _chain(problem)
        assert isinstance(chain, Chain), "blocked_by was not asked"
        if watch.expired():
            return Recovery(expired=True)
        with torch.no_grad():
            found = _walk(problem, chain, seed, watch)
        if found.inputs is None:
            return Recovery(links=found.links, expired=watch.expired())
        like = next(iter(problem.gradient.values()))
        inputs = found.inputs.to(like.dtype).view(-1, 1, *problem.knowledge.input_shape)
        labels = label_claim(problem).estimate
        if labels is None or why_not_simulated(problem) is not None:
            return _sample(problem, chain, inputs)
        return _claim(problem, found, inputs, labels)


def _chain(problem: Problem) -> Chain | Broken:
    """From the picture to a linear layer with a bias, with no weights on the way."""
    module = problem.module
    if isinstance(module, torch.jit.ScriptModule):
        return Broken("a TorchScript model is not taken apart")
    like = next(iter(module.parameters()))
    probe = like.new_full((1, *problem.knowledge.input_shape), 0.5)
    try:
        recording = record(module, probe)[1]
        again = record(module, probe.square())[1]
    except (RuntimeError, ValueError) as error:
        told = str(error).strip().splitlines()
        return Broken(f"one sample is refused ({told[0] if told else 'error'})")
    if not same_program(recording, again):
        return Broken("what the model does depends on the values of its input")
    found = chain_of(recording, problem.gradient)
    return found if isinstance(found, Broken) else _first(found, problem)


def _first(found: Chain, problem: Problem) -> Chain | Broken:
    if any(link.operator is not None for link in found.links):
        return Broken("the first layer with weights is not the linear layer that can be read")
    if found.anchor.bias is None or found.anchor.bias not in problem.gradient:
        return Broken("the first linear layer has no bias in the dump: its scale is open")
    return found


def _walk(problem: Problem, chain: Chain, seed: int, watch: Watch) -> Walk:
    """Two readings (2, pixels) by disjoint halves of the rows, in double precision."""
    assert chain.anchor.weight is not None
    assert chain.anchor.bias is not None
    matrix = problem.gradient[chain.anchor.weight].double()
    matrix = matrix.mT if chain.anchor.flips else matrix  # (M, E)
    delta = problem.gradient[chain.anchor.bias].double()  # (M,)
    largest = delta.abs().argsort(descending=True)
    rows = torch.stack([_quotient(matrix, delta, largest[place::2]) for place in (0, 1)])
    tiny = torch.finfo(delta.dtype).tiny
    apart = (matrix - delta[:, None] * rows[:, None]).flatten(1).norm(dim=1)  # (2,)
    off_rank = apart / matrix.norm().clamp_min(tiny)
    sent = {
        name: problem.gradient[name].double().expand(2, *problem.gradient[name].shape)
        for name in (chain.anchor.weight, chain.anchor.bias)
    }
    noise = max(problem.precision, float(off_rank.min()))
    tolerance = min(max(problem.precision, _FINEST), _COARSEST)
    settings = Settings(noise, tolerance, expired=watch.expired)
    anchored = Anchored(rows, torch.zeros_like(rows), off_rank, 1)
    return walk(
        chain,
        sent,
        anchored,
        precision=problem.precision,
        bounds=_pixel_bounds(problem),
        settings=settings,
        generator=torch.Generator().manual_seed(seed),
    )


def _quotient(matrix: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
    """x (E,) from some rows: least squares of matrix = delta x'."""
    size = delta[rows].square().sum().clamp_min(torch.finfo(delta.dtype).tiny)
    return matrix[rows].mT @ delta[rows] / size


def _pixel_bounds(problem: Problem) -> Bounds:
    like = torch.zeros(problem.knowledge.input_shape, dtype=torch.float64)
    ends = (to_model_units(problem, like + end).flatten() for end in (0, 1))
    return Bounds(*(end.to(next(iter(problem.gradient.values())).device) for end in ends))


def _sample(problem: Problem, chain: Chain, inputs: Tensor) -> Recovery:
    """Nothing can be simulated, and so nothing re-derived: the input alone, with its witnesses."""
    apart = float((to_pixels(problem, inputs[0]) - to_pixels(problem, inputs[1])).square().mean())
    return Recovery(
        samples=inputs[0],
        witnesses=(2 if apart <= _ALIKE else 1,),
        read_from=chain.anchor.weight or "",
        evaluations=len(inputs),
    )


def _claim(problem: Problem, found: Walk, inputs: Tensor, labels: Tensor) -> Recovery:
    named = labels.to(inputs.device).expand(len(inputs), -1)
    courses = []
    for row, label in zip(inputs, named, strict=True):
        apart = residuals_of(problem, gradient_of(problem, row, label)).values()
        objective = sum(value**2 for value in apart) / len(apart)
        film = row.float().cpu()[None]
        courses.append(Course((0,), (objective,), (0,), film, "read off the first layer"))
    return Recovery(
        inputs=inputs,
        input_labels=named,
        courses=tuple(courses),
        evaluations=len(inputs),
        links=found.links,
    )
