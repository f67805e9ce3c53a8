"""Networks beside the papers' LeNet: the variants of the table, and random ones for the trials."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from auditor.zoo import uniform_weights

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "GELU": nn.GELU,
    "LeakyReLU": nn.LeakyReLU,
    "ReLU": nn.ReLU,
}


@dataclass(frozen=True)
class Variant:
    """A network of the table: a name, and how to make it with random weights."""

    name: str
    make: Callable[[], nn.Module]
    uniform: bool = False  # weights uniform in +-0.5 in place of torch's default

    def build(self, seed: int) -> nn.Module:
        """The network in evaluation mode, with weights of its own for each seed."""
        torch.manual_seed(seed)
        model = self.make().eval()
        return uniform_weights(model, seed=seed) if self.uniform else model


def convolutional(
    activation: Callable[[], nn.Module],
    *,
    widths: tuple[int, ...] = (12, 12, 12),
    strides: tuple[int, ...] = (2, 2, 1),
    kernel: int = 5,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    body_bias: bool = True,
    head_bias: bool = True,
) -> nn.Sequential:
    """Convolutions with one activation each, then a linear head; the papers' LeNet by default."""
    layers: list[nn.Module] = []
    side, before = size, channels
    for width, stride in zip(widths, strides, strict=True):
        layers.append(nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=body_bias))
        layers.append(activation())
        side, before = (side - 1) // stride + 1, width
    head = nn.Linear(before * side * side, classes, bias=head_bias)
    return nn.Sequential(*layers, nn.Flatten(), head)


def perceptron(
    activation: Callable[[], nn.Module],
    *,
    inputs: int = 3072,
    hidden: tuple[int, ...] = (256, 64),
    classes: int = 10,
    bias: bool = True,
) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = inputs
    for width in hidden:
        layers += [nn.Linear(before, width, bias=bias), activation()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes, bias=bias))


