"""Networks cut into links, for the tests of this folder."""

import torch
from torch import nn

from auditor.graph import record
from auditor.inversion.layers import Chain, chain_of, layers_of
from auditor.inversion.systems import LinkOperator, LinkSystem


def seeded(make, seed=0):
    """A module in double precision and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double().eval()


def sequence(*modules):
    return seeded(lambda: nn.Sequential(*modules))


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def layers(module, shape, seed=1):
    return layers_of(record(module, draw(1, *shape, seed=seed))[1])


def chain(module, shape, sent=None):
    """The chain when all gradients were sent, or those named."""
    names = {name for name, _ in module.named_parameters()} if sent is None else set(sent)
    return chain_of(record(module, draw(1, *shape))[1], names)


def links(module, shape):
    found = chain(module, shape)
    assert isinstance(found, Chain), found
    return found.links


class Written(nn.Module):
    """Modules and parameters by name, and a forward function of (self, x)."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def dense(function, width):
    """The matrix of a linear function of rows (1, width), column by column."""
    eye = torch.eye(width, dtype=torch.float64)
    return torch.cat([function(row[None]) for row in eye]).T


def system_of(link, rows=1, *, seed=0, sent=True):
    """A system with random values on its right side; also those values."""
    like = torch.zeros(1, 1, dtype=torch.float64)
    operator = LinkOperator(link, like)
    width = operator.forward(like.new_zeros(1, operator.unknowns)).shape[1]
    pre, cotangent = draw(rows, width, seed=seed), draw(rows, width, seed=seed + 1)
    weights = draw(rows, width, seed=seed + 2).abs() + 0.1
    told = None
    if sent and link.operator is not None and link.operator.weight is not None:
        shape = _parameter_shape(link.operator)
        told = draw(rows, *shape, seed=seed + 3)
    return LinkSystem(operator, pre, weights, cotangent, told), pre, weights, cotangent, told


def _parameter_shape(operator):
    shape = operator.matrix.shape
    turned = operator.flips != (operator.node.operation in {"addmm", "mm"})
    return shape[::-1] if turned else shape
