"""The input of a first linear layer, read off a client's update.

In every step of SGD on one sample a linear layer z = W x + b gets the weight gradient d x' and the
bias gradient d, with a d of its own. Momentum and weight decay (taken out before) only weigh the
steps. So the update's rows are multiples of x still: W_j / b_j = x, over any number of steps and
whatever the layers above do: also of one gradient behind a dropout, whose mask nobody knows.
Source: Phong et al. 2017; Geiping et al. 2020, arXiv:2003.14053; the sum over steps is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.closed_form import claim_of, objective, pixel_bounds, read_alone
from auditor.attacks.labels import label_claim
from auditor.graph import Recording
from auditor.inversion.anchor import Anchored
from auditor.inversion.layers import Broken, Chain, chain_of
from auditor.inversion.link_solver import Settings
from auditor.inversion.walk import Walk, walk
from auditor.problem import (
    is_dropped_from,
    is_estimated,
    is_one_gradient,
    to_pixels,
    tolerance_of,
    why_not_simulated,
)
from auditor.records import Problem, Recovery

_FINEST, _COARSEST = 1e-13, 1e-6  # tolerance of the least-squares problems, as in layers.py
_ALIKE = 1e-3  # mean squared distance of two readings, pixels 0..1: 30 dB


@dataclass(frozen=True)
class FirstLayer:
    """Divides weight by bias changes of the first linear layer, twice, by different rows."""

    name: str = "images.first_layer"
    title: str = "Images read off the first linear layer of an update"

    def blocked_by(self, problem: Problem) -> str | None:
        if is_one_gradient(problem) and not is_dropped_from(problem):
            return "the dump is one gradient: images.layers reads its first layer"
        size = problem.knowledge.batch_size
        if size is None:
            return "the batch size is unknown: say it with --batch-size"
        if size != 1:
            return "it reads one sample; the dump is of several"
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
        if labels is None or not _can_be_checked(problem, inputs, labels):
            return _sample(problem, chain, inputs)
        return claim_of(
            problem,
            inputs,
            labels,
            status="read off the first layer",
            expired=watch.expired(),
            links=found.links,
        )


def _can_be_checked(problem: Problem, inputs: Tensor, labels: Tensor) -> bool:
    """Whether a gradient can be derived from (2, 1, C, H, W), and an estimate does not spoil it."""
    if why_not_simulated(problem) is not None or is_dropped_from(problem):
        return False
    if not is_estimated(problem):
        return True
    apart = objective(problem, inputs[0], labels.to(inputs.device))
    return apart <= tolerance_of(problem) ** 2


def _chain(problem: Problem) -> Chain | Broken:
    """From the picture to a linear layer with a bias, with no weights on the way."""

    def read(recording: Recording) -> Chain | Broken:
        found = chain_of(recording, problem.gradient)
        return found if isinstance(found, Broken) else _first(found, problem)

    return read_alone(problem, problem.module, read)


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
        bounds=pixel_bounds(problem),
        settings=settings,
        generator=torch.Generator().manual_seed(seed),
    )


def _quotient(matrix: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
    """x (E,) from some rows: least squares of matrix = delta x'."""
    size = delta[rows].square().sum().clamp_min(torch.finfo(delta.dtype).tiny)
    return matrix[rows].mT @ delta[rows] / size


def _sample(problem: Problem, chain: Chain, inputs: Tensor) -> Recovery:
    """Nothing can be simulated, and so nothing re-derived: the input alone, with its witnesses."""
    apart = float((to_pixels(problem, inputs[0]) - to_pixels(problem, inputs[1])).square().mean())
    return Recovery(
        samples=inputs[0],
        witnesses=(2 if apart <= _ALIKE else 1,),
        read_from=chain.anchor.weight or "",
        evaluations=len(inputs),
    )
