"""Can a batch of this size, through this classifier, have left this gradient of it?

The features e_i of the B samples lie in the row space of the weight's gradient: e_i = V a_i with B
numbers a_i each. The K (B + 1) equations

    sum_i w (p_i - y_i) a_i' = G V,    sum_i w (p_i - y_i) = g,    p_i = softmax(W V a_i + b)

then overdetermine them. A solution shows that the classifier's weights belong to the dump. That no
solution was found shows nothing by itself, so simulated clients of the very model say how often the
same search finds theirs: only when it always does, its failure counts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.defences.single import HeadFit
from auditor.problem import is_one_gradient, random_rows, to_model_units
from auditor.records import Problem
from auditor.solve import levenberg_marquardt

_SIMULATED = 20  # all have to be solved
_STARTS, _STEPS, _FEW, _TRIES = 4, 40, 15, 5
_SOLVED, _UNSOLVED = 1e-3, 1e-2  # relative distance
_AS_LOUD = 0.3  # relative size of the bias's gradient
_SPREAD = 0.3  # of the starts, relative to the mean features
_LARGEST = 8  # samples: the unknowns grow with their square
_SCALES = tuple(10 ** (power / 16) for power in range(-80, 49))  # 1e-5 to 1e3
_LEAST = 1e-4  # norm of a gradient of which a softmax rounds less than what is called unsolved
_EXACT = 1e-6  # precision of a dump that the equations hold for


@dataclass(frozen=True)
class _Equations:
    """What is given: the head's gradient in the row space, and the head there."""

    seen: Tensor  # (K, B), G V
    bias: Tensor  # (K,), g
    matrix: Tensor  # (K, B), W V
    offset: Tensor  # (K,)
    weight: float  # w

    @property
    def samples(self) -> int:
        return int(self.seen.shape[1])


def batch_fit(problem: Problem, *, calibrated: bool, seed: int = 0) -> HeadFit | None:
    """Whether the head's weights made the head's gradient, with which smoothing and scale.

    For a clean dump of single precision, 2 to 8 samples and two classes more than those; else None.
    Seconds at most, and less when they do fit. Only `calibrated` says that they do not.
    """
    head, known = problem.trace.head, problem.knowledge
    size = known.batch_size
    if size is None or not 2 <= size <= min(_LARGEST, head.classes - 2, head.features - 1):
        return None
    if head.bias is None or not {head.weight, head.bias} <= problem.gradient.keys():
        return None
    least = min(float(problem.gradient[name].norm()) for name in (head.weight, head.bias))
    if problem.precision > _EXACT or not is_one_gradient(problem) or least < _LEAST:
        return None
    named = dict(problem.module.named_parameters())
    weights = tuple(named[name].detach().cpu().double() for name in (head.weight, head.bias))
    sent = tuple(problem.gradient[n].detach().cpu().double() for n in (head.weight, head.bias))
    steps, tries = (_STEPS, _TRIES) if calibrated else (_FEW, 1)
    best = _first_fit(problem, sent, weights, seed, steps=steps, tries=tries)
    if best.distance <= _SOLVED:
        return HeadFit(True, best.scale, best.smoothing, 2 * _SOLVED, 2 * _SOLVED)
    if best.distance <= _UNSOLVED or not calibrated:
        return HeadFit(None, 1.0, 0.0)
    loud = (dump for dump in _simulated(problem, size, seed) if _is_as_loud(dump, sent))
    count = 0
    for dump in islice(loud, _SIMULATED):
        if _solve(problem, dump, weights, seed, tries=_TRIES).distance > _SOLVED:
            break
        count += 1
    return HeadFit(False if count == _SIMULATED else None, 1.0, 0.0)


def _is_as_loud(dump: tuple[Tensor, ...], sent: tuple[Tensor, ...]) -> bool:
    """Clients that the model is sure of leave little to read; those do not count."""
    return float(dump[1].norm()) > _AS_LOUD * float(sent[1].norm())


