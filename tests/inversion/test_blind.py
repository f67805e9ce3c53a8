"""The factors of a convolution's gradient, against factors that were drawn."""

import pytest
import torch
from torch import nn

from auditor.inversion.blind import factorise


def sent_for(cotangent, inputs, height, width, kernel=3):
    """The weight gradient by autograd, for a cotangent (O, P) and an input (I, P)."""
    outputs, channels = len(cotangent), len(inputs)
    layer = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False).double()
    made = layer(inputs.view(1, channels, height, width))
    made.backward(cotangent.view_as(made))
    return layer.weight.grad


def drawn(rows, places, seed):
    return torch.randn(rows, places, generator=torch.Generator().manual_seed(seed)).double()


def apart(found, true):
    """Relative distance after the best common factor."""
    factor = (found * true).sum() / found.square().sum()
    return float((factor * found - true).norm() / true.norm()), float(factor)


@pytest.mark.parametrize(
    ("outputs", "channels", "height", "width", "kernel"),
    [(20, 20, 4, 4, 3), (16, 6, 4, 4, 3), (6, 16, 4, 4, 3), (15, 15, 3, 5, 3), (20, 8, 4, 4, 5)],
    ids=["wide", "few inputs", "few outputs", "no square", "5x5"],
)
def test_both_factors_follow_up_to_one_number(outputs, channels, height, width, kernel):
    places = height * width
    cotangent, inputs = drawn(outputs, places, 1), drawn(channels, places, 2).clamp_min(0)
    sent = sent_for(cotangent, inputs, height, width, kernel)
    found = factorise(sent, height, width, limit=1e-9)
    assert found is not None
    far, factor = apart(found.cotangent, cotangent)
    farther, inverse = apart(found.inputs, inputs)
    assert max(far, farther) < 1e-9
    assert factor * inverse == pytest.approx(1)
    assert found.misfit < 1e-12


def test_single_precision_costs_little():
    cotangent, inputs = drawn(24, 16, 3), drawn(24, 16, 4).clamp_min(0)
    sent = sent_for(cotangent, inputs, 4, 4).float()
    found = factorise(sent, 4, 4, limit=1e-5)
    assert found is not None
    assert found.misfit < 1e-7  # rounding: 6e-8
    assert apart(found.inputs, inputs)[0] < 1e-5


def test_too_few_channels_give_nothing():
    sent = sent_for(drawn(12, 16, 5), drawn(12, 16, 6), 4, 4)
    assert factorise(sent, 4, 4, limit=1e-9) is None


def test_a_factor_that_is_not_of_full_rank_gives_nothing():
    cotangent, inputs = drawn(16, 16, 7), drawn(4, 16, 8)
    cotangent[3] = cotangent[5]
    assert factorise(sent_for(cotangent, inputs, 4, 4), 4, 4, limit=1e-9) is None


def test_noise_is_no_convolution():
    sent = drawn(20 * 20, 9, 9).view(20, 20, 3, 3)
    found = factorise(sent, 4, 4, limit=1e-5)
    assert found is None or found.misfit > 0.1


def test_two_samples_are_no_one_sample():
    one = sent_for(drawn(20, 16, 10), drawn(20, 16, 11), 4, 4)
    other = sent_for(drawn(20, 16, 12), drawn(20, 16, 13), 4, 4)
    found = factorise(one + other, 4, 4, limit=1e-5)
    assert found is None or found.misfit > 1e-2
