"""Can the dump be what it is said to be? Tests that need no truth, and the caveats they raise.

Premise A0 of every label statement: the head's gradients are a positively weighted sum over samples
of (p_i - y_i) e_i' and (p_i - y_i), p a softmax, y summing to one. Then both sum to zero over the
classes, for any batch. Under independent noise of standard deviation sigma each of those sums has
variance K sigma^2, which measures sigma without any truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.batch_norm import mode_caveats
from auditor.problem import is_scaled
from auditor.records import (
    Belongs,
    Caveat,
    DefenceSeen,
    Evidence,
    GradientDump,
    Knowledge,
    Problem,
)

# Relative to the gradient, what summation order and single precision may leave in exact sums.
_SUMMATION = 1e-4
# The loss's own softmax is computed in single precision at best: absolute error of p - y.
_SOFTMAX = 4 * torch.finfo(torch.float32).eps
_WORST = 1e-2
# Defences after which the sums over the classes are zero no more.
_BREAKS_SUMS = frozenset({"noise", "dp-sgd", "top-k", "sign", "int8", "unknown"})
_SURE = (
    "The model is so sure of this batch that single precision rounds its probabilities away: the "
    "sums over the classes are not zero, although other identities show that model and dump belong "
    "together. Nothing about labels can be proved."
)


@dataclass(frozen=True)
class HeadSums:
    """How far the head's gradients are from summing to zero over the classes."""

    ratio: float  # norm of the sums, relative to the norm of the gradient
    allowed: float  # what the dump's precision explains
    weight_noise: float  # standard deviation of one entry that would explain the sums
    bias_noise: float

    @property
    def vanish(self) -> bool:
        return self.ratio <= self.allowed


