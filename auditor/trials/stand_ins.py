"""Pictures and dumps of simulated clients: the audited model, other data, the same channel."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.problem import gradient_of, is_table, random_rows, to_model_units
from auditor.records import Auxiliary, Channel, Problem

_COARSE = 5  # places a side of the random picture that is made smooth
SMOOTH = "smooth random pictures, because no auxiliary ones were given"
AUXILIARY = "the auxiliary pictures"
ROWS = "rows of independent normal numbers, of the columns' means and deviations"


def smooth_pictures(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """Random pictures (count, C, H, W) of soft spots, pixels 0..1; of other shapes, rows."""
    if len(shape) != 3:
        return random_rows(shape, count, generator)
    channels, height, width = shape
    coarse = torch.rand(count, channels, _COARSE, _COARSE, generator=generator)
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return fine.clamp(0, 1)


def told_of_stand_ins(problem: Problem) -> str:
    """What `stand_ins` are, in words."""
    if problem.auxiliary is not None:
        return AUXILIARY
    return ROWS if is_table(problem) else SMOOTH


def stand_ins(problem: Problem, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One batch of a simulated client: pixels 0..1 (N, C, H, W) and labels (N,), on the CPU.

    From the auxiliary pictures where the problem has some. Raises ValueError without a batch size.
    """
    size = problem.knowledge.batch_size
    if size is None:
        raise ValueError("a simulated client needs a batch size")
    if problem.auxiliary is not None:
        return _drawn(problem.auxiliary, size, generator)
    classes = problem.trace.head.classes
    pictures = smooth_pictures(problem.knowledge.input_shape, size, generator)
    return pictures, torch.randint(classes, (size,), generator=generator)


def _drawn(auxiliary: Auxiliary, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(auxiliary.images), (size,), generator=generator)
    return auxiliary.images[chosen], auxiliary.labels[chosen]


def dump_of(
    problem: Problem, pixels: Tensor, labels: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """What a client with these samples would have sent: `problem.gradient` of other data.

    Computed as the audited one, sent through the same channel, rounded to the same precision.
    `pixels` (N, C, H, W) 0..1, `labels` (N,).
    """
    like = next(iter(problem.gradient.values()))
    inputs = to_model_units(problem, pixels.to(like))
    made = gradient_of(problem, inputs, labels.to(like.device))
    sent = through(problem.channel, made, problem.gradient, generator)
    return {name: _rounded(part, problem.precision) for name, part in sent.items()}


def through(
    channel: Channel,
    made: Mapping[str, Tensor],
    dump: Mapping[str, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """A gradient under the defence of a dump: its norm, its share of zeros, its noise, its steps.

    In the order in which clients do it: clip, drop, add noise, take signs or round.
    """
    sent = dict(made)
    if channel.scaled:
        factor = min(1.0, _norm(dump) / max(_norm(sent), 1e-30))
        sent = {name: factor * part for name, part in sent.items()}
    if channel.masked:
        sent = _largest(sent, sum(int((part != 0).sum()) for part in dump.values()))
    if channel.sigma:
        sent = {name: _noised(part, channel, generator) for name, part in sent.items()}
    if channel.signs:
        sent = {name: part.sign() * dump[name].abs().max() for name, part in sent.items()}
    return {name: _stepped(part, channel.steps.get(name)) for name, part in sent.items()}


def _largest(made: Mapping[str, Tensor], kept: int) -> dict[str, Tensor]:
    """Zeros for all but the `kept` largest entries of all tensors together."""
    sizes = torch.cat([part.abs().flatten() for part in made.values()])
    least = sizes.topk(min(max(kept, 1), len(sizes))).values[-1]
    return {name: torch.where(part.abs() >= least, part, 0) for name, part in made.items()}


def _noised(part: Tensor, channel: Channel, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part)
    noisy = part + channel.sigma * drawn
    return torch.where(part == 0, 0, noisy) if channel.masked else noisy


def _stepped(part: Tensor, step: float | None) -> Tensor:
    return part if not step else (part / step).round() * step


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in tensors.values()))


def _rounded(part: Tensor, precision: float) -> Tensor:
    """To the coarsest type whose spacing is `precision`; a finer dump keeps what it has."""
    for coarse in (torch.bfloat16, torch.float16, torch.float32):
        if precision >= torch.finfo(coarse).eps / 2:
            return part.to(coarse).to(part)
    return part
