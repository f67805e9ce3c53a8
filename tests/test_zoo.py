"""The networks of the papers: shapes, sizes, names."""

import pytest
import torch
from problems import tiny_lenet
from torch import nn

from auditor.errors import UsageError
from auditor.trace import trace
from auditor.zoo import (
    Block,
    CifarResNet,
    LeNet,
    PadShortcut,
    ViT,
    build,
    uniform_weights,
)


def size_of(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 8, 28, 29, 32, 33])
def test_lenet_takes_its_size(channels, size):
    module = LeNet(channels, size, 7)
    assert module(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_lenet_by_hand():
    """3 convolutions of 12 channels and 5x5, then 12 * 8 * 8 features to 100 classes."""
    convolutions = (3 * 25 + 1) * 12 + 2 * (12 * 25 + 1) * 12
    assert size_of(LeNet()) == convolutions + (768 + 1) * 100
    kinds = [type(m).__name__ for m in LeNet().body]
    assert kinds == ["Conv2d", "Sigmoid"] * 3
    assert [m.stride for m in LeNet().body if isinstance(m, nn.Conv2d)] == [(2, 2), (2, 2), (1, 1)]


def test_lenet_is_smooth_and_its_features_are_positive():
    head = trace(LeNet(1, 28, 10), (1, 28, 28)).head
    assert (head.weight, head.bias, head.features) == ("fc.weight", "fc.bias", 12 * 7 * 7)
    assert head.features_nonnegative


@pytest.mark.parametrize("bound", [0.5, 0.1])
def test_uniform_weights(bound):
    module = uniform_weights(LeNet(1, 8, 4), bound=bound, seed=1)
    values = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert values.abs().max() <= bound
    assert float(values.var()) == pytest.approx(bound**2 / 3, rel=0.05)


def test_uniform_weights_depend_on_the_seed_only():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = tiny_lenet(seed=3)
    state = module.state_dict()
    again = uniform_weights(LeNet(1, 8, 4), seed=3).state_dict()
    other = uniform_weights(LeNet(1, 8, 4), seed=4).state_dict()
    assert all(torch.equal(state[n], again[n]) for n in state)
    assert not all(torch.equal(state[n], other[n]) for n in state)
    torch.set_rng_state(before)
    uniform_weights(module, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"),
    [("resnet20", 3, 269_722), ("resnet32", 5, 464_154), ("resnet56", 9, 853_018)],
)
def test_cifar_resnets_have_their_published_size(name, blocks, parameters):
    """0.27, 0.46 and 0.85 million, He et al., table 6."""
    module = build(name)
    assert isinstance(module, CifarResNet)
    assert size_of(module) == parameters
    assert len(module.layer1) == blocks
    assert module.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_shortcuts_pad_and_halve():
    x = torch.rand(1, 4, 6, 6)
    y = PadShortcut(4)(x)
    assert y.shape == (1, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().max() == 0
    assert y[:, 6:].abs().max() == 0


def test_resnet_head():
    found = trace(build("resnet20"), (3, 32, 32))
    assert (found.head.weight, found.head.features) == ("linear.weight", 64)
    assert found.head.features_nonnegative
    assert found.batch_norm


def test_vit_by_hand():
    """8 x 8 patches of 4x4, width 96, four blocks of 12 widths squared and their biases."""
    embedding = (48 + 1) * 96 + 96 + 65 * 96
    block = 12 * 96**2 + (3 + 1 + 4 + 1) * 96 + 2 * 2 * 96
    assert size_of(ViT()) == embedding + 4 * block + 2 * 96 + (96 + 1) * 10
    found = trace(ViT(), (3, 32, 32))
    assert (found.head.weight, found.head.features) == ("head.weight", 96)
    assert not found.head.features_nonnegative


def test_attention_against_torch():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        block, other = Block(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
        other.in_proj_weight.copy_(block.qkv.weight)
        other.in_proj_bias.copy_(block.qkv.bias.normal_())
        other.out_proj.weight.copy_(block.out.weight)
        other.out_proj.bias.copy_(block.out.bias)
        x = torch.randn(2, 5, 12)
    expected = other(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(block.attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "shape", "classes"),
    [
        ("lenet", (3, 32, 32), 100),
        ("lenet:1x28x10", (1, 28, 28), 10),
        ("lenet:3x16x2", (3, 16, 16), 2),
        ("resnet20", (3, 32, 32), 10),
        ("resnet20:1x28x5", (1, 28, 28), 5),
        ("vit", (3, 32, 32), 10),
        ("vit:1x28x5", (1, 28, 28), 5),
    ],
)
def test_build(spec, shape, classes):
    module = build(spec).eval()
    assert module(torch.rand(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    "spec",
    [
        "", "nothing", "lenet:", "lenet:1x28", "lenet:1x28x10x2", "lenet:0x28x10", "lenet:1x0x10",
        "lenet:1x28x0", "lenet:-1x28x10", "LeNet", "resnet18", "lenet:1x28x10 ", "lenet\n",
        "lenet:00x28x10", "__class__", "vit:1x30x10", "vit:1x2x10",
    ],
)  # fmt: skip
def test_specs_that_name_nothing(spec):
    with pytest.raises(UsageError):
        build(spec)