def _first_fit(
    problem: Problem,
    sent: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    seed: int,
    *,
    steps: int,
    tries: int,
) -> _Solved:
    """The step as it was said to be, then of other smoothing and scale, then turned around."""
    best = _Solved(torch.inf, 0.0, 1.0)
    for sign, free in ((1.0, False), (1.0, True), (-1.0, True)):
        turned = tuple(sign * part for part in sent)
        found = _solve(problem, turned, weights, seed, free=free, steps=steps, tries=tries)
        best = min(best, replace(found, scale=sign * found.scale))
        if found.distance <= _SOLVED:
            break
    return best


@dataclass(frozen=True, order=True)
class _Solved:
    distance: float  # relative
    smoothing: float
    scale: float


def _solve(
    problem: Problem,
    sent: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    seed: int,
    *,
    free: bool = False,
    steps: int = _STEPS,
    tries: int = 1,
) -> _Solved:
    """The best that searches with other counts of labels find, up to the first that solves it."""
    best = _Solved(torch.inf, 0.0, 1.0)
    for turn in range(tries):
        best = min(best, _search(problem, sent, weights, seed, turn, free=free, steps=steps))
        if best.distance <= _SOLVED:
            break
    return best


def _search(
    problem: Problem,
    sent: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    seed: int,
    turn: int,
    *,
    free: bool,
    steps: int,
) -> _Solved:
    """The best of a few starts at once; `free`: smoothing and scale are unknowns, too."""
    gradient, bias = sent
    size = problem.knowledge.batch_size or 1
    span = torch.linalg.svd(gradient, full_matrices=False)[2][:size]  # (B, E)
    share = 1 / size if problem.knowledge.reduction == "mean" else 1.0
    equations = _Equations(gradient @ span.mT, bias, weights[0] @ span.mT, weights[1], share)
    centre = _mean_features(equations)
    scale = _scale(equations, centre) if free else 1.0
    labels, _ = _labels(equations, centre, scale, turn)
    generator = torch.Generator().manual_seed(seed)
    shape = (_STARTS, size, size)
    around = torch.randn(shape, generator=generator, dtype=torch.float64) * centre.norm()
    start = (centre + _SPREAD * around / size**0.5).flatten(1)
    more = start.new_tensor([problem.knowledge.label_smoothing, math.log(scale)])
    system, goal = _System(equations, labels, free), (_SOLVED / 10) ** 2
    found = levenberg_marquardt(
        system.linearise,
        system.residual,
        torch.cat([start, more.expand(_STARTS, 2)], 1),
        max_steps=steps,
        goal=goal,
        watch=_until(goal),
    )
    values = found.value.nan_to_num(nan=torch.inf)
    best = int(values.argmin())
    smoothing, scale = found.x[best, -2:].tolist()
    return _Solved(float(values[best]) ** 0.5, max(smoothing, 0.0), math.exp(scale))


def _until(goal: float) -> Callable[[int, Tensor, Tensor], bool]:
    """Stops when one start has arrived."""
    return lambda step, x, value: bool((value <= goal).any())  # noqa: ARG005


def _mean_features(equations: _Equations) -> Tensor:
    """(B,): the row of the class with the largest gradient, over that of its bias."""
    largest = int(equations.bias.abs().argmax())
    return equations.seen[largest] / equations.bias[largest]


def _labels(
    equations: _Equations, centre: Tensor, scale: float, turn: int = 0
) -> tuple[Tensor, float]:
    """(B, K) one-hot: counts from the mean prediction p as B p - g / (w scale), rounded.

    With them, how far the counts were from whole numbers. `turn`: with one label another, the
    likeliest such change first.
    """
    size = equations.samples
    mean = torch.softmax(equations.matrix @ centre + equations.offset, 0)
    left = size * mean - equations.bias / (equations.weight * scale)
    counted = []
    for _ in range(size):
        label = int(left.argmax())
        left[label] -= 1
        counted.append(label)
    if turn:
        changes = [(float(left[a] - left[b]), a, b) for a in {*counted} for b in range(len(left))]
        _, gone, come = sorted(change for change in changes if change[1] != change[2])[turn - 1]
        counted[counted.index(gone)] = come
    return F.one_hot(torch.tensor(counted), len(left)).double(), float(left.norm())


def _scale(equations: _Equations, centre: Tensor) -> float:
    """The scale of the dump at which the counts come closest to whole numbers."""
    return min(_SCALES, key=lambda scale: _labels(equations, centre, scale)[1])


