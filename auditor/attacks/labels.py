"""Labels from the head's gradient: what is proved, and the best guess beside it.

Statements T1 to T7 are in statements.py. The estimate solves for the multiset that explains the
bias gradient when each class's mean features are G_c / g_c (the relation that iLRG uses: Wang et
al. 2023), rounded inside the proved bounds; without a bias it uses the row sums of the weight
gradient (Wainakh et al. 2021, arXiv:2105.09369). It is a guess, and marked as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks import statements
from auditor.attacks.base import Watch
from auditor.checks import HeadSums, head_gradients, head_sums, scale_caveats
from auditor.records import LabelClaim, Problem, Recovery

_A0 = "the loss is softmax cross-entropy over a linear head (its gradients sum to zero: tested)"
_NOISE_MARGIN = 8.0  # standard deviations; leaves 1e-15 for a false claim per entry
_DENSE_CLASSES = 1000  # up to here the K x K system of the estimate is solved


@dataclass(frozen=True)
class HeadLabels:
    """Reads the labels off the head's gradient."""

    name: str = "labels.head"
    title: str = "Labels from the classifier's gradient"

    def blocked_by(self, problem: Problem) -> str | None:
        weight, bias = head_gradients(problem)
        if weight is None and bias is None:
            return "the dump holds no gradient of the head"
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:  # noqa: ARG002
        return Recovery(labels=label_claim(problem), evaluations=0)


def label_claim(problem: Problem) -> LabelClaim:
    """Everything that the head's gradient says of the labels. Empty when premise A0 fails."""
    classes = problem.trace.head.classes
    nothing = torch.zeros(classes, dtype=torch.int64)
    sums = head_sums(problem)
    if sums is None or not sums.vanish:
        guess = _estimate(problem, nothing, None) if sums is not None else None
        return LabelClaim(nothing, None, guess, (), (), complete=False)
    single = _single(problem)
    if single is not None:
        return _single_claim(problem, single)
    return _batch_claim(problem, sums)


def _single(problem: Problem) -> statements.SingleSample | None:
    weight, bias = head_gradients(problem)
    known, head = problem.knowledge, problem.trace.head
    named = dict(problem.module.named_parameters())
    if weight is None or known.batch_size not in {None, 1}:
        return None
    matrix = named[head.weight].detach().cpu().double()
    offset = named[head.bias].detach().cpu().double() if head.bias is not None else None
    told = known.batch_size == 1
    found: statements.SingleSample | None = None
    if bias is not None and offset is not None:
        found = statements.single_by_bias(
            weight,
            bias,
            matrix,
            offset,
            precision=problem.precision,
            smoothing=known.label_smoothing,
        )
    elif not known.label_smoothing:
        found = statements.single_without_bias(
            weight, matrix, offset, precision=problem.precision, told_single=told
        )
    return found if found is not None and (found.proves_single or told) else None


def _single_claim(problem: Problem, single: statements.SingleSample) -> LabelClaim:
    told = problem.knowledge.batch_size == 1
    lower = torch.zeros(problem.trace.head.classes, dtype=torch.int64)
    lower[single.label] = 1
    premises = [_A0]
    if single.proves_single:
        premises.append(
            "the head's gradient fits one sample through this model, or several that the head "
            "cannot tell apart (tested)"
        )
    else:
        premises.append("the batch holds one sample (as said)")
    return LabelClaim(
        lower,
        lower.clone() if told else None,
        torch.tensor([single.label]),
        (single.statement,),
        tuple(premises),
        complete=True,
        at_least=1,
    )


def _batch_claim(problem: Problem, sums: HeadSums) -> LabelClaim:
    known = problem.knowledge
    present, used, premises = _presence(problem, sums)
    lower, counted = _lower_bounds(problem, sums, present)
    size = known.batch_size
    if counted:
        used.append("T5")
        premises.append(f"the gradient is the {known.reduction} over the batch (as said)")
    proved = max(int(lower.sum()), _rank(problem))
    if size is not None and proved > size:  # a premise is wrong: withdraw everything
        nothing = torch.zeros_like(lower)
        guess = _estimate(problem, nothing, None)
        return LabelClaim(nothing, None, guess, (), (), complete=False, at_least=proved)
    upper = None if size is None else statements.counts_above(lower, size)
    complete = size is not None and int(lower.sum()) == size
    if size is not None:
        premises.append(f"the batch holds {size} samples (as said)")
        used += ["T6"] if complete else ["T7"] if bool(lower.any()) else []
    estimate = _estimate(problem, lower, upper)
    return LabelClaim(lower, upper, estimate, tuple(used), tuple(premises), complete, proved)


def _rank(problem: Problem) -> int:
    """At least so many samples made the head's gradient."""
    weight, _ = head_gradients(problem)
    return 0 if weight is None else statements.samples_at_least(weight, problem.precision)


