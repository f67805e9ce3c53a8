"""Claimed classes laid beside the head's gradient: what its signs prove without any claim.

Of softmax cross-entropy, mean over N texts, the bias of class c has the gradient
g_c = mean_i (p_ic - y_ic) and the weight the row mean_i (p_ic - y_ic) e_i'. As p > 0, class c
occurs more than -N g_c times (docs/attacks/labels.md, T5). Of one text all rows are multiples of e,
that of its class by a negative factor, the others by positive ones (T4); it needs three classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.text.checks import head_sums_vanish
from auditor.text.records import TextProblem

_SLACK = 1e-4  # of a count: rounding, as for pictures


def classes_are_proved(problem: TextProblem, claim: Tensor) -> bool:
    """Whether the head's gradient leaves no other classes (N,) than those of `claim`."""
    size, classes = problem.knowledge.batch_size, problem.knowledge.classes
    if size is None or len(claim) != size or not head_sums_vanish(problem):
        return False
    counts = torch.bincount(claim.cpu(), minlength=classes)
    bias = _sent(problem, problem.layout.head_bias)
    if bias is not None:
        least = torch.ceil(-size * bias - _SLACK * max(size, 1)).clamp_min(0)
        return int(least.sum()) == size and torch.equal(least.long(), counts)
    weight = _sent(problem, problem.layout.head)
    return size == 1 and weight is not None and _stands_apart(weight) == int(claim[0])


def _stands_apart(weight: Tensor) -> int | None:
    """The one row (of K, E) that points against all others, which agree; None without one."""
    signs = (weight @ weight.mT).sign()  # (K, K)
    against = (signs < 0).sum(1)
    alone = (against == len(weight) - 1).nonzero().flatten().tolist()
    others = int((signs < 0).sum()) == 2 * (len(weight) - 1)
    return alone[0] if len(weight) > 2 and len(alone) == 1 and others else None


def _sent(problem: TextProblem, name: str | None) -> Tensor | None:
    sent = None if name is None else problem.gradient.get(name)
    return None if sent is None else sent.cpu().double()