@dataclass(frozen=True)
class _System:
    """Relative residuals of rows: B B features, the label smoothing, the logarithm of the scale."""

    equations: _Equations
    labels: Tensor  # (B, K)
    free: bool  # smoothing and scale are unknowns, too

    def residual(self, rows: Tensor) -> Tensor:
        """(R, B B + 2) to (R, K (B + 1))."""
        a, gap, weight = self._gaps(rows)
        return self._joined(
            weight * gap.mT @ a - self.equations.seen,
            weight[..., 0] * gap.sum(1) - self.equations.bias,
        )

    def linearise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The residuals, and their Jacobian (R, K (B + 1), B B + 2)."""
        a, gap, weight = self._gaps(rows)
        size, classes = self.labels.shape
        p = gap + self._soft(rows)
        slope = p[..., None] * self.equations.matrix  # (R, B, K, B): of p_i by a_i
        slope = slope - p[..., None] * (p @ self.equations.matrix)[:, :, None]
        eye = torch.eye(size, dtype=a.dtype)
        seen = torch.einsum("rjkc,rjb->rkbjc", slope, a) + torch.einsum("rjk,bc->rkbjc", gap, eye)
        by_features = self._joined(
            weight[..., None, None] * seen, weight[..., None] * slope.transpose(1, 2)
        )
        bend = (self.labels - 1 / classes)[None].expand_as(gap)
        by_smoothing = self._joined(weight * bend.mT @ a, weight[..., 0] * bend.sum(1))
        by_scale = self._joined(weight * gap.mT @ a, weight[..., 0] * gap.sum(1))
        more = torch.stack([by_smoothing, by_scale], -1) * self.free
        return self.residual(rows), torch.cat([by_features.flatten(2), more], -1)

    def _gaps(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (R, B, B), p - y (R, B, K), and weight of a sample (R, 1, 1) or broadcast."""
        size = len(self.labels)
        a = rows[:, :-2].reshape(-1, size, size)
        logits = a @ self.equations.matrix.mT + self.equations.offset
        weight = self.equations.weight * rows[:, -1, None, None].exp()
        return a, torch.softmax(logits, -1) - self._soft(rows), weight

    def _soft(self, rows: Tensor) -> Tensor:
        smoothing = rows[:, -2, None, None]
        return (1 - smoothing) * self.labels + smoothing / self.labels.shape[1]

    def _joined(self, seen: Tensor, bias: Tensor) -> Tensor:
        """(R, K, B, ...) and (R, K, ...) behind one another, each by its size."""
        bias = bias.reshape(len(seen), -1, *seen.shape[3:])
        parts = seen.flatten(1, 2) / self.equations.seen.norm(), bias / self.equations.bias.norm()
        return torch.cat(parts, 1)


def _simulated(problem: Problem, size: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The head's gradients (weight, bias) of clients that this model had in single precision.

    Pictures of noise and of soft spots in turn, or rows of a table; labels at random and as
    predicted in turn.
    """
    head, known = problem.trace.head, problem.knowledge
    module = copy.deepcopy(problem.module).float()
    named = dict(module.named_parameters())
    wanted = [named[head.weight], named[str(head.bias)]]
    generator = torch.Generator().manual_seed(seed)
    for turn in range(4 * _SIMULATED):
        inputs = to_model_units(problem, _pictures(known.input_shape, size, turn, generator))
        inputs = inputs.to(wanted[0])
        logits = _logits(module, inputs)
        drawn = torch.randint(head.classes, (size,), generator=generator).to(logits.device)
        labels = drawn if turn % 4 < 2 else logits.detach().argmax(1)
        loss = F.cross_entropy(
            logits, labels, reduction=known.reduction, label_smoothing=known.label_smoothing
        )
        made = torch.autograd.grad(loss, wanted)
        yield tuple(part.detach().cpu().double() for part in made)


def _logits(module: nn.Module, inputs: Tensor) -> Tensor:
    return torch.as_tensor(module(inputs))


def _pictures(shape: tuple[int, ...], size: int, turn: int, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return random_rows(shape, size, generator)
    if turn % 2 == 0:
        return torch.rand(size, *shape, generator=generator)
    coarse = torch.rand(size, shape[0], 4, 4, generator=generator)
    return F.interpolate(coarse, size=shape[1:], mode="bilinear")
