"""Which gradient equations to believe while the pattern of a ReLU may be misread."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.inversion.activations import Undone, in_doubt
from auditor.inversion.layers import Link
from auditor.inversion.systems import LinkOperator, LinkSystem

_TRUST = (0.1, 10.0)  # in the weight's gradient, relative to equal norms
_SURE = 10.0  # times the misfit of the known pre-activations: further off a sign is believed


def trust_in_gradients(system: LinkSystem) -> float:
    """The errors of the forward equations over those of the gradient equations.

    What the readings differ by is their errors. Where an activation squeezes its values, these are
    far from alike and equal weights did better in trials.
    """
    if len(system.rhs) < 2 or not system.sends:
        return 1.0
    count = system.weights.shape[1]
    heard = (system.weights > 0).all(0)
    apart = system.rhs[1:] - system.rhs[:1]
    above = apart[:, :count][:, heard].square().mean().sqrt()
    sent = apart[:, count:].square().mean().sqrt().clamp_min(1e-300)
    return float((above / sent).nan_to_num(1.0).clamp(*_TRUST))


def channels_in_doubt(
    link: Link, operator: LinkOperator, undone: Undone, values: Tensor, margin: Tensor, near: Tensor
) -> Tensor:
    """Output channels (groups, O) with a unit that may be misread.

    `near` (B, m) are the pre-activations that a solution gives.
    """
    assert link.activation is not None
    missed = ((near - undone.inputs) * undone.known).square().sum(1, keepdim=True)
    error = _SURE * (missed / undone.known.sum(1, keepdim=True).clamp_min(1)).sqrt()
    doubt = in_doubt(link.activation, values, margin=margin, near=near, error=error)
    back = operator.after.adjoint(doubt.to(near))
    return (operator.places(back) != 0).any(-1).any(0)


def all_but_the_worst(doubtful: Tensor, missed: Tensor, count: int) -> Tensor:
    """1 for each output channel, shaped (1, groups, O, 1), 0 for those that are not believed.

    These are the `count` of the `doubtful` (groups, O) whose equations `missed` (B, groups, O) by
    most.
    """
    worst = torch.where(doubtful, missed.sum(0), -1.0).flatten()
    heard = torch.ones_like(worst)
    heard[worst.topk(min(count, int(doubtful.sum()))).indices] = 0
    return heard.view(1, *doubtful.shape, 1)
