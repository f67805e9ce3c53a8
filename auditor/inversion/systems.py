"""The linear system of one link: what its values and its weight gradient say of its input.

With u the input, U its patches (one column a place that the operator visits), W the weight and d
the cotangent of W U, two sets of equations are linear in u: the forward ones, W U = y, and the
weight gradient, d U' = dL/dW (the second set as in R-GAP: Zhu and Blaschko 2021, arXiv:2010.07733).
Values are rows (B, n); B problems share the weights and nothing else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn import functional as F

from auditor.graph import HANDS_ON, Node, constant, replay
from auditor.inversion.layers import Link, Operator, data_of
from auditor.solve import LinearMap

_RESHAPES = HANDS_ON - {"expand", "slice", "_to_copy"}


class Affine:
    """A run of affine operations on rows: its linear part, its offset and its transpose."""

    def __init__(self, source: Node, nodes: tuple[Node, ...], like: Tensor) -> None:
        self.source, self.nodes = source, nodes
        self.trivial = all(node.operation in _RESHAPES for node in nodes)
        # What is written in place has the recorded shape.
        self.writes = any(node.call is not None and node.call.writes for node in nodes)
        self.width = math.prod(nodes[-1].shape if nodes else source.shape)
        self.zero = like.new_zeros(1, math.prod(source.shape))
        self.offset = like.new_zeros(1, self.width) if self.trivial else self._call(self.zero)

    def _call(self, rows: Tensor) -> Tensor:
        def one(row: Tensor) -> Tensor:
            return replay(self.nodes, self.source, row.view(self.source.shape)).reshape(-1)

        if len(rows) > 1 and not self.writes:
            return vmap(one)(rows)
        return torch.stack([one(row) for row in rows])

    def forward(self, rows: Tensor) -> Tensor:
        """The linear part, (B, n) -> (B, m)."""
        return rows if self.trivial else self._call(rows) - self.offset

    def adjoint(self, rows: Tensor) -> Tensor:
        """Its transpose, (B, m) -> (B, n)."""
        if self.trivial:
            return rows
        pull: Callable[[Tensor], tuple[Tensor]] = self._pull
        if len(rows) > 1 and not self.writes:
            return vmap(lambda row: pull(row[None])[0][0])(rows)
        return torch.cat([pull(row[None])[0] for row in rows])

    @cached_property
    def _pull(self) -> Callable[[Tensor], tuple[Tensor]]:
        found: Callable[[Tensor], tuple[Tensor]] = vjp(self._call, self.zero)[1]
        return found


@dataclass(frozen=True)
class Patches:
    """How an operator visits its input: (B, n) to (B, groups, values a place, places), and back."""

    shape: tuple[int, ...]  # (C, H, W) of a convolution's input, (places, features) of a linear one
    kernel: tuple[int, ...] = ()  # empty: linear
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def forward(self, rows: Tensor) -> Tensor:
        if not self.kernel:
            return rows.view(-1, *self.shape).mT.unsqueeze(1)
        image = rows.view(-1, *self.shape)
        columns = F.unfold(image, self.kernel, self.dilation, self.padding, self.stride)
        return columns.view(len(rows), self.groups, -1, columns.shape[-1])

    def adjoint(self, columns: Tensor) -> Tensor:
        if not self.kernel:
            return columns.squeeze(1).mT.reshape(len(columns), -1)
        flat = columns.flatten(1, 2)
        size = self.shape[1:]
        image = F.fold(flat, size, self.kernel, self.dilation, self.padding, self.stride)
        return image.flatten(1)


def patches_of(operator: Operator) -> Patches:
    """The visits of a convolution in two dimensions, or of a linear operation."""
    shape = data_of(operator).shape
    if not operator.convolves:
        return Patches(shape=(math.prod(shape[:-1]), shape[-1]))
    call = operator.node.call
    assert call is not None
    stride, padding, dilation, groups = (*call.args[3:6], call.args[8])
    kernel = operator.matrix.shape[2:]
    return Patches(shape[1:], kernel, tuple(stride), tuple(padding), tuple(dilation), groups)


class LinkOperator:
    """One link without its activation: input rows to pre-activations, and the transpose."""

    def __init__(self, link: Link, like: Tensor) -> None:
        operator = link.operator
        self.link, self.operator = link, operator
        self.before = Affine(link.source, link.before, like)
        self.unknowns = math.prod(link.source.shape)
        if operator is None:
            self.after = Affine(link.source, (), like)
            self.offset = self.before.offset
            return
        self.patches = patches_of(operator)
        self.after = Affine(operator.node, link.after, like)
        matrix = constant(operator.matrix).to(like)
        matrix = matrix if operator.convolves or operator.node.operation == "linear" else matrix.mT
        self.weight = matrix.reshape(self.patches.groups, -1, matrix[0].numel())  # (g, O, P)
        moved = replay((operator.node,), data_of(operator), self._seen(like))
        self.offset = self.after.forward(moved.reshape(1, -1)) + self.after.offset

    def _seen(self, like: Tensor) -> Tensor:
        """What the operator sees of an input of zeros."""
        assert self.operator is not None
        return self.before.offset.to(like).view(data_of(self.operator).shape)

    def places(self, outputs: Tensor) -> Tensor:
        """The operator's outputs, rows (B, m), as (B, groups, O, places)."""
        if not self.patches.kernel:
            return outputs.view(len(outputs), self.patches.shape[0], -1).mT.unsqueeze(1)
        return outputs.view(len(outputs), *self.weight.shape[:2], -1)

    def rows(self, outputs: Tensor) -> Tensor:
        """The reverse of `places`."""
        if not self.patches.kernel:
            return outputs.squeeze(1).mT.reshape(len(outputs), -1)
        return outputs.flatten(1)

    def columns(self, inputs: Tensor) -> Tensor:
        """Patches of the linear part of what the operator sees."""
        return self.patches.forward(self.before.forward(inputs))

    def back(self, columns: Tensor) -> Tensor:
        """The transpose of `columns`."""
        return self.before.adjoint(self.patches.adjoint(columns))

    def forward(self, inputs: Tensor) -> Tensor:
        """The linear part: (B, n) -> pre-activations (B, m)."""
        if self.operator is None:
            return self.before.forward(inputs)
        return self.after.forward(self.rows(self.weight @ self.columns(inputs)))

    def adjoint(self, cotangents: Tensor) -> Tensor:
        """Its transpose; takes the cotangent of the pre-activations to that of the input."""
        if self.operator is None:
            return self.before.adjoint(cotangents)
        return self.back(self.weight.mT @ self.places(self.after.adjoint(cotangents)))


