"""What the numbers of a dump look like: zeros, signs, grids, types, norms. No model is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.inputs.precision import coarsest_spacing

Tensors = Mapping[str, Tensor]
_ENOUGH = 50  # of the smallest entries: near zero those of a gradient lie 50 times apart, not 3
_GAP = 3.0
_ROWS = 8  # in which they have to lie
_TELLING = 5  # different sizes that a tensor needs to show a grid
_LEVELS = 256
_GLANCE = 1 << 16  # entries of a large tensor that show whether there are more sizes than levels
_ON_GRID = 2e-3  # of a step
_MULTIPLES = 8  # steps that the smallest entry of a small tensor may be away from zero
_ROUND = 3e-6  # relative
_SIXTEEN_BITS = torch.finfo(torch.float16).eps
_LEAST_HALF = torch.finfo(torch.float16).smallest_normal * _SIXTEEN_BITS
_MOST = 0.9  # of the entries


@dataclass(frozen=True)
class Zeros:
    """Exact zeros, and whether a threshold made them."""

    share: float  # of all entries
    each: Mapping[str, float]  # share in each tensor that holds any and is not empty
    threshold: float | None  # smallest entry that is left; None: no threshold shows
    together: bool  # one threshold for all tensors, or a share of each


@dataclass(frozen=True)
class Clipped:
    """A Euclidean norm that is a round number, or that several tensors share."""

    norm: float
    each: bool  # of each tensor, not over all


def zeros_of(tensors: Tensors) -> Zeros:
    """Which entries are zero. Pruning keeps the largest: nothing is left just above zero.

    Zeros of dead units, of dark pixels and of empty tensors leave the other entries as they were.
    """
    left = {name: int(part.count_nonzero()) for name, part in tensors.items()}
    filled = {name: part for name, part in tensors.items() if left[name]}
    total = sum(part.numel() for part in filled.values())
    each = {n: 1 - left[n] / p.numel() for n, p in filled.items() if left[n] < p.numel()}
    share = sum(each[name] * filled[name].numel() for name in each) / max(total, 1)
    if not each:
        return Zeros(0.0, {}, None, together=False)
    large = [name for name in each if left[name] > _ENOUGH]
    cuts = [cut for name in large if (cut := _cut_at([filled[name]])) is not None]
    if len(cuts) > 1 and 2 * len(cuts) > len(large) and max(cuts) > _GAP * min(cuts):
        return Zeros(share, each, max(cuts), together=False)
    threshold = _cut_at(list(filled.values()))
    if threshold is None:
        return Zeros(share, each, None, together=False)
    # Tensors that it emptied count, too.
    share = 1 - sum(left.values()) / sum(part.numel() for part in tensors.values())
    return Zeros(share, each, threshold, together=True)


def _cut_at(parts: list[Tensor]) -> float | None:
    """The smallest entry that is left, if many of about its size are, in many rows; else None.

    In one row alone a unit may be small: its entries are then as much alike as the pixels are.
    """
    counted, every = (sum(counts) for counts in zip(*map(_counts, parts), strict=True))
    if counted <= 2 or counted == every:
        return None
    least = min(_least(part) for part in parts)
    needed = min(_ENOUGH, counted // 2) if counted <= 0.1 * every else _ENOUGH
    low = [(part != 0) & (part.abs() < _GAP * least) for part in parts]
    alike = torch.cat([part[near] for part, near in zip(parts, low, strict=True)])
    if len(_different(alike)) <= needed:
        return None
    near = sum(int(_rows(mask).any(1).sum()) for mask in low)
    any_left = sum(int(_rows(part != 0).any(1).sum()) for part in parts)
    return least if near >= min(_ROWS, (any_left + 1) // 2) else None


def _counts(part: Tensor) -> tuple[int, int]:
    """Entries that are not zero, and all."""
    return int(part.count_nonzero()), part.numel()


def _least(part: Tensor) -> float:
    """The smallest size of an entry but zero; infinity where there is none."""
    sizes = part[part != 0].abs()
    return float(sizes.min()) if len(sizes) else math.inf


def _rows(part: Tensor) -> Tensor:
    return part.reshape(len(part) if part.ndim else 1, -1)


def signs_of(tensors: Tensors) -> float | None:
    """The size that all entries of a tensor share, the mean over tensors; None: they do not."""
    scales = []
    for part in tensors.values():
        sizes = part[part != 0].abs()
        if sizes.numel() < 2:
            continue
        low, high = (float(end) for end in sizes.aminmax())
        if high - low > 1e-6 * high:
            return None
        scales.append(float(sizes.double().mean()))
    return sum(scales) / len(scales) if len(scales) > 1 else None


def steps_of(tensors: Tensors) -> dict[str, float]:
    """By tensor, the width of a grid of at most 256 levels, when nearly all entries lie on one."""
    told = {name: found for name, p in tensors.items() if len(found := _sizes(p)) >= _TELLING}
    steps = {n: step for n, s in told.items() if (step := _step_of(tensors[n], s)) is not None}
    counted = sum(tensors[name].numel() for name in told)
    return steps if sum(tensors[n].numel() for n in steps) > _MOST * counted > 0 else {}


def _sizes(part: Tensor) -> Tensor:
    """Different sizes of entries, ascending; more than there are levels are not looked for."""
    every = part.detach().flatten()
    few = _different(every[:: -(-len(every) // _GLANCE) or 1])  # of a large tensor, here and there
    return few if len(few) > _LEVELS or len(every) <= _GLANCE else _different(every)


def _different(entries: Tensor) -> Tensor:
    """The different sizes (n,) of some entries but zero, ascending, in double precision."""
    return torch.as_tensor(torch.unique(entries[entries != 0].abs())).double()


def _step_of(part: Tensor, sizes: Tensor) -> float | None:
    """The widest step of which all entries, of different `sizes`, are multiples."""
    if len(sizes) > _LEVELS:
        return None
    apart = sizes.diff().min()
    low, high = (end.double() for end in part.aminmax())
    whole = [float(high.clamp_min(0) - low.clamp_max(0))]
    candidates = [float(s) / m for s in (sizes[0], apart) for m in range(1, _MULTIPLES + 1)]
    candidates += [w / n for w in (*whole, float(sizes[-1])) for n in (127, 128, 255)]
    for step in sorted(candidates, reverse=True):
        levels = sizes / step
        near = (levels - levels.round()).abs() < _ON_GRID
        if step > 0 and float(levels[-1]) < _LEVELS and bool(near.all()):
            return step
    return None


def spacings_of(tensors: Tensors) -> dict[str, float]:
    """By tensor, `eps` of the coarsest floating type that holds all its entries."""
    return {name: coarsest_spacing([part]) for name, part in tensors.items()}


def sixteen_bits(spacings: Mapping[str, float], tensors: Tensors) -> float | None:
    """The spacing of a dump of 16-bit numbers; None when a tenth of its entries need more."""
    told = {n: p.numel() for n, p in tensors.items() if bool((p != 0).any())}
    coarse = {n: spacings[n] for n in told if spacings[n] >= _SIXTEEN_BITS}
    if not sum(told[n] for n in coarse) > _MOST * sum(told.values()) > 0:
        return None
    return min(coarse.values())


def clipped_to(tensors: Tensors, spacing: float) -> Clipped | None:
    """The norm that the dump was clipped to, if it is a round number, or one of each tensor.

    Round: at most two digits, the second one 0 or 5. A norm is that by chance once in 20,000 dumps.
    """
    norms = [float(part.double().norm()) for part in tensors.values()]
    count = sum(part.numel() for part in tensors.values())
    near = max(_ROUND, 2 * spacing / math.sqrt(max(count, 1)))
    total = math.sqrt(sum(norm**2 for norm in norms))
    if near < 1e-4 and _is_round(total, near):
        return Clipped(_rounded(total), each=False)
    longest = max(norms, default=0.0)
    equal = [norm for norm in norms if longest > 0 and abs(norm - longest) <= near * longest]
    return Clipped(longest, each=True) if len(equal) > 2 else None


def _is_round(norm: float, near: float) -> bool:
    return norm > 0 and abs(norm - _rounded(norm)) <= near * norm


def _rounded(norm: float) -> float:
    """The nearest number of the form 1, 1.5, 2, 2.5 ... times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(norm) + 1e-9)
    return round(2 * norm / unit) / 2 * unit


