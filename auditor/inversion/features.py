"""A network as what its activations hand to one another, for one sample.

Every activation a_k = f(p_k) takes a pre-activation that is affine in the features below it: in the
outputs of other activations, or in the picture. Convolutions, batch norm in evaluation mode,
shortcuts, sums and averages all are inside these affine maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.graph import Node, Recording, again
from auditor.inversion.layers import Layer, Operator, layers_of, operator_of

AFFINE = frozenset({
    "linear", "convolution", "average", "shape", "batch norm", "sum", "scale",
})  # fmt: skip
_ELEMENTWISE = frozenset({"batch norm", "sum", "scale"})


@dataclass(frozen=True, eq=False)
class Feature:
    """The picture, or the output of an activation."""

    node: Node
    pre: Node | None  # its pre-activation; None for the picture
    below: tuple[Node, ...]  # the features that the pre-activation is affine in
    way: tuple[Layer, ...]  # the affine operations in between, in order
    name: str  # for people: the weights on the way

    @property
    def is_relu(self) -> bool:
        return self.node.operation.rstrip("_") == "relu"


@dataclass(frozen=True, eq=False)
class Features:
    """All features of a recording, from the picture up."""

    recording: Recording
    each: tuple[Feature, ...]
    moving: frozenset[Node]  # every node that depends on the picture, and the picture

    def feature(self, node: Node) -> Feature:
        return next(feature for feature in self.each if feature.node is node)

    def users(self, node: Node) -> tuple[Feature, ...]:
        """The features whose pre-activations a feature goes into."""
        return tuple(feature for feature in self.each if node in feature.below)

    def evaluate(self, way: tuple[Layer, ...], known: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
        """The values of the nodes of a way; those that need more than is `known` are left out."""
        values: dict[Node, Tensor] = dict(known)
        for layer in way:
            if all(p in values for p in layer.node.parents if p in self.moving):
                values[layer.node] = again(layer.node, values)
        return values


def features_of(recording: Recording) -> Features:
    """Follow the recording up. What is not affine begins anew, like a picture of its own."""
    layers = layers_of(recording)
    found = {recording.given: Feature(recording.given, None, (), (), "picture")}
    roots: dict[Node, tuple[Node, ...]] = {recording.given: (recording.given,)}
    ways: dict[Node, tuple[Layer, ...]] = {recording.given: ()}
    for layer in layers:
        node = layer.node
        sources = [recording.given if s < 0 else layers[s].node for s in layer.sources]
        if layer.kind in AFFINE:
            roots[node] = tuple(dict.fromkeys(r for s in sources for r in roots[s]))
            ways[node] = (*dict.fromkeys(x for s in sources for x in ways[s]), layer)
            continue
        if layer.kind == "activation":
            pre = sources[0]
            name = " + ".join(_weights(ways[pre])) or layer.operation
            found[node] = Feature(node, pre, roots[pre], ways[pre], name)
        else:
            below = tuple(dict.fromkeys(r for source in sources for r in roots[source]))
            before = tuple(dict.fromkeys(step for source in sources for step in ways[source]))
            found[node] = Feature(node, None, below, before, layer.operation)
        roots[node], ways[node] = (node,), ()
    end = recording.output
    if end in roots and end not in found:
        found[end] = Feature(end, None, roots[end], ways[end], "output")
    moving = frozenset({recording.given, *(layer.node for layer in layers)})
    return Features(recording, tuple(found.values()), moving)


def _weights(way: tuple[Layer, ...]) -> list[str]:
    return [
        layer.parameters[0]
        for layer in way
        if layer.kind in {"convolution", "linear"} and layer.parameters
    ]


def convolutions(feature: Feature, recording: Recording) -> tuple[Operator, ...]:
    """Those on the way to its pre-activation whose weight is used there alone."""
    found = [operator_of(x.node, recording.uses) for x in feature.way if x.kind == "convolution"]
    return tuple(operator for operator in found if operator.weight is not None)


def elementwise_above(feature: Feature, node: Node) -> bool:
    """Whether from `node` to the pre-activation everything works number by number."""
    inside = {node}
    for layer in feature.way:
        if any(parent in inside for parent in layer.node.parents):
            if layer.kind not in _ELEMENTWISE:
                return False
            inside.add(layer.node)
    return feature.pre in inside


def scale_above(features: Features, feature: Feature, node: Node, like: Tensor) -> Tensor:
    """What each number of `node` is multiplied by on its way to the pre-activation."""
    assert feature.pre is not None
    with torch.enable_grad():
        leaves = {below: like.new_zeros(below.shape) for below in feature.below}
        leaf = like.new_zeros(node.shape).requires_grad_()
        values: dict[Node, Tensor] = {**leaves, node: leaf}
        for layer in feature.way:
            if layer.node is not node and all(
                parent in values for parent in layer.node.parents if parent in features.moving
            ):
                values[layer.node] = again(layer.node, values)
        pre = values[feature.pre]
        (scale,) = torch.autograd.grad(pre, leaf, torch.ones_like(pre))
    return scale.view(node.shape)
