"""Which gradient equations are believed: cases with answers that can be worked out by hand."""

import pytest
import torch
from nets import chain, draw, seeded
from torch import nn

from auditor.inversion.activations import Undone, undo
from auditor.inversion.patterns import all_but_the_worst, channels_in_doubt, trust_in_gradients
from auditor.inversion.systems import LinkOperator, LinkSystem


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def relu_link(operation, *shape):
    """The link of one operation, with ReLU behind it and a head that is the anchor."""
    operation = seeded(lambda: operation)
    width = operation(draw(1, *shape)).numel()
    module = nn.Sequential(operation, nn.ReLU(), nn.Flatten(), nn.Linear(width, 3)).double().eval()
    return chain(module, shape, {"3.weight", "3.bias"}).links[0]


# --------------------------------------------------------------------------- trust


def two_units(pre, sent, weights=((1.0, 1.0), (1.0, 1.0))):
    """Two readings of a layer of two units; weight and cotangents have norm 5, so no scale."""
    link = relu_link(nn.Linear(2, 2), 2)
    operator = LinkOperator(link, rows([0.0]))
    operator.weight = rows([3.0, 0.0], [0.0, 4.0])[None]
    operator.offset = rows([0.0, 0.0])
    count = len(pre)
    cotangents = rows([3.0, 4.0]).expand(count, 2)
    told = None if sent is None else rows(*sent)[:, None, None].expand(count, 2, 2)
    return LinkSystem(operator, rows(*pre), rows(*weights)[:count], cotangents, told)


BASE = (1.0, -1.0)


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        (0.2, 0.1, 2.0),
        (0.1, 0.4, 0.25),
        (1.0, 0.01, 10.0),  # never more
        (0.001, 1.0, 0.1),  # never less
        (0.3, 0.0, 10.0),  # equations without errors
    ],
)
def test_trust_is_the_ratio_of_the_readings_differences(above, below, expected):
    pre = [BASE, (BASE[0] + above, BASE[1] - above)]
    found = trust_in_gradients(two_units(pre, [0.7, 0.7 + below]))
    assert found == pytest.approx(expected, rel=1e-12)


def test_units_that_one_reading_does_not_know_are_left_out():
    pre, weights = [BASE, (BASE[0] + 0.2, 9.0)], [(1.0, 1.0), (1.0, 0.0)]
    assert trust_in_gradients(two_units(pre, [0.7, 0.8], weights)) == pytest.approx(2.0)
    nothing = [(0.0, 1.0), (1.0, 0.0)]
    assert trust_in_gradients(two_units(pre, [0.7, 0.8], nothing)) == 1.0


def test_without_a_second_reading_or_a_gradient_weights_are_equal():
    assert trust_in_gradients(two_units([BASE], [0.7])) == 1.0
    assert trust_in_gradients(two_units([BASE, (5.0, 5.0)], None)) == 1.0


# --------------------------------------------------------------------------- doubt

MARGIN = rows([1e-6])


def doubtful(link, values, near):
    undone = undo(link.activation, values, margin=MARGIN)
    operator = LinkOperator(link, rows([0.0]))
    return channels_in_doubt(link, operator, undone, values, MARGIN, near)


def test_a_unit_is_in_doubt_until_the_solution_puts_it_clearly_to_its_side():
    """Known units are missed by 0.01, root mean square: a sign counts from 0.1 on."""
    link = relu_link(nn.Linear(6, 6), 6)
    values = rows([0.0, 0.0, 0.0, 5e-6, 5e-6, 1.0])
    off = [-0.11, -0.09, 0.2]  # clearly off, not clearly, on against what its value says
    near = rows([*off, 0.2, 0.05, 1.0])
    operator = LinkOperator(link, rows([0.0]))
    known = torch.tensor([[False, False, False, False, False, True]])
    undone = Undone(values, known.double(), known)
    near[0, 5] = 1.01
    found = channels_in_doubt(link, operator, undone, values, MARGIN, near)
    assert found.tolist() == [[False, True, True, False, True, False]]


def test_the_size_of_the_misfit_decides_what_is_clear():
    link = relu_link(nn.Linear(3, 3), 3)
    values, near = rows([0.0, 1.0, 2.0]), rows([-0.5, 1.0, 2.0])
    assert not doubtful(link, values, near).any()  # no misfit: any sign is clear
    worse = near + rows([0.0, 0.06, -0.06])  # 0.6 is more than 0.5
    assert doubtful(link, values, worse).tolist() == [[True, False, False]]
    assert not doubtful(link, values, near + rows([0.0, 0.04, -0.04])).any()


def test_one_place_of_one_reading_puts_a_channel_in_doubt():
    link = relu_link(nn.Conv2d(1, 3, 2), 1, 3, 3)  # three channels of four places
    values = torch.ones(2, 12, dtype=torch.float64)
    near = values.clone()
    values[0, 1], near[0, 1] = 0.0, 0.3  # the first channel, in the first reading
    values[1, 11], near[1, 11] = 0.0, 0.3  # the last, in the second
    assert doubtful(link, values, near).tolist() == [[True, False, True]]


def test_channels_of_groups_are_counted_in_their_groups():
    link = relu_link(nn.Conv2d(2, 4, 2, groups=2), 2, 2, 2)  # one place
    values, near = rows([1.0, 1.0, 0.0, 1.0]), rows([1.0, 1.0, 0.3, 1.0])
    assert doubtful(link, values, near).tolist() == [[False, False], [True, False]]


# --------------------------------------------------------------------------- the worst


@pytest.mark.parametrize(
    ("count", "silent"),
    [(0, []), (1, [(1, 0)]), (2, [(1, 0), (0, 1)]), (3, [(1, 0), (0, 1), (0, 0)])],
)
def test_the_worst_of_those_in_doubt_fall_silent(count, silent):
    doubt = torch.tensor([[True, True, False], [True, False, False]])
    missed = rows([0.1, 0.2, 9.0], [0.3, 8.0, 7.0]).expand(2, 2, 3)  # two readings
    heard = all_but_the_worst(doubt, missed, count)
    expected = torch.ones(1, 2, 3, 1, dtype=torch.float64)
    for group, channel in silent:
        expected[0, group, channel, 0] = 0
    torch.testing.assert_close(heard, expected)


def test_readings_are_added_up():
    doubt = torch.tensor([[True, True]])
    missed = torch.stack([rows([1.0, 1.5]), rows([1.0, 0.0])])
    assert all_but_the_worst(doubt, missed, 1).flatten().tolist() == [0.0, 1.0]


def test_channels_that_are_not_in_doubt_stay():
    doubt = torch.tensor([[True, False, False]])
    missed = rows([0.0, 5.0, 6.0])[None]
    assert all_but_the_worst(doubt, missed, 3).flatten().tolist() == [0.0, 1.0, 1.0]
    assert all_but_the_worst(~doubt & doubt, missed, 2).flatten().tolist() == [1.0, 1.0, 1.0]
