"""The ordered layers of one forward pass, and the part of them that can be read backwards.

`layers_of` lists every operation that the input goes through. `chain_of` takes the part from the
input to a linear layer that has one vector a sample for its input (the anchor) and cuts it into
links: one convolution or linear operation each, with what is affine around it, and one activation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from auditor.graph import HANDS_ON, TURNS, Node, Recording, parameter_behind

Kind = Literal[
    "linear", "convolution", "activation", "average", "shape", "batch norm", "layer norm",
    "sum", "scale", "embedding", "other",
]  # fmt: skip

_CONVOLUTIONS = frozenset({"convolution", "_convolution", "conv2d"})
_LINEAR = frozenset({"addmm", "mm", "linear"})
_AVERAGES = frozenset({"avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean"})
_BATCH_NORMS = frozenset({
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "batch_norm",
})  # fmt: skip
_LAYER_NORMS = frozenset({"native_layer_norm", "layer_norm", "native_group_norm"})
_SHAPES = HANDS_ON | TURNS | {"constant_pad_nd", "select", "upsample_nearest2d"}
_SCALES = frozenset({"add", "sub", "mul", "div", "neg", "rsub"})
ACTIVATIONS = frozenset({
    "relu", "sigmoid", "tanh", "softplus", "elu", "gelu", "silu", "leaky_relu", "hardtanh",
})  # fmt: skip
_BIJECTIVE = frozenset({"sigmoid", "tanh", "softplus", "elu", "leaky_relu"})
# Operations that only move numbers: their adjoint is their inverse.
_MOVES = (HANDS_ON | TURNS) - {"expand", "slice"}
_SMOOTH = 15.0  # softplus with a lower threshold jumps there by more than single precision


@dataclass(frozen=True, eq=False)
class Layer:
    """One operation on the way from the input to the logits."""

    kind: Kind
    operation: str  # torch's name
    parameters: tuple[str, ...]  # their names in the model
    shape: tuple[int, ...]  # of the output, for one sample
    sources: tuple[int, ...]  # places of the layers that it reads; -1 is the input
    node: Node


@dataclass(frozen=True, eq=False)
class Operator:
    """A convolution or linear operation with its parameters."""

    node: Node
    matrix: Node  # the weight as the operation takes it
    weight: str | None  # name of the parameter behind it; None when computed or used again
    bias: str | None
    flips: bool  # the parameter is (inputs, outputs), not (outputs, inputs)

    @property
    def convolves(self) -> bool:
        return self.node.operation in _CONVOLUTIONS


@dataclass(frozen=True, eq=False)
class Link:
    """u -> before -> operator -> after -> activation, for one sample."""

    source: Node  # u
    before: tuple[Node, ...]
    operator: Operator | None
    after: tuple[Node, ...]
    activation: Node | None

    @property
    def name(self) -> str:
        """For people: its weight, or its operations."""
        if self.operator is not None:
            return self.operator.weight or self.operator.node.operation
        inner = [node.operation for node in (*self.before, *self.after)]
        return " + ".join(dict.fromkeys(inner)) or "activation"

    @property
    def moves_only(self) -> bool:
        """Whether it only puts the same numbers elsewhere, or through a bijection."""
        name = "" if self.activation is None else self.activation.operation.rstrip("_")
        bijective = self.activation is None or name in _BIJECTIVE
        return bijective and self.operator is None and all(only_moves(n) for n in self.before)


@dataclass(frozen=True, eq=False)
class Chain:
    """From the input through the links to the anchor, and from there to the logits."""

    source: Node
    links: tuple[Link, ...]
    anchor: Operator
    above: tuple[Node, ...]  # what makes the logits from the anchor's output

    @property
    def data(self) -> Node:
        """The anchor's input."""
        return data_of(self.anchor)


@dataclass(frozen=True)
class Broken:
    """Why there is no chain."""

    reason: str


