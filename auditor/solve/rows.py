"""The row as the unit of work, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

# (R, D) -> values (R,), gradients (R, D). Rows must not influence each other.
ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


class Status(Enum):
    """How the work on a row ended."""

    CONVERGED = "reached the goal"
    EXHAUSTED = "ran out of steps"
    STALLED = "found no further descent"
    DIVERGED = "met a value that is not finite"
    STOPPED = "was stopped: the answer was known, or the budget was used up"


@dataclass(frozen=True)
class Solution:
    """The best point of every row."""

    x: Tensor  # (R, D)
    value: Tensor  # (R,)
    status: tuple[Status, ...]  # R of them
    steps: int
    evaluations: int  # of one row: a call with R rows counts R


def by_row(
    value: Callable[[Tensor], Tensor], *, how: Literal["loop", "vmap"] = "loop"
) -> ValueAndGradient:
    """Lift the value () of one row (D,) to values and gradients of many.

    `loop` uses plain autograd and takes any model; `vmap` makes one batched call, meant for
    a GPU (no GPU was measured yet). Both give the same numbers up to rounding.
    """
    return _batched(value) if how == "vmap" else _looped(value)


def _batched(value: Callable[[Tensor], Tensor]) -> ValueAndGradient:
    lifted = vmap(grad_and_value(value))

    def call(rows: Tensor) -> tuple[Tensor, Tensor]:
        gradients, values = lifted(rows)
        return values, gradients

    return call


def _looped(value: Callable[[Tensor], Tensor]) -> ValueAndGradient:
    def one(row: Tensor) -> tuple[Tensor, Tensor]:
        leaf = row.detach().requires_grad_()
        result = value(leaf)
        (gradient,) = torch.autograd.grad(result, leaf)
        return result.detach(), gradient

    def call(rows: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [one(row) for row in rows]
        return torch.stack([v for v, _ in pairs]), torch.stack([g for _, g in pairs])

    return call
