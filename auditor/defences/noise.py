"""Independent noise, measured by the identities; and what identities that fail mean otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from scipy.special import gammainc, gammaincc, gammaincinv

from auditor.defences.identities import OUTER, SUMS, Group
from auditor.records import Mode, Problem

# Relative size up to which what is left of an identity is rounding. Clients that computed in single
# precision leave 1e-6 and less (benchmarks/trust_detection.py).
ROUNDING = 5e-6
_TIGHT = 0.1  # share of an energy that may be of other origin
_SURE = 1e-4  # relative size of what only the right mode leaves
_ALL = 1.1  # times the slack: energy that it may explain, but for rounding
_FAINT = 1e-9  # of the whole gradient: in a tensor as small as this all may be rounding
_SOFTMAX = 4 * torch.finfo(torch.float32).eps
_HALF = torch.finfo(torch.float16)
_GRID = 1.5  # an error of rounding to a grid may be so many times that of uniform chance
_MEDIAN, _BULK = 0.6745, 1000  # of the size of a standard normal number; entries that tell it
# Two groups measure the same noise unless chance says so once in a million, and by a quarter.
_CHANCE, _APART = 1e-6, 1.25
_BY_CHANCE = 12.0  # over the root of the degrees: six deviations of a ratio of two variances
# Identities that need the weights: relative size from which on no rounding, TF32 or bfloat16
# arithmetic explains them, with a clean dump and with a noised one.
BROKEN, BROKEN_IN_NOISE = 0.05, 0.3

Said = Literal[
    "nothing", "clean", "noise", "noise by layer", "noise and more", "other weights", "roughly"
]


@dataclass(frozen=True)
class Noise:
    """What the identities say, taken together."""

    said: Said
    sigma: float = 0.0  # of one entry
    low: float = 0.0  # ends of the 95 % interval
    high: float = 0.0
    mode: Mode | None = None  # of the batch norms, as the identities have it
    free: tuple[Group, ...] = ()  # hold for any weights
    bound: tuple[Group, ...] = ()  # hold for the model's weights
    more_samples: bool = False  # more outer products than the batch is said to hold


@dataclass(frozen=True)
class Floors:
    """What rounding may leave of an identity."""

    relative: float  # of everything
    spacings: Mapping[str, float] = field(default_factory=dict)  # relative, of each tensor
    steps: Mapping[str, float] = field(default_factory=dict)  # widths of grids, by tensor
    softmax: float = 0.0  # relative, of the sums over the classes
    absolute: float = 0.0  # norm of the error that any tensor may have

    def variance(self, group: Group, problem: Problem) -> float:
        """Of one entry, at most."""
        spacing = max((self.spacings.get(name, 0.0) for name in group.tensors), default=0.0)
        relative = max(self.relative, ROUNDING, spacing)
        if group.kind == SUMS:
            relative += self.softmax
        fewest = min(problem.gradient[name].numel() for name in group.tensors)
        tiny = _HALF.smallest_normal * _HALF.eps if spacing == _HALF.eps else 0.0
        return (
            relative**2 * group.size / group.degrees
            + _GRID**2 * self.grid(group)
            + self.absolute**2 / fewest
            + tiny**2
        )

    def grid(self, group: Group) -> float:
        """The variance that rounding to the grid makes by chance."""
        return max((self.steps.get(name, 0.0) ** 2 / 12 for name in group.tensors), default=0.0)


def floors_of(
    problem: Problem, spacings: Mapping[str, float], steps: Mapping[str, float]
) -> Floors:
    """From the types and grids of the dump's numbers."""
    sizes = [part.double().norm() for part in problem.gradient.values()]
    # Of an update: the rounding of the weights themselves, wherever it fell.
    share = _FAINT if problem.knowledge.local is None else problem.precision
    absolute = share * float(torch.stack(sizes).norm())
    return Floors(problem.precision, spacings, steps, _blur(problem), absolute)