def saturated(tensors: Tensors) -> float | None:
    """The size at which entries were cut off one by one; None: no three share the largest."""
    largest = max((float(part.abs().max()) for part in tensors.values() if part.numel()), default=0)
    if not largest > 0:
        return None
    ends = sum(int((part.abs() == largest).sum()) for part in tensors.values())
    return largest if ends > 2 else None


def empty_tensors(tensors: Tensors) -> tuple[str, ...]:
    """Names of tensors that are zero everywhere."""
    return tuple(name for name, part in tensors.items() if not bool((part != 0).any()))


@dataclass(frozen=True)
class Forms:
    """All of the above."""

    zeros: Zeros
    signs: float | None  # their size
    steps: Mapping[str, float]
    spacings: Mapping[str, float]
    sixteen_bits: float | None  # spacing
    clipped: Clipped | None
    saturated: float | None
    empty: tuple[str, ...]

    @property
    def pruned(self) -> bool:
        """Whether a threshold made zeros."""
        return self.signs is None and self.zeros.threshold is not None


def forms_of(tensors: Tensors, precision: float) -> Forms:
    """Look at the numbers of a dump, whose relative precision is `precision`."""
    signs, spacings = signs_of(tensors), spacings_of(tensors)
    steps = {} if signs is not None else steps_of(tensors)
    if steps and all(_is_of_half(step) for step in steps.values()):
        steps, spacings = {}, {name: min(s, _SIXTEEN_BITS) for name, s in spacings.items()}
    bits = None if signs is not None or steps else sixteen_bits(spacings, tensors)
    plain = signs is None and not steps
    return Forms(
        zeros_of(tensors),
        signs,
        steps,
        spacings if plain else {},
        bits,
        clipped_to(tensors, precision),
        saturated(tensors) if plain and bits is None else None,
        empty_tensors(tensors),
    )


def _is_of_half(step: float) -> bool:
    """Whether float16 below its normal range makes this grid: a few of its smallest numbers."""
    count = step / _LEAST_HALF
    return 0.5 < count < _MULTIPLES + 0.5 and abs(count - round(count)) < _ON_GRID
