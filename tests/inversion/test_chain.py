"""The part of a forward pass that can be read backwards, cut into links."""

import pytest
import torch
from nets import Written, chain, draw, links, seeded, sequence
from torch import nn
from torch.nn import functional as F

from auditor.graph import replay
from auditor.inversion.layers import Broken, Chain

# --------------------------------------------------------------------------- functional forwards


def anchor_of(forward, **parts):
    found = chain(seeded(lambda: Written(forward, **parts)), (4,))
    assert isinstance(found, Chain), found
    return found.anchor


def test_parameters_by_use_not_by_registration():
    parts = {"bias_b": torch.zeros(3), "b": torch.ones(3, 5), "bias_a": torch.zeros(5)}

    def forward(m, x):
        return F.linear(torch.tanh(F.linear(x, m.a, m.bias_a)), m.b, m.bias_b)

    anchor = anchor_of(forward, **parts, a=torch.ones(5, 4))
    assert (anchor.weight, anchor.bias, anchor.flips) == ("a", "bias_a", False)


@pytest.mark.parametrize(
    ("forward", "shape", "flips"),
    [
        (lambda m, x: x @ m.w, (4, 3), True),
        (lambda m, x: x @ m.w.t(), (3, 4), False),
        (lambda m, x: x @ m.w.transpose(0, 1).t(), (4, 3), True),
        (lambda m, x: F.linear(x, m.w), (3, 4), False),
        (lambda m, x: F.linear(x, m.w.T), (4, 3), True),
        (lambda m, x: torch.addmm(m.b, x, m.w), (4, 3), True),
        (lambda m, x: x @ m.w + m.b, (4, 3), True),
    ],
)
def test_flips(forward, shape, flips):
    """`flips`: the parameter is (inputs, outputs)."""
    anchor = anchor_of(forward, w=draw(*shape), b=draw(3))
    assert (anchor.weight, anchor.flips) == ("w", flips)


def test_a_weight_used_twice_has_no_gradient_of_its_own():
    def forward(m, x):
        return m.head(torch.tanh(torch.tanh(x @ m.w) @ m.w))

    found = chain(seeded(lambda: Written(forward, w=draw(4, 4), head=nn.Linear(4, 3))), (4,))
    assert isinstance(found, Chain)
    assert found.anchor.weight == "head.weight"
    assert [link.operator.weight for link in found.links] == [None, None]


def test_a_tied_bias_is_no_bias_of_the_anchor():
    def forward(m, x):
        return F.linear(torch.tanh(F.linear(x, m.a, m.b)), m.c, m.b)

    found = chain(seeded(lambda: Written(forward, a=draw(4, 4), c=draw(4, 4), b=draw(4))), (4,))
    assert isinstance(found, Broken) or found.anchor.bias is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "own"])
def test_computed_weights_have_no_gradient_in_the_dump(norm):
    if norm == "own":
        first = Written(lambda m, x: x @ (m.w * 2), w=draw(4, 5))
    else:
        first = getattr(nn.utils.parametrizations, norm)(nn.Linear(4, 5))
    found = chain(sequence(first, nn.Tanh(), nn.Linear(5, 3)), (4,))
    assert isinstance(found, Chain), found
    assert found.anchor.weight == "2.weight"
    assert found.links[0].operator.weight is None


@pytest.mark.parametrize("part", ["slice", "expand", "permute"])
def test_a_part_of_a_parameter_is_not_the_parameter(part):
    """Its gradient has another shape, or another order, than the tensor that was used."""

    def forward(m, x):
        w = {
            "slice": lambda: m.w[:3],
            "expand": lambda: m.w[:, :1].expand(4, 2, 3, 3),
            "permute": lambda: m.w.permute(1, 0, 3, 2).contiguous().permute(1, 0, 2, 3),
        }[part]()
        return m.head(torch.tanh(F.conv2d(x, w)).flatten(1))

    channels = 3 if part == "slice" else 4
    module = seeded(lambda: Written(forward, w=draw(4, 2, 3, 3), head=nn.Linear(channels * 4, 3)))
    link = links(module, (2, 4, 4))[0]
    assert link.operator.weight is None


def test_a_convolution_weight_that_is_turned_over():
    """(in, out, k, k): swapping the last two axes of the gradient would be wrong."""

    def forward(m, x):
        return m.head(torch.tanh(F.conv2d(x, m.w.permute(1, 0, 2, 3))).flatten(1))

    module = seeded(lambda: Written(forward, w=draw(2, 4, 3, 3), head=nn.Linear(16, 3)))
    link = links(module, (2, 4, 4))[0]
    assert link.operator.weight is None or not link.operator.flips


# --------------------------------------------------------------------------- chain_of


