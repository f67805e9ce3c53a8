"""From the anchor down to the picture, one linear system a link.

Each link gives its input by least squares and hands the cotangent down through transposed weights,
as in R-GAP (Zhu and Blaschko 2021, arXiv:2010.07733); the pattern of a ReLU is read off its values
instead of being inverted.

Rows (B, ...) are problems on one network. For a single dump two rows are walked: the dump itself,
and a copy with fresh rounding errors, from a random start. Where the two disagree, the dump does
not say what the input was, be it for want of equations or for amplified rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.graph import Node
from auditor.inversion.anchor import Anchored
from auditor.inversion.constraints import Bounds
from auditor.inversion.layers import Chain
from auditor.inversion.link_solver import LinkSolver, Settings
from auditor.records import LinkReport

_MARGIN = 100.0  # times the precision: errors of values, before anything better is known
# The gradient of one sample is no further from rank one than rounding; and never further than this.
_ONE_SAMPLE = 5e-2


@dataclass(frozen=True)
class Walk:
    """What came of it, for each row."""

    inputs: Tensor | None  # (B, pixels), model units; None when a layer on the way hid its input
    links: tuple[LinkReport, ...]  # from the anchor down


def walk(
    chain: Chain,
    gradient: Mapping[str, Tensor],
    anchored: Anchored,
    *,
    precision: float,
    bounds: Bounds,
    settings: Settings,
    generator: torch.Generator | None = None,
) -> Walk:
    """Inputs of the chain's source from gradients (B, *parameter), all in one float type.

    `anchored` is what the anchor says (anchor.py), `bounds` are those of the picture. With a
    `generator`, all rows but the first start at random. A picture that its own layer leaves open is
    still given, as a guess; the report of that layer says so.
    """
    values, cotangent = anchored.values, anchored.cotangent
    margin = _MARGIN * precision * values.abs().amax(1, keepdim=True)
    reports = [_anchor_report(chain, gradient, anchored, precision, repeated=settings.repeated)]
    if not reports[0].solved:
        return Walk(None, tuple(reports))
    for place in reversed(range(len(chain.links))):
        link = chain.links[place]
        below = chain.links[place - 1].activation if place else None
        within = _range_of(below) if place else bounds
        step = LinkSolver(
            link, values, cotangent, margin, within, below, place == 0, settings, generator
        )
        values, cotangent = step.solve(gradient)
        if link.moves_only:
            continue
        reports.append(step.report())
        if place and not reports[-1].solved:
            return Walk(None, tuple(reports))
        margin = torch.maximum(margin, step.error())
    return Walk(values, tuple(reports))


def _anchor_report(
    chain: Chain,
    gradient: Mapping[str, Tensor],
    anchored: Anchored,
    precision: float,
    *,
    repeated: bool,
) -> LinkReport:
    """The gradient of one sample has rank one; of several, almost never."""
    assert chain.anchor.weight is not None
    off_rank = float(anchored.off_rank.max())
    several, first = repeated and len(anchored.values) > 1, anchored.values[0]
    size = first.norm().clamp_min(1e-300)
    return LinkReport(
        layer=chain.anchor.weight,
        unknowns=anchored.values.shape[1],
        equations=gradient[chain.anchor.weight][0].numel(),
        undetermined=0 if math.isfinite(off_rank) else anchored.values.shape[1],
        gap=float((anchored.values[1:] - first).norm(dim=1).max() / size) if several else 0.0,
        residual=off_rank,
        condition=1.0,
        steps=0,
        status="closed form" if anchored.scales == 1 else "more than one scale may fit",
        constrained=False,
        solved=anchored.scales == 1
        and off_rank <= min(max(_MARGIN * precision, 1e-5), _ONE_SAMPLE),
    )


def _range_of(activation: Node | None) -> Bounds:
    """Where the values of an activation lie."""
    name = "" if activation is None else activation.operation.rstrip("_")
    if name in {"relu", "softplus"}:
        return Bounds(0.0, math.inf)
    return {"sigmoid": Bounds(0.0, 1.0), "tanh": Bounds(-1.0, 1.0)}.get(name, Bounds())
