"""Dumps of simulated clients: batches drawn from reference pictures, and what they would send.

Only the head's gradient is made, from the features and probabilities of one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.labels.reference import Reference
from auditor.labels.rules import Heads

Bounds = Callable[[Heads], Tensor]  # proved lower counts (S, K) of head gradients


@dataclass(frozen=True)
class Client:
    """How the client's head gradient came to be, as far as the attacker knows."""

    size: int
    classes: int
    smoothing: float
    precision: float  # of the dump
    has_weight: bool
    has_bias: bool
    concentration: float | None  # of the Dirichlet distribution of class shares; None: all equal


@dataclass(frozen=True)
class Drawn:
    """Simulated batches: S of them, N samples each."""

    pictures: Tensor  # (S, N) rows of the reference
    labels: Tensor  # (S, N)


def draw(
    client: Client, reference: Reference, rows: Tensor, count: int, generator: torch.Generator
) -> Drawn:
    """Batches from the pictures `rows`, with replacement within a class.

    A class that has none there takes any picture: nothing is known of how it looks.
    """
    labels = _labels(client, count, generator)
    picked = rows[torch.randint(len(rows), labels.shape, generator=generator)]
    if reference.labels is not None:
        of_rows = reference.labels[rows]
        for label in sorted(set(of_rows.tolist())):
            own = rows[of_rows == label]
            wanted = labels == label
            chosen = torch.randint(len(own), (int(wanted.sum()),), generator=generator)
            picked[wanted] = own[chosen]
    return Drawn(picked, labels)


def _labels(client: Client, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, client.size)
    if client.concentration is None:
        return torch.randint(client.classes, shape, generator=generator)
    alpha = torch.full((count, client.classes), client.concentration, dtype=torch.float64)
    shares = torch._standard_gamma(alpha, generator=generator).clamp_min(1e-30)
    return torch.multinomial(shares, client.size, replacement=True, generator=generator)


def counts_of(labels: Tensor, classes: int) -> Tensor:
    """(S, N) labels to (S, K) float64 counts."""
    counts = torch.zeros(len(labels), classes, dtype=torch.float64)
    return counts.scatter_add_(1, labels, torch.ones(labels.shape, dtype=torch.float64))


def heads_of(client: Client, reference: Reference, drawn: Drawn) -> Heads:
    """The sums over each batch that the client would have sent, rounded as the dump is.

    p - y is that of a client in float32: what it is sure of leaves nothing at the label.
    """
    even = client.smoothing / client.classes
    gaps = reference.probabilities[drawn.pictures].float()  # (S, N, K)
    own = gaps.new_full((*drawn.labels.shape, 1), client.smoothing - 1)
    gaps = (gaps - even).scatter_add(2, drawn.labels[..., None], own).double()
    weight = gaps.mT @ reference.features[drawn.pictures] if client.has_weight else None
    return Heads(
        None if weight is None else _rounded(weight, client.precision),
        _rounded(gaps.sum(1), client.precision) if client.has_bias else None,
    )


def _rounded(values: Tensor, precision: float) -> Tensor:
    dtype = torch.float32
    for coarse in (torch.bfloat16, torch.float16):
        if precision >= torch.finfo(coarse).eps / 2:
            dtype = coarse
            break
    return values.to(dtype).double()
