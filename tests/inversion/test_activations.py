"""What stands before an activation, from what stands behind it."""

import copy

import pytest
import torch
from nets import draw, seeded
from torch import nn

from auditor.graph import record
from auditor.inversion.activations import (
    has_pattern,
    has_two_branches,
    in_doubt,
    redo,
    slope_at,
    undo,
)
from auditor.inversion.layers import layers_of


def node_of(activation):
    (layer,) = layers_of(record(seeded(lambda: activation), draw(1, 3))[1])
    return layer.node


def around_zero(limit, count=201):
    """Not zero itself, where some have no derivative."""
    return (torch.linspace(-limit, limit, count, dtype=torch.float64) + 1e-3)[None]


NO_DOUBT = torch.full((1, 1), 1e-9, dtype=torch.float64)

ONE_TO_ONE = {
    "sigmoid": (nn.Sigmoid(), 15.0),
    "tanh": (nn.Tanh(), 7.0),
    "softplus": (nn.Softplus(), 15.0),
    "softplus of beta 3": (nn.Softplus(3.0, 20.0), 5.0),
    "softplus of beta 0.5": (nn.Softplus(0.5, 30.0), 30.0),
    "softplus beyond its threshold": (nn.Softplus(), 25.0),
    "elu": (nn.ELU(), 10.0),
    "elu of alpha 0.3": (nn.ELU(0.3), 10.0),
    "elu of alpha 2 in place": (nn.ELU(2.0, inplace=True), 10.0),
    "selu": (nn.SELU(), 10.0),
    "leaky relu": (nn.LeakyReLU(), 10.0),
    "leaky relu of slope 0.3 in place": (nn.LeakyReLU(0.3, inplace=True), 10.0),
    "leaky relu of slope 2": (nn.LeakyReLU(2.0), 10.0),
}


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_one_to_one(name):
    """Back to the pre-activation, as exactly as its slope lets rounding pass."""
    activation, limit = ONE_TO_ONE[name]
    node, inputs = node_of(activation), around_zero(limit)
    undone = undo(node, redo(node, inputs), margin=NO_DOUBT)
    assert undone.known.all()
    apart = (undone.inputs - inputs).abs() * undone.slope
    # Softplus is linear above its threshold: a step of e^-20 / beta.
    allowed = 3e-9 if "softplus" in name else 1e-14 * limit
    assert float(apart.max()) <= allowed
    torch.testing.assert_close(undone.slope, slope(activation, inputs), rtol=1e-6, atol=1e-7)
    assert not has_pattern(node)
    assert not has_two_branches(node)


def slope(activation, inputs):
    """By autograd, of a copy that does not write: a leaf must stay."""
    function = copy.deepcopy(activation)
    function.inplace = False
    leaf = inputs.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


SLOPES = [
    nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.ReLU(),
    nn.Hardtanh(-0.5, 2.0), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ReLU6(),
]  # fmt: skip


@pytest.mark.parametrize("activation", SLOPES, ids=repr)
def test_slopes_and_values(activation):
    node, inputs = node_of(activation), around_zero(6.0)
    torch.testing.assert_close(redo(node, inputs), activation(inputs))
    torch.testing.assert_close(slope_at(node, inputs), slope(activation, inputs))


@pytest.mark.parametrize("approximate", ["none", "tanh", "silu"])
def test_two_branches(approximate):
    """The upper one first, and with pre-activations nearby the right one."""
    node = node_of(nn.SiLU() if approximate == "silu" else nn.GELU(approximate=approximate))
    assert has_two_branches(node)
    inputs = around_zero(6.0, 401)
    values = redo(node, inputs)
    torch.testing.assert_close(redo(node, undo(node, values, margin=NO_DOUBT).inputs), values)
    noise = 0.05 * draw(*inputs.shape)
    undone = undo(node, values, margin=NO_DOUBT, near=inputs + noise)
    # At the minimum both branches meet, and the noise may choose either.
    clear = slope_at(node, inputs).abs() > 0.1
    assert float(((undone.inputs - inputs).abs() * clear).max()) < 1e-9
    first = undo(node, values, margin=NO_DOUBT).inputs
    assert (first > -1.3).all()
    positive = inputs > 0
    torch.testing.assert_close(first[positive], inputs[positive], rtol=0, atol=1e-9)


def test_two_branches_below_their_minimum():
    """Rounding may carry a value below the lowest: the nearest preimage is at the minimum."""
    node = node_of(nn.SiLU())
    undone = undo(node, torch.tensor([[-0.2785, -0.4]], dtype=torch.float64), margin=NO_DOUBT)
    assert (undone.inputs + 1.278).abs().max() < 0.02


