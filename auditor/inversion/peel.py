"""From one convolution whose input and cotangent are known, down through all branches.

What is known of a feature, the output of an activation, is linear in it:

- the weight gradient of every convolution that reads it, because the cotangents above are known;
- the pre-activations that it goes into, where the activations above them are known to be on.

Solved by least squares, the feature tells where its own activation is on, and so the cotangent
below it. This is recursive inversion (R-GAP: Zhu and Blaschko 2021, arXiv:2010.07733) for networks
with branches, and with ReLU, whose pattern is read off instead of being inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from auditor.graph import Node
from auditor.inversion.activations import Undone, has_kink, undo
from auditor.inversion.features import Feature, Features, convolutions
from auditor.inversion.layers import Operator, data_of

_SURE = 3.0  # times the largest error that shows: values below count as zero
_LARGEST = 1024  # places of a grid whose dense matrices are worth their memory
_RELATIVE = 1e-6  # errors of other activations' values, of the largest


@dataclass(frozen=True, eq=False)
class Handed:
    """The cotangent of one pre-activation, and what it makes below."""

    above: Tensor  # of the activation's output: before its slope
    features: Mapping[Node, Tensor]
    outputs: Mapping[str, Tensor]  # of convolutions, by weight
    scales: Mapping[str, Tensor]  # cotangent of a convolution's output over the pre-activation's


@dataclass(eq=False)
class Peeling:
    """What is known so far, for one sample in double precision."""

    features: Features
    gradient: Mapping[str, Tensor]
    values: dict[Node, Tensor] = field(default_factory=dict)  # of features
    undone: dict[Node, Undone] = field(default_factory=dict)  # by feature
    handed: dict[Node, Handed] = field(default_factory=dict)  # by feature

    def know(self, feature: Feature, value: Tensor) -> None:
        """Take a feature for known, and read its pattern."""
        self.values[feature.node] = value
        if feature.pre is None:
            return
        margin = margin_of(value) if feature.is_relu else _RELATIVE * float(value.abs().max())
        limit = value.new_full((1, 1), margin)
        self.undone[feature.node] = undo(feature.node, value.flatten(1), margin=limit)

    def zeros(self, node: Node) -> Tensor:
        """Shaped like a node, in double precision, where the gradient is."""
        return next(iter(self.gradient.values())).new_zeros(node.shape)

    def is_ready(self, feature: Feature) -> bool:
        """Whether the cotangents of all that a feature goes into are known."""
        users = self.features.users(feature.node)
        return bool(users) and all(user.node in self.handed for user in users)

    def hand_down(self, feature: Feature) -> None:
        """From what a feature's users say of its cotangent to what it says to those below."""
        parts = [
            self.handed[user.node].features[feature.node]
            for user in self.features.users(feature.node)
        ]
        self.hand_from(feature, torch.stack(parts).sum(0))

    def hand_from(self, feature: Feature, above: Tensor) -> None:
        """The same from a known cotangent of its output."""
        slope = self.undone[feature.node].slope if feature.node in self.undone else None
        cotangent = above if slope is None else above * slope.view_as(above)
        assert feature.pre is not None
        with torch.enable_grad():
            leaves = {
                node: cotangent.new_zeros(node.shape).requires_grad_() for node in feature.below
            }
            found = self.features.evaluate(feature.way, dict(leaves))
            operators = convolutions(feature, self.features.recording)
            outputs = [found[operator.node] for operator in operators]
            pre = found[feature.pre]
        every = [*leaves.values(), *outputs]
        pulled = _pulled(pre, every, cotangent)
        scales = _pulled(pre, outputs, torch.ones_like(cotangent))
        names = [str(operator.weight) for operator in operators]
        self.handed[feature.node] = Handed(
            above,
            dict(zip(leaves, pulled, strict=False)),
            dict(zip(names, pulled[len(leaves) :], strict=True)),
            dict(zip(names, scales, strict=True)),
        )

    def cotangent(self, feature: Feature) -> Tensor:
        """Of a feature's pre-activation."""
        above = self.handed[feature.node].above
        slope = self.undone[feature.node].slope if feature.node in self.undone else None
        return above if slope is None else above * slope.view_as(above)

    def turn(self, feature: Feature, wrong: Tensor) -> None:
        """Read units (1, n) of a feature's pattern the other way, and hand down again."""
        undone = self.undone[feature.node]
        known = undone.known ^ wrong
        self.undone[feature.node] = replace(undone, known=known, slope=known.to(undone.slope))
        if feature.node in self.handed:
            self.hand_from(feature, self.handed[feature.node].above)


