"""Class labels of a classification, from the gradient of its head.

The statements are those of auditor/attacks/statements.py: a head does not care whether its features
come from a picture or from a text. Where they do not settle the whole batch nothing is claimed;
texts that are found bring their labels along (head.py).
Source: Zhao, Mopuri, Bilen 2020 (iDLG), arXiv:2001.02610, and docs/attacks/labels.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.statements import counts_below, single_by_bias, single_without_bias
from auditor.text.attacks.base import Watch
from auditor.text.records import TextProblem, TextRecovery

_SUMS = 1e-3  # of the gradient: softmax cross-entropy leaves sums over classes of rounding only
_OPEN = "the head's gradient does not settle the labels of the whole batch"


@dataclass(frozen=True)
class Labels:
    """Reads the labels off the classifier's gradient, when they are determined."""

    name: str = "text.labels"
    title: str = "Labels from the classifier's gradient"

    def blocked_by(self, problem: TextProblem) -> str | None:
        if problem.knowledge.task != "classification":
            return "the model does not classify texts"
        if problem.knowledge.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        if problem.layout.head not in problem.gradient:
            return "the dump holds no gradient of the head"
        weight = problem.gradient[str(problem.layout.head)]
        if not weight.any() or weight.sum(0).norm() > _SUMS * weight.norm():
            return "the head's gradient is not that of a softmax over the classes"
        return None

    def run(self, problem: TextProblem, *, seed: int, watch: Watch) -> TextRecovery:
        del seed
        size = problem.knowledge.batch_size
        assert size is not None, "blocked_by was not asked"
        labels = _single(problem) if size == 1 else _counted(problem, size)
        notes = () if labels is not None else (_OPEN,)
        return TextRecovery(labels=labels, expired=watch.expired(), notes=notes)


def _single(problem: TextProblem) -> Tensor | None:
    """The label (1,) of one text: T3, or T4 without a bias."""
    weight, bias = _sent(problem, problem.layout.head), _sent(problem, problem.layout.head_bias)
    named = dict(problem.module.named_parameters())
    head = named[str(problem.layout.head)].detach().cpu().double()
    assert weight is not None, "blocked_by was not asked"
    if bias is not None:
        offset = named[str(problem.layout.head_bias)].detach().cpu().double()
        found = single_by_bias(
            weight, bias, head, offset, precision=problem.precision, smoothing=0.0
        )
    elif problem.layout.head_bias is None:
        found = single_without_bias(
            weight, head, None, precision=problem.precision, told_single=True
        )
    else:
        return None
    return None if found is None else torch.tensor([found.label])


def _counted(problem: TextProblem, size: int) -> Tensor | None:
    """The labels (N,), sorted, when the lower bounds of T5 add up to the batch (T6)."""
    bias = _sent(problem, problem.layout.head_bias)
    if bias is None:
        return None
    slack = max(1e-4, 4 * problem.precision * size)
    counts = counts_below(bias, samples=size, slack=slack, smoothing=0.0, reduction="mean")
    if int(counts.sum()) != size:
        return None
    return torch.arange(len(counts)).repeat_interleave(counts.long())


def _sent(problem: TextProblem, name: str | None) -> Tensor | None:
    return None if name not in problem.gradient else problem.gradient[str(name)].cpu().double()
