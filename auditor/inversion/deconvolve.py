"""Which convolutions may be factorised, and what a factorisation says of the network around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from auditor.inversion.blind import Factors
from auditor.inversion.features import (
    Feature,
    Features,
    convolutions,
    elementwise_above,
    scale_above,
)
from auditor.inversion.layers import Operator, data_of
from auditor.inversion.peel import Peeling

_NEGATIVE = 1e-2  # of the largest value: a ReLU's output is nowhere below


@dataclass(frozen=True, eq=False)
class Candidate:
    """A convolution over a grid that keeps its size, between two activations."""

    user: Feature  # whose pre-activation it goes into, number by number
    source: Feature  # its input
    operator: Operator
    shift: str  # a parameter whose gradient is the sum of cotangents: its bias, or a batch norm's
    after_norm: bool  # the shift is that of a batch norm after it

    @property
    def weight(self) -> str:
        return str(self.operator.weight)

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.operator.node.shape[2:]
        return height, width


def candidates_of(
    features: Features, shifts: Mapping[str, str], gradient: Mapping[str, Tensor]
) -> Iterator[Candidate]:
    """Those nearest to the picture first: least is left to read below them.

    `shifts`: that of the batch norm right after a layer, by the layer's weight.
    """
    by_node = {feature.node: feature for feature in features.each}
    for user in features.each:
        if user.pre is None:
            continue
        for operator in convolutions(user, features.recording):
            source = by_node.get(data_of(operator))
            after_norm = operator.bias not in gradient
            shift = shifts.get(str(operator.weight)) if after_norm else operator.bias
            fits = operator.weight in gradient and _keeps_grid(operator)
            if source is None or source.pre is None or shift not in gradient or not fits:
                continue
            if features.users(source.node) != (user,):
                continue  # a shortcut reads it too, and its cotangent is not known
            if source.is_relu and elementwise_above(user, operator.node):
                yield Candidate(user, source, operator, str(shift), after_norm)


def _keeps_grid(operator: Operator) -> bool:
    """Stride and dilation 1, one group, an odd kernel, zeros around, enough channels."""
    call, sizes = operator.node.call, operator.matrix.shape
    assert call is not None
    stride, padding, dilation, turned, _, groups = call.args[3:9]
    places = operator.node.shape[2] * operator.node.shape[3]
    odd = sizes[2] == sizes[3] and sizes[2] % 2 == 1 and sizes[2] >= 3
    plain = {*stride, *dilation} == {1} and set(padding) == {sizes[2] // 2}
    return odd and plain and not turned and groups == 1 and max(sizes[:2]) >= places


def begin(peeling: Peeling, candidate: Candidate, factors: Factors, *, limit: float) -> bool:
    """Fix the common number, take input and cotangent for known, and hand the cotangent down.

    The sum over places of the cotangent is the gradient of the shift: one number from as many
    equations as there are channels. False where these miss by more than `limit`, relative, or the
    input is not what a ReLU can give.
    """
    told = peeling.gradient[candidate.shift]
    scale = scale_above(peeling.features, candidate.user, candidate.operator.node, told)
    told = told * scale.flatten(2)[0, :, 0] if candidate.after_norm else told
    sums = factors.cotangent.sum(1)
    number = (sums @ told) / (sums @ sums)
    apart = float((sums * number - told).norm() / told.norm().clamp_min(1e-300))
    inputs = (factors.inputs / number).view(candidate.source.node.shape)
    possible = float(-inputs.min()) <= _NEGATIVE * float(inputs.max())
    if not apart <= limit or not possible or bool((scale == 0).any()):
        return False
    peeling.know(candidate.source, inputs)
    cotangent = (factors.cotangent * number).view(candidate.operator.node.shape)
    peeling.hand_from(candidate.user, cotangent / scale)
    return True
