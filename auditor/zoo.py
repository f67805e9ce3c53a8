"""The small networks of the papers, for `--arch`, the demo and the benchmarks.

`lenet` is the network of DLG (Zhu, Liu, Han 2019, arXiv:1906.08935) and iDLG (Zhao, Mopuri,
Bilen 2020, arXiv:2001.02610): sigmoid convolutions of 12 channels, 5x5, and one linear layer.
`resnet20/32/56` are the CIFAR networks of He et al. 2015 (arXiv:1512.03385), section 4.2, with
parameter-free (option A) shortcuts and the parameter names in common use for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.errors import UsageError


class LeNet(nn.Module):
    """Three 5x5 sigmoid convolutions (strides 2, 2, 1; padding 2), then a linear head.

    Takes (N, channels, H, W) with H = W = `size`, gives logits (N, classes).
    """

    def __init__(self, channels: int = 3, size: int = 32, classes: int = 100) -> None:
        super().__init__()
        side = (((size + 1) // 2) + 1) // 2  # two convolutions of stride 2, each rounding up
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, kernel_size=5, padding=2, stride=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, kernel_size=5, padding=2, stride=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, kernel_size=5, padding=2, stride=1),
            nn.Sigmoid(),
        )
        self.fc = nn.Linear(12 * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))  # type: ignore[no-any-return]


def uniform_weights(module: nn.Module, *, bound: float = 0.5, seed: int = 0) -> nn.Module:
    """Fill all parameters from U(-bound, bound), as DLG and iDLG do; changes `module`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return module


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels zero. No parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else PadShortcut(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks (16, 32, 64 channels); depth = 6 * blocks + 2."""

    def __init__(self, blocks: int, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, 1)
        self.layer2 = _stage(blocks, 16, 32, 2)
        self.layer3 = _stage(blocks, 32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _lenet(channels: int, size: int, classes: int) -> nn.Module:
    return LeNet(channels, size, classes)


def _resnet(blocks: int) -> Callable[[int, int, int], nn.Module]:
    def build(channels: int, size: int, classes: int) -> nn.Module:  # noqa: ARG001
        return CifarResNet(blocks, channels, classes)

    return build


BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet": _lenet,
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "resnet56": _resnet(9),
}
_DEFAULTS = {"lenet": (3, 32, 100)}
_SPEC = re.compile(r"(?P<name>[a-z]+\d*)(?::(?P<c>\d+)x(?P<s>\d+)x(?P<k>\d+))?")


def build(spec: str) -> nn.Module:
    """The network that `spec` names: NAME or NAME:CHANNELSxSIZExCLASSES (`lenet:1x28x10`).

    Raises UsageError when there is no such network.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or match["name"] not in BUILDERS or match["c"] in {"0"}:
        raise UsageError(
            expected=f"one of {', '.join(BUILDERS)}, optionally with :CHANNELSxSIZExCLASSES",
            found=f"{spec!r}",
            todo="For example --arch lenet:1x28x10, or --arch torchvision:resnet18.",
        )
    name = match["name"]
    if match["c"] is None:
        return BUILDERS[name](*_DEFAULTS.get(name, (3, 32, 10)))
    sizes = int(match["c"]), int(match["s"]), int(match["k"])
    if min(sizes) < 1:
        raise UsageError(expected="positive sizes", found=f"{spec!r}", todo="Mend --arch.")
    return BUILDERS[name](*sizes)
