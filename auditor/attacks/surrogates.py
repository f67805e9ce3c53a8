"""What a network does inside a search that is not what it does: kinder derivatives, open taps.

The derivative of ReLU jumps, so the gradient of a ReLU network is the same for many inputs, and its
own derivative says nothing of which units are on. In the search alone, the slope of ReLU may be the
logistic function of b times its input, which becomes the true one as b grows; its value stays. The
same pass can keep what batch norm saw. Whatever is found so is checked with the true network.

Functions are met where torch dispatches them, so any module written in Python is covered, however
it spells ReLU; TorchScript is not, and runs unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_RELUS = (F.relu, torch.relu, Tensor.relu)  # those in place change what others may still read


@dataclass(frozen=True)
class Seen:
    """What one batch norm in evaluation mode met."""

    inputs: Tensor  # (N, C, ...)
    mean: Tensor  # (C,) running
    variance: Tensor  # (C,) running


class Surrogates(TorchFunctionMode):
    """Active inside `with`. `sharpness`: b of the slope of ReLU; None leaves ReLU alone."""

    def __init__(self, *, sharpness: float | None = None, statistics: bool = False) -> None:
        super().__init__()
        self.sharpness, self.statistics = sharpness, statistics
        self.seen: list[Seen] = []
        self.relus = 0  # how often a slope was replaced

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if self.sharpness is not None and func in _RELUS:
            self.relus += 1
            return smooth_slope(args[0] if args else named["input"], self.sharpness)
        if self.statistics and func is F.batch_norm:
            self._keep(args, named)
        return func(*args, **named)

    def _keep(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        given = {**dict(zip(("input", "running_mean", "running_var"), args, strict=False)), **named}
        if given.get("running_mean") is not None and given.get("running_var") is not None:
            self.seen.append(Seen(given["input"], given["running_mean"], given["running_var"]))


def smooth_slope(inputs: Tensor, sharpness: float) -> Tensor:
    """ReLU in value; its slope is the logistic function of `sharpness` times the input."""
    soft = F.softplus(inputs * sharpness) / sharpness
    return soft + (inputs.clamp_min(0) - soft).detach()


def statistics_distance(seen: Sequence[Seen]) -> Tensor:
    """How far means and variances over samples and places are from the running ones, ().

    Per channel and layer: the squared difference of the means, over the running variance, plus the
    squared logarithm of the ratio of the variances; then the mean of all. After GradInversion (Yin
    et al. 2021, arXiv:2104.07586), which sums the norms of plain differences.
    """
    parts = []
    for layer in seen:
        flat = layer.inputs.transpose(0, 1).flatten(1)  # (C, N * places)
        variance = layer.variance.clamp_min(1e-8)
        apart = (flat.mean(1) - layer.mean).square() / variance
        ratio = (flat.var(1, correction=0) / variance).clamp_min(1e-4).log()
        parts.append((apart + ratio.square()).mean())
    return torch.stack(parts).mean()