def read_noise(problem: Problem, groups: Sequence[Group], floors: Floors) -> Noise:
    """Pool the groups that agree, and say what it means when they do not."""
    free = [group for group in groups if not group.by_weights]
    clean = bool(free) and all(g.variance <= floors.variance(g, problem) for g in free)
    mode = _mode_of(groups, problem.knowledge.mode, clean=clean)
    chosen = [g for g in groups if g.mode in {None, mode} and g.slack <= _TIGHT * g.energy]
    if floors.softmax > _TIGHT:  # the whole gradient may be rounding
        chosen = [group for group in chosen if group.kind not in {SUMS, OUTER}]
    crowded = _more_samples(chosen, floors, problem)
    if crowded:
        chosen = [group for group in chosen if group.kind != OUTER]
    noise = _beside_the_bulk(problem, _judged(problem, chosen, floors))
    shown = mode if any(group.mode for group in groups) else None
    # Entries that were changed one by one make as many outer products as further samples.
    return replace(noise, mode=shown, more_samples=crowded and noise.said != "noise and more")


def _judged(problem: Problem, chosen: Sequence[Group], floors: Floors) -> Noise:
    free = tuple(group for group in chosen if not group.by_weights)
    bound = tuple(group for group in chosen if group.by_weights)
    if not chosen:
        return Noise("nothing")
    loud = [g for g in free if g.variance > floors.variance(g, problem)]
    off = [g for g in bound if g.variance > 16 * floors.variance(g, problem)]
    if not loud and not off:
        return Noise("clean", free=free, bound=bound)
    if not loud:
        return _only_bound(free, bound, off, floors)
    if agree(chosen):
        return _pooled("noise", chosen, free, bound, floors)
    broken = bool(bound) and agree(free) and _ratio(bound) > BROKEN_IN_NOISE
    if broken and pooled_variance(bound) > 4 * pooled_variance(free):
        return _pooled("other weights", free, free, bound, floors)
    return _pooled("noise by layer", chosen, free, bound, floors)


def _beside_the_bulk(problem: Problem, noise: Noise) -> Noise:
    """Noise cannot be larger than the entries that it was added to are now.

    Whatever lies below symmetric noise, its sum has no smaller median size. Where the sums of one
    tensor say otherwise, more than noise broke them.
    """
    if not noise.sigma > 0:
        return noise
    if noise.said == "noise":  # the same in every tensor
        pairs = [(noise.low, name) for name in problem.gradient]
    else:
        own = [group for group in noise.free if len(group.tensors) == 1]
        pairs = [(interval(g.variance**0.5, g.degrees)[0], g.tensors[0]) for g in own]
    for sigma, name in pairs:
        part = problem.gradient[name]
        most = float(part.detach().double().abs().median()) / _MEDIAN
        if part.numel() >= _BULK and sigma > _APART * most:
            least = min(most, noise.sigma)
            return replace(noise, said="noise and more", sigma=least, low=0.0, high=most)
    return noise


def _only_bound(
    free: tuple[Group, ...], bound: tuple[Group, ...], off: Sequence[Group], floors: Floors
) -> Noise:
    """The identities that need the weights fail, those that hold for any do not, or are not."""
    if not free and len(bound) > 2 and agree(bound):
        return _pooled("noise", bound, free, bound, floors)
    broken = max(group.ratio for group in off) > BROKEN
    return Noise("other weights" if broken else "roughly", free=free, bound=bound)


def agree(groups: Sequence[Group]) -> bool:
    """Whether one standard deviation explains every group."""
    pooled = pooled_variance(groups)
    if not pooled > 0:
        return True
    for group in groups:
        share = group.variance / pooled
        half, at = group.degrees / 2, group.energy / pooled / 2
        chance = min(float(gammainc(half, at)), float(gammaincc(half, at)))
        if chance < _CHANCE and not 1 / _APART**2 < share < _APART**2:
            return False
    return True


def pooled_variance(groups: Sequence[Group]) -> float:
    """Of one entry."""
    return sum(g.energy for g in groups) / sum(g.degrees for g in groups)


