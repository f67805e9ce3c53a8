"""The likeliest labels of a batch within what is proved, with a probability for each.

First simulated clients with the user's pictures, or synthetic ones, are asked which rule to trust
on this model (posterior.py). That holds only if the dump looks like theirs; else published rules
are asked, which agree on networks that know little, and where they do not, what is not proved is
spread evenly: on trained networks most samples leave next to nothing in the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.checks import head_gradients
from auditor.labels.decoding import Decoder, readable, trust
from auditor.labels.posterior import Estimator, evenly, learn, spread_out
from auditor.labels.reference import Reference, reference_of
from auditor.labels.rules import Heads, Layer, explained_counts
from auditor.labels.search import Limits
from auditor.labels.simulation import Bounds, Client
from auditor.problem import is_one_gradient
from auditor.records import Problem

UNCALIBRATED = "uncalibrated"
_AGREE = 0.8  # overlap from which on two published rules are believed
_DENSE_CLASSES = 1000  # up to here the K x K system of iLRG's relation is solved
_SURE = 0.98  # labels that the rules are so sure of are not searched for
_EXPLAINED = 100.0  # squared residual per equation, in roundings, of a guess that can be right
_CONCENTRATION = 0.3  # of clients that hold few classes: most of a batch is of one or two
# Squared distance from the simulated dumps, in standard deviations of three numbers: one dump in
# ten thousand is further away.
_UNLIKE = 21.1


@dataclass(frozen=True)
class Estimate:
    """A multiset of N labels, sorted."""

    labels: Tensor  # (N,) int64
    probabilities: Tensor | None  # (N,) float64 in that order; None when they are not known
    undetermined: Tensor  # (N,) bool: the dump does not say
    calibration: str  # "self-simulated on 500 auxiliary images" or "uncalibrated"


def estimate_labels(
    problem: Problem,
    lower: Tensor,
    upper: Tensor,
    bounds: Bounds | None,
    *,
    seed: int,
    expired: Callable[[], bool],
) -> Estimate:
    """The best multiset of the told size with counts (K,) within the bounds.

    `bounds` makes the proved counts of simulated dumps; None: do not simulate, because the dump is
    not what it is said to be.
    """
    heads = _heads(problem)
    if bounds is not None and is_one_gradient(problem):
        found = _simulated(problem, heads, lower, upper, bounds, seed=seed, expired=expired)
        if found is not None:
            return found
    return _by_rules(problem, heads, lower, upper)


def _heads(problem: Problem) -> Heads:
    """The dump's head gradient as sums over the batch."""
    weight, bias = head_gradients(problem)
    size = problem.knowledge.batch_size or 1
    factor = size if problem.knowledge.reduction == "mean" else 1
    return Heads(
        None if weight is None else factor * weight[None],
        None if bias is None else factor * bias[None],
    )


def _layer(problem: Problem) -> Layer:
    named, head = dict(problem.module.named_parameters()), problem.trace.head
    matrix = named[head.weight].detach().cpu().double()
    if head.bias is None:
        return Layer(matrix, matrix.new_zeros(head.classes))
    return Layer(matrix, named[head.bias].detach().cpu().double())


# --------------------------------------------------------------------------- simulated clients


def _simulated(
    problem: Problem,
    heads: Heads,
    lower: Tensor,
    upper: Tensor,
    bounds: Bounds,
    *,
    seed: int,
    expired: Callable[[], bool],
) -> Estimate | None:
    reference = reference_of(problem, seed=seed, expired=expired)
    if reference is None or len(reference.features) < 4:
        return None
    taught = _like_the_dump(problem, heads, reference, bounds, seed=seed, expired=expired)
    learnt = None if taught is None else _weighed(problem, heads, lower, upper, reference, taught)
    if learnt is not None and bool((_probabilities(learnt) >= _SURE).all()):
        return learnt
    read = _read(
        problem, heads, lower, upper, bounds, reference, taught, seed=seed, expired=expired
    )
    return learnt if read is None else read


def _probabilities(estimate: Estimate) -> Tensor:
    assert estimate.probabilities is not None
    return estimate.probabilities


def _weighed(
    problem: Problem,
    heads: Heads,
    lower: Tensor,
    upper: Tensor,
    reference: Reference,
    taught: tuple[Client, Estimator],
) -> Estimate:
    """The rules, as simulated clients weighed them."""
    client, estimator = taught
    size = int(problem.knowledge.batch_size or 0)
    added, margins = spread_out(estimator.expected(heads)[0], lower, upper, size)
    probabilities = estimator.map(margins)
    calibration = _calibration(reference, client)
    return _in_order(lower, added, probabilities, probabilities < 0.5, calibration)


def _calibration(reference: Reference, client: Client) -> str:
    few = "" if client.concentration is None else ", for clients of few classes"
    return f"self-simulated on {reference.origin}{few}"


