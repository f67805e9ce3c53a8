"""Batches of 8-bit pictures behind a first linear layer and ReLU, for tests."""

import torch
from problems import Client
from torch import nn


def pictures(count, *, shape=(1, 8, 8), seed=0):
    """(N, C, H, W) random pictures whose pixels are multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator).float() / 255


def perceptron(*, pixels=64, units=128, classes=5, seed=0, bias=True, activation=nn.ReLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, units, bias=bias), activation(),
            nn.Linear(units, classes),
        )  # fmt: skip


def with_batch_norm(place, *, pixels=64, units=128, classes=5):
    """A perceptron with a batch norm of vectors at this place; it takes no single sample."""
    parts = list(perceptron(pixels=pixels, units=units, classes=classes))
    features = pixels if place <= 1 else units
    return nn.Sequential(*parts[:place], nn.BatchNorm1d(features), *parts[place:])


class Normalised(nn.Module):
    """Takes pixels and standardises them itself."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor([0.4]))

    def forward(self, x):
        return self.body((x - self.mean) / 0.25)


def client_of(count, *, module=None, classes=5, seed=0, shape=(1, 8, 8), **more):
    """Zero-mean model units: about half of the units are on for each sample."""
    module = perceptron(classes=classes, seed=seed) if module is None else module
    labels = torch.arange(count) * 3 % classes
    return Client(module, pictures(count, shape=shape, seed=seed), labels, **more)
