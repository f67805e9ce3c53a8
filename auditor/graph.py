"""The operations of one forward pass: which tensor was made from which, and how to make it again.

Below the module system, at the level of single tensor operations, it does not matter which classes
a model is made of or how its `forward` is written. A recording holds one `Node` a tensor. Nodes
hold the values of leaves only (parameters, buffers, constants), never of what was computed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

# Operations that hand their first argument on, one row per sample, without changing a value.
HANDS_ON = frozenset({
    "view", "_unsafe_view", "reshape", "flatten", "alias", "detach", "clone", "squeeze",
    "unsqueeze", "_to_copy", "contiguous", "expand", "slice",
})  # fmt: skip
# These turn a matrix over.
TURNS = frozenset({"t", "transpose", "permute"})


@dataclass(eq=False)
class Memory:
    """The storage behind one or more tensors."""

    tensors: int = 0


@dataclass(frozen=True)
class Call:
    """How to make a tensor again. Nodes stand where tensors stood."""

    function: Any  # the overload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int  # among the tensors that the operation gave or wrote
    writes: bool  # into one of its arguments


@dataclass(frozen=True, eq=False)
class Node:
    """One tensor: the operation that made it, and the tensors that went in."""

    operation: str
    parents: tuple[Node, ...] = ()
    arguments: tuple[Any, ...] = ()  # positional, None where a tensor stood
    parameter: str | None = None
    memory: Memory = field(default_factory=Memory)
    call: Call | None = None
    value: Tensor | None = None  # of a leaf
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recording:
    """One forward pass."""

    given: Node  # what the model was called with
    output: Node
    operations: int
    names: frozenset[str]  # of all operations met
    uses: Mapping[str, int]  # operations that each parameter took part in
    writes_through_views: bool  # then values may have changed after their makers were noted
    reads_values: bool  # a number left the tensors: what was done with it is not on record


def record(module: nn.Module, inputs: Tensor) -> tuple[Tensor, Recording]:
    """One forward pass without gradients: the output, and how it was made."""
    recorder = _Recorder(dict(module.named_parameters()))
    given = recorder.node_of(inputs)
    with torch.no_grad(), _uncompiled(), recorder:
        output = module(inputs)
    made = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), inputs)
    return output, Recording(
        given,
        recorder.node_of(made),
        recorder.operations,
        frozenset(recorder.names),
        recorder.uses,
        recorder.writes_through_views,
        "_local_scalar_dense" in recorder.names,
    )


def _uncompiled() -> AbstractContextManager[object]:
    """A model that was compiled runs as it was written, or the recorder would be compiled too."""
    if "torch._dynamo" in sys.modules:
        eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()


def same_program(one: Recording, other: Recording) -> bool:
    """Whether two passes did the same operations with the same numbers and constants."""
    pairs, seen = [(one.output, other.output)], set[tuple[Node, Node]]()
    while pairs:
        pair = pairs.pop()
        if pair in seen or pair == (one.given, other.given):
            continue
        seen.add(pair)
        a, b = pair
        if (a.operation, a.arguments, a.shape) != (b.operation, b.arguments, b.shape):
            return False
        if len(a.parents) != len(b.parents) or (a.value is None) != (b.value is None):
            return False
        if a.value is not None and b.value is not None and not torch.equal(a.value, b.value):
            return False
        pairs += zip(a.parents, b.parents, strict=True)
    return True


def replay(path: Iterable[Node], start: Node, value: Tensor) -> Tensor:
    """The value of the last node of `path` when `start` has another `value`.

    `path` are nodes in the order of the pass, each made from `start`, earlier ones and constants.
    """
    known: dict[Node, Tensor] = {start: value}
    last = value
    for node in path:
        last = known[node] = again(node, known)
    return last


def again(node: Node, known: dict[Node, Tensor]) -> Tensor:
    """The value of a node from those of its parents. Constants are added to `known`."""
    call = node.call
    assert call is not None, "a leaf has no maker"

    def fill(argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        value = known[argument] if argument in known else _constant(argument, known)
        return value.clone() if call.writes else value

    made = call.function(*tree_map(fill, call.args), **tree_map(fill, call.kwargs))
    tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
    return tensors[call.place]


def constant(node: Node) -> Tensor:
    """The value of a node that does not depend on the model's input."""
    return _constant(node, {})


def _constant(node: Node, known: dict[Node, Tensor]) -> Tensor:
    if node not in known:
        known[node] = node.value if node.value is not None else again(node, known)
    return known[node]


class _Recorder(TorchDispatchMode):
    """Notes the maker of every tensor of a forward pass; holds no computed tensor alive."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: Any = WeakTensorKeyDictionary()
        self.uses: dict[str, int] = dict.fromkeys(named, 0)
        self.operations = 0
        self.names: set[str] = set()
        self.writes_through_views = False
        for name, tensor in named.items():
            self.nodes[tensor] = Node(
                "parameter",
                parameter=name,
                memory=Memory(1),
                value=tensor.detach(),
                shape=tuple(tensor.shape),
            )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks. Else it loads its compiler, for a second and 150 MB, to keep it out of us."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.names.add(name)
        self.operations += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        parents = tuple(self.node_of(leaf) for leaf in given)
        self._count_uses(name, parents)
        plain = tuple(a if isinstance(a, int | float) else None for a in args)
        plain += tuple(None if isinstance(v, Tensor) else v for v in kwargs.values())
        written = _written(func, args, kwargs)
        # Writing where another tensor can see it changes values whose makers we noted earlier.
        if any(self.node_of(leaf).memory.tensors > 1 for leaf in written):
            self.writes_through_views = True
        as_nodes = tree_map(lambda a: self.node_of(a) if isinstance(a, Tensor) else a, args)
        named = tree_map(lambda a: self.node_of(a) if isinstance(a, Tensor) else a, kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for place, leaf in [*((0, w) for w in written), *enumerate(made)]:
            call = Call(func, tuple(as_nodes), dict(named), place, bool(written))
            memory = self._memory_of(leaf, given)
            shape = tuple(leaf.shape)
            self._note(leaf, Node(name, parents, plain, memory=memory, call=call, shape=shape))
        return result

    def _count_uses(self, name: str, parents: tuple[Node, ...]) -> None:
        """A view of a parameter is no use of it; what is done with the view is."""
        if name in HANDS_ON or name in TURNS:
            return
        for parent in parents:
            parameter, _ = parameter_behind(parent)
            if parameter is not None:
                self.uses[parameter] += 1

    def _memory_of(self, made: Tensor, given: list[Tensor]) -> Memory:
        where = made.untyped_storage().data_ptr()
        for leaf in given:
            if leaf.untyped_storage().data_ptr() == where:
                return self.node_of(leaf).memory
        return Memory()

    def _note(self, tensor: Tensor, node: Node) -> None:
        known = self.nodes.get(tensor, None)
        if known is None or known.memory is not node.memory:
            node.memory.tensors += 1
        self.nodes[tensor] = node

    def node_of(self, tensor: Tensor) -> Node:
        found: Node | None = self.nodes.get(tensor, None)
        if found is None:
            shape = tuple(tensor.shape)
            found = Node("leaf", memory=Memory(1), value=tensor.detach(), shape=shape)
            self.nodes[tensor] = found
        return found


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes into, by its schema."""
    found: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def parameter_behind(node: Node) -> tuple[str | None, bool]:
    """The parameter that this tensor is a view of, if it is one, and whether it is turned over."""
    turned = False
    while node.parents and (node.operation in HANDS_ON or node.operation in TURNS):
        turned ^= node.operation in TURNS
        node = node.parents[0]
    return node.parameter, turned
