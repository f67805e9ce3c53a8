"""The linear layers of one forward pass, with the rows that they really multiply by.

Rows are taken from the operation and not from the module that holds them, so it does not matter
whether a weight is a parameter, turned over, or computed from parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auditor.graph import HANDS_ON, TURNS, Node, Recording, constant, parameter_behind, record
from auditor.inversion.layers import Layer, layers_of


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """z = rows x + offsets, as the forward pass does it."""

    name: str  # for people: the weight's, or the operation's
    weight: str | None  # parameter that holds the rows and nothing else; None when computed
    bias: str | None
    rows: Tensor  # (m, n)
    offsets: Tensor | None  # (m,)
    turned: bool  # the parameter is (n, m)
    uses: int  # operations that the weight takes part in
    product: Node  # the operation on x
    node: Node  # that made z


def probe(module: nn.Module, shape: tuple[int, ...], count: int) -> Tensor:
    """Pictures (count, C, H, W) of noise for a pass that is recorded."""
    drawn = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(next(module.parameters()))


def recorded(module: nn.Module, shape: tuple[int, ...], count: int = 2) -> Recording:
    """One forward pass of `count` samples of `shape` (C, H, W); the global random state stays.

    Two samples, because batch norm in training mode refuses one.
    """
    with torch.random.fork_rng(devices=[]):
        return record(module, probe(module, shape, count))[1]


def recorded_alone(module: nn.Module, shape: tuple[int, ...]) -> Recording:
    """One forward pass of one sample, or of two where the model refuses one.

    Batch norm of vectors in training mode does; what stands before it does not depend on it.
    """
    try:
        return recorded(module, shape, 1)
    except (RuntimeError, ValueError):
        return recorded(module, shape, 2)


def linear_layers(recording: Recording) -> tuple[LinearLayer, ...]:
    """Every linear layer on the way from the input to the output, in order."""
    layers = layers_of(recording)
    found = (_linear(layer, layers, recording) for layer in layers if layer.kind == "linear")
    return tuple(layer for layer in found if layer is not None)


def _linear(layer: Layer, layers: Sequence[Layer], recording: Recording) -> LinearLayer | None:
    node = layer.node
    plain = node.operation == "linear"  # (x, W[, b]); else mm (x, W') or addmm (b, x, W')
    matrix = node.parents[1] if plain else node.parents[-1]
    if len(matrix.shape) != 2:
        return None
    inner = node.parents[2:] if plain else node.parents[:-2]
    bias, output = (inner[0], node) if inner else _added(node, layers)
    weight, turned = parameter_behind(matrix)
    rows = constant(matrix) if plain else constant(matrix).T
    whole = weight is not None and rows.numel() == _size(matrix, weight)
    return LinearLayer(
        name=weight or node.operation,
        weight=weight if whole else None,
        bias=None if bias is None else parameter_behind(bias)[0],
        rows=rows,
        offsets=None if bias is None else constant(bias).expand(len(rows)),
        turned=turned if plain else not turned,
        uses=recording.uses.get(weight or "", 0),
        product=node,
        node=output,
    )


def _size(node: Node, parameter: str) -> int:
    """Numbers of the parameter behind a node."""
    while node.parameter != parameter:
        node = node.parents[0]
    return int(torch.Size(node.shape).numel())


def _added(node: Node, layers: Sequence[Layer]) -> tuple[Node | None, Node]:
    """A vector that is added to the outcome by an operation of its own, and that operation."""
    for layer in layers:
        data = layer.node.parents[0] if layer.node.parents else node
        if layer.operation.rstrip("_") == "add" and _behind_views(data) is node:
            others = [p for p in layer.node.parents if p is not data]
            if layer.kind == "scale" and others and others[0].shape == node.shape[-1:]:
                return others[0], layer.node
    return None, node


def _behind_views(node: Node) -> Node:
    while node.operation in HANDS_ON and node.parents:
        node = node.parents[0]
    return node


def follower(layer: LinearLayer, layers: Sequence[LinearLayer]) -> LinearLayer | None:
    """The linear layer that takes this one's output through activations and views only."""
    for other in layers:
        if other is not layer and any(_leads_to(p, layer.node) for p in other.product.parents):
            return other
    return None


def _leads_to(node: Node, target: Node) -> bool:
    """Whether `node` is `target` behind element-wise operations and views."""
    passes = HANDS_ON | TURNS | {"relu", "relu_"}
    while node is not target and node.operation in passes and node.parents:
        node = node.parents[0]
    return node is target
