"""Caveats about a text audit: whether the dump can be what it is said to be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from auditor.records import Caveat, GradientDump
from auditor.text.records import TextProblem

# As for pictures: what summation order leaves in exact sums, and the rounding of a softmax.
_SUMMATION, _SOFTMAX, _WORST = 1e-4, 4 * torch.finfo(torch.float32).eps, 1e-2


def text_caveats(problem: TextProblem, dump: GradientDump) -> tuple[Caveat, ...]:
    """Everything about this dump and this model that weakens or voids the verdict."""
    known = problem.knowledge
    raised = _head_caveats(problem)
    assumed = [a.what for a in known.assumptions if a.origin == "assumed"]
    if assumed:
        text = f"Assumed, because nobody said: {', '.join(assumed)}."
        raised.append(Caveat("GA302", text, voids=False))
    if known.mode == "train" and has_dropout(problem.module):
        text = (
            "The model has dropout and the dump was made in training mode: its random mask is not "
            "in the dump, so no text can be verified."
        )
        raised.append(Caveat("GA303", text, voids=False))
    if dump.missing:
        total = len(dump.missing) + len(dump.tensors)
        text = f"The dump holds no gradient for {len(dump.missing)} of {total} parameters."
        raised.append(Caveat("GA304", text, voids=False))
    if known.batch_size is None:
        text = "The batch size is unknown: how much of the batch was rebuilt cannot be told."
        raised.append(Caveat("GA305", text, voids=False))
    if known.overrides:
        text = f"The command line overrides the dump's metadata: {'; '.join(known.overrides)}."
        raised.append(Caveat("GA307", text, voids=False))
    return tuple(raised)


def has_dropout(module: nn.Module) -> bool:
    """Whether any dropout of the model would be active in training mode."""
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())
    config = getattr(module, "config", None)
    return drops or bool(getattr(config, "attention_dropout", 0.0))


def head_sums_vanish(problem: TextProblem) -> bool:
    """Whether the head's gradients sum to zero over its outputs, as softmax cross-entropy has it.

    True when the dump holds none that could tell.
    """
    return not _bad_sums(problem)


def _bad_sums(problem: TextProblem) -> list[tuple[float, float]]:
    sums = [_sums(problem, sent) for sent in _heads(problem)]
    return [(ratio, allowed) for ratio, allowed in sums if ratio > allowed]


def _head_caveats(problem: TextProblem) -> list[Caveat]:
    bad = _bad_sums(problem)
    if not bad:
        return []
    ratio, allowed = max(bad)
    return [
        Caveat(
            "GA301",
            f"The head's gradients sum to {ratio:.1e} of their norm; softmax cross-entropy and the "
            f"dump's precision allow {allowed:.1e}. The dump was noised, pruned or quantised, its "
            "loss is another one, or it belongs to another model: a text that was not recovered "
            "means nothing.",
            voids=True,
        )
    ]


def _heads(problem: TextProblem) -> list[Tensor]:
    """A tied head is the embedding, whose gradient has another part."""
    layout = problem.layout
    names = [layout.head_bias, None if layout.tied else layout.head]
    return [problem.gradient[n] for n in names if n is not None and n in problem.gradient]


def _sums(problem: TextProblem, sent: Tensor) -> tuple[float, float]:
    """The norm of the sums relative to that of the tensor, and what rounding explains."""
    size = max(float(sent.norm()), 1e-30)
    relative = max(2 * problem.precision, _SUMMATION)
    width = sent.shape[1] if sent.ndim == 2 else 1
    blur = _SOFTMAX * width**0.5 / size
    return float(sent.double().sum(0).norm()) / size, min(relative + blur, max(relative, _WORST))
