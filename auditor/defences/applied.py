"""The usual defences, as pure functions of what a client is about to send.

A gradient is a mapping from parameter names to tensors. With each defence goes what an adaptive
attacker knows of it (`Channel`): a defence that only works against one who does not know of it
protects nobody.

Sources: noise and pruning as in Zhu, Liu, Han 2019, arXiv:1906.08935; DP-SGD: Abadi et al. 2016,
arXiv:1607.00133; signs: Bernstein et al. 2018, arXiv:1802.04434; largest entries: Lin et al. 2018,
arXiv:1712.01887.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.records import Channel

Gradient = Mapping[str, Tensor]
SENT_AS = torch.float32  # by clients that do nothing about it
_LEVELS = 255  # steps of an 8-bit grid


@dataclass(frozen=True)
class Defended:
    """What was sent in place of the gradient."""

    gradient: dict[str, Tensor]
    channel: Channel  # what an adaptive attacker allows for
    precision: float = torch.finfo(SENT_AS).eps  # relative spacing of its numbers


def as_it_is(gradient: Gradient) -> Defended:
    """No defence; as all below, rounded to single precision, in the dtype that came in."""
    return Defended(rounded(gradient, SENT_AS), Channel())


def noised(gradient: Gradient, sigma: float, generator: torch.Generator) -> Defended:
    """Independent normal noise of standard deviation `sigma` on every entry."""
    sent = {name: part + sigma * _normal(part, generator) for name, part in gradient.items()}
    return Defended(rounded(sent, SENT_AS), Channel(sigma=sigma))


def clipped(gradient: Gradient, norm: float) -> Defended:
    """Scaled down to the Euclidean norm `norm`, over all tensors, when it is longer."""
    factor = clip_factor(gradient, norm)
    sent = {name: factor * part for name, part in gradient.items()}
    return Defended(rounded(sent, SENT_AS), Channel(scaled=factor < 1))


def largest_kept(gradient: Gradient, dropped: float) -> Defended:
    """Zeros for the share `dropped` of all entries, the smallest ones of all tensors together."""
    sizes = torch.cat([part.abs().flatten() for part in gradient.values()])
    count = math.floor(dropped * len(sizes))
    least = sizes.kthvalue(count).values if count else sizes.new_tensor(-1.0)
    sent = {name: torch.where(part.abs() > least, part, 0) for name, part in gradient.items()}
    return Defended(rounded(sent, SENT_AS), Channel(masked=count > 0))


def signs_of(gradient: Gradient) -> Defended:
    """The sign of every entry: -1, 0 or 1."""
    return Defended({name: part.sign() for name, part in gradient.items()}, Channel(signs=True))


def as_int8(gradient: Gradient) -> Defended:
    """On a grid of 256 levels a tensor, zero among them, and back (affine quantisation)."""
    widths = {name: _width(part) for name, part in gradient.items()}
    sent = {name: _on_grid(part, widths[name]) for name, part in gradient.items()}
    steps = {name: width for name, width in widths.items() if width > 0}
    return Defended(rounded(sent, SENT_AS), Channel(steps=steps))


def as_type(gradient: Gradient, dtype: torch.dtype) -> Defended:
    """Rounded to `dtype`. The channel is clear: its spacing is the precision of the dump."""
    return Defended(rounded(gradient, dtype), Channel(), torch.finfo(dtype).eps)


def without(gradient: Gradient, names: Sequence[str]) -> Defended:
    """All tensors but those called `names`: frozen, or not sent."""
    return as_it_is({name: part for name, part in gradient.items() if name not in names})


def privately(
    samples: Sequence[Gradient],
    norm: float,
    multiplier: float,
    generator: torch.Generator,
    *,
    mean: bool,
) -> Defended:
    """One step of DP-SGD: each sample's gradient clipped to `norm`, summed, noised.

    `samples`: the gradient of each one's own loss. The noise has standard deviation `multiplier` *
    `norm` on the sum; with `mean` both are divided by the number of samples.
    """
    share = 1 / len(samples) if mean else 1.0
    factors = [clip_factor(sample, norm) for sample in samples]
    total = {
        name: share
        * torch.stack([f * s[name] for f, s in zip(factors, samples, strict=True)]).sum(0)
        for name in samples[0]
    }
    sent = noised(total, share * multiplier * norm, generator)
    channel = Channel(sigma=sent.channel.sigma, scaled=min(factors) < 1)
    return Defended(sent.gradient, channel)


def clip_factor(gradient: Gradient, norm: float) -> float:
    """What clipping to `norm` multiplies the gradient with, at most 1."""
    return min(1.0, norm / max(norm_of(gradient), torch.finfo(torch.float64).tiny))


def norm_of(gradient: Gradient) -> float:
    """The Euclidean norm over all tensors."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))


def cosine(one: Gradient, other: Gradient) -> float | None:
    """Of the angle between two gradients, -1..1; a tensor that one of them lacks is zero there.

    None when one of them is zero.
    """
    both = [name for name in one if name in other]
    product = sum(float((one[name].double() * other[name].double()).sum()) for name in both)
    sizes = norm_of(one) * norm_of(other)
    return max(-1.0, min(1.0, product / sizes)) if sizes > 0 else None


def rounded(gradient: Gradient, dtype: torch.dtype) -> dict[str, Tensor]:
    """Each entry the nearest number of `dtype`, in the tensors' own dtype."""
    return {name: part.to(dtype).to(part.dtype) for name, part in gradient.items()}


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _width(part: Tensor) -> float:
    """Between two levels of the grid; it has to reach from the least to the largest, and zero."""
    low, high = float(part.min().clamp_max(0)), float(part.max().clamp_min(0))
    return (high - low) / _LEVELS


def _on_grid(part: Tensor, width: float) -> Tensor:
    if width == 0:
        return torch.zeros_like(part)
    lowest = round(float(part.min().clamp_max(0)) / width)
    return (part / width).round().clamp(lowest, lowest + _LEVELS) * width
