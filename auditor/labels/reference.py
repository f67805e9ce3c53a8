"""Pictures that the audited model is asked about: auxiliary ones, or synthetic ones of no class.

A simulated client needs, of every picture, the features of the head and the predicted
probabilities; both come from one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from auditor.problem import is_table, random_rows, to_model_units
from auditor.records import Problem

_SYNTHETIC = 300
_SYNTHETIC_LARGE = 60  # of pictures above 64x64, which are slow to pass through a model
_LARGE = 64 * 64
_MOST = 2000  # auxiliary pictures that are passed through the model
_PASS = 20  # pictures at once: the clock is looked at in between
_SIDES = (2, 4, 8, 16)  # of the coarse grids that synthetic pictures are made from


@dataclass(frozen=True)
class Reference:
    """What the audited model says of M pictures."""

    features: Tensor  # (M, E) float64, CPU: the input of the head
    probabilities: Tensor  # (M, K) float64, CPU
    labels: Tensor | None  # (M,) int64; None: the pictures are of no class
    origin: str  # "500 auxiliary images", for people


def reference_of(problem: Problem, *, seed: int, expired: Callable[[], bool]) -> Reference | None:
    """Pass the auxiliary pictures, or synthetic ones, through the audited model in its mode.

    None where the input of the head cannot be seen, the model refuses the pictures or answers with
    no numbers, or the time is over.
    """
    generator = torch.Generator().manual_seed(seed)
    given = problem.auxiliary
    if given is not None and len(given.images) > 0:
        chosen = torch.randperm(len(given.images), generator=generator)[:_MOST]
        pixels, labels = given.images[chosen], given.labels[chosen].long()
        kind = "auxiliary"
    else:
        pixels, labels, kind = _synthetic(problem, generator), None, "synthetic"
    seen = _pass(problem, pixels, expired)
    if seen is None:
        return None
    features, logits = seen
    origin = f"{len(logits)} {kind} images"
    if labels is not None:
        labels, classes = labels[: len(logits)], logits.shape[1]
        unseen = classes - len(set(labels.tolist()))
        origin += f" ({unseen} of {classes} classes have none)" if unseen else ""
    return Reference(features, torch.softmax(logits, 1), labels, origin)


def synthetic_pictures(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random smooth fields (count, C, H, W), pixels 0..1, of several scales and contrasts."""
    channels, height, width = shape
    parts = []
    for index, side in enumerate(_SIDES):
        many = count // len(_SIDES) + int(index < count % len(_SIDES))
        grey = torch.randn(many, 1, side, side, generator=generator)
        colour = torch.randn(many, channels, side, side, generator=generator)
        share = torch.rand(many, 1, 1, 1, generator=generator)
        field = F.interpolate(
            grey * share.sqrt() + colour * (1 - share).sqrt(), size=(height, width), mode="bicubic"
        )
        size = field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
        contrast = 0.1 + 0.2 * torch.rand(many, 1, 1, 1, generator=generator)
        middle = 0.2 + 0.6 * torch.rand(many, 1, 1, 1, generator=generator)
        parts.append((middle + contrast * field / size).clamp(0, 1))
    return torch.cat(parts)


def _synthetic(problem: Problem, generator: torch.Generator) -> Tensor:
    shape = problem.knowledge.input_shape
    if is_table(problem):
        return random_rows(shape, _SYNTHETIC, generator)
    large = shape[1] * shape[2] > _LARGE
    pixels = synthetic_pictures(_SYNTHETIC_LARGE if large else _SYNTHETIC, shape, generator)
    return pixels[torch.randperm(len(pixels), generator=generator)]


def _pass(
    problem: Problem, pixels: Tensor, expired: Callable[[], bool]
) -> tuple[Tensor, Tensor] | None:
    """Features (M, E) and logits (M, K) of pictures (M, C, H, W), float64 on the CPU.

    Batch norm in training mode sees batches of the client's size; what does not fill one is left.
    """
    weight = dict(problem.module.named_parameters())[problem.trace.head.weight]
    size = _PASS
    if problem.knowledge.mode == "train" and problem.trace.batch_norm:
        size = min(max(problem.knowledge.batch_size or 2, 2), len(pixels))
        pixels = pixels[: len(pixels) // size * size]
    features: list[Tensor] = []
    logits: list[Tensor] = []
    watcher = _HeadInput(weight)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for part in torch.split(pixels, size):
            inputs = to_model_units(problem, part.to(device=weight.device, dtype=weight.dtype))
            if expired():
                return None
            watcher.seen = None
            try:
                with watcher:
                    answer = problem.module(inputs)
            except (RuntimeError, ValueError):  # out of memory, or too few samples for batch norm
                return None  # what is proved must not fail because the estimate cannot be made
            if watcher.seen is None or watcher.seen.shape[:-1] != answer.shape[:-1]:
                return None
            features.append(watcher.seen.cpu().double())
            logits.append(answer.cpu().double())
    both = torch.cat(features), torch.cat(logits)
    return both if bool(both[0].isfinite().all() and both[1].isfinite().all()) else None


class _HeadInput(TorchFunctionMode):
    """Keeps what goes into the linear layer that uses one weight; hooks would change the model."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.seen = weight, None

    seen: Tensor | None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and len(args) > 1 and args[1] is self.weight:
            self.seen = args[0].detach()
        return func(*args, **(kwargs or {}))