def interval(sigma: float, degrees: float) -> tuple[float, float]:
    """The 95 % interval of a standard deviation from so many degrees of freedom (chi-square)."""
    most, least = (2 * float(gammaincinv(degrees / 2, q)) for q in (0.975, 0.025))
    return sigma * (degrees / most) ** 0.5, sigma * (degrees / least) ** 0.5


def _ratio(groups: Sequence[Group]) -> float:
    return float((sum(g.energy for g in groups) / sum(g.size for g in groups)) ** 0.5)


def _pooled(
    said: Said,
    chosen: Sequence[Group],
    free: tuple[Group, ...],
    bound: tuple[Group, ...],
    floors: Floors,
) -> Noise:
    """The variance is less what rounding to a grid adds by chance."""
    degrees = sum(group.degrees for group in chosen)
    grid = sum(floors.grid(group) * group.degrees for group in chosen) / degrees
    sigma = max(pooled_variance(chosen) - grid, 0.0) ** 0.5
    low, high = interval(sigma, degrees)
    return Noise(said, sigma, low, high, free=free, bound=bound)


def _more_samples(groups: Sequence[Group], floors: Floors, problem: Problem) -> bool:
    """Whether more outer products stand out than the batch is said to hold.

    The sums over the classes measure the noise of the same tensor as the head's outer products.
    """
    sums = next((g for g in groups if g.kind == SUMS), None)
    for group in groups:
        if group.kind != OUTER or group.variance <= floors.variance(group, problem):
            continue
        same = sums is not None and sums.tensors == group.tensors
        if group.crowded or (same and sums is not None and _exceeds(group, sums)):
            return True
    return False


def _exceeds(group: Group, sums: Group) -> bool:
    return group.variance > 4 * sums.variance and not agree([group, sums])


def _mode_of(groups: Sequence[Group], known: Mode, *, clean: bool) -> Mode:
    """The mode whose identities leave less; what is known where they cannot tell.

    `clean`: identities that hold for any weights show no noise.
    """
    left: dict[Mode, float] = {}
    modes: tuple[Mode, Mode] = ("eval", "train")
    fewest = 1.0
    for mode in modes:
        energy = sum(g.energy for g in groups if g.mode == mode)
        fewest = max(sum(g.degrees for g in groups if g.mode == mode), 1.0)
        left[mode] = energy / fewest
    apart = max(_APART**2, 1 + _BY_CHANCE / fewest**0.5)
    low, high = sorted(left.values())
    if low <= 0:
        return known
    shown = min(left, key=lambda mode: left[mode]) if high >= apart * low else known
    train = [group for group in groups if group.mode == "train"]
    unknown = sum(group.slack for group in train) > _TIGHT * sum(group.energy for group in train)
    if unknown and left["train"] >= left["eval"]:
        return _mode_beside_slack(groups, known, clean=clean)
    return shown


def _mode_beside_slack(groups: Sequence[Group], known: Mode, *, clean: bool) -> Mode:
    """The mode where the constant under the root may explain what training mode leaves.

    Then the two look alike, unless one explains the dump to rounding and the other does not.
    """
    if not clean:
        return known
    if _ratio([group for group in groups if group.mode == "eval"]) <= _SURE:
        return "eval"
    train = [group for group in groups if group.mode == "train"]
    explained = all(g.energy <= _ALL * g.slack or g.ratio <= _SURE for g in train)
    broken = _ratio([group for group in groups if group.mode == "eval"]) > BROKEN
    return "train" if explained and broken else known


def _blur(problem: Problem) -> float:
    """What the rounding of a saturated softmax leaves, relative to the head's gradient."""
    head = problem.trace.head
    bias = None if head.bias is None else problem.gradient.get(head.bias)
    if bias is not None:
        return _SOFTMAX / max(float(bias.double().norm()), 1e-30)
    weight = problem.gradient.get(head.weight)
    if weight is None:
        return 0.0
    features = head.features**0.5  # features of size one stand in for those that are not known
    return float(_SOFTMAX * features / max(float(weight.double().norm()), 1e-30))
