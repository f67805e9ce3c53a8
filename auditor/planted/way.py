"""The way of a picture to a layer, and back.

What stands between them is affine or ReLU, so it is piecewise affine and undone by Newton's method
in the sense of least squares. What comes back counts only when the way leads from it to the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from auditor.graph import HANDS_ON, Node, Recording, replay
from auditor.inversion.layers import layers_of
from auditor.planted.layers import LinearLayer
from auditor.solve import LinearMap, least_squares

_AFFINE = frozenset({"shape", "scale", "batch norm", "convolution", "average", "linear"})
_RESHAPES = HANDS_ON - {"expand", "slice", "_to_copy"}
_RELUS = frozenset({"relu", "relu_"})
_LOST = 1e-3  # relative: what does not come back better than this is lost
_GREY = 0.5  # where the search begins: kernels that pass pixels on are not silent there
_PIECES, _STEPS, _TOLERANCE = 5, 100, 1e-7


@dataclass(frozen=True, eq=False)
class Way:
    """The operations from the input of the model to the input of a layer."""

    source: Node  # of one sample, or of two where the model refuses one
    nodes: tuple[Node, ...]
    activations: int  # ReLUs among them
    like: Tensor  # dtype and device of the model

    @property
    def trivial(self) -> bool:
        """Whether it only reshapes."""
        return all(node.operation in _RESHAPES for node in self.nodes)

    @property
    def nonnegative(self) -> bool:
        """Whether it ends with a ReLU, so that no input of the layer is negative."""
        last = [node for node in self.nodes if node.operation not in _RESHAPES][-1:]
        return bool(last) and last[0].operation in _RELUS

    def forth(self, rows: Tensor) -> Tensor:
        """The layer's inputs (L, n) of pictures laid flat (L, D)."""
        count, *shape = self.source.shape

        def one(row: Tensor) -> Tensor:
            twice = row.view(1, *shape).repeat(count, *(1 for _ in shape))
            return replay(self.nodes, self.source, twice)[0].reshape(-1)

        # What is written in place has the recorded shape.
        writes = any(node.call is not None and node.call.writes for node in self.nodes)
        return torch.stack([one(row) for row in rows]) if writes else vmap(one)(rows)

    def back(
        self, inputs: Tensor, *, expired: Callable[[], bool] = lambda: False
    ) -> tuple[Tensor, Tensor]:
        """Pictures laid flat (L, D) of a layer's `inputs` (L, n), and which of them fit, (L,)."""
        wanted = inputs.to(self.like)
        if self.trivial or len(wanted) == 0:
            return wanted, torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
        found = self.like.new_full((len(wanted), self._size), _GREY)
        for _ in range(_PIECES if self.activations else 1):
            found = found + self._step(found, wanted, expired)
        missed = (self.forth(found) - wanted).norm(dim=1)
        return found, missed <= _LOST * wanted.norm(dim=1)

    def _step(self, rows: Tensor, wanted: Tensor, expired: Callable[[], bool]) -> Tensor:
        """To where the affine piece around `rows` meets `wanted`."""
        output, pull = vjp(self.forth, rows)[:2]
        push = vjp(lambda apart: pull(apart)[0], torch.zeros_like(output))[1]  # its transpose
        return least_squares(
            LinearMap(lambda step: push(step)[0], lambda apart: pull(apart)[0]),
            wanted - output,
            torch.zeros_like(rows),
            tolerance=_TOLERANCE,
            max_steps=_STEPS,
            expired=expired,
        ).x

    @property
    def _size(self) -> int:
        """D."""
        return math.prod(self.source.shape[1:])

    def keeps_everything(self) -> bool:
        """Whether a picture of noise comes back."""
        if self.trivial:
            return True
        drawn = torch.rand(1, self._size, generator=torch.Generator().manual_seed(0)).to(self.like)
        found, _ = self.back(self.forth(drawn))
        return bool((found - drawn).norm() <= _LOST * drawn.norm())


def way_to(layer: LinearLayer, recording: Recording, like: Tensor) -> Way | None:
    """The way to a layer's input in a recording; None when it cannot be undone.

    `like` has the dtype and device of the model.
    """
    layers = layers_of(recording)
    place = next(i for i, step in enumerate(layers) if step.node is layer.product)
    place, nodes, activations = layers[place].sources[0], list[Node](), 0
    while place >= 0:
        step = layers[place]
        activation = step.operation in _RELUS
        if step.kind not in _AFFINE and not activation:
            return None
        nodes.append(step.node)
        activations += activation
        place = step.sources[0]
    return Way(recording.given, tuple(nodes[::-1]), activations, like)
