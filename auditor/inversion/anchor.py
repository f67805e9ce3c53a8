"""The input of a linear layer, from its own gradients.

For one sample the weight gradient is d x' with d the cotangent of the layer's output, which is the
bias gradient: x = G'd / |d|^2, whatever comes later (Phong et al. 2017; Geiping et al. 2020,
arXiv:2003.14053). Without a bias G gives x up to a factor: for x = t v the layers above make
a cotangent d(t), and t d(t) = G v has to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.graph import constant, replay
from auditor.inversion.layers import Chain

_GRID = 120  # scales tried each way, evenly on a logarithmic scale
_SMALLEST, _LARGEST = -3.0, 4.0  # powers of ten, relative to the root mean square of a value
_GOLDEN = 0.6180339887498949
_SHRINKS = 60
# A scale that misses by so many times the least, or by so much of G, may be the right one too.
_AS_GOOD, _FITS = 10.0, 1e-4
_CLOSE = 141  # scales tried near the best one
_SAME = 1e-3  # relative distance of two refinements of one minimum
# Where the misfit grows less than so many times as fast as the scale, rounding decides the scale.
_STEP, _FLAT = 1e-3, 0.05
_NOTHING = 1e-30  # a cotangent below this is no number of a float32 dump


@dataclass(frozen=True)
class Anchored:
    """What the anchor says, for each row."""

    values: Tensor  # (B, E) its input
    cotangent: Tensor  # (B, E) of that input
    off_rank: Tensor  # (B,) distance of the weight gradient from rank one, relative; inf for zero
    scales: int  # that fit; a layer without a bias may leave a choice


def read_anchor(
    chain: Chain,
    gradient: Mapping[str, Tensor],
    cotangent_of_logits: Callable[[Tensor], Tensor],
) -> Anchored:
    """The anchor's input from gradients (B, *parameter) of one sample each.

    `cotangent_of_logits` takes logits (1, K) to the gradient of the loss; it is asked only when
    there is no bias.
    """
    anchor = chain.anchor
    assert anchor.weight is not None, "an anchor has a weight of its own"
    matrix = gradient[anchor.weight]
    matrix = matrix.mT if anchor.flips else matrix  # (B, M, E)
    if anchor.bias is not None and anchor.bias in gradient:
        delta = gradient[anchor.bias]
        size = delta.square().sum(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
        values = torch.einsum("bme,bm->be", matrix, delta) / size
        scales = 1
    else:
        rows = [_scaled(chain, row, cotangent_of_logits) for row in matrix]
        values, delta = (torch.stack(part) for part in list(zip(*rows, strict=True))[:2])
        scales = max(count for _, _, count in rows)
    apart = (matrix - delta[:, :, None] * values[:, None]).flatten(1).norm(dim=1)
    weight = constant(anchor.matrix).to(delta)
    weight = weight if anchor.node.operation == "linear" else weight.mT  # (M, E)
    size = matrix.flatten(1).norm(dim=1)
    off_rank = torch.where(delta.norm(dim=1) > _NOTHING, apart / size, torch.inf)
    return Anchored(values, delta @ weight, off_rank, scales)


def _scaled(
    chain: Chain, matrix: Tensor, cotangent_of_logits: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, int]:
    """Input (E,) and cotangent (M,) of an anchor without a bias gradient, from G (M, E).

    And how many scales explain G about as well as the best; two for one that is nearly double.
    """
    row = matrix[int(matrix.norm(dim=1).argmax())]
    direction = row / row.norm().clamp_min(torch.finfo(row.dtype).tiny)
    image = matrix @ direction  # t d(t)
    size = float(image.norm())
    if size == 0:
        return direction, image, 1

    def miss(scale: Tensor) -> float:
        found = _cotangent(chain, scale * direction, cotangent_of_logits)
        return float((scale * found - image).norm())

    powers = torch.linspace(_SMALLEST, _LARGEST, _GRID, dtype=row.dtype, device=row.device)
    ladder = 10**powers * len(direction) ** 0.5
    found = _valleys(miss, torch.cat([-ladder.flip(0), ladder]), size)
    if found:  # neighbours that share a rung of the ladder
        best = min(found, key=lambda scale: found[scale])
        close = torch.linspace(0.7, 1.4, _CLOSE, dtype=row.dtype, device=row.device)
        found |= _valleys(miss, (best * close).sort().values, size)
    scale, least = min(found.items(), key=lambda item: item[1], default=(ladder[0], size))
    limit = max(_AS_GOOD * least, _FITS * size)
    fitting = [other for other, depth in found.items() if depth <= limit]
    apart = sum(float((other / scale - 1).abs()) > _SAME for other in fitting)
    steep = min(miss(scale * (1 + step)) for step in (-_STEP, _STEP)) / (_STEP * size)
    return scale * direction, image / scale, 1 + apart + (steep < _FLAT)


def _valleys(miss: Callable[[Tensor], float], scales: Tensor, size: float) -> dict[Tensor, float]:
    """The local minima of `miss` below half of `size` over sorted `scales`, refined."""
    misses = torch.tensor([miss(scale) for scale in scales])
    inner = (misses[1:-1] <= misses[:-2]) & (misses[1:-1] <= misses[2:])
    inner &= misses[1:-1] < size / 2
    places = (inner.nonzero().flatten() + 1).tolist()
    found = [_minimum(miss, scales[place - 1], scales[place + 1]) for place in places]
    return {scale: miss(scale) for scale in found}


def _minimum(miss: Callable[[Tensor], float], low: Tensor, high: Tensor) -> Tensor:
    """Golden section search (Kiefer 1953) in [low, high]."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = miss(left), miss(right)
    for _ in range(_SHRINKS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = miss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = miss(right)
    return (low + high) / 2


def _cotangent(
    chain: Chain, values: Tensor, cotangent_of_logits: Callable[[Tensor], Tensor]
) -> Tensor:
    """What the layers above make of the anchor's input (E,): the cotangent of its output (M,)."""
    node = chain.anchor.node
    output = replay((node,), chain.data, values.view(chain.data.shape))
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        logits = replay(chain.above, node, leaf) if chain.above else leaf
        (found,) = torch.autograd.grad(logits, leaf, cotangent_of_logits(logits.detach()))
    return found.reshape(-1)
