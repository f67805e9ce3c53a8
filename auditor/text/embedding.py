"""What the gradients of the embeddings say: which tokens went in, and how long texts are."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.text.records import TextProblem
from auditor.text.span import FINEST_NEEDED

_MOST = 0.5  # of the vocabulary: beyond, it is noise
_SAMPLE = 6  # rows for each dimension, to find the space of a tied embedding's other part
_LOW = 0.8  # of the rows, those of least norm
_ROUNDING = 1e-5  # singular values, relative: what they leave of rows is rounding
_ALONE = 0.5  # leverage of a row that brings a direction of its own: it holds more than the rest
_FULL = 0.95  # of the positions
_COARSE = "the dump is rounded too coarsely to tell the parts of a tied embedding apart"
_APART = 1e-2  # of its length, that a row sticks out of that space


def why_no_tokens(problem: TextProblem) -> str | None:
    """Why the embedding's gradient gives no token set; None when it does."""
    layout = problem.layout
    if layout.embedding not in problem.gradient:
        return "the dump holds no gradient of the embedding"
    if layout.tied and problem.knowledge.task != "classification":
        coarse = problem.precision > FINEST_NEEDED
        return _COARSE if coarse else None
    rows = _nonzero(problem.gradient[layout.embedding])
    if not len(rows):
        return "the gradient of the embedding is zero"
    if len(rows) > _MOST * layout.vocabulary:
        return "most rows of the embedding's gradient are not zero: noise was added, or it is tied"
    return None


def entered_tokens(problem: TextProblem) -> Tensor | None:
    """The tokens (M,) that went in and changed the loss, all of them; None when it is not known.

    Untied embeddings only: what sticks out of a tied one need not be all.
    """
    if problem.layout.tied or why_no_tokens(problem) is not None:
        return None
    return _nonzero(problem.gradient[problem.layout.embedding])


def tied_tokens(problem: TextProblem) -> Tensor | str:
    """The tokens (M,) whose rows of a tied embedding hold more than the head's part.

    Most rows lie in the space that the head's inputs span; or why there is no such space.
    """
    if problem.precision > FINEST_NEEDED:
        return _COARSE
    table = problem.gradient[problem.layout.embedding].double()
    norms = table.norm(dim=1)
    low = norms.argsort()[: int(_LOW * len(norms))]
    low = low[norms[low] > 0]
    step = max(1, len(low) // (_SAMPLE * table.shape[1]))
    sample = table[low[::step]] / norms[low[::step], None]
    if len(sample) <= table.shape[1]:
        return "the vocabulary is too small beside the width to tell the parts of a tied embedding"
    space, values = _space(sample)
    alone = ((sample @ space) / values).square().sum(1) > _ALONE
    space, values = _space(sample[~alone])
    if len(values) >= table.shape[1] - 1:
        return "the rows of the tied embedding's gradient share no small space: too long, or noise"
    apart = (table - (table @ space) @ space.mT).norm(dim=1)
    found: Tensor = (apart > _APART * norms.clamp_min(1e-300)).nonzero().flatten().cpu()
    return found


def _space(rows: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (d, r) of rows (n, d), rounding left out, and its singular values."""
    values, basis = torch.linalg.eigh(rows.mT @ rows)
    kept = values > _ROUNDING**2 * values[-1]
    return basis[:, kept], values[kept].sqrt()


def label_tokens(problem: TextProblem) -> Tensor:
    """The tokens (M,) whose entry of the decoder bias is negative: labels of some place."""
    name = problem.layout.head_bias
    if name not in problem.gradient or problem.knowledge.task == "classification":
        return torch.zeros(0, dtype=torch.long)
    bias = problem.gradient[str(name)]
    rounding = 16 * max(problem.precision, torch.finfo(torch.float32).eps)
    return (bias < -rounding * bias.abs().max()).nonzero().flatten().cpu()


def longest_of(problem: TextProblem) -> int | None:
    """How many tokens the longest text has; None when neither the dump nor anybody says.

    The last token of a causal model is a label only, and leaves its position's row at zero.
    """
    if problem.knowledge.longest is not None:
        return problem.knowledge.longest
    name = problem.layout.positions
    if name not in problem.gradient:
        return None
    rows = _nonzero(problem.gradient[str(name)])
    if len(rows) > _FULL * len(problem.gradient[str(name)]):
        return None  # noise leaves no row at zero
    table = problem.module.get_submodule(str(name).removesuffix(".weight"))
    padding = getattr(table, "padding_idx", None)
    if not len(rows):
        return None
    used = int(rows[-1]) + 1 - (0 if padding is None else int(padding) + 1)
    return used + (problem.knowledge.task == "causal")


def _nonzero(table: Tensor) -> Tensor:
    return table.any(dim=1).nonzero().flatten().cpu()
