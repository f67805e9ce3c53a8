"""A whole batch from the gradient of the first linear layer, when ReLU follows it.

D' X = G with X (N, n) the inputs and D (N, m) the gradient of the layer's output. ReLU leaves about
half of D zero, and no mixture of its rows has as many zeros: that singles out D' up to scales
(solve/sparse_factors.py), D' 1 = g gives the scales, X follows, and W X + b has to be positive
exactly where D is not zero.
Source: Dimitrov, Baader, Müller, Vechev 2024 (SPEAR), arXiv:2403.03945.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.optimize import linprog
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.closed_form import claim_of
from auditor.attacks.first_linear import FirstLinear, first_linear
from auditor.records import Problem, Recovery
from auditor.solve.row_space import RowSpace, row_space
from auditor.solve.sparse_factors import expected_draws, sparse_factors

_DRAWS = 2.0e7  # more are not begun
_PATIENCE = 1000  # times the draws expected: units may be off less often than half of the time
_WRONG = 0.02  # of a sample's units: a gradient may be too small to be told from zero
_NEAR = 1e-4  # of the root mean square: values so near zero may be on either side
_MARGIN = 1e-3  # of the right side, for the length of a unit's weights
_APART = 1e-6  # the least singular value of the features, relative, that tells samples apart


@dataclass(frozen=True)
class Spear:
    """Finds the zeros that ReLU left, twice, and with them every input of the batch."""

    max_draws: float = _DRAWS  # of one reading
    name: str = "images.spear"
    title: str = "All inputs of a batch by the zeros of a first ReLU layer (SPEAR)"

    def blocked_by(self, problem: Problem) -> str | None:
        size = problem.knowledge.batch_size
        if size is None:
            return "the batch size is unknown: say it with --batch-size"
        if size == 1:
            return "it reads batches; images.layers reads one sample"
        layer = first_linear(problem)
        return layer if isinstance(layer, str) else self._unreadable(problem, layer, size)

    def _unreadable(self, problem: Problem, layer: FirstLinear, size: int) -> str | None:
        if size >= min(layer.weight.shape):
            units, inputs = layer.weight.shape
            return (
                f"{size} samples are too many for a layer of {inputs} inputs and {units} units: "
                "the rank of its gradient says nothing"
            )
        space = row_space(layer.weight, problem.precision, most=size)
        if space.rank > size:
            return (
                f"the gradient of {layer.name!r} has a rank above {size}: the batch is larger than "
                "was said, or something was added to the gradient"
            )
        if space.rank < 1:
            return f"the gradient of {layer.name!r} is zero"
        draws = expected_draws(space.rank)
        if draws > self.max_draws:
            return f"about {draws:.1e} random draws are expected, {self.max_draws:.1e} are allowed"
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        layer, size = first_linear(problem), problem.knowledge.batch_size
        assert isinstance(layer, FirstLinear), "blocked_by was not asked"
        assert size is not None, "blocked_by was not asked"
        generator = torch.Generator().manual_seed(seed)
        readings: list[Tensor] = []
        with torch.no_grad():
            for version in (layer, _reread(layer, problem.precision, generator)):
                found = self._read(problem, version, generator, watch)
                readings += [] if found is None else [found]
        return _recovery(problem, layer, size, readings, expired=watch.expired())

    def _read(
        self, problem: Problem, layer: FirstLinear, generator: torch.Generator, watch: Watch
    ) -> Tensor | None:
        """The inputs (R, n) of the layer, double precision; None when not all were found."""
        space = row_space(layer.weight, problem.precision, most=problem.knowledge.batch_size)
        live = layer.weight.norm(dim=1) > 0
        coordinates = layer.weight[live] @ space.basis  # (m', R)
        found = sparse_factors(
            coordinates,
            layer.errors(problem.precision)[live],
            generator,
            max_draws=int(min(self.max_draws, _PATIENCE * expected_draws(space.rank))),
            expired=watch.expired,
            accepts=lambda zeros: _separates(layer, space, live, zeros),
        )
        if found.directions.shape[1] < space.rank:
            return None
        deltas = layer.weight.new_zeros(len(live), space.rank)  # (m, R) D' up to scales
        deltas[live] = (coordinates @ found.directions).masked_fill(found.zeros, 0.0)
        inputs = _inputs(layer, deltas)
        return inputs if inputs is not None and _masks_hold(layer, inputs, deltas != 0) else None


def _reread(layer: FirstLinear, precision: float, generator: torch.Generator) -> FirstLinear:
    """The same layer with fresh rounding errors in what was sent; what is zero stays zero."""
    both = torch.cat([layer.weight, layer.bias[:, None]], 1)
    drawn = torch.randn(both.shape, generator=generator, dtype=torch.float64).to(both)
    sizes = both.abs() + both.square().mean(1, keepdim=True).sqrt()
    again = both + 0.5 * precision * sizes * drawn
    return replace(layer, weight=again[:, :-1], bias=again[:, -1])


def _separates(layer: FirstLinear, space: RowSpace, live: Tensor, zeros: Tensor) -> bool:
    """Whether some input in the rows' space turns units on where D is not zero, and only there.

    Of N samples with more than K - 1 among them, for K classes, some mixture of rows of D vanishes
    wherever all of them are on, and has as many zeros as a sample. No input makes such a pattern.
    A linear program: least sum of what is missing to the right side, a thousandth of it included.
    """
    sides = torch.where(zeros, -1.0, 1.0).double().cpu()[:, None]
    sizes = torch.linalg.vector_norm(layer.rows[live], dim=1).cpu()[:, None]
    slopes = sides * (layer.rows[live] @ space.basis).cpu() / sizes  # (m', R)
    offsets = (sides * layer.offsets[live].cpu()[:, None] / sizes)[:, 0]
    count, rank = slopes.shape
    found = linprog(
        torch.cat([torch.zeros(rank), torch.ones(count)]).numpy(),
        A_ub=torch.cat([-slopes, -torch.eye(count, dtype=slopes.dtype)], 1).numpy(),
        b_ub=(offsets - _MARGIN).numpy(),
        bounds=[(None, None)] * rank + [(0, None)] * count,
        method="highs",
    )
    if found.x is None:
        return False
    reached = slopes @ torch.from_numpy(found.x[:rank]) + offsets
    return bool((reached < 0).double().mean() <= _WRONG)


def _inputs(layer: FirstLinear, deltas: Tensor) -> Tensor | None:
    """X (R, n) from D' (m, R) up to the scales of its columns; None when they do not fit."""
    known = torch.cat([layer.weight, layer.bias[:, None]], 1)
    solved: Tensor = torch.linalg.lstsq(deltas / deltas.norm(dim=0), known).solution
    inputs = solved[:, :-1] / solved[:, -1:]
    return inputs if bool(inputs.isfinite().all()) else None