def head_gradients(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """The dump's gradients of the head: weight (K, E), bias (K,), in float64 on the CPU.

    None for what the model does not have or the dump does not hold.
    """
    head = problem.trace.head
    weight = problem.gradient.get(head.weight)
    bias = problem.gradient.get(head.bias) if head.bias is not None else None
    return (
        None if weight is None else weight.detach().cpu().double(),
        None if bias is None else bias.detach().cpu().double(),
    )


def head_sums(problem: Problem) -> HeadSums | None:
    """Test premise A0. None when the dump holds no gradient of the head at all."""
    weight, bias = head_gradients(problem)
    if weight is None and bias is None:
        return None
    classes = problem.trace.head.classes
    relative = max(2 * problem.precision, _SUMMATION)
    allowed, ratio, weight_noise, bias_noise = relative, 0.0, 0.0, 0.0
    if bias is not None:
        size = float(bias.norm())
        allowed = min(relative + _SOFTMAX / max(size, 1e-30), max(relative, _WORST))
        ratio = float(bias.sum().abs()) / max(size, 1e-30)
        bias_noise = float(bias.sum().abs()) / classes**0.5
    if weight is not None:
        sums = weight.sum(0)  # (E,)
        if bias is None:  # features of size one stand in for those that are not known
            blur = _SOFTMAX * weight.shape[1] ** 0.5 / max(float(weight.norm()), 1e-30)
            allowed = min(relative + blur, max(relative, _WORST))
        ratio = max(ratio, float(sums.norm() / weight.norm().clamp_min(1e-30)))
        weight_noise = float(sums.square().mean().sqrt()) / classes**0.5
    return HeadSums(ratio, allowed, weight_noise, max(bias_noise, weight_noise))


def caveats_of(
    problem: Problem,
    dump: GradientDump,
    seen: Sequence[DefenceSeen] = (),
    *,
    belongs: Belongs = "not tested",
) -> tuple[Caveat, ...]:
    """Everything about this dump and this model that weakens or voids the verdict.

    `seen`: the defences that were recognised in the dump; `belongs`: what its other identities say.
    """
    known = problem.knowledge
    raised = [
        *_head_caveats(problem, seen, belongs),
        *_assumed(known),
        *mode_caveats(known, problem.mode_shown),
        *_estimated(known),
    ]
    raised += _dropout(problem)
    raised += _set_aside(problem, dump)
    if problem.statistics_unused:
        raised.append(
            Caveat(
                "GA324",
                "Running statistics of batch norm came along and were not used: "
                f"{problem.statistics_unused}.",
                voids=False,
            )
        )
    if dump.missing:
        raised.append(
            Caveat(
                "GA304",
                f"The dump holds no gradient for {len(dump.missing)} of "
                f"{len(dump.missing) + len(dump.tensors)} parameters.",
                voids=False,
            )
        )
    if known.overrides:
        raised.append(
            Caveat(
                "GA307",
                f"The command line overrides the dump's metadata: {'; '.join(known.overrides)}.",
                voids=False,
            )
        )
    if known.batch_size is None:
        raised.append(
            Caveat(
                "GA305",
                "The batch size is unknown: images cannot be rebuilt. Say it with --batch-size.",
                voids=False,
            )
        )
    return tuple(raised)


def other_than_said(problem: Problem, *, single: bool, scale: float | None) -> tuple[Caveat, ...]:
    """What the head's gradient says against what was said: one sample only, or a loss scale."""
    raised = []
    if single:
        raised.append(
            Caveat(
                "GA321",
                "The head's gradient is that of a single sample, or of several that the head "
                f"cannot tell apart, but the batch is said to hold {problem.knowledge.batch_size}. "
                "Say --batch-size 1 if it is one: more attacks read a single sample.",
                voids=False,
            )
        )
    if scale is not None:
        raised.append(
            Caveat(
                "GA322",
                f"The dump is about {scale:g} times a gradient, as loss scaling in mixed precision "
                "(GradScaler) leaves it: it was divided by that. Dump after scaler.unscale_.",
                voids=False,
            )
        )
    return tuple(raised)


def contradiction(problem: Problem, proved: int) -> tuple[Caveat, ...]:
    """GA308 when more labels are proved than the batch is said to hold."""
    size = problem.knowledge.batch_size
    if size is None or proved <= size:
        return ()
    return (
        Caveat(
            "GA308",
            f"The head's gradient needs at least {proved} samples, the batch is said to hold "
            f"{size}: the batch size or the reduction is wrong. The label counts were withdrawn.",
            voids=True,
        ),
    )


def contrast_caveats(evidence: Sequence[Evidence]) -> tuple[Caveat, ...]:
    """GA325 when a claim explains the dump at another contrast as well."""
    if not any(each.contrast_open for each in evidence):
        return ()
    return (
        Caveat(
            "GA325",
            "At another contrast the rebuilt pictures explain the dump as well, because batch norm "
            "was in training mode: restarts that agree do not confirm the contrast.",
            voids=False,
        ),
    )


def _head_caveats(problem: Problem, seen: Sequence[DefenceSeen], belongs: Belongs) -> list[Caveat]:
    sums = head_sums(problem)
    if sums is None or sums.vanish:
        return []
    if belongs == "shown" and not seen and _is_sure(problem):
        return [Caveat("GA301", _SURE, voids=False)]
    other = "its loss is another one"
    if problem.knowledge.local is not None:
        other = "its loss, optimizer or weight decay is another one"
    why = f"The dump was noised, pruned or quantised, or {other}"
    breaking = [defence.summary.rstrip(".") for defence in seen if defence.kind in _BREAKS_SUMS]
    if breaking:
        why = "; ".join(breaking)
    return [
        Caveat(
            "GA301",
            f"The head's gradients sum to {sums.ratio:.1e} of their norm over the classes; "
            f"softmax cross-entropy and the dump's precision allow {sums.allowed:.1e}. {why}: "
            "nothing about labels can be proved, and a picture that was not recovered means "
            "nothing.",
            voids=True,
        )
    ]


def _is_sure(problem: Problem) -> bool:
    """Whether every entry of the head's bias gradient is smaller than a softmax is rounded to."""
    _, bias = head_gradients(problem)
    return bias is not None and float(bias.abs().max()) <= torch.finfo(torch.float32).eps


def _assumed(known: Knowledge) -> list[Caveat]:
    assumed = [a.what for a in known.assumptions if a.origin == "assumed"]
    if not assumed:
        return []
    return [Caveat("GA302", f"Assumed, because nobody said: {', '.join(assumed)}.", voids=False)]


def _dropout(problem: Problem) -> list[Caveat]:
    """GA303 where a random mask is in the gradient, or may be because nobody said the mode."""
    known = problem.knowledge
    assumed = any(a.what == "mode" and a.origin == "assumed" for a in known.assumptions)
    if not problem.trace.dropout or (known.mode == "eval" and not assumed):
        return []
    text = (
        "The model has dropout and the dump was made in training mode: its random "
        "mask is not in the dump, so no gradient can be derived again: only what the rows of a "
        "linear layer show by themselves can be verified."
    )
    if known.mode == "eval":
        text = (
            "The model has dropout and nobody said in which mode the dump was made. If in training "
            "mode, its random mask is not in the dump, and an input that was not recovered means "
            "nothing. Say --mode."
        )
    return [Caveat("GA303", text, voids=False)]


def _set_aside(problem: Problem, dump: GradientDump) -> list[Caveat]:
    """What was given but does not fit, or does not reach: buffers, and auxiliary pictures."""
    raised = []
    if dump.set_aside:
        raised.append(
            Caveat(
                "GA318",
                f"Left out, because they do not fit the model: the buffers "
                f"{', '.join(dump.set_aside)}. What they say of steps, mode and statistics is not "
                "used.",
                voids=False,
            )
        )
    classes = problem.trace.head.classes
    shown = classes if problem.auxiliary is None else len(set(problem.auxiliary.labels.tolist()))
    if shown < classes:
        raised.append(
            Caveat(
                "GA319",
                f"The auxiliary pictures show {shown} of the model's {classes} classes: estimates "
                "of labels and controls know nothing of the others.",
                voids=False,
            )
        )
    return raised


def _estimated(known: Knowledge) -> list[Caveat]:
    """GA317 for an update whose training nobody described in full."""
    local = known.local
    if local is None or local.estimate is None:
        return []
    found = local.estimate
    if not found.what:
        text = (
            "The learning rate or the local steps of the update were not said and could not be "
            f"estimated: {found.reason}. Attacks that simulate the steps did not look."
        )
        return [Caveat("GA317", text, voids=False)]
    values = {"learning rate": f"{local.lr:.6g}", "local steps": str(local.steps)}
    said = ", ".join(f"{what} {values[what]}" for what in found.what)
    text = f"Nobody said how the client trained; estimated from the dump: {said}."
    if found.residual is not None:
        text += f" The best pictures leave a relative residual of {found.residual:.1e}"
        rest = (
            "" if found.runner_up is None else f", with the next best count {found.runner_up:.1e}"
        )
        text += f"{rest}."
    if found.also:
        also = ", ".join(map(str, found.also))
        text += f" As many steps explain the dump as well: {also}; the fewest were used."
    return [Caveat("GA317", text, voids=False)]


def scale_caveats(problem: Problem) -> tuple[Caveat, ...]:
    """GA306 when the head's bias gradient is larger than mean reduction can make it."""
    _, bias = head_gradients(problem)
    sums = head_sums(problem)
    if bias is None or sums is None or not sums.vanish or problem.knowledge.reduction != "mean":
        return ()
    if not is_scaled(problem):
        return ()
    negative = float(-bias.clamp_max(0).sum())
    if negative <= 1 + 10 * max(problem.precision, 1e-5):
        return ()
    return (
        Caveat(
            "GA306",
            f"The negative part of the head's bias gradient sums to {negative:.3g}; a mean "
            "over samples cannot exceed 1. The dump was summed, accumulated or scaled. Say "
            "--reduction sum if it was summed.",
            voids=True,
        ),
    )
