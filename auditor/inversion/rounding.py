"""Fresh errors of the size that a dump's own may have: what two readings share is not rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def disturbed(sent: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """A tensor of any shape with errors of relative size `noise`."""
    drawn = torch.randn(sent.shape, generator=generator, dtype=torch.float64).to(sent)
    size = sent.abs() + sent.square().mean().sqrt()  # each entry's own rounding, and the sums'
    return sent + noise * size * drawn
