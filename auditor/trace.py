"""The classifier head, found from the operations of one forward pass.

We walk back from the output of a recording (graph.py): the linear operation that made the logits is
the head, and the operations that made its input say whether its features can be negative.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from auditor.batch_norm import normalised_layers
from auditor.errors import InputError
from auditor.graph import HANDS_ON, Node, Recording, parameter_behind, record
from auditor.records import Head, Trace

# These draw random numbers.
_DROPS = frozenset({"native_dropout", "bernoulli", "bernoulli_", "rand_like", "alpha_dropout"})
_FEWEST = 2  # classes
_LINEAR = frozenset({"addmm", "mm", "linear"})
# Outputs of these are never negative, whatever goes in.
_NONNEGATIVE = frozenset({
    "relu", "relu_", "sigmoid", "sigmoid_", "softplus", "exp", "abs", "square", "_softmax",
    "bernoulli", "bernoulli_",
})  # fmt: skip
# These keep non-negative inputs non-negative: copies, selections, means, sums and maxima.
_KEEPS_SIGN = HANDS_ON | {
    "mean", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "max_pool2d_with_indices", "amax", "max", "add", "add_", "cat", "sum", "permute",
    "transpose", "t", "select", "native_dropout", "dropout", "getitem", "mul", "mul_", "div",
    "div_",
}  # fmt: skip
_CLAMPS = frozenset({"hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_"})


def trace(module: nn.Module, input_shape: tuple[int, ...], *, training: bool = False) -> Trace:
    """Follow one forward pass of two samples of `input_shape`, (C, H, W) or (D,).

    In evaluation mode, or, on a copy, in training mode: then dropout and whatever else the model
    does for training are among the operations. Raises InputError when the model cannot take this
    shape, or no linear layer makes its output.
    """
    first = next(module.parameters(), None)
    if first is None:
        raise InputError(
            expected="a model with parameters",
            found="none",
            todo="A gradient belongs to parameters: audit the model that was trained.",
        )
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(2, *input_shape, generator=generator).to(first)
    module = copy.deepcopy(module).train() if training else module
    with torch.random.fork_rng(devices=[]), _mode(module, training):
        output, recording = _forward(module, probe)
    return Trace(
        head=_find_head(recording, output, dict(module.named_parameters())),
        operations=recording.operations,
        dropout=bool(recording.names & _DROPS)
        or any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules()),
        batch_norm=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()),
        normalised=() if training else normalised_layers(recording, module),
    )


def require_classes(head: Head) -> None:
    """Raise InputError for a single logit: its loss is not the one that is differentiated here."""
    if head.classes < _FEWEST:
        raise InputError(
            expected="a classifier with two logits or more, trained with softmax cross-entropy",
            found="a single logit, as for binary cross-entropy or regression",
            todo="gradaudit cannot audit this loss; it can audit two classes with two logits.",
        )


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Evaluation mode for a while: batch statistics of a probe must not reach the buffers."""
    was_training = [inner for inner in module.modules() if inner.training and not training]
    for inner in was_training:
        inner.training = False
    try:
        yield
    finally:
        for inner in was_training:
            inner.training = True


