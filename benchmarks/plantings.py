"""Networks with layers that were made to extract data, and many that were not.

The planted ones follow the papers; the other ones are what people audit: freshly drawn, trained,
trained badly, pruned, begun at zero. Every one is the same for the same seed.
Sources: Fowl et al. 2021, arXiv:2110.13057; Boenisch et al. 2021, arXiv:2112.02918; Wen et al.
2022, arXiv:2202.00580.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import torch
import torchvision
from common import Pictures
from networks import VARIANTS, draw_trial
from torch import Tensor, nn
from torch.nn import functional as F

from auditor import zoo


class ImprintBlock(nn.Module):
    """Linear -> ReLU -> Linear back to the input's shape, in front of a network.

    Row j of the first layer is `direction` and its bias minus the quantile (j + 1/2) / `bins` of a
    normal distribution: a picture x fires the rows whose quantile is below `direction` . x.
    """

    def __init__(
        self,
        inner: nn.Module,
        shape: tuple[int, ...],
        *,
        bins: int,
        direction: Tensor,
        mean: float,
        std: float,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.shape, self.inner = shape, inner
        self.catch, self.back = nn.Linear(size, bins), nn.Linear(bins, size)
        quantiles = [NormalDist(mean, std).inv_cdf((j + 0.5) / bins) for j in range(bins)]
        with torch.no_grad():
            self.catch.weight.copy_(direction.expand(bins, size))
            self.catch.bias.copy_(-torch.tensor(quantiles))
            self.back.weight.copy_(0.01 * torch.randn(size, 1).expand(size, bins))
            self.back.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        caught = self.back(torch.relu(self.catch(x.flatten(1))))
        return self.inner(x + caught.view(-1, *self.shape))


def imprint(inner: nn.Module, proxy: Tensor, bins: int, *, random: bool = False) -> ImprintBlock:
    """An imprint block whose quantiles are those of other pictures, `proxy` (N, C, H, W).

    The direction is the mean of the pixels, or drawn at random.
    """
    flat = proxy.flatten(1)
    size = flat.shape[1]
    direction = torch.randn(size) / size if random else torch.full((size,), 1 / size)
    seen = flat @ direction
    return ImprintBlock(
        inner,
        tuple(proxy.shape[1:]),
        bins=bins,
        direction=direction,
        mean=float(seen.mean()),
        std=float(seen.std()),
    )


def trap(linear: nn.Linear, scale: float, *, signed: bool = False) -> nn.Linear:
    """Half of each row negative, the other half the same numbers times -`scale`; changed in place.

    `signed`: the first half has both signs.
    """
    rows, width = linear.weight.shape
    with torch.no_grad():
        drawn = torch.randn(rows, width // 2) / width**0.5
        half = drawn if signed else -drawn.abs()
        both = torch.cat([half, -scale * half, torch.zeros(rows, width % 2)], dim=1)
        linear.weight.copy_(both.gather(1, torch.rand(rows, width).argsort(1)))
        linear.bias.zero_()
    return linear


def trap_network(shape: tuple[int, ...], rows: int, scale: float, **how: bool) -> nn.Sequential:
    """One hidden layer of traps."""
    caught = trap(nn.Linear(math.prod(shape), rows), scale, **how)
    return nn.Sequential(nn.Flatten(), caught, nn.ReLU(), nn.Linear(rows, 10))


def passing(shape: tuple[int, ...], depth: int) -> nn.Sequential:
    """Convolutions that hand the input on in their first channels, then a hidden linear layer."""
    layers: list[nn.Module] = []
    before, width = shape[0], 2 * shape[0]
    for _ in range(depth):
        layer = nn.Conv2d(before, width, 3, padding=1)
        with torch.no_grad():
            layer.weight[: shape[0]] = 0
            for channel in range(shape[0]):
                layer.weight[channel, channel, 1, 1] = 1
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layers += [layer, nn.ReLU()]
        before = width
    hidden = nn.Linear(width * shape[1] * shape[2], 64)
    return nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, 10))


def fishing(inner: nn.Sequential, kind: str) -> nn.Sequential:
    """The last layer changed in place so that one class, one feature or one bias stands apart."""
    head = inner[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        if kind == "bias":
            head.bias[3] += 1e3
        else:
            kept = head.weight[3].clone()
            head.weight.zero_()
            head.weight[3] = kept if kind == "class" else 300 * F.one_hot(kept.argmax(), len(kept))
    return inner


PLANTED = ("imprint", "trap", "class fishing", "kernels")


def planted_networks(family: str, data: Pictures, count: int) -> Iterator[nn.Module]:
    """`count` networks of a family, each drawn anew and made in another way."""
    shape = tuple(data.images.shape[1:])
    for seed in range(count):
        torch.manual_seed(seed)
        if family == "imprint":
            inner = zoo.build(("lenet:3x32x10", "resnet20")[seed % 2])
            bins = (128, 256, 500, 1000)[seed % 4]
            yield imprint(inner, data.images[-100:], bins, random=seed % 3 == 0)
        elif family == "trap":
            scale = (0.9, 0.95, 0.97, 0.99)[seed % 4]
            yield trap_network(shape, (128, 500, 1000)[seed % 3], scale, signed=seed % 5 == 0)
        elif family == "class fishing":
            hidden = nn.Linear(math.prod(shape), 64)
            inner_one = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, 10))
            yield fishing(inner_one, ("class", "feature", "bias")[seed % 3])
        else:
            yield passing(shape, 1 + seed % 4)


# --------------------------------------------------------------------------- nothing planted


def _convolutional(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def _depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.ReLU6(),
        nn.Conv2d(24, 48, 1), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48 * 64, 10),
    )  # fmt: skip


def _perceptron(gain: float = 1.0) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(gain)
    return layers


def _zero_head(inner: nn.Sequential) -> nn.Sequential:
    for parameter in inner[-1].parameters():
        nn.init.zeros_(parameter)
    return inner


def _pruned(inner: nn.Module, share: float) -> nn.Module:
    """The smallest weights of every layer set to zero."""
    with torch.no_grad():
        for parameter in inner.parameters():
            if parameter.ndim > 1:
                size = parameter.abs()
                parameter.mul_(size > size.flatten().quantile(share))
    return inner


def _trained(
    model: nn.Module, data: Pictures, *, steps: int, batch: int = 64, **how: float
) -> nn.Module:
    """After `steps` of SGD with momentum, or of Adam where `adam` gives its rate."""
    rate, decay = how.get("rate", 0.02), how.get("decay", 0.0)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, weight_decay=decay
    )
    if "adam" in how:
        optimizer = torch.optim.AdamW(model.parameters(), how["adam"], weight_decay=decay)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(data.images), (batch,))
        loss = F.cross_entropy(model(data.images[rows]), data.labels[rows])
        if "lasso" in how:
            loss = loss + how["lasso"] * sum(p.abs().sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _recipes(data: Pictures) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Networks that were trained, each in another way, and odd starts."""
    return [
        ("convolutions, trained", lambda: _trained(_convolutional(), data, steps=200)),
        ("the same, Adam", lambda: _trained(_convolutional(), data, steps=200, adam=1e-3)),
        ("90 % pruned", lambda: _pruned(_trained(_convolutional(), data, steps=100), 0.9)),
        ("depthwise, trained", lambda: _trained(_depthwise(), data, steps=300, adam=2e-3)),
        ("perceptron, trained", lambda: _trained(_perceptron(), data, steps=400)),
        ("the same, Adam", lambda: _trained(_perceptron(), data, steps=400, adam=1e-3)),
        ("small start", lambda: _trained(_perceptron(0.1), data, steps=400, rate=0.05)),
        ("tiny start", lambda: _trained(_perceptron(0.01), data, steps=400, rate=0.05)),
        ("tiny start, Adam", lambda: _trained(_perceptron(0.01), data, steps=400, adam=1e-3)),
        ("weight decay", lambda: _trained(_perceptron(), data, steps=400, decay=0.05)),
        ("lasso", lambda: _trained(_perceptron(), data, steps=300, adam=1e-3, lasso=1e-4)),
        ("rate too high", lambda: _trained(_perceptron(), data, steps=100, rate=0.3)),
        ("head at zero", lambda: _zero_head(_perceptron())),
        ("head at zero, one sample", lambda: _trained(
            _zero_head(_perceptron()), data, steps=1, batch=1)),
        ("head at zero, five samples", lambda: _trained(
            _zero_head(_perceptron()), data, steps=5, batch=1)),
        ("head at zero, trained", lambda: _trained(
            _zero_head(_convolutional()), data, steps=200)),
        ("99 % pruned", lambda: _pruned(_trained(_perceptron(), data, steps=200), 0.99)),
    ]  # fmt: skip


_TORCHVISION = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5",
    "efficientnet_b0", "regnet_y_400mf", "densenet121", "convnext_tiny", "swin_t",
)  # fmt: skip


def ordinary_networks(data: Pictures, count: int) -> Iterator[tuple[str, nn.Module, int, int]]:
    """`count` networks that nobody planted anything in: name, module, channels, side."""
    made = 0

    def room() -> bool:
        return made < count

    for name in _TORCHVISION:
        torch.manual_seed(made)
        yield name, torchvision.models.get_model(name).eval(), 3, 64
        made += 1
    for seed in range(2):
        for name, make in _recipes(data):
            torch.manual_seed(100 + seed)
            yield f"{name}, seed {seed}", make().eval(), 3, 32
            made += 1
    for variant in VARIANTS:
        if room():
            yield variant.name, variant.build(made), 3, 32
            made += 1
    while room():
        trial = draw_trial(made)
        yield f"drawn with seed {made}", trial.build(), trial.channels, trial.size
        made += 1
