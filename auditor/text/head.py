"""Labels at known places, from the gradient of the head: in closed form.

Where texts are known, so are the head's inputs h_n and its probabilities p_n at every place n. Its
weight gradient is sum_n a_n h_n' with a_n = (m_n p_n - c_n) / N: m_n labels stand at place n, c_n
counts them by token, N is the number of labels of the batch. With fewer places than dimensions,
least squares give a_n. Tokens without a label show m_n / N, and then c_n follows.

When the head is the embedding too, the rows of tokens that the client put in hold something else
as well. For these the gradients of the layer norm in front of the head, linear in c, are solved
under c >= 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from auditor.text.hidden import head_reader, input_of
from auditor.text.records import TextProblem

_WHOLE = 0.1  # how far a count may be from a whole number
_SILENT = 1e-4  # beside the largest: a place without a label
_CAP = 32  # the median that gives m / N counts no token more than the one of this rank
_MOST_UNKNOWNS = 6000  # of the non-negative least squares


@dataclass(frozen=True, eq=False)
class Places:
    """Where labels may stand: one row each."""

    inputs: Tensor  # (n, d) what the head reads there
    normal: Tensor | None  # (n, d) what the layer norm in front of it made, before its gain


@dataclass(frozen=True, eq=False)
class LabelsAt:
    """How often each label stands at each place."""

    counts: Mapping[tuple[int, int], int]  # (place, token), none of them zero
    totals: tuple[int, ...]  # of each place
    complete: bool  # the counts of every place add up to its total


def places_of(problem: TextProblem, tokens: Tensor, attention: Tensor, at: Tensor) -> Places:
    """The places `at` (n, 2), as (row, position) of texts `tokens` (N, T)."""
    rows, positions = at[:, 0], at[:, 1]
    reader = head_reader(problem)
    inputs = input_of(problem, reader, tokens, attention)
    if inputs.ndim == 2:  # one vector a text
        return Places(inputs[rows], None)
    if problem.layout.norm is None:
        return Places(inputs[rows, positions], None)
    entering = input_of(problem, problem.layout.norm, tokens, attention)[rows, positions]
    return Places(inputs[rows, positions], _normal(problem, entering))


def _normal(problem: TextProblem, entering: Tensor) -> Tensor:
    """What the norm's gain multiplies: the difference between a gain of one and none.

    Some families multiply by one more than the gain.
    """
    assert problem.layout.norm is not None
    norm = problem.module.get_submodule(problem.layout.norm)
    with torch.no_grad():
        with_gain, without = (
            functional_call(
                norm,
                {
                    name: torch.full_like(p, gain if name == "weight" else 0.0)
                    for name, p in norm.named_parameters()
                },
                (entering,),
            )
            for gain in (1.0, 0.0)
        )
    found: Tensor = with_gain - without
    return found


def labels_at(
    problem: TextProblem,
    places: Places,
    *,
    entered: Tensor,
    next_place: Mapping[tuple[int, int], int],
    roots: tuple[int, ...] = (),
) -> LabelsAt | None:
    """Read the labels over the vocabulary at `places`.

    `entered` (M,): tokens that the client put in. `next_place`: (place, token) to the place where
    the text goes on. `roots`: places in which all texts of the batch begin; with them and the batch
    size the number of labels is known, else it is the smallest that makes every count whole.
    None when the dump does not hold the head's gradient, the places are too many, or nothing is
    whole.
    """
    if problem.layout.head not in problem.gradient or len(places.inputs) > problem.layout.width - 8:
        return None
    weights, p = _weights(problem, places), _probabilities(problem, places)
    clean = torch.ones(p.shape[1], dtype=torch.bool)
    if problem.layout.tied:
        clean[entered] = False
    shares = _shares(weights[:, clean], p[:, clean])
    total = _total(problem, shares, roots)
    totals = (shares * total).round()
    if not total or bool(((shares * total - totals).abs() > _WHOLE).any()):
        return None
    guess = total * (shares[:, None] * p - weights)
    seen = (guess.round() > 0) & clean
    if bool(((guess - guess.round())[seen].abs() > 2 * _WHOLE).any()):
        return None
    counts = {(int(n), int(v)): int(guess[n, v].round()) for n, v in seen.nonzero()}
    if problem.layout.tied:
        counts |= {pair: int(totals[n]) for pair, n in next_place.items() if totals[n] > 0}
        counts = _with_entered(problem, places, (p * totals[:, None]), counts, entered, int(total))
    sums = torch.zeros(len(totals), dtype=torch.float64)
    for (place, _), count in counts.items():
        sums[place] += count
    return LabelsAt(counts, tuple(int(m) for m in totals), complete=bool((sums == totals).all()))


def class_labels(problem: TextProblem, places: Places) -> dict[int, tuple[int, ...]] | None:
    """The labels of a classification at each of the `places` that has any; None when it is open.

    The same text may be there several times. Without a batch size each place counts once.
    """
    if problem.layout.head not in problem.gradient or len(places.inputs) > problem.layout.width - 8:
        return None
    weights, p = _weights(problem, places), _probabilities(problem, places)
    sizes = weights.norm(dim=1)
    there = (sizes > _SILENT * sizes.max()).nonzero().flatten().tolist()
    size = problem.knowledge.batch_size or len(there)
    found = {}
    for place in there:
        for often in range(1, size - len(there) + 2):
            counts = often * p[place] - size * weights[place]
            whole = counts.round()
            if bool((whole >= 0).all()) and float((counts - whole).abs().max()) <= _WHOLE:
                labels = torch.arange(len(whole)).repeat_interleave(whole.long())
                found[place] = tuple(labels.tolist())
                break
    complete = len(found) == len(there) and sum(map(len, found.values())) == size
    return found if complete and found else None


def _weights(problem: TextProblem, places: Places) -> Tensor:
    """a (n, V): least squares for the head's gradient over the places' inputs."""
    assert problem.layout.head is not None
    inverse = torch.linalg.pinv(places.inputs.cpu().double(), rcond=1e-9)  # (d, n)
    found: Tensor = (problem.gradient[problem.layout.head].cpu().double() @ inverse).mT
    return found


def _probabilities(problem: TextProblem, places: Places) -> Tensor:
    layout, named = problem.layout, dict(problem.module.named_parameters())
    assert layout.head is not None
    bias = named[layout.head_bias].detach() if layout.head_bias else None
    logits = F.linear(places.inputs, named[layout.head].detach(), bias)
    return logits.cpu().double().softmax(1)


def _shares(weights: Tensor, p: Tensor) -> Tensor:
    """m / N (n,): the median of a / p, each token weighted by p.

    Tokens of large p are capped, as one of them may be the label. Nearly nothing is nothing.
    """
    heavy = p.topk(min(_CAP, p.shape[1]), dim=1).values[:, -1:]
    ratios, order = (weights / p.clamp_min(1e-300)).sort(dim=1)
    heaps = p.minimum(heavy).gather(1, order).cumsum(1)
    middle = (heaps < heaps[:, -1:] / 2).sum(1, keepdim=True)
    shares = ratios.gather(1, middle.clamp_max(p.shape[1] - 1))[:, 0]
    return torch.where(shares > shares.max() * 1e-4, shares, 0.0)


def _total(problem: TextProblem, shares: Tensor, roots: tuple[int, ...]) -> float:
    """N, the number of labels in the batch; zero when it is not to be had."""
    size, begun = problem.knowledge.batch_size, float(shares[list(roots)].sum())
    if roots and size is not None and begun > 0:
        return float(round(size / begun))
    some = shares[shares > 0]
    return float(round(1 / float(some.min()))) if len(some) else 0.0


def _with_entered(
    problem: TextProblem,
    places: Places,
    expected: Tensor,
    counts: Mapping[tuple[int, int], int],
    entered: Tensor,
    total: int,
) -> dict[tuple[int, int], int]:
    """`counts` with those of entered tokens, by the gradients of the layer norm.

    `expected` (n, V): m_n p_n. The gradients are linear in what is missing.
    """
    known = expected.clone()
    for (place, token), count in counts.items():
        known[place, token] -= count
    where = (known.sum(1).round() > 0).nonzero().flatten()
    if not len(where) or len(where) * len(entered) > _MOST_UNKNOWNS:
        return dict(counts)
    columns, target = _norm_system(problem, places, known, where, entered, total)
    if not len(target):
        return dict(counts)
    found = nnls(columns.numpy(), target.numpy())[0].round().reshape(len(where), len(entered))
    pairs = zip(*found.nonzero(), strict=True)
    return dict(counts) | {
        (int(where[i]), int(entered[j])): counts.get((int(where[i]), int(entered[j])), 0)
        + int(found[i, j])
        for i, j in pairs
    }


def _norm_system(
    problem: TextProblem,
    places: Places,
    known: Tensor,
    where: Tensor,
    entered: Tensor,
    total: int,
) -> tuple[Tensor, Tensor]:
    """Equations for the labels that are missing at `where`: a column each (place, token).

    `known` (n, V) is m p - c without them. The norm's gradients are the sums over places of
    (table' (m p - c)) * x / N, with x what the norm made for its gain and ones for its bias; the
    gradient of the head's bias is the sum of m p - c itself.
    """
    layout, sent = problem.layout, problem.gradient
    table = dict(problem.module.named_parameters())[str(layout.head)].detach().cpu().double()
    pulled = known @ table  # (n, d)
    columns, target = [torch.zeros(0, len(where) * len(entered), dtype=torch.float64)], []
    target.append(torch.zeros(0, dtype=torch.float64))
    ones = torch.ones_like(pulled)
    normals = {
        "weight": None if places.normal is None else places.normal.cpu().double(),
        "bias": ones,
    }
    for name, normal in normals.items():
        if normal is not None and f"{layout.norm}.{name}" in sent:
            each = normal[where][:, None] * table[entered][None]  # (w, M, d)
            columns.append(each.flatten(0, 1).mT)
            there = sent[f"{layout.norm}.{name}"].cpu().double()
            target.append((normal * pulled).sum(0) - total * there)
    if layout.head_bias in sent:
        columns.append(torch.eye(len(entered), dtype=torch.float64).repeat(1, len(where)))
        left = known.sum(0) - total * sent[str(layout.head_bias)].cpu().double()
        target.append(left[entered])
    return torch.cat(columns), torch.cat(target)
