"""The classifier head, found from the operations of one forward pass.

Below the module system, at the level of single tensor operations, it does not matter which
classes a model is made of or how its `forward` is written. We record which operation made which
tensor, then walk back from the output: the linear operation that made the logits is the head,
and the operations that made its input say whether its features can be negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from auditor.errors import InputError
from auditor.records import Head, Trace

# Operations that hand their first argument on, one row per sample, without changing a value.
_HANDS_ON = frozenset({
    "view", "_unsafe_view", "reshape", "flatten", "alias", "detach", "clone", "squeeze",
    "unsqueeze", "_to_copy", "contiguous", "expand", "slice",
})  # fmt: skip
# After any of these, softmax cross-entropy is the same function of the head's output.
_SHIFTS_LOGITS = _HANDS_ON | {"_log_softmax"}
_LINEAR = frozenset({"addmm", "mm", "linear"})
# Outputs of these are never negative, whatever goes in.
_NONNEGATIVE = frozenset({
    "relu", "relu_", "sigmoid", "sigmoid_", "softplus", "exp", "abs", "square", "_softmax",
})  # fmt: skip
# These keep non-negative inputs non-negative: copies, selections, means, sums and maxima.
_KEEPS_SIGN = _HANDS_ON | {
    "mean", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "max_pool2d_with_indices", "amax", "max", "add", "add_", "cat", "sum", "permute",
    "transpose", "t", "select", "native_dropout", "dropout", "getitem",
}  # fmt: skip
_CLAMPS = frozenset({"hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_"})


@dataclass(frozen=True, eq=False)
class _Node:
    """One tensor: the operation that made it, and the tensors that went in."""

    operation: str
    parents: tuple[_Node, ...] = ()
    arguments: tuple[Any, ...] = ()  # positional, None where a tensor stood
    parameter: str | None = None


class _Recorder(TorchDispatchMode):
    """Notes the maker of every tensor of a forward pass; holds no tensor alive."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: Any = WeakTensorKeyDictionary()
        self.uses: dict[str, int] = dict.fromkeys(named, 0)
        self.operations = 0
        self.writes_through_views = False
        for name, tensor in named.items():
            self.nodes[tensor] = _Node("parameter", parameter=name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        parents = tuple(
            self.node_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        )
        for parent in parents:
            if parent.parameter is not None:
                self.uses[parent.parameter] += 1
        name = func.overloadpacket.__name__
        # Writing through a view changes tensors whose makers we noted earlier.
        if name.endswith("_") and isinstance(args[0], Tensor) and args[0]._is_view():
            self.writes_through_views = True
        plain = tuple(a if isinstance(a, int | float) else None for a in args)
        plain += tuple((kwargs or {}).values())
        self.operations += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.nodes[leaf] = _Node(name, parents, plain)
        return result

    def node_of(self, tensor: Tensor) -> _Node:
        found = self.nodes.get(tensor, None)
        return found if found is not None else _Node("leaf")


def trace(module: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Follow one forward pass of two samples of `input_shape` (C, H, W).

    Raises InputError when the model cannot take this shape, or no linear layer makes its output.
    """
    first = next(module.parameters())
    probe = torch.rand(2, *input_shape, dtype=first.dtype, device=first.device)
    recorder = _Recorder(dict(module.named_parameters()))
    training = [m for m in module.modules() if m.training]
    for inner in training:  # batch statistics of a random probe must not reach the buffers
        inner.training = False
    try:
        with torch.no_grad(), recorder:
            output = _forward(module, probe)
    finally:
        for inner in training:
            inner.training = True
    head = _find_head(recorder, output, dict(module.named_parameters()))
    return Trace(
        head=head,
        operations=recorder.operations,
        dropout=any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules()
        ),
        batch_norm=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()),
    )


def _forward(module: nn.Module, probe: Tensor) -> Tensor:
    try:
        output = module(probe)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        shape = "x".join(str(n) for n in probe.shape[1:])
        raise InputError(
            expected=f"a model that takes images of shape {shape}",
            found=f"its forward pass failed ({_first_line(error)})",
            todo="Say the right shape with --input-shape, for example 3x32x32.",
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(probe):
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise InputError(
            expected="a classifier with logits of shape (batch, classes)",
            found=f"an output of {what}",
            todo="Wrap the model so that it returns its logits alone.",
        )
    return output


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _find_head(recorder: _Recorder, output: Tensor, named: dict[str, Tensor]) -> Head:
    node = _skip(recorder.node_of(output), _SHIFTS_LOGITS)
    if node.operation not in _LINEAR:
        raise _no_head(node.operation)
    roles = [_parameter_behind(p) for p in node.parents]
    weight = next((n for n in roles if n is not None and named[n].ndim == 2), None)
    bias = next((n for n in roles if n is not None and named[n].ndim == 1), None)
    if weight is None or named[weight].shape[0] != output.shape[1]:
        raise _no_head(node.operation)
    if recorder.uses[weight] != 1:
        raise InputError(
            expected="a head that is used once per sample",
            found=f"that its weight {weight!r} takes part in {recorder.uses[weight]} operations",
            todo="gradaudit cannot read labels off a shared head; audit another model.",
        )
    features = next(p for p, role in zip(node.parents, roles, strict=True) if role is None)
    classes, width = named[weight].shape
    nonnegative = _nonnegative(features) and not recorder.writes_through_views
    return Head(weight, bias, int(classes), int(width), nonnegative)


def _no_head(operation: str) -> InputError:
    hint = " (a softmax: return the logits before it)" if operation == "_softmax" else ""
    return InputError(
        expected="a linear layer that makes the logits",
        found=f"that the output is made by the operation {operation!r}{hint}",
        todo="Wrap the model so that its last operation is the linear classifier.",
    )


def _skip(node: _Node, operations: frozenset[str]) -> _Node:
    while node.operation in operations and node.parents:
        node = node.parents[0]
    return node


def _parameter_behind(node: _Node) -> str | None:
    """The parameter that this tensor is a view of, if it is one."""
    return _skip(node, _HANDS_ON | {"t", "transpose", "permute"}).parameter


def _nonnegative(node: _Node) -> bool:
    """Whether no value of this tensor can be negative, for any input of the model."""
    if node.operation in _NONNEGATIVE:
        return True
    if node.operation in _CLAMPS:
        lower = node.arguments[1] if len(node.arguments) > 1 else None
        return isinstance(lower, int | float) and lower >= 0
    if node.operation in {"add", "add_"} and any(a is not None for a in node.arguments):
        return False  # plus a number, or scaled by one
    return (
        node.operation in _KEEPS_SIGN
        and bool(node.parents)
        and all(_nonnegative(parent) for parent in node.parents)
    )