def layers_of(recording: Recording) -> tuple[Layer, ...]:
    """Every operation between the input and the output that the input goes through, in order."""
    order = _order(recording.given, recording.output)
    places = {node: place for place, node in enumerate(order)}
    places[recording.given] = -1
    return tuple(
        Layer(
            kind=_kind(node, [parent in places for parent in node.parents]),
            operation=node.operation,
            parameters=tuple(name for p in node.parents if (name := parameter_behind(p)[0])),
            shape=node.shape[1:],
            sources=tuple(places[parent] for parent in node.parents if parent in places),
            node=node,
        )
        for node in order
    )


def _order(given: Node, output: Node) -> list[Node]:
    """Nodes that depend on `given` and that `output` depends on, parents first."""
    depends: dict[Node, bool] = {given: True}
    order: list[Node] = []
    stack = [output]
    while stack:
        node = stack[-1]
        waiting = [parent for parent in node.parents if parent not in depends]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if node not in depends:
            depends[node] = any(depends[parent] for parent in node.parents)
            order += [node] * depends[node]
    return order


def _kind(node: Node, sources: list[bool]) -> Kind:
    """`sources`: for each parent, whether it depends on the input."""
    name = node.operation.rstrip("_")
    if sum(sources) > 1:
        return "sum" if name == "add" else "other"
    if name in _LINEAR and sources[1 if name == "addmm" else 0]:
        return "linear"
    if name in _CONVOLUTIONS and sources[0] and node.arguments[6:7] != (True,):
        return "convolution"
    if node.operation in _BATCH_NORMS and sources[0] and _uses_running_statistics(node):
        return "batch norm"
    found: tuple[tuple[Kind, frozenset[str]], ...] = (
        ("activation", ACTIVATIONS),
        ("average", _AVERAGES),
        ("shape", _SHAPES),
        ("layer norm", _LAYER_NORMS),
        ("embedding", frozenset({"embedding"})),
    )
    if name in _SCALES:  # a number divided by the data is not affine
        return "scale" if name != "div" or sources[0] else "other"
    return next((kind for kind, names in found if name in names), "other")


def _uses_running_statistics(node: Node) -> bool:
    return "no_training" in node.operation or node.arguments[5:6] == (False,)


def chain_of(recording: Recording, sent: Collection[str]) -> Chain | Broken:
    """The links below the anchor: the linear layer nearest to the input that takes one vector a
    sample and whose gradients were `sent`, the bias's too if any such layer has one.
    """
    if recording.writes_through_views:
        return Broken("the model writes into views of its tensors")
    if recording.reads_values:
        return Broken("the model turns values of its tensors into plain numbers")
    layers = layers_of(recording)
    anchors = [a for layer in layers if (a := _anchor(layer, recording, sent)) is not None]
    broken = Broken("no linear layer with a gradient in the dump takes one vector a sample")
    for anchor in sorted(anchors, key=lambda a: a.bias not in sent):
        path = _path(layers, anchor.node)
        if not isinstance(path, list):
            broken = path
            continue
        above = _order(anchor.node, recording.output)
        if anchor.bias not in sent and _has_side_entries(
            recording.given, above, anchor.node, layers
        ):
            broken = Broken("a linear layer without a bias stands beside another branch")
            continue
        return Chain(recording.given, _links(recording, path), anchor, tuple(above))
    return broken


def _has_side_entries(
    given: Node, above: list[Node], anchor: Node, layers: tuple[Layer, ...]
) -> bool:
    """Whether something besides the anchor brings the input into what stands above it."""
    inner = {anchor, *above}
    moving = {given, *(layer.node for layer in layers)}
    return any(p in moving and p not in inner for node in above for p in node.parents)


def _anchor(layer: Layer, recording: Recording, sent: Collection[str]) -> Operator | None:
    if layer.kind != "linear" or len(layer.shape) != 1 or layer.node.shape[0] != 1:
        return None
    found = operator_of(layer.node, recording.uses)
    if found.weight not in sent or recording.uses.get(found.bias or "", 1) != 1:
        return None
    return found


