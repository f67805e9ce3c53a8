"""The patch embedding of a transformer, found in the operations of a forward pass.

What is looked for: one convolution or linear operation that visits the picture, and a parameter of
positions that is added to what it makes, entry by entry, with nothing but affine operations in
between. Class tokens, padding, scaling and reshaping may stand anywhere on the way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.graph import HANDS_ON, TURNS, Node, Recording, replay
from auditor.inversion.layers import Broken, Layer, Operator, layers_of

# Operations that hand entries of a parameter on; some may be left out or occur more than once.
_LOOKS_UP = HANDS_ON | TURNS | {
    "embedding", "index", "index_select", "select", "split", "split_with_sizes", "unbind",
}  # fmt: skip
# Each entry of what these make is one entry of what they take, scaled and shifted.
_ENTRIES = frozenset({"shape", "scale", "batch norm"})
_MORE_ENTRIES = frozenset({"im2col", "unfold", "flip", "roll", "repeat", "cat", "stack"})


@dataclass(frozen=True, eq=False)
class Lookup:
    """A tensor whose entries are entries of one parameter that are used nowhere else."""

    parameter: Node
    path: tuple[Node, ...]  # from the parameter to the tensor; empty: the parameter itself

    @property
    def name(self) -> str:
        assert self.parameter.parameter is not None, "a lookup starts at a parameter"
        return self.parameter.parameter

    def of(self, values: Tensor) -> Tensor:
        """The same entries of `values`, which is shaped like the parameter.

        Of the parameter's gradient that is the gradient of the tensor: no entry was added up.
        """
        return replay(self.path, self.parameter, values) if self.path else values


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear operation that reads the tokens themselves."""

    weight: Lookup
    matrix: Node  # as the operation takes it
    flips: bool  # the matrix is (inputs, outputs)