def test_a_lenet_is_cut_behind_every_activation():
    module = sequence(
        nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    found = chain(module, (1, 6, 6))
    assert isinstance(found, Chain)
    assert found.anchor.weight == "5.weight"
    assert found.above == ()
    assert [link.operator.weight if link.operator else None for link in found.links] == [
        "0.weight", "2.weight", None,
    ]  # fmt: skip
    assert [link.moves_only for link in found.links] == [False, False, True]
    assert [link.activation.operation if link.activation else None for link in found.links] == [
        "sigmoid", "tanh", None,
    ]  # fmt: skip
    assert found.links[0].source is found.source


def test_affine_operations_belong_to_the_operator_beside_them():
    module = sequence(
        nn.AvgPool2d(2), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2),
        nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    first, second, third, last = links(module, (1, 8, 8))
    assert [node.operation for node in first.before] == ["avg_pool2d"]
    assert len(first.after) == 2
    assert first.activation.operation == "relu"
    assert (second.operator.weight, second.activation) == ("5.weight", None)
    assert (third.operator.weight, third.activation) == ("6.weight", None)
    assert last.operator is None
    assert last.before
    assert not last.moves_only


def test_links_put_together_are_the_network():
    module = sequence(
        nn.AvgPool2d(2), nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Tanh(), nn.Linear(16, 5), nn.Softplus(),
        nn.Linear(5, 3),
    )  # fmt: skip
    found = chain(module, (2, 8, 8))
    assert isinstance(found, Chain), found
    value = draw(1, 2, 8, 8, seed=5)
    made = value
    for link in found.links:
        operator = (link.operator.node,) if link.operator else ()
        ends = (link.activation,) if link.activation else ()
        path = (*link.before, *operator, *link.after, *ends)
        made = replay(path, link.source, made)
    made = replay((found.anchor.node,), found.data, made)
    made = replay(found.above, found.anchor.node, made) if found.above else made
    torch.testing.assert_close(made, module(value).detach(), rtol=1e-12, atol=1e-14)


def test_the_anchor_of_a_multilayer_perceptron_is_its_first_layer():
    module = sequence(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    found = chain(module, (1, 4, 4))
    assert isinstance(found, Chain)
    assert (found.anchor.weight, found.anchor.bias) == ("1.weight", "1.bias")
    assert all(link.moves_only for link in found.links)


def test_an_anchor_with_a_bias_is_preferred():
    module = sequence(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3))
    assert chain(module, (6,)).anchor.weight == "2.weight"
    module = sequence(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    found = chain(module, (6,))
    assert (found.anchor.weight, found.anchor.bias) == ("0.weight", None)
    assert [node.operation for node in found.above]


def test_an_anchor_needs_its_gradient():
    module = sequence(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    assert chain(module, (6,), {"2.weight", "2.bias"}).anchor.weight == "2.weight"
    found = chain(module, (6,), {"0.bias", "2.bias"})
    assert isinstance(found, Broken)
    assert "no linear layer" in found.reason


def test_places_are_no_vector():
    """A linear layer over several places is not an anchor, but a link."""
    module = sequence(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
    found = chain(module, (3, 4))
    assert isinstance(found, Chain)
    assert found.anchor.weight == "3.weight"
    assert found.links[0].operator.weight == "0.weight"


def _across(m, x):
    return m.b(torch.tanh(m.a(x)) + x)


BROKEN = {
    "max pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
        "max_pool2d",
    ),
    "layer norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 3)
        ),
        "layer_norm",
    ),
    "residual": (
        lambda: Written(
            lambda m, x: m.head((x + m.a(x)).flatten(1)),
            a=nn.Conv2d(1, 1, 3, padding=1), head=nn.Linear(64, 3),
        ),
        "residual connection",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 3)),
        "convolution",
    ),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(256, 3)
        ),
        "reflection_pad2d",
    ),
    "falling leaky": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.LeakyReLU(-0.5), nn.Flatten(), nn.Linear(144, 3)
        ),
        "leaky_relu",
    ),
    "soft plus with a step": (  # above its threshold it is linear: a jump, and two preimages
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Softplus(1.0, 1.0), nn.Flatten(), nn.Linear(144, 3)
        ),
        "softplus",
    ),
    "square": (
        lambda: Written(lambda m, x: m.head((x * x).flatten(1)), head=nn.Linear(64, 3)),
        "'mul'",
    ),
    "train mode": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
        ),
        "norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_no_chain_and_why(name):
    make, reason = BROKEN[name]
    module = seeded(make).train(name == "train mode")
    found = chain(module, (1, 8, 8))
    assert isinstance(found, Broken), found
    assert reason in found.reason


def test_writes_into_views_break_the_chain():
    def forward(m, x):
        y = x.clone()
        y[:, :2] = 0
        return m.head(y)

    found = chain(seeded(lambda: Written(forward, head=nn.Linear(4, 3))), (4,))
    assert isinstance(found, Broken)
    assert "views" in found.reason


@pytest.mark.parametrize("dimensions", [1, 3])
def test_convolutions_in_one_or_three_dimensions_are_refused_with_a_reason(dimensions):
    convolution = {1: nn.Conv1d(1, 4, 3), 3: nn.Conv3d(1, 4, 3)}[dimensions]
    size = (1, *(5,) * dimensions)
    module = sequence(convolution, nn.Flatten(), nn.Linear(4 * 3**dimensions, 3))
    found = chain(module, size)
    assert isinstance(found, Broken)
    assert "convolution" in found.reason


def test_an_anchor_without_bias_needs_all_of_the_layers_above():
    """A branch around the anchor: its scale cannot be judged from what the anchor feeds alone."""
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
    found = chain(seeded(lambda: Written(_across, a=a, b=b)), (4,))
    assert isinstance(found, Broken) or found.anchor.bias is not None


def test_values_of_the_input_as_python_numbers_break_the_chain():
    """What was a number of the probe would be taken for a constant."""

    def forward(m, x):
        return m.head(torch.tanh(m.a(x / x.abs().max().item())))

    parts = {"a": nn.Linear(4, 4, bias=False), "head": nn.Linear(4, 3)}
    assert isinstance(chain(seeded(lambda: Written(forward, **parts)), (4,)), Broken)
