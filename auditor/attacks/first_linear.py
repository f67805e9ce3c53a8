"""The first linear layer of a model, when a picture reaches it unchanged or affinely changed.

For a batch X (N, n) it makes Z = X W' + b; with D (N, m) the gradient of the loss for Z, the
gradients of its weight and bias are D' X and D' 1, whatever the layers above do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.closed_form import recorded_or_why
from auditor.graph import HANDS_ON, Recording
from auditor.inversion.layers import layers_of
from auditor.planted.layers import LinearLayer, linear_layers
from auditor.planted.way import Way, way_to
from auditor.problem import is_in_range, is_one_gradient
from auditor.records import Problem

_RECTIFIED = "relu"


@dataclass(frozen=True, eq=False)
class FirstLinear:
    """The layer and what was sent of it, in double precision."""

    name: str  # of the weight
    bias_name: str
    rows: Tensor  # (m, n) W
    offsets: Tensor  # (m,) b
    weight: Tensor  # (m, n) gradient of W
    bias: Tensor  # (m,) gradient of b
    way: Way

    def pictures(self, problem: Problem, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (L, C, H, W), model units, of layer inputs (L, n), and which are any, (L,)."""
        flat, fits = self.way.back(inputs)
        pictures = flat.to(next(iter(problem.gradient.values())))
        pictures = pictures.view(-1, *problem.knowledge.input_shape)
        inside = [bool(p.isfinite().all()) and is_in_range(problem, p) for p in pictures]
        return pictures, fits & torch.tensor(inside, dtype=torch.bool, device=fits.device)

    def errors(self, precision: float) -> Tensor:
        """What rounding leaves of each row's product with a unit vector, (m,).

        Its own rounding, and that of the sums over the batch, which cancel.
        """
        sizes = torch.linalg.vector_norm(self.weight, dim=1)
        errors: Tensor = precision * (sizes + 0.1 * sizes.square().mean().sqrt())
        return errors


def first_linear(problem: Problem) -> FirstLinear | str:
    """The layer, or in words why its gradient cannot be read; it has to be followed by ReLU."""
    if isinstance(problem.module, torch.jit.ScriptModule):
        return "a TorchScript model is not taken apart"
    if not is_one_gradient(problem):
        return (
            "the update is not known to be one step: units that are off in one may be on in another"
        )
    recording = recorded_or_why(problem)
    if isinstance(recording, str):
        return recording
    if recording.writes_through_views or recording.reads_values:
        return "what the model does with its input cannot be followed"
    layers = linear_layers(recording)
    if not layers:
        return "no linear layer stands on the way of the input"
    return _readable(problem, recording, layers[0])


def _readable(problem: Problem, recording: Recording, layer: LinearLayer) -> FirstLinear | str:
    sent, weight, bias = problem.gradient, layer.weight, layer.bias
    if weight is None or weight not in sent or layer.uses != 1 or len(layer.node.shape) != 2:
        return f"the dump holds no gradient of {layer.name!r} for one vector a sample"
    if bias is None or layer.offsets is None or bias not in sent or recording.uses[bias] != 1:
        return f"the first linear layer {layer.name!r} has no bias in the dump: no scale is known"
    way = way_to(layer, recording, next(problem.module.parameters()).detach())
    if way is None or way.activations or not way.keeps_everything():
        return f"what stands before the first linear layer {layer.name!r} cannot be undone"
    if not _is_rectified(recording, layer):
        return f"no ReLU follows the first linear layer {layer.name!r}: no unit is off"
    gradient = sent[weight].double()
    return FirstLinear(
        name=weight,
        bias_name=bias,
        rows=layer.rows.detach().double(),
        offsets=layer.offsets.detach().double(),
        weight=gradient.mT if layer.turned else gradient,
        bias=sent[bias].double(),
        way=way,
    )


def _is_rectified(recording: Recording, layer: LinearLayer) -> bool:
    """Whether ReLU, and nothing else, takes the layer's output."""
    known = {layer.node}
    takers = []
    for step in layers_of(recording):  # in order: views come before what takes them
        if any(parent in known for parent in step.node.parents):
            if step.operation in HANDS_ON:
                known.add(step.node)
            else:
                takers.append(step.operation.rstrip("_"))
    return bool(takers) and all(name == _RECTIFIED for name in takers)
