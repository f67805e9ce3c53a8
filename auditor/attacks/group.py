"""Group consistency: restarts that search together, each pulled to what the others found.

Restarts of one search miss the picture in different ways, and their mean misses it by less. So each
is drawn to the mean of all, with a weight that grows from nothing, after the others were moved onto
it: a network that averages over places hardly tells a picture from one that is a pixel to the left.
After GradInversion (Yin et al. 2021, arXiv:2104.07586). Pictures are registered by whole pixels:
the differences of all shifts at once come from Fourier transforms (masked registration: Padfield
2012, IEEE Transactions on Image Processing 21(5)). Phase correlation missed most known shifts of
soft pictures in our tests, because their edges do not wrap around.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.solve import ValueAndGradient

FARTHEST = 4  # pixels that a restart may be moved, down and across; a quarter of a small picture
_NEARER = 0.9  # times the mean squared difference in place: below, a restart is moved


def drawn_together(
    alone: ValueAndGradient,
    pixels_of: Callable[[Tensor], Tensor],
    *,
    weight: float,
    calls: int,
) -> ValueAndGradient:
    """`alone` plus a pull of every row to the registered mean of all.

    `pixels_of` turns rows (R, D) into pictures (R, N, C, H, W), with a graph. The pull is the mean
    squared difference to the mean; its weight grows in a straight line over `calls` calls.
    """
    done = 0

    def together(rows: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal done
        share, done = min(done / max(calls, 1), 1.0), done + 1
        values, gradients = alone(rows)
        leaf = rows.detach().requires_grad_()
        with torch.enable_grad():
            pictures = pixels_of(leaf)
            apart = (pictures - consensus(pictures.detach())).square().flatten(1).mean(1)
            (pull,) = torch.autograd.grad(apart.sum(), leaf)
        return values + share * weight * apart.detach(), gradients + share * weight * pull

    return together


def consensus(pictures: Tensor) -> Tensor:
    """For each of R restarts (R, N, C, H, W) the mean of all, moved onto it; in the same shape."""
    means = []
    for mine in pictures:
        moved = [
            torch.stack([registered(b, a) for a, b in zip(mine, o, strict=True)]) for o in pictures
        ]
        means.append(torch.stack(moved).mean(0))
    return torch.stack(means)


def registered(moving: Tensor, onto: Tensor) -> Tensor:
    """(C, H, W) moved by whole pixels onto another; what comes in at the edge is that of `onto`."""
    down, across = shift_between(moving, onto)
    if down == 0 and across == 0:
        return moving
    inside = torch.ones_like(moving[:1], dtype=torch.bool)
    inside[:, : max(down, 0)] = False
    inside[:, moving.shape[1] + min(down, 0) :] = False
    inside[:, :, : max(across, 0)] = False
    inside[:, :, moving.shape[2] + min(across, 0) :] = False
    return torch.where(inside, moving.roll((down, across), (1, 2)), onto)


def shift_between(moving: Tensor, onto: Tensor) -> tuple[int, int]:
    """By how many pixels, down and across, `moving` (C, H, W) is to be moved; FARTHEST at most.

    To where the mean squared difference of what overlaps is least, if it is clearly less there.
    """
    ones = torch.ones_like(onto)
    squares = _sums(onto.square(), ones) + _sums(ones, moving.square()) - 2 * _sums(onto, moving)
    means = squares / _sums(ones, ones)
    height, width = (side // 2 for side in means.shape)
    place = int(means.argmin())
    if not float(means.flatten()[place]) < _NEARER * float(means[height, width]):
        return 0, 0
    return place // means.shape[1] - height, place % means.shape[1] - width


def _sums(onto: Tensor, moving: Tensor) -> Tensor:
    """The sum of products where both are, for every shift: zero in the middle."""
    sides = onto.shape[1:]
    padded = [2 * side for side in sides]
    spectra = [torch.fft.rfft2(one, s=padded) for one in (onto, moving)]
    found: Tensor = torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=padded).sum(0)
    height, width = (min(FARTHEST, side // 4) for side in sides)
    near: Tensor = found.roll((height, width), (0, 1))
    return near[: 2 * height + 1, : 2 * width + 1]
