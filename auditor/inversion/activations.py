"""Activations read backwards: pre-activations and slopes from the values after them.

Bijective ones (sigmoid, tanh, softplus, ELU, leaky ReLU) have a closed-form inverse. ReLU and
hardtanh tell where they are linear, and there their input. GELU and SiLU fall and then rise: a
negative value has two preimages, of which the nearer to zero is a first guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.graph import Node, replay

_BISECTIONS = 60  # halvings: the interval ends below rounding
_TINY = 1e-300  # a pre-activation on one side of zero
_DOUBT = 10.0  # margins from an end: what a second opinion may overrule
_FAR = -40.0  # GELU and SiLU are zero to rounding from here down


@dataclass(frozen=True)
class Undone:
    """What stands before an activation. All shaped like its values."""

    inputs: Tensor  # pre-activations; meaningless where not known
    slope: Tensor  # derivative there
    known: Tensor  # bool


def undo(
    node: Node | None, values: Tensor, *, margin: Tensor, near: Tensor | None = None
) -> Undone:
    """Pre-activations from `values` (B, n), whose errors are below `margin` (B, 1).

    `near` (B, n) are pre-activations found another way: they decide where the values leave a doubt.
    None is the identity.
    """
    name = "" if node is None else node.operation.rstrip("_")
    if node is None or name == "":
        return Undone(values, torch.ones_like(values), torch.ones_like(values, dtype=torch.bool))
    if name in {"relu", "hardtanh"}:
        low, high = (0.0, torch.inf) if name == "relu" else _numbers(node, (-1.0, 1.0))
        inside = (values > low + margin) & (values < high - margin)
        if near is not None:
            doubt = _at_an_end(values, low, high, margin)
            inside = torch.where(doubt, (near > low) & (near < high), inside)
        return Undone(values, inside.to(values.dtype), inside)
    inputs = _inverse(node, name, values)
    if near is not None and name == "leaky_relu":  # rounding may turn the sign that tells its slope
        doubt = _at_an_end(values, 0.0, torch.inf, margin)
        inputs = torch.where(doubt & (near < 0) & (inputs >= 0), -_TINY, inputs)
        inputs = torch.where(doubt & (near >= 0) & (inputs < 0), _TINY, inputs)
    if near is not None and has_two_branches(node):
        other = _bisected(node, values, upper=False)
        inputs = torch.where((near - other).abs() < (near - inputs).abs(), other, inputs)
    return Undone(inputs, slope_at(node, inputs), torch.ones_like(values, dtype=torch.bool))


def in_doubt(node: Node, values: Tensor, *, margin: Tensor, near: Tensor, error: Tensor) -> Tensor:
    """Where a pattern may be misread: values at an end, and `near` within `error` (B, 1) of it.

    A unit that its values call off stays in doubt until `near` is clearly outside, one that they
    call on until it is clearly inside.
    """
    hard = node.operation.rstrip("_") == "hardtanh"
    low, high = _numbers(node, (-1.0, 1.0)) if hard else (0.0, torch.inf)
    inside = (values > low + margin) & (values < high - margin)
    surely_in = (near > low + error) & (near < high - error)
    surely_out = (near < low - error) | (near > high + error)
    return _at_an_end(values, low, high, margin) & ~torch.where(inside, surely_in, surely_out)


def _at_an_end(values: Tensor, low: float, high: float, margin: Tensor) -> Tensor:
    return ((values - low).abs() <= _DOUBT * margin) | ((values - high).abs() <= _DOUBT * margin)


def redo(node: Node | None, inputs: Tensor) -> Tensor:
    """The activation itself, or what a recorded one does to other inputs."""
    return inputs if node is None else replay((node,), node.parents[0], inputs)


def slope_at(node: Node | None, inputs: Tensor) -> Tensor:
    """The derivative of the activation at pre-activations."""
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(redo(node, leaf).sum(), leaf)
    return slope


def has_two_branches(node: Node | None) -> bool:
    """Whether a value may have two preimages."""
    return node is not None and node.operation.rstrip("_") in {"gelu", "silu"}


def has_pattern(node: Node | None) -> bool:
    """Whether part of the pre-activations stays unknown."""
    return node is not None and node.operation.rstrip("_") in {"relu", "hardtanh"}


def has_kink(node: Node | None) -> bool:
    """Whether the slope jumps where a rounding error may have carried a value across."""
    return node is not None and node.operation.rstrip("_") in {"relu", "hardtanh", "leaky_relu"}


def is_relu(node: Node | None) -> bool:
    """Whether what is not known is not positive."""
    return node is not None and node.operation.rstrip("_") == "relu"


def _inverse(node: Node, name: str, values: Tensor) -> Tensor:
    tiny = torch.finfo(values.dtype).eps
    if name == "sigmoid":
        inside = values.clamp(tiny, 1 - tiny)
        return inside.log() - (-inside).log1p()
    if name == "tanh":
        return values.clamp(-1 + tiny, 1 - tiny).atanh()
    if name == "leaky_relu":
        slope = _numbers(node, (0.01,))[0]
        return torch.where(values < 0, values / slope, values)
    if name == "elu":
        alpha, scale, input_scale = _numbers(node, (1.0, 1.0, 1.0))
        below = (values / (scale * alpha)).clamp_min(-1 + tiny).log1p() / input_scale
        return torch.where(values < 0, below, values / scale)
    if name == "softplus":
        beta, threshold = _numbers(node, (1.0, 20.0))
        scaled = (values * beta).clamp_min(tiny)
        undone = (scaled + torch.log(-torch.expm1(-scaled))) / beta
        return torch.where(scaled > threshold, values, undone)
    return _bisected(node, values, upper=True)


def _bisected(node: Node, values: Tensor, *, upper: bool) -> Tensor:
    """The preimage under GELU or SiLU above their minimum, or below it."""
    grid = torch.linspace(-2, 0, 20001, dtype=torch.float64, device=values.device)
    lowest = float(grid[redo(node, grid).argmin()])
    low = torch.full_like(values, lowest)
    high = values.clamp_min(0) + 1 if upper else torch.full_like(values, _FAR)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        under = redo(node, middle) < values
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


def _numbers(node: Node, defaults: tuple[float, ...]) -> tuple[float, ...]:
    """The plain arguments of an activation, which follow the tensor."""
    given = [a for a in node.arguments[1:] if isinstance(a, int | float)]
    return tuple(float(a) for a in (*given, *defaults[len(given) :]))
