"""Units whose scale nothing sees: what a layer makes goes through ReLU into one layer alone.

Twice the weights of such a unit and half the weights that read it make the same network. So for
each unit weights times gradients have the same sum on both sides (Du, Hu, Lee 2018,
arXiv:1806.00900, in the form of Euler's theorem), whatever the batch was. ReLU, leaky ReLU, pooling
and dropout with any mask leave a factor alone; a batch norm's gain and shift are a layer, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from auditor.graph import Node, Recording, parameter_behind

_LINEAR = frozenset({"addmm", "mm", "linear"})
_CONVOLUTIONS = frozenset({"convolution", "_convolution", "conv2d"})
# Homogeneous, channel by channel.
_HOMOGENEOUS = frozenset({
    "relu", "relu_", "leaky_relu", "leaky_relu_", "max_pool2d_with_indices", "avg_pool2d",
    "_adaptive_avg_pool2d", "native_dropout",
})  # fmt: skip
_COPIES = frozenset({"alias", "detach", "clone", "contiguous", "_to_copy"})
_FLATTENS = frozenset({"view", "_unsafe_view", "reshape", "flatten", "squeeze"})


@dataclass(frozen=True)
class Pair:
    """Parameters that make C units, and the weight that reads them."""

    made_by: tuple[str, ...]  # (C, ...) each: weight and bias, or gain and shift
    read_by: str  # (outputs, C, ...) or (outputs, C * places)
    units: int  # C


@dataclass(frozen=True)
class Vectors:
    """A linear layer that takes one vector a sample, once."""

    weight: str  # (K, E)
    bias: str | None  # (K,)


def nodes_of(recording: Recording) -> list[Node]:
    """All nodes that the output was made from, each once."""
    return list(_walk(recording.output))


def pairs_of(recording: Recording) -> tuple[Pair, ...]:
    """Every pair of layers with nothing but homogeneous operations in between."""
    if recording.writes_through_views or recording.reads_values:
        return ()
    nodes = nodes_of(recording)
    readers = Counter(id(parent) for node in nodes for parent in node.parents)
    found = (_pair(node, readers, recording) for node in nodes)
    return tuple(pair for pair in found if pair is not None)


def vector_layers_of(recording: Recording) -> tuple[Vectors, ...]:
    """Linear layers whose gradient is a sum of one outer product a sample."""
    batch, found = recording.given.shape[0], []
    for node in nodes_of(recording):
        weight = _weight(node)
        vectors = node.operation in _LINEAR and len(node.shape) == 2 and node.shape[0] == batch
        if vectors and weight is not None and recording.uses[weight] == 1:
            found.append(Vectors(weight, _bias(node)))
    return tuple(found)


def _walk(output: Node) -> Iterator[Node]:
    stack, seen = [output], set[int]()
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            stack += node.parents


def _pair(reader: Node, readers: Counter[int], recording: Recording) -> Pair | None:
    weight = _weight(reader)
    if weight is None or recording.uses[weight] != 1:
        return None
    node = reader.parents[1] if reader.operation == "addmm" else reader.parents[0]
    width, activated = node.shape[1] if len(node.shape) > 1 else 0, False
    while readers[id(node)] == 1 and (kept := _units_kept(node)) is not None:
        activated |= node.operation in _HOMOGENEOUS
        node, width = node.parents[0], kept
    if readers[id(node)] != 1 or not activated or len(node.shape) < 2 or node.shape[1] != width:
        return None
    made_by = _makers(node, recording)
    shape = _shape(reader, weight)
    if not made_by or len(shape) < 2 or shape[1] % width or _is_grouped(reader):
        return None
    return Pair(made_by, weight, width)


def _units_kept(node: Node) -> int | None:
    """How many channels go into an operation that keeps each to itself; None for another one."""
    if not node.parents or len(node.parents[0].shape) < 2:
        return None
    before, after = node.parents[0].shape, node.shape
    same = before[:2] == after[:2]
    if node.operation in _HOMOGENEOUS or (node.operation in _COPIES and before == after):
        return before[1] if same else None
    if node.operation == "mean":
        return before[1] if same and _over_places(node, len(before)) else None
    flat = len(after) == 2 and before[0] == after[0]
    return before[1] if node.operation in _FLATTENS and flat else None


def _over_places(node: Node, axes: int) -> bool:
    """Whether a mean is over all axes behind the channels."""
    named = node.call.args[1] if node.call is not None and len(node.call.args) > 1 else None
    if not isinstance(named, list | tuple):
        return False
    return sorted(axis % axes for axis in named) == list(range(2, axes))


def _makers(node: Node, recording: Recording) -> tuple[str, ...]:
    """The parameters that set the scale of each channel; none when there is something else."""
    if "batch_norm" in node.operation and node.call is not None:
        gain, shift = (getattr(part, "parameter", None) for part in node.call.args[1:3])
        made_by = (gain, shift)
    else:
        made_by = (_weight(node), _bias(node))
        if made_by[0] is not None and made_by[1] is None and _is_shifted(node):
            return ()
    if made_by[0] is None or any(name and recording.uses[name] != 1 for name in made_by):
        return ()
    return tuple(name for name in made_by if name is not None)


def _is_shifted(node: Node) -> bool:
    """Whether something that is no whole parameter is added."""
    if node.operation in _LINEAR:
        return node.operation == "addmm" or len(node.parents) > 2
    return len(node.parents) > 2


def _weight(node: Node) -> str | None:
    """The parameter (outputs, inputs, ...) of a linear or convolution operation."""
    if node.operation in _CONVOLUTIONS and node.arguments[6:7] != (True,):
        return node.parents[1].parameter
    if node.operation not in _LINEAR or len(node.parents) < 2:
        return None
    turns = node.operation != "linear"
    name, turned = parameter_behind(node.parents[-1] if turns else node.parents[1])
    return name if turned == turns else None


def _bias(node: Node) -> str | None:
    if node.operation == "addmm":
        return node.parents[0].parameter
    if node.operation == "mm" or len(node.parents) < 3:
        return None
    return node.parents[2].parameter


def _shape(node: Node, weight: str) -> tuple[int, ...]:
    """Of the parameter called `weight` behind this operation."""
    for parent in node.parents:
        source = parent
        while source.parameter is None and source.parents:
            source = source.parents[0]
        if source.parameter == weight:
            return source.shape
    return ()


def _is_grouped(node: Node) -> bool:
    return node.operation in _CONVOLUTIONS and node.arguments[8:9] not in {(), (1,)}
