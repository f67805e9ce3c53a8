"""Single inputs of a batch, from rows of the first linear layer's gradient that only one of them
made.

Row j of the weight gradient is the sum of d_ij x_i' over the samples i that turn unit j on, that of
the bias the sum of d_ij. Where ReLU leaves one sample on, the quotient of the two is that sample; a
unit that is on with a chance of a half is on for one of N samples alone with N / 2^N. Other rows
give mixtures. Rows that give the same picture, or pixels that are multiples of 1/255, tell a sample
from a mixture.
Source: Phong et al. 2017; Geiping et al. 2020, arXiv:2003.14053, for the quotient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.first_linear import FirstLinear, first_linear
from auditor.problem import has_grid, is_on_grid, to_pixels
from auditor.records import Problem, Recovery

_SIGNAL = 256.0  # times its error: a bias gradient below gives no picture
_TIMES = 4.0  # errors that two readings of one sample may be apart
_SHADOWS = 32  # numbers that stand for a picture when pictures are compared


@dataclass(frozen=True, eq=False)
class Quotients:
    """Rows that gave a picture, the surest first."""

    inputs: Tensor  # (L, n) of the layer
    pictures: Tensor  # (L, C, H, W), model units
    errors: Tensor  # (L,) that rounding explains, of the norm of the input


@dataclass(frozen=True)
class LinearRows:
    """Divides each row of the weight gradient by its bias gradient and keeps what is one sample."""

    name: str = "images.linear_rows"
    title: str = "Single inputs of a batch by rows of the first ReLU layer"

    def blocked_by(self, problem: Problem) -> str | None:
        if problem.knowledge.batch_size == 1:
            return "it reads batches; images.layers reads one sample"
        layer = first_linear(problem)
        return layer if isinstance(layer, str) else None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        if watch.expired():
            return Recovery(expired=True)
        layer = first_linear(problem)
        assert isinstance(layer, FirstLinear), "blocked_by was not asked"
        with torch.no_grad():
            found = _quotients(problem, layer)
            groups = _groups(found, torch.Generator().manual_seed(seed))

        def counts(group: list[int]) -> bool:
            if len(group) > 1 or not has_grid(problem):
                return len(group) > 1
            return is_on_grid(to_pixels(problem, found.pictures[group[0]]))

        chosen = [group for group in groups if counts(group)]
        chosen = sorted(chosen, key=len, reverse=True)[: problem.knowledge.batch_size]
        if not chosen:
            return Recovery(read_from=layer.name)
        return Recovery(
            samples=found.pictures[[group[0] for group in chosen]],
            witnesses=tuple(len(group) for group in chosen),
            read_from=layer.name,
        )


def _quotients(problem: Problem, layer: FirstLinear) -> Quotients:
    """The quotients that are pictures and turn their own unit on."""
    errors = layer.errors(problem.precision)
    rows = (layer.bias.abs() > _SIGNAL * errors).nonzero()[:, 0]
    inputs = layer.weight[rows] / layer.bias[rows, None]
    pictures, fit = layer.pictures(problem, inputs)
    fit &= (layer.rows[rows] * inputs).sum(1) + layer.offsets[rows] > 0
    kept = fit.nonzero()[:, 0]
    # An error of the weight's row, and that of the bias times the picture.
    size = 1 + inputs[kept].norm(dim=1)
    apart = errors[rows[kept]] * size / layer.bias[rows[kept]].abs()
    order = apart.argsort(stable=True)
    return Quotients(inputs[kept][order], pictures[kept][order], apart[order])


def _groups(found: Quotients, generator: torch.Generator) -> list[list[int]]:
    """Places of rows that give the same picture, each with the surest of them first."""
    width = found.inputs.shape[1]
    drawn = torch.randn(width, _SHADOWS, generator=generator, dtype=torch.float64)
    shadows = found.inputs @ (drawn / _SHADOWS**0.5).to(found.inputs)  # lengths stay, about
    left = torch.ones(len(shadows), dtype=torch.bool, device=shadows.device)
    groups = []
    for place in range(len(shadows)):
        if left[place]:
            near = _TIMES * (found.errors + found.errors[place])
            alike = left & ((shadows - shadows[place]).norm(dim=1) <= near)
            left &= ~alike
            groups.append(alike.nonzero()[:, 0].tolist())
    return groups