class LinkSystem:
    """The weighted equations of one link for B problems."""

    def __init__(
        self,
        operator: LinkOperator,
        pre: Tensor,
        weights: Tensor,
        cotangents: Tensor,
        sent: Tensor | None,
        trust: float | Tensor = 1.0,
    ) -> None:
        """`pre` (B, m): pre-activations, counted by `weights` (B, m), zero where unknown.

        `cotangents` (B, m) of the pre-activations; `sent` (B, *weight): the weight's gradient,
        whose equations count `trust` times as much as equal norms of both operators would make
        them; with a tensor (B, groups, O, 1) each output channel on its own.
        """
        self.operator, self.weights = operator, weights
        right = [weights * (pre - operator.offset)]
        whole = [
            weights * pre
        ]  # before offsets are taken off: what rounding errors are relative to
        self.sends = sent is not None and operator.operator is not None
        if self.sends and sent is not None:
            self.delta = operator.places(operator.after.adjoint(cotangents))  # (B, g, O, L)
            size = self.delta.flatten(1).norm(dim=1).clamp_min(torch.finfo(pre.dtype).tiny)
            each = torch.ones_like(self.delta[..., :1]) * trust
            self.scale = each * (operator.weight.norm() / size).view(-1, 1, 1, 1)  # (B, g, O, 1)
            seen = operator.patches.forward(operator.before.offset)
            told = self._told(sent) - self.delta @ seen.mT
            right.append((self.scale * told).flatten(1))
            whole.append((self.scale * self._told(sent)).flatten(1))
        self.rhs = torch.cat(right, 1)
        self.magnitude = torch.cat(whole, 1).norm(dim=1)  # (B,)
        self.map = LinearMap(self.forward, self.adjoint)

    def _told(self, sent: Tensor) -> Tensor:
        operator = self.operator
        assert operator.operator is not None
        told = sent.mT if operator.operator.flips else sent
        return told.reshape(len(sent), *operator.weight.shape)

    def alone(self) -> LinkSystem:
        """The first row's system, whose maps take any number of rows."""
        first = copy.copy(self)
        first.weights = self.weights[:1]
        if self.sends:
            first.delta, first.scale = self.delta[:1], self.scale[:1]
        return first

    @property
    def equations(self) -> Tensor:
        """How many equations say something, (B,)."""
        counted = (self.weights > 0).sum(1)
        if not self.sends:
            return counted
        heard = (self.scale * self.delta != 0).any(-1).flatten(1).sum(1)  # output channels
        told: Tensor = heard * self.operator.weight.shape[-1]
        return counted + told

    def missed(self, inputs: Tensor) -> Tensor:
        """Norms (B, groups, O) of what the gradient equations of each output channel miss by."""
        apart = (self.forward(inputs) - self.rhs)[:, self.weights.shape[1] :]
        norms: Tensor = apart.view(len(apart), *self.operator.weight.shape).norm(dim=-1)
        return norms

    def forward(self, inputs: Tensor) -> Tensor:
        operator = self.operator
        if not self.sends:
            return self.weights * operator.forward(inputs)
        columns = operator.columns(inputs)
        made = self.weights * operator.after.forward(operator.rows(operator.weight @ columns))
        return torch.cat([made, (self.scale * (self.delta @ columns.mT)).flatten(1)], 1)

    def adjoint(self, outputs: Tensor) -> Tensor:
        operator, count = self.operator, self.weights.shape[1]
        made = self.weights * outputs[:, :count]
        if not self.sends:
            return operator.adjoint(made)
        told = self.scale * outputs[:, count:].view(-1, *operator.weight.shape)
        columns = operator.weight.mT @ operator.places(operator.after.adjoint(made))
        return operator.back(columns + told.mT @ self.delta)
