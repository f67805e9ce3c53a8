"""What batch norm gives away: the mode that the client trained in.

In training mode a batch norm takes the mean over batch and places from what it is given, and the
scale. Nothing then depends on the bias of the layer before it, whose gradient is zero, nor (but for
the small constant under the root) on the scale of that layer's weights: each row of its gradient
stands at a right angle to the row. In evaluation mode their product follows from the gradients of
the batch norm's own weight and bias instead.

What ReLU, leaky ReLU and pooling make of twice their input is twice as much, so by Euler's theorem
values times gradients have the same sum before and after them: with one of these in between, the
product holds for rows with their biases, while the bias's gradient alone is zero no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from auditor.graph import HANDS_ON, Node, Recording, constant, parameter_behind
from auditor.records import Assumption, Caveat, Knowledge, Mode, Normalised

_OPERATORS = frozenset({"convolution", "_convolution", "addmm", "mm", "linear"})
# Positively homogeneous, channel by channel.
_HOMOGENEOUS = frozenset({
    "relu", "relu_", "leaky_relu", "leaky_relu_", "max_pool2d_with_indices", "avg_pool2d",
    "_adaptive_avg_pool2d",
})  # fmt: skip
# Of a bias's gradient, relative to the weight's. In trials 1e-6 in training mode, 0.4 in the other.
_ZERO, _NOT_ZERO = 1e-4, 1e-2
# Of the products of rows and their gradients, relative to what evaluation mode makes of them.
_HOLDS, _OFF = 1e-2, 0.1
# Where the running statistics are young: what only evaluation mode leaves, and the share of the
# first ones in them from which on they are.
_SURE, _YOUNG = 1e-4, 0.05
# Without those: of the median cosine between a row and its gradient, times the root of the row's
# length: 0.67 for random directions. Eight rows have a median below 0.03 once in 40,000 draws.
_RIGHT_ANGLE, _ROWS = 0.03, 8
_DIGITS = 30  # rounding errors of a sum, in units of the dump's precision


def normalised_layers(recording: Recording, module: nn.Module) -> tuple[Normalised, ...]:
    """The layers of `module` in front of a batch norm, from one pass in evaluation mode."""
    nodes = list(_nodes(recording.output))
    uses = [parent for node in nodes for parent in node.parents]
    found = []
    for node in nodes:
        if "batch_norm" not in node.operation or not node.parents:
            continue
        before, rectified = node.parents[0], False
        while before.operation in HANDS_ON | _HOMOGENEOUS and uses.count(before) == 1:
            rectified |= before.operation in _HOMOGENEOUS
            before = before.parents[0]
        layer = _layer(node, before, rectified=rectified)
        if layer is not None and uses.count(before) == 1 and recording.uses[layer.weight] == 1:
            found.append(replace(layer, young=_is_young(layer, module)))
    return tuple(found)


def _is_young(layer: Normalised, module: nn.Module) -> bool:
    """Whether the running statistics are still, for a part, those that a batch norm begins with."""
    norm = module.get_submodule(layer.gain.rpartition(".")[0]) if layer.gain else None
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        return False
    if bool((mean == 0).all()) and bool((variance == 1).all()):
        return True
    count, momentum = getattr(norm, "num_batches_tracked", None), getattr(norm, "momentum", None)
    if count is None or not int(count) or momentum is None:  # brought from elsewhere
        return False
    return float((1 - momentum) ** int(count)) > _YOUNG


def _layer(norm: Node, before: Node, *, rectified: bool) -> Normalised | None:
    """`norm` was called with (input, weight, bias, running mean, running variance, ..., eps)."""
    assert norm.call is not None
    gain, shift, mean, variance = norm.call.args[1:5]
    if before.operation not in _OPERATORS or mean is None or variance is None:
        return None
    if not _same_channels(before, norm.parents[0]):
        return None
    names = {parameter_behind(parent)[0]: len(parent.shape) for parent in before.parents}
    weight = next((name for name, axes in names.items() if name and axes > 1), None)
    bias = next((name for name, axes in names.items() if name and axes == 1), None)
    if weight is None:
        return None
    own = next((p for p in before.parents if bias and p.parameter == bias), None)
    running, deviation = constant(mean).double(), constant(variance).double()
    if own is not None and constant(own).shape != running.shape:  # instance norm: repeated a sample
        return None
    return Normalised(
        weight,
        bias,
        None if gain is None else gain.parameter,
        None if shift is None else shift.parameter,
        running - (0.0 if own is None or rectified else constant(own).double()),
        (deviation + norm.call.args[-1]).sqrt(),
        rectified,
    )


def _same_channels(before: Node, given: Node) -> bool:
    """Whether the layer's rows make the channels that are normalised, one each."""
    vectors = "conv" not in before.operation
    return before.shape[:2] == given.shape[:2] and (not vectors or len(before.shape) == 2)


def _nodes(output: Node) -> Iterator[Node]:
    stack, seen = [output], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack += node.parents


