"""Labels from the head's gradient: what is proved, and the best guess beside it.

Statements T1 to T9 are in statements.py. The rest of a batch is estimated inside the proved bounds,
by rules that simulated clients of this very model have weighed (auditor/labels). It is a guess, and
marked as one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from auditor.attacks import statements
from auditor.attacks.base import Watch
from auditor.checks import HeadSums, head_gradients, head_sums, scale_caveats
from auditor.labels.estimate import estimate_labels
from auditor.labels.rules import Heads
from auditor.problem import heaviest_sample, is_one_gradient, is_scaled
from auditor.records import LabelClaim, Problem, Recovery

_AN_UPDATE = "the dump is weights after SGD minus weights before (as said)"
_A0 = "the loss is softmax cross-entropy over a linear head (its gradients sum to zero: tested)"
_NOISE_MARGIN = 8.0  # standard deviations; leaves 1e-15 for a false claim per entry
_SPAN_CLASSES = 300  # up to here T9's linear programs take seconds


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

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        return Recovery(labels=label_claim(problem, seed=seed, watch=watch), evaluations=0)


def label_claim(problem: Problem, *, seed: int = 0, watch: Watch | None = None) -> LabelClaim:
    """Everything that the head's gradient says of the labels: proofs, and the estimate beside them.

    The estimate is that of `estimate_labels`, which passes a few hundred pictures through the
    model; so what the problem holds already is not made again. Nothing is proved when premise A0
    fails.
    """
    if problem.labels is not None:
        return problem.labels
    claim = proved_labels(problem)
    size, classes = problem.knowledge.batch_size, problem.trace.head.classes
    if claim.complete:
        return claim
    if size is None or head_gradients(problem) == (None, None):
        return claim
    sums = head_sums(problem)
    sound = sums is not None and sums.vanish and claim.at_least <= size
    found = estimate_labels(
        problem,
        claim.lower,
        torch.full((classes,), size) if claim.upper is None else claim.upper,
        partial(_simulated_bounds, problem) if sound else None,
        seed=seed,
        expired=(watch or Watch()).expired,
    )
    return replace(
        claim,
        estimate=found.labels,
        probabilities=found.probabilities,
        undetermined=found.undetermined,
        calibration=found.calibration,
    )


def proved_labels(problem: Problem) -> LabelClaim:
    """What is proved alone; an estimate only where the proofs are the whole batch."""
    sums = head_sums(problem)
    if sums is None or not sums.vanish:
        nothing = torch.zeros(problem.trace.head.classes, dtype=torch.int64)
        return LabelClaim(nothing, None, None, (), (), complete=False)
    single = _single(problem)
    if single is not None:
        return _single_claim(problem, single)
    return _batch_claim(problem, sums)


def _simulated_bounds(problem: Problem, heads: Heads) -> Tensor:
    """The proved counts (S, K) of simulated dumps, by the statements that this dump admits."""
    known, size = problem.knowledge, problem.knowledge.batch_size or 1
    margin = 4 * max(problem.precision, torch.finfo(torch.float32).eps)
    mass = known.label_smoothing * size
    either = heads.weight if heads.bias is None else heads.bias
    assert either is not None
    lower = torch.zeros(either.shape[:2], dtype=torch.float64)
    if heads.weight is not None and problem.trace.head.features_nonnegative and not mass:
        largest = heads.weight.abs().amax((1, 2))[:, None]
        present = statements.presence_by_weight(heads.weight, margin=margin * largest)
        lower = torch.maximum(lower, present.double())
    if heads.bias is not None:
        largest = heads.bias.abs().amax(1, keepdim=True)
        present = statements.presence_by_bias(heads.bias, margin=margin * largest, smoothing=mass)
        lower = torch.maximum(lower, present.double())
        if known.reduction_declared and not scale_caveats(problem):
            counted = statements.counts_below(
                heads.bias,
                samples=size,
                slack=max(1e-4, margin * size),
                smoothing=known.label_smoothing,
                reduction="sum",
            )
            lower = torch.maximum(lower, counted.double())
    return lower


def _single(problem: Problem) -> statements.SingleSample | None:
    weight, bias = head_gradients(problem)
    known, head = problem.knowledge, problem.trace.head
    named = dict(problem.module.named_parameters())
    if weight is None or known.batch_size not in {None, 1} or not is_one_gradient(problem):
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


def looks_single(problem: Problem) -> bool:
    """Whether the head's gradient is that of one sample although the batch is said to hold more."""
    known = problem.knowledge
    if known.batch_size is None or known.batch_size < 2:
        return False
    sums = head_sums(problem)
    single = _single(replace(problem, knowledge=replace(known, batch_size=None)))
    return sums is not None and sums.vanish and single is not None