def operator_of(node: Node, uses: Mapping[str, int]) -> Operator:
    """A convolution or linear operation with the parameters behind its arguments."""
    parents = node.parents
    if node.operation in {"addmm", "mm"}:
        matrix, bias = parents[-1], parents[0] if node.operation == "addmm" else None
    else:
        matrix, bias = parents[1], parents[2] if len(parents) > 2 else None
    weight, turned = _whole_parameter(matrix, turns=node.operation not in _CONVOLUTIONS)
    return Operator(
        node,
        matrix,
        weight if weight is not None and uses[weight] == 1 else None,
        None if bias is None else _whole_parameter(bias, turns=False)[0],
        flips=turned != (node.operation in {"addmm", "mm"}),
    )


def _whole_parameter(node: Node, *, turns: bool) -> tuple[str | None, bool]:
    """The parameter that this tensor is, entry by entry, and whether it is transposed."""
    turned = False
    while node.parameter is None:
        if turns and node.operation in TURNS and len(node.shape) == 2:
            turned = not turned
        elif node.operation not in {"alias", "detach", "clone", "contiguous", "_to_copy"}:
            return None, False
        node = node.parents[0]
    return node.parameter, turned


def data_of(operator: Operator) -> Node:
    """What goes into the operation besides its parameters."""
    parents = operator.node.parents
    return parents[1] if operator.node.operation == "addmm" else parents[0]


def _path(layers: tuple[Layer, ...], anchor: Node) -> list[Layer] | Broken:
    """The layers below `anchor`, from the input up, if there is one way only."""
    by_node = {layer.node: layer for layer in layers}
    path: list[Layer] = []
    place = by_node[anchor].sources[0]
    while place >= 0:
        layer = layers[place]
        if layer.kind in {"sum", "layer norm", "embedding", "other"} or not _readable(layer):
            return Broken(_why(layer))
        path.append(layer)
        place = layer.sources[0]
    return path[::-1]


def _readable(layer: Layer) -> bool:
    """Whether the numbers of an operation leave it reversible, and its dimensions are ours."""
    numbers = [a for a in layer.node.arguments[1:] if isinstance(a, int | float)]
    name = layer.operation.rstrip("_")
    if name in {"leaky_relu", "elu", "softplus"}:
        steps = name == "softplus" and numbers[1:2] != [] and numbers[1] < _SMOOTH
        return all(number > 0 for number in numbers) and not steps
    return layer.kind != "convolution" or len(layer.shape) == 3


def _why(layer: Layer) -> str:
    where = f" of {', '.join(layer.parameters)}" if layer.parameters else ""
    if layer.kind == "sum":
        return "a sum of two branches (a residual connection) cannot be read backwards"
    return f"the operation {layer.operation!r}{where} cannot be read backwards"


def _links(recording: Recording, path: list[Layer]) -> tuple[Link, ...]:
    links: list[Link] = []
    source, piece, uses = recording.given, list[Layer](), recording.uses
    for layer in path:
        if layer.kind != "activation":
            piece.append(layer)
            continue
        links += _cut(source, piece, layer.node, uses)
        source, piece = layer.node, []
    return tuple(links + _cut(source, piece, None, uses))


def _cut(
    source: Node, piece: list[Layer], activation: Node | None, uses: Mapping[str, int]
) -> list[Link]:
    """The links of what stands before one activation: as many as there are operators.

    What is affine between two operators belongs to the second; what follows the last one belongs to
    it when an activation comes next, else it is a link of its own.
    """
    links: list[Link] = []
    before: list[Node] = []
    operators = [layer for layer in piece if layer.kind in {"linear", "convolution"}]
    for operator in operators:
        before = _nodes(piece[: piece.index(operator)])
        piece = piece[piece.index(operator) + 1 :]
        if operator is operators[-1] and activation is not None:
            break
        links.append(Link(source, tuple(before), operator_of(operator.node, uses), (), None))
        source = operator.node
    if activation is None:
        return [*links, Link(source, tuple(_nodes(piece)), None, (), None)] if piece else links
    if not operators:
        return [Link(source, tuple(_nodes(piece)), None, (), activation)]
    last = operator_of(operators[-1].node, uses)
    return [*links, Link(source, tuple(before), last, tuple(_nodes(piece)), activation)]


def _nodes(layers: list[Layer]) -> list[Node]:
    return [layer.node for layer in layers]


def only_moves(node: Node) -> bool:
    """Whether this operation only puts the same numbers elsewhere."""
    return node.operation in _MOVES