@dataclass(frozen=True, eq=False)
class PatchEmbedding:
    """picture -> before -> operator -> after, and positions are added."""

    source: Node  # the picture
    before: tuple[Node, ...]
    operator: Operator
    weight: Lookup  # of the operator
    after: tuple[Node, ...]
    positions: Lookup
    total: Node  # the sum with the positions
    readers: tuple[Reader, ...] = ()  # all that read the sum, where the weight was not sent

    @property
    def tokens(self) -> int:
        """Places that the operator visits."""
        shape = self.operator.node.shape
        return math.prod(shape[2:]) if self.operator.convolves else math.prod(shape[:-1])

    @property
    def read(self) -> tuple[str, ...]:
        """The parameters whose gradients are read."""
        from_above = tuple(reader.weight.name for reader in self.readers)
        return (self.positions.name, *(from_above or (self.weight.name,)))

    @property
    def width(self) -> int:
        """Numbers that a token has, of one group."""
        if not self.operator.convolves:
            return self.operator.node.shape[-1]
        call = self.operator.node.call
        assert call is not None, "a convolution has a call"
        return int(self.operator.node.shape[1] // call.args[8])


def embedding_of(recording: Recording, sent: Collection[str]) -> PatchEmbedding | Broken:
    """The patch embedding of a forward pass of one sample, whose gradients were `sent`.

    The reason that comes back otherwise is that of the operation nearest to the picture.
    """
    if recording.writes_through_views:
        return Broken("the model writes into views of its tensors")
    if recording.reads_values:
        return Broken("the model turns values of its tensors into plain numbers")
    search = _Search(recording, sent)
    reason: Broken | None = None
    for layer in search.layers:
        if layer.kind in {"convolution", "linear"} and (before := search.before(layer)) is not None:
            found = search.from_operator(layer, before)
            if isinstance(found, PatchEmbedding):
                return found
            reason = reason or found
    return reason or Broken("no convolution or linear layer visits the picture itself")


class _Search:
    """The nodes of one recording, and who takes what."""

    def __init__(self, recording: Recording, sent: Collection[str]) -> None:
        self.recording, self.sent = recording, sent
        self.layers = layers_of(recording)
        self.by_node = {layer.node: layer for layer in self.layers}
        self.takers = takers_of(recording.output)

    def before(self, layer: Layer) -> tuple[Node, ...] | None:
        """What stands between the picture and an operation; None when it mixes entries."""
        path: list[Node] = []
        place = layer.sources[0]
        while place >= 0:
            below = self.layers[place]
            if not _hands_entries_on(below):
                return None
            path.append(below.node)
            place = below.sources[0]
        return tuple(path[::-1])

    def from_operator(self, layer: Layer, before: tuple[Node, ...]) -> PatchEmbedding | Broken:
        node = layer.node
        convolves = layer.kind == "convolution"
        if convolves and len(layer.shape) != 3:
            return Broken(f"the operation {layer.operation!r} is not one of two dimensions")
        matrix = node.parents[-1 if node.operation in {"mm", "addmm"} else 1]
        weight = self.lookup(matrix)
        if weight is None:
            return Broken("the first layer's weight is computed, or used more than once")
        found = self.to_positions(node)
        if isinstance(found, Broken):
            return found
        after, positions, total = found
        readers = () if weight.name in self.sent else self.readers(total)
        if weight.name not in self.sent and not readers:
            return Broken(f"the dump holds no gradient of the first layer's weight {weight.name!r}")
        operator = Operator(node, matrix, weight.name, None, flips=False)
        source = self.recording.given
        return PatchEmbedding(source, before, operator, weight, after, positions, total, readers)

    def to_positions(self, node: Node) -> tuple[tuple[Node, ...], Lookup, Node] | Broken:
        """What stands between an operation and the sum with the positions, and that sum."""
        path: list[Node] = []
        withheld, ended = "", "it is used more than once"
        while len(takers := self.takers.get(node, [])) == 1:
            layer = self.by_node[takers[0]]
            positions = self.added(node, layer)
            if positions is not None and positions.name in self.sent:
                return tuple(path), positions, layer.node
            withheld = positions.name if positions is not None else withheld
            if not _hands_entries_on(layer):
                ended = f"{layer.operation!r}"
                break
            path.append(layer.node)
            node = layer.node
        if withheld:
            return Broken(f"the dump holds no gradient of the position embedding {withheld!r}")
        ended = "the output" if not takers else ended
        return Broken(
            "no position embedding of its own is added to what the first layer makes before "
            f"{ended}"
        )

    def added(self, node: Node, layer: Layer) -> Lookup | None:
        """The parameter, one entry for each of the sum's, that an addition adds to `node`."""
        plain = [a for a in layer.node.arguments[1:] if isinstance(a, int | float)]
        if layer.operation.rstrip("_") != "add" or len(layer.node.parents) != 2 or plain:
            return None
        first, second = layer.node.parents
        other = second if first is node else first
        whole = math.prod(layer.node.shape)
        if math.prod(other.shape) != whole or math.prod(node.shape) != whole:
            return None  # added to many entries at once, as a bias is
        return self.lookup(other)

    def readers(self, total: Node) -> tuple[Reader, ...]:
        """What reads the tokens, if it is linear operations with a sent weight and nothing else."""
        found: list[Reader] = []
        stack: list[tuple[Node, ...]] = [()]
        while stack:
            path = stack.pop()
            node = path[-1] if path else total
            for taker in self.takers.get(node, []):
                if self.by_node[taker].kind == "shape":
                    stack.append((*path, taker))
                elif (reader := self.reader(taker, node, total, path)) is not None:
                    found.append(reader)
                else:
                    return ()
        return tuple(found)

    def reader(self, taker: Node, node: Node, total: Node, path: tuple[Node, ...]) -> Reader | None:
        """A linear operation on the tokens, each one whole and in the order in which they were."""
        flips = taker.operation in {"mm", "addmm"}
        matrix = taker.parents[-1 if flips else 1]
        if self.by_node[taker].kind != "linear" or node.shape[-1] != total.shape[-1]:
            return None
        numbers = torch.arange(math.prod(total.shape), dtype=torch.float64)
        seen = replay(path, total, numbers.view(total.shape)) if path else numbers
        weight = self.lookup(matrix)
        whole = torch.equal(seen.flatten(), numbers)
        if not whole or weight is None or weight.name not in self.sent:
            return None
        return Reader(weight, matrix, flips)

    def lookup(self, node: Node) -> Lookup | None:
        """The parameter whose entries a tensor holds, if these are used nowhere else."""
        path: list[Node] = []
        start = node
        while start.parameter is None:
            if start.operation not in _LOOKS_UP or not start.parents:
                return None
            path.append(start)
            start = start.parents[0]
        found = Lookup(start, tuple(path[::-1]))
        return found if self.alone(found, node) else None

    def alone(self, found: Lookup, node: Node) -> bool:
        """Whether each entry of the tensor is another one, and no other operation reads it."""
        assert found.parameter.value is not None, "a parameter has a value"
        value = found.parameter.value
        if len(self.takers.get(node, [])) != 1:
            return False
        numbers = torch.arange(value.numel(), dtype=torch.float64, device=value.device)
        numbers = numbers.view(value.shape)
        here = found.of(numbers).flatten()
        for end in _ends(found.parameter, self.takers):
            if end[-1:] != found.path[-1:]:
                others = Lookup(found.parameter, end).of(numbers)
                if bool(torch.isin(here, others).any()):
                    return False
        return len(set(here.tolist())) == len(here)


def _hands_entries_on(layer: Layer) -> bool:
    known = layer.kind in _ENTRIES or layer.operation in _MORE_ENTRIES
    return known and len(layer.sources) == 1


def takers_of(output: Node) -> Mapping[Node, list[Node]]:
    """Of each tensor that the output depends on, the tensors made from it; twice if it goes in
    twice.
    """
    takers: dict[Node, list[Node]] = {}
    stack, seen = [output], {output}
    while stack:
        node = stack.pop()
        for parent, times in Counter(node.parents).items():
            takers.setdefault(parent, []).extend([node] * times)
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return takers


def _ends(parameter: Node, takers: Mapping[Node, list[Node]]) -> Iterator[tuple[Node, ...]]:
    """The ways from a parameter to every tensor of its entries that something else reads."""
    stack: list[tuple[Node, ...]] = [()]
    while stack:
        path = stack.pop()
        here = takers.get(path[-1] if path else parameter, [])
        further = [node for node in here if node.operation in _LOOKS_UP]
        if len(further) < len(here):
            yield path
        stack += [(*path, node) for node in further]
