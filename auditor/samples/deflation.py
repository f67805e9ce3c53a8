"""Samples of a claim, each by itself, on a dump under noise: does taking one away lower the rank?

The gradient of a linear layer that sees one vector a sample, its bias's as last column, is the sum
of d_i (x_i, 1)' over the samples: N directions, and noise. What the model makes of the right
picture is its own d_i; taking that term away leaves N - 1. What it makes of another picture, or of
a mixture, takes nothing away. (Of rank reductions by one term: Wedderburn 1934.) No other sample
has to be known.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.planted.layers import LinearLayer, linear_layers, recorded_alone
from auditor.planted.way import Way, way_to
from auditor.problem import is_one_gradient, loss_of, to_model_units, to_pixels
from auditor.records import Problem

# The least singular value that is left, relative to that of the dump. In trials (a ReLU network on
# MNIST, 2 to 8 samples) mixtures and other pictures left 0.5 and more, right ones 0.0 to 0.08.
_LEFT = 0.1
_ABOVE_NOISE = 4.0  # of the least direction, or it cannot be seen to go
ALONE = 25.0  # dB: how near a claim is to the picture that was shown to be in the batch
_NEAR = 10 ** (-ALONE / 10)  # mean squared difference of pixels
_CLASSES = 100  # labels that are tried, at most


def stand_alone(problem: Problem, inputs: Tensor) -> tuple[tuple[bool, ...], str]:
    """For each of the claimed `inputs` (N, C, H, W), whether it is shown to be in the batch.

    And the weight of the layer that shows it; empty where no layer can.
    """
    nothing = ((False,) * len(inputs), "")
    if not _can_tell(problem) or not bool(inputs.isfinite().all()):
        return nothing
    inputs = to_model_units(problem, to_pixels(problem, inputs))  # as they would be shown
    recording = recorded_alone(problem.module, problem.knowledge.input_shape)
    like = next(problem.module.parameters()).detach()
    for layer in linear_layers(recording):
        way = way_to(layer, recording, like)
        if way is None or layer.uses != 1 or not _is_sent(problem, layer):
            continue
        seen = _signal(problem, layer, len(inputs))
        if seen is None:
            return nothing
        told = tuple(_goes_away(problem, layer, way, seen, picture) for picture in inputs)
        return told, str(layer.weight)
    return nothing


def _can_tell(problem: Problem) -> bool:
    """Whether noise is all that lies between, and samples do not depend on one another."""
    known = problem.knowledge
    coupled = (known.mode == "train" and problem.trace.batch_norm) or problem.trace.dropout
    few = problem.trace.head.classes <= _CLASSES
    return problem.channel.is_noise and not coupled and few and is_one_gradient(problem)


def _is_sent(problem: Problem, layer: LinearLayer) -> bool:
    return layer.weight in problem.gradient and layer.bias in problem.gradient


def _signal(problem: Problem, layer: LinearLayer, size: int) -> tuple[Tensor, Tensor] | None:
    """The layer's gradient (m, n + 1) in its leading N directions: (m, N), and those (n + 1, N).

    None where noise hides one of them.
    """
    weight = problem.gradient[str(layer.weight)].double().cpu()
    weight = weight.mT if layer.turned else weight
    sent = torch.cat([weight, problem.gradient[str(layer.bias)].double().cpu()[:, None]], 1)
    if 2 * size > min(sent.shape):
        return None
    _, values, turned = torch.linalg.svd(sent, full_matrices=False)
    noise = problem.channel.sigma * sum(math.sqrt(side) for side in sent.shape)
    if not float(values[size - 1]) >= _ABOVE_NOISE * noise:
        return None
    directions = turned[:size].mT
    return sent @ directions, directions


def _goes_away(
    problem: Problem, layer: LinearLayer, way: Way, seen: tuple[Tensor, Tensor], picture: Tensor
) -> bool:
    """Whether it lies in the space of the rows, and its own term lowers the rank.

    Its term as claimed, or as drawn into that space: noise of the claim is mostly outside of it.
    """
    signal, directions = seen
    least = float(torch.linalg.svdvals(signal)[-1])
    flat = picture.reshape(1, -1).to(way.like)
    vector = way.forth(flat)[0].detach().double().cpu()
    full = torch.cat([vector, vector.new_ones(1)])
    inside = directions @ (directions.mT @ full)
    if not float(inside[-1]) > 0.5:  # no picture's: its last entry is 1
        return False
    back, fits = way.back((inside[:-1] / inside[-1])[None].to(way.like))
    drawn = back[0].view_as(picture).to(picture)
    apart = (to_pixels(problem, drawn) - to_pixels(problem, picture)).square().mean()
    if not bool(fits[0]) or not float(apart) <= _NEAR:
        return False
    for each in (picture, drawn):
        moved = way.forth(each.reshape(1, -1).to(way.like))[0].detach().double().cpu()
        place = directions.mT @ torch.cat([moved, moved.new_ones(1)])
        for factors in _factors(problem, layer, each):
            if not _spanned(signal, factors):
                continue
            left = float(torch.linalg.svdvals(signal - torch.outer(factors, place))[-1])
            if left <= _LEFT * least:
                return True
    return False


def _spanned(signal: Tensor, factors: Tensor) -> bool:
    """Whether the factors (m,) lie in the space of the columns, as they must for a rank to go.

    Where the least value falls to a share t of itself, they are within t / (1 - t) of it. This
    spares the factorisation for labels and pictures that are out of the question.
    """
    nearest = torch.linalg.lstsq(signal, factors[:, None], driver="gelsd").solution
    outside = (signal @ nearest)[:, 0] - factors
    return bool(outside.norm() <= _LEFT / (1 - _LEFT) * factors.norm())


def _factors(problem: Problem, layer: LinearLayer, picture: Tensor) -> list[Tensor]:
    """The gradient of the layer's bias (m,) for this picture in its batch, with each label."""
    known = problem.knowledge
    share = 1.0 if known.reduction == "sum" else 1 / (known.batch_size or 1)
    bias = dict(problem.module.named_parameters())[str(layer.bias)]
    logits = problem.module(picture[None].to(bias))
    found = []
    for label in range(problem.trace.head.classes):
        loss = loss_of(problem, logits, torch.tensor([label], device=logits.device))
        (gradient,) = torch.autograd.grad(loss, bias, retain_graph=True)
        found.append(share * gradient.double().cpu())
    return found
