"""Every operation of a forward pass, by kind."""

import pytest
import torch
from nets import Written, draw, layers, seeded, sequence
from torch import nn


def kinds(module, shape):
    return [layer.kind for layer in layers(module, shape)]


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(2, 4, 3),
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(2, 4, (3, 2), dilation=2, padding="same"),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 1, padding="valid"),
    ],
)
def test_convolutions(convolution):
    module = sequence(convolution)
    (layer,) = (one for one in layers(module, (2, 9, 9)) if one.kind != "shape")
    assert layer.kind == "convolution"
    assert layer.parameters == tuple(f"0.{name}" for name, _ in module[0].named_parameters())
    assert layer.shape == module(draw(1, 2, 9, 9)).shape[1:]


def test_transposed_convolutions_are_none_of_ours():
    assert kinds(sequence(nn.ConvTranspose2d(2, 4, 3)), (2, 9, 9)) == ["other"]


@pytest.mark.parametrize(
    "activation",
    [
        nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softplus(2.0, 10.0), nn.ELU(), nn.ELU(0.5),
        nn.SELU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ReLU(),
        nn.ReLU(inplace=True), nn.LeakyReLU(), nn.LeakyReLU(0.3, inplace=True), nn.Hardtanh(),
        nn.ReLU6(), nn.SiLU(inplace=True),
    ],
)  # fmt: skip
def test_activations(activation):
    assert kinds(sequence(nn.Linear(4, 3), activation), (4,)) == ["linear", "activation"]


def test_kinds_sources_and_shapes_of_a_network():
    module = sequence(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3),
    )  # fmt: skip
    found = layers(module, (2, 8, 8))
    assert [layer.kind for layer in found] == [
        "convolution", "batch norm", "activation", "average", "average", "shape", "layer norm",
        "linear",
    ]  # fmt: skip
    assert [layer.sources for layer in found] == [(place,) for place in range(-1, 7)]
    assert [layer.shape for layer in found] == [
        (4, 8, 8), (4, 8, 8), (4, 8, 8), (4, 4, 4), (4, 2, 2), (16,), (16,), (3,),
    ]  # fmt: skip
    assert found[1].parameters == ("1.weight", "1.bias")
    # The operations hold a linear weight turned over, and bias first.
    assert set(found[-1].parameters) == {"7.weight", "7.bias"}


def test_global_average():
    module = sequence(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert kinds(module, (2, 4, 4)) == ["average", "shape"]


def test_residual_sums():
    module = seeded(
        lambda: Written(
            lambda m, x: m.b(x + torch.tanh(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3)
        )
    )
    found = layers(module, (4,))
    assert [layer.kind for layer in found] == ["linear", "activation", "sum", "linear"]
    assert found[2].sources == (-1, 1)


def test_embedding():
    module = seeded(lambda: Written(lambda m, x: m.table(x.long()), table=nn.Embedding(5, 3)))
    found = layers(module, (4,))
    assert found[-1].kind == "embedding"
    assert found[-1].parameters == ("table.weight",)


def test_batch_norm_in_train_mode_mixes_samples():
    module = sequence(nn.BatchNorm2d(2)).train()
    assert "batch norm" not in kinds(module, (2, 4, 4))


def test_arithmetic_with_constants_is_a_scale():
    def forward(m, x):
        return (1 - x / 2) * m.gain + m.gain

    module = seeded(lambda: Written(forward, gain=torch.ones(4)))
    assert set(kinds(module, (4,))) == {"scale"}
    module = seeded(lambda: Written(lambda m, x: m.gain / x, gain=torch.ones(4)))
    assert kinds(module, (4,)) == ["other"]
    module = seeded(lambda: Written(lambda m, x: x * x))
    assert kinds(module, (4,)) == ["other"]