def _forward(module: nn.Module, probe: Tensor) -> tuple[Tensor, Recording]:
    try:
        output, recording = record(module, probe)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise InputError(
            expected=f"a model that takes {_inputs_in_words(probe)}",
            found=f"its forward pass failed ({_first_line(error)})",
            todo="Say the right shape with --input-shape, for example 3x32x32, or 30 for rows of a "
            "table with 30 columns.",
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(probe):
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise InputError(
            expected="a classifier with logits of shape (batch, classes)",
            found=f"an output of {what}",
            todo="Wrap the model so that it returns its logits alone.",
        )
    return output, recording


def _inputs_in_words(probe: Tensor) -> str:
    sides = "x".join(str(n) for n in probe.shape[1:])
    return f"images of shape {sides}" if probe.dim() == 4 else f"rows of {sides} numbers"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _find_head(recording: Recording, output: Tensor, named: dict[str, Tensor]) -> Head:
    node = _skip(recording.output, HANDS_ON)
    if node.operation == "_log_softmax" and node.arguments[1] in {1, -1}:
        # cross-entropy is the same function before and after it
        node = _skip(node.parents[0], HANDS_ON)
    if node.operation not in _LINEAR:
        raise _no_head(node.operation)
    weight, bias, features = _roles(node)
    if weight is None or named[weight].ndim != 2 or named[weight].shape[0] != output.shape[1]:
        raise _no_head(node.operation)
    if bias is not None and named[bias].numel() != output.shape[1]:
        raise _no_head(node.operation)
    for name in (weight, bias):
        if name is not None and recording.uses[name] != 1:
            raise InputError(
                expected="a head that is used once per sample",
                found=f"that {name!r} takes part in {recording.uses[name]} operations",
                todo="gradaudit cannot read labels off a shared head; audit another model.",
            )
    classes, width = named[weight].shape
    nonnegative = _nonnegative(features, {}) and not recording.writes_through_views
    return Head(weight, bias, int(classes), int(width), nonnegative)


def _roles(node: Node) -> tuple[str | None, str | None, Node]:
    """Weight, bias and features of x W' (+ b). No weight, unless W is on its side."""
    parents = node.parents
    if node.operation == "linear":  # (x, W[, b])
        features, matrix, turned = parents[0], parents[1], False
        bias = parameter_behind(parents[2])[0] if len(parents) > 2 else None
    else:  # mm (x, W') or addmm (b, x, W')
        features, matrix, turned = parents[-2], parents[-1], True
        bias = parameter_behind(parents[0])[0] if node.operation == "addmm" else None
    weight, is_turned = parameter_behind(matrix)
    return (weight if is_turned == turned else None), bias, features


def _no_head(operation: str) -> InputError:
    hint = " (a softmax: return the logits before it)" if operation == "_softmax" else ""
    return InputError(
        expected="a linear layer that makes the logits",
        found=f"that the output is made by the operation {operation!r}{hint}",
        todo="Wrap the model so that its last operation is the linear classifier.",
    )


def _skip(node: Node, operations: frozenset[str]) -> Node:
    while node.operation in operations and node.parents:
        node = node.parents[0]
    return node


def _nonnegative(node: Node, known: dict[Node, bool]) -> bool:
    """Whether no value of this tensor can be negative, for any input of the model."""
    if node not in known:
        known[node] = _makes_nonnegative(node, known)
    return known[node]


def _makes_nonnegative(node: Node, known: dict[Node, bool]) -> bool:
    if _turned_by_a_number(node):
        return False
    if node.operation in _NONNEGATIVE:
        return True
    if node.operation in _CLAMPS:
        bounds = [bound for bound in node.arguments[1:3] if bound is not None]
        lower = node.arguments[1] if len(node.arguments) > 1 else None
        return isinstance(lower, int | float) and all(bound >= 0 for bound in bounds)
    return (
        node.operation in _KEEPS_SIGN
        and bool(node.parents)
        and all(_nonnegative(parent, known) for parent in node.parents)
    )


def _turned_by_a_number(node: Node) -> bool:
    """Whether a plain number among the arguments may turn the sign."""
    numbers = [a for a in node.arguments[1:] if isinstance(a, int | float)]
    if node.operation == "softplus":  # a negative beta turns it over
        return bool(numbers) and not numbers[0] > 0
    if node.operation in {"add", "add_"}:  # plus a number, or scaled by one
        return bool(numbers)
    if node.operation in {"mul", "mul_", "div", "div_"}:
        return any(number < 0 for number in numbers)
    return node.operation == "avg_pool2d" and node.arguments[6:7] not in {(), (None,)}
