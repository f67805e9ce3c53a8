"""Gradient matching: the distance between a candidate's gradient and the dump, row by row.

The objective is the mean over the parameter tensors of |g_l(x) - g*_l|^2 / |g*_l|^2, so that the
last layer, which holds nearly all of the norm, does not drown the first, which sees the picture;
or the plain sum of squares of DLG (Zhu, Liu, Han 2019, arXiv:1906.08935).

The head's weight gradient is d'e (d: gradient of the logits, (N, K); e: features, (N, E)), of
rank N at most. Its distance to the dump needs only products with d and e, never the (K, E) matrix:
|d'e - G|^2 = <dd', ee'> - 2 <dG, e> + |G|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from auditor.problem import gradient_of, is_one_gradient, loss_of, scale_of
from auditor.records import Problem
from auditor.solve import ValueAndGradient, by_row

# Share of the head gradient's norm that its low-rank form may leave out.
_DROPPED = 1e-6

# One row -> inputs (N, C, H, W) and targets (N,) or (N, K).
Unpack = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _HeadGradient:
    """The dump's head gradient as left @ right, (K, r) (r, E)."""

    module: nn.Linear
    left: Tensor
    right: Tensor | None  # None: left is the whole matrix
    squared_norm: Tensor  # ()


def matching_objective(
    problem: Problem, unpack: Unpack, *, weighting: Literal["layer", "none"]
) -> ValueAndGradient:
    """The distance to the dump as a function of rows (R, D), with its gradient."""
    weights = tensor_weights(problem, weighting)
    head = _head_gradient(problem)
    device = next(iter(problem.gradient.values())).device
    single = is_one_gradient(problem)
    if device.type == "cuda" and single and not isinstance(problem.module, torch.jit.ScriptModule):
        return by_row(lambda row: _pure_distance(problem, *unpack(row), weights, head), how="vmap")
    return by_row(lambda row: _distance(problem, *unpack(row), weights, head))


def dense_distance(
    problem: Problem, inputs: Tensor, targets: Tensor, *, weighting: Literal["layer", "none"]
) -> Tensor:
    """The objective by its definition, (): the slow twin of what `matching_objective` evaluates."""
    weights = tensor_weights(problem, weighting)
    gradient = gradient_of(problem, inputs, targets, create_graph=True)
    return _sum_of_squares(problem, gradient, weights)


def tensor_weights(problem: Problem, weighting: str) -> dict[str, Tensor]:
    scales = scale_of(problem)
    if weighting == "none":
        return {name: torch.ones_like(scale) for name, scale in scales.items()}
    return {name: scale.square().reciprocal() / len(scales) for name, scale in scales.items()}


def _head_gradient(problem: Problem) -> _HeadGradient | None:
    """None when the head is not a plain linear module, or its gradient was not sent.

    In single precision the three terms of the short form would cancel to nothing.
    """
    name = problem.trace.head.weight
    owner = name.rpartition(".")[0]
    module = dict(problem.module.named_modules()).get(owner)
    rows = problem.knowledge.batch_size
    if not is_one_gradient(problem):
        return None  # the head moved between the steps
    if name not in problem.gradient or type(module) is not nn.Linear or rows is None:
        return None
    sent = problem.gradient[name]
    if sent.dtype != torch.float64 or not called_once(problem, module, rows):
        return None
    left, right = low_rank(sent, rows)
    if (left @ right - sent).norm() > _DROPPED * sent.norm():
        return _HeadGradient(module, sent, None, sent.square().sum())
    return _HeadGradient(module, left, right, sent.square().sum())


