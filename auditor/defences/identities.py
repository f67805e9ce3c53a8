"""Linear identities: sums of a gradient's entries that are zero for every batch of this model.

Independent noise of standard deviation sigma on every entry gives a sum with coefficients a the
variance sigma^2 |a|^2: so each identity measures sigma without any truth. Some hold for any weights
(the sums over the classes; what lies outside the span of one outer product a sample), some only for
the weights that made the gradient (batch norm; units whose scale nothing sees). What the first say
of the noise, the second have to say as well, or model and dump do not belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from auditor.batch_norm import rows_of
from auditor.defences.pairs import Pair, Vectors, pairs_of, vector_layers_of
from auditor.graph import record
from auditor.problem import is_one_gradient
from auditor.records import Head, Mode, Normalised, Problem

Gradient = Mapping[str, Tensor]
# Kinds of groups, for people.
SUMS = "sums over the classes"
OUTER = "one outer product a sample"
UNITS = "units that ReLU joins"
NORM = "batch norm"
# Singular vectors of more than this say no more about sigma, and cost more.
_ROWS, _COLUMNS = 256, 1024
# The span of so many samples may not fit itself to more than this share of pure noise.
_FITTED = 0.04
_PIECE = 1 << 20  # products that are made at once
_UNLIKE = 100.0  # times the running variance may be that of the batch
_COUNTED = 2000.0  # degrees: the interval then covers what the span fitted
_UNKNOWN_BATCH = 8  # samples whose span is left out when nobody says how many there are
_STANDS_OUT = 50.0  # squares of singular values, beside their median: those of noise reach 6
_EDGE = 3.0  # times the largest singular value of noise: a span that noise does not move


@dataclass(frozen=True)
class Group:
    """Identities of one kind at one place, each divided by |a|."""

    name: str  # for people: the parameters
    kind: str  # SUMS, OUTER, UNITS or NORM
    tensors: tuple[str, ...]
    energy: float  # sum of the squares of what should be zero
    degrees: float  # independent identities: noise makes the energy sigma^2 * degrees
    size: float  # the energy that errors as large as the entries themselves would make
    by_weights: bool  # holds only for the weights that made the gradient
    mode: Mode | None = None  # of the batch norms, when it holds in that one only
    slack: float = 0.0  # energy that the constant under a batch norm's root may leave
    crowded: bool = False  # of outer products: more than there are samples stand out

    @property
    def variance(self) -> float:
        """Of one entry, if this is noise."""
        return self.energy / self.degrees

    @property
    def ratio(self) -> float:
        """Relative size of what is left: about 1 where no identity holds."""
        return float((self.energy / max(self.size, 1e-300)) ** 0.5)


@dataclass(frozen=True)
class Structure:
    """Where identities can stand in this model."""

    head: Head
    vectors: tuple[Vectors, ...]
    pairs: tuple[Pair, ...]
    normalised: tuple[Normalised, ...]


def structure_of(problem: Problem) -> Structure:
    """Record one forward pass of two samples, and find the places of identities."""
    first = next(problem.module.parameters())
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(2, *problem.knowledge.input_shape, generator=generator).to(first)
    _, recording = record(problem.module, probe)
    return Structure(
        problem.trace.head,
        vector_layers_of(recording),
        pairs_of(recording),
        problem.trace.normalised,
    )


def groups_of(problem: Problem, found: Structure, gradient: Gradient) -> tuple[Group, ...]:
    """All identities that this gradient can be tested with.

    Of several local steps only the sums over the classes are left. Batch norm gives two groups a
    layer, one for each mode.
    """
    batch = problem.knowledge.batch_size
    gradient = {name: part.detach().cpu() for name, part in gradient.items()}
    groups = [_head_group(found.head, gradient, batch)]
    if is_one_gradient(problem):
        named = {name: p.detach().cpu() for name, p in problem.module.named_parameters()}
        if batch is not None:
            groups += [_rank_group(layer, gradient, batch, found.head) for layer in found.vectors]
        groups += [_pair_group(pair, named, gradient) for pair in found.pairs]
        for layer in found.normalised:
            groups += [_evaluation_group(layer, named, gradient)]
            groups += [_training_group(layer, named, gradient, problem.module)]
    return tuple(group for group in groups if group is not None and group.degrees >= 1)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _head_group(head: Head, gradient: Gradient, batch: int | None) -> Group | None:
    """Column sums of the weight's gradient, without the span of the features.

    A softmax that was rounded, or another loss, leaves sums within that span; noise leaves the same
    everywhere. The span is that of the matrix without its sums, which are independent of it.
    """
    if head.weight not in gradient:
        return None
    sent = _double(gradient[head.weight])
    classes, features = sent.shape
    sums = sent.sum(0) / classes**0.5
    rest = sent - sent.mean(0)
    spanned = min(batch or _UNKNOWN_BATCH, classes - 1, features // 2)
    span = torch.linalg.svd(rest, full_matrices=False)[2][:spanned]
    outside = sums - span.mT @ (span @ sums)
    return Group(
        head.weight,
        SUMS,
        (head.weight,),
        float(outside.square().sum()),
        features - spanned,
        float(sent.square().sum()) / classes,
        by_weights=False,
    )


def _rank_group(layer: Vectors, gradient: Gradient, batch: int, head: Head) -> Group | None:
    """What lies outside the span of `batch` outer products."""
    if layer.weight not in gradient:
        return None
    sent, is_head = _double(gradient[layer.weight]), layer.weight == head.weight
    if layer.bias is not None and layer.bias in gradient:
        sent = torch.cat([_double(gradient[layer.bias])[:, None], sent], 1)
    if is_head:  # without its sums over the classes, which are a group of their own
        sent = sent - sent.mean(0)
    sent = sent[:: -(-len(sent) // _ROWS), :: -(-sent.shape[1] // _COLUMNS)]
    rows, columns = len(sent) - is_head, sent.shape[1]
    degrees = (rows - batch) * (columns - batch)
    if rows <= batch or columns <= batch:
        return None
    values = torch.linalg.svdvals(sent).square()[:rows]  # without the sums, one less
    energy = float(values[batch:].sum())
    edge = (energy / degrees) ** 0.5 * (rows**0.5 + columns**0.5)
    fits = 2 * batch <= _FITTED * (rows * columns) ** 0.5
    if not fits and not float(values[batch - 1]) ** 0.5 > _EDGE * edge:
        return None
    size = float(values.sum()) * degrees / (rows * columns)
    counted = min(1.0, _COUNTED / degrees)
    return Group(
        layer.weight,
        OUTER,
        (layer.weight,),
        counted * energy,
        counted * degrees,
        counted * size,
        by_weights=False,
        crowded=float(values[batch]) > _STANDS_OUT * float(values[batch:].median()),
    )


def _pair_group(pair: Pair, named: Gradient, gradient: Gradient) -> Group | None:
    """Weights times gradients on both sides of each unit."""
    names = (*pair.made_by, pair.read_by)
    if not set(names) <= gradient.keys():
        return None
    terms = []
    for name in names:
        weight, sent = named[name], gradient[name]
        if name == pair.read_by:  # (outputs, units, places), less
            sides = [part.reshape(len(part), pair.units, -1) for part in (weight, sent)]
            terms.append(_row_sums(*(part.transpose(0, 1) for part in sides), sign=-1.0))
        else:
            terms.append(_row_sums(*(p.reshape(pair.units, 1, -1) for p in (weight, sent))))
    return _group(" and ".join(names), UNITS, names, terms)


def _evaluation_group(layer: Normalised, named: Gradient, gradient: Gradient) -> Group | None:
    """Rows times their gradients follow from gain and shift, as in batch_norm.py."""
    parts = (layer.weight, layer.gain, layer.shift)
    if not set(parts) <= gradient.keys() or _lacks_bias(layer, gradient):
        return None
    rows, sent, mean = rows_of(layer, named, gradient)
    gain = _double(named[str(layer.gain)])
    slope = gain * _double(mean / layer.deviation.to(mean))
    terms = [
        _row_sums(rows, sent),
        _row_sums(-gain[:, None], gradient[str(layer.gain)][:, None]),
        _row_sums(-slope[:, None], gradient[str(layer.shift)][:, None]),
    ]
    return _group(layer.weight, NORM, tuple(map(str, parts)), terms, mode="eval")


def _training_group(
    layer: Normalised, named: Gradient, gradient: Gradient, module: nn.Module
) -> Group | None:
    """Rows at a right angle to their gradients; what eps adds is told from the running variance."""
    parts = (layer.weight, layer.gain)
    if not set(parts) <= gradient.keys() or _lacks_bias(layer, gradient):
        return None
    rows, sent, _ = rows_of(layer, named, gradient)
    norm = module.get_submodule(str(layer.gain).rpartition(".")[0])
    share = getattr(norm, "eps", 0.0) / _double(layer.deviation).square()
    gain = -share * _double(named[str(layer.gain)])
    terms = [
        _row_sums(rows, sent),
        _row_sums(gain[:, None], gradient[str(layer.gain)][:, None]),
    ]
    group = _group(layer.weight, NORM, tuple(map(str, parts)), terms, mode="train")
    if group is None:
        return None
    spread = (_UNLIKE * share).clamp_max(1)
    if layer.young:
        spread = torch.ones_like(share)
    unknown = spread * (gain / share.clamp_min(1e-300))
    left = (unknown * _double(gradient[str(layer.gain)])).square()
    lengths = rows.double().cpu().square().sum(1).clamp_min(1e-300)
    return replace(group, slack=float((left / lengths).sum()))


def _lacks_bias(layer: Normalised, gradient: Gradient) -> bool:
    return layer.bias is not None and layer.bias not in gradient and layer.rectified


def _row_sums(coefficients: Tensor, entries: Tensor, *, sign: float = 1.0) -> Tensor:
    """(3, C) of a, g (C, ...): the sums over each row of a^2, a g and (a g)^2, in double precision.

    Piece by piece along the outermost dimension in memory: a layer may have 100 million weights.
    """
    outer = max(range(coefficients.dim()), key=coefficients.stride)
    step = max(coefficients.shape[outer] * _PIECE // max(coefficients.numel(), 1), 1)
    found = torch.zeros(3, len(coefficients), dtype=torch.float64)
    for start in range(0, coefficients.shape[outer], step):
        length = min(step, coefficients.shape[outer] - start)
        pieces = (part.narrow(outer, start, length) for part in (coefficients, entries))
        a, g = (_double(piece).flatten(1) for piece in pieces)
        products = a * g
        rows = torch.stack([a.square().sum(1), sign * products.sum(1), products.square().sum(1)])
        if outer == 0:
            found[:, start : start + length] += rows
        else:
            found += rows
    return found


def _group(
    name: str,
    kind: str,
    tensors: tuple[str, ...],
    terms: list[Tensor],
    *,
    mode: Mode | None = None,
) -> Group | None:
    """One identity a row: coefficients times entries, added over all terms (`_row_sums`)."""
    lengths, sums, sizes = torch.stack(terms).sum(0)
    told = lengths > 0
    if not bool(told.any()):
        return None
    sums, sizes = sums[told], sizes[told]
    energy = float((sums.square() / lengths[told]).sum())
    size = float((sizes / lengths[told]).sum())
    return Group(name, kind, tensors, energy, int(told.sum()), size, by_weights=True, mode=mode)
