"""Surrogates change slopes, never values, and only inside `with`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from auditor.attacks.surrogates import Seen, Surrogates, smooth_slope, statistics_distance

POINTS = torch.linspace(-3, 3, 13, dtype=torch.float64)
SPELLINGS = [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, lambda x: x.relu()]


@pytest.mark.parametrize("relu", SPELLINGS)
def test_value_and_slope_in_closed_form(relu):
    leaf = POINTS.clone().requires_grad_()
    with Surrogates(sharpness=2.0) as taps:
        value = relu(leaf * 1)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(value, POINTS.clamp_min(0))
    assert torch.allclose(slope, torch.sigmoid(2 * POINTS))
    assert taps.relus == 1


def test_nothing_changes_outside():
    leaf = POINTS.clone().requires_grad_()
    with Surrogates(sharpness=2.0):
        pass
    (slope,) = torch.autograd.grad(F.relu(leaf).sum(), leaf)
    assert torch.equal(slope, (POINTS > 0).double())


def test_the_slope_has_a_slope():
    leaf = POINTS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smooth_slope(leaf, 3.0).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), leaf)
    share = torch.sigmoid(3 * POINTS)
    assert torch.allclose(second, 3 * share * (1 - share))


def test_batch_norm_in_evaluation_mode_is_seen():
    norm = nn.BatchNorm2d(3).double().eval()
    inputs = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with Surrogates(statistics=True) as taps:
        norm(inputs)
    assert len(taps.seen) == 1
    assert torch.equal(taps.seen[0].inputs, inputs)
    assert torch.equal(taps.seen[0].mean, norm.running_mean)


def test_batch_norm_with_batch_statistics_has_nothing_to_compare():
    norm = nn.BatchNorm2d(3, track_running_stats=False).double()
    with Surrogates(statistics=True) as taps:
        norm(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert taps.seen == []


def test_distance_of_statistics_in_closed_form():
    inputs = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    mean = inputs.mean((0, 2, 3))
    variance = inputs.var((0, 2, 3), correction=0)
    assert float(statistics_distance([Seen(inputs, mean, variance)])) == pytest.approx(0, abs=1e-12)
    moved = Seen(inputs, mean + 2 * variance.sqrt(), variance)
    assert float(statistics_distance([moved])) == pytest.approx(4)
    stretched = Seen(inputs, mean, variance * torch.e)
    both = float(statistics_distance([moved, stretched]))
    assert both == pytest.approx((4 + 1) / 2)