def margin_of(value: Tensor) -> float:
    """Up to where values of a feature that is nowhere negative count as zero.

    Half of the errors where it is zero show as negative values.
    """
    return _SURE * float((-value).clamp_min(0).max())


def _pulled(output: Tensor, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, inputs, cotangent, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(one) if part is None else part
        for one, part in zip(inputs, found, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Block:
    """Some equations for a feature: an affine function of it, and what it should give."""

    user: Feature
    weight: str | None  # of a convolution whose gradient it tells; None: a pre-activation
    function: Callable[[Tensor], Tensor]
    told: Tensor
    counted: Tensor  # how much each equation counts
    spots: tuple[Tensor, Tensor] | None = None  # see `_spots`, and the cotangent (O, L)

    @property
    def count(self) -> int:
        """Equations that say something."""
        return int((self.counted.expand_as(self.told) != 0).sum())


def blocks_of(peeling: Peeling, feature: Feature) -> list[Block]:
    """All that is known of a feature."""
    blocks: list[Block] = []
    for user in peeling.features.users(feature.node):
        others = [node for node in user.below if node is not feature.node]
        known = {node: peeling.values[node] for node in others if node in peeling.values}
        with torch.enable_grad():
            leaf = peeling.zeros(feature.node).requires_grad_()
            every = peeling.features.evaluate(user.way, {**known, feature.node: leaf})
        reached = {node for node, value in every.items() if value.requires_grad}
        for operator in convolutions(user, peeling.features.recording):
            told = operator.weight in peeling.gradient
            if told and data_of(operator) in reached and user.node in peeling.handed:
                blocks.append(_gradient_block(peeling, user, feature, operator, known))
        if user.pre in reached and user.node in peeling.undone:
            blocks.append(_forward_block(peeling, user, feature, known))
    return blocks


def _gradient_block(
    peeling: Peeling,
    user: Feature,
    feature: Feature,
    operator: Operator,
    known: Mapping[Node, Tensor],
) -> Block:
    name = str(operator.weight)
    cotangent, sent = peeling.handed[user.node].outputs[name], peeling.gradient[name]
    apply, data = gradient_function(operator, tuple(sent.shape)), data_of(operator)

    def function(value: Tensor) -> Tensor:
        found = peeling.features.evaluate(user.way, {**known, feature.node: value})
        return apply(found[data], cotangent)

    size = cotangent.norm().clamp_min(torch.finfo(cotangent.dtype).tiny)
    counted = (cotangent[0, 0].numel() ** 0.5 / size).expand(len(sent), 1, 1, 1)
    spots = _spots(operator, tuple(sent.shape), data, sent.device) if data is feature.node else None
    there = None if spots is None else (spots, cotangent.flatten(2)[0])
    return Block(user, name, function, sent, counted, there)


def _spots(
    operator: Operator, shape: tuple[int, ...], data: Node, device: torch.device
) -> Tensor | None:
    """(P, k k, L): what each tap at each place of the output sees of each place of a channel."""
    call = operator.node.call
    assert call is not None
    places = data.shape[2] * data.shape[3]
    if call.args[8] != 1 or places > _LARGEST:
        return None
    stride, padding, dilation = (tuple(call.args[place]) for place in (3, 4, 5))
    one = torch.eye(places, dtype=torch.float64, device=device).view(places, 1, *data.shape[2:])
    return F.unfold(one, shape[2:], dilation, padding, stride)


def gradient_function(
    operator: Operator, shape: tuple[int, ...]
) -> Callable[[Tensor, Tensor], Tensor]:
    """(data, cotangent of the output) -> weight gradient of a convolution."""
    call = operator.node.call
    assert call is not None
    stride, padding, dilation = (tuple(call.args[place]) for place in (3, 4, 5))
    groups = call.args[8]

    def apply(data: Tensor, cotangent: Tensor) -> Tensor:
        made: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            data, shape, cotangent, stride, padding, dilation, groups
        )
        return made

    return apply


def _forward_block(
    peeling: Peeling, user: Feature, feature: Feature, known: Mapping[Node, Tensor]
) -> Block:
    undone, pre = peeling.undone[user.node], user.pre
    assert pre is not None

    def function(value: Tensor) -> Tensor:
        return peeling.features.evaluate(user.way, {**known, feature.node: value})[pre]

    counted = undone.known.to(undone.inputs).view(pre.shape)
    return Block(user, None, function, undone.inputs.view(pre.shape), counted)


def is_doubtful(feature: Feature) -> bool:
    """Whether its pattern may have been misread."""
    return has_kink(feature.node) and feature.pre is not None