def single_step(problem: Problem) -> float | None:
    """The size of the dump beside the gradient of the one sample that its head fits (T3).

    None when the head's bias was not sent, or fits no single step of one sample.
    """
    single, (weight, bias) = _single(problem), head_gradients(problem)
    head = problem.trace.head
    if single is None or weight is None or bias is None or head.bias is None:
        return None
    named = dict(problem.module.named_parameters())
    matrix, offset = (named[n].detach().cpu().double() for n in (head.weight, head.bias))
    gap = torch.softmax(matrix @ (weight.mT @ bias / bias.square().sum()) + offset, 0)
    smoothing = problem.knowledge.label_smoothing
    gap = gap - smoothing / len(gap)
    gap[single.label] -= 1 - smoothing
    return float(bias @ gap / gap.square().sum())


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
        probabilities=torch.ones(1, dtype=torch.float64),
        undetermined=torch.zeros(1, dtype=torch.bool),
        calibration="proved",
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
        return LabelClaim(nothing, None, None, (), (), complete=False, at_least=proved)
    if size is None:
        return LabelClaim(lower, None, None, tuple(used), tuple(premises), False, proved)
    premises.append(f"the batch holds {size} samples (as said)")
    lower, upper, more = _tightened(problem, lower, size)
    return _with_counts(lower, upper, size, (*used, *more), tuple(premises), proved)


def _tightened(
    problem: Problem, lower: Tensor, size: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Lower and upper counts (K,) by T6, T7 and T9, and which of them were used."""
    upper = statements.counts_above(lower, size)
    if int(lower.sum()) == size:
        return lower, upper, ("T6",)
    used = ("T7",) if bool(lower.any()) else ()
    absent = _absent(problem, lower, size)
    if not bool(absent.any()) or bool(absent.all()):
        return lower, upper, used
    upper = torch.where(absent, 0, upper)
    lower = torch.maximum(lower, statements.counts_left(upper, size))
    return lower, torch.minimum(upper, statements.counts_above(lower, size)), (*used, "T9")


def _absent(problem: Problem, lower: Tensor, size: int) -> Tensor:
    """T9 where it can say something: more than twice as many classes as samples."""
    weight, _ = head_gradients(problem)
    classes = len(lower)
    useful = 2 * size <= classes <= _SPAN_CLASSES and not problem.knowledge.label_smoothing
    if weight is None or not useful or size < 2 or not is_one_gradient(problem):
        return torch.zeros(classes, dtype=torch.bool)
    return statements.absent_by_span(weight, lower == 0, samples=size, precision=problem.precision)


def _with_counts(
    lower: Tensor,
    upper: Tensor,
    size: int,
    used: tuple[str, ...],
    premises: tuple[str, ...],
    proved: int,
) -> LabelClaim:
    """The claim of a batch of a known size; when the counts are complete, they are the labels."""
    if int(lower.sum()) != size:
        return LabelClaim(lower, upper, None, used, premises, False, proved)
    return LabelClaim(
        lower,
        upper,
        torch.repeat_interleave(torch.arange(len(lower)), lower),
        used,
        premises,
        complete=True,
        at_least=proved,
        probabilities=torch.ones(size, dtype=torch.float64),
        undetermined=torch.zeros(size, dtype=torch.bool),
        calibration="proved",
    )


def _rank(problem: Problem) -> int:
    """At least so many samples made the head's gradient; nothing when it is of several steps."""
    weight, _ = head_gradients(problem)
    if not is_one_gradient(problem):
        return 0
    return 0 if weight is None else statements.samples_at_least(weight, problem.precision)


def _presence(problem: Problem, sums: HeadSums) -> tuple[Tensor, list[str], list[str]]:
    """Classes (K,) bool that occur, the statements that say so, and all their premises."""
    weight, bias = head_gradients(problem)
    head, known = problem.trace.head, problem.knowledge
    smoothing = _smoothed_mass(problem)
    present = torch.zeros(head.classes, dtype=torch.bool)
    used, premises = [], [_A0, _hard_labels(problem)]
    if known.local is not None:
        premises.append(_AN_UPDATE)
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
    if not is_scaled(problem):
        return None
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
    heaviest = heaviest_sample(problem)
    if _smoothed_mass(problem) is None or heaviest is None:
        return lower, False
    samples = known.batch_size
    if samples is None:
        samples = max(1, _rank(problem))
    rounding = max(1e-4, 4 * problem.precision * samples)
    counts = statements.counts_below(
        bias / heaviest,  # of an update; a gradient's samples weigh 1
        samples=samples,
        slack=rounding + samples * _NOISE_MARGIN * sums.bias_noise / min(heaviest, 1.0),
        smoothing=known.label_smoothing,
        reduction=known.reduction,
    )
    better = torch.maximum(lower, torch.where(present, counts, 0))
    return better, bool((better > lower).any())
