"""Where the search for pictures behind a defence starts: labels, and what a first layer gives away.

The head's bias gradient is the sum of p - y over the batch: of one sample, only the label's entry
is negative, and defences leave that entry the most negative one for long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.attacks.first_linear import first_linear
from auditor.attacks.labels import label_claim
from auditor.attacks.matching import low_rank
from auditor.checks import head_gradients
from auditor.labels.posterior import spread_out
from auditor.problem import to_model_units
from auditor.records import Problem

_CANDIDATES = 3
_DEVIATIONS = 6.0  # of the noise, up to which another entry may be the most negative one


def label_candidates(problem: Problem) -> list[Tensor]:
    """Up to three candidates (N,) for the labels, the likeliest first."""
    device = next(iter(problem.gradient.values())).device
    known = problem.labels
    if known is not None and known.complete and known.estimate is not None:
        return [known.estimate.to(device)]
    if problem.knowledge.batch_size == 1:
        return [label.view(1).to(device) for label in _single(problem)]
    return [_batch(problem).to(device)]


def _single(problem: Problem) -> Tensor:
    """(L,) labels of the only sample whose entries the noise leaves open."""
    entries = _logit_entries(problem)
    if entries is None:
        return torch.arange(min(_CANDIDATES, problem.trace.head.classes))
    lowest, order = entries.sort()
    noise = problem.channel.sigma + max(problem.channel.steps.values(), default=0.0)
    count = int((lowest <= lowest[0] + _DEVIATIONS * noise).sum())
    return order[: min(count, _CANDIDATES)]


def _logit_entries(problem: Problem) -> Tensor | None:
    """p - y (K,) of one sample, up to a positive factor where the head has no bias."""
    weight, bias = head_gradients(problem)
    if bias is not None and bool(bias.any()):
        return bias
    if weight is None or not bool(weight.any()):
        return None
    direction = low_rank(weight, 1)[0][:, 0]
    return -direction * direction[direction.abs().argmax()].sign()


def _batch(problem: Problem) -> Tensor:
    """(N,) from the bias: N (mean of p) - N (entry), with p from gray noise; else the estimate."""
    size, classes = problem.knowledge.batch_size or 1, problem.trace.head.classes
    _, bias = head_gradients(problem)
    if bias is None or not bool(bias.any()):
        estimate = label_claim(problem).estimate
        return torch.arange(size) % classes if estimate is None else estimate
    factor = size if problem.knowledge.reduction == "mean" else 1
    expected = size * _usual(problem) - factor * bias
    none = torch.zeros(classes, dtype=torch.int64)
    added, _ = spread_out(expected, none, torch.full((classes,), size), size)
    return added.sort().values


def _usual(problem: Problem) -> Tensor:
    """The mean prediction (K,) for random pictures."""
    like = next(iter(problem.gradient.values()))
    generator = torch.Generator().manual_seed(0)
    shape = (16, *problem.knowledge.input_shape)
    pixels = torch.rand(shape, generator=generator, dtype=torch.float64).to(like)
    with torch.no_grad():
        logits = problem.module(to_model_units(problem, pixels))
    mean: Tensor = logits.double().softmax(1).mean(0).cpu()
    return mean


def read_start(problem: Problem) -> Tensor | None:
    """(1, C, H, W) in model units, pixels within 0..1, from a first linear layer under ReLU.

    Its gradients are d x' and d: of one sample [G | b] has rank one, and under noise the best
    approximation of rank one is the likeliest (Eckart and Young 1936). None where there is no such
    layer, or more than one sample.
    """
    if problem.knowledge.batch_size != 1 or problem.channel.signs:
        return None
    layer = first_linear(problem)
    if isinstance(layer, str):
        return None
    joined = torch.cat([layer.weight, layer.bias[:, None]], 1)
    if problem.channel.masked:
        joined = joined[layer.bias != 0]
    if len(joined) == 0:
        return None
    row = torch.linalg.svd(joined, full_matrices=False).Vh[0]
    flat, _ = layer.way.back((row[:-1] / row[-1])[None])
    like = next(iter(problem.gradient.values()))
    picture = flat.to(like).view(1, *problem.knowledge.input_shape)
    black, white = (to_model_units(problem, torch.full_like(picture, end)) for end in (0.0, 1.0))
    return torch.minimum(torch.maximum(picture.nan_to_num(0.0), black), white)
