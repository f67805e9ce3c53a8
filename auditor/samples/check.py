"""Inputs of a batch that were read one by one: what the dump says of each by itself.

Without the whole batch no gradient can be derived again. But the rows of a linear layer's gradient
are sums of multiples of its inputs, so an input lies in the space that they span. Mixtures of
inputs lie there too; what tells a sample from a mixture is one of these:

- Rows that are its multiples, by factors that the model derives from it for one label.
- Pixels that all are multiples of 1/255, in many levels. Of a mixture in arbitrary shares a level
  is so near to a multiple with a chance of 0.2, of one in halves with 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.planted.layers import LinearLayer, linear_layers, recorded_alone
from auditor.planted.way import way_to
from auditor.problem import (
    has_grid,
    is_in_range,
    is_on_grid,
    is_one_gradient,
    loss_of,
    to_pixels,
    tolerance_of,
)
from auditor.records import Certainty, Problem, Recovery
from auditor.solve.row_space import RowSpace, row_space

_GRID_SPAN = 1e-3  # a mixture that was rounded to the grid is farther from the rows' space
_MATCH = 2e-3  # relative: a factor that the client rounded in single precision
_SIGNAL = 256.0  # roundings of the largest factor: one below is not compared
_ROWS = 2  # that have to be the sample's multiples
_CLASSES = 1000  # labels that are tried, at most


def check_samples(problem: Problem, recovery: Recovery) -> tuple[Certainty | None, ...]:
    """For each of `recovery.samples` (M, C, H, W): verified, consistent, or None for not shown."""
    samples = recovery.samples
    if samples is None:
        return ()
    nothing: tuple[Certainty | None, ...] = (None,) * len(samples)
    if recovery.read_from not in problem.gradient or not bool(samples.isfinite().all()):
        return nothing
    rows = _Rows(problem, recovery.read_from)
    if rows.layer is None or rows.space.rank >= rows.sent.shape[1]:
        return nothing
    return tuple(
        rows.certainty(sample, witnesses)
        for sample, witnesses in zip(samples, recovery.witnesses, strict=True)
    )


class _Rows:
    """The rows of one linear layer's gradient, with the bias's as last column if it was sent."""

    def __init__(self, problem: Problem, weight: str) -> None:
        self.problem = problem
        recording = recorded_alone(problem.module, problem.knowledge.input_shape)
        found = (layer for layer in linear_layers(recording) if layer.weight == weight)
        self.layer: LinearLayer | None = next(found, None)
        self.sent = problem.gradient[weight].double()
        if self.layer is None:
            return
        self.way = way_to(self.layer, recording, next(problem.module.parameters()).detach())
        if self.way is None:
            self.layer = None
            return
        self.sent = self.sent.mT if self.layer.turned else self.sent
        self.has_bias = self.layer.bias in problem.gradient
        if self.has_bias:
            bias = problem.gradient[str(self.layer.bias)].double()
            self.sent = torch.cat([self.sent, bias[:, None]], 1)
        self.space: RowSpace = row_space(self.sent, problem.precision)

    def certainty(self, sample: Tensor, witnesses: int) -> Certainty | None:
        """What is known of one sample (C, H, W), with the rows that the attack says gave it."""
        vector = self._input(sample)
        apart = float(self.space.distances(vector[None]))
        if not apart <= tolerance_of(self.problem) or not is_in_range(self.problem, sample):
            return None
        grid = has_grid(self.problem) and apart <= _GRID_SPAN
        if grid and is_on_grid(to_pixels(self.problem, sample)):
            return "verified"
        alone = self.space.rank == 1 and self.problem.knowledge.batch_size == 1
        if witnesses >= _ROWS and (alone or self._rederived(sample, vector) >= _ROWS):
            return "verified"
        return "consistent"

    def _input(self, sample: Tensor) -> Tensor:
        """What the layer gets for a sample, (n,), and 1 for its bias."""
        assert self.way is not None
        flat = sample.reshape(1, -1).to(self.way.like)
        found = self.way.forth(flat)[0].detach().double()
        return torch.cat([found, found.new_ones(1)]) if self.has_bias else found

    def _rederived(self, sample: Tensor, vector: Tensor) -> int:
        """Rows that are multiples of `vector`, by what the model makes of the sample."""
        known, layer = self.problem.knowledge, self.layer
        share = 1.0 if known.reduction == "sum" else 1 / (known.batch_size or math.inf)
        classes = self.problem.trace.head.classes
        if not share or classes > _CLASSES or not self.has_bias or not _is_alone(self.problem):
            return 0
        assert layer is not None
        factors = self.sent[:, -1]
        off = (self.sent - factors[:, None] * vector).norm(dim=1)
        signal = factors.abs() > _SIGNAL * self.problem.precision * factors.abs().max()
        multiples = signal & (off <= tolerance_of(self.problem) * self.sent.norm(dim=1))
        if int(multiples.sum()) < _ROWS:
            return 0
        bias = dict(self.problem.module.named_parameters())[str(layer.bias)]
        logits = self.problem.module(sample[None])
        return max(
            _equal(share * _factors(self.problem, logits, label, bias), factors, multiples)
            for label in range(classes)
        )


def _is_alone(problem: Problem) -> bool:
    """Whether a sample's gradient does not depend on the rest of its batch."""
    coupled = problem.knowledge.mode == "train" and problem.trace.batch_norm
    return is_one_gradient(problem) and not coupled and not problem.trace.dropout


def _factors(problem: Problem, logits: Tensor, label: int, bias: Tensor) -> Tensor:
    """The gradient of the layer's bias (m,) for one sample with this label."""
    target = torch.tensor([label], device=logits.device)
    loss = loss_of(problem, logits, target)
    (found,) = torch.autograd.grad(loss, bias, retain_graph=True)
    return found.double()


def _equal(mine: Tensor, sent: Tensor, among: Tensor) -> int:
    return int((among & ((mine - sent).abs() <= _MATCH * sent.abs())).sum())