@pytest.mark.parametrize(
    ("activation", "ends"),
    [(nn.Sigmoid(), (0.0, 1.0)), (nn.Tanh(), (-1.0, 1.0)), (nn.Softplus(), (0.0, 1e3)),
     (nn.ELU(0.5), (-0.5, 1e3)), (nn.SELU(), (-1.7580993408473766, 1e3))],
    ids=["sigmoid", "tanh", "softplus", "elu", "selu"],
)  # fmt: skip
def test_saturated_and_impossible_values_stay_finite(activation, ends):
    node = node_of(activation)
    low, high = ends
    values = torch.tensor([[low, high, low - 0.1, high + 0.1, (low + high) / 2]]).double()
    undone = undo(node, values, margin=NO_DOUBT)
    assert undone.inputs.isfinite().all()
    assert undone.slope.isfinite().all()
    assert float(undone.slope[0, 0]) < 1e-6


def test_the_pattern_of_relu_is_read_off_with_a_margin():
    node = node_of(nn.ReLU())
    values = torch.tensor([[0.0, 1e-6, 2e-3, 0.5], [0.0, 1e-6, 2e-3, 0.5]], dtype=torch.float64)
    margin = torch.tensor([[1e-3], [1e-7]], dtype=torch.float64)
    undone = undo(node, values, margin=margin)
    assert undone.known.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert torch.equal(undone.slope, undone.known.double())
    assert torch.equal(undone.inputs[undone.known], values[undone.known])
    assert has_pattern(node)


def test_nearby_pre_activations_decide_doubtful_patterns_only():
    node = node_of(nn.ReLU())
    values = torch.tensor([[1e-4, 1e-4, 0.5, 0.0]], dtype=torch.float64)
    near = torch.tensor([[0.1, -0.1, -0.1, 0.1]], dtype=torch.float64)
    undone = undo(node, values, margin=torch.full((1, 1), 1e-3).double(), near=near)
    assert undone.known.tolist() == [[True, False, True, True]]


def test_nearby_pre_activations_decide_the_side_of_leaky_relu_near_zero_only():
    node = node_of(nn.LeakyReLU(0.1))
    values = torch.tensor([[1e-4, -1e-4, 1e-4, -1e-4, 0.5, -0.5]], dtype=torch.float64)
    near = torch.tensor([[-0.2, 0.2, 0.2, -0.2, -0.2, 0.2]], dtype=torch.float64)
    undone = undo(node, values, margin=torch.full((1, 1), 1e-3).double(), near=near)
    assert undone.slope.tolist() == [[0.1, 1.0, 1.0, 0.1, 1.0, 0.1]]
    assert float((redo(node, undone.inputs) - values).abs().max()) <= 1.1e-4
    assert bool(undone.known.all())


def test_a_unit_is_in_doubt_until_another_way_is_clear():
    """By value off, on, clearly on, and by the other way: in, out, near the end, far off."""
    node = node_of(nn.ReLU())
    values = torch.tensor([[1e-4] * 4, [5e-3] * 4, [0.5] * 4], dtype=torch.float64)
    near = torch.tensor([[0.3, -0.3, 0.05, -0.05]], dtype=torch.float64).expand(3, -1)
    doubt = in_doubt(
        node, values, margin=torch.full((3, 1), 1e-3).double(), near=near,
        error=torch.full((3, 1), 0.1).double(),
    )  # fmt: skip
    assert doubt.tolist() == [[True, False, True, True], [False, True, True, True], [False] * 4]


def test_both_ends_of_hardtanh_may_be_in_doubt():
    node = node_of(nn.Hardtanh())
    values = torch.tensor([[-1.0, 1.0, -1.0, 1.0, 0.0]], dtype=torch.float64)
    near = torch.tensor([[-0.9, 1.05, -2.0, 3.0, 5.0]], dtype=torch.float64)
    small = torch.full((1, 1), 1e-3).double()
    doubt = in_doubt(node, values, margin=small, near=near, error=100 * small)
    assert doubt.tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [(nn.Hardtanh(), -1, 1), (nn.Hardtanh(-0.5, 2.0), -0.5, 2.0), (nn.ReLU6(), 0, 6)],
    ids=repr,
)
def test_hardtanh_is_known_between_its_limits(activation, low, high):
    node, inputs = node_of(activation), around_zero(8.0)
    undone = undo(node, redo(node, inputs), margin=NO_DOUBT)
    assert torch.equal(undone.known, (inputs > low) & (inputs < high))
    torch.testing.assert_close(undone.inputs[undone.known], inputs[undone.known])
    torch.testing.assert_close(undone.slope, slope(activation, inputs))


def test_no_activation_is_the_identity():
    values = draw(2, 3)
    undone = undo(None, values, margin=NO_DOUBT)
    assert torch.equal(undone.inputs, values)
    assert undone.known.all()
    assert (undone.slope == 1).all()
    assert torch.equal(redo(None, values), values)
    assert torch.equal(slope_at(None, values), torch.ones_like(values))


def test_undo_leaves_its_values_alone():
    node = node_of(nn.ELU(inplace=True))
    values = draw(1, 5)
    kept = values.clone()
    redo(node, values)
    slope_at(node, values)
    undo(node, values, margin=NO_DOUBT)
    assert torch.equal(values, kept)
