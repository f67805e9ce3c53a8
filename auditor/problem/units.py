"""Pixels 0..1, the units of a model, and those of a table's columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.records import Problem

_ON_GRID = 0.1  # grey levels
_UNIFORM = 1 / math.sqrt(12)  # deviation of a uniform number of width 1
_LEVELS = 20  # between black and white; by chance on the grid: 0.2^20 is 1e-14, 0.5^20 is 1e-6


def is_table(problem: Problem) -> bool:
    """Whether the model takes rows of a table, (D,), and not pictures."""
    return problem.knowledge.modality == "features"


def to_model_units(problem: Problem, pixels: Tensor) -> Tensor:
    """(..., C, H, W) pixels 0..1, or (..., D) as of `to_pixels`, to what the model takes."""
    mean, std = pixels_of_units(problem, pixels)
    return (pixels - mean) / std


def to_pixels(problem: Problem, inputs: Tensor) -> Tensor:
    """(..., C, H, W) in model units to pixels, clipped to 0..1.

    Rows of a table (..., D): each column less its mean, in the width of a uniform one of its
    deviation, around 1/2; not clipped. So mean 1/2 and variance 1/12 stand for what is known of a
    number before a dump is seen, of pixels and of columns alike, and dB mean the same error.
    """
    mean, std = pixels_of_units(problem, inputs)
    pixels = inputs * std + mean
    return pixels if is_table(problem) else pixels.clamp(0, 1)


def to_own_units(problem: Problem, inputs: Tensor) -> Tensor:
    """Model units to what the client has: (..., C, H, W) pixels, or (..., D) in their own units."""
    if not is_table(problem):
        return to_pixels(problem, inputs)
    known = problem.knowledge
    return inputs * _along(known.std, inputs) + _along(known.mean, inputs)


def from_own_units(problem: Problem, own: Tensor) -> Tensor:
    """What the client has to pixels, as `to_pixels` gives them."""
    if not is_table(problem):
        return own
    known = problem.knowledge
    return to_pixels(problem, (own - _along(known.mean, own)) / _along(known.std, own))


def is_in_range(problem: Problem, inputs: Tensor) -> bool:
    """Whether inputs (..., C, H, W) in model units are pixels 0..1, up to a hundredth.

    The columns of a table (..., D) have no known range: any finite number is in it.
    """
    if is_table(problem):
        return bool(inputs.isfinite().all())
    mean, std = pixels_of_units(problem, inputs)
    pixels = inputs * std + mean
    return bool(((pixels > -0.01) & (pixels < 1.01)).all())


def is_on_grid(pixels: Tensor) -> bool:
    """Whether pixels 0..1 have many levels, and all are multiples of 1/255 to a tenth of one."""
    levels = 255 * pixels.double()
    whole = levels.round()
    between = {level for level in whole.flatten().tolist() if 0 < level < 255}
    return len(between) >= _LEVELS and bool(((levels - whole).abs() < _ON_GRID).all())


def pixels_of_units(problem: Problem, like: Tensor) -> tuple[Tensor, Tensor]:
    """Offset and factor of model units to pixels, (C, 1, 1) each; (D,) of a table."""
    known = problem.knowledge
    if is_table(problem):
        return torch.full_like(_along(known.scales, like), 0.5), _UNIFORM / _along(
            known.scales, like
        )
    return _along(known.mean, like).view(-1, 1, 1), _along(known.std, like).view(-1, 1, 1)


def has_grid(problem: Problem) -> bool:
    """Whether inputs may be multiples of 1/255: those of cameras and files are, tables are not."""
    return not is_table(problem)


def random_rows(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """Rows of a table (count, D), independent and normal, in the units of `to_pixels`."""
    return 0.5 + _UNIFORM * torch.randn(count, *shape, generator=generator)


def _along(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)