def _masks_hold(layer: FirstLinear, inputs: Tensor, nonzero: Tensor) -> bool:
    """Whether each unit is on for just the inputs for which its D (m, R) is not zero."""
    live = nonzero.any(1)
    before = (layer.rows @ inputs.mT + layer.offsets[:, None])[live]  # (m', R)
    clear = before.abs() > _NEAR * before.square().mean().sqrt()
    wrong = (nonzero[live] != (before > 0)) & clear
    return bool(wrong.double().mean(0).max() <= _WRONG)


# --------------------------------------------------------------------------- claims


def _recovery(
    problem: Problem,
    layer: FirstLinear,
    size: int,
    readings: list[Tensor],
    *,
    expired: bool,
) -> Recovery:
    nothing = Recovery(read_from=layer.name, expired=expired)
    if not readings:
        return nothing
    pictures, fit = layer.pictures(problem, torch.cat(readings))
    rows = pictures.view(len(readings), -1, *pictures.shape[1:])
    labels = [_labels(problem, row) for row in rows] if rows.shape[1] == size else [None]
    named = [label for label in labels if label is not None]
    if len(named) == len(rows):
        status = "read from the zeros of ReLU"
        return claim_of(problem, rows, torch.stack(named), status=status, expired=expired)
    chosen = rows[0][fit.view(len(rows), -1)[0]]
    if len(chosen) == 0:
        return nothing
    return replace(nothing, samples=chosen, witnesses=(1,) * len(chosen))


def _labels(problem: Problem, inputs: Tensor) -> Tensor | None:
    """The labels (N,) of inputs (N, C, H, W): the head's gradient is linear in them.

    Sum over i of (p_i - y_i) e_i' = s G with features e_i, probabilities p_i and s the batch size
    or 1; the bias is one more feature, always 1. None without G, or when the features leave a
    choice.
    """
    head, known = problem.trace.head, problem.knowledge
    if head.weight not in problem.gradient:
        return None
    features, logits = _features(problem, inputs)
    sent = problem.gradient[head.weight].double().mT  # (E, K)
    if head.bias in problem.gradient:  # features that batch norm centred need it
        features = torch.cat([features, features.new_ones(len(inputs), 1)], 1)
        sent = torch.cat([sent, problem.gradient[str(head.bias)].double()[None]])
    scale = len(inputs) if known.reduction == "mean" else 1
    right = features.mT @ logits.softmax(1) - scale * sent
    sizes = torch.linalg.svdvals(features)
    if len(sizes) < len(inputs) or not sizes[-1] > _APART * sizes[0]:
        return None
    found: Tensor = torch.linalg.lstsq(features.mT, right).solution  # (N, K)
    return found.argmax(1)


def _features(problem: Problem, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into the head, (N, E), and what comes out, (N, K), in double precision."""
    weight = dict(problem.module.named_parameters())[problem.trace.head.weight]
    logits = problem.module(inputs)
    # A row of the weight takes part in its own logit only, and its factor is the features.
    rows = [
        torch.autograd.grad(logits[place, 0], weight, retain_graph=True)[0][0]
        for place in range(len(inputs))
    ]
    return torch.stack(rows).double(), logits.detach().double()
