"""Networks with layers made to extract data, written from the papers for the tests."""

import math

import torch
from problems import Client
from torch import nn
from torch.nn import functional as F


def drawn(seed, make):
    """What `make` builds, from this seed, with the global random state left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def eight_bit(count, *, seed=0, shape=(3, 8, 8)):
    """Soft seeded pictures with 8-bit pixels, 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 3, 3, generator=generator)
    soft = F.interpolate(coarse, size=shape[1:], mode="bilinear")
    grain = 0.1 * torch.rand(count, *shape, generator=generator)
    return ((soft * 0.9 + grain) * 255).round() / 255


class ImprintNet(nn.Module):
    """Imprint block and a small head. `gains`: how the next layer weighs each bin."""

    def __init__(self, bins, *, shape=(3, 8, 8), classes=4, scales=None, gains=None):
        super().__init__()
        size = math.prod(shape)
        self.before = nn.Identity()
        self.catch, self.back = nn.Linear(size, bins), nn.Linear(bins, 16)
        self.head = nn.Linear(16, classes)
        self.direction = torch.rand(size) / size
        self.thresholds = torch.linspace(0.15, 0.35, bins)
        scales = torch.ones(bins) if scales is None else scales
        gains = torch.ones(bins) if gains is None else gains
        with torch.no_grad():
            self.catch.weight.copy_(scales[:, None] * self.direction)
            self.catch.bias.copy_(-scales * self.thresholds)
            self.back.weight.copy_(0.1 * torch.randn(16, 1) * gains)
            self.back.bias.zero_()  # else its rows, parallel too, have thresholds of their own

    def forward(self, x):
        return self.head(torch.tanh(self.back(torch.relu(self.catch(self.before(x).flatten(1))))))


def imprint_net(bins=64, *, seed=0, **how):
    return drawn(seed, lambda: ImprintNet(bins, **how))


def alone_in_their_bins(module, inputs):
    """The samples that no other shares a bin with, from the definition."""
    seen = inputs.double().flatten(1) @ module.direction.double()
    bins = (seen[:, None] > module.thresholds.double()).sum(1)  # 0: below all of them
    return {i for i, one in enumerate(bins) if one > 0 and (bins == one).sum() == 1}


def trap_(linear, scale, *, signed=False, gain=1.0):
    """Half a row negative, the other half the same numbers times -scale; no bias."""
    rows, size = linear.weight.shape
    half = torch.randn(rows, size // 2)
    half = half if signed else -half.abs()
    both = torch.cat([half, -scale * half], 1) * gain
    with torch.no_grad():
        linear.weight.copy_(both.gather(1, torch.rand(rows, size).argsort(1)))
        linear.bias.zero_()
    return linear


def trap_net(rows=128, scale=0.8, *, seed=0, size=192, classes=4, **how):
    return drawn(
        seed,
        lambda: nn.Sequential(
            nn.Flatten(), trap_(nn.Linear(size, rows), scale, **how), nn.ReLU(),
            nn.Linear(rows, classes),
        ),
    )  # fmt: skip


def passing_(conv, channels):
    """The first kernels hand one channel of the input on each."""
    with torch.no_grad():
        conv.weight[:channels] = 0
        for channel in range(channels):
            conv.weight[channel, channel, 1, 1] = 1
        conv.bias.zero_()
    return conv


def passing_net(depth=1, *, seed=0, rows=128, scale=0.8, pool=None):
    """Convolutions that pass the picture on, and traps behind them."""

    def make():
        layers, before = [], 3
        for _ in range(depth):
            layers += [passing_(nn.Conv2d(before, 5, 3, padding=1), 3), nn.ReLU()]
            before = 5
        layers += [] if pool is None else [pool]
        size = 5 * 64 // (1 if pool is None else 4)
        caught = trap_(nn.Linear(size, rows), scale)
        return nn.Sequential(*layers, nn.Flatten(), caught, nn.ReLU(), nn.Linear(rows, 4))

    return drawn(seed, make)


def sent_by(module, count=6, *, seed=0, **more):
    inputs = eight_bit(count, seed=seed)
    return Client(module.eval(), inputs, torch.arange(count) % 4, **more)