def _read(
    problem: Problem,
    heads: Heads,
    lower: Tensor,
    upper: Tensor,
    bounds: Bounds,
    reference: Reference,
    taught: tuple[Client, Estimator] | None,
    *,
    seed: int,
    expired: Callable[[], bool],
) -> Estimate | None:
    """The labels by feature matching, unless simulated clients say that the rules do better.

    Where no simulated client is like this one, they are taken if they explain the dump.
    """
    size, layer = int(problem.knowledge.batch_size or 0), _layer(problem)
    if not readable(heads, size, problem.knowledge.label_smoothing):
        return None
    every = torch.arange(len(reference.features))
    decoder = Decoder(layer, size, problem.precision, reference, every)
    found = decoder(heads, Limits(lower, upper), seed=seed, expired=expired)
    if found is None:
        return None
    if taught is None:
        unsure = ~found.seen
        explained = found.excess <= _EXPLAINED
        return _in_order(lower, found.added, None, unsure, UNCALIBRATED) if explained else None
    client, estimator = taught
    learnt = trust(client, reference, layer, bounds, estimator.expected, seed=seed, expired=expired)
    if learnt is None or learnt.overlap < learnt.rival:
        return None
    shares = learnt.map(found.margins)
    return _in_order(lower, found.added, shares, shares < 0.5, _calibration(reference, client))


def _like_the_dump(
    problem: Problem,
    heads: Heads,
    reference: Reference,
    bounds: Bounds,
    *,
    seed: int,
    expired: Callable[[], bool],
) -> tuple[Client, Estimator] | None:
    """What clients teach whose dumps look like this one; None when neither kind's do.

    Classes are taken to be equally likely, unless the dump speaks against it.
    """
    known = problem.knowledge
    equal = Client(
        size=int(known.batch_size or 0),
        classes=problem.trace.head.classes,
        smoothing=known.label_smoothing,
        precision=problem.precision,
        has_weight=heads.weight is not None,
        has_bias=heads.bias is not None,
        concentration=None,
    )
    layer = _layer(problem)
    tried: list[tuple[float, Client, Estimator]] = []
    for client in (equal, replace(equal, concentration=_CONCENTRATION)):
        generator = torch.Generator().manual_seed(seed)
        estimator = learn(client, reference, layer, bounds, generator=generator, expired=expired)
        if estimator is None:
            break
        tried.append((estimator.unlikeness(heads), client, estimator))
        if tried[-1][0] <= _UNLIKE:
            break
    unlike, client, estimator = min(
        tried, key=lambda found: found[0], default=(math.inf, equal, None)
    )
    return (client, estimator) if estimator is not None and unlike <= _UNLIKE else None


# --------------------------------------------------------------------------- published rules


def _by_rules(problem: Problem, heads: Heads, lower: Tensor, upper: Tensor) -> Estimate:
    """iLRG's relation if it agrees with the bias alone; else what is left, evenly."""
    size = int(problem.knowledge.batch_size or 0)
    expected = _agreed(problem, heads, lower, upper, size)
    spread = expected is None
    if expected is None:
        expected = evenly(heads, size)[0]
    added, _ = spread_out(expected, lower, upper, size)
    unsure = torch.full(added.shape, spread)
    return _in_order(lower, added, None, unsure, UNCALIBRATED)


def _agreed(
    problem: Problem, heads: Heads, lower: Tensor, upper: Tensor, size: int
) -> Tensor | None:
    """Expected counts (K,) from iLRG's relation and from the bias as if all predictions were even.

    None when they contradict each other: then neither is believed.
    """
    if heads.bias is None:
        return None
    alone = size / heads.bias.shape[1] - heads.bias[0]
    if heads.weight is None or heads.bias.shape[1] > _DENSE_CLASSES:
        return alone
    explained = explained_counts(heads, _layer(problem), size)[0]
    if not bool(explained.isfinite().all()):
        return None
    one, two = (_counts(found, lower, upper, size) for found in (alone, explained))
    return explained if int(torch.minimum(one, two).sum()) >= _AGREE * size else None


def _counts(expected: Tensor, lower: Tensor, upper: Tensor, size: int) -> Tensor:
    added, _ = spread_out(expected, lower, upper, size)
    return lower + torch.bincount(added, minlength=len(lower))


def _in_order(
    lower: Tensor, added: Tensor, probabilities: Tensor | None, unsure: Tensor, calibration: str
) -> Estimate:
    """Proved and added labels in one sorted row; what is proved has the probability one."""
    proved = torch.repeat_interleave(torch.arange(len(lower)), lower)
    labels = torch.cat([proved, added])
    order = labels.argsort(stable=True)
    known = None
    if probabilities is not None:
        known = torch.cat([torch.ones(len(proved), dtype=torch.float64), probabilities])[order]
    doubt = torch.cat([torch.zeros(len(proved), dtype=torch.bool), unsure])[order]
    return Estimate(labels[order], known, doubt, calibration)
