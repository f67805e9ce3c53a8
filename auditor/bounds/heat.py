"""The error bar of every pixel as a picture, with colours that mean the same in every report.

It shows the shapes of the picture that was rebuilt: it may go where that picture may go, and
nowhere else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.bounds.fisher import PRIOR, Fisher

# A tenth of a grey level of 255, and what is known of a pixel without any dump: 74 grey levels.
FINEST, COARSEST = 0.1 / 255, math.sqrt(PRIOR)
# From small errors to large ones. Dark to light with steadily rising lightness, so that it can be
# read without colour vision and in grey (the idea of viridis: Smith, van der Walt 2015).
_COLOURS = (
    (0.05, 0.03, 0.30),
    (0.25, 0.10, 0.50),
    (0.55, 0.16, 0.50),
    (0.83, 0.29, 0.40),
    (0.97, 0.55, 0.33),
    (0.99, 0.94, 0.70),
)


def error_bars(fisher: Fisher) -> Tensor:
    """(N, H, W) standard deviation of each place, root mean square over its channels, pixel units.

    With the prior of van Trees, so at most sqrt(1/12).
    """
    return fisher.posterior.double().cpu().mean(1).sqrt()


def heat_map(fisher: Fisher) -> Tensor | None:
    """(N, 3, H, W) colours 0..1: dark where a place is told best, light where it is told worst.

    Logarithmic from `FINEST` to `COARSEST`. None for what random probes gave: their noise would be
    taken for structure.
    """
    if fisher.method != "dense":
        return None
    share = (error_bars(fisher) / FINEST).log() / math.log(COARSEST / FINEST)
    return _coloured(share.clamp(0, 1))


def _coloured(share: Tensor) -> Tensor:
    """(N, H, W) 0..1 to (N, 3, H, W), linear between the colours."""
    table = torch.tensor(_COLOURS, dtype=share.dtype)
    place = share * (len(table) - 1)
    below = place.floor().long().clamp(max=len(table) - 2)
    rest = (place - below)[..., None]
    mixed = table[below] * (1 - rest) + table[below + 1] * rest  # (N, H, W, 3)
    return mixed.permute(0, 3, 1, 2)