def vgg_like() -> nn.Sequential:
    """Pairs of 3x3 ReLU convolutions (32, 64 channels), strides for pooling, two linear layers."""
    layers: list[nn.Module] = []
    for before, width, stride in ((3, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(before, width, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def batch_norm(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two strided convolutions, each with batch norm whose statistics are not the initial ones."""
    layers: list[nn.Module] = []
    for before in (3, 32):
        norm = nn.BatchNorm2d(32)
        nn.init.normal_(norm.running_mean, 0, 0.2)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.2, 1.0)  # type: ignore[arg-type]
        layers += [nn.Conv2d(before, 32, 5, 2, padding=2), norm, activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 10))


def average_pooling(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two convolutions of stride one, each averaged over 2x2 places."""
    layers: list[nn.Module] = []
    for before in (3, 32):
        layers += [nn.Conv2d(before, 32, 5, 1, padding=2), activation(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 10))


def global_pooling() -> nn.Sequential:
    """The last features averaged over all places: not enough numbers are left for a picture."""
    body = convolutional(nn.Sigmoid, widths=(32, 32), strides=(2, 2))[:4]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _lenets() -> list[Variant]:
    found = []
    for name, activation in ACTIVATIONS.items():
        for uniform in (False, True):
            for bias in (True, False):
                weights = "uniform +-0.5" if uniform else "default weights"
                head = "" if bias else ", head without bias"
                found.append(
                    Variant(
                        f"LeNet {name}, {weights}{head}",
                        lambda a=activation, b=bias: convolutional(a, head_bias=b),  # type: ignore[misc]
                        uniform,
                    )
                )
    return found


def _plain_relu(width: int) -> Variant:
    return Variant(
        f"plain ReLU, two convolutions of {width} channels",
        lambda: convolutional(nn.ReLU, widths=(width, width), strides=(2, 2)),
    )


VARIANTS: tuple[Variant, ...] = (
    *_lenets(),
    Variant("MLP of 3 layers, ReLU", lambda: perceptron(nn.ReLU)),
    Variant("MLP of 3 layers, ReLU, no biases", lambda: perceptron(nn.ReLU, bias=False)),
    Variant("MLP of 3 layers, sigmoid", lambda: perceptron(nn.Sigmoid)),
    Variant("MLP of 3 layers, sigmoid, no biases", lambda: perceptron(nn.Sigmoid, bias=False)),
    Variant("VGG-like without pooling, ReLU", vgg_like),
    _plain_relu(12),
    _plain_relu(32),
    _plain_relu(64),
    Variant("batch norm (eval), sigmoid", lambda: batch_norm(nn.Sigmoid)),
    Variant("batch norm (eval), ReLU", lambda: batch_norm(nn.ReLU)),
    Variant("average pooling 2x2, sigmoid", lambda: average_pooling(nn.Sigmoid)),
    Variant("average pooling 2x2, ReLU", lambda: average_pooling(nn.ReLU)),
    Variant("global average pooling, sigmoid", global_pooling),
)


# --------------------------------------------------------------------------- trials

_DRAWN: dict[str, Callable[[], nn.Module]] = {
    **ACTIVATIONS,
    "LeakyReLU 0.2": lambda: nn.LeakyReLU(0.2),
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
}


@dataclass(frozen=True)
class Trial:
    """A random network and dump; its own `seed` makes it again."""

    seed: int
    activation: str
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    kernel: int
    channels: int
    size: int
    body_bias: bool
    head_bias: bool
    fully_connected: bool
    normalised: bool  # batch norm in eval mode after the first convolution
    pooled: bool  # average pooling before the head
    weights: str  # "default", "uniform", "saturated"
    dead: float  # share of units that never answer
    dump: str  # "float32", "float16"

    def build(self) -> nn.Module:
        """The network, in evaluation mode."""
        torch.manual_seed(self.seed)
        model = (self._perceptron() if self.fully_connected else self._convolutional()).eval()
        if self.weights == "uniform":
            uniform_weights(model, seed=self.seed)
        _spoil(model, gain=6.0 if self.weights == "saturated" else 1.0, dead=self.dead)
        return model

    def _perceptron(self) -> nn.Sequential:
        return perceptron(
            _DRAWN[self.activation],
            inputs=self.channels * self.size**2,
            hidden=tuple(4 * width for width in self.widths),
            bias=self.body_bias,
        )

    def _convolutional(self) -> nn.Sequential:
        layers = list(
            convolutional(
                _DRAWN[self.activation],
                widths=self.widths,
                strides=self.strides,
                kernel=self.kernel,
                channels=self.channels,
                size=self.size,
                body_bias=self.body_bias,
                head_bias=self.head_bias,
            )
        )
        if self.pooled:
            layers.insert(-2, nn.AvgPool2d(2, ceil_mode=False))
            side = self.size
            for stride in self.strides:
                side = (side - 1) // stride + 1
            features = self.widths[-1] * (side // 2) ** 2
            layers[-1] = nn.Linear(features, 10, bias=self.head_bias)
        if self.normalised:
            norm = nn.BatchNorm2d(self.widths[0])
            nn.init.normal_(norm.running_mean, 0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.2, 1.0)  # type: ignore[arg-type]
            layers.insert(1, norm)
        return nn.Sequential(*layers)


def _spoil(model: nn.Module, *, gain: float, dead: float) -> None:
    """Saturate what feeds the activations, and silence a share of the units."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]
    with torch.no_grad():
        for layer in layers:
            layer.weight *= gain
            silent = torch.rand(len(layer.weight)) < dead
            layer.weight[silent] = 0
            if layer.bias is not None:
                layer.bias[silent] = -3.0


def draw_trial(seed: int) -> Trial:
    """A cheap random variant: pictures of 8x8 to 16x16."""
    draw = random.Random(seed)
    depth = draw.choice((1, 1, 2, 2, 3))
    pooled = draw.random() < 0.15
    strides = tuple(draw.choice((1, 2)) for _ in range(depth))
    return Trial(
        seed=seed,
        activation=draw.choice(list(_DRAWN)),
        widths=tuple(draw.choice((4, 6, 8, 12, 16, 24, 32, 48, 64)) for _ in range(depth)),
        strides=strides,
        kernel=draw.choice((3, 5)),
        channels=draw.choice((1, 3)),
        size=draw.choice((8, 8, 10, 12, 16)),
        body_bias=draw.random() < 0.75,
        head_bias=draw.random() < 0.75,
        fully_connected=draw.random() < 0.15,
        normalised=draw.random() < 0.15,
        pooled=pooled and strides.count(2) < 3,
        weights=draw.choice(("default", "default", "uniform", "saturated")),
        dead=draw.choice((0.0, 0.0, 0.0, 0.25, 0.5)),
        dump=draw.choice(("float32", "float32", "float16")),
    )