def mode_of(
    layers: Iterable[Normalised],
    named: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    *,
    precision: float,
) -> Mode | None:
    """The mode of the batch norms when the gradient was made; None when it does not say.

    `named` are the model's parameters, `gradient` the dump's. All layers have to say the same.
    """
    said = set[Mode | None]()
    for layer in layers:
        sent = gradient.get(layer.weight)
        if sent is None or not float(sent.double().norm()) > 0:
            continue
        bias = None if layer.bias is None else gradient.get(layer.bias)
        if layer.rectified and layer.bias is not None and bias is None:
            continue  # the products lack a part
        by_products = _by_products(layer, named, gradient, precision)
        if layer.rectified:  # it often says nothing: what ReLU lets through may hardly vary
            said |= {by_products} - {None}
        elif bias is None:
            said.add(by_products)
        else:  # a dropout in between leaves the products alone, but not the bias
            said |= {_by_bias(sent.double(), bias.double(), precision)} | ({by_products} - {None})
    return said.pop() if len(said) == 1 else None


def mode_of_buffers(module: nn.Module, after: Mapping[str, Tensor]) -> Mode | None:
    """The mode of a client whose buffers came back: training mode moves running statistics.

    None when no running statistics are among them.
    """
    before = dict(module.named_buffers())
    kept = [name for name in after if name.endswith(("running_mean", "running_var"))]
    pairs = [(after[name], before[name]) for name in kept if name in before]
    if not pairs:
        return None
    return "eval" if all(bool((a.to(b) == b).all()) for a, b in pairs) else "train"


def _by_bias(weight: Tensor, bias: Tensor, precision: float) -> Mode | None:
    share = float(bias.norm() / weight.norm())
    if share <= max(_ZERO, _DIGITS * precision):
        return "train"
    return "eval" if share >= _NOT_ZERO else None


def _by_products(
    layer: Normalised,
    named: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    precision: float,
) -> Mode | None:
    """Rows times their gradients, beside gain times (gain's gradient + mean / deviation shift's).

    That is what they are in evaluation mode, rows taken with their biases when these were sent. In
    training mode they are eps / (variance + eps) of gain times the gain's gradient.
    """
    rows, sent, mean = rows_of(layer, named, gradient)
    products = (rows * sent).sum(1)
    if not {layer.gain, layer.shift} <= gradient.keys() or not {layer.gain} <= named.keys():
        return _by_angle(products, rows, sent)
    gain = named[str(layer.gain)].detach().double()
    by_gain = gain * gradient[str(layer.gain)].double().to(rows.device)
    by_shift = gain * gradient[str(layer.shift)].double().to(rows.device)
    by_shift = by_shift * mean / layer.deviation
    size = float(torch.stack([by_gain, by_shift]).norm())
    if not size > 0:
        return None
    apart = float((products - by_gain - by_shift).norm()) / size
    share = float(products.norm()) / size
    holds = _SURE if layer.young else _HOLDS
    if apart <= max(holds, _DIGITS * precision) and share > _OFF:
        return "eval"
    return "train" if share <= _HOLDS * 3 and apart > _OFF else None


def rows_of(
    layer: Normalised, named: Mapping[str, Tensor], gradient: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and gradients (C, E), the bias the last column if it was sent, and their mean (C,)."""
    rows = named[layer.weight].detach().double().flatten(1)
    sent = gradient[layer.weight].double().to(rows.device).flatten(1)
    if layer.bias is None or layer.bias not in gradient:
        return rows, sent, layer.mean
    own = named[layer.bias].detach().double()
    last = gradient[layer.bias].double().to(rows.device)
    mean = layer.mean if layer.rectified else layer.mean + own
    return torch.cat([rows, own[:, None]], 1), torch.cat([sent, last[:, None]], 1), mean


def _by_angle(products: Tensor, rows: Tensor, sent: Tensor) -> Mode | None:
    sizes = rows.norm(dim=1) * sent.norm(dim=1)
    heard = sizes > 0
    if int(heard.sum()) < _ROWS:
        return None
    cosines = (products[heard] / sizes[heard]).abs() * rows.shape[1] ** 0.5
    return "train" if float(cosines.median()) <= _RIGHT_ANGLE else None


def with_deduced_mode(known: Knowledge, mode: Mode | None) -> Knowledge:
    """Knowledge in which a mode that was only assumed is the one that the dump shows."""
    origin = next((a.origin for a in known.assumptions if a.what == "mode"), "assumed")
    if mode is None or origin != "assumed":
        return known
    rest = tuple(a for a in known.assumptions if a.what != "mode")
    deduced = Assumption("mode", mode, "deduced")
    return replace(known, mode=mode, assumptions=(*rest, deduced))


def mode_caveats(known: Knowledge, mode: Mode | None) -> tuple[Caveat, ...]:
    """GA309 when the dump was made in another mode than was said."""
    if mode is None or mode == known.mode:
        return ()
    names = {"train": "training", "eval": "evaluation"}
    return (
        Caveat(
            "GA309",
            f"Batch norm was in {names[mode]} mode when this dump was made (the gradients of the "
            "layers before it show it, or the statistics that came back), but the mode is said to "
            f"be {known.mode}: an input that was not recovered means nothing.",
            voids=True,
        ),
    )