def called_once(problem: Problem, module: nn.Linear, rows: int) -> bool:
    """Whether a forward pass calls the head as a module, once, with features (N, E)."""
    seen: list[Tensor] = []
    probe = next(iter(problem.gradient.values())).new_zeros(rows, *problem.knowledge.input_shape)
    with torch.no_grad(), head_hook(module, lambda features, _: seen.append(features)):
        problem.module(probe)
    return len(seen) == 1 and seen[0].shape == (rows, module.in_features)


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left (K, r) @ right (r, E), equal to a matrix (K, E) of rank `rank` or less.

    Random sketch of the column space (Halko, Martinsson, Tropp 2011, arXiv:0909.4061).
    """
    width = min(rank + 2, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    left: Tensor = torch.linalg.qr(matrix @ sketch.to(matrix.device)).Q
    return left, left.mT @ matrix


def _distance(
    problem: Problem,
    inputs: Tensor,
    targets: Tensor,
    weights: dict[str, Tensor],
    head: _HeadGradient | None,
) -> Tensor:
    """The objective by plain autograd; works with any module."""
    if head is None:
        return _sum_of_squares(
            problem, gradient_of(problem, inputs, targets, create_graph=True), weights
        )
    seen: list[tuple[Tensor, Tensor]] = []
    with head_hook(head.module, lambda features, logits: seen.append((features, logits))):
        loss = loss_of(problem, problem.module(inputs), targets)
    features, logits = seen[0]
    named = dict(problem.module.named_parameters())
    rest = [name for name in problem.gradient if name != problem.trace.head.weight]
    wanted = [named[name] for name in rest] + [logits]
    # Where the pass depends on values, a candidate may not use all that the client's picture used.
    found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    *parts, delta = (
        torch.zeros_like(part) if gradient is None else gradient
        for gradient, part in zip(found, wanted, strict=True)
    )
    value = _sum_of_squares(problem, dict(zip(rest, parts, strict=True)), weights)
    return value + weights[problem.trace.head.weight] * _head_distance(head, delta, features)


def _pure_distance(
    problem: Problem,
    inputs: Tensor,
    targets: Tensor,
    weights: dict[str, Tensor],
    head: _HeadGradient | None,
) -> Tensor:
    """The objective without side effects, for `vmap`."""
    fixed = {name: value.detach() for name, value in problem.module.named_parameters()}
    left_out = {problem.trace.head.weight} if head else set()
    moving = {name: fixed[name] for name in problem.gradient if name not in left_out}

    def loss(part: dict[str, Tensor], shift: Tensor) -> tuple[Tensor, Tensor]:
        if head is None:
            return loss_of(
                problem, functional_call(problem.module, {**fixed, **part}, (inputs,)), targets
            ), shift
        seen: list[Tensor] = []

        def shifted(features: Tensor, logits: Tensor) -> Tensor:
            seen.append(features)
            return logits + shift

        with head_hook(head.module, shifted):
            logits = functional_call(problem.module, {**fixed, **part}, (inputs,))
        return loss_of(problem, logits, targets), seen[0]

    zero = inputs.new_zeros(len(inputs), problem.trace.head.classes)
    (gradient, delta), features = grad(loss, argnums=(0, 1), has_aux=True)(moving, zero)
    value = _sum_of_squares(problem, gradient, weights)
    if head is None:
        return value
    return value + weights[problem.trace.head.weight] * _head_distance(head, delta, features)


def _sum_of_squares(
    problem: Problem, gradient: dict[str, Tensor], weights: dict[str, Tensor]
) -> Tensor:
    parts = [
        weights[name] * (part - problem.gradient[name]).square().sum()
        for name, part in gradient.items()
    ]
    return torch.stack(parts).sum()


def _head_distance(head: _HeadGradient, delta: Tensor, features: Tensor) -> Tensor:
    own = ((delta @ delta.mT) * (features @ features.mT)).sum()
    projected = features if head.right is None else features @ head.right.mT
    cross = ((delta @ head.left) * projected).sum()
    return (own - 2 * cross + head.squared_norm).clamp_min(0)


@contextmanager
def head_hook(module: nn.Linear, see: Callable[[Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, args, output: see(args[0], output))
    try:
        yield
    finally:
        handle.remove()
