"""What is known right above the features that could not be read, as functions of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.graph import Node, again
from auditor.inversion.features import Feature, Features, convolutions
from auditor.inversion.layers import data_of
from auditor.inversion.peel import Peeling, gradient_function

_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Targets:
    """What the picture has to give, as a function of it."""

    peeling: Peeling
    users: tuple[Feature, ...]  # whose pre-activations are known where they are on
    whole: tuple[Feature, ...]  # known themselves, what is below them is not
    hidden: tuple[Feature, ...]  # not read, in order, the picture first
    below: Mapping[
        str, Node
    ]  # parameters between the picture and the users, whose gradient was sent

    def with_gradients(self, picture: Tensor) -> Tensor:
        """The same, and what the gradients of the parameters below miss by.

        The cotangents of the users' pre-activations are known, so that these gradients are those of
        their product with the pre-activations.
        """
        leaves = {
            node: node.value.to(picture).detach().requires_grad_()
            for node in self.below.values()
            if node.value is not None
        }
        with torch.enable_grad():
            values = values_of(self.peeling.features, self.hidden, picture, constants=leaves)
            product = picture.new_zeros(())
            for user in self.users:
                known = {n: values.get(n, self.peeling.values.get(n)) for n in user.below}
                every = {n: v for n, v in known.items() if v is not None} | leaves
                found = self.peeling.features.evaluate(user.way, every)
                assert user.pre is not None
                product = product + (found[user.pre] * self.peeling.cotangent(user)).sum()
            made = torch.autograd.grad(
                product, list(leaves.values()), create_graph=True, allow_unused=True
            )
        parts = [self.residuals(picture)]
        for name, part in zip(self.below, made, strict=True):
            sent = self.peeling.gradient[name]
            if part is not None:
                parts.append((part - sent).flatten() / sent.norm().clamp_min(_TINY))
        return torch.cat(parts)

    def residuals(self, picture: Tensor, leak: float = 0.0) -> Tensor:
        """What a picture (1, C, H, W) in model units misses by, (m,), relative to each block.

        With a `leak`, units of hidden ReLUs that are off have that slope all the same.
        """
        peeling = self.peeling
        values = values_of(peeling.features, self.hidden, picture, leak)
        parts: list[Tensor] = []
        for user in self.users:
            known = {n: values[n] if n in values else peeling.values[n] for n in user.below}
            found = peeling.features.evaluate(user.way, known)
            parts += self._gradients(user, found, values)
            assert user.pre is not None
            undone, pre = peeling.undone[user.node], found[user.pre].flatten(1)
            # a unit that is off says that its input is not positive
            apart = torch.where(undone.known, pre - undone.inputs, pre.clamp_min(0))
            size = (undone.inputs * undone.known).norm().clamp_min(_TINY)
            parts.append(apart.flatten() / size)
        for feature in self.whole:
            found = peeling.features.evaluate(feature.way, values)
            true = peeling.values[feature.node]
            apart = again(feature.node, found) - true
            parts.append(apart.flatten() / true.norm().clamp_min(_TINY))
        return torch.cat(parts)

    def _gradients(
        self, user: Feature, found: Mapping[Node, Tensor], values: Mapping[Node, Tensor]
    ) -> list[Tensor]:
        peeling = self.peeling
        handed = peeling.handed.get(user.node)
        parts = []
        for operator in convolutions(user, peeling.features.recording):
            name, data = str(operator.weight), data_of(operator)
            if handed is not None and name in peeling.gradient and depends(user, data, values):
                sent = peeling.gradient[name]
                made = gradient_function(operator, tuple(sent.shape))(
                    found[data], handed.outputs[name]
                )
                parts.append((made - sent).flatten() / sent.norm().clamp_min(_TINY))
        return parts


def values_of(
    features: Features,
    hidden: tuple[Feature, ...],
    picture: Tensor,
    leak: float = 0.0,
    constants: Mapping[Node, Tensor] | None = None,
) -> dict[Node, Tensor]:
    """All features between the picture and those that were read."""
    values = {features.recording.given: picture}
    for feature in hidden[1:]:
        known = {node: values[node] for node in feature.below} | dict(constants or {})
        found = features.evaluate(feature.way, known)
        if leak and feature.is_relu and feature.pre is not None:
            pre = found[feature.pre]
            values[feature.node] = torch.where(pre > 0, pre, leak * (pre - pre.detach()))
        else:
            values[feature.node] = again(feature.node, found)
    return values


def depends(user: Feature, node: Node, values: Mapping[Node, Tensor]) -> bool:
    """Whether a node on a feature's way depends on any of `values`' nodes."""
    inside = set(values)
    for layer in user.way:
        if any(parent in inside for parent in layer.node.parents):
            inside.add(layer.node)
    return node in inside


def targets_of(peeling: Peeling) -> Targets | None:
    """All that is known right above what was not read. None when nothing is."""
    features = peeling.features
    hidden = tuple(f for f in features.each if f.node not in peeling.values)
    unread = {f.node for f in hidden}
    users = tuple(
        f
        for f in features.each
        if f.node in peeling.undone and f.pre is not None and any(n in unread for n in f.below)
    )
    whole = tuple(
        f
        for f in features.each
        if f.node in peeling.values and f.pre is None and any(n in unread for n in f.below)
    )
    if not users and not whole:
        return None
    chosen = _needed(features, hidden, (*users, *whole))
    parameters = {} if whole else _parameters_below(peeling, users, chosen)
    return Targets(peeling, users, whole, chosen, parameters)


def _parameters_below(
    peeling: Peeling, users: tuple[Feature, ...], hidden: tuple[Feature, ...]
) -> dict[str, Node]:
    """Parameters whose gradient comes through the users alone."""
    inside = {feature.node for feature in (*users, *hidden)}
    every = {u.node for f in hidden for u in peeling.features.users(f.node)}
    if not every <= inside or not all(user.node in peeling.handed for user in users):
        return {}
    found: dict[str, Node] = {}
    for feature in hidden[1:]:
        for layer in feature.way:
            for node in layer.node.parents:
                name = node.parameter or ""
                if name in peeling.gradient and peeling.features.recording.uses[name] == 1:
                    found[name] = node
    return found


def _needed(
    features: Features, hidden: tuple[Feature, ...], users: tuple[Feature, ...]
) -> tuple[Feature, ...]:
    """The hidden features that the users depend on, and the picture first."""
    needed = {node for user in users for node in user.below}
    chosen = []
    for feature in reversed(hidden):
        if feature.node in needed:
            chosen.append(feature)
            needed |= set(feature.below)
    picture = features.each[0]
    return (picture, *(f for f in reversed(chosen) if f is not picture))
