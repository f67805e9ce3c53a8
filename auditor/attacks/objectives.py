"""How far a candidate's gradient points from the dump's: the cosine distance, row by row.

1 - <g, g*> / (|g| |g*|), of all parameters as one vector (Geiping et al. 2020, arXiv:2003.14053) or
tensor by tensor. It knows no scale, so clipping, an unknown reduction and the vanishing gradient of
a sample that the network is sure of do not matter.

The gradient of one sample is J(x)'d, with J the Jacobian of the logits by the parameters and
d = softmax - target. The bias of the head holds d itself, and its weight holds d up to a factor.
A candidate that is far away has another d, which would turn its whole gradient; with the d of the
dump only J has to be found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditor.attacks.matching import low_rank
from auditor.problem import gradient_of, is_one_gradient
from auditor.records import Problem

Weighting = Literal["whole", "tensor"]


@dataclass(frozen=True)
class Direction:
    """What is matched: the dump at unit length, and how a candidate's gradient is made."""

    problem: Problem
    labels: Tensor  # (N,)
    target: Mapping[str, Tensor]  # the dump's tensors, together of norm 1
    driving: Tensor | None  # (1, K): d of the only sample; None: the candidate's own

    def gradient(self, inputs: Tensor) -> dict[str, Tensor]:
        """Of inputs (N, C, H, W), with a graph. Its scale means nothing."""
        if self.driving is None:
            return gradient_of(self.problem, inputs, self.labels, create_graph=True)
        named = dict(self.problem.module.named_parameters())
        wanted = [named[name] for name in self.target]
        logits = self.problem.module(inputs)
        parts = torch.autograd.grad(
            logits, wanted, self.driving, create_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros_like(parameter) if part is None else part
            for name, parameter, part in zip(self.target, wanted, parts, strict=True)
        }

    def distance(self, inputs: Tensor, weighting: Weighting) -> Tensor:
        """0 for the dump's direction to 2 for its opposite, ()."""
        mine = self.gradient(inputs)
        if weighting == "whole":
            return 1 - _cosine([mine[name] for name in self.target], list(self.target.values()))
        parts = [_cosine([mine[name]], [sent]) for name, sent in self.target.items()]
        return 1 - torch.stack(parts).mean()


def direction(problem: Problem, labels: Tensor) -> Direction:
    """For the labels (N,) that go with the candidates."""
    driving = logit_gradient(problem, labels)
    head = {problem.trace.head.weight, problem.trace.head.bias} if driving is not None else set()
    # With d fixed the bias is matched by definition, and the weight says what the features are. In
    # trials on a trained network matching these led away from the picture.
    kept = {name: sent for name, sent in problem.gradient.items() if name not in head}
    kept = kept or dict(problem.gradient)
    peak = torch.stack([sent.abs().max() for sent in kept.values()]).max().clamp_min(_tiny(labels))
    scaled = {name: sent / peak for name, sent in kept.items()}  # squares of tiny ones would be 0
    norm = torch.stack([sent.norm() for sent in scaled.values()]).norm().clamp_min(_tiny(peak))
    target = {name: sent / norm for name, sent in scaled.items()}
    return Direction(problem, labels, target, driving)


def logit_gradient(problem: Problem, labels: Tensor) -> Tensor | None:
    """d (1, K) of the only sample, its largest entry 1 in size; None when the dump does not say.

    As sent, with the client's roundings: the tensors below were made with them.
    """
    head = problem.trace.head
    if len(labels) != 1 or not is_one_gradient(problem):
        return None
    if head.bias is not None and head.bias in problem.gradient:
        found = problem.gradient[head.bias]
    elif head.weight in problem.gradient:
        found = low_rank(problem.gradient[head.weight], 1)[0][:, 0]
        found = -found * found[labels[0]].sign()  # the entry of the label is the negative one
    else:
        return None
    peak = found.abs().max()
    return (found / peak).unsqueeze(0) if bool(peak > 0) else None


def _cosine(mine: list[Tensor], sent: list[Tensor]) -> Tensor:
    dot = torch.stack([(a * b).sum() for a, b in zip(mine, sent, strict=True)]).sum()
    lengths = [torch.stack([part.square().sum() for part in side]).sum() for side in (mine, sent)]
    return dot * (lengths[0] * lengths[1]).clamp_min(_tiny(dot)).rsqrt()


def _tiny(like: Tensor) -> float:
    kind = like.dtype if like.is_floating_point() else torch.float32
    return torch.finfo(kind).tiny
