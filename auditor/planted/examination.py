"""The model examined for layers that were made to extract data, and what is said of them.

What counts is what a layer does, not who made it: an observation is no proof of intent, and none of
a leak. So it is worth as much as an estimated picture, whatever the dump gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from auditor.graph import Recording, constant, parameter_behind
from auditor.inversion.layers import Layer, layers_of
from auditor.planted.layers import LinearLayer, linear_layers, recorded
from auditor.planted.statistics import fishes, imprint_bins, passed_on, trap_halves
from auditor.records import Finding, Head, Measure, Problem
from auditor.rules import finding_of
from auditor.severity import input_severity

_POOLS = frozenset({"max_pool2d_with_indices", "max_pool2d"})
_CLEAR = 30.0  # dB: what such a layer is made to give


@dataclass(frozen=True)
class Observation:
    """One layer that looks made to extract data. Plain data."""

    code: str  # see rules
    layer: str
    summary: str
    measures: tuple[Measure, ...]


def model_findings(problem: Problem) -> tuple[Finding, ...]:
    """What the model itself shows, without the dump: one finding a layer of concern."""
    severity = input_severity(certainty="estimated", psnr=_CLEAR, share=1.0)
    return tuple(
        finding_of(
            seen.code,
            severity,
            "estimated",
            seen.summary,
            "model",
            seen.measures,
            ("the weights in the model file are those that the client trained with",),
        )
        for seen in examine_model(problem.module, problem.knowledge.input_shape, problem.trace.head)
    )


def examine_model(module: nn.Module, shape: tuple[int, ...], head: Head) -> tuple[Observation, ...]:
    """Every layer that looks made to extract data, in the order of codes.

    `shape` (C, H, W) of an input. Reads no gradient; the module is left as it was.
    """
    recording = recorded(module, shape)
    inner = [layer for layer in linear_layers(recording) if layer.weight != head.weight]
    with torch.no_grad():
        found = [_imprint(layer) for layer in inner]
        found += [_trap(layer) for layer in inner]
        found += [_fishing(module, head), _kernels(recording)]
    return tuple(seen for seen in found if seen is not None)


def _imprint(layer: LinearLayer) -> Observation | None:
    bins = imprint_bins(layer.rows, layer.offsets)
    if bins is None:
        return None
    text = (
        f"{bins.count} rows of the layer {layer.name!r} point the same way and differ in their "
        "biases alone: they sort the inputs of a batch into bins, and the gradients of "
        "neighbouring rows differ by the inputs in one bin."
    )
    measures = (
        Measure("bins", float(bins.count), f"of {len(layer.rows)} rows"),
        Measure("spread of the rows, second singular value to the first", bins.spread, ""),
    )
    return Observation("GA401", layer.name, text, measures)


def _trap(layer: LinearLayer) -> Observation | None:
    halves = trap_halves(layer.rows)
    if not halves.planted:
        return None
    text = (
        f"In {halves.share:.0%} of the rows of the layer {layer.name!r} exactly half of the "
        f"weights are negative, and the halves differ in size; chance makes {halves.chance:.1%}. "
        "Such rows fire for few inputs, and the gradient of a row that one input alone fires is "
        "that input."
    )
    measures = (
        Measure("rows with equal halves", halves.share, ""),
        Measure("the same, expected by chance", halves.chance, ""),
    )
    return Observation("GA402", layer.name, text, measures)


def _fishing(module: nn.Module, head: Head) -> Observation | None:
    named = dict(module.named_parameters())
    weight = named[head.weight].detach()
    if tuple(weight.shape) != (head.classes, head.features):
        weight = weight.T
    apart = fishes(weight, None if head.bias is None else named[head.bias])
    if apart is None:
        return None
    text = (
        f"One class of the classifier {head.weight!r} stands apart from all others by a factor or "
        "a bias that training does not make: only the samples of few classes leave a gradient, "
        "so that of a large batch is that of few samples."
    )
    size = () if math.isinf(apart) else (Measure("distance of that class", apart, ""),)
    return Observation("GA403", head.weight, text, size)


def _kernels(recording: Recording) -> Observation | None:
    """Convolutions that hand every channel of the input on to a linear layer."""
    channels = recording.given.shape[1] if len(recording.given.shape) == 4 else 0
    carried = torch.arange(channels)  # the input channel that each channel holds, or -1
    names: list[str] = []
    for layer in layers_of(recording):
        if layer.kind == "linear" and names:
            return _handed_on(names)
        if layer.kind == "convolution":
            carried = _carried_on(layer, carried)
            names.append(parameter_behind(layer.node.parents[1])[0] or layer.operation)
        lost = len(set(carried.tolist()) - {-1}) < channels
        if lost or channels == 0 or not _keeps_pixels(layer):
            return None
    return None


def _carried_on(layer: Layer, carried: torch.Tensor) -> torch.Tensor:
    kernels = constant(layer.node.parents[1]).cpu()
    passed = passed_on(kernels, len(carried) // kernels.shape[1])
    return torch.where(passed >= 0, carried[passed.clamp_min(0)], -1)


def _keeps_pixels(layer: Layer) -> bool:
    """Whether what is left after this layer is still a picture, or a picture laid flat."""
    if layer.kind in {"sum", "embedding"}:
        return False
    if layer.kind == "average":
        return math.prod(layer.shape[1:]) > 1
    return layer.kind != "other" or layer.operation in _POOLS


def _handed_on(names: list[str]) -> Observation:
    listed = ", ".join(repr(name) for name in names)
    text = (
        f"Kernels of {listed} hand every channel of the input on unchanged, one weight each, as "
        "far as a linear layer: what that layer's gradient says of its input, it says of the "
        "picture."
    )
    return Observation("GA404", names[0], text, ())