def _presence(problem: Problem, sums: HeadSums) -> tuple[Tensor, list[str], list[str]]:
    """Classes (K,) bool that occur, the statements that say so, and all their premises."""
    weight, bias = head_gradients(problem)
    head, known = problem.trace.head, problem.knowledge
    smoothing = _smoothed_mass(problem)
    present = torch.zeros(head.classes, dtype=torch.bool)
    used, premises = [], [_A0, _hard_labels(problem)]
    if bias is not None and smoothing is not None:
        margin = _margin(bias, sums.bias_noise, problem.precision)
        by_bias = statements.presence_by_bias(bias, margin=margin, smoothing=smoothing)
        present |= by_bias
        used += ["T1"] if bool(by_bias.any()) else []
    if weight is not None and head.features_nonnegative and not known.label_smoothing:
        margin = _margin(weight, sums.weight_noise, problem.precision)
        by_weight = statements.presence_by_weight(weight, margin=margin)
        present |= by_weight
        used += ["T2"] if bool(by_weight.any()) else []
        premises.append("no feature of the head can be negative (from the traced operations)")
    return present, used, premises


def _margin(gradient: Tensor, noise: float, precision: float) -> float:
    """How far below zero an entry must be: beyond any noise the sums allow, and rounding."""
    return max(_NOISE_MARGIN * noise, 4 * precision * float(gradient.abs().max()))


def _hard_labels(problem: Problem) -> str:
    known = problem.knowledge
    origin = next((a.origin for a in known.assumptions if a.what == "label smoothing"), "assumed")
    return f"labels are hard, smoothed by {known.label_smoothing:g}, not mixed ({origin})"


def _smoothed_mass(problem: Problem) -> float | None:
    """Label smoothing times the sum of the samples' weights; None when that sum is not known."""
    known = problem.knowledge
    if known.label_smoothing == 0:
        return 0.0
    if not known.reduction_declared and known.batch_size != 1:
        return None
    if known.reduction == "mean":
        return known.label_smoothing
    return None if known.batch_size is None else known.label_smoothing * known.batch_size


def _lower_bounds(problem: Problem, sums: HeadSums, present: Tensor) -> tuple[Tensor, bool]:
    """T5 where the scale of the gradient was declared; else one sample for each present class."""
    _, bias = head_gradients(problem)
    known = problem.knowledge
    lower = present.long()
    if bias is None or not known.reduction_declared or scale_caveats(problem):
        return lower, False
    if _smoothed_mass(problem) is None:
        return lower, False
    samples = known.batch_size
    if samples is None:
        samples = max(1, _rank(problem))
    rounding = max(1e-4, 4 * problem.precision * samples)
    counts = statements.counts_below(
        bias,
        samples=samples,
        slack=rounding + samples * _NOISE_MARGIN * sums.bias_noise,
        smoothing=known.label_smoothing,
        reduction=known.reduction,
    )
    better = torch.maximum(lower, torch.where(present, counts, 0))
    return better, bool((better > lower).any())


def _estimate(problem: Problem, lower: Tensor, upper: Tensor | None) -> Tensor | None:
    """The likeliest multiset, (N,) int64, sorted; None when the batch size is unknown."""
    size = problem.knowledge.batch_size
    if size is None:
        return None
    expected = _expected_counts(problem, size)  # (K,)
    counts = lower.clone()
    room = torch.full_like(lower, size) if upper is None else upper
    for _ in range(size - int(lower.sum())):
        wish = torch.where(counts < room, expected - counts, -torch.inf)
        counts[int(wish.argmax())] += 1
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def _expected_counts(problem: Problem, size: int) -> Tensor:
    weight, bias = head_gradients(problem)
    factor = size if problem.knowledge.reduction == "mean" else 1
    if bias is None:
        assert weight is not None
        rows = weight.sum(1)
        impact = -rows.clamp_max(0).sum() * (1 + 1 / len(rows))
        return size * (1 / len(rows) - rows / impact.clamp_min(1e-30))
    if weight is None or len(bias) > _DENSE_CLASSES:
        return size / len(bias) - factor * bias
    return _explained_counts(problem, weight, bias, size, factor)


def _explained_counts(
    problem: Problem, weight: Tensor, bias: Tensor, size: int, factor: int
) -> Tensor:
    """Solve sum_c lambda_c (P_c - 1_c) = N g with P_c the probabilities at class c's features."""
    named = dict(problem.module.named_parameters())
    head = problem.trace.head
    matrix = named[head.weight].detach().cpu().double()
    offset = named[str(head.bias)].detach().cpu().double()
    safe = torch.where(bias.abs() > 1e-12, bias, torch.full_like(bias, 1e-12))
    features = weight / safe[:, None]  # (K, E)
    probabilities = torch.softmax(features @ matrix.mT + offset, 1)  # (K, K)
    system = torch.cat(
        [
            torch.ones(1, len(bias), dtype=bias.dtype),
            probabilities.mT - torch.eye(len(bias), dtype=bias.dtype),
        ]
    )
    right = torch.cat([bias.new_tensor([size]), factor * bias])
    solved: Tensor = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution
    return solved[:, 0]
