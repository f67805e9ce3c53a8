"""The inverse of a link's normal matrix, where the link is small or its shape helps.

The weight-gradient equations of a convolution are the same for every input channel: with K their
matrix for one channel and A the forward equations, the normal matrix is A'A + s^2 (I x K'K). When K
has as many rows as a channel has pixels, K'K is inverted channel by channel and A'A is added by
the identity of Sherman, Morrison and Woodbury, with one small matrix as wide as A is high.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.inversion.systems import LinkSystem

Inverse = Callable[[Tensor], Tensor]  # rows (B, n) to rows (B, n)

DENSE = 1024  # unknowns up to which the normal matrix is formed
LAST_RESORT = 4096  # the same, where the iteration alone did not arrive (seconds on one core)
_HIGH = 1024  # rows of A
_WORK = 6e9  # multiplications
_POWERS = 4  # of a power iteration
_RIDGE = 1e-12  # relative to the largest diagonal entry: keeps a singular matrix invertible


def inverse_of(system: LinkSystem, *, dense: int | None = None) -> Inverse | None:
    """The inverse of the first row's normal matrix, up to a small ridge; None when too large.

    Up to `dense` unknowns (None: DENSE) the matrix is formed.
    """
    if system.operator.unknowns <= (DENSE if dense is None else dense):
        return _dense(system)
    return _by_channel(system) if _has_tall_channels(system) else None


def condition_by(system: LinkSystem, inverse: Inverse) -> float:
    """A lower bound of the condition number of the equations, by power iteration both ways."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(system.weights), system.operator.unknowns)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(system.weights)
    largest = _growth(lambda rows: system.adjoint(system.forward(rows)), drawn)
    return float((largest * _growth(inverse, drawn)).sqrt().max())


def _growth(apply: Inverse, rows: Tensor) -> Tensor:
    """About the largest eigenvalue (B,) of a symmetric positive map, never more."""
    for _ in range(_POWERS):
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        image = apply(rows)
        quotient, rows = (rows * image).sum(1), image
    return quotient


def _dense(system: LinkSystem) -> Inverse | None:
    like = system.weights
    rows = system.alone().forward(
        torch.eye(system.operator.unknowns, dtype=like.dtype, device=like.device)
    )
    factor = _factor(rows @ rows.mT)
    if factor is None:
        return None
    return lambda right: torch.cholesky_solve(right.mT, factor).mT


def _factor(normal: Tensor) -> Tensor | None:
    """Lower triangular Cholesky factor (n, n), with a small ridge; None where there is none."""
    ridge = _RIDGE * normal.diagonal().max()
    identity = torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    factor, failed = torch.linalg.cholesky_ex(normal + ridge * identity)
    return None if failed.any() or not factor.isfinite().all() else factor


def pays_at_once(system: LinkSystem) -> bool:
    """Whether the iteration alone would rather be slower: large systems whose shape helps."""
    return system.operator.unknowns > DENSE and _has_tall_channels(system)


def _has_tall_channels(system: LinkSystem) -> bool:
    operator = system.operator
    if operator.operator is None or not operator.operator.convolves or not system.sends:
        return False
    plain = operator.before.trivial and operator.after.trivial and operator.patches.groups == 1
    channels, height, width = operator.patches.shape
    outputs, places = operator.weight.shape[1], system.delta.shape[-1]
    tall = outputs * operator.weight.shape[2] // channels >= height * width
    high = outputs * places
    return plain and tall and high <= _HIGH and high**2 * operator.unknowns <= _WORK


def _by_channel(system: LinkSystem) -> Inverse | None:
    channels = system.operator.patches.shape[0]
    pixels = system.operator.unknowns // channels
    forward, told = _matrices(system)  # (O L, C, pixels), (O k^2, pixels)
    factor = _factor(told.mT @ told)
    if factor is None:
        return None
    identity = torch.eye(pixels, dtype=told.dtype, device=told.device)
    root: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    # B = A R^-1, channel by channel, for R' R = K'K. In single precision it was too coarse.
    b = (forward.flatten(0, 1) @ root.mT).reshape(len(forward), -1)
    identity = torch.eye(len(b), dtype=b.dtype, device=b.device)
    small, failed = torch.linalg.cholesky_ex(b @ b.mT + identity)
    if failed.any():
        return None

    def apply(right: Tensor) -> Tensor:
        half = (right.view(-1, pixels) @ root.mT).view_as(right)
        half = half - torch.cholesky_solve(b @ half.mT, small).mT @ b
        return (half.view(-1, pixels) @ root).view_as(right)

    return apply


def _matrices(system: LinkSystem) -> tuple[Tensor, Tensor]:
    """A (O L, C, pixels) and K (O k^2, pixels), with their weights."""
    operator = system.operator
    patches, delta = operator.patches, system.delta[0, 0]  # (O, L)
    channels, *size = patches.shape
    outputs, places = delta.shape
    pixels = size[0] * size[1]
    # Where each value of a patch comes from: 0 is padding.
    numbers = torch.arange(1, pixels + 1, dtype=delta.dtype, device=delta.device)
    one = type(patches)(
        (1, *size), patches.kernel, patches.stride, patches.padding, patches.dilation
    )
    source = one.forward(numbers[None])[0, 0].round().long()  # (k^2, L)
    taps = len(source)
    weight = operator.weight[0].view(outputs, channels, taps)
    forward = delta.new_zeros(outputs, places, channels, pixels + 1)
    told = delta.new_zeros(outputs, taps, pixels + 1)
    place = torch.arange(places, device=delta.device)
    for tap in range(taps):
        forward[:, place, :, source[tap]] += weight[None, :, :, tap]
        told[:, tap, source[tap]] = delta
    forward = forward[..., 1:].reshape(outputs * places, channels, pixels)
    return (
        forward * system.weights[0].view(-1, 1, 1),
        (system.scale[0, 0, :, :, None] * told[..., 1:]).reshape(outputs * taps, pixels),
    )
