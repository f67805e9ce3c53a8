"""Small residual networks with batch norm in evaluation mode, and clients that hold one picture."""

import torch
from problems import Client
from torch import nn
from torch.nn import functional as F

from auditor.zoo import BasicBlock


class Residual(nn.Module):
    """A stem, one block at full size, two at half of it; pooled head. Takes (N, 3, 8, 8)."""

    def __init__(self, low, high, pooled=False):
        super().__init__()
        self.stem = nn.Conv2d(3, low, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(low)
        self.pool = nn.MaxPool2d(3, 1, 1) if pooled else nn.Identity()
        self.one, self.two = BasicBlock(low, low, 1), BasicBlock(low, high, 2)
        self.three, self.head = BasicBlock(high, high, 1), nn.Linear(high, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.stem(x))))
        return self.head(self.three(self.two(self.one(x))).mean((2, 3)))


def used(module, seed):
    """With statistics and gains as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for inner in module.modules():
            if isinstance(inner, nn.BatchNorm2d):
                inner.weight.uniform_(0.5, 1.5, generator=generator)
                inner.bias.uniform_(-0.3, 0.3, generator=generator)
                inner.running_mean.normal_(0, 0.2, generator=generator)
                inner.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def residual_client(low=16, high=32, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    module = used(Residual(low, high, **options), seed).to(dtype)
    return Client(module, torch.rand(1, 3, 8, 8).to(dtype), torch.tensor([3]))
