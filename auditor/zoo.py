"""The small networks of the papers, for `--arch`, the demo and the benchmarks.

`lenet` is the network of DLG (Zhu, Liu, Han 2019, arXiv:1906.08935) and iDLG (Zhao, Mopuri,
Bilen 2020, arXiv:2001.02610): sigmoid convolutions of 12 channels, 5x5, and one linear layer.
`resnet20/32/56` are the CIFAR networks of He et al. 2015 (arXiv:1512.03385), section 4.2, with
parameter-free (option A) shortcuts and the parameter names in common use for them.
`vit` is a small vision transformer in the shape of Dosovitskiy et al. 2020 (arXiv:2010.11929): its
sizes are our own, and its layer norms stand before attention and MLP as they do there.
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


class ViT(nn.Module):
    """A vision transformer with a class token and learnt positions.

    Takes (N, channels, H, W) with H = W = `size`, a multiple of `patch`; gives logits (N, classes).
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        classes: int = 10,
        *,
        patch: int = 4,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        places = (size // patch) ** 2 + 1
        self.positions = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, places, width), std=0.02)
        )
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then an MLP, each with its layer norm before it and a shortcut around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same, written out: fused kernels have no second derivative."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # (N, heads, T, width / heads)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.out(mixed)  # type: ignore[no-any-return]


def _lenet(channels: int, size: int, classes: int) -> nn.Module:
    return LeNet(channels, size, classes)


def _resnet(blocks: int) -> Callable[[int, int, int], nn.Module]:
    def build(channels: int, size: int, classes: int) -> nn.Module:  # noqa: ARG001
        return CifarResNet(blocks, channels, classes)

    return build


def _vit(channels: int, size: int, classes: int) -> nn.Module:
    if size % 4 != 0:
        raise UsageError(
            expected="a picture for vit whose side is a multiple of its patches' 4 pixels",
            found=f"{size}",
            todo="For example --arch vit:1x28x10.",
        )
    return ViT(channels, size, classes)


BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet": _lenet,
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "resnet56": _resnet(9),
    "vit": _vit,
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
